"""Objects in the world beside the slots of posed views."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ocrl.inspection.object_slots import label_clips, match_by_masks, object_factors
from ocrl.inspection.probe_report import compare_probes
from ocrl.inspection.probes import ProbeSettings
from ocrl.types import SlotOutput

WORLD = runpy.run_path(str(Path(__file__).parents[1] / "posed_world.py"))
NAMES = ("color", "x", "y", "z")


def labelled_clip(batch_size=2, num_frames=3):
    """Balls with their tables: id, colour and where they are in the world."""
    clip = WORLD["posed_clip"](batch_size, num_frames)
    shape = (batch_size, num_frames)
    frame = torch.arange(num_frames)[None, :, None, None]
    places = (WORLD["CENTERS"] * (1 + 0.05 * frame)).expand(*shape, 3, 3)
    colours = torch.arange(3.0)[:, None].expand(*shape, 3, 1)
    tables = {
        "id": torch.arange(1, 4).expand(*shape, 3),
        "category": torch.zeros(*shape, 3, dtype=torch.int64),
        "position": torch.rand(*shape, 3, 3, 2),
        "attributes": torch.cat([colours, places], dim=-1),
    }
    return replace(clip, properties=tables)


def model_of(**options):
    """Told the truth, with slots that say the colour and the place of their ball."""
    model = WORLD["told_model"](**options).eval()
    plain = model.encoder.forward

    def forward(video, is_first, **hints):
        output = plain(video, is_first, **hints)
        frame = torch.arange(video.shape[1])[None, :, None, None]
        places = (WORLD["CENTERS"] * (1 + 0.05 * frame)).expand(*video.shape[:2], 3, 3)
        told = torch.cat([places, torch.zeros_like(places[:, :, :1])], dim=2)
        return SlotOutput(torch.cat([output.slots, told], dim=-1), output.attn)

    model.encoder.forward = forward
    return model


def test_objects_are_where_they_are_in_the_world():
    clip = labelled_clip()
    factors = object_factors(clip, NAMES)
    torch.testing.assert_close(factors["position"], clip.properties["attributes"][..., 1:])
    without = replace(clip, properties={**clip.properties})
    del without.properties["attributes"]
    places = object_factors(without, ())["position"]
    assert places.shape == (2, 3, 3, 6)
    # The second object in the third camera.
    assert torch.equal(places[..., 1, 4:], clip.properties["position"][:, :, 2, 1])


@pytest.mark.parametrize("has_background", [False, True])
def test_slots_are_matched_over_all_cameras(has_background):
    model = model_of(has_background=has_background)
    labelled = label_clips(model, [labelled_clip()], attribute_names=NAMES)
    assert len(labelled) == 2 and model.encoder.seen[0][0].shape[2] == 2
    for clip in labelled:
        assert clip.overlap.shape == (3, 3, 4) and clip.is_seen.all()
        torch.testing.assert_close(clip.overlap[..., :3], torch.eye(3).expand(3, 3, 3))
        # Without a background the last slot shows it, and no ball.
        assert (clip.overlap[..., 3] == 0).all()
        assert match_by_masks(clip).tolist() == [[0, 1, 2]] * 3


def test_slots_are_matched_by_what_is_attended_to_in_the_cameras_that_are_seen():
    clip = labelled_clip()
    # The first ball stands in the third camera alone, which the encoder does not see.
    truth = clip.segmentation["entities"].clone()
    truth[:, :, :2][truth[:, :, :2] == 1] = 0
    clip = replace(clip, segmentation={"entities": truth})
    options = {"attribute_names": NAMES, "mask_source": "attn"}
    for labelled in label_clips(model_of(), [clip], **options):
        assert labelled.is_seen.tolist() == [[False, True, True]] * 3
        torch.testing.assert_close(labelled.overlap[:, 1:, 1:3], torch.eye(2).expand(3, 2, 2))
        assert match_by_masks(labelled).tolist() == [[-1, 1, 2]] * 3


def test_masks_of_nothing_known_are_refused():
    with pytest.raises(ValueError, match="to be 'decoder' or 'attn', got 'attention'"):
        label_clips(model_of(), [labelled_clip()], attribute_names=NAMES, mask_source="attention")


def test_places_and_colours_are_read_off_slots():
    result = compare_probes(
        {"told": model_of(has_background=True)},
        lambda split: iter([labelled_clip(3, 6 if split == "train" else 4)]),
        attribute_names=NAMES,
        matchings=["masks", "position"],
        settings=ProbeSettings(penalty=1e-4, hidden_dim=8, num_steps=5, seed=0),
    )
    assert result.kinds == {"color": "class", **dict.fromkeys(("position", *"xyz"), "number")}
    for probed in result.table.values():
        scores = probed["told"].scores
        assert scores["position"].linear > 0.99 and scores["color"].linear == 1.0


def test_a_posed_model_needs_cameras():
    clip = replace(labelled_clip(), camera=None)
    model = model_of()
    with pytest.raises(ValueError, match="expected cameras in the clips of a model of posed"):
        label_clips(model, [clip], attribute_names=NAMES)
