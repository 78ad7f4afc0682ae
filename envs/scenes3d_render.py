"""Pictures of solids in rooms from many cameras at once: torch, the same on a CPU and a GPU.

N views, M solids, L lights, H W image; S the axes of rays, (N,R) or (P,), see
`ocrl.envs.scenes3d_geometry`. Light, shadows and materials are those of `ocrl.envs.scenes_render`,
which draws the same studio pixel by pixel; this draws whole batches, more solids, and rooms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ocrl.envs.scenes3d_empty import (
    GROUND,
    SKY,
    SOLID,
    WALL,
    emptiness,
    ground_light,
    pixel_size,
    sky_light,
)
from ocrl.envs.scenes3d_geometry import (
    BLUE,
    BOUND,
    HALF_HEIGHT,
    HALF_WIDTH,
    IS_METAL,
    NUM_COLUMNS,
    RED,
    Solids,
    X,
    Z,
    dot,
    length_of,
    lengths,
    nearest,
    normals,
    per_view,
    take,
)
from ocrl.envs.scenes3d_rooms import ground_color, plain_colors, wall_color
from ocrl.envs.scenes3d_stage import Picture, Rays, Stage, by_room, through
from ocrl.envs.scenes_render import (
    BOUNCE,
    CONTRAST,
    DISPLAY,
    LIGHT_SAMPLES,
    SKY_LIGHT,
    light_pattern,
)

_METAL_SHINE, _RUBBER_SHINE = 90.0, 12.0
_METAL_BODY = 0.45
"""How much of their light metals scatter."""
_BALL, _OPEN_REACH = 1.1**2, 6.0
"""Of the light from all sides a solid takes what a ball of so many times its square would, as far
as so many times the ball's radius."""
_REACH = NUM_COLUMNS
"""A column more of the solids: see `_reach`."""
MAX_RAYS = {"cpu": 1 << 16, "cuda": 1 << 22}
"""Rays drawn at a time: what fits into a processor's cache, or keeps a GPU busy."""


@dataclass(frozen=True)
class _Neighbors:
    """Pairs (Q,) of a point and a solid that may shade it.

    Attributes:
        point: its number in S.
        column: that of the solid.
        gap: (3,Q) from the point to the centre of the solid.
        square: of the gap's length.
    """

    point: Tensor
    column: Tensor
    gap: Tensor
    square: Tensor


def _find_device(name: torch.device | str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"expected device to be {' or '.join(MAX_RAYS)}, got {name!r}") from error
    if device.type not in MAX_RAYS:
        raise ValueError(f"expected device to be {' or '.join(MAX_RAYS)}, got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(
                f"expected one of the {count} CUDA devices here, got {name!r}; use device=cpu"
            )
    return device


