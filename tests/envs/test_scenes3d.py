import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from ocrl.data.clips import ClipLoader
from ocrl.envs.collect import collect
from ocrl.envs.registry import make
from ocrl.envs.scenes3d_clips import scene_clips
from ocrl.envs.scenes3d_rooms import PALETTE
from ocrl.envs.scenes_camera import look_at
from ocrl.envs.scenes_geometry import SOLIDS
from ocrl.envs.scenes_render import MATERIALS
from ocrl.nn.rays import camera_rays, check_cameras, check_scale, distance_of, project

NAMES = ("scenes3d", "scenes3d_ego", "scenes3d_ring")
SMALL = {"size": 24, "supersampling": 1, "max_steps": 5}


def small(name="scenes3d", **arguments):
    return make(name, **(SMALL | {"min_visible": 0.0} | arguments))


def played(env, seed, num_steps=5):
    trace = [env.reset(seed=seed)[0]]
    for _ in range(num_steps):
        trace += [env.step(0)[0], env.segmentation("scene"), env.depth(), env.extrinsics()]
        objects = env.objects()
        trace += [objects[name] for name in objects.dtype.names]
    return trace


@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_accepts_it(name):
    check_env(small(name), skip_render_check=True)


def test_gymnasium_knows_the_names():
    env = gymnasium.make("ocrl/Scenes3dEgo-v0", **SMALL)
    assert env.reset(seed=0)[0].shape == (6, 24, 24, 3)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_gives_the_same_episode(name):
    env = small(name)
    first, again, other = played(env, 3), played(small(name), 3), played(env, 4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(first, played(env, 3), strict=True))
    assert not np.array_equal(first[0], other[0])


def test_an_episode_that_is_left_early_leaves_nothing_behind():
    env = small()
    env.reset(seed=1)
    env.step(0)
    assert np.array_equal(env.reset(seed=2)[0], small().reset(seed=2)[0])
    kept = env.step(0)[0]
    env.segmentation()[:] = 7
    env.depth()[:] = 7
    env.render()[:] = 7
    assert np.array_equal(kept, env._shot.frames)


