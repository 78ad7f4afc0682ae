"""What needs MuJoCo is skipped without it, and what needs its renderer without a GL library."""

import ctypes.util
import importlib.util
import sys

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from ocrl.data.clips import ClipLoader
from ocrl.envs.collect import collect
from ocrl.envs.mujoco_model import gl_library
from ocrl.envs.registry import make
from ocrl.envs.scenes3d_rooms import PALETTE
from ocrl.nn.rays import camera_rays, check_cameras, distance_of, project

needs_mujoco = pytest.mark.skipif(
    importlib.util.find_spec("mujoco") is None, reason="MuJoCo is not installed"
)
needs_gl = pytest.mark.skipif(gl_library() is None, reason="there is no OpenGL library")
NAMES = ("tabletop-reach", "tabletop-push")
RENDERERS = (pytest.param("mujoco", marks=needs_gl), "rays")
ONE = [[-90.0, 40.0, 7.5]]


def small(name="tabletop-reach", **arguments):
    return make(name, **({"size": 32, "renderer": "rays", "supersampling": 1} | arguments))


def centers(env):
    """Places by id, where all are seen."""
    return {int(row["id"]): row["attributes"][3:6].astype(float) for row in env.objects()}


@needs_mujoco
@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("action_kind", ["discrete", "continuous"])
@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_accepts_it(name, action_kind, renderer):
    env = small(name, action_kind=action_kind, renderer=renderer)
    check_env(env, skip_render_check=True)
    env.close()


