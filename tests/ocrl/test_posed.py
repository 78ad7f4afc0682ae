import runpy
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ocrl.posed import (
    check_posed,
    chooser_of,
    is_posed,
    nearest_views,
    render_views,
    seen_views,
    view_rays,
)
from ocrl.types import Camera

WORLD = runpy.run_path(str(Path(__file__).with_name("posed_world.py")))
posed_clip, told_model, ring, SIZE = (
    WORLD[name] for name in ("posed_clip", "told_model", "ring", "SIZE")
)


def test_views_are_rendered_where_their_cameras_stand():
    clip, model = posed_clip(num_frames=4), told_model(has_background=True).eval()
    slots = model.encode(seen_views(clip, 2)).slots
    views = render_views(model.decoder, slots, clip.camera, size=SIZE)
    assert views.recon.shape == (2, 4, 3, 3, *SIZE) and views.masks.shape == (2, 4, 4, 3, *SIZE)
    torch.testing.assert_close(views.recon, clip.to_float().video)
    ids = clip.segmentation["entities"]
    expected = torch.where(ids == 0, 4, ids - 1).long()
    assert torch.equal(views.segments, expected)
    torch.testing.assert_close(views.shares.sum(2), torch.ones(2, 4, 3, *SIZE))


@pytest.mark.parametrize(
    ("most", "expected"), [(1, 32), (2 * 5 * 16, 2 * 5 * 16), (2 * 2 * 36 * 16, 2 * 2 * 36 * 16)]
)
def test_rendering_piece_by_piece_changes_nothing(monkeypatch, most, expected):
    # Two clips of 5 moments, each of 3 pictures of 12 rows of 16 rays.
    clip, model = posed_clip(num_frames=5), told_model(has_background=True).eval()
    slots = model.encode(seen_views(clip, 2)).slots
    whole = render_views(model.decoder, slots, clip.camera, size=SIZE)
    monkeypatch.setattr("ocrl.posed._RAYS_AT_ONCE", most)
    numbers, render = [], model.decoder.render

    def counted(slots, rays):
        numbers.append(rays.shape[:-1].numel())
        return render(slots, rays)

    monkeypatch.setattr(model.decoder, "render", counted)
    pieces = render_views(model.decoder, slots, clip.camera, size=SIZE)
    assert max(numbers) == expected
    assert torch.equal(whole.recon, pieces.recon) and torch.equal(whole.masks, pieces.masks)
    assert torch.equal(whole.background, pieces.background)


def test_a_decoder_that_knows_no_background_gives_none():
    clip, model = posed_clip(), told_model().eval()
    slots = model.encode(seen_views(clip, 2)).slots
    views = render_views(model.decoder, slots, clip.camera, size=SIZE)
    assert views.background is None and views.shares is views.masks


def test_the_pictures_of_a_frame_stand_under_each_other():
    clip = posed_clip()
    rays = view_rays(clip.camera, SIZE)
    assert rays.shape == (2, 3, 3 * SIZE[0], SIZE[1], 6)
    places = rays[0, 0, :, :, :3].unflatten(0, (3, SIZE[0]))
    expected = clip.camera.extrinsics[0, 0, :, :3, 3]
    torch.testing.assert_close(places, expected[:, None, None].expand_as(places))


def test_the_first_views_are_seen():
    clip = posed_clip()
    assert torch.equal(seen_views(clip, 2).video, clip.video[:, :, :2])
    model = told_model(2)
    assert is_posed(model) and chooser_of(model).num_seen == 2
    model.objectives.pop("views")
    with pytest.raises(ValueError, match="with the objective views, got"):
        chooser_of(model)


def test_the_nearest_view_is_turned_the_least_and_not_itself():
    camera = ring(1, 1, 6)
    nearest = nearest_views(camera, 3)[0, 0].tolist()
    assert nearest[0] == 1 and nearest[1] in (0, 2) and nearest[2] == 1
    assert nearest[3] == 2 and nearest[5] == 0
    assert nearest_views(camera, 1)[0, 0].tolist() == [0] * 6


def test_bad_clips_are_named_and_another_scale_is_noticed():
    clip, model = posed_clip(), told_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_posed(clip, model.decoder, num_seen=2)
    with pytest.raises(ValueError, match=r"expected posed views, .* without cameras"):
        check_posed(replace(clip, camera=None), model.decoder, num_seen=2)
    with pytest.raises(ValueError, match="at least num_seen=4 views, got 3"):
        check_posed(clip, model.decoder, num_seen=4)
    scaled = Camera(clip.camera.intrinsics, 2 * clip.camera.extrinsics)
    with pytest.raises(ValueError, match="orthonormal"):
        check_posed(replace(clip, camera=scaled), model.decoder, num_seen=2)
    model.decoder.bounds = (1.0, 6.0)
    with pytest.warns(UserWarning, match="do not hold the scene: measured .* from 8 to 8 units"):
        check_posed(clip, model.decoder, num_seen=2)
