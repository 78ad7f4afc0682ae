"""What many cameras look at, along which rays, and what they see.

N views, M solids, L lights, H W image; S the axes of rays, (N,R) or (P,), see
`ocrl.envs.scenes3d_geometry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ocrl.envs.scenes3d_geometry import dot, per_view, take
from ocrl.envs.scenes3d_rooms import Room


@dataclass(frozen=True)
class Stage:
    """What N cameras see.

    Attributes:
        rows: (N,M,NUM_COLUMNS) of `solid_rows`; row m has id m + 1.
        kinds: numbers of the shapes that there are.
        lights: (N,L,5), see `scenes_render.LIGHTS`.
        rooms: the room of each view.
        intrinsics: (N,3,3), see `ocrl.types.Camera`.
        extrinsics: (N,4,4), likewise.
    """

    rows: Tensor
    kinds: frozenset[int]
    lights: Tensor
    rooms: Sequence[Room]
    intrinsics: Tensor
    extrinsics: Tensor

    def __getitem__(self, views: slice) -> Stage:
        """Some of the views."""
        return Stage(
            self.rows[views],
            self.kinds,
            self.lights[views],
            self.rooms[views],
            self.intrinsics[views],
            self.extrinsics[views],
        )


@dataclass(frozen=True)
class Picture:
    """What is seen.

    Attributes:
        frames: (N,H,W,3) uint8.
        ids: (N,H,W) int32 at the pixels' centres; 0 for what is no solid.
        depth: (N,H,W) float32 there, along the axis; the sky is a dome around the origin.
    """

    frames: Tensor
    ids: Tensor
    depth: Tensor


@dataclass(frozen=True)
class Rays:
    """Rays (3,S) of views S; `phase` S chooses the points of lights that they look at."""

    view: Tensor
    origin: Tensor
    direction: Tensor
    phase: Tensor

    def at(self, index: Tensor) -> Rays:
        """Some of them, as (P,)."""
        return Rays(
            self.view.reshape(-1)[index],
            take(self.origin.flatten(1), index),
            take(self.direction.flatten(1), index),
            self.phase.reshape(-1)[index],
        )


def through(places: Tensor, view: Tensor, stage: Stage) -> tuple[Rays, Tensor]:
    """Rays through places (2,S) of images, and their depth per length S."""
    focal = per_view(stage.intrinsics[:, [0, 1], [0, 1]].T, view)
    center = per_view(stage.intrinsics[:, :2, 2].T, view)
    pose = per_view(stage.extrinsics[:, :3].permute(1, 2, 0), view)
    across, down = (places - center) / focal
    direction = pose[:, 0] * across + pose[:, 1] * down + pose[:, 2]
    scale = dot(direction, direction).rsqrt()
    origin = pose[:, 3].expand_as(direction)
    return Rays(view, origin, direction * scale, torch.zeros_like(view)), scale


def by_room(rooms: Sequence[Room], view: Tensor) -> list[tuple[Room, Tensor | slice]]:
    """Each room that there is, with which of the rays (P,) are in it."""
    distinct = list({id(room): room for room in rooms}.values())
    if len(distinct) == 1:
        return [(distinct[0], slice(None))]
    place = {id(room): number for number, room in enumerate(distinct)}
    numbers = torch.tensor([place[id(room)] for room in rooms], device=view.device)[view]
    return [(room, (numbers == place[id(room)]).nonzero()[:, 0]) for room in distinct]
