"""Edits of a model that keeps factors apart come out clean, those of one that mixes them do not."""

import json

import pytest
import torch

from ocrl.inspection.causal_edits import changed_pixels, draw_clips, mask_bins, windows
from ocrl.inspection.disentanglement_report import measure_codes, summary, write_code_report
from ocrl.inspection.probes import ProbeSettings
from ocrl.interfaces import Decoder, SlotCodes
from ocrl.types import Clip, DecoderOutput, SlotOutput

SIZE = 16
SETTINGS = ProbeSettings(penalty=0.0, hidden_dim=32, num_steps=200, seed=0)
COLOURS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])


def silhouette(shape, place):
    """A square, a flat bar or an upright one around a place (x, y) in pixels."""
    half = torch.tensor([[3, 3], [3, 1], [1, 3]])[shape]
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    inside = (x - place[..., 0, None, None]).abs() < half[..., 0, None, None]
    return inside & ((y - place[..., 1, None, None]).abs() < half[..., 1, None, None])


class Encoder(torch.nn.Module, SlotCodes):
    """Codes of two groups, colour and shape; a slot is its codes, its place and whether it is."""

    code_sizes = (3, 3)

    def slots_of(self, codes, coordinates=None):
        assert coordinates is not None
        return torch.cat([codes.float(), coordinates], -1)


class Painter(Decoder):
    """Slot 0 is black ground; slot 1 is drawn from its codes."""

    space = "pixels"

    def __init__(self, *, is_mixed):
        super().__init__()
        self.is_mixed = is_mixed

    def forward(self, slots, target=None, *, attn=None):
        colour, shape = slots[:, :, 1, 0].long(), slots[:, :, 1, 1].long()
        if self.is_mixed:
            shape = (shape + colour) % 3
        figure = silhouette(shape, slots[:, :, 1, 2:]).float()
        recon = COLOURS[colour][..., None, None] * figure[:, :, None]
        return DecoderOutput(recon, torch.stack([1 - figure, figure], 2))


class Model(torch.nn.Module):
    def __init__(self, *, is_mixed=False):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Painter(is_mixed=is_mixed)

    def encode(self, clip):
        attributes = clip.properties["attributes"][:, :, 0, :2].long()
        codes = torch.stack([torch.zeros_like(attributes), attributes], 2)
        if self.decoder.is_mixed:
            codes[..., 1] = (codes[..., 1] - codes[..., 0]) % 3
        place = clip.properties["position"] * SIZE
        places = torch.cat([torch.zeros_like(place), place], 2)
        ids = clip.segmentation["entities"].flatten(2)
        attn = torch.nn.functional.one_hot(ids.long(), 2).mT.float()
        slots = self.encoder.slots_of(codes, places)
        return SlotOutput(slots, attn, codes=codes, aux={"coordinates": places})


def clip_of(seed, num_frames=6):
    generator = torch.Generator().manual_seed(seed)
    look = torch.randint(0, 3, (1, num_frames, 2), generator=generator)
    place = torch.randint(4, SIZE - 4, (1, num_frames, 2), generator=generator).float()
    figure = silhouette(look[..., 1], place)
    video = 255 * COLOURS[look[..., 0]][..., None, None] * figure[:, :, None]
    properties = {
        "id": torch.ones(1, num_frames, 1).int(),
        "category": torch.zeros(1, num_frames, 1).int(),
        "position": place[:, :, None] / SIZE,
        "attributes": look[:, :, None].float(),
    }
    return Clip(
        video.to(torch.uint8),
        torch.zeros(1, num_frames, dtype=torch.bool),
        segmentation={"entities": figure.int()},
        properties=properties,
    )


def read(split):
    return [clip_of(seed) for seed in (range(60) if split == "train" else range(90, 110))]


def read_weighed(split):
    """The same, and each object has a weight, which nobody can see."""
    clips = read(split)
    generator = torch.Generator().manual_seed(len(clips))
    for clip in clips:
        look = clip.properties["attributes"]
        weight = torch.randint(0, 3, (*look.shape[:-1], 1), generator=generator).float()
        clip.properties["attributes"] = torch.cat([look, weight], -1)
    return clips


def measure(read=read, attribute_names=("colour", "shape"), **options):
    return measure_codes(
        Model(**options),
        read,
        attribute_names=attribute_names,
        settings=SETTINGS,
        window=8,
        num_bins=3,
    )


@pytest.fixture(scope="module")
def clean():
    return measure()


@pytest.fixture(scope="module")
def mixed():
    return measure(is_mixed=True)


