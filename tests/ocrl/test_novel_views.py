"""Scores that follow from models which are told the truth, or know which fault they have."""

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ocrl.novel_views import evaluate_views, picture_scores, segment_scores, separation_scores

WORLD = runpy.run_path(str(Path(__file__).with_name("posed_world.py")))
posed_clip, told_model = WORLD["posed_clip"], WORLD["told_model"]
FOUR = ("fg_ari", "fg_ari_time", "fg_ari_cameras", "fg_ari_both")


def test_a_model_that_is_right_is_perfect():
    model = told_model(has_background=True).train()
    result = evaluate_views(model, [posed_clip(), posed_clip(3)], num_examples=3, num_orbit=4)
    own = result.segments["model"]
    assert all(own[name] == 1.0 for name in (*FOUR, "fg_ari_held_out", "ari_both", "mbo_both"))
    assert result.pictures["model"] == {
        **dict.fromkeys(("psnr", "held_out_psnr"), pytest.approx(100.0)),
        **dict.fromkeys(("ssim", "held_out_ssim"), pytest.approx(1.0)),
    }
    assert result.separation == {"static_explained": 1.0, "objects_lost": 0.0}
    assert (result.num_clips, result.num_frames, result.num_views, result.num_seen) == (5, 15, 3, 2)
    assert model.training
    assert [len(values) for values in result.per_clip["model"].values()] == [5] * 11


def test_only_the_first_views_are_shown_to_the_encoder():
    model, clip = told_model(), posed_clip()
    evaluate_views(model, [clip], num_examples=0)
    evaluate_views(model, [clip], num_examples=0, num_seen=1)
    for (video, camera), count in zip(model.encoder.seen, (2, 1), strict=True):
        torch.testing.assert_close(video, clip.to_float().video[:, :, :count])
        assert torch.equal(camera.extrinsics, clip.camera.extrinsics[:, :, :count])


@pytest.mark.parametrize(
    ("fault", "whole"),
    [("time", ("fg_ari", "fg_ari_cameras")), ("view", ("fg_ari", "fg_ari_time"))],
)
def test_the_four_ways_tell_what_does_not_hold_together(fault, whole):
    result = evaluate_views(told_model(fault=fault), [posed_clip()], num_examples=0)
    own = result.segments["model"]
    for name in FOUR:
        assert (own[name] == 1.0) == (name in whole), name
        assert own[name] > 0
    # The encoder was right about the cameras that it saw, whatever the decoder makes of it.
    attended = result.segments["attention"]
    assert "fg_ari_held_out" in own and "fg_ari_held_out" not in attended
    assert [attended[name] for name in FOUR] == [1.0] * 4


def test_slots_of_single_frames_can_be_ordered(monkeypatch):
    class Shuffled(type(told_model().encoder)):
        def forward(self, video, is_first, **hints):
            output = super().forward(video, is_first, **hints)
            slots = output.slots.clone()
            slots[:, 1] = slots[:, 1].roll(1, dims=1)
            attn = output.attn.clone()
            attn[:, 1] = attn[:, 1].roll(1, dims=1)
            return replace(output, slots=slots, attn=attn)

    class Reading(type(told_model().decoder)):
        def render(self, slots, rays):
            # A ball belongs to the slot that has its number largest.
            output = super().render(slots[:, :, :1] * 0 + self.frames(slots), rays)
            owner = slots.argmax(-1)
            place = (owner[:, :, None] == torch.arange(4)[:, None]).long().argmax(-1)
            index = place[..., None, None].expand_as(output.masks)
            return replace(
                output, masks=torch.empty_like(output.masks).scatter_(2, index, output.masks)
            )

        @staticmethod
        def frames(slots):
            return slots.min(-1, keepdim=True).values[:, :, :1].expand(-1, -1, 4, 4)

    model = told_model()
    model.encoder, model.decoder = Shuffled(), Reading()
    plain, ordered = (
        evaluate_views(model, [posed_clip()], num_examples=0, is_aligned=is_aligned)
        for is_aligned in (False, True)
    )
    for method in ("model", "attention"):
        assert plain.segments[method]["fg_ari_cameras"] == 1.0
        assert plain.segments[method]["fg_ari_both"] < 1.0
        assert ordered.segments[method]["fg_ari_both"] == 1.0
    # Where nothing is said the encoder decides.
    for sees_single_frames, expected in ((False, plain), (True, ordered)):
        monkeypatch.setattr(type(model), "sees_single_frames", sees_single_frames)
        unsaid = evaluate_views(model, [posed_clip()], num_examples=0)
        assert unsaid.segments == expected.segments


