"""Slots that stand somewhere on a floor, for attention that is parallel over time.

... any leading axes such as B batch and T frames, K slots, N tokens of all views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ocrl.nn.location import check_placed, spread_offsets
from ocrl.nn.triangulation import NUM_AXES

NUM_COLUMNS = 7
"""Columns of a token that say where it is, the one that all tokens have included."""


class Standing(NamedTuple):
    """Where slots are: round Gaussians in the world, whose height is known.

    Attributes:
        places: (...,K,2) means, from the centre.
        log_scales: (...,K,1) logarithms of the standard deviation.
    """

    places: Tensor
    log_scales: Tensor


class FloorPlaces(nn.Module):
    """Places of slots on a floor, triangulated from the rays of the tokens they win.

    What a Gaussian in the world is to a ray depends on how far the ray passes by. The squared
    distance of a point p from a ray from o in direction d is p A p - 2 p A o + o A o with
    A = 1 - d d. Of things that stand on a floor the height is known, so six numbers of a ray say
    all that: six columns of tokens and of queries, beside the ones, carry the log density through
    the products of a competition, and what the competition sums of those columns is the least
    squares point of the rays each slot won, and how far they pass by it. No map over slots and
    tokens is made for it. Ours; `ocrl.encoders.placed` triangulates in all three axes, frame by
    frame.

    The first `num_grounds` slots have no place: for them all rays are equally likely, and a priori
    they own half of the tokens.

    Args:
        num_slots: K.
        num_grounds: slots without a place.
        center: (x, y, z) where slots are looked for first, in units of the world; z is the height
            of all of them.
        radius: around it.
        num_prior_tokens: how many tokens a slot's first place and scale count for.
        min_scale: the least standard deviation of a Gaussian, in units of the world.

    Raises:
        ValueError: if not at least one slot has a place, the centre is no point, or a number is
            not positive.
    """

    def __init__(
        self,
        num_slots: int,
        *,
        num_grounds: int,
        center: Sequence[float],
        radius: float,
        num_prior_tokens: float,
        min_scale: float,
    ) -> None:
        super().__init__()
        check_placed(
            num_slots,
            num_grounds=num_grounds,
            radius=radius,
            num_prior_tokens=num_prior_tokens,
            min_scale=min_scale,
        )
        if len(center) != NUM_AXES:
            raise ValueError(f"expected a center (x, y, z), got {list(center)}")
        self.num_grounds = num_grounds
        self.num_prior_tokens, self.min_scale = num_prior_tokens, min_scale
        num_places = num_slots - num_grounds
        # Relative to the uniform density on the disc, of which grounds have half of all tokens.
        self.constant = math.log(0.5 * radius**2 * max(num_grounds, 1) / num_places)
        self.center: Tensor
        self.register_buffer("center", torch.tensor([float(x) for x in center]), persistent=False)
        self.places = nn.Parameter(spread_offsets(num_places, radius=radius))
        scale = radius / math.sqrt(2 * num_places)
        self.log_scales = nn.Parameter(torch.full((num_places, 1), math.log(scale)))

    def columns(self, rays: Tensor) -> Tensor:
        """What tokens with rays (...,N,7) have beside the one (...,N,6).

        The upper triangle of A for x and y, A o for x and y, and o A o, where o starts from the
        centre.
        """
        origins, directions = rays[..., :3] - self.center, rays[..., 3:6]
        along = (origins * directions).sum(-1, keepdim=True)
        across = origins - along * directions
        x, y = directions[..., 0], directions[..., 1]
        matrix = torch.stack([1 - x * x, -x * y, 1 - y * y], dim=-1)
        squares = across.square().sum(-1, keepdim=True)
        return torch.cat([matrix, across[..., :2], squares], dim=-1)

    def start(self) -> Standing:
        """Before any token is seen: (K,2) and (K,1)."""
        padding = (0, 0, self.num_grounds, 0)
        return Standing(
            nn.functional.pad(self.places, padding), nn.functional.pad(self.log_scales, padding)
        )

    def query(self, standing: Standing) -> Tensor:
        """The columns (...,K,7) of queries whose product with those of tokens is the log density.

        It is relative to the uniform density, and zero for a ground.
        """
        x, y = standing.places.split(1, dim=-1)
        squares = torch.cat([x * x, 2 * x * y, y * y, -2 * x, -2 * y, torch.ones_like(x)], dim=-1)
        precision = (-2 * standing.log_scales).exp()
        constant = self.constant - 2 * standing.log_scales
        query = torch.cat([constant, -0.5 * precision * squares], dim=-1)
        return query * self._is_placed(query)

    def move(self, sums: Tensor) -> Standing:
        """To the points nearest to the rays of what slots won, held back by where they were first.

        Args:
            sums: (...,K,7) of the columns of tokens, weighted by what slots won of each.
        """
        start, prior = self.start(), self.num_prior_tokens
        mass, xx, xy, yy, x, y, squares = sums.split(1, dim=-1)
        first_x, first_y = start.places.split(1, dim=-1)
        # Two equations, solved by hand.
        right_x, right_y = x + prior * first_x, y + prior * first_y
        determinant = (xx + prior) * (yy + prior) - xy.square()
        place_x = ((yy + prior) * right_x - xy * right_y) / determinant
        place_y = ((xx + prior) * right_y - xy * right_x) / determinant
        apart = squares + place_x * (xx * place_x - 2 * x) + place_y * (yy * place_y - 2 * y)
        apart = apart + 2 * xy * place_x * place_y
        # Two directions across a ray: half of the squares is the variance of one.
        spread = 0.5 * apart.clamp_min(0.0) + prior * (2 * start.log_scales).exp()
        variances = spread / (mass + prior) + self.min_scale**2
        return Standing(torch.cat([place_x, place_y], dim=-1), 0.5 * variances.log())

    def in_world(self, standing: Standing) -> tuple[Tensor, Tensor]:
        """Places (...,K,3) in the world, and whether slots have one (...,K,1)."""
        places = nn.functional.pad(standing.places, (0, 1)) + self.center
        is_placed = self._is_placed(places).expand_as(places[..., :1])
        return places, is_placed

    def _is_placed(self, like: Tensor) -> Tensor:
        number = torch.arange(like.shape[-2], device=like.device)
        return (number >= self.num_grounds).to(like.dtype)[:, None]
