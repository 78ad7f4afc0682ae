import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ocrl.objectives.views import PLACE, Views
from ocrl.objectives.views_likelihood import ViewsLikelihood
from ocrl.types import DecoderOutput, SlotOutput

WORLD = runpy.run_path(str(Path(__file__).parents[1] / "posed_world.py"))
posed_clip, balls_seen = WORLD["posed_clip"], WORLD["balls_seen"]
ENCODED = SlotOutput(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(num_seen=2, **changes):
    return Views(num_seen, **(dict(num_rays=40, held_out_share=0.25, rare_share=0.0) | changes))


def views_of(rays, clip):
    """The camera (B,T,1,P) that each ray starts at."""
    places = clip.camera.extrinsics[..., :3, 3]
    return torch.cdist(rays[:, :, 0, :, :3], places).argmin(-1)


def test_rays_carry_the_colours_of_what_they_hit():
    clip = posed_clip()
    _, asked, rays = make().choose(clip)
    assert rays.shape == (2, 3, 1, 40, 6) and asked.video.shape == (2, 3, 3, 1, 40)
    assert asked.video.dtype == torch.uint8 and asked.is_first is clip.is_first
    colours = torch.tensor([[0, 0, 0], [250, 0, 0], [0, 250, 0], [0, 0, 250]], dtype=torch.uint8)
    hit = torch.stack([balls_seen(rays[:, t], t) for t in range(3)], dim=1)
    assert torch.equal(asked.video, colours[hit].movedim(-1, 2)) and (hit > 0).any()
    torch.testing.assert_close(rays[..., 3:].norm(dim=-1), torch.ones(2, 3, 1, 40))


def test_rays_say_where_the_encoder_saw_them():
    clip = posed_clip(num_views=4)
    seen, asked, _ = make().choose(clip)
    view, y, x = asked.properties[PLACE].unbind(-1)
    row, column = (y * 12).long(), (x * 16).long()
    assert (view == -1).sum(-1).tolist() == [[10] * 3] * 2
    for sample, frame, ray in torch.nonzero(view >= 0).tolist():
        at = (sample, frame, ray)
        pixel = seen.video[sample, frame, int(view[at]), :, row[at], column[at]]
        assert torch.equal(pixel, asked.video[sample, frame, :, 0, ray])


def test_the_share_of_held_out_cameras_and_what_the_encoder_sees():
    clip = posed_clip(batch_size=6, num_views=4)
    chosen = set()
    for _ in range(10):
        seen, _, rays = make().choose(clip)
        assert seen.video.shape == (6, 3, 2, 3, 12, 16) and seen.camera.extrinsics.shape[2] == 2
        for sample in range(6):
            places = seen.camera.extrinsics[sample, 0, :, :3, 3]
            known = torch.cdist(places, clip.camera.extrinsics[sample, 0, :, :3, 3]).argmin(1)
            chosen.add(tuple(sorted(known.tolist())))
            assert torch.equal(seen.video[sample], clip.video[sample][:, known])
            view = views_of(rays, clip)[sample]
            is_held_out = ~torch.isin(view, known)
            assert is_held_out.sum(-1).tolist() == [10] * 3
    assert len(chosen) == 6, "every pair of four cameras"


@pytest.mark.parametrize(("share", "is_float"), [(0.0, False), (0.5, False), (1.0, True)])
def test_rare_colours_are_drawn_more_often(share, is_float):
    clip = posed_clip().to_float() if is_float else posed_clip()
    objective = make(num_rays=4000, rare_share=share)
    _, asked, rays = objective.choose(clip)
    hit = torch.stack([balls_seen(rays[:, t], t) for t in range(3)], dim=1)
    colours = clip.video.float()
    squares = (colours - colours.mean((-1, -2), keepdim=True)).square().sum(-3)
    is_ball = clip.segmentation["entities"] > 0
    even = is_ball.float().mean((-1, -2))
    rare = (squares * is_ball).sum((-1, -2)) / squares.sum((-1, -2))
    # A quarter of the rays is of the one view that is not seen, the others are of the two others.
    expected = (even + share * (rare - even)).mean()
    assert (hit > 0).float().mean().item() == pytest.approx(expected.item(), abs=0.02)
    assert rare.mean() > 3 * even.mean()
    drawn = asked.video.movedim(2, -1)[hit > 0]
    assert (drawn.sum(-1) > 0).all(), "colours and rays are of one pixel"


def test_a_picture_of_one_colour_is_drawn_evenly():
    clip = replace(posed_clip(), video=torch.full_like(posed_clip().video, 7))
    _, asked, _ = make(num_rays=4000, rare_share=1.0).choose(clip)
    y = asked.properties[PLACE][..., 1]
    assert y.mean().item() == pytest.approx(0.5, abs=0.02)


def test_all_views_may_be_seen():
    clip = posed_clip()
    seen, _, rays = make(3, held_out_share=0.0).choose(clip)
    assert seen.num_views == 3
    assert views_of(rays, clip).unique().tolist() == [0, 1, 2]
    _, _, rays = make(1, held_out_share=1.0).choose(clip)
    assert rays.shape[3] == 40


def test_the_loss_is_the_mean_square():
    clip = posed_clip()
    _, asked, _ = make().choose(clip)
    asked = asked.to_float()
    decoded = DecoderOutput(asked.video + 0.5, torch.ones(2, 3, 1, 1, 40))
    assert make()(asked, ENCODED, decoded).item() == pytest.approx(0.25)
    with pytest.raises(ValueError, match="this objective needs a decoder of rays"):
        make()(asked, ENCODED, replace(decoded, recon=torch.zeros(2, 3, 3, 12, 16)))


def make_likelihood(**changes):
    settings = {"num_rays": 40, "held_out_share": 0.25, "rare_share": 0.0, "deviation": 0.1}
    return ViewsLikelihood(2, **(settings | changes))


def test_the_likelihood_is_that_of_a_mixture():
    _, asked, _ = make_likelihood().choose(posed_clip())
    asked = asked.to_float()
    parts = torch.rand(2, 3, 4, 3, 1, 40, dtype=torch.float64)
    masks = torch.rand(2, 3, 4, 1, 40, dtype=torch.float64).softmax(2)
    slot = torch.distributions.Normal(parts.movedim(3, -1), 0.1)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(masks.movedim(2, -1)),
        torch.distributions.Independent(
            torch.distributions.Normal(slot.mean.movedim(2, -2), slot.stddev.movedim(2, -2)), 1
        ),
    )
    expected = -mixture.log_prob(asked.video.movedim(2, -1).double()).mean() / 3
    decoded = DecoderOutput(asked.video, masks, parts)
    loss = make_likelihood()(asked, ENCODED, decoded)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_likelihood_asks_for_one_slot_and_not_for_the_mean():
    """Half of black and half of white is grey in the mean, and no grey under the mixture."""
    _, asked, _ = make_likelihood().choose(posed_clip())
    asked = replace(asked.to_float(), video=torch.full((2, 3, 3, 1, 40), 0.5))
    masks = torch.full((2, 3, 2, 1, 40), 0.5)
    parts = torch.stack([torch.zeros(2, 3, 3, 1, 40), torch.ones(2, 3, 3, 1, 40)], dim=2)
    mixed = make_likelihood()(asked, ENCODED, DecoderOutput(asked.video, masks, parts))
    plain = make_likelihood()(asked, ENCODED, DecoderOutput(asked.video, masks, 0 * parts + 0.5))
    assert plain < 0 < mixed


