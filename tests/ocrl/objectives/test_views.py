import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ocrl.objectives.views import PLACE, Views
from ocrl.types import Camera, DecoderOutput, SlotOutput

WORLD = runpy.run_path(str(Path(__file__).parents[1] / "posed_world.py"))
posed_clip, balls_seen = WORLD["posed_clip"], WORLD["balls_seen"]
ENCODED = SlotOutput(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(num_seen=2, **changes):
    return Views(num_seen, **(dict(num_rays=40, held_out_share=0.25) | changes))


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


def test_what_is_no_posed_clip_is_named():
    clip = posed_clip()
    with pytest.raises(ValueError, match=r"expected posed views, .* without cameras"):
        make().choose(replace(clip, camera=None))
    with pytest.raises(ValueError, match=r"got frames \(2, 3, 3, 12, 16\) with cameras"):
        make().choose(replace(clip, video=clip.video[:, :, 0]))
    with pytest.raises(ValueError, match="at least 4 views, num_seen=3 and what is held out, got"):
        make(3).choose(clip)
    skewed = clip.camera.extrinsics.clone()
    skewed[..., 0, 0] += 0.3
    with pytest.raises(ValueError, match="orthonormal columns"):
        make().choose(replace(clip, camera=Camera(clip.camera.intrinsics, skewed)))
    with pytest.raises(ValueError, match="a camera for each of the 3 views"):
        fewer = clip.camera.map(lambda value: value[:, :, :2])
        make().choose(replace(clip, camera=fewer))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_seen": 0}, "num_seen and num_rays of at least 1, got 0 and 40"),
        ({"num_rays": 0}, "num_seen and num_rays of at least 1, got 2 and 0"),
        ({"held_out_share": 1.5}, r"held_out_share in \[0,1\], got 1.5"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)
