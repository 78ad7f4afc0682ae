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
from ocrl.nn.rays import check_plane, points_on_plane

NUM_COLUMNS = 4
"""Columns of a token that say where it is, the one that all tokens have included."""


class Standing(NamedTuple):
    """Where slots are: Gaussians on the floor.

    Attributes:
        places: (...,K,2) means, from the centre.
        log_scales: (...,K,1) logarithms of the standard deviation.
    """

    places: Tensor
    log_scales: Tensor


class FloorPlaces(nn.Module):
    """Places of slots on a floor, told by where the rays of the tokens they win meet it.

    A round Gaussian's log density is linear in (1, x, y, x^2 + y^2), so four columns of tokens and
    of queries carry it through the products of a competition, and what the competition sums of
    those columns is the mass, the mean and the spread of what each slot won: no map over slots and
    tokens is made for it. The plane-parallax of what stands above the plane remains: a thing is
    where its middle seems to stand. Ours; `ocrl.encoders.placed` triangulates instead, frame by
    frame.

    The first `num_grounds` slots have no place: for them all points within `radius` are equally
    likely, and a priori they own half of the tokens.

    Args:
        num_slots: K.
        num_grounds: slots without a place.
        plane: see `ocrl.nn.rays.check_plane`.
        center: (x, y) where slots are looked for first, in units of the world.
        radius: around it.
        num_prior_tokens: how many tokens a slot's first place and scale count for.
        min_scale: the least standard deviation of a Gaussian, in units of the world.

    Raises:
        ValueError: if not at least one slot has a place, there is no plane, or a number is not
            positive.
    """

    def __init__(
        self,
        num_slots: int,
        *,
        num_grounds: int,
        plane: Sequence[float],
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
        checked = check_plane(plane)
        if checked is None:
            raise ValueError(
                "expected a plane where slots stand, its height and reach such as [0.3, 14], got "
                "none"
            )
        self.plane = checked
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
        """What tokens with rays (...,N,7) have beside the one: x, y, x^2 + y^2 (...,N,3)."""
        points = points_on_plane(rays[..., :3], rays[..., 3:6], plane=self.plane) - self.center
        return torch.cat([points, points.square().sum(-1, keepdim=True)], dim=-1)

    def start(self) -> Standing:
        """Before any token is seen: (K,2) and (K,1)."""
        padding = (0, 0, self.num_grounds, 0)
        return Standing(
            nn.functional.pad(self.places, padding), nn.functional.pad(self.log_scales, padding)
        )

    def query(self, standing: Standing) -> Tensor:
        """The columns (...,K,4) of queries whose product with those of tokens is the log density.

        It is relative to the uniform density, and zero for a ground.
        """
        precision = (-2 * standing.log_scales).exp()
        places = standing.places
        constant = self.constant - 2 * standing.log_scales
        constant = constant - 0.5 * precision * places.square().sum(-1, keepdim=True)
        query = torch.cat([constant, precision * places, -0.5 * precision], dim=-1)
        return query * self._is_placed(query)

    def move(self, sums: Tensor) -> Standing:
        """To what slots won, held back by where they were first.

        Args:
            sums: (...,K,4) of the columns of tokens, weighted by what slots won of each.
        """
        start, prior = self.start(), self.num_prior_tokens
        mass, first, second = sums.split([1, 2, 1], dim=-1)
        places = (first + prior * start.places) / (mass + prior)
        # Of sums of squares about the mean, half is the variance of an axis.
        about = second - 2 * (places * first).sum(-1, keepdim=True)
        about = about + mass * places.square().sum(-1, keepdim=True)
        spread = 0.5 * about.clamp_min(0.0) + prior * (2 * start.log_scales).exp()
        variances = spread / (mass + prior) + self.min_scale**2
        return Standing(places, 0.5 * variances.log())

    def in_world(self, standing: Standing) -> tuple[Tensor, Tensor]:
        """Places (...,K,3) in the world, and whether slots have one (...,K,1)."""
        places = standing.places + self.center
        height = torch.full_like(places[..., :1], self.plane[0])
        is_placed = self._is_placed(places).expand_as(height)
        return torch.cat([places, height], dim=-1), is_placed

    def _is_placed(self, like: Tensor) -> Tensor:
        number = torch.arange(like.shape[-2], device=like.device)
        return (number >= self.num_grounds).to(like.dtype)[:, None]
