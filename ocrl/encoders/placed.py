"""Placed slots: slot attention whose slots have a place and a size in the world.

B batch, K slots, D slot size, N tokens of all views, F token features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ocrl.initializers import preheat_aux, start_queries
from ocrl.interfaces import Backbone, Initializer, RecurrentSlotEncoder, State
from ocrl.nn.attention import EpsPlacement, standardize
from ocrl.nn.location import spread_places
from ocrl.nn.slot_attention import Corrector, resolve_start, select_start
from ocrl.nn.triangulation import (
    NUM_RAY,
    distances,
    join_placed,
    log_density,
    meeting_points,
    split_placed,
)
from ocrl.types import SlotOutput


class PlacedSlots(RecurrentSlotEncoder):
    """Slots that compete with what they look for **and** with where in the world they are.

    What `LocatedSlots` are on a picture, for posed views: every slot is a round Gaussian in the
    world. Its log density as each camera sees it is added to the logits of the competition, and
    each round moves it to the point that is nearest to the rays of the tokens it won: slots are
    triangulated. The views of a thing thus belong together from the first step on, where an
    encoder that only reads rays as features has to learn geometry before it can bind. The first
    `num_grounds` slots have no place and hold the ground.

    The last four numbers of a slot are its place and whether it has one, so decoders, dynamics and
    policies know where it is; a ground's place is that of its prior.

    Ours.

    Args:
        backbone: frames to tokens that end with their rays, `SceneBackbone` with `has_rays`.
        initializer: the queries of a first frame, of which the last four numbers are not read.
        num_slots: K.
        slot_dim: D.
        num_grounds: slots without a place.
        center: (x, y, z) where slots are looked for first, in units of the world.
        radius: around it, on the ground plane.
        num_iterations_first: rounds of competition on a first frame.
        num_iterations_rest: rounds on later frames.
        num_prior_tokens: how many tokens a slot's last place and its first scale count for.
        min_scale: the least standard deviation of a Gaussian, in units of the world.
        mlp_dim: hidden size of the residual MLP; no MLP if None.
        eps_placement: see `Corrector`.

    Raises:
        ValueError: if not at least one slot has a place, a number is not positive, the backbone's
            tokens have no rays, or slots are too small to hold a place.
    """

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
    ) -> None:
        super().__init__()
        if not 0 <= num_grounds < num_slots:
            raise ValueError(
                f"num_grounds must be in [0, num_slots={num_slots}), got {num_grounds}"
            )
        for name, value in (
            ("radius", radius),
            ("num_prior_tokens", num_prior_tokens),
            ("min_scale", min_scale),
        ):
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if not backbone.has_rays:
            raise ValueError(
                "expected a backbone whose tokens end with their rays, such as "
                "backbone@encoder.backbone=scene_rays, a SceneBackbone with has_rays, got "
                f"{type(backbone).__name__} without them"
            )
        features, _, _ = split_placed(torch.empty(1, slot_dim))
        self.num_slots = num_slots
        self.slot_dim = slot_dim
        self.feature_dim = features.shape[-1]
        self.num_grounds = num_grounds
        self.num_iterations_first = num_iterations_first
        self.num_iterations_rest = num_iterations_rest
        self.num_prior_tokens = num_prior_tokens
        self.min_scale = min_scale
        self.backbone = backbone
        self.initializer = initializer
        self.corrector = Corrector(
            backbone.out_dim - NUM_RAY,
            slot_dim=self.feature_dim,
            mlp_dim=mlp_dim,
            gradient="full",
            eps_placement=eps_placement,
        )
        # At first places alone count: looks drawn at random would choose which slot is the ground.
        nn.init.zeros_(self.corrector.attention.to_q.weight)
        num_places = num_slots - num_grounds
        self.log_odds = math.log(num_places / max(num_grounds, 1))
        on_plane = nn.functional.pad((spread_places(num_places) - 0.5) / 0.42 * radius, (0, 1))
        self.places = nn.Parameter(on_plane + torch.tensor([float(number) for number in center]))
        scale = radius / math.sqrt(2 * num_places)
        self.log_scales = nn.Parameter(torch.full((num_places, 1), math.log(scale)))

    def initial_state(self, batch_size: int) -> State:
        """What the next frame starts from.

        Slots (B,K,D-4); places (B,K,3); log scales, the scales of the prior and the share of place
        in their logits (B,K,1); and whether there was no frame yet (B,).
        """
        weight = self.corrector.norm_slots.weight

        def zeros(size: int) -> Tensor:
            return weight.new_zeros(batch_size, self.num_slots, size)

        return {
            "slots": zeros(self.feature_dim),
            "places": zeros(3),
            "log_scales": zeros(1),
            "prior_scales": zeros(1),
            "is_placed": zeros(1),
            "is_fresh": torch.ones(batch_size, dtype=torch.bool, device=weight.device),
        }

    def _start(self, slots: Tensor) -> State:
        """The state before a first frame, with its queries (B,K,D-4)."""

        def expand(placed: Tensor, ground: Tensor) -> Tensor:
            grounds = ground.expand(self.num_grounds, placed.shape[-1])
            return torch.cat([grounds, placed]).expand(len(slots), -1, -1)

        zero = self.log_scales.new_zeros(1)
        return {
            "slots": slots,
            "places": expand(self.places, self.places.detach().mean(0)),
            "log_scales": expand(self.log_scales, zero),
            "prior_scales": expand(self.log_scales.exp(), zero + 1),
            "is_placed": expand(torch.ones_like(self.log_scales), zero),
        }

    def _settle(
        self, state: State, tokens: Tensor, rays: Tensor, *, num_iterations: int
    ) -> tuple[State, Tensor]:
        """Rounds of competition on standardized tokens (B,N,F); the new state and attn (B,K,N)."""
        slots, places, log_scales = state["slots"], state["places"], state["log_scales"]
        is_placed = state["is_placed"]
        squares, along = distances(places, rays)
        for _ in range(num_iterations):
            density = log_density(squares, along, log_scales, rays)
            bias = is_placed * (density - self.log_odds)
            slots, attn = self.corrector.iterate(slots, tokens, bias=bias)
            moved = meeting_points(
                attn, rays, places=places, num_prior_tokens=self.num_prior_tokens
            )
            places = torch.where(is_placed > 0, moved, places)
            squares, along = distances(places, rays)
            total = attn.sum(dim=-1, keepdim=True)
            # Two directions across a ray, so half of the squares is the variance of one.
            spread = 0.5 * (attn * squares).sum(dim=-1, keepdim=True)
            prior = self.num_prior_tokens * state["prior_scales"].square()
            variances = (spread + prior) / (total + self.num_prior_tokens)
            log_scales = 0.5 * (variances + self.min_scale**2).log()
        return {
            "slots": slots,
            "places": places,
            "log_scales": log_scales,
            "prior_scales": state["prior_scales"],
            "is_placed": is_placed,
        }, attn

    def bind(
        self,
        tokens: Tensor,
        state: State,
        is_first: Tensor | bool,
        *,
        action: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> tuple[SlotOutput, State]:
        """Bind one frame, see `RecurrentSlotEncoder.bind`."""
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        features, rays = tokens.split([tokens.shape[-1] - NUM_RAY, NUM_RAY], dim=-1)
        start = resolve_start(is_first, state["is_fresh"])
        normal = standardize(features)
        first = rest = preheated = None
        if start is not False:
            queries, preheated = start_queries(self.initializer, features, condition=condition)
            fresh = queries[..., : self.feature_dim]
            first = self._settle(
                self._start(fresh), normal, rays, num_iterations=self.num_iterations_first
            )
        if start is not True:
            rest = self._settle(state, normal, rays, num_iterations=self.num_iterations_rest)
        new = {
            name: select_start(start, first and first[0][name], rest and rest[0][name])
            for name in ("slots", "places", "log_scales", "prior_scales", "is_placed")
        }
        attn = select_start(start, first and first[1], rest and rest[1])
        slots = join_placed(new["slots"], new["places"], new["is_placed"])
        aux = {
            **preheat_aux(self.initializer, preheated, new["slots"], start),
            "scales": new["log_scales"].exp()[:, None],
        }
        output = SlotOutput(slots[:, None], attn[:, None], aux=aux)
        return output, {**new, "is_fresh": torch.zeros_like(state["is_fresh"])}