@needs_mujoco
@pytest.mark.parametrize("renderer", RENDERERS)
def test_same_seed_gives_the_same_episode(renderer):
    def played(seed):
        env = small(renderer=renderer, hand_speed=0.5)
        env.action_space.seed(0)
        trace = [env.reset(seed=seed)[0]]
        for _ in range(4):
            frame, reward, *_ = env.step(env.action_space.sample())
            trace += [frame, reward, env.segmentation(), env.depth()]
        return trace

    first, again, other = played(1), played(1), played(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


@needs_mujoco
@needs_gl
@pytest.mark.parametrize("name", NAMES)
def test_both_renderers_see_the_same_masks_and_depth(name):
    envs = [small(name, size=96, renderer=renderer) for renderer in ("mujoco", "rays")]
    for seed in range(2):
        for env in envs:
            env.reset(seed=seed)
            rng = np.random.default_rng(0)
            for _ in range(4):
                env.step(env.scripted_action(rng))
        ids, depth = ([getattr(env, what)() for env in envs] for what in ("segmentation", "depth"))
        assert (ids[0] != ids[1]).mean() < 0.002
        same = ids[0] == ids[1]
        assert np.median(np.abs(depth[0] - depth[1])[same]) < 1e-3
        assert np.quantile(np.abs(depth[0] - depth[1])[same & (depth[1] < 20)], 0.99) < 0.02
        assert len(np.unique(ids[0])) == len(envs[0]._bodies) + 1


@needs_mujoco
def test_views_agree_on_what_they_see():
    env = small(size=64)
    env.reset(seed=3)
    ids = torch.tensor(env.segmentation().astype(np.int64))
    cameras = [torch.tensor(a).float() for a in (env.intrinsics(), env.extrinsics())]
    check_cameras(*cameras, num_views=2)
    depth = torch.tensor(env.depth())
    origins, ways = camera_rays(*cameras, size=(64, 64))
    points = origins + distance_of(depth, intrinsics=cameras[0])[..., None] * ways
    mine = points[0][ids[0] > 0]
    places, depths = project(mine, intrinsics=cameras[0][1], extrinsics=cameras[1][1])
    column, row = places.floor().long().T
    seen = depth[1][row, column]
    is_open = (seen - depths).abs() < 0.03
    agrees = ids[1][row, column][is_open] == ids[0][ids[0] > 0][is_open]
    assert is_open.sum() > 30 and agrees.float().mean() > 0.97


@needs_mujoco
@pytest.mark.parametrize("name", NAMES)
def test_objects_are_distinct_and_one_is_the_target(name):
    env = small(name, size=48)
    targets = set()
    for seed in range(8):
        env.reset(seed=seed)
        table = env.objects()
        assert list(table["id"]) == sorted(set(np.unique(env.segmentation())) - {0})
        colors = table["attributes"][:, 1].astype(int)
        assert len(set(colors)) == len(colors) and len(table) <= env.max_objects
        is_target = table["attributes"][:, 6] == 1
        assert [list(PALETTE)[c] for c in colors[is_target]] == ["red"] * is_target.sum()
        targets.add(env.target)
        assert env.categories[table["category"][0]] == "agent"
        assert (table["category"] == 2).any() == (name == "tabletop-push")
        heights = table["attributes"][table["category"] == 1][:, 5]
        assert (heights > 0.2).all()
    assert len(targets) > 1


@needs_mujoco
@pytest.mark.parametrize(("action", "way"), [(1, [-1, 0]), (2, [1, 0]), (3, [0, 1]), (4, [0, -1])])
def test_actions_move_the_hand_as_the_first_camera_sees_it(action, way):
    env = small(action_kind="discrete", shapes=["cube"], object_sizes=[0.3], colors=[])
    env.reset(seed=1)
    env._put(np.array([[0.0, 0.0], [1.5, 1.5]]), np.zeros(1))
    env.step(action)
    moved = env._centers()[0, :2]
    pose = env.extrinsics()[0]
    ahead = pose[:2, 2] / np.linalg.norm(pose[:2, 2])
    seen = np.array([moved @ pose[:2, 0], moved @ ahead])
    assert np.allclose(seen / np.linalg.norm(seen), way, atol=1e-3)
    assert 0.05 < np.linalg.norm(seen) <= 2.0 * 8 * 0.01 + 1e-3
    other = small(shapes=["cube"], object_sizes=[0.3], colors=[])
    other.reset(seed=1)
    other._put(np.array([[0.0, 0.0], [1.5, 1.5]]), np.zeros(1))
    other.step(np.array(way, np.float32))
    assert np.allclose(other._centers(), env._centers())


def beside(task, target_first):
    """A hand that touches the target, or the other one, if it goes right."""
    env = small(f"tabletop-{task}", shapes=["cube", "cube"], object_sizes=[0.4, 0.4], arena=2.2)
    env.reset(seed=0)
    env.target = 0 if target_first else 1
    goal = [[1.6, 0.0]] if task == "push" else []
    env._put(np.array([[0.0, 0.0], [0.65, 0.0], [-1.5, 0.0], *goal]), np.zeros(2))
    env._start_distance = env._last_distance = env._distance()
    return env


RIGHT = np.array([1.0, 0.0], np.float32)


@needs_mujoco
def test_reach_ends_at_the_first_touch_and_rewards_the_right_one():
    for is_right in (True, False):
        env = beside("reach", is_right)
        total, over = 0.0, False
        for _ in range(8):
            _, reward, over, late, info = env.step(RIGHT)
            total += reward
            if over:
                break
        assert over and not late and info["is_success"] is is_right
        # Progress sums to what is left of the way; success adds 1.
        progress = 1 - env._distance() / env._start_distance
        assert total == pytest.approx(progress + is_right, abs=1e-6)


@needs_mujoco
def test_push_is_done_when_the_target_is_home_and_ends_at_a_wrong_touch():
    env = beside("push", True)
    for _ in range(40):
        _, reward, over, _, info = env.step(RIGHT)
        assert over == info["is_success"]
        if over:
            break
    assert over and reward > 1.0 and env._distance() <= 0.5
    wrong = beside("push", False)
    ends = [wrong.step(RIGHT)[2:] for _ in range(8)]
    assert any(over and not info["is_success"] for over, _, info in ends)


@needs_mujoco
def test_what_is_pushed_moves_and_nothing_leaves_the_table():
    env = small("tabletop-push", shapes=["cylinder"], object_sizes=[0.4], colors=[])
    env.reset(seed=0)
    env._put(np.array([[0.0, 0.0], [0.8, 0.0], [-1.5, 0.0]]), np.zeros(1))
    before = env._centers()[1]
    for _ in range(60):
        env.step(RIGHT)
    places = env._centers()
    assert places[1, 0] > before[0] + 0.5
    assert np.linalg.norm(places[:, :2], axis=1).max() < 2.4 and abs(places[1, 2] - 0.4) < 0.2


@needs_mujoco
@pytest.mark.parametrize("name", NAMES)
def test_its_player_does_better_than_chance(name):
    wins = {"scripted": 0, "random": 0}
    for kind in wins:
        rng = np.random.default_rng(0)
        renderer = "mujoco" if gl_library() else "rays"
        env = small(name, size=8, cameras=ONE, renderer=renderer)
        env.action_space.seed(0)
        for seed in range(8):
            env.reset(seed=seed)
            over = late = False
            while not (over or late):
                scripted = kind == "scripted"
                action = env.scripted_action(rng) if scripted else env.action_space.sample()
                _, _, over, late, info = env.step(action)
            wins[kind] += info["is_success"]
    assert wins["scripted"] >= wins["random"] + 3


@needs_mujoco
def test_episodes_end_by_time_and_one_camera_has_no_axis():
    env = small(cameras=ONE, max_steps=2)
    assert env.reset(seed=0)[0].shape == (32, 32, 3)
    still = np.zeros(2, np.float32)
    assert [env.step(still)[2:4] for _ in range(2)] == [(False, False), (False, True)]
    assert env.segmentation().shape == env.depth().shape == (32, 32)
    assert env.objects()["box"].shape[1:] == (4,)
    assert env.extras()["extrinsics"].shape == (1, 4, 4)


@needs_mujoco
def test_episodes_come_back_from_the_disk(tmp_path):
    arguments = {"size": 24, "renderer": "rays", "supersampling": 1, "depth": True}
    store = collect(
        "tabletop-push",
        arguments | {"max_steps": 5},
        path=tmp_path / "e",
        num_steps=8,
        policy="scripted",
        num_workers=0,
        seed=0,
        episode_length=None,
        progress=False,
    )
    loader = ClipLoader(
        store,
        clip_length=3,
        batch_size=2,
        seed=0,
        split="all",
        segmentation=["entities"],
        objects=True,
        depth=True,
    )
    clip = loader.batch(0)
    assert clip.video.shape == (2, 3, 2, 3, 24, 24) and clip.action.shape == (2, 3, 2)
    assert clip.depth.shape == (2, 3, 2, 24, 24) and clip.camera.extrinsics.shape[2] == 2


def test_without_mujoco_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ImportError, match=r'not installed: pip install "ocrl\[mujoco\]"'):
        small()