def test_pictures_that_learn_nothing():
    clip = posed_clip(num_views=4)
    result = evaluate_views(told_model(), [clip], num_examples=0)
    video = clip.to_float().video.double()
    colour = video[:, :, :2].mean((2, 4, 5), keepdim=True)
    error = (video - colour).square().mean((-3, -2, -1))[:, :, 2:]
    expected = (-10 * error.log10()).mean().item()
    assert result.pictures["mean colour"]["held_out_psnr"] == pytest.approx(expected)
    # Four cameras on a ring: view 1 is nearest to view 2, and view 0 to view 3.
    error = (video[:, :, 2:] - video[:, :, [1, 0]]).square().mean((-3, -2, -1))
    expected = (-10 * error.log10()).mean().item()
    assert result.pictures["nearest view"]["held_out_psnr"] == pytest.approx(expected)
    without = evaluate_views(told_model(), [clip], num_examples=0, baselines=False)
    assert list(without.pictures) == ["model"]
    assert list(without.segments) == ["model", "attention"]


def test_segments_by_colour_find_balls_of_one_colour():
    result = evaluate_views(told_model(), [posed_clip()], num_examples=0)
    assert result.segments["k-means"]["fg_ari_both"] > 0.99


def test_clips_without_truth_and_cameras_that_are_all_seen():
    clip = replace(posed_clip(), segmentation={})
    result = evaluate_views(told_model(2), [clip], num_seen=3)
    assert result.segments == {} and result.separation == {}
    assert set(result.pictures["model"]) == {"psnr", "ssim"}
    assert result.examples[0].segmentation is None
    assert all(math.isfinite(value) for value in result.scalars().values())


def test_examples_hold_views_and_an_orbit():
    clip = posed_clip(3, num_frames=4)
    result = evaluate_views(told_model(), [clip], num_examples=2, num_orbit=5)
    assert len(result.examples) == 2
    example = result.examples[1]
    assert torch.equal(example.video, clip.video[1]) and example.num_seen == 2
    torch.testing.assert_close(example.views.recon[0], clip.to_float().video[1])
    assert example.orbit.recon.shape == (1, 1, 5, 3, *WORLD["SIZE"])
    # The orbit begins at the first camera, in the middle frame.
    torch.testing.assert_close(example.orbit.recon[0, 0, 0], clip.to_float().video[1, 2, 0])


def test_results_are_plain_values_and_unlike_names():
    result = evaluate_views(told_model(has_background=True), [posed_clip()], num_orbit=2)
    json.dumps(result.to_json(), allow_nan=False)
    assert {"fg_ari_both", "k-means/fg_ari_both", "nearest view/psnr", "objects_lost"} <= set(
        result.scalars()
    )


def test_scores_by_hand():
    truth = torch.tensor([[1, 2], [1, 2]]).view(1, 1, 2, 1, 2)
    swapped = torch.tensor([[0, 1], [1, 0]]).view(1, 1, 2, 1, 2)
    scores = segment_scores(truth, swapped, num_seen=1)
    assert scores["fg_ari"].item() == scores["fg_ari_held_out"].item() == 1.0
    assert scores["fg_ari_both"].item() < 0.01
    assert scores["mbo_both"].item() == pytest.approx(1 / 3)
    video = torch.zeros(1, 1, 2, 3, 4, 4)
    recon = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])[None, None]
    found = picture_scores(recon, video, num_seen=1)
    assert set(found) == {"psnr", "held_out_psnr"}, "too small for SSIM"
    assert found["psnr"].item() == pytest.approx(20.0, abs=1e-5)
    assert found["held_out_psnr"].item() == pytest.approx(40.0, abs=1e-4)


def test_void_is_neither_still_nor_an_object():
    truth = torch.tensor([0, 0, 0, 3, 3, 65535]).view(1, 1, 1, 1, 6)
    background = torch.tensor([True, True, False, True, False, True]).view(1, 1, 1, 1, 6)
    scores = separation_scores(truth, background)
    assert scores["static_explained"].item() == pytest.approx(2 / 3)
    assert scores["objects_lost"].item() == pytest.approx(1 / 2)
    nothing = separation_scores(torch.zeros(1, 1, 1, 1, 6), background)
    assert math.isnan(nothing["objects_lost"].item())


def test_no_clips_are_refused():
    with pytest.raises(ValueError, match="at least one clip to evaluate"):
        evaluate_views(told_model(), [])