@pytest.mark.parametrize("name", NAMES)
def test_what_views_see_of_a_point_is_the_same_thing(name):
    env = make(name, size=64, supersampling=1, max_steps=6, min_visible=0.0)
    num_common = num_open = 0
    for seed in range(2):
        env.reset(seed=seed)
        for _ in range(4):
            env.step(0)
        ids, depth = (torch.tensor(a.astype(np.float32)) for a in (env.segmentation(), env.depth()))
        cameras = [torch.tensor(a).float() for a in (env.intrinsics(), env.extrinsics())]
        origins, ways = camera_rays(*cameras, size=(64, 64))
        points = origins + distance_of(depth, intrinsics=cameras[0])[..., None] * ways
        for here in range(env.num_views):
            for there in range(env.num_views):
                if here == there:
                    continue
                places, depths = project(
                    points[here].flatten(0, 1),
                    intrinsics=cameras[0][there],
                    extrinsics=cameras[1][there],
                )
                column, row = places.floor().long().T
                inside = (depths > 0.1) & (column >= 1) & (column < 63) & (row >= 1) & (row < 63)
                label, depths = ids[here].flatten()[inside], depths[inside]
                row, column = row[inside], column[inside]
                # The point is seen there or something nearer is; pixels at edges look past it.
                near = [(row + dy, column + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
                same = torch.stack([ids[there][place] == label for place in near]).any(0)
                hidden = torch.stack([depth[there][p] < depths - 0.02 for p in near]).any(0)
                assert (same | hidden).all()
                is_open = (depth[there][row, column] - depths).abs() < 0.05
                agrees = (ids[there][row, column] == label)[is_open & (label > 0)]
                num_common, num_open = num_common + agrees.sum(), num_open + len(agrees)
    assert num_open > 200 and num_common > 0.97 * num_open


@pytest.mark.parametrize("name", NAMES)
def test_objects_and_masks_agree_and_ids_stay(name):
    env = small(name, size=40)
    env.reset(seed=1)
    looks = {}
    for _ in range(5):
        ids, table = env.segmentation(), env.objects()
        assert ids.dtype == np.uint16
        assert list(table["id"]) == sorted(set(np.unique(ids)) - {0})
        for row in table:
            look = tuple(row["attributes"][:5])
            assert looks.setdefault(row["id"], look) == look
            for number, names in enumerate((SOLIDS, tuple(PALETTE), MATERIALS)):
                assert 0 <= look[number] < len(names)
            for view in range(env.num_views):
                rows, columns = np.nonzero(ids[view] == row["id"])
                box = [-40.0] * 4
                if len(rows):
                    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert np.allclose(row["box"][view] * 40, box, atol=1e-4)
        env.step(0)
    assert len(looks) >= 2


def test_statues_are_background_or_things_with_ids_that_stay():
    env = small("scenes3d_ego", size=32, rooms=["plaza"], max_steps=3)
    found = set()
    for seed in range(3):
        env.reset(seed=seed)
        entities, scene = env.segmentation(), env.segmentation("scene")
        assert entities.max() <= env.max_objects
        is_statue = scene > env.max_objects
        assert (entities[is_statue] == 0).all()
        assert np.array_equal(entities[~is_statue], scene[~is_statue])
        found |= set(np.unique(scene[is_statue]).tolist())
        assert list(env.objects()["id"]) == sorted(set(np.unique(entities)) - {0})
    assert found == {env.max_objects + 1 + statue for statue in range(6)}


def test_a_ring_is_the_same_in_every_episode_and_a_hemisphere_is_not():
    ring, ball = small("scenes3d_ring"), small(num_views=5)
    poses = []
    for seed in range(20):
        ring.reset(seed=seed)
        ball.reset(seed=seed)
        poses.append((ring.extrinsics(), ball.extrinsics()))
    assert all(np.array_equal(poses[0][0], here) for here, _ in poses)
    place = ring.extrinsics()[:, :3, 3] - [0.0, 0.0, 0.4]
    assert np.allclose(np.linalg.norm(place, axis=1), 10.0)
    turns = np.degrees(np.arctan2(place[:, 1], place[:, 0])) % 360.0
    assert np.allclose(np.sort(turns), [0, 90, 180, 270])
    places = np.stack([there[:, :3, 3] for _, there in poses]).reshape(-1, 3) - [0.0, 0.0, 0.4]
    away = np.linalg.norm(places, axis=1)
    assert away.min() >= 9.0 and away.max() <= 11.0
    # Even over the sphere: half of the cameras are below the middle of the sines.
    rise, low, high = places[:, 2] / away, *np.sin(np.radians([15.0, 70.0]))
    assert rise.min() >= low - 1e-9 and rise.max() <= high + 1e-9
    assert 0.3 < (rise < (low + high) / 2).mean() < 0.7
    assert np.ptp(np.arctan2(places[:, 1], places[:, 0])) > 5.0


def test_cameras_look_at_the_scene_as_those_of_scenes_do():
    env = small()
    env.reset(seed=3)
    for pose in env.extrinsics():
        away = pose[:3, 3] - [0.0, 0.0, 0.4]
        distance = np.linalg.norm(away)
        turn = np.degrees(np.arctan2(away[1], away[0]))
        rise = np.degrees(np.arcsin(away[2] / distance))
        expected = look_at(turn, rise, distance, np.array([0.0, 0.0, 0.4]))
        np.testing.assert_allclose(pose, expected, atol=1e-9)


def test_an_ego_rig_rides_on_an_object_and_turns_with_it():
    env = small("scenes3d_ego", max_steps=30)
    env.reset(seed=0)
    before = env.extrinsics()
    for _ in range(30):
        env.step(0)
        now = env.extrinsics()
        assert np.ptp(now[:, :3, 3], axis=0).max() == 0.0 and now[0, 2, 3] == pytest.approx(1.2)
        assert np.linalg.norm(now[0, :2, 3] - before[0, :2, 3]) <= 0.2 + 1e-9
        assert np.linalg.norm(now[0, :2, 3]) <= 5.0 - 0.6 + 1e-9
        ahead = np.unwrap(np.arctan2(now[:, 1, 2], now[:, 0, 2]))
        assert np.allclose(np.diff(ahead), math.pi / 3)
        assert np.allclose(now[:, 2, 2], -math.sin(math.radians(8.0)))
        turned = (now[0, :3, 2] @ before[0, :3, 2]).clip(-1, 1)
        assert np.degrees(np.arccos(turned)) <= 20.0 + 1e-6
        before = now
    check_cameras(
        torch.tensor(env.intrinsics()), torch.tensor(env.extrinsics()), num_views=env.num_views
    )


def test_cameras_orbit_by_their_speed():
    env = small("scenes3d_ring", camera_speed=4.0)
    env.reset(seed=0)
    before = env.extrinsics()
    env.step(0)
    turned = np.arccos((before[0, :2, 0] @ env.extrinsics()[0, :2, 0]).clip(-1, 1))
    assert 2.0 <= np.degrees(turned) <= 6.0


def test_every_object_is_seen_at_first_and_none_overlaps():
    env = make("scenes3d", size=32, supersampling=1, num_objects=4, speed=0.4, max_steps=12)
    for seed in range(3):
        env.reset(seed=seed)
        for view in env.segmentation():
            assert (np.bincount(view.ravel(), minlength=5)[1:] >= 0.002 * 32 * 32).all()
        places = []
        for _ in range(12):
            table = env.objects()
            if len(table) == 4:
                flat, radii = table["attributes"][:, 5:7], table["attributes"][:, 4]
                away = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
                gaps = (away - radii[:, None] - radii)[~np.eye(4, dtype=bool)]
                assert gaps.min() > -1e-5
                assert (np.linalg.norm(flat, axis=1) + radii).max() < 3.1 + 1e-5
                places.append(flat.copy())
            env.step(0)
        assert np.abs(places[0] - places[-1]).max() > 0.5


def test_the_scale_of_a_scene_is_what_near_and_far_must_hold():
    env = small()
    env.reset(seed=0)
    cameras = [torch.tensor(a).float() for a in (env.intrinsics(), env.extrinsics())]
    check_scale(*cameras, near=4.0, far=20.0)
    with pytest.warns(UserWarning, match="measured cameras that look at a point from"):
        check_scale(*cameras, near=0.1, far=3.0)


def test_episodes_come_back_from_the_disk_with_everything(tmp_path):
    store = collect(
        "scenes3d_ego",
        SMALL,
        path=tmp_path / "e",
        num_steps=10,
        policy="scripted",
        num_workers=0,
        seed=5,
        episode_length=None,
        progress=False,
    )
    assert store.lengths.tolist() == [6, 6]
    loader = ClipLoader(
        store,
        clip_length=6,
        batch_size=2,
        seed=0,
        split="all",
        segmentation=["entities", "scene"],
        objects=True,
        depth=True,
    )
    clip = loader.batch(0)
    assert clip.video.shape == (2, 6, 6, 3, 24, 24) and clip.num_views == 6
    assert clip.boxes.shape == (2, 6, 6, 5, 4)
    assert clip.properties["attributes"].shape == (2, 6, 5, 9)
    env = make("scenes3d_ego", **SMALL)
    episodes, _ = loader.draw(0)
    for row, episode in enumerate(episodes):
        frame, _ = env.reset(seed=int(store.episode(int(episode))["env_seed"]))
        for t in range(6):
            assert np.array_equal(clip.video[row, t].movedim(1, -1).numpy(), frame)
            assert np.array_equal(clip.segmentation["entities"][row, t], env.segmentation())
            assert np.array_equal(clip.segmentation["scene"][row, t], env.segmentation("scene"))
            np.testing.assert_allclose(clip.depth[row, t], env.depth(), rtol=6e-4)
            np.testing.assert_allclose(clip.camera.intrinsics[row, t], env.intrinsics(), rtol=1e-6)
            np.testing.assert_allclose(clip.camera.extrinsics[row, t], env.extrinsics(), atol=1e-5)
            if t < 5:
                frame, *_ = env.step(0)


@pytest.mark.parametrize("name", ["scenes3d", "scenes3d_ego"])
def test_clips_are_what_episodes_show(name):
    arguments = {"min_visible": 0.002} if name == "scenes3d" else {}
    env, other = small(name, **arguments), small(name, **arguments)
    clip = scene_clips(env, [4, 9], num_frames=3)
    check_cameras(clip.camera.intrinsics, clip.camera.extrinsics, num_views=clip.num_views)
    for row, seed in enumerate((4, 9)):
        frame, _ = other.reset(seed=seed)
        for t in range(3):
            shown = clip.video[row, t].movedim(1, -1).numpy().astype(int)
            assert np.abs(shown - frame).mean() < 0.01
            ids = clip.segmentation["entities"][row, t].numpy()
            assert (ids != other.segmentation()).sum() <= 1
            assert np.median(np.abs(clip.depth[row, t].numpy() - other.depth())) < 1e-3
            np.testing.assert_allclose(
                clip.camera.extrinsics[row, t], other.extrinsics(), atol=1e-5
            )
            table = other.objects()
            mine = clip.properties["attributes"][row, t].numpy()[table["id"] - 1]
            np.testing.assert_allclose(mine, table["attributes"], rtol=1e-5)
            assert np.array_equal(
                clip.properties["category"][row, t].numpy()[table["id"] - 1], table["category"]
            )
            frame, *_ = other.step(0)
    assert clip.is_first.tolist() == [[True, False, False]] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shapes": ["cone", "tours"]}, "unknown shape 'tours'.*did you mean 'torus'"),
        ({"colors": ["tael"]}, "did you mean 'teal'"),
        ({"rooms": ["medow"]}, "unknown room 'medow'.*did you mean 'meadow'"),
        ({"rooms": []}, "at least one room of studio, meadow"),
        ({"rig": "hemispere"}, "unknown rig of cameras.*did you mean 'hemisphere'"),
        ({"heading": "centre"}, "unknown heading of objects.*did you mean 'center'"),
        ({"num_objects": [3, 2]}, "num_objects: expected one number"),
        ({"num_views": 0}, "expected num_views of at least 1, got 0"),
        ({"size": 0}, "expected size of at least 1"),
        ({"field_of_view": 150.0}, "field_of_view between 0 and 120, got 150"),
        ({"rooms": ["hall"], "arena": 12.0}, "arena of at most 9 within the walls.*got 12"),
        ({"rooms": ["hall"], "camera_distance": [9.0, 20.0]}, r"camera_distance.*\[4.1, 13.5\]"),
        ({"camera_distance": [2.0, 9.0]}, "camera_distance: expected"),
        ({"rig": "ego", "camera_speed": 2.0}, "expected camera_speed=0 with rig 'ego'"),
        ({"rig": "ego", "ego_height": 0.0}, "expected ego_radius and ego_height above 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "expected device to be cpu or cuda, got 'gpu'"),
        ("mps", "expected device to be cpu or cuda, got 'mps'"),
        ("cuda", "expected one of the 0 CUDA devices here, got 'cuda'; use device=cpu"),
    ],
)
def test_devices_that_are_not_there_are_refused(device, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        small(device=device)


def test_scenes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="300 tries where the objects find room: take fewer"):
        small(num_objects=30).reset(seed=0)
    with pytest.raises(ValueError, match=r"the objects have min_visible=0\.3 of the pixels"):
        small(num_objects=4, min_visible=0.3, size=8, num_views=1).reset(seed=0)
    env = small()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected an action in Discrete"):
        env.step(1)
    with pytest.raises(ValueError, match="did you mean 'entities'"):
        env.segmentation("entity")
