"""Scenes from the environment to the disk and back into clips."""

import numpy as np
import pytest
import torch

from ocrl.data.archive import pack
from ocrl.data.clips import ClipLoader, evaluation_clips
from ocrl.data.store import EpisodeStore
from ocrl.envs.collect import collect
from ocrl.envs.registry import make

VIEWS = {"scenes": (), "scenes_multiview": (3,)}
SMALL = {"size": 24, "supersampling": 1, "max_steps": 4, "camera_speed": 3.0, "depth": True}


def gather(path, name, **changes):
    arguments = {
        "env_kwargs": SMALL,
        "num_steps": 12,
        "policy": "scripted",
        "num_workers": 0,
        "seed": 5,
        "episode_length": None,
        "progress": False,
    }
    return collect(name, path=path, **(arguments | changes))


@pytest.mark.parametrize("name", VIEWS)
def test_episodes_hold_what_the_environment_showed(tmp_path, name):
    store, env = gather(tmp_path / "e", name), make(name, **SMALL)
    assert store.lengths.tolist() == [5, 5, 5]
    for index in range(3):
        episode = store.episode(index)
        frame, _ = env.reset(seed=int(episode["env_seed"]))
        for t in range(5):
            np.testing.assert_array_equal(episode["frames"][t], frame)
            np.testing.assert_array_equal(episode["segmentation/entities"][t], env.segmentation())
            np.testing.assert_allclose(episode["depth"][t], env.depth(), rtol=6e-4)
            np.testing.assert_allclose(episode["intrinsics"][t], env.intrinsics(), rtol=1e-6)
            np.testing.assert_allclose(episode["extrinsics"][t], env.extrinsics(), atol=1e-5)
            table = env.objects()
            boxes = episode["objects/box"][t]
            assert boxes.shape == (*VIEWS[name], env.max_objects, 4)
            by_object = np.moveaxis(boxes, -2, 0)[: len(table)]
            np.testing.assert_array_equal(by_object, table["box"])
            frame, *_ = env.step(0)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("name", VIEWS)
def test_clips_hold_views_cameras_and_depth(tmp_path, name, is_packed):
    store = gather(tmp_path / "e", name)
    if is_packed:
        pack(store, tmp_path / "e.ocrl")
        store = EpisodeStore(tmp_path / "e.ocrl")
    loader = ClipLoader(
        store,
        clip_length=3,
        batch_size=4,
        seed=0,
        split="all",
        segmentation=["entities"],
        objects=True,
        depth=True,
    )
    views = VIEWS[name]
    clip = loader.batch(0)
    most = store.arrays["objects/id"].shape[0]
    assert clip.video.shape == (4, 3, *views, 3, 24, 24)
    assert clip.num_views == (views[0] if views else 1)
    assert clip.segmentation["entities"].shape == (4, 3, *views, 24, 24)
    assert clip.depth.shape == (4, 3, *views, 24, 24) and clip.depth.dtype == torch.float32
    assert clip.boxes.shape == (4, 3, *views, most, 4)
    assert clip.properties["position"].shape == (4, 3, *views, most, 2)
    assert clip.properties["attributes"].shape == (4, 3, most, 9)
    assert clip.camera.intrinsics.shape == (4, 3, *(views or (1,)), 3, 3)
    assert clip.camera.extrinsics.shape == (4, 3, *(views or (1,)), 4, 4)
    later = clip[1:].to("cpu")
    assert later.depth.shape[1] == later.camera.extrinsics.shape[1] == 2
    check_boxes(clip)
    check_depth(clip)


def check_boxes(clip):
    """Each box is tight around its object's pixels in its view; others are -1."""
    ids = clip.segmentation["entities"].reshape(-1, clip.num_views, 24, 24)
    boxes = clip.boxes.reshape(-1, clip.num_views, *clip.boxes.shape[-2:])
    names = clip.properties["id"].flatten(0, 1)
    for frame in range(len(ids)):
        for view in range(clip.num_views):
            for row, label in enumerate(names[frame].tolist()):
                seen = (ids[frame, view] == label).nonzero()
                if label == 0 or not len(seen):
                    assert (boxes[frame, view, row] == -1).all()
                else:
                    (top, left), (bottom, right) = seen.amin(0), seen.amax(0)
                    expected = torch.stack([left, top, right + 1, bottom + 1]) / 24
                    assert torch.allclose(boxes[frame, view, row], expected)


def check_depth(clip):
    """The points behind an object's pixels are near where the table says that it stands."""
    intrinsics, extrinsics = clip.camera.intrinsics[0, 1], clip.camera.extrinsics[0, 1]
    depth = clip.depth[0, 1].reshape(-1, 24, 24)
    ids = clip.segmentation["entities"][0, 1].reshape(-1, 24, 24)
    attributes = clip.properties["attributes"][0, 1]
    num_points = 0
    for view in range(clip.num_views):
        row, column = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
        pixels = torch.stack([column + 0.5, row + 0.5, torch.ones(24, 24)], -1)
        rays = pixels @ torch.linalg.inv(intrinsics[view]).T
        local = rays * depth[view, :, :, None]
        points = local @ extrinsics[view, :3, :3].T + extrinsics[view, :3, 3]
        for place, label in enumerate(clip.properties["id"][0, 1].tolist()):
            if label:
                mine = points[ids[view] == label] - attributes[place, 5:8]
                assert (mine.norm(dim=-1) < 1.5 * attributes[place, 4] + 0.02).all()
                num_points += len(mine)
    assert num_points > 10


def test_depth_is_read_only_where_it_is_asked_for(tmp_path):
    store = gather(tmp_path / "e", "scenes", env_kwargs=SMALL | {"depth": False})
    assert "depth" not in store.arrays
    clip = next(evaluation_clips(store, clip_length=2, num_clips=1, objects=True))
    assert clip.depth is None and clip.camera is not None
    with pytest.raises(ValueError, match=r"expected depth in .*collect episodes with it"):
        next(evaluation_clips(store, clip_length=2, num_clips=1, depth=True))


def test_workers_collect_the_same_views(tmp_path):
    here = gather(tmp_path / "a", "scenes_multiview")
    there = gather(tmp_path / "b", "scenes_multiview", num_workers=2)
    words = [sorted(store.checksums(i) for i in range(len(store))) for store in (here, there)]
    assert words[0] == words[1]
