"""Slots that are Gaussians somewhere: what located and placed slots have in common.

B batch, K slots, D size of what a slot looks like, N tokens, F token features, P numbers of a
place.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from ocrl.initializers import preheat_aux, start_queries
from ocrl.interfaces import Backbone, Initializer, RecurrentSlotEncoder, State
from ocrl.nn.attention import EpsPlacement, standardize
from ocrl.nn.slot_attention import Corrector, resolve_start, select_start
from ocrl.types import SlotOutput

_STATE = ("slots", "places", "log_scales", "prior_scales", "is_placed")


class GaussianSlots(RecurrentSlotEncoder):
    """Slots that compete with what they look for **and** with where they are.

    Slot attention tells two things of one look apart only if their place has found its way into
    learned features, which takes long. Here every slot also is a round Gaussian: its log density
    is added to the logits of the competition, and each round moves it to the tokens it won, as in a
    mixture of Gaussians. Slots thus slide to the nearest thing and follow it. The first
    `num_grounds` slots have no place: for them all tokens are equally likely, so they hold the
    ground. A priori they own half of the tokens, and the others share the other half, and queries
    start at zero: else things and ground are told apart by chance. Frames after the first start
    from the places and scales of the last one, and from what slots looked like or, if they keep no
    looks, from the queries of the first frame; there is no predictor. Looks that are kept change a
    little with every frame, and over many more frames than training had they come to mean something
    else. Those that are read anew do not; then places alone say which slot is which.

    What a place is, and what tokens say of it, is for subclasses, and in float32 whatever the
    autocast.

    Args:
        backbone: frames to tokens.
        initializer: the queries of a first frame; of each, the first D numbers are read.
        num_slots: K.
        slot_dim: of the slots that come out.
        look_dim: D.
        num_position_features: numbers at the end of a token that say where it is, and not what.
        num_grounds: slots without a place.
        num_iterations_first: rounds of competition on a first frame.
        num_iterations_rest: rounds on later frames.
        num_prior_tokens: how many tokens a slot's last place and its first scale count for, when
            it moves to those it won.
        mlp_dim: hidden size of the residual MLP; no MLP if None.
        eps_placement: see `Corrector`.
        modulation: see `Corrector`.
        keeps_looks: whether later frames start from the looks of the last one.
        places: (K - num_grounds,P) where slots are first.
        ground_place: (P,) that grounds have first.
        scale: standard deviation of the Gaussians at first.

    Raises:
        ValueError: if not at least one slot has a place, or `num_prior_tokens` is not positive.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        initializer: Initializer,
        num_slots: int,
        slot_dim: int,
        look_dim: int,
        num_position_features: int,
        num_grounds: int,
        num_iterations_first: int,
        num_iterations_rest: int,
        num_prior_tokens: float,
        mlp_dim: int | None,
        eps_placement: EpsPlacement,
        modulation: float,
        keeps_looks: bool,
        places: Tensor,
        ground_place: Tensor,
        scale: float,
    ) -> None:
        super().__init__()
        if num_prior_tokens <= 0:
            raise ValueError(f"num_prior_tokens must be positive, got {num_prior_tokens}")
        self.num_slots = num_slots
        self.slot_dim = slot_dim
        self.look_dim = look_dim
        self.num_position_features = num_position_features
        self.num_grounds = num_grounds
        self.num_iterations_first = num_iterations_first
        self.num_iterations_rest = num_iterations_rest
        self.num_prior_tokens = num_prior_tokens
        self.keeps_looks = keeps_looks
        self.backbone = backbone
        self.initializer = initializer
        self.corrector = Corrector(
            backbone.out_dim - num_position_features,
            slot_dim=look_dim,
            mlp_dim=mlp_dim,
            gradient="full",
            eps_placement=eps_placement,
            modulation=modulation,
        )
        # At first places alone count: looks drawn at random would choose which slot is the ground.
        nn.init.zeros_(self.corrector.attention.to_q.weight)
        self.log_odds = math.log(len(places) / max(num_grounds, 1))
        self.places = nn.Parameter(places)
        self.log_scales = nn.Parameter(torch.full((len(places), 1), math.log(scale)))
        self.ground_place: Tensor
        self.register_buffer("ground_place", ground_place, persistent=False)

    @abstractmethod
    def density(self, places: Tensor, log_scales: Tensor, seen: Tensor) -> Tensor:
        """Log density (B,K,N) of tokens under the Gaussians, relative to the uniform one.

        Args:
            places: (B,K,P).
            log_scales: (B,K,1).
            seen: (B,N,S) where the tokens are, their last S = `num_position_features` numbers.
        """

    @abstractmethod
    def move(
        self, attn: Tensor, seen: Tensor, *, places: Tensor, prior_scales: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Places (B,K,P) and log scales (B,K,1) of what slots won, `attn` (B,K,N)."""

    @abstractmethod
    def output(self, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Slots (B,K,slot_dim) of a state, and what is told beside them (B,K,...)."""

    def initial_state(self, batch_size: int) -> State:
        """What the next frame starts from.

        Looks (B,K,D); places (B,K,P); log scales, the scales of the prior and the share of place in
        their logits (B,K,1); whether there was no frame yet (B,); and, if looks are not kept, the
        queries of the first frame (B,K,D).
        """
        weight = self.corrector.norm_slots.weight
        sizes = (self.look_dim, self.places.shape[-1], 1, 1, 1)
        state: State = {
            name: weight.new_zeros(batch_size, self.num_slots, size)
            for name, size in zip(_STATE, sizes, strict=True)
        }
        fresh = torch.ones(batch_size, dtype=torch.bool, device=weight.device)
        if not self.keeps_looks:
            state["queries"] = state["slots"].clone()
        return {**state, "is_fresh": fresh}

    def _start(self, slots: Tensor) -> State:
        """The state before a first frame, with its queries (B,K,D)."""

        def expand(placed: Tensor, ground: Tensor) -> Tensor:
            grounds = ground.expand(self.num_grounds, placed.shape[-1])
            return torch.cat([grounds, placed]).expand(len(slots), -1, -1)

        zero = self.log_scales.new_zeros(1)
        return {
            "slots": slots,
            "places": expand(self.places, self.ground_place),
            "log_scales": expand(self.log_scales, zero),
            "prior_scales": expand(self.log_scales.exp(), zero + 1),
            "is_placed": expand(torch.ones_like(self.log_scales), zero),
        }

    def _settle(
        self, state: State, tokens: Tensor, seen: Tensor, *, num_iterations: int
    ) -> tuple[State, Tensor]:
        """Rounds of competition on standardized tokens (B,N,F); the new state and attn (B,K,N)."""
        slots, places, log_scales, prior_scales, is_placed = (state[name] for name in _STATE)
        for _ in range(num_iterations):
            with torch.autocast(tokens.device.type, enabled=False):
                bias = is_placed * (self.density(places, log_scales, seen) - self.log_odds)
            slots, attn = self.corrector.iterate(slots, tokens, bias=bias)
            with torch.autocast(tokens.device.type, enabled=False):
                places, log_scales = self.move(attn, seen, places=places, prior_scales=prior_scales)
        settled = (slots, places, log_scales, prior_scales, is_placed)
        return dict(zip(_STATE, settled, strict=True)), attn

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
        last = self.num_position_features
        features, seen = tokens.split([tokens.shape[-1] - last, last], dim=-1)
        seen = seen.to(torch.promote_types(seen.dtype, torch.float32))
        start = resolve_start(is_first, state["is_fresh"])
        normal = standardize(features)
        first = rest = preheated = None
        fresh, ongoing = state, state
        if start is not False:
            queries, preheated = start_queries(self.initializer, features, condition=condition)
            fresh = self._start(queries[..., : self.look_dim])
            first = self._settle(fresh, normal, seen, num_iterations=self.num_iterations_first)
        if start is not True:
            if not self.keeps_looks:
                ongoing = {**state, "slots": state["queries"]}
            rest = self._settle(ongoing, normal, seen, num_iterations=self.num_iterations_rest)
        new = {
            name: select_start(start, first and first[0][name], rest and rest[0][name])
            for name in _STATE
        }
        if not self.keeps_looks:
            new["queries"] = select_start(start, fresh["slots"], ongoing["slots"])
        attn = select_start(start, first and first[1], rest and rest[1])
        slots, told = self.output(new)
        aux = {
            **preheat_aux(self.initializer, preheated, new["slots"], start),
            **{name: value[:, None] for name, value in told.items()},
        }
        output = SlotOutput(slots[:, None], attn[:, None], aux=aux)
        return output, {**new, "is_fresh": torch.zeros_like(state["is_fresh"])}
