"""The corrector: iterated slot attention on the tokens of one frame.

B batch, K slots, D slot size, N tokens, F token features.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from ocrl.nn.attention import CompetitiveAttention, EpsPlacement, standardize
from ocrl.nn.mlp import MLP
from ocrl.nn.slot_round import slot_round

Gradient = Literal["bilevel", "full", "truncated"]
Beside = TypeVar("Beside")


class Corrector(nn.Module):
    """Slot attention: slots compete for tokens and are updated by a GRU, several times over.

    Locatello et al. (2020, arXiv 2006.15055, algorithm 1). Differs from the paper in what is an
    argument here: the gradient, where eps stands, and the residual MLP (SAVi has none). The
    competition and the GRU are float32 whatever the autocast, and so are the slots.

    Args:
        token_dim: F.
        slot_dim: D.
        mlp_dim: hidden size of the residual MLP after the GRU; no MLP if None.
        gradient: `full` through all iterations; `truncated` through the last one only, so that
            the queries get none if there are several (Chang et al. 2022, arXiv 2207.00787);
            `bilevel` likewise, and straight through from the last iteration to the queries
            (Jia et al. 2023, BO-QSA, arXiv 2210.08990).
        eps_placement: see `ocrl.nn.attention.competitive_read`.
        modulation: see `ocrl.nn.attention.CompetitiveAttention`.

    Raises:
        ValueError: if `gradient` is unknown, or `modulation` negative.
    """

    def __init__(
        self,
        token_dim: int,
        *,
        slot_dim: int,
        mlp_dim: int | None,
        gradient: Gradient,
        eps_placement: EpsPlacement,
        modulation: float = 0.0,
    ) -> None:
        super().__init__()
        self.gradient = check_gradient(gradient)
        self.norm_slots = nn.LayerNorm(slot_dim)
        self.attention = CompetitiveAttention(
            token_dim, slot_dim=slot_dim, eps_placement=eps_placement, modulation=modulation
        )
        self.gru = nn.GRUCell(slot_dim, slot_dim)
        self.mlp: MLP | None = None
        if mlp_dim is not None:
            self.mlp = MLP(slot_dim, hidden_dims=[mlp_dim], out_dim=slot_dim, norm_first=True)

    def forward(
        self, queries: Tensor, tokens: Tensor, *, num_iterations: int
    ) -> tuple[Tensor, Tensor]:
        """Bind tokens (B,N,F), starting from queries (B,K,D).

        Returns:
            Slots (B,K,D) and the last softmax over slots (B,K,N), both float32 (float64 for
            float64 input).

        Raises:
            ValueError: if `num_iterations` is not positive.
        """
        queries = queries.to(torch.promote_types(queries.dtype, torch.float32))
        tokens = standardize(tokens)
        return unroll(
            lambda slots: self.iterate(slots, tokens),
            queries,
            num_iterations=num_iterations,
            gradient=self.gradient,
        )

    def iterate(
        self, slots: Tensor, tokens: Tensor, *, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One round on standardized tokens (B,N,F), `bias` (B,K,N) added to the logits.

        Returns:
            Slots (B,K,D), and the softmax over slots (B,K,N).
        """
        if torch.compiler.is_compiling() or self.attention.modulation:
            updates, attn = self.attention(self.norm_slots(slots), tokens, bias=bias)
            with torch.autocast(slots.device.type, enabled=False):
                hidden = self.gru(updates.to(slots.dtype).flatten(0, 1), slots.flatten(0, 1))
            slots = hidden.view_as(slots)
        else:
            slots, attn = slot_round(
                slots,
                tokens,
                norm=self.norm_slots,
                attention=self.attention,
                gru=self.gru,
                bias=bias,
            )
        if self.mlp is not None:
            slots = slots + self.mlp(slots)
        return slots, attn


def check_gradient(gradient: str) -> Gradient:
    """Refuse an unknown gradient through iterations.

    Raises:
        ValueError: if `gradient` is unknown.
    """
    if gradient not in ("bilevel", "full", "truncated"):
        raise ValueError(f"gradient must be 'bilevel', 'full' or 'truncated', got {gradient!r}")
    return cast(Gradient, gradient)


def unroll(
    iterate: Callable[[Tensor], tuple[Tensor, Beside]],
    queries: Tensor,
    *,
    num_iterations: int,
    gradient: Gradient,
) -> tuple[Tensor, Beside]:
    """Iterate from queries (B,K,...), with the gradient that `Corrector` describes.

    Args:
        iterate: (B,K,...) to the next (B,K,...) and something beside it.
        queries: where to start.
        num_iterations: how often.
        gradient: see `Corrector`.

    Returns:
        What the last iteration gave.

    Raises:
        ValueError: if `num_iterations` is not positive.
    """
    if num_iterations < 1:
        raise ValueError(f"num_iterations must be at least 1, got {num_iterations}")
    slots = queries
    if num_iterations > 1:
        with nullcontext() if gradient == "full" else torch.no_grad():
            for _ in range(num_iterations - 1):
                slots, _ = iterate(slots)
        if gradient == "bilevel":
            slots = slots + (queries - queries.detach())
    return iterate(slots)


def resolve_start(is_first: Tensor | bool, is_fresh: Tensor) -> Tensor | bool:
    """Which samples have no earlier frame: one answer for all where that is known.

    Args:
        is_first: (B,) bool or a Python bool, as `RecurrentSlotEncoder.bind` takes it.
        is_fresh: (B,) bool, true for samples in their initial state.

    Returns:
        A Python bool if all samples agree (never under `torch.compile`, where looking would break
        the graph), else (B,) bool.
    """
    if isinstance(is_first, bool):
        return is_first
    start = is_first | is_fresh
    if torch.compiler.is_compiling():
        return start
    some, every = torch.stack([start.any(), start.all()]).tolist()
    return start if some != every else bool(every)


def select_start(start: Tensor | bool, fresh: Tensor | None, ongoing: Tensor | None) -> Tensor:
    """Take `fresh` for samples that start and `ongoing` for the others; an unused one is None."""
    if isinstance(start, bool):
        chosen = fresh if start else ongoing
        assert chosen is not None
        return chosen
    assert fresh is not None and ongoing is not None
    return torch.where(start.view(-1, *[1] * (fresh.ndim - 1)), fresh, ongoing)


def correct_frame(
    corrector: Callable[..., tuple[Tensor, Tensor]],
    tokens: Tensor,
    *,
    start: Tensor | bool,
    fresh: Tensor | None,
    ongoing: Tensor | None,
    num_iterations_first: int,
    num_iterations_rest: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Bind one frame, samples that start with one number of iterations and the others with another.

    Args:
        corrector: what binds, called as `Corrector` is.
        tokens: (B,N,F).
        start: from `resolve_start`.
        fresh: queries (B,K,D) of samples that start; None if none does.
        ongoing: queries (B,K,D) of the others; None if all start.
        num_iterations_first: iterations on a sample's first frame.
        num_iterations_rest: iterations on later frames.

    Returns:
        Slots (B,K,D), attn (B,K,N) and the queries (B,K,D) they came from.
    """
    queries = select_start(start, fresh, ongoing)
    if isinstance(start, bool) or num_iterations_first == num_iterations_rest:
        num_iterations = num_iterations_rest if start is False else num_iterations_first
        return *corrector(queries, tokens, num_iterations=num_iterations), queries
    slots_first, attn_first = corrector(queries, tokens, num_iterations=num_iterations_first)
    slots, attn = corrector(queries, tokens, num_iterations=num_iterations_rest)
    return (
        select_start(start, slots_first, slots),
        select_start(start, attn_first, attn),
        queries,
    )
