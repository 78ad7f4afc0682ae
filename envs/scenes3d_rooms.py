"""Where scenes take place: ground, wall and sky, and what stands there for good.

P points, N views. Colours are linear, lengths as in `ocrl.envs.scenes_geometry`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocrl.envs.scenes3d_geometry import NUM_COLUMNS, Z, solid_rows
from ocrl.envs.scenes_geometry import BACKDROP_RADIUS, SOLIDS, body_table
from ocrl.envs.scenes_render import COLORS, linear_colors

Color = tuple[float, float, float]
Statue = tuple[tuple[str, float, str], ...]
"""A pile from the ground up: shape, size and colour of each piece."""


@dataclass(frozen=True)
class Room:
    """A round place around the origin.

    Attributes:
        ground: two colours that its pattern mixes.
        ground_pattern: a name from `PATTERNS`.
        ground_scale: size of the pattern.
        wall: likewise of the wall.
        wall_pattern: likewise.
        wall_scale: likewise.
        wall_radius: how far it is away.
        wall_height: how high; with 0 there is none, and the ground goes over into the sky.
        sky: colour above the horizon, colour overhead.
        light_scale: lights are so many times as far away as in the studio, and as large.
        statues: piles that stand in a circle outside of where objects move.
    """

    ground: tuple[Color, Color]
    ground_pattern: str
    ground_scale: float
    wall: tuple[Color, Color]
    wall_pattern: str
    wall_scale: float
    wall_radius: float
    wall_height: float
    sky: tuple[Color, Color]
    light_scale: float
    statues: tuple[Statue, ...]

    @property
    def has_wall(self) -> bool:
        """Whether there is one."""
        return self.wall_height > 0.0


_GRAY: Color = (0.40, 0.40, 0.395)
ROOMS: Mapping[str, Room] = MappingProxyType(
    {
        "studio": Room(
            ground=(_GRAY, _GRAY),
            ground_pattern="plain",
            ground_scale=1.0,
            wall=(_GRAY, _GRAY),
            wall_pattern="plain",
            wall_scale=1.0,
            wall_radius=BACKDROP_RADIUS,
            wall_height=0.0,
            sky=((0.34, 0.34, 0.34), (0.24, 0.24, 0.24)),
            light_scale=1.0,
            statues=(),
        ),
        "meadow": Room(
            ground=((0.10, 0.24, 0.06), (0.22, 0.36, 0.10)),
            ground_pattern="waves",
            ground_scale=1.3,
            wall=((0.05, 0.13, 0.05), (0.12, 0.22, 0.08)),
            wall_pattern="waves",
            wall_scale=1.6,
            wall_radius=15.0,
            wall_height=1.6,
            sky=((0.62, 0.75, 0.90), (0.16, 0.33, 0.72)),
            light_scale=3.0,
            statues=(
                (
                    ("cylinder", 0.35, "brown"),
                    ("cylinder", 0.35, "brown"),
                    ("sphere", 1.3, "olive"),
                ),
                (("cylinder", 0.35, "brown"), ("cone", 1.2, "green"), ("cone", 0.8, "green")),
                (("icosahedron", 0.9, "gray"),),
                (
                    ("cylinder", 0.35, "brown"),
                    ("cylinder", 0.35, "brown"),
                    ("sphere", 1.1, "green"),
                ),
                (("icosahedron", 1.1, "gray"), ("icosahedron", 0.5, "gray")),
            ),
        ),
        "hall": Room(
            ground=((0.52, 0.47, 0.40), (0.13, 0.11, 0.10)),
            ground_pattern="checker",
            ground_scale=1.5,
            wall=((0.60, 0.52, 0.38), (0.44, 0.34, 0.22)),
            wall_pattern="stripes",
            wall_scale=1.8,
            wall_radius=14.0,
            wall_height=4.0,
            sky=((0.45, 0.43, 0.40), (0.66, 0.64, 0.60)),
            light_scale=2.5,
            statues=(
                (("cube", 1.0, "ivory"), ("cylinder", 0.45, "ivory"), ("sphere", 0.55, "ivory")),
                (("cylinder", 0.7, "maroon"), ("cylinder", 0.7, "maroon"), ("cone", 0.7, "maroon")),
                (("cube", 1.0, "ivory"), ("torus", 0.7, "gold"), ("sphere", 0.4, "gold")),
                (("cylinder", 0.7, "maroon"), ("cylinder", 0.7, "maroon"), ("cone", 0.7, "maroon")),
                (("cube", 1.0, "ivory"), ("icosahedron", 0.8, "teal")),
            ),
        ),
        "desert": Room(
            ground=((0.66, 0.46, 0.24), (0.50, 0.32, 0.15)),
            ground_pattern="waves",
            ground_scale=0.8,
            wall=((0.46, 0.22, 0.11), (0.32, 0.14, 0.08)),
            wall_pattern="stripes",
            wall_scale=6.0,
            wall_radius=17.0,
            wall_height=2.4,
            sky=((0.86, 0.66, 0.46), (0.28, 0.36, 0.62)),
            light_scale=3.0,
            statues=(
                (("cube", 1.6, "tan"), ("cube", 1.1, "tan"), ("cube", 0.6, "tan")),
                (
                    ("cylinder", 0.4, "olive"),
                    ("cylinder", 0.4, "olive"),
                    ("cylinder", 0.4, "olive"),
                ),
                (("cone", 1.4, "tan"),),
                (("icosahedron", 1.2, "maroon"), ("cube", 0.5, "tan")),
            ),
        ),
        "plaza": Room(
            ground=((0.34, 0.34, 0.37), (0.20, 0.20, 0.22)),
            ground_pattern="tiles",
            ground_scale=1.2,
            wall=((0.44, 0.16, 0.10), (0.52, 0.47, 0.42)),
            wall_pattern="bricks",
            wall_scale=0.8,
            wall_radius=15.0,
            wall_height=3.0,
            sky=((0.70, 0.76, 0.84), (0.30, 0.45, 0.74)),
            light_scale=3.0,
            statues=(
                (("cylinder", 1.2, "silver"), ("torus", 1.0, "teal"), ("sphere", 0.5, "teal")),
                (("cube", 0.8, "silver"), ("cone", 0.6, "navy")),
                (("cylinder", 0.4, "navy"), ("cylinder", 0.4, "navy"), ("sphere", 0.6, "ivory")),
                (("cube", 0.8, "silver"), ("icosahedron", 0.7, "gold")),
                (("cylinder", 0.4, "navy"), ("cylinder", 0.4, "navy"), ("sphere", 0.6, "ivory")),
                (("cube", 1.4, "silver"), ("cylinder", 0.8, "silver")),
            ),
        ),
    }
)
"""By name; `studio` is where `ocrl.envs.scenes` takes place."""
EXTRA_COLORS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "orange": (245, 130, 48),
        "pink": (250, 150, 190),
        "magenta": (240, 50, 230),
        "lime": (160, 230, 40),
        "teal": (0, 128, 128),
        "navy": (20, 30, 110),
        "maroon": (110, 20, 30),
        "olive": (110, 115, 25),
        "gold": (212, 160, 30),
        "silver": (180, 182, 186),
        "white": (240, 240, 236),
        "black": (32, 32, 34),
        "ivory": (225, 214, 186),
        "tan": (200, 165, 115),
        "salmon": (240, 125, 105),
        "coral": (255, 95, 70),
        "crimson": (205, 15, 60),
        "indigo": (70, 15, 130),
        "violet": (185, 110, 225),
        "lavender": (190, 180, 245),
        "turquoise": (60, 215, 170),
        "mint": (150, 240, 180),
        "azure": (70, 150, 245),
        "rust": (175, 75, 15),
    }
)
PALETTE: Mapping[str, tuple[int, int, int]] = MappingProxyType({**COLORS, **EXTRA_COLORS})
"""32 colours by name, CLEVR's eight first; a colour's number is its place here."""
_STATUE_CIRCLE = 2.0
"""Statues stand so far outside of the arena."""


def statue_rows(room: Room, *, arena: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rows of `solid_rows` of the statues around an arena, and which statue each belongs to."""
    rows, owners = [np.zeros((0, NUM_COLUMNS))], [np.zeros(0, np.int64)]
    for number, pile in enumerate(room.statues):
        # By the golden angle, so that no two rooms' circles look alike.
        angle = 2.0 * math.pi * number / len(room.statues) + 0.4 * (number % 2) + len(pile)
        away = arena + _STATUE_CIRCLE + 0.6 * (number % 3)
        shapes = np.array([SOLIDS.index(shape) for shape, _, _ in pile])
        sizes = np.array([size for _, size, _ in pile])
        colors = linear_colors(np.array([PALETTE[color] for _, _, color in pile]))
        place = np.tile([away * math.cos(angle), away * math.sin(angle)], (len(pile), 1))
        turns = np.full(len(pile), angle)
        table = body_table(shapes, sizes, place, turns, colors, np.zeros(len(pile), bool))
        heights = 2.0 * table[:, Z]
        table[:, Z] += np.cumsum(heights) - heights
        rows.append(solid_rows(table))
        owners.append(np.full(len(pile), number))
    return np.concatenate(rows), np.concatenate(owners)