def test_a_model_that_keeps_factors_apart_scores_one(clean):
    assert list(clean.values) == ["position", "colour", "shape"]
    assert clean.intended == ["colour", "shape"]
    assert clean.judge_accuracy == {"colour": 1.0, "shape": 1.0}
    told = [float(clean.information[0, 1]), float(clean.information[1, 2])]
    assert told == pytest.approx([1, 1])
    assert clean.information[0, 2] < 0.05 and clean.scores.mean_modularity > 0.8
    assert clean.edits.num_edits.tolist() == [120, 120]
    assert clean.edits.only_intended.tolist() == [1, 1]
    assert clean.edits.one_factor.tolist() == [1, 1] and clean.edits.is_seen.all()
    assert clean.edits.changed.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert clean.edits.outside.tolist() == [0, 0] and (clean.edits.inside > 0.1).all()
    assert clean.warnings == []
    assert clean.num_used.tolist() == [3, 3] and (clean.perplexity > 2.9).all()


def test_a_model_that_mixes_them_does_not(mixed):
    # A new colour code changes the shape as well; the shape code changes the shape alone.
    assert mixed.information[0].argmax() == 1 and mixed.information[1, 2] < 0.1
    assert mixed.edits.changed[0].tolist() == [0, 1, 1]
    assert mixed.edits.only_intended[0] == 0
    assert mixed.edits.one_factor.tolist() == [0, 1]


def test_a_factor_that_the_judge_cannot_see_counts_for_nothing():
    report = measure(read_weighed, ("colour", "shape", "weight"))
    assert report.edits.is_seen.tolist() == [True, True, True, False]
    # What it says of the weight follows what it sees, so an edit seems to change that as well.
    assert (report.edits.changed[:, 3] > 0).any()
    assert report.intended == ["colour", "shape"]
    assert report.edits.only_intended.tolist() == [1, 1]
    assert any("to weight is not counted" in warning for warning in report.warnings)


def test_the_files_say_it(clean, tmp_path):
    paths = write_code_report(tmp_path, clean, title="Codes <of>", details={"data": "x"})
    record = json.loads(paths[0].read_text())
    assert record["intended"] == ["colour", "shape"]
    assert record["edits"]["only_intended"] == [1, 1]
    assert record["scores"]["mean_modularity"] == pytest.approx(clean.scores.mean_modularity)
    assert record["num_objects"] == {"train": 360, "holdout": 120}
    page = paths[1].read_text()
    assert "Codes &lt;of&gt;" in page and "p(value | code)" in page and "by mask" not in page
    assert any("edits 100.0% change only that" in line for line in summary(clean))


def test_a_code_that_never_changes_is_told():
    class Still(Model):
        def encode(self, clip):
            encoded = super().encode(clip)
            encoded.codes[..., 1] = 0
            return encoded

    report = measure_codes(
        Still(),
        read,
        attribute_names=["colour", "shape"],
        settings=SETTINGS,
        window=8,
        num_bins=3,
    )
    assert report.edits.num_edits.tolist() == [120, 0]
    assert report.edits.only_intended[1].isnan()
    assert report.to_json()["edits"]["only_intended"][1] is None
    assert report.warnings[-1] == "All objects have one code in group 1: it says nothing."


def test_windows_are_cut_around_the_middle():
    pictures = torch.arange(2 * 3 * 5 * 6).view(2, 3, 5, 6).float()
    masks = torch.zeros(2, 5, 6, dtype=torch.bool)
    masks[0, 2, 3] = True
    masks[1, 0, 0] = True
    cut = windows(pictures, masks, side=2)
    assert torch.equal(cut[0], pictures[0, :, 1:3, 2:4])
    # Row and column -1 are outside.
    assert cut[1, :, 0].eq(0).all() and cut[1, :, :, 0].eq(0).all()
    assert torch.equal(cut[1, :, 1, 1], pictures[1, :, 0, 0])


def test_masks_fall_into_parts():
    masks = torch.zeros(3, 6, 6)
    masks[0, 5, 0] = 1
    masks[1, 2:4, 2:4] = 1
    masks[2, 0, 0] = 0.1
    assert mask_bins(masks, num_bins=3).tolist() == [6, 4, -1]


def test_changed_pixels_by_hand():
    before = torch.zeros(1, 3, 8, 8)
    after = before.clone()
    objects = torch.zeros(1, 8, 8, dtype=torch.bool)
    objects[0, 0, 0] = True
    after[0, 1, 2, 2] = 0.5
    after[0, 0, 7, 7] = 0.5
    after[0, 0, 5, 5] = 0.05
    # The object and two pixels around it are 3 x 3 of 64.
    torch.testing.assert_close(
        changed_pixels(before, after, objects), torch.tensor([[1 / 9, 1 / 55]])
    )


def test_models_without_codes_are_refused():
    model = Model()
    model.encoder = torch.nn.Identity()
    with pytest.raises(ValueError, match="slots have codes, such as encoder=vq_sa"):
        draw_clips(model, read("holdout"), attribute_names=[], mask_source="decoder", device="cpu")
