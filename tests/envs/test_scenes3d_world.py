import itertools
import math

import numpy as np
import pytest
import torch

from ocrl.envs.scenes3d_rooms import PALETTE
from ocrl.envs.scenes3d_world import Rig, World, stage_of
from ocrl.envs.scenes_geometry import SOLIDS
from ocrl.envs.scenes_sampler import LookSampler


def rig(kind="ring", num_views=4, **changes):
    settings = {
        "distance": (6.0, 8.0),
        "elevation": (0.2, 0.8),
        "azimuth": (0.0, 2 * math.pi),
        "speed": 0.0,
        "ego_radius": 0.5,
        "ego_speed": 0.3,
        "ego_height": 1.0,
        "ego_pitch": 0.1,
    }
    return Rig(kind=kind, num_views=num_views, **(settings | changes))


def world(cameras, *, num_objects=4, heading="random", speed=0.2, rooms=("studio",), arena=4.0):
    sampler = LookSampler(
        shapes=SOLIDS,
        colors=list(PALETTE),
        materials=["rubber", "metal"],
        sizes={"large": 0.6, "small": 0.3},
        known_shapes=SOLIDS,
        known_colors=tuple(PALETTE),
        held_out=[],
        split="all",
    )
    return World(
        sampler=sampler,
        num_objects=(num_objects, num_objects),
        rooms=list(rooms),
        rig=cameras,
        heading=heading,
        speed=speed,
        spin=0.1,
        arena=arena,
        gap=0.1,
        light_jitter=0.5,
    )


def played(cameras, seed, num_steps, **changes):
    rng, made = np.random.default_rng(seed), world(cameras, **changes)
    made.populate(rng)
    assert made.arrange(rng)
    moments = [made.moment()]
    for _ in range(num_steps):
        made.advance()
        moments.append(made.moment())
    return moments


def test_moments_share_what_does_not_change_and_nothing_else():
    moments = played(rig("ego"), 0, 5, rooms=("hall",))
    assert all(moment.setting is moments[0].setting for moment in moments)
    places = np.stack([moment.centers for moment in moments])
    assert (np.abs(np.diff(places[..., :2], axis=0)).max((1, 2)) > 0.01).all()
    assert np.ptp(places[..., 2], axis=0).max() == 0.0
    statues = len(moments[0].setting.statues)
    fixed = np.stack([moment.rows[-statues:] for moment in moments])
    assert statues > 5 and np.ptp(fixed, axis=0).max() == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_nothing_overlaps_or_leaves_and_the_ego_object_collides_too(seed):
    moments = played(rig("ego"), seed, 40, arena=3.0, num_objects=4, speed=0.3)
    radii = np.array([*moments[0].setting.radii, 0.5])
    headings = []
    for moment in moments:
        places = np.vstack([moment.centers[:, :2], moment.extrinsics[0, :2, 3]])
        away = np.linalg.norm(places[:, None] - places[None], axis=-1)
        gaps = (away - radii[:, None] - radii)[~np.eye(len(radii), dtype=bool)]
        assert gaps.min() > -1e-6
        assert (np.linalg.norm(places, axis=1) + radii).max() < 3.0 + 1e-6
        headings.append(math.atan2(*moment.extrinsics[0, 1::-1, 2]))
    assert np.ptp(np.unwrap(headings)) > 0.3
    paces = [
        np.linalg.norm(b.extrinsics[0, :3, 3] - a.extrinsics[0, :3, 3])
        for a, b in itertools.pairwise(moments)
    ]
    # It keeps its pace, but for steps in which it is pushed.
    assert np.median(paces) == pytest.approx(0.3, abs=1e-6)


def test_objects_head_for_the_middle_or_anywhere():
    towards = {}
    for heading in ("center", "random"):
        found = []
        for seed in range(30):
            first, second = played(rig(), seed, 1, heading=heading, speed=0.05, num_objects=2)
            way = (second.centers - first.centers)[:, :2]
            found += list((way * -first.centers[:, :2]).sum(1) > 0)
        towards[heading] = np.mean(found)
    assert towards["center"] > 0.85 and 0.3 < towards["random"] < 0.7


def test_rigs_stand_where_they_are_told():
    rng = np.random.default_rng(0)
    ring = rig("ring").poses(rng)
    np.testing.assert_allclose(ring[:, 1:], [[0.5, 7.0]] * 4)
    np.testing.assert_allclose(np.diff(ring[:, 0]), math.pi / 2)
    ball = np.concatenate([rig("hemisphere").poses(rng) for _ in range(200)])
    assert ball[:, 2].min() >= 6.0 and ball[:, 2].max() <= 8.0
    sines = np.sin(ball[:, 1])
    assert np.abs(sines.mean() - (math.sin(0.2) + math.sin(0.8)) / 2) < 0.03
    matrices = rig("ego", num_views=6).extrinsics(rig("ego", num_views=6).poses(rng), (1, 2, 0.3))
    np.testing.assert_allclose(matrices[:, :3, 3], [[1.0, 2.0, 1.0]] * 6)
    assert np.allclose(matrices[0, :3, 2][:2] / math.cos(0.1), [math.cos(0.3), math.sin(0.3)])
    for matrix in (*matrices, *rig().extrinsics(ring, (0, 0, 0))):
        np.testing.assert_allclose(matrix[:3, :3].T @ matrix[:3, :3], np.eye(3), atol=1e-12)
        assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1.0)
        # Upright: x is level and y points down.
        assert matrix[2, 0] == pytest.approx(0.0) and matrix[2, 1] < 0.0


def test_stages_of_moments_of_other_sizes_are_filled_up():
    moments = [
        played(rig(), 0, 0, num_objects=2)[0],
        played(rig(), 1, 0, num_objects=5, rooms=("plaza",))[0],
    ]
    intrinsics = np.diag([30.0, 30.0, 1.0])
    stage = stage_of(moments, intrinsics=intrinsics, device=torch.device("cpu"))
    count = len(moments[1].rows)
    assert stage.rows.shape == (8, count, 23) and stage.extrinsics.shape == (8, 4, 4)
    assert [room is stage.rooms[0] for room in stage.rooms] == [True] * 4 + [False] * 4
    expected = torch.tensor(moments[0].rows, dtype=torch.float32)
    assert torch.equal(stage.rows[3, :2], expected) and torch.equal(stage.rows[0], stage.rows[3])
    assert (stage.rows[0, 2:, 3] < -1000).all()
    assert stage.kinds == {int(k) for moment in moments for k in moment.rows[:, 0]}
    torch.testing.assert_close(
        stage.extrinsics[4:], torch.tensor(moments[1].extrinsics, dtype=torch.float32)
    )
