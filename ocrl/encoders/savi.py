"""SAVi: slot attention with a memory.

B batch, K slots, D slot size, N tokens, F token features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocrl.initializers import preheat_aux, start_queries
from ocrl.interfaces import Backbone, Initializer, RecurrentSlotEncoder, State
from ocrl.nn.attention import EpsPlacement
from ocrl.nn.predictor import Predictor
from ocrl.nn.slot_attention import Corrector, Gradient, correct_frame, resolve_start
from ocrl.types import SlotOutput


class SAVi(RecurrentSlotEncoder):
    """Slot Attention for Video (Kipf et al. 2022, arXiv 2111.12594, section 3).

    The corrector binds a frame, the predictor turns its slots into the queries of the next one;
    the gradient runs through all frames. Differs from the paper in that the predictor runs when
    the next frame arrives and not before, which gives the same slots, and in what is an argument
    here; SAVi-S is a learned or box initializer, 1 iteration on every frame, no MLP and one
    transformer block as predictor.

    Args:
        backbone: frames to tokens.
        initializer: the queries of a first frame.
        predictor: slots to the queries of the next frame; it may read the last frame only
            (`window` 1).
        num_slots: K.
        slot_dim: D.
        num_iterations_first: rounds of competition on a first frame.
        num_iterations_rest: rounds on later frames.
        mlp_dim: hidden size of the residual MLP; no MLP if None.
        gradient: through the iterations of one frame, see `Corrector`.
        eps_placement: see `Corrector`.
        modulation: see `Corrector`.

    Raises:
        ValueError: if the predictor reads more than the last frame.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        initializer: Initializer,
        predictor: Predictor,
        num_slots: int,
        slot_dim: int,
        num_iterations_first: int,
        num_iterations_rest: int,
        mlp_dim: int | None,
        gradient: Gradient,
        eps_placement: EpsPlacement,
        modulation: float = 0.0,
    ) -> None:
        super().__init__()
        if predictor.window != 1:
            raise ValueError(
                f"expected a predictor that reads one frame, got window {predictor.window}: "
                "SmoothSA takes such predictors"
            )
        self.num_slots = num_slots
        self.slot_dim = slot_dim
        self.num_iterations_first = num_iterations_first
        self.num_iterations_rest = num_iterations_rest
        self.backbone = backbone
        self.initializer = initializer
        self.predictor = predictor
        self.corrector = Corrector(
            backbone.out_dim,
            slot_dim=slot_dim,
            mlp_dim=mlp_dim,
            gradient=gradient,
            eps_placement=eps_placement,
            modulation=modulation,
        )

    def initial_state(self, batch_size: int) -> State:
        """Slots (B,K,D) of the last frame, and whether there was none yet (B,)."""
        weight = self.corrector.norm_slots.weight
        return {
            "slots": weight.new_zeros(batch_size, self.num_slots, self.slot_dim),
            "is_fresh": torch.ones(batch_size, dtype=torch.bool, device=weight.device),
        }

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
        start = resolve_start(is_first, state["is_fresh"])
        fresh = preheated = ongoing = None
        if start is not False:
            fresh, preheated = start_queries(self.initializer, tokens, condition=condition)
        if start is not True:
            age = (~state["is_fresh"]).long()
            ongoing = self.predictor([state["slots"]], [tokens], age)
        slots, attn, queries = correct_frame(
            self.corrector,
            tokens,
            start=start,
            fresh=fresh,
            ongoing=ongoing,
            num_iterations_first=self.num_iterations_first,
            num_iterations_rest=self.num_iterations_rest,
        )
        aux = preheat_aux(self.initializer, preheated, slots, start)
        output = SlotOutput(slots[:, None], attn[:, None], queries[:, None], aux=aux)
        return output, {"slots": slots, "is_fresh": torch.zeros_like(state["is_fresh"])}
