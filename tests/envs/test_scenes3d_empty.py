import math

import numpy as np
import pytest
import torch

from ocrl.envs.scenes3d_empty import GROUND, SKY, WALL, emptiness, ground_light, pixel_size
from ocrl.envs.scenes3d_rooms import ROOMS, plain_colors, statue_rows
from ocrl.envs.scenes3d_stage import Rays, Stage, by_room, through
from ocrl.envs.scenes_geometry import BACKDROP_RADIUS
from ocrl.nn.rays import rays_through


def rays_from(origins, ways, view=None):
    origin, way = (torch.tensor(part, dtype=torch.float32).T for part in (origins, ways))
    view = torch.zeros(origin.shape[1], dtype=torch.long) if view is None else view
    return Rays(view, origin, way / way.norm(dim=0), torch.zeros_like(view))


def stage(names, field_of_view=90.0):
    count = len(names)
    focal = 0.5 * 32 / math.tan(math.radians(field_of_view) / 2)
    intrinsics = torch.tensor([[focal, 0.0, 16.0], [0.0, focal, 16.0], [0.0, 0.0, 1.0]])
    return Stage(
        rows=torch.zeros(count, 0, 23),
        kinds=frozenset(),
        lights=torch.zeros(count, 1, 5),
        rooms=[ROOMS[name] for name in names],
        intrinsics=intrinsics.expand(count, 3, 3),
        extrinsics=torch.eye(4).expand(count, 4, 4),
    )


@pytest.mark.parametrize("name", ROOMS)
def test_rays_end_at_the_ground_the_wall_or_the_sky(name):
    room = ROOMS[name]
    ways = [[0, 0, -1], [3, 0, -1], [1, 0, 0], [0, 1, 1e-3], [0.1, 0, 1]]
    length, kind = emptiness([room], rays_from([[0.0, 0.0, 1.0]] * 5, ways))
    expected = GROUND, GROUND, WALL if room.has_wall else SKY, WALL if room.has_wall else SKY, SKY
    assert kind.tolist() == list(expected)
    assert length[0] == pytest.approx(1.0) and length[1] == pytest.approx(math.sqrt(10.0))
    if room.has_wall:
        assert length[2] == pytest.approx(room.wall_radius, rel=1e-5)
    above = (
        torch.tensor([0.0, 0.0, 1.0])[:, None] + length * rays_from([[0, 0, 0]] * 5, ways).direction
    )
    assert above[:, 4].norm() == pytest.approx(BACKDROP_RADIUS, rel=1e-5)


def test_rays_of_several_rooms_end_in_their_own():
    rooms = [ROOMS["studio"], ROOMS["hall"], ROOMS["desert"]]
    view = torch.tensor([0, 1, 2, 1])
    rays = rays_from([[0.0, 0.0, 1.0]] * 4, [[1, 0, 0]] * 4, view)
    length, kind = emptiness(rooms, rays)
    assert kind.tolist() == [SKY, WALL, WALL, WALL]
    assert length[1] == length[3] == pytest.approx(14.0) and length[2] == pytest.approx(17.0)
    found = {id(room): index for room, index in by_room(rooms, view)}
    assert found[id(ROOMS["hall"])].tolist() == [1, 3]
    assert by_room([rooms[1]] * 3, view) == [(rooms[1], slice(None))]


def test_through_gives_the_rays_of_cameras():
    rng = np.random.default_rng(0)
    shown = stage(["studio", "hall"])
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, :3, :3], poses[1, :3, 3] = torch.tensor(turn), torch.tensor([1.0, 2.0, 3.0])
    shown = Stage(
        *(getattr(shown, n) for n in ("rows", "kinds", "lights", "rooms", "intrinsics")), poses
    )
    places = torch.rand(2, 2, 50) * 32
    view = torch.arange(2)[:, None].expand(2, 50)
    rays, ahead = through(places, view, shown)
    origins, ways = rays_through(
        places.permute(1, 2, 0), intrinsics=shown.intrinsics, extrinsics=shown.extrinsics
    )
    torch.testing.assert_close(rays.direction.permute(1, 2, 0), ways, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rays.origin.permute(1, 2, 0), origins)
    axis = shown.extrinsics[:, :3, 2]
    torch.testing.assert_close(ahead, (ways * axis[:, None]).sum(-1), atol=1e-5, rtol=1e-5)
    flat, _ = through(places.flatten(1), view.flatten(), shown)
    torch.testing.assert_close(flat.direction, rays.direction.flatten(1))


def test_a_pixel_is_as_large_on_the_ground_as_it_is_far_and_flat():
    shown = stage(["hall"])
    rays = rays_from([[0.0, 0.0, 2.0]] * 2, [[0, 0, -1], [1, 0, -1]])
    length, _ = emptiness(shown.rooms, rays)
    size = pixel_size(shown, rays, length)
    assert size[0] == pytest.approx(2.0 / 16.0)
    assert size[1] == pytest.approx(2.0 * math.sqrt(2.0) / 16.0 * math.sqrt(2.0))


def test_the_ground_goes_over_into_the_sky_only_without_a_wall():
    ways = [[1.0, 0, -1.0], [20.0, 0, -1.0], [40.0, 0, -1.0]]
    rays = rays_from([[0.0, 0.0, 1.0]] * 3, ways)
    for name in ("studio", "meadow"):
        shown = stage([name])
        length = rays.direction.new_tensor([math.hypot(way[0], 1.0) for way in ways])
        point = rays.origin + length * rays.direction
        color, haze = ground_light(shown, rays, length, point, is_plain=False)
        assert color.shape == (3, 3)
        if name == "meadow":
            assert haze is None
            continue
        assert haze[0][0] == 0.0 and 0.0 < haze[0][1] < 1.0 and haze[0][2] == 1.0
    plain, _ = ground_light(shown, rays, length, point, is_plain=True)
    expected = torch.tensor(plain_colors(ROOMS["meadow"])[0])
    torch.testing.assert_close(plain, expected[:, None].expand(3, 3))


@pytest.mark.parametrize("name", ROOMS)
def test_statues_stand_on_the_ground_between_the_arena_and_the_wall(name):
    room, arena = ROOMS[name], 5.0
    rows, owners = statue_rows(room, arena=arena)
    assert sorted(set(owners.tolist())) == list(range(len(room.statues)))
    away = np.linalg.norm(rows[:, 1:3], axis=1)
    if len(rows):
        assert (away - rows[:, 16]).min() > arena
        assert (away + rows[:, 16]).max() < room.wall_radius
    for statue in range(len(room.statues)):
        pile = rows[owners == statue]
        low, high = pile[:, 3] - pile[:, 17], pile[:, 3] + pile[:, 17]
        assert low[0] == pytest.approx(0.0)
        np.testing.assert_allclose(low[1:], high[:-1])