def test_the_likelihood_needs_what_each_slot_shows():
    _, asked, _ = make_likelihood().choose(posed_clip())
    decoded = DecoderOutput(asked.video, torch.ones(2, 3, 1, 1, 40))
    with pytest.raises(ValueError, match="got none: this objective needs a decoder of rays with"):
        make_likelihood()(asked.to_float(), ENCODED, decoded)
    with pytest.raises(ValueError, match="deviation must be positive, got 0"):
        make_likelihood(deviation=0)


def test_drawing_asks_the_device_for_no_number():
    # Of tensors without values any number that is asked for raises.
    seen, asked, rays = make().choose(posed_clip().to("meta"))
    assert seen.num_views == 2 and rays.shape[:2] == asked.video.shape[:2]


def test_what_is_no_posed_clip_is_named():
    clip = posed_clip()
    with pytest.raises(ValueError, match=r"expected posed views, .* without cameras"):
        make().choose(replace(clip, camera=None))
    with pytest.raises(ValueError, match=r"got frames \(2, 3, 3, 12, 16\) with cameras"):
        make().choose(replace(clip, video=clip.video[:, :, 0]))
    with pytest.raises(ValueError, match="at least 4 views, num_seen=3 and what is held out, got"):
        make(3).choose(clip)
    with pytest.raises(ValueError, match="a camera for each of the 3 views"):
        fewer = clip.camera.map(lambda value: value[:, :, :2])
        make().choose(replace(clip, camera=fewer))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_seen": 0}, "num_seen and num_rays of at least 1, got 0 and 40"),
        ({"num_rays": 0}, "num_seen and num_rays of at least 1, got 2 and 0"),
        ({"held_out_share": 1.5}, r"held_out_share in \[0,1\], got 1.5"),
        ({"rare_share": -0.5}, r"rare_share in \[0,1\], got -0.5"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)
