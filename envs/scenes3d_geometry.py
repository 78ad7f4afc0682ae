"""Where rays meet solids, for all rays of many cameras at once: torch, on any device.

N views, M solids, L lights, Q pairs of a ray and a solid; S stands for the axes of rays, (N,R) for
R rays in each of the views or (P,) for rays of any views. Lengths and solids as in
`ocrl.envs.scenes_geometry`, but a solid may be turned in any way.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocrl.envs import scenes_geometry as table
from ocrl.envs.scenes_geometry import CONE, CUBE, CYLINDER, ICOSAHEDRON, SPHERE, TORUS

KIND, X, Y, Z, TURN, SQUARE, LINEAR, CONSTANT, HALF_WIDTH, HALF_HEIGHT, BOUND = (
    *(0, 1, 2, 3, 4),
    *range(13, 19),
)
RED, GREEN, BLUE, IS_METAL = range(19, 23)
"""Columns of a row of `solid_rows`. The nine from `TURN` on are a rotation, body to world, by rows.
The next three are the round side of a solid, where x^2 + y^2 + `SQUARE` z^2 + `LINEAR` z +
`CONSTANT` is 0; a torus has that of the cylinder around it."""
NUM_COLUMNS = 23
MISSED = 1e6
"""Lengths from here on are of rays that meet nothing."""
_PENALTY = 1e20
"""What a miss adds to a length, times by how much it is missed. To choose between two numbers for
each ray costs a processor ten times as much as arithmetic, so that all rays take the same path."""
_FAR_BELOW = -1e4
"""Where solids lie that are none: rows that only fill up."""
_TORUS_SAMPLES = 16
_TORUS_STEPS = 4
_TINY = 1e-9


def solid_rows(bodies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows (M,NUM_COLUMNS) of upright bodies, from a `scenes_geometry.body_table` (M,13)."""
    rows = np.zeros((len(bodies), NUM_COLUMNS))
    rows[:, : Z + 1] = bodies[:, : table.Z + 1]
    cos, sin = bodies[:, table.COS], bodies[:, table.SIN]
    turn = np.zeros((len(bodies), 3, 3))
    turn[:, 0, 0], turn[:, 0, 1], turn[:, 1, 0], turn[:, 1, 1] = cos, -sin, sin, cos
    turn[:, 2, 2] = 1.0
    rows[:, TURN : TURN + 9] = turn.reshape(-1, 9)
    rows[:, SQUARE : CONSTANT + 1] = _round_side(bodies)
    rows[:, HALF_WIDTH:] = bodies[:, table.HALF_WIDTH :]
    return rows


def _round_side(bodies: NDArray[np.float64]) -> NDArray[np.float64]:
    """The columns from `SQUARE` on, (M,3)."""
    kind, width, height = (bodies[:, i] for i in (table.KIND, table.HALF_WIDTH, table.HALF_HEIGHT))
    side = np.zeros((len(bodies), 3))
    side[:, 0] = kind == SPHERE
    side[:, 2] = -width * width
    # A cone narrows from its base's radius to 0 over its height.
    slope = (width / (2.0 * height)) ** 2
    cone = np.stack([-slope, 2.0 * slope * height, -slope * height * height], axis=1)
    return np.where((kind == CONE)[:, None], cone, side)


def padded_rows(rows: NDArray[np.float64], num_rows: int) -> NDArray[np.float64]:
    """The same with rows up to `num_rows` that no ray meets."""
    padded = np.zeros((num_rows, NUM_COLUMNS))
    padded[:, Z] = _FAR_BELOW
    padded[:, HALF_WIDTH : BOUND + 1] = 1e-3
    padded[: len(rows)] = rows
    return padded


