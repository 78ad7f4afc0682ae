"""Placed slots: slot attention whose slots have a place and a size in the world.

B batch, K slots, D slot size, N tokens of all views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ocrl.encoders.gaussian_slots import GaussianSlots
from ocrl.interfaces import Backbone, Initializer, State
from ocrl.nn.attention import EpsPlacement
from ocrl.nn.location import check_placed, feature_dim, join_placed, spread_offsets
from ocrl.nn.triangulation import (
    NUM_AXES,
    NUM_RAY,
    distances,
    log_density,
    meeting_points,
)


class PlacedSlots(GaussianSlots):
    """What `LocatedSlots` are on a picture, in the world, for posed views.

    The log density of a slot's Gaussian as each camera sees it takes part in the competition, and
    each round moves the slot to the point that is nearest to the rays of the tokens it won: slots
    are triangulated. The views of a thing thus belong together from the first step on, where an
    encoder that only reads rays as features has to learn geometry before it can bind.

    The last four numbers of a slot are its place and whether it has one, so decoders, dynamics and
    policies know where it is; that of a ground is the point nearest to all it sees.

    Ours.

    Args:
        backbone: frames to tokens that end with their rays, `SceneBackbone` with `has_rays`.
        initializer: the queries of a first frame, of which the last four numbers are not read.
        num_slots: K.
        slot_dim: D.
        num_grounds: see `GaussianSlots`.
        center: (x, y, z) where slots are looked for first, in units of the world.
        radius: around it, on the ground plane.
        num_iterations_first: see `GaussianSlots`.
        num_iterations_rest: see there.
        num_prior_tokens: see there.
        min_scale: the least standard deviation of a Gaussian, in units of the world.
        mlp_dim: see `GaussianSlots`.
        eps_placement: see `Corrector`.
        modulation: see `Corrector`.
        keeps_looks: see `GaussianSlots`.

    Raises:
        ValueError: if not at least one slot has a place, a number is not positive, the backbone's
            tokens have no rays, or slots are too small to hold a place.
    """

    num_axes = NUM_AXES

    def __init__(
        self,
        backbone: Backbone,
        *,
        initializer: Initializer,
        num_slots: int,
        slot_dim: int,
        num_grounds: int,
        center: Sequence[float],
        radius: float,
        num_iterations_first: int,
        num_iterations_rest: int,
        num_prior_tokens: float,
        min_scale: float,
        mlp_dim: int | None,
        eps_placement: EpsPlacement,
        modulation: float = 0.0,
        keeps_looks: bool = True,
    ) -> None:
        check_placed(num_slots, num_grounds=num_grounds, radius=radius, min_scale=min_scale)
        if not backbone.has_rays:
            raise ValueError(
                "expected a backbone whose tokens end with their rays, such as "
                "backbone@encoder.backbone=scene_rays, a SceneBackbone with has_rays, got "
                f"{type(backbone).__name__} without them"
            )
        look_dim = feature_dim(slot_dim, num_axes=NUM_AXES)
        num_places = num_slots - num_grounds
        middle = torch.tensor([float(number) for number in center])
        super().__init__(
            backbone,
            initializer=initializer,
            num_slots=num_slots,
            slot_dim=slot_dim,
            look_dim=look_dim,
            num_position_features=NUM_RAY,
            num_grounds=num_grounds,
            num_iterations_first=num_iterations_first,
            num_iterations_rest=num_iterations_rest,
            num_prior_tokens=num_prior_tokens,
            mlp_dim=mlp_dim,
            eps_placement=eps_placement,
            modulation=modulation,
            keeps_looks=keeps_looks,
            places=middle + nn.functional.pad(spread_offsets(num_places, radius=radius), (0, 1)),
            ground_place=middle,
            scale=radius / math.sqrt(2 * num_places),
        )
        self.min_scale = min_scale

    def density(self, places: Tensor, log_scales: Tensor, seen: Tensor) -> Tensor:
        """As cameras see it, see `GaussianSlots.density` and `ocrl.nn.triangulation`."""
        return log_density(*distances(places, seen), log_scales, seen)

    def move(
        self, attn: Tensor, seen: Tensor, *, places: Tensor, prior_scales: Tensor
    ) -> tuple[Tensor, Tensor]:
        """To where the rays meet, see `GaussianSlots.move`."""
        prior = self.num_prior_tokens
        places = meeting_points(attn, seen, places=places, num_prior_tokens=prior)
        squares, _ = distances(places, seen)
        # Two directions across a ray, so half of the squares is the variance of one.
        spread = 0.5 * (attn * squares).sum(dim=-1, keepdim=True)
        total = attn.sum(dim=-1, keepdim=True)
        variances = (spread + prior * prior_scales.square()) / (total + prior)
        return places, 0.5 * (variances + self.min_scale**2).log()

    def output(self, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Slots that end with their places; beside them the scales (B,K,1)."""
        slots = join_placed(state["slots"], state["places"], state["is_placed"])
        return slots, {"scales": state["log_scales"].exp()}
