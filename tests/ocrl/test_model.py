from dataclasses import replace

import pytest
import torch
from torch import nn

from ocrl.interfaces import Backbone, Decoder, Objective, SlotEncoder, ViewChooser
from ocrl.model import SlotModel
from ocrl.types import Camera, Clip, DecoderOutput, SlotOutput


class Tokens(Backbone):
    out_dim, image_size, grid = 3, (4, 4), (4, 4)

    def forward(self, frames, *, camera=None):
        return frames.flatten(2).transpose(1, 2)


class Encoder(SlotEncoder):
    """Remembers what it was given."""

    num_slots, slot_dim = 3, 2

    def __init__(self):
        super().__init__()
        self.backbone = Tokens()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen = {}

    def initial_state(self, batch_size):
        return ()

    def forward(self, video, is_first, *, action=None, condition=None, camera=None):
        self.seen = {"video": video, "is_first": is_first, "action": action, "boxes": condition}
        self.seen["camera"] = camera
        slots = self.weight * video.mean((2, 3, 4))[..., None, None].expand(-1, -1, 3, 2)
        return SlotOutput(slots, slots.new_full((*slots.shape[:3], 16), 1 / 3))

    def step(self, frame, state, is_first, *, action=None, condition=None, camera=None):
        raise NotImplementedError


class Flat(Decoder):
    space = "pixels"

    def forward(self, slots, target=None, *, attn=None):
        recon = slots.mean((2, 3))[..., None, None, None].expand(-1, -1, 3, 4, 4)
        return DecoderOutput(recon, slots.new_full((*slots.shape[:3], 4, 4), 1 / 3))


class Constant(Objective):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, clip, encoded, decoded):
        assert clip.video.is_floating_point()
        return self.value * encoded.slots.mean() / encoded.slots.mean().detach()


def model_of(*, weights=None, objectives=None, is_conditioned=False):
    if objectives is None:
        objectives = {"one": Constant(2.0), "other": Constant(5.0)}
    return SlotModel(
        Encoder(),
        decoder=Flat(),
        objectives=objectives,
        weights={"one": 1.0, "other": 0.1} if weights is None else weights,
        is_conditioned=is_conditioned,
    )


def clip_of(*, boxes=None):
    video = torch.full((2, 3, 3, 4, 4), 51, dtype=torch.uint8)
    is_first = torch.zeros(2, 3, dtype=torch.bool)
    return Clip(video, is_first, action=torch.arange(6).view(2, 3), boxes=boxes)


def test_losses_are_reported_unweighted_and_summed_weighted():
    output = model_of()(clip_of())
    assert {name: loss.item() for name, loss in output.losses.items()} == {"one": 2.0, "other": 5.0}
    assert output.total.item() == pytest.approx(2.5)
    output.total.backward()


def test_the_encoder_gets_floats_actions_and_starts():
    model = model_of()
    clip = clip_of()
    model(clip)
    torch.testing.assert_close(model.encoder.seen["video"], torch.full((2, 3, 3, 4, 4), 0.2))
    assert model.encoder.seen["action"] is clip.action
    assert model.encoder.seen["is_first"] is clip.is_first
    assert model.encoder.seen["boxes"] is None


def test_the_encoder_gets_the_cameras():
    model = model_of()
    camera = Camera(torch.eye(3).expand(2, 3, 1, 3, 3), torch.eye(4).expand(2, 3, 1, 4, 4))
    model(replace(clip_of(), camera=camera))
    assert model.encoder.seen["camera"] is camera


def test_encode_gives_the_slots_of_a_pass():
    model = model_of()
    assert torch.equal(model.encode(clip_of()).slots, model(clip_of()).encoded.slots)


@pytest.mark.parametrize("weights", [{"one": 1.0}, {"one": 1.0, "others": 1.0}, {}])
def test_every_objective_needs_a_weight_of_its_name(weights):
    with pytest.raises(ValueError, match=r"expected \['one', 'other'\], got"):
        model_of(weights=weights)


def test_a_model_without_objectives_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        model_of(objectives={}, weights={})


