"""Models are probed on the same objects, and the table says what the numbers say."""

import json

import pytest
import torch

from ocrl.inspection.object_slots import LabelledClip
from ocrl.inspection.probe_report import compare_probes, matched_rows, summary, write_probes
from ocrl.inspection.probes import ProbeSettings
from ocrl.types import Clip, DecoderOutput, SlotOutput

SETTINGS = ProbeSettings(penalty=1e-3, hidden_dim=8, num_steps=50, seed=0)
SIZE = 8


class Decoder(torch.nn.Module):
    """Masks from attention over 8 x 8 tokens."""

    space = "pixels"

    def forward(self, slots, target=None, *, attn=None):
        return DecoderOutput(target, attn.unflatten(-1, (SIZE, SIZE)))


class Model(torch.nn.Module):
    """Slots 1 and 2 hold what is red and green; an untrained one says nothing about them."""

    def __init__(self, *, is_trained):
        super().__init__()
        self.decoder = Decoder()
        self.is_trained = is_trained

    def encode(self, clip):
        pixels = clip.to_float().video.flatten(3)
        attn = torch.stack([pixels.sum(2) == 0, pixels[:, :, 0] > 0, pixels[:, :, 1] > 0], 2)
        attn = attn.float()
        axis = (torch.arange(SIZE * SIZE) // SIZE + 0.5) / SIZE
        row = (attn * axis).sum(-1) / attn.sum(-1)
        slots = torch.stack([row, attn.argmax(-1) / 64, pixels.amax(-1)[..., [2, 0, 1]]], -1)
        if not self.is_trained:
            slots = torch.rand(slots.shape, generator=torch.Generator().manual_seed(0))
        return SlotOutput(slots, attn)


def clip_of(seed, num_frames=4):
    """A red and a green square of two brightnesses; the brightness is the class `lamp`."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.zeros(1, num_frames, 3, SIZE, SIZE, dtype=torch.uint8)
    ids = torch.zeros(1, num_frames, SIZE, SIZE, dtype=torch.int32)
    place = torch.zeros(1, num_frames, 2, 2)
    lamp = torch.randint(0, 2, (2,), generator=generator)
    for t in range(num_frames):
        for m in range(2):
            top, left = torch.randint(0, 3, (2,), generator=generator).tolist()
            left += 4 * m
            area = (0, t, slice(top, top + 2), slice(left, left + 2))
            ids[area] = m + 1
            video[0, t, m, top : top + 2, left : left + 2] = 100 + 100 * int(lamp[m])
            place[0, t, m] = torch.tensor([left + 1, top + 1]) / SIZE
    table = torch.arange(1, 3).expand(1, num_frames, -1).int()
    properties = {
        "id": table,
        "category": table * 0 + 2,
        "position": place,
        "attributes": lamp.float()[:, None].expand(1, num_frames, 2, 1),
    }
    return Clip(
        video,
        torch.zeros(1, num_frames, dtype=torch.bool),
        segmentation={"entities": ids},
        properties=properties,
    )


def read(split):
    return [clip_of(seed) for seed in (range(30) if split == "train" else range(50, 60))]


@pytest.fixture(scope="module")
def result():
    models = {"trained": Model(is_trained=True), "random 1": Model(is_trained=False)}
    return compare_probes(
        models,
        read,
        attribute_names=["lamp"],
        matchings=["masks", "position"],
        settings=SETTINGS,
    )


def test_a_trained_model_beats_the_constant_and_an_untrained_one(result):
    assert result.kinds == {"position": "number", "lamp": "class"}
    assert result.num_objects == (30 * 4 * 2, 10 * 4 * 2)
    probed = result.table["masks"]
    assert probed["trained"].share_matched == 1.0
    assert probed["trained"].overlap == 1.0
    assert probed["trained"].scores["lamp"].linear == 1.0
    assert probed["trained"].scores["position"].linear > 0.4
    random = probed["random 1"].scores
    assert random["lamp"].linear < 0.75
    assert random["lamp"].constant == probed["trained"].scores["lamp"].constant
    assert any("category" in words for words in result.warnings)
    assert any("looks at the held-out positions" in words for words in result.warnings)


def test_the_files_say_it(result, tmp_path):
    paths = write_probes(tmp_path / "out", result, title="Probes <of>", details={"data": "x"})
    assert [path.name for path in paths] == ["metrics.json", "report.html"]
    record = json.loads(paths[0].read_text())
    score = record["table"]["masks"]["trained"]["scores"]["lamp"]
    assert score["linear"] == 1.0 and score["kind"] == "class"
    assert record["num_objects"] == {"train": 240, "holdout": 80}
    page = paths[1].read_text()
    assert "Probes &lt;of&gt;" in page and "240 to train on" in page
    assert "<b>1.000</b>" in page and "random 1, MLP" in page
    lines = summary(result)
    assert any("lamp accuracy" in line and "trained 1.000 linear" in line for line in lines)


def test_training_rows_never_hold_a_held_out_clip():
    train = [clip_with(value=1.0) for _ in range(4)]
    test = [clip_with(value=2.0)]
    for matching in ("masks", "position"):
        rows = matched_rows(train, test, matching=matching, settings=SETTINGS)
        assert set(rows[0].slots.flatten().tolist()) == {1.0}
        assert set(rows[1].slots.flatten().tolist()) == {2.0}


def clip_with(*, value):
    return LabelledClip(
        torch.full((2, 2, 3), value),
        torch.ones(2, 1, 2),
        torch.ones(2, 1, dtype=torch.bool),
        {"position": torch.rand(2, 1, 2)},
    )


def test_an_unknown_matching_is_named():
    with pytest.raises(ValueError, match=r"\['masks', 'position'\], got \['luck'\]"):
        compare_probes({}, read, attribute_names=[], matchings=["luck"], settings=SETTINGS)
