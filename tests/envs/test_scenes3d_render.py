import numpy as np
import pytest
import torch

from ocrl.envs.scenes3d_geometry import padded_rows, solid_rows
from ocrl.envs.scenes3d_render import MAX_RAYS, RayCaster
from ocrl.envs.scenes3d_rooms import PALETTE, PATTERNS, ROOMS, ground_color, statue_rows
from ocrl.envs.scenes3d_stage import Stage
from ocrl.envs.scenes_camera import look_at, pinhole
from ocrl.envs.scenes_geometry import BACKDROP_RADIUS, SOLIDS, body_table
from ocrl.envs.scenes_render import COLORS, LIGHTS, draw, light_pattern, linear_colors
from ocrl.envs.scenes_sampler import place
from ocrl.nn.rays import camera_rays, distance_of, project

TARGET = np.array([0.0, 0.0, 0.4])


def tensor(array):
    return torch.tensor(np.asarray(array), dtype=torch.float32)


def bodies(rng, shapes, count=5, metal=0.5):
    sizes = rng.choice([0.35, 0.5, 0.7], count)
    colors = linear_colors(np.array(list(PALETTE.values())))[rng.integers(32, size=count)]
    places = place(rng, sizes, arena=3.1, gap=0.1)
    angles, is_metal = rng.uniform(0, 6, count), rng.random(count) < metal
    return body_table(rng.choice(shapes, count), sizes, places, angles, colors, is_metal)


def stage(rows, poses, size, room="studio", field_of_view=35.0, lights=LIGHTS):
    count = len(poses)
    return Stage(
        rows=tensor(rows).expand(count, -1, -1),
        kinds=frozenset(int(kind) for kind in rows[:, 0]),
        lights=tensor(lights).expand(count, -1, -1),
        rooms=[ROOMS[room]] * count,
        intrinsics=tensor(pinhole(size, field_of_view)).expand(count, 3, 3),
        extrinsics=tensor(np.stack(poses)),
    )


def around(count, elevation=30.0, distance=10.0):
    return [look_at(360.0 * i / count + 10.0, elevation, distance, TARGET) for i in range(count)]


@pytest.mark.parametrize("supersampling", [1, 2])
def test_the_studio_is_that_of_the_pixel_by_pixel_renderer(supersampling):
    rng, size = np.random.default_rng(supersampling), 48
    table, poses = bodies(rng, [0, 1, 2]), around(3)
    caster = RayCaster(size=size, supersampling=supersampling, device="cpu")
    picture = caster.draw(stage(solid_rows(table), poses, size))
    frame, depth = np.empty((size, size, 3), np.uint8), np.empty((size, size))
    ids = np.empty((size, size), np.uint16)
    pattern = light_pattern(supersampling)
    for view, pose in enumerate(poses):
        intrinsics = pinhole(size, 35.0)
        draw(frame, ids, depth, table, LIGHTS, intrinsics, pose, pattern, supersampling)
        assert (picture.ids[view].numpy() != ids).sum() <= 1
        same = picture.ids[view].numpy() == ids
        np.testing.assert_allclose(picture.depth[view].numpy()[same], depth[same], rtol=1e-4)
        off = np.abs(picture.frames[view].numpy().astype(int) - frame)
        assert off.mean() < 0.05 and (off > 3).mean() < 0.002


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_solids_shade_each_other_as_there(order):
    places = np.array([[0.0, 0.0], [0.6, 1.2]])[order]
    shapes, sizes = np.array([2, 0])[order], np.array([0.7, 0.5])[order]
    table = body_table(shapes, sizes, places, np.zeros(2), np.full((2, 3), 0.5), np.zeros(2, bool))
    pose, size = look_at(60.0, 40.0, 7.0, TARGET), 48
    caster = RayCaster(size=size, supersampling=2, device="cpu")
    picture = caster.draw(stage(solid_rows(table), [pose], size))
    frame, depth = np.empty((size, size, 3), np.uint8), np.empty((size, size))
    ids = np.empty((size, size), np.uint16)
    draw(frame, ids, depth, table, LIGHTS, pinhole(size, 35.0), pose, light_pattern(2), 2)
    off = np.abs(picture.frames[0].numpy().astype(int) - frame)
    assert off.mean() < 0.05 and (off > 3).mean() < 0.002
    alone = caster.draw(stage(solid_rows(table[order[1:]]), [pose], size))
    ball = (picture.ids[0] == order[1] + 1) & (alone.ids[0] > 0)
    darker = alone.frames[0][ball].float() - picture.frames[0][ball].float()
    assert ball.sum() > 50 and (darker > 20).float().mean() > 0.05


