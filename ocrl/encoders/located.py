"""Located slots: slot attention whose slots have a place and a size in the picture.

B batch, K slots, D slot size, N tokens, F token features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ocrl.initializers import preheat_aux, start_queries
from ocrl.interfaces import Backbone, Initializer, RecurrentSlotEncoder, State
from ocrl.nn.attention import EpsPlacement, standardize
from ocrl.nn.location import cell_centres, follow, log_density, spread_places
from ocrl.nn.slot_attention import Corrector, resolve_start, select_start
from ocrl.types import SlotOutput


class LocatedSlots(RecurrentSlotEncoder):
    """Slots that compete with what they look for **and** with where they are.

    Slot attention tells two things of one look apart only if their place has found its way into
    learned features, which takes long. Here every slot also is a round Gaussian on the picture:
    its log density is added to the logits of the competition, and each round moves it to the mean
    and the spread of what it won, as in a mixture of Gaussians. Slots thus slide to the nearest
    thing and follow it. The first `num_grounds` slots have no place: for them all of the picture
    is equally likely, so they hold the ground. A priori they own half of it, and the others share
    the other half, and queries start at zero: else things and ground are told apart by chance.

    Ours. Places and scales of slots that follow the attention are those of Invariant Slot
    Attention (Biza et al. 2023, arXiv 2302.04973, section 3.2), which gives keys and values
    coordinates relative to them instead; competition by a Gaussian is that of the Slot Mixture
    Module (Kirilenko et al. 2024, arXiv 2311.04640), there over features. Frames after the first
    start from the slots, places and scales of the last one; there is no predictor.

    `aux` holds `places` (B,T,K,2), as (y, x) in [0,1], and `scales` (B,T,K,1); those of a ground
    slot are the mean and spread of what it won, too.

    Args:
        backbone: frames to tokens.
        initializer: the queries of a first frame.
        num_slots: K.
        slot_dim: D.
        num_grounds: slots without a place.
        num_iterations_first: rounds of competition on a first frame.
        num_iterations_rest: rounds on later frames.
        num_prior_tokens: how many tokens a slot's last place and its first scale count for, when
            it moves to those it won.
        min_scale: the least standard deviation of a Gaussian, in sides of the picture.
        mlp_dim: hidden size of the residual MLP; no MLP if None.
        eps_placement: see `Corrector`.
        modulation: see `Corrector`.

    Raises:
        ValueError: if not at least one slot has a place, or `num_prior_tokens` or
            `min_scale` is not positive.
    """

    coordinates: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        initializer: Initializer,
        num_slots: int,
        slot_dim: int,
        num_grounds: int,
        num_iterations_first: int,
        num_iterations_rest: int,
        num_prior_tokens: float,
        min_scale: float,
        mlp_dim: int | None,
        eps_placement: EpsPlacement,
        modulation: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= num_grounds < num_slots:
            raise ValueError(
                f"num_grounds must be in [0, num_slots={num_slots}), got {num_grounds}"
            )
        for name, value in (("num_prior_tokens", num_prior_tokens), ("min_scale", min_scale)):
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self.num_slots = num_slots
        self.slot_dim = slot_dim
        self.num_grounds = num_grounds
        self.num_iterations_first = num_iterations_first
        self.num_iterations_rest = num_iterations_rest
        self.num_prior_tokens = num_prior_tokens
        self.min_scale = min_scale
        self.backbone = backbone
        self.initializer = initializer
        self.corrector = Corrector(
            backbone.out_dim,
            slot_dim=slot_dim,
            mlp_dim=mlp_dim,
            gradient="full",
            eps_placement=eps_placement,
            modulation=modulation,
        )
        # At first places alone count: looks drawn at random would choose which slot is the ground.
        nn.init.zeros_(self.corrector.attention.to_q.weight)
        num_places = num_slots - num_grounds
        self.log_odds = math.log(num_places / max(num_grounds, 1))
        self.places = nn.Parameter(spread_places(num_places))
        self.log_scales = nn.Parameter(torch.full((num_places, 1), -0.5 * math.log(4 * num_places)))
        self.register_buffer("coordinates", cell_centres(backbone.grid), persistent=False)

    def initial_state(self, batch_size: int) -> State:
        """What the next frame starts from.

        Slots (B,K,D); places (B,K,2); log scales, the scales of the prior and the share of place
        in their logits (B,K,1); and whether there was no frame yet (B,).
        """
        weight = self.corrector.norm_slots.weight

        def zeros(size: int) -> Tensor:
            return weight.new_zeros(batch_size, self.num_slots, size)

        return {
            "slots": zeros(self.slot_dim),
            "places": zeros(2),
            "log_scales": zeros(1),
            "prior_scales": zeros(1),
            "is_located": zeros(1),
            "is_fresh": torch.ones(batch_size, dtype=torch.bool, device=weight.device),
        }

    def _start(self, slots: Tensor) -> State:
        """The state before a first frame, with its queries (B,K,D)."""

        def expand(located: Tensor, ground: float) -> Tensor:
            grounds = located.new_full((self.num_grounds, located.shape[-1]), ground)
            return torch.cat([grounds, located]).expand(len(slots), -1, -1)

        return {
            "slots": slots,
            "places": expand(self.places, 0.5),
            "log_scales": expand(self.log_scales, 0.0),
            "prior_scales": expand(self.log_scales.exp(), 1.0),
            "is_located": expand(torch.ones_like(self.log_scales), 0.0),
        }

    def _settle(self, state: State, tokens: Tensor, *, num_iterations: int) -> tuple[State, Tensor]:
        """Rounds of competition on standardized tokens (B,N,F); the new state and attn (B,K,N)."""
        slots, places, log_scales = state["slots"], state["places"], state["log_scales"]
        is_located = state["is_located"]
        for _ in range(num_iterations):
            density = log_density(places, log_scales, self.coordinates)
            bias = is_located * (density - self.log_odds)
            slots, attn = self.corrector.iterate(slots, tokens, bias=bias)
            places, variances = follow(
                attn,
                self.coordinates,
                places=places,
                prior_scales=state["prior_scales"],
                num_prior_tokens=self.num_prior_tokens,
            )
            log_scales = 0.5 * (variances + self.min_scale**2).log()
        return {
            "slots": slots,
            "places": places,
            "log_scales": log_scales,
            "prior_scales": state["prior_scales"],
            "is_located": is_located,
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
        """Bind one frame, see `RecurrentSlotEncoder.bind`.

        Raises:
            ValueError: if there are the tokens of several views: a place is one on one picture.
        """
        if tokens.shape[1] != len(self.coordinates):
            raise ValueError(
                f"expected the {len(self.coordinates)} tokens of one view, got {tokens.shape[1]}: "
                "located slots stand on one picture"
            )
        start = resolve_start(is_first, state["is_fresh"])
        normal = standardize(tokens)
        first = rest = preheated = None
        if start is not False:
            fresh, preheated = start_queries(self.initializer, tokens, condition=condition)
            first = self._settle(
                self._start(fresh), normal, num_iterations=self.num_iterations_first
            )
        if start is not True:
            rest = self._settle(state, normal, num_iterations=self.num_iterations_rest)
        new = {
            name: select_start(start, first and first[0][name], rest and rest[0][name])
            for name in ("slots", "places", "log_scales", "prior_scales", "is_located")
        }
        attn = select_start(start, first and first[1], rest and rest[1])
        aux = {
            **preheat_aux(self.initializer, preheated, new["slots"], start),
            "places": new["places"][:, None],
            "scales": new["log_scales"].exp()[:, None],
        }
        output = SlotOutput(new["slots"][:, None], attn[:, None], aux=aux)
        return output, {**new, "is_fresh": torch.zeros_like(state["is_fresh"])}