def _plain(u: Tensor, v: Tensor) -> Tensor:
    return torch.zeros_like(u)


def _checker(u: Tensor, v: Tensor) -> Tensor:
    return (u.floor() + v.floor()) % 2.0


def _stripes(u: Tensor, v: Tensor) -> Tensor:
    return 0.5 + 0.5 * torch.sin(2.0 * math.pi * u)


def _waves(u: Tensor, v: Tensor) -> Tensor:
    bend = torch.sin(0.9 * v + 1.3 * torch.sin(0.7 * u))
    return 0.5 + 0.25 * (torch.sin(2.3 * u + 1.7 * bend) + torch.sin(3.1 * v - 0.8 * u))


def _tiles(u: Tensor, v: Tensor) -> Tensor:
    is_joint = ((u % 1.0) < 0.07) | ((v % 1.0) < 0.07)
    shade = 0.35 * torch.frac(torch.sin(12.9898 * u.floor() + 78.233 * v.floor()) * 43.7585).abs()
    return torch.where(is_joint, 1.0, shade)


def _bricks(u: Tensor, v: Tensor) -> Tensor:
    row = (2.0 * v).floor()
    is_joint = ((2.0 * v) % 1.0 < 0.12) | ((u + 0.5 * (row % 2.0)) % 1.0 < 0.06)
    return is_joint.to(u.dtype)