@pytest.mark.parametrize("room", ROOMS)
def test_depth_and_rays_lead_to_the_surfaces(room):
    rng, size = np.random.default_rng(7), 40
    table = bodies(rng, range(6), count=6)
    statues, owners = statue_rows(ROOMS[room], arena=4.0)
    assert len(owners) == len(statues) == sum(len(pile) for pile in ROOMS[room].statues)
    rows = np.concatenate([solid_rows(table), statues])
    shown = stage(rows, [*around(3, 25.0, 7.0), look_at(50.0, 4.0, 6.0, TARGET)], size, room, 60.0)
    picture = RayCaster(size=size, supersampling=1, device="cpu").draw(shown)
    cameras = shown.intrinsics, shown.extrinsics
    origins, directions = camera_rays(*cameras, size=(size, size))
    points = origins + distance_of(picture.depth, intrinsics=cameras[0])[..., None] * directions
    assert (picture.depth > 0).all() and points.norm(dim=-1).max() < BACKDROP_RADIUS * 1.001
    assert points[..., 2].min() > -1e-3
    for number in range(len(rows)):
        mine = points[picture.ids == number + 1]
        if len(mine):
            away = (mine - tensor(rows[number, 1:4])).norm(dim=-1)
            assert away.max() <= rows[number, 18] * 1.001
    assert len(picture.ids.unique()) > 6
    empty = points[picture.ids == 0]
    flat, wall = empty[:, :2].norm(dim=-1), ROOMS[room].wall_radius
    is_ground = empty[:, 2].abs() < 1e-2
    is_wall = (flat - wall).abs() < 1e-2 if ROOMS[room].has_wall else torch.zeros_like(is_ground)
    is_sky = (empty.norm(dim=-1) - BACKDROP_RADIUS).abs() < 0.1
    assert (is_ground | is_wall | is_sky).all() and is_ground.any()
    assert bool(is_wall.any()) == ROOMS[room].has_wall


def test_masks_alone_are_those_of_pictures():
    table = bodies(np.random.default_rng(1), range(6))
    shown = stage(solid_rows(table), around(4), 32)
    caster = RayCaster(size=32, supersampling=2, device="cpu")
    picture = caster.draw(shown)
    ids, depth = caster.cast(shown)
    assert torch.equal(ids, picture.ids) and torch.equal(depth, picture.depth)


def test_views_do_not_touch_each_other(monkeypatch):
    rng = np.random.default_rng(4)
    scenes = [bodies(rng, range(6), count=4) for _ in range(3)]
    caster = RayCaster(size=32, supersampling=2, device="cpu")
    alone = [
        stage(padded_rows(solid_rows(scene), 6), around(2)[:1], 32, room)
        for scene, room in zip(scenes, ("studio", "hall", "meadow"), strict=True)
    ]
    together = Stage(
        rows=torch.cat([part.rows for part in alone]),
        kinds=frozenset(range(6)),
        lights=torch.cat([part.lights for part in alone]),
        rooms=[room for part in alone for room in part.rooms],
        intrinsics=torch.cat([part.intrinsics for part in alone]),
        extrinsics=torch.cat([part.extrinsics for part in alone]),
    )
    expected = [caster.draw(part) for part in alone]
    for limit in (1 << 16, 32 * 32):
        monkeypatch.setitem(MAX_RAYS, "cpu", limit)
        found = caster.draw(together)
        for view, picture in enumerate(expected):
            assert torch.equal(found.ids[view], picture.ids[0])
            off = (found.frames[view].int() - picture.frames[0].int()).abs()
            assert off.float().mean() < 0.01
    assert len({picture.frames.float().mean().item() for picture in expected}) == 3


