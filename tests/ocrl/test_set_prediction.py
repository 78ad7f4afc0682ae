import math

import pytest
import torch
from torch import Tensor, nn

from ocrl.average_precision import PredictedSets
from ocrl.backbones.cnn import CNN
from ocrl.decoders.mlp import MLPDecoder
from ocrl.decoders.properties import PropertyDecoder
from ocrl.encoders.slot_attention import SlotAttention
from ocrl.initializers import GaussianInitializer
from ocrl.model import SlotModel
from ocrl.objectives.set_prediction import SetPrediction
from ocrl.properties import PropertySpec
from ocrl.set_prediction import SetPredictionMonitor, evaluate_set_prediction, score, spec_of
from ocrl.types import Clip, SlotOutput

SPEC = PropertySpec(
    {"shape": ["a", "b", "c"]}, coordinates=["x", "y"], low=[0, 0], high=[1, 1], scale=4
)


def pool(classes, places, *, presence=None, num_rows=4):
    """One frame whose objects are of classes 0, 1 and 2 at x = 0, 1, 2, and padding."""
    num = len(classes)
    true = torch.zeros(1, num_rows, 2)
    true[0, :3, 0] = torch.arange(3.0)
    return PredictedSets(
        presence=torch.tensor([presence or [1.0] * num]),
        classes=torch.tensor(classes).view(1, num, 1),
        coordinates=torch.stack([torch.tensor(places), torch.zeros(num)], -1)[None],
        is_object=(torch.arange(num_rows) < 3)[None],
        true_classes=torch.tensor([0, 1, 2] + [0] * (num_rows - 3)).view(1, num_rows, 1),
        true_coordinates=true,
    )


def test_a_perfect_prediction():
    result = score(SPEC, pool([2, 0, 1, 0], [2.0, 0.0, 1.0, 9.0], presence=[1.0, 1.0, 1.0, -1.0]))
    assert set(result.ap.values()) == {1.0} and result.accuracy == {"shape": 1.0}
    assert result.distance == 0 and result.count == 1
    assert (result.num_frames, result.num_objects) == (1, 3)
    assert result.to_json()["figures"]["ap/0.0625"] == 1.0


def test_classes_decide_who_is_matched_and_padding_takes_no_slot():
    # The slots know the classes and stand far off; ten rows of padding want none of them.
    far = score(SPEC, pool([0, 1, 2], [50.0, 51.0, 52.0], num_rows=13))
    assert far.accuracy == {"shape": 1.0} and far.distance == 50
    assert far.ap[math.inf] == 1 and far.ap[1.0] == 0


def test_objects_without_a_slot_are_wrong_in_everything():
    alike = PredictedSets(
        **{**vars(pool([0], [0.5])), "true_classes": torch.zeros(1, 4, 1, dtype=torch.int64)}
    )
    assert score(SPEC, alike).accuracy["shape"] == pytest.approx(1 / 3)
    few = score(SPEC, pool([0], [0.5]))
    assert few.accuracy["shape"] == pytest.approx(1 / 3)
    assert few.distance == 0.5 and few.count == 0
    assert few.ap[math.inf] == pytest.approx(1 / 3) and few.ap[0.5] == 0


def test_without_objects_figures_that_are_none_are_left_out():
    sets = pool([0], [0.5])
    empty = PredictedSets(**{**vars(sets), "is_object": torch.zeros_like(sets.is_object)})
    assert set(score(SPEC, empty).scalars()) == {"count"}


