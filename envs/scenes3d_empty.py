"""What rays meet where there is no solid: the ground, the wall and the sky of a room.

S the axes of rays, (N,R) or (P,), see `ocrl.envs.scenes3d_geometry`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ocrl.envs.scenes3d_geometry import MISSED, dot, length_of, per_view
from ocrl.envs.scenes3d_rooms import Room, ground_color, sky_color
from ocrl.envs.scenes3d_stage import Rays, Stage, by_room
from ocrl.envs.scenes_geometry import BACKDROP_RADIUS
from ocrl.envs.scenes_render import HAZE_FROM, HAZE_UNTIL

SOLID, GROUND, WALL, SKY = range(4)
"""What a ray meets."""


def emptiness(rooms: Sequence[Room], rays: Rays) -> tuple[Tensor, Tensor]:
    """How far rays S go where there is no solid, and whether to ground, wall or sky."""
    x, y, z = rays.origin
    dx, dy, dz = rays.direction
    along = dot(rays.origin, rays.direction)
    outside = dot(rays.origin, rays.origin) - BACKDROP_RADIUS**2
    length = -along + (along * along - outside).clamp_min(0.0).sqrt()
    to_ground = torch.where(dz < 0.0, -z / dz, MISSED)
    is_ground = to_ground < length
    length = torch.where(is_ground, to_ground, length)
    kind = torch.where(is_ground, GROUND, SKY)
    if not any(room.has_wall for room in rooms):
        return length, kind
    walls = [(room.wall_radius, room.wall_height) for room in rooms]
    radius, height = per_view(length.new_tensor(walls).T, rays.view)
    square, half = (dx * dx + dy * dy).clamp_min(1e-12), x * dx + y * dy
    root = half * half - square * (x * x + y * y - radius * radius)
    to_wall = (-half + root.clamp_min(0.0).sqrt()) / square
    is_wall = (to_wall < length) & (z + to_wall * dz < height)
    return torch.where(is_wall, to_wall, length), torch.where(is_wall, WALL, kind)


def pixel_size(stage: Stage, rays: Rays, length: Tensor) -> Tensor:
    """A pixel's size S on the ground, along the ray."""
    focal = per_view(stage.intrinsics[None, :, 0, 0], rays.view)[0]
    return length / (focal * (-rays.direction[2]).clamp_min(1e-3))


def ground_light(
    stage: Stage, rays: Rays, length: Tensor, point: Tensor, *, is_plain: bool
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Colour (3,S) of the ground; where it goes over into the sky, how far, and that colour."""
    shape, view = point.shape, rays.view.reshape(-1)
    blur = pixel_size(stage, rays, length).flatten()
    point, falling = point.flatten(1), -rays.direction[2].flatten()
    color, far = torch.empty_like(point), torch.zeros_like(point)
    amount = torch.zeros_like(blur)
    has_haze = not all(room.has_wall for room in stage.rooms)
    for room, index in by_room(stage.rooms, view):
        place = point[:, index]
        hidden = MISSED if is_plain and room.has_wall else 0.0
        color[:, index] = ground_color(room, place, blur[index] + hidden)
        if not room.has_wall:
            away = place[:2].square().sum(0).sqrt()
            share = ((away - HAZE_FROM) / (HAZE_UNTIL - HAZE_FROM)).clamp(0.0, 1.0)
            amount[index] = share * share * (3.0 - 2.0 * share)
            far[:, index] = sky_color(room, -falling[index])
    return color.view(shape), (amount.view(shape[1:]), far.view(shape)) if has_haze else None


def sky_light(stage: Stage, rays: Rays, *, has_glow: bool) -> Tensor:
    """Light (3,P) of the sky, in mirrors with that of the lights themselves."""
    light = torch.empty_like(rays.direction)
    for room, index in by_room(stage.rooms, rays.view):
        light[:, index] = sky_color(room, rays.direction[2, index])
    if not has_glow:
        return light
    lights = per_view(stage.lights.permute(2, 1, 0), rays.view)
    to_light = lights[:3] - rays.origin[:, None]
    away = length_of(to_light)
    off = 1.0 - dot(to_light, rays.direction[:, None]) / away
    wide = 0.5 * (lights[3] / away) ** 2
    glow = ((2.0 * wide - off) / (1.6 * wide)).clamp(0.0, 1.0)
    return light + (3.2 * lights[4] * glow * glow * (3.0 - 2.0 * glow)).sum(0)