def _icosahedron_faces() -> NDArray[np.float64]:
    """Unit normals (10,3) of one of each two opposite faces; the first is z."""
    golden = (1.0 + math.sqrt(5.0)) / 2.0
    cube = [(x, y, 1.0) for x in (-1.0, 1.0) for y in (-1.0, 1.0)]
    rest = [(0.0, s / golden, golden) for s in (-1.0, 1.0)]
    rest += [(s / golden, golden, 0.0) for s in (-1.0, 1.0)]
    rest += [(golden, 0.0, s / golden) for s in (-1.0, 1.0)]
    faces = np.array([*rest, *cube]) / math.sqrt(3.0)
    up = faces[0]
    side = np.cross(up, [1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    return faces @ np.stack([side, np.cross(up, side), up], axis=1)


_FACES = {CUBE: np.eye(3), ICOSAHEDRON: _icosahedron_faces()}


@dataclass(frozen=True)
class Solids:
    """The solids of N views, as columns.

    Attributes:
        columns: (NUM_COLUMNS,N*M), solid m of view n at n * M + m.
        num_views: N.
        kinds: numbers of the shapes that there are.
    """

    columns: Tensor
    num_views: int
    kinds: frozenset[int]

    @staticmethod
    def of(rows: Tensor, kinds: frozenset[int]) -> Solids:
        """From rows (N,M,NUM_COLUMNS)."""
        return Solids(rows.flatten(0, 1).T.contiguous(), len(rows), kinds)

    @property
    def num_solids(self) -> int:
        """M."""
        return self.columns.shape[1] // self.num_views

    def beside(self, view: Tensor, first: int, last: int) -> Tensor:
        """Columns first to last (excluded) of each solid of the rays' views, (C,M,S) or to expand.

        Args:
            view: S, the view of each ray.
            first: column.
            last: column.
        """
        chosen = self.columns[first:last].unflatten(1, (self.num_views, -1)).mT
        return per_view(chosen, view)


def take(array: Tensor, index: Tensor) -> Tensor:
    """Entries (P,) of the last axis; as `array[..., index]`, at a fraction of its time."""
    return array.flatten(0, -2).index_select(1, index).view(*array.shape[:-1], len(index))


def per_view(array: Tensor, view: Tensor) -> Tensor:
    """Numbers (C,...,N) of the views of rays S: (C,...,S), or to expand where S is (N,R)."""
    return array[..., None] if view.ndim == 2 else take(array, view)


def nearest(
    solids: Solids, view: Tensor, origin: Tensor, direction: Tensor, *, own: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What rays meet first.

    Args:
        solids: of all views.
        view: S.
        origin: (3,S).
        direction: (3,S), unit vectors.
        own: S, the solid's column from which a ray starts and which it does not meet, or -1.

    Returns:
        Length S to it (`MISSED` or more for none), and its column S in `solids` (-1 for none).
    """
    gap = solids.beside(view, X, Z + 1) - origin[:, None]
    bound = solids.beside(view, BOUND, BOUND + 1)[0]
    along, across = dot(gap, direction[:, None]), dot(gap, gap)
    # Conservative, for what rounding takes from the difference of two large squares.
    is_near = (across * (1.0 - 1e-5) - along * along <= bound * bound) & (along > -bound)
    index = is_near.flatten().nonzero()[:, 0]
    ray = index % view.numel()
    column = view.reshape(-1)[ray] * solids.num_solids + index // view.numel()
    if own is not None:
        is_other = own.reshape(-1)[ray] != column
        ray, column = ray[is_other], column[is_other]
    origin, direction = take(origin.flatten(1), ray), take(direction.flatten(1), ray)
    length = lengths(solids, column, origin, direction)
    first = length.new_full((view.numel(),), MISSED)
    first.scatter_reduce_(0, ray, length, "amin")
    is_first = (length == first[ray]) & (length < MISSED)
    found = column.new_full((view.numel(),), -1)
    found[ray[is_first]] = column[is_first]
    return first.view(view.shape), found.view(view.shape)


def lengths(solids: Solids, column: Tensor, origin: Tensor, direction: Tensor) -> Tensor:
    """How far rays go to the solid that each is paired with.

    Args:
        solids: of all views.
        column: (Q,) of the solid.
        origin: (3,Q), outside of the solid.
        direction: (3,...,Q), unit vectors; several rays from each origin where there are more axes.

    Returns:
        (...,Q); `MISSED` or more where the ray does not meet it.
    """
    chosen = take(solids.columns[: BOUND + 1], column)
    chosen = chosen.view(len(chosen), *[1] * (direction.ndim - 2), -1)
    gap = chosen[X : Z + 1] - origin.view(3, *chosen.shape[1:])
    # From the point of the ray nearest to the centre on, so that nothing large is subtracted.
    along = dot(gap, direction)
    turn = chosen[TURN : TURN + 9].unflatten(0, (3, 3))
    way = _turned(turn, direction)
    start = along * way - _turned(turn, gap)
    result = torch.empty_like(along)
    for kinds in _KERNELS:
        present = solids.kinds.intersection(kinds)
        if not present:
            continue
        if present == solids.kinds:
            result = _entry(kinds, chosen, start, way)
        else:
            mine = _is_one_of(chosen[KIND].flatten(), present).nonzero()[:, 0]
            parts = (take(part, mine) for part in (chosen, start, way))
            result.index_copy_(-1, mine, _entry(kinds, *parts))
    result = result + along
    return result + _PENALTY * (-result).clamp_min(0.0)


_KERNELS = ((SPHERE, CYLINDER, CONE), (CUBE,), (ICOSAHEDRON,), (TORUS,))
"""Shapes that are met in the same way."""


def _entry(kinds: tuple[int, ...], chosen: Tensor, start: Tensor, way: Tensor) -> Tensor:
    if TORUS in kinds:
        return _torus_entry(chosen, start, way)
    if SPHERE in kinds:
        return _met(*_round_entry(chosen, start, way))
    return _polytope_entry(kinds[0], start, way, chosen[HALF_WIDTH : HALF_HEIGHT + 1])


def dot(first: Tensor, second: Tensor) -> Tensor:
    """Products over the leading axis of 3, written out: reductions over it are slow."""
    return first[0] * second[0] + first[1] * second[1] + first[2] * second[2]


def length_of(vector: Tensor) -> Tensor:
    """Of vectors along the leading axis of 3."""
    return dot(vector, vector).sqrt()


def _is_one_of(kind: Tensor, kinds: frozenset[int]) -> Tensor:
    mask = torch.zeros_like(kind, dtype=torch.bool)
    for number in kinds:
        mask |= kind == number
    return mask


def _turned(turn: Tensor, vector: Tensor) -> Tensor:
    """Vectors (3,...,Q) of the world as solids with rotations (3,3,...,Q) see them."""
    return torch.stack([dot(turn[:, axis], vector) for axis in range(3)])


def _slab(start: Tensor, step: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """From when until when points that move along lines are within `half` of 0."""
    pace = (step + _TINY).reciprocal()
    middle, wide = -start * pace, half * pace.abs()
    return middle - wide, middle + wide


def _met(first: Tensor, last: Tensor) -> Tensor:
    """The first of an interval, `MISSED` or more where it is empty."""
    return first + _PENALTY * (first - last).clamp_min(0.0)


def _round_entry(chosen: Tensor, start: Tensor, way: Tensor) -> tuple[Tensor, Tensor]:
    """From when until when rays are within a round side and between the caps."""
    a, b, c = chosen[SQUARE : CONSTANT + 1]
    x, y, z = start
    dx, dy, dz = way
    square = dx * dx + dy * dy + a * dz * dz
    along = x * dx + y * dy + (a * z + 0.5 * b) * dz
    root = along * along - square * (x * x + y * y + (a * z + b) * z + c)
    missed = _PENALTY * (-root).clamp_min(0.0)
    pace = (square + _TINY).reciprocal()
    middle, wide = -along * pace, root.clamp_min(0.0).sqrt() * pace.abs()
    first, last = middle - wide, middle + wide
    into, out = _slab(z, dz, chosen[HALF_HEIGHT])
    # Steeper than the side of a cone: within it before the one crossing, or after the other.
    is_steep = square < 0.0
    if is_steep.any():
        is_rising = dz > 0.0
        first, last = (
            torch.where(is_steep, torch.where(is_rising, into, last), first),
            torch.where(is_steep, torch.where(is_rising, first, out), last),
        )
    return torch.maximum(first, into) + missed, torch.minimum(last, out)


def _polytope_entry(kind: int, start: Tensor, way: Tensor, half: Tensor) -> Tensor:
    slabs = []
    for axis, face in enumerate(_FACES[kind].tolist()):
        # The upright side of a cube has a half extent of its own.
        wide = half[int(kind == CUBE and axis == 2)]
        slabs.append(_slab(_along(face, start), _along(face, way), wide))
    firsts, lasts = zip(*slabs, strict=True)
    return _met(functools.reduce(torch.maximum, firsts), functools.reduce(torch.minimum, lasts))


def _along(face: list[float], vector: Tensor) -> Tensor:
    """Products of vectors (3,...) with one; of an axis without any arithmetic."""
    used = [(factor, part) for factor, part in zip(face, vector, strict=True) if factor]
    if used[0][0] == 1.0 and len(used) == 1:
        return used[0][1]
    return sum((factor * part for factor, part in used[1:]), used[0][0] * used[0][1])


def _torus_entry(chosen: Tensor, start: Tensor, way: Tensor) -> Tensor:
    """The first of samples that is within, then a root between it and the one before.

    A grazing ray that is within for less than one of `_TORUS_SAMPLES` parts of its way through the
    cylinder around the torus may miss it: less than a hundredth of the torus' radius from its rim.
    """
    into, out = _round_entry(chosen, start, way)
    shape, result = into.shape, _met(into, out).flatten()
    mine = (result < MISSED).nonzero()[:, 0]
    chosen = chosen.expand(-1, *shape)[HALF_WIDTH : HALF_HEIGHT + 1]
    start, way, half = (take(part.flatten(1), mine) for part in (start, way, chosen))
    into, out = into.flatten()[mine], out.flatten()[mine]
    tube, ring = half[1], half[0] - half[1]
    # The squares of a point's distance to the centre and to the axis are of degree 2 along the
    # ray; the torus is where (square - inner)^2 is less than 4 ring^2 times the other.
    inner, outer = tube * tube - ring * ring, 4.0 * ring * ring
    height, climb = start[2], way[2]
    square = dot(start, start) - inner, 2.0 * dot(start, way)
    flat = (
        outer * (square[0] + inner - height * height),
        outer * (square[1] - 2.0 * height * climb),
        outer * (1.0 - climb * climb),
    )

    def value_at(when: Tensor) -> Tensor:
        return (square[0] + when * (square[1] + when)) ** 2 - (
            flat[0] + when * (flat[1] + when * flat[2])
        )

    share = torch.linspace(0.0, 1.0, _TORUS_SAMPLES + 1, device=start.device, dtype=start.dtype)
    value = value_at(into + share[:, None] * (out - into))
    is_within = value[1:] < 0.0
    place = _first_of(is_within)
    step = (out - into) / _TORUS_SAMPLES
    low = into + place[0] * step
    above, below = value.gather(0, place)[0], value.gather(0, place + 1)[0]
    high = low + step
    when = low + step * above / (above - below).clamp_min(_TINY)
    for _ in range(_TORUS_STEPS):
        slope = 2.0 * (square[0] + when * (square[1] + when)) * (square[1] + 2.0 * when)
        slope = slope - (flat[1] + 2.0 * when * flat[2])
        when = when - value_at(when) / slope.clamp_max(-_TINY)
        when = torch.minimum(torch.maximum(when, low), high)
    found = when + MISSED * (1.0 - is_within.any(0).to(when.dtype))
    return result.index_copy_(0, mine, found).view(shape)


def _first_of(mask: Tensor) -> Tensor:
    """The first row (1,Q) in which a mask (K,Q) holds, 0 where none does."""
    count = len(mask)
    weight = torch.arange(count, 0, -1, device=mask.device, dtype=torch.uint8)[:, None]
    most = (mask * weight).amax(0, keepdim=True).long()
    return torch.where(most > 0, count - most, 0)


def normals(solids: Solids, column: Tensor, point: Tensor) -> Tensor:
    """Outward unit normals (3,Q) of solids at points (3,Q) of their surfaces."""
    chosen = take(solids.columns[: BOUND + 1], column)
    turn = chosen[TURN : TURN + 9].unflatten(0, (3, 3))
    local = _turned(turn, point - chosen[X : Z + 1])
    outward = torch.zeros_like(local)
    for kinds in _KERNELS:
        present = solids.kinds.intersection(kinds)
        if not present:
            continue
        mine = _is_one_of(chosen[KIND], present).nonzero()[:, 0]
        place, part = take(local, mine), take(chosen, mine)
        if TORUS in kinds:
            x, y, z = place
            ring = part[HALF_WIDTH] - part[HALF_HEIGHT]
            outside = 1.0 - ring / (x * x + y * y).sqrt().clamp_min(_TINY)
            found = torch.stack([outside * x, outside * y, z])
        elif SPHERE in kinds:
            found = _round_normal(part, place)
        else:
            found = _polytope_normal(kinds[0], place, part[HALF_WIDTH : HALF_HEIGHT + 1])
        outward.index_copy_(1, mine, found)
    outward = torch.stack([dot(turn[axis], outward) for axis in range(3)])
    return outward / length_of(outward).clamp_min(_TINY)


def _round_normal(chosen: Tensor, place: Tensor) -> Tensor:
    a, b, c = chosen[SQUARE : CONSTANT + 1]
    x, y, z = place
    side = torch.stack([x, y, a * z + 0.5 * b])
    beyond = x * x + y * y + (a * z + b) * z + c
    # Of side and caps the one that the point lies on: how far it is within each.
    from_side = -0.5 * beyond / length_of(side).clamp_min(_TINY)
    is_cap = (chosen[HALF_HEIGHT] - z.abs() < from_side) & (chosen[KIND] != SPHERE)
    cap = torch.zeros_like(place)
    cap[2] = z.sign()
    return torch.where(is_cap, cap, side)


def _polytope_normal(kind: int, place: Tensor, half: Tensor) -> Tensor:
    faces = place.new_tensor(_FACES[kind])
    wide = half[:1] if kind == ICOSAHEDRON else half[[0, 0, 1]]
    height = faces @ place
    nearest_face = (height.abs() - wide).argmax(0)
    sign = height.gather(0, nearest_face[None])[0].sign()
    return faces[nearest_face].T * sign