PATTERNS = MappingProxyType(
    {
        "plain": _plain,
        "checker": _checker,
        "stripes": _stripes,
        "waves": _waves,
        "tiles": _tiles,
        "bricks": _bricks,
    }
)
"""From two coordinates, one pattern to a unit, to the share of the second colour."""


def _mixed(colors: tuple[Color, Color], share: Tensor) -> Tensor:
    """(3,P)."""
    first, second = (share.new_tensor(color)[:, None] for color in colors)
    return first + share * (second - first)


def _mean(pattern: str) -> float:
    """What of the second colour patterns that are too fine to be seen are shown with."""
    return 0.0 if pattern == "plain" else 0.5


def ground_color(room: Room, point: Tensor, blur: Tensor) -> Tensor:
    """Colours (3,P) of the ground at points (3,P).

    Args:
        room: where.
        point: x, y and z.
        blur: (P,) the size of a pixel there, in units of the world; patterns finer than it are
            shown by their mean.
    """
    u, v = point[0] / room.ground_scale, point[1] / room.ground_scale
    mean = _mean(room.ground_pattern)
    sharp = (1.5 - 2.0 * blur / room.ground_scale).clamp(0.0, 1.0)
    return _mixed(room.ground, mean + sharp * (PATTERNS[room.ground_pattern](u, v) - mean))


def wall_color(room: Room, point: Tensor) -> Tensor:
    """Colours (3,P) of the wall at points (3,P)."""
    # A whole number of patterns goes around.
    count = max(1, round(2.0 * math.pi * room.wall_radius / room.wall_scale))
    u = count * (torch.atan2(point[1], point[0]) / (2.0 * math.pi) + 0.5)
    return _mixed(room.wall, PATTERNS[room.wall_pattern](u, point[2] / room.wall_scale))


def plain_colors(room: Room) -> tuple[Color, Color]:
    """Colours of the ground and the wall without their patterns."""
    ground = _mixed(room.ground, torch.tensor([_mean(room.ground_pattern)]))[:, 0].tolist()
    wall = _mixed(room.wall, torch.tensor([_mean(room.wall_pattern)]))[:, 0].tolist()
    return tuple(ground), tuple(wall)


def sky_color(room: Room, rise: Tensor) -> Tensor:
    """Colours (3,P) of the sky where rays rise by the sine (P,) of an angle."""
    return _mixed(room.sky, rise.clamp(0.0, 1.0))