class Reader(nn.Module):
    """A model that reads its slots from the picture, with heads that copy them."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = PropertyDecoder(
            6, spec=SPEC, heads="shared", hidden_dims=[], image_size=[2, 2]
        )
        nn.init.eye_(self.decoder.heads[0].layers[0].weight)

    def encode(self, clip: Clip) -> SlotOutput:
        slots = clip.video.flatten(2)[..., :12].unflatten(-1, (2, 6)).float()
        attn = torch.full((*slots.shape[:3], 4), 0.5)
        return SlotOutput(slots, attn)


def make_clip(outputs: Tensor) -> Clip:
    """A clip whose frames hold outputs (B,T,2,6), with two objects at (0.5, 0.5) of class 1."""
    video = outputs.flatten(2).unflatten(-1, (3, 2, 2))
    shape = video.shape[:2]
    targets = {
        "presence": torch.ones(*shape, 2, dtype=torch.bool),
        "coordinates": torch.full((*shape, 2, 2), 0.5),
        "factors/shape": torch.ones(*shape, 2, dtype=torch.int64),
    }
    return Clip(video, torch.zeros(shape, dtype=torch.bool), properties=targets)


def test_a_model_is_evaluated_on_all_frames_of_all_clips():
    outputs = torch.zeros(2, 3, 2, 6)
    outputs[..., 3] = 1.0  # class 1
    outputs[..., 5] = 2.0  # present
    outputs[0, 0, 0, 0] = 3.0  # one is off to the right
    model = Reader().train()
    clips = [make_clip(outputs), make_clip(outputs[:1])]
    result = evaluate_set_prediction(model, clips, device=torch.device("cpu"))
    assert model.training
    assert (result.num_frames, result.num_objects) == (9, 18)
    assert result.accuracy == {"shape": 1.0} and result.count == 1.0
    off = 4 * (torch.tensor(3.0).sigmoid().item() - 0.5)
    assert result.distance == pytest.approx(2 * off / 18)
    with pytest.raises(ValueError, match="at least one clip"):
        evaluate_set_prediction(model, [], device=torch.device("cpu"))
    monitor = SetPredictionMonitor(lambda: clips, device=torch.device("cpu"))
    with pytest.raises(TypeError, match="expected a SlotModel, got Reader"):
        monitor(model, step=1, board=None)


def test_a_model_of_something_else_is_refused():
    model = nn.Module()
    model.decoder = MLPDecoder(4, image_size=[8, 8], patch_size=4, out_dim=2, hidden_dims=[3])
    with pytest.raises(ValueError, match=r"decoder=properties.*got MLPDecoder"):
        spec_of(model)


def squares(seed, num_clips=16):
    """Frames with a red or blue square on the left, on the right, on both sides or on none."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.full((num_clips, 1, 3, 16, 16), 24, dtype=torch.uint8)
    is_there = torch.rand(num_clips, 2, generator=generator) < 0.8
    colors = torch.randint(0, 2, (num_clips, 2), generator=generator) * is_there
    top = torch.randint(0, 12, (num_clips, 2), generator=generator)
    left = torch.randint(0, 5, (num_clips, 2), generator=generator) + torch.tensor([0, 8])
    for i, k in is_there.nonzero().tolist():
        y, x = int(top[i, k]), int(left[i, k])
        color = torch.tensor([[230, 50, 50], [50, 100, 235]])[colors[i, k]]
        video[i, 0, :, y : y + 4, x : x + 4] = color[:, None, None]
    places = (torch.stack([left, top], -1) + 2) / 16 * is_there[..., None]
    targets = {"presence": is_there, "coordinates": places, "factors/color": colors}
    return Clip(
        video,
        torch.zeros(num_clips, 1, dtype=torch.bool),
        properties={name: value[:, None] for name, value in targets.items()},
    )


def test_slots_learn_the_set():
    torch.manual_seed(0)
    spec = PropertySpec(
        {"color": ["red", "blue"]}, coordinates=["position"], low=[0, 0], high=[1, 1], scale=4
    )
    encoder = SlotAttention(
        CNN(
            [16, 16], kernel_size=5, strides=[2, 1], out_dim=32, image_size=[16, 16],
            position="linear",
        ),
        initializer=GaussianInitializer(3, slot_dim=32, is_learned=True),
        num_slots=3, slot_dim=32, num_iterations=3, mlp_dim=64, gradient="full",
        eps_placement="attn",
    )  # fmt: skip
    model = SlotModel(
        encoder,
        decoder=PropertyDecoder(
            32, spec=spec, heads="shared", hidden_dims=[32], image_size=[16, 16]
        ),
        objectives={"set": SetPrediction(2.0, presence_weight=1.0, huber_delta=0.05)},
        weights={"set": 1.0},
        is_conditioned=False,
    )
    held_out, cpu = [squares(10**6 + i) for i in range(8)], torch.device("cpu")
    before = evaluate_set_prediction(model, held_out, device=cpu)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(240):
        model(squares(step)).total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    after = evaluate_set_prediction(model, held_out, device=cpu)
    assert after.ap[math.inf] > 0.8 > 0.5 > before.ap[math.inf]
    assert after.accuracy["color"] > 0.95 and after.count > before.count