def test_a_decoder_of_places_needs_slots_that_tell_them():
    encoder, decoder = Encoder(), Flat()
    arguments = dict(decoder=decoder, objectives={"one": Constant(1.0)}, weights={"one": 1.0})
    encoder.num_axes = 2
    SlotModel(encoder, **arguments, is_conditioned=False)
    decoder.num_axes = 2
    SlotModel(encoder, **arguments, is_conditioned=False)
    decoder.num_axes = 3
    with pytest.raises(
        ValueError, match=r"a Flat that reads places expected .* 3 numbers, got .* 2"
    ):
        SlotModel(encoder, **arguments, is_conditioned=False)
    encoder.num_axes = 0
    with pytest.raises(ValueError, match=r"got a Encoder that tells none; .*has_places=true"):
        SlotModel(encoder, **arguments, is_conditioned=False)


def test_boxes_of_the_first_frame_come_first_and_are_padded_to_the_slots():
    boxes = torch.full((2, 3, 5, 4), -1.0)
    boxes[0, 0, 1] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    boxes[0, 0, 4] = torch.tensor([0.5, 0.6, 0.7, 0.8])
    boxes[:, 1:] = 0.9
    model = model_of(is_conditioned=True)
    model(clip_of(boxes=boxes))
    expected = torch.full((2, 3, 4), -1.0)
    expected[0, 0], expected[0, 1] = boxes[0, 0, 1], boxes[0, 0, 4]
    torch.testing.assert_close(model.encoder.seen["boxes"], expected)


def test_fewer_boxes_than_slots_are_padded():
    model = model_of(is_conditioned=True)
    model(clip_of(boxes=torch.full((2, 3, 1, 4), 0.5)))
    assert model.encoder.seen["boxes"][:, :, 0].tolist() == [[0.5, -1.0, -1.0]] * 2


def test_more_boxes_than_slots_are_refused():
    with pytest.raises(ValueError, match=r"num_slots=3 boxes in a first frame, got 4"):
        model_of(is_conditioned=True)(clip_of(boxes=torch.full((2, 3, 4, 4), 0.5)))


def test_a_conditioned_model_needs_boxes():
    with pytest.raises(ValueError, match="boxes in the clip, got none"):
        model_of(is_conditioned=True)(clip_of())


class Rays(Flat):
    """Remembers what rays it was asked for."""

    space = "rays"

    def forward(self, slots, target=None, *, attn=None):
        self.asked = target
        return super().forward(slots, target, attn=attn)


class Chooser(Constant, ViewChooser):
    """Shows the encoder the frames upside down, and asks for two rays."""

    def choose(self, clip):
        colours = torch.full((2, 3, 3, 1, 2), 255, dtype=torch.uint8)
        rays = torch.arange(2 * 3 * 2 * 6).view(2, 3, 1, 2, 6)
        return replace(clip, video=255 - clip.video), Clip(colours, clip.is_first), rays

    def forward(self, clip, encoded, decoded):
        self.compared = clip.video
        return super().forward(clip, encoded, decoded)


class Seen(Constant):
    """Compares with what the encoder saw."""

    reads_seen = True

    def forward(self, clip, encoded, decoded):
        self.compared = clip.video
        return super().forward(clip, encoded, decoded)


def posed_model(decoder, **objectives):
    weights = dict.fromkeys(objectives, 1.0)
    return SlotModel(
        Encoder(), decoder=decoder, objectives=objectives, weights=weights, is_conditioned=False
    )


def test_who_chooses_views_says_what_is_seen_asked_and_compared():
    chooser, other = Chooser(1.0), Chooser(1.0)
    seen = Seen(2.0)
    model = posed_model(Rays(), views=chooser, seen=seen)
    model(clip_of())
    torch.testing.assert_close(model.encoder.seen["video"], torch.full((2, 3, 3, 4, 4), 0.8))
    assert torch.equal(model.decoder.asked, torch.arange(72).view(2, 3, 1, 2, 6))
    assert torch.equal(chooser.compared, torch.ones(2, 3, 3, 1, 2))
    assert torch.equal(seen.compared, model.encoder.seen["video"])
    for decoder, objectives, got in (
        (Rays(), {"constant": Constant(1.0)}, "got 0 for a decoder of rays"),
        (Rays(), {"one": chooser, "two": other}, "got 2 for a decoder of rays"),
        (Flat(), {"views": chooser}, "got 1 for a decoder of pixels"),
    ):
        with pytest.raises(ValueError, match=got):
            posed_model(decoder, **objectives)(clip_of())