class RayCaster:
    """Draws stages.

    Edges, patterns and rims of shadows are smoothed as in `scenes_render`: where a pixel differs
    from its neighbours it becomes the mean over a grid of samples. Masks and depth are those of the
    pixels' centres.
    """

    def __init__(self, *, size: int, supersampling: int, device: torch.device | str) -> None:
        """Set up a caster.

        Args:
            size: pixels of a side of the image.
            supersampling: samples across a pixel for smooth edges; 1 for none.
            device: where it draws, cpu or cuda.

        Raises:
            ValueError: if there is no such device.
        """
        self._size = size
        self._supersampling = supersampling
        self.device = _find_device(device)
        pattern = light_pattern(supersampling).reshape(LIGHT_SAMPLES, -1, 2)
        pattern = np.moveaxis(pattern, -1, 0).copy()
        self._pattern = torch.tensor(pattern, dtype=torch.float32, device=self.device)
        self._display = torch.tensor(DISPLAY, device=self.device)
        side = (np.arange(supersampling) + 0.5) / supersampling - 0.5
        down, across = np.meshgrid(side, side, indexing="ij")
        offsets = np.stack([across.ravel(), down.ravel()])
        self._offsets = torch.tensor(offsets, dtype=torch.float32, device=self.device)

    @torch.inference_mode()
    def draw(self, stage: Stage) -> Picture:
        """Draw all views, with masks and depth."""
        parts = [self._draw(part) for part in self._parts(stage)]
        joined = (torch.cat([getattr(p, n) for p in parts]) for n in ("frames", "ids", "depth"))
        return Picture(*joined)

    @torch.inference_mode()
    def cast(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """Ids (N,H,W) and depth (N,H,W) alone."""
        parts = []
        for part in self._parts(stage):
            rays, ahead = self._centers(part)
            solids = Solids.of(part.rows, part.kinds)
            length, column = nearest(solids, rays.view, rays.origin, rays.direction)
            empty, _ = emptiness(part.rooms, rays)
            parts.append(self._maps(column, torch.minimum(length, empty) * ahead, solids))
        ids, depth = zip(*parts, strict=True)
        return torch.cat(ids), torch.cat(depth)

    def _parts(self, stage: Stage) -> list[Stage]:
        """As many views at a time as are fast."""
        count = max(1, MAX_RAYS[self.device.type] // self._size**2)
        return [stage[first : first + count] for first in range(0, len(stage.rows), count)]

    def _centers(self, stage: Stage, offset: Tensor | None = None) -> tuple[Rays, Tensor]:
        """Rays (3,N,R) through the centres of all pixels, and their depth per length (N,R).

        Args:
            stage: what there is.
            offset: (2,) by how much they are beside the centres, in pixels.
        """
        num_views = len(stage.rows)
        pixel = torch.arange(self._size**2, device=self.device)
        view = torch.arange(num_views, device=self.device)[:, None].expand(-1, len(pixel))
        places = torch.stack([pixel % self._size, pixel // self._size]) + 0.5
        if offset is not None:
            places = places + offset[:, None]
        rays, ahead = through(places[:, None].expand(-1, num_views, -1), view, stage)
        return rays, ahead

    def _maps(self, column: Tensor, depth: Tensor, solids: Solids) -> tuple[Tensor, Tensor]:
        size = (-1, self._size, self._size)
        ids = torch.where(column < 0, 0, column % solids.num_solids + 1)
        return ids.to(torch.int32).view(size), depth.view(size)

    def _draw(self, stage: Stage) -> Picture:
        rows = torch.cat([stage.rows, _reach(stage)[..., None]], dim=-1)
        solids = Solids.of(rows, stage.kinds)
        rays, ahead = self._centers(stage)
        # Patterns are put on afterwards: they are smoothed by themselves, without tracing again.
        has_patterns = self._supersampling > 1 and any(room.has_wall for room in stage.rooms)
        light, is_rim, length, column = self._look(stage, solids, rays, None, is_plain=has_patterns)
        ids, depth = self._maps(column, length * ahead, solids)
        light = light.view(3, len(ids), self._size, self._size)
        if self._supersampling > 1:
            is_rough = _is_edge(light) | is_rim.view(ids.shape)
            if has_patterns:
                light *= torch.where(ids > 0, 1.0, self._patterns(stage).view(light.shape))
                light.clamp_(max=1.0)
            self._smooth(light, is_rough.flatten().nonzero()[:, 0], stage, solids)
        index = (light * (len(self._display) - 1) + 0.5).long()
        return Picture(self._display[index].movedim(0, -1).contiguous(), ids, depth)

    def _smooth(self, light: Tensor, rough: Tensor, stage: Stage, solids: Solids) -> None:
        """Put the mean over a grid of samples into the rough pixels (P,) of (3,N,H,W)."""
        if not len(rough):
            return
        num_samples = self._offsets.shape[1]
        pixel = rough % self._size**2
        centers = torch.stack([pixel % self._size, pixel // self._size]) + 0.5
        places = (centers[:, None] + self._offsets[:, :, None]).flatten(1)
        view = (rough // self._size**2).repeat(num_samples)
        rays, _ = through(places, view, stage)
        phase = torch.arange(num_samples, device=self.device).repeat_interleave(len(rough))
        rays = Rays(rays.view, rays.origin, rays.direction, phase)
        samples, *_ = self._look(stage, solids, rays, None)
        light.view(3, -1).index_copy_(1, rough, samples.unflatten(1, (num_samples, -1)).mean(1))

    def _patterns(self, stage: Stage) -> Tensor:
        """By what patterns change the colours (3,N,R) of empty rooms: means over samples."""
        total = torch.zeros(3, len(stage.rows), self._size**2, device=self.device)
        for offset in self._offsets.T:
            rays, _ = self._centers(stage, offset)
            length, kind = emptiness(stage.rooms, rays)
            blur = pixel_size(stage, rays, length)
            point = rays.origin + length * rays.direction
            for room in {id(room): room for room in stage.rooms}.values():
                views = torch.tensor([other is room for other in stage.rooms], device=self.device)
                place, what = point[:, views].flatten(1), kind[views].flatten()
                ground, wall = (what.new_tensor(c, dtype=place.dtype) for c in plain_colors(room))
                on_ground = ground_color(room, place, blur[views].flatten()) / ground[:, None]
                on_wall = wall_color(room, place) / wall[:, None]
                shown = torch.where(what == GROUND, on_ground, on_wall)
                shown = torch.where(what == SKY, 1.0, shown)
                total[:, views] += shown.view(3, -1, self._size**2)
        return total / self._offsets.shape[1]

    def _look(
        self,
        stage: Stage,
        solids: Solids,
        rays: Rays,
        own: Tensor | None,
        *,
        is_plain: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What rays show: light (3,S), whether in the rim of a shadow, how far, which column.

        Args:
            stage: what there is.
            solids: those of the stage.
            rays: S of them.
            own: for mirrored rays the columns of the solids that they leave; what they show has no
                shadows, which are small there and would be most of the work.
            is_plain: leave out the patterns of rooms with walls.
        """
        length, column = nearest(solids, rays.view, rays.origin, rays.direction, own=own)
        empty, kind = emptiness(stage.rooms, rays)
        length, kind = torch.minimum(length, empty), torch.where(column < 0, kind, SOLID)
        light = rays.direction.new_empty(rays.direction.shape)
        is_rim = torch.zeros(kind.shape, dtype=torch.bool, device=kind.device)
        is_sky = kind == SKY
        sky = is_sky.flatten().nonzero()[:, 0]
        if not len(sky):
            light, is_rim = self._surface(stage, solids, rays, length, kind, column, own, is_plain)
        else:
            above = sky_light(stage, rays.at(sky), has_glow=own is not None)
            light.view(3, -1).index_copy_(1, sky, above)
            rest = (~is_sky).flatten().nonzero()[:, 0]
            far, what, whose = (part.flatten()[rest] for part in (length, kind, column))
            left = None if own is None else own.flatten()[rest]
            color, rim = self._surface(
                stage, solids, rays.at(rest), far, what, whose, left, is_plain
            )
            light.view(3, -1).index_copy_(1, rest, color)
            is_rim.view(-1)[rest] = rim
        return light, is_rim, length, column

    def _surface(
        self,
        stage: Stage,
        solids: Solids,
        rays: Rays,
        length: Tensor,
        kind: Tensor,
        column: Tensor,
        own: Tensor | None,
        is_plain: bool,
    ) -> tuple[Tensor, Tensor]:
        """Light (3,S) of what rays meet that is not the sky, and whether in the rim of a shadow."""
        point = rays.origin + length * rays.direction
        normal = point.new_zeros(point.shape)
        normal[2] = 1.0
        # All is taken for ground first. What is written through these views is written into both.
        color, haze = ground_light(stage, rays, length, point, is_plain=is_plain)
        points, faces, colors = point.flatten(1), normal.view(3, -1), color.view(3, -1)
        wall = (kind == WALL).flatten().nonzero()[:, 0]
        if len(wall):
            place = take(points, wall)
            inward = -place[:2] / place[:2].square().sum(0).sqrt()
            faces.index_copy_(1, wall, torch.cat([inward, torch.zeros_like(inward[:1])]))
            for room, index in by_room(stage.rooms, rays.view.flatten()[wall]):
                painted = wall_color(room, place[:, index])
                if is_plain:
                    painted[:] = painted.new_tensor(plain_colors(room)[1])[:, None]
                colors[:, wall[index]] = painted
        mine = (kind == SOLID).flatten().nonzero()[:, 0]
        columns, place = column.flatten()[mine], take(points, mine)
        faces.index_copy_(1, mine, normals(solids, columns, place))
        paint = take(solids.columns[RED : IS_METAL + 1], columns)
        if own is None:
            paint[:3] *= 1.0 + (_METAL_BODY - 1.0) * paint[3]
        colors.index_copy_(1, mine, paint[:3])
        scattered, seen, to_lights, is_rim = self._lit(
            stage, solids, rays, point, normal, column, has_shadows=own is None
        )
        color *= scattered
        if haze is not None:
            amount = torch.where(kind == GROUND, haze[0], 0.0)
            color += amount * (haze[1] - color)
        if own is not None:
            return color, is_rim
        if len(mine):
            shone = take(seen.flatten(1), mine), take(to_lights.flatten(2), mine)
            gloss = self._glossy(
                stage, solids, rays.at(mine), place, take(faces, mine), columns, shone
            )
            colors.index_add_(1, mine, gloss)
        return color.clamp_(max=1.0), is_rim

    def _lit(
        self,
        stage: Stage,
        solids: Solids,
        rays: Rays,
        point: Tensor,
        normal: Tensor,
        column: Tensor,
        *,
        has_shadows: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Light that points (3,S) scatter.

        Returns:
            Light S; how much of each light they see (L,S), from 0 to 1; unit vectors to the lights
            (3,L,S); whether they lie in the rim of a shadow, S.
        """
        lights = per_view(stage.lights.permute(2, 1, 0), rays.view)
        to_light = lights[:3] - point[:, None]
        away = length_of(to_light)
        unit = to_light / away
        soft = lights[3] / away
        facing = dot(unit, normal[:, None])
        # A light with a size sets gradually: by the square, until all of it is above the horizon.
        lit = (facing + soft).clamp_min(0.0)
        lit = torch.minimum(lit, 2.0 * soft).square() / (4.0 * soft) + (facing - soft).clamp_min(
            0.0
        )
        is_lit = lit > 0.0
        near = _neighbors(solids, rays.view, point, column)
        share = SKY_LIGHT * (0.5 + 0.5 * normal[2]) + BOUNCE * (0.5 - 0.5 * normal[2])
        scattered = share * _openness(solids, near, normal)
        seen = torch.ones_like(lit)
        is_rim = torch.zeros_like(column, dtype=torch.bool)
        if has_shadows:
            seen = self._seen(stage, solids, rays, point, near, unit, soft, is_lit)
            is_rim = ((seen > 0.0) & (seen < 1.0)).any(0)
        bright = lights[4] * seen
        scattered = scattered + (lit * bright).sum(0)
        return scattered, bright * is_lit, unit, is_rim

    def _seen(
        self,
        stage: Stage,
        solids: Solids,
        rays: Rays,
        point: Tensor,
        near: _Neighbors,
        unit: Tensor,
        soft: Tensor,
        is_lit: Tensor,
    ) -> Tensor:
        """How much of each light (L,S) points see past other solids, by `LIGHT_SAMPLES` rays."""
        # The rays to a light fill a cone; most solids are wholly beside it.
        along = dot(near.gap[:, None], take(unit.flatten(2), near.point))
        reach = take(solids.columns[BOUND : BOUND + 1], near.column)
        reach = reach + take(soft.flatten(1), near.point) * along.clamp_min(0.0)
        is_near = near.square * (1.0 - 1e-5) - along * along <= reach * reach
        is_near &= (along > 0.0) & take(is_lit.flatten(1), near.point)
        index = is_near.flatten().nonzero()[:, 0]
        light, pair = index // len(near.point), index % len(near.point)
        ray, column = near.point[pair], near.column[pair]
        num_points = is_lit[0].numel()
        view = rays.view.reshape(-1)[ray]
        start, way = take(point.flatten(1), ray), take(unit.flatten(1), light * num_points + ray)
        side = torch.stack([-way[1], way[0], torch.zeros_like(way[0])])
        side = side / length_of(side).clamp_min(1e-9)
        up = torch.linalg.cross(way, side, dim=0)
        table = take(stage.lights.permute(2, 1, 0).flatten(1), light * solids.num_views + view)
        offset = take(self._pattern, rays.phase.reshape(-1)[ray]) * table[3]
        target = table[:3] - start
        target = target[:, None] + offset[0] * side[:, None] + offset[1] * up[:, None]
        reach = length_of(target)
        met = lengths(solids, column, start, target / reach)
        is_hidden = torch.zeros(LIGHT_SAMPLES * is_lit.numel(), dtype=torch.bool, device=met.device)
        sample = torch.arange(LIGHT_SAMPLES, device=met.device)[:, None] * is_lit.numel()
        is_hidden[(sample + light * num_points + ray)[met < reach]] = True
        return 1.0 - is_hidden.view(LIGHT_SAMPLES, *is_lit.shape).float().mean(0)

    def _glossy(
        self,
        stage: Stage,
        solids: Solids,
        rays: Rays,
        point: Tensor,
        normal: Tensor,
        column: Tensor,
        shone: tuple[Tensor, Tensor],
    ) -> Tensor:
        """What points (3,P) of solids show beside what they scatter: highlights, mirrors in metal.

        Args:
            stage: what there is.
            solids: those of the stage.
            rays: P of them, that met solids.
            point: (3,P) there.
            normal: (3,P) there.
            column: (P,) of the solids.
            shone: how bright each light is there (L,P), and where it is (3,L,P).
        """
        bright, to_light = shone
        half = to_light - rays.direction[:, None]
        half = half / length_of(half).clamp_min(1e-9)
        tilt = dot(half, normal[:, None]).clamp_min(0.0)
        is_metal = solids.columns[IS_METAL, column] > 0.0
        shine = torch.where(is_metal, _METAL_SHINE, _RUBBER_SHINE)
        gloss = torch.where(is_metal, 0.8, 0.05)
        added = (gloss * (bright * tilt**shine).sum(0)).expand(3, -1).clone()
        metal = is_metal.nonzero()[:, 0]
        if not len(metal):
            return added
        color = take(solids.columns[RED : BLUE + 1], column[metal])
        way, outward = take(rays.direction, metal), take(normal, metal)
        facing = -dot(way, outward)
        mirrored = Rays(
            rays.view[metal], take(point, metal), way + 2.0 * facing * outward, rays.phase[metal]
        )
        image, *_ = self._look(stage, solids, mirrored, column[metal])
        # Metals colour what they mirror, less so at a grazing angle (Schlick's approximation).
        grazing = (1.0 - facing.clamp_min(0.0)) ** 5
        return added.index_add_(1, metal, (color + (1.0 - color) * grazing) * image)


def _reach(stage: Stage) -> Tensor:
    """How far from the axis of each solid (N,M) it can shade anything that is above the ground."""
    rows, lights = stage.rows, stage.lights[:, None]
    bound = rows[..., BOUND]
    top = rows[..., Z] + bound
    flat = (lights[..., :2] - rows[:, :, None, X:Z]).square().sum(-1).sqrt()
    above = (lights[..., 2] - lights[..., 3] - top[..., None]).clamp_min(1e-3)
    shadow = top[..., None] * (flat + bound[..., None] + lights[..., 3]) / above
    ball = _OPEN_REACH * (_BALL * rows[..., HALF_WIDTH] * rows[..., HALF_HEIGHT]).sqrt()
    return bound + torch.maximum(shadow.amax(-1), ball)


def _neighbors(solids: Solids, view: Tensor, point: Tensor, column: Tensor) -> _Neighbors:
    """The solids that may shade points (3,S), but the ones that they are of (S)."""
    place = solids.beside(view, X, Z)
    reach = solids.beside(view, _REACH, _REACH + 1)[0]
    x, y = place[0] - point[0], place[1] - point[1]
    index = (x * x + y * y <= reach * reach).flatten().nonzero()[:, 0]
    ray = index % view.numel()
    found = view.reshape(-1)[ray] * solids.num_solids + index // view.numel()
    is_other = (found != column.flatten()[ray]).nonzero()[:, 0]
    ray, found = ray[is_other], found[is_other]
    gap = take(solids.columns[X : Z + 1], found) - take(point.flatten(1), ray)
    return _Neighbors(ray, found, gap, dot(gap, gap))


def _openness(solids: Solids, near: _Neighbors, normal: Tensor) -> Tensor:
    """How much of the light from all sides reaches points S, with every solid taken for a ball."""
    facing = dot(near.gap, take(normal.flatten(1), near.point))
    width, height = take(solids.columns[HALF_WIDTH : HALF_HEIGHT + 1], near.column)
    ball = _BALL * width * height
    cover = facing * ball / (near.square * near.square.sqrt())
    cover = (cover * (near.square < _OPEN_REACH**2 * ball)).clamp(0.0, 0.85)
    total = torch.zeros_like(normal[0]).flatten()
    return total.index_add_(0, near.point, torch.log1p(-cover)).exp_().view(normal[0].shape)


def _is_edge(light: Tensor) -> Tensor:
    """Which pixels (N,H,W) of (3,N,H,W) differ from one of their four neighbours."""
    is_edge = torch.zeros(light.shape[1:], dtype=torch.bool, device=light.device)
    for dim in (2, 3):
        here = light.narrow(dim, 1, light.shape[dim] - 1)
        there = light.narrow(dim, 0, light.shape[dim] - 1)
        # In proportion, as the eye sees it.
        differs = ((here - there).abs() > CONTRAST * (here + there + 0.2)).any(0)
        is_edge.narrow(dim - 1, 1, differs.shape[dim - 1]).logical_or_(differs)
        is_edge.narrow(dim - 1, 0, differs.shape[dim - 1]).logical_or_(differs)
    return is_edge