def test_a_shadow_falls_away_from_the_light():
    table = body_table(
        *(np.array(a) for a in ([0], [0.7], [(0.0, 0.0)], [0.0])),
        np.full((1, 3), 0.5),
        np.array([False]),
    )
    light = np.array([[-6.0, 0.0, 8.0, 0.3, 0.9]])
    shown = stage(solid_rows(table), [look_at(0.0, 80.0, 10.0, TARGET)], 64, lights=light)
    frame = RayCaster(size=64, supersampling=1, device="cpu").draw(shown).frames[0].float().mean(-1)

    def brightness(x):
        place, _ = project(
            torch.tensor([[[x, 0.0, 0.0]]]),
            intrinsics=shown.intrinsics,
            extrinsics=shown.extrinsics,
        )
        column, row = place[0, 0].long().tolist()
        return frame[row, column]

    assert brightness(1.2) < 0.7 * brightness(-1.2)


def test_metal_mirrors_what_stands_beside_it():
    def ball(colors, metal):
        table = body_table(
            np.array([0, 0]),
            np.array([0.7, 0.7]),
            np.array([[0.0, 0.0], [0.0, 1.6]]),
            np.zeros(2),
            linear_colors(np.array(colors)),
            np.array([metal, False]),
        )
        shown = stage(solid_rows(table), [look_at(0.0, 10.0, 8.0, TARGET)], 64)
        picture = RayCaster(size=64, supersampling=1, device="cpu").draw(shown)
        return picture.frames[0][picture.ids[0] == 1].float()

    for metal in (True, False):
        beside_red = ball([COLORS["gray"], COLORS["red"]], metal)
        beside_green = ball([COLORS["gray"], COLORS["green"]], metal)
        differs = (beside_red - beside_green).abs().amax()
        assert (differs > 20) if metal else (differs < 5)


def test_colours_and_rooms_are_what_they_are_named():
    assert len(PALETTE) == 32 and list(PALETTE)[:8] == list(COLORS)
    values = np.array(list(PALETTE.values()))
    apart = np.abs(values[:, None] - values[None]).sum(-1) + 1000 * np.eye(32, dtype=int)
    assert apart.min() > 25
    grid = torch.rand(3, 500, generator=torch.Generator().manual_seed(0)) * 20 - 10
    for room in ROOMS.values():
        assert room.ground_pattern in PATTERNS and room.wall_pattern in PATTERNS
        near = ground_color(room, grid, torch.zeros(500))
        assert near.min() >= 0 and near.max() <= 1
        assert (near.std(dim=1) > 0.003).all() == (room.ground_pattern != "plain")
        # What is finer than a pixel is shown by its mean.
        assert ground_color(room, grid, torch.full((500,), 10.0)).std(dim=1).max() < 1e-6
        assert {color for pile in room.statues for _, _, color in pile} <= set(PALETTE)
        assert {shape for pile in room.statues for shape, _, _ in pile} <= set(SOLIDS)


@pytest.mark.gpu
def test_a_gpu_draws_what_a_processor_does():
    rows = solid_rows(bodies(np.random.default_rng(3), range(6), count=6))
    shown = stage(rows, around(4), 64, "plaza")
    there = Stage(
        rows=shown.rows.cuda(),
        kinds=shown.kinds,
        lights=shown.lights.cuda(),
        rooms=shown.rooms,
        intrinsics=shown.intrinsics.cuda(),
        extrinsics=shown.extrinsics.cuda(),
    )
    here = RayCaster(size=64, supersampling=2, device="cpu").draw(shown)
    found = RayCaster(size=64, supersampling=2, device="cuda").draw(there)
    assert (found.ids.cpu() != here.ids).float().mean() < 1e-3
    assert (found.frames.cpu().int() - here.frames.int()).abs().float().mean() < 0.1