@needs_mujoco
def test_without_a_gl_library_one_sentence_says_what_to_install_and_rays_still_work(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(OSError, match=r"apt install libegl1 .*or take renderer=rays"):
        small(renderer="mujoco")
    assert small(renderer="rays").reset(seed=0)[0].shape == (2, 32, 32, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "pull"}, "unknown task of the table top 'pull'"),
        ({"renderer": "ray"}, "did you mean 'rays'"),
        ({"action_kind": "discreet"}, "did you mean 'discrete'"),
        ({"shapes": ["cone"], "object_sizes": [0.3]}, "unknown shape 'cone'"),
        ({"target": "rad"}, "did you mean 'red'"),
        ({"object_sizes": [0.3]}, "object_sizes for each of the 4 shapes, got 1"),
        ({"colors": ["green", "red"]}, "expected 3 colors or more beside the target's"),
        ({"target": "white"}, "none of them the hand's white"),
        ({"cameras": []}, r"cameras as \[azimuth, elevation, distance\]"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


@needs_mujoco
def test_no_room_and_wrong_actions_are_refused():
    with pytest.raises(ValueError, match=r"200 tries for 5 bodies in arena 0\.6"):
        small(arena=0.6).reset(seed=0)
    env = small()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected an action in Box"):
        env.step(np.array([3.0, 0.0], np.float32))
    with pytest.raises(ValueError, match="did you mean 'entities'"):
        env.segmentation("entity")
