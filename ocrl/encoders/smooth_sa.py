"""SmoothSA: preheated queries, many iterations on the first frame and few later.

B batch, K slots, D slot size, N tokens, F token features, W frames of history.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ocrl.initializers import preheat_aux, start_queries
from ocrl.interfaces import Backbone, Initializer, RecurrentSlotEncoder, State
from ocrl.nn.attention import EpsPlacement
from ocrl.nn.predictor import Predictor
from ocrl.nn.slot_attention import Corrector, Gradient, correct_frame, resolve_start
from ocrl.types import SlotOutput


class SmoothSA(RecurrentSlotEncoder):
    """Smoothed slot attention iterations and recurrences (Zhao et al. 2025, arXiv 2508.05417).

    On a first frame the queries are preheated by reading the frame once, so that the first frame
    starts about as well as later ones do, and are corrected more often than later ones. The queries
    of a later frame come from past slots and the frame's own tokens. Put the objective `preheat`
    beside it: nothing else trains the preheater. Differs from the paper in that queries are
    deterministic in `eval()` (the paper's stay noisy), and in what is an argument here; the paper's
    are a `PreheatedInitializer`, 3 and 1 iterations, an MLP of four times the slot size, the
    bilevel gradient, eps on the sum and a `RandomPairPredictor`.

    `aux["preheat_queries"]` (B,T,K,D) is what the objective reads, see
    `ocrl.initializers.preheat_aux`.

    Args:
        backbone: frames to tokens.
        initializer: the queries of a first frame.
        predictor: past slots and current tokens to the queries of a later frame.
        num_slots: K.
        slot_dim: D.
        num_iterations_first: rounds of competition on a first frame.
        num_iterations_rest: rounds on later frames.
        mlp_dim: hidden size of the residual MLP; no MLP if None.
        gradient: through the iterations of one frame, see `Corrector`.
        eps_placement: see `Corrector`.
        modulation: see `Corrector`.
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
        for part in (self.corrector, self.predictor):
            for name, parameter in part.named_parameters():
                if name.rpartition(".")[-1].startswith("bias"):
                    nn.init.zeros_(parameter)

    def initial_state(self, batch_size: int) -> State:
        """Slots and tokens of past frames, the last first, and each sample's age in frames (B,).

        In `eval()` the history is one frame of slots; in training it grows to the predictor's
        window.
        """
        weight = self.corrector.norm_slots.weight
        return {
            "slots": (weight.new_zeros(batch_size, self.num_slots, self.slot_dim),),
            "tokens": (),
            "age": torch.zeros(batch_size, dtype=torch.int64, device=weight.device),
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
        start = resolve_start(is_first, state["age"] == 0)
        age = state["age"] * ~torch.as_tensor(start, device=tokens.device)
        history = (tokens, *state["tokens"])
        fresh = preheated = ongoing = None
        if start is not False:
            fresh, preheated = start_queries(self.initializer, tokens, condition=condition)
        if start is not True:
            ongoing = self.predictor(state["slots"], history, age)
        slots, attn, queries = correct_frame(
            self.corrector,
            tokens,
            start=start,
            fresh=fresh,
            ongoing=ongoing,
            num_iterations_first=self.num_iterations_first,
            num_iterations_rest=self.num_iterations_rest,
        )
        window = self.predictor.window if self.training else 1
        aux = preheat_aux(self.initializer, preheated, slots, start)
        output = SlotOutput(slots[:, None], attn[:, None], queries[:, None], aux=aux)
        return output, {
            "slots": (slots, *state["slots"])[:window],
            "tokens": history[: window - 1],
            "age": (age + 1).clamp(max=self.predictor.window),
        }
