"""How each slot of a set differs from the others.

K slots, F features of one, P features that are compared.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ocrl.nn.mlp import MLP


class PairComparison(nn.Module):
    """What comes of the differences between a slot and each of the others, for each slot.

    An MLP makes a few normalised features of each slot, a layer reads the absolute differences of
    each pair, and a slot is given the mean over its pairs: "alike in this, unlike in that" is plain
    there, where attention has to make it from products. A relation network (Santoro et al. 2017,
    arXiv 1706.01427) of distances instead of pairs, with one result for each slot. Ours.

    Args:
        slot_dim: F.
        pair_dim: P.
        dim: of the hidden layers and of the result.
    """

    def __init__(self, slot_dim: int, *, pair_dim: int, dim: int) -> None:
        super().__init__()
        self.to_compared = MLP(slot_dim, hidden_dims=[dim], out_dim=pair_dim)
        self.norm_compared = nn.LayerNorm(pair_dim)
        self.to_pairs = nn.Linear(pair_dim, dim)
        self.from_pairs = nn.Linear(dim, dim)

    def forward(self, slots: Tensor, is_present: Tensor | None = None) -> Tensor:
        """Compare.

        Args:
            slots: (...,K,F).
            is_present: (...,K) bool, whom slots are compared with; None for all.

        Returns:
            (...,K,dim).
        """
        compared = self.norm_compared(self.to_compared(slots))
        first, second = (rearrange(compared, f"... k f -> ... {to}") for to in ("k 1 f", "1 k f"))
        pairs = self.to_pairs((first - second).abs()).relu()
        among = None if is_present is None else is_present[..., None, :]
        return torch.as_tensor(self.from_pairs(mean_of_present(pairs, among)))


def mean_of_present(values: Tensor, is_present: Tensor | None) -> Tensor:
    """Mean (...,D) of the present ones of (...,K,D); zero where there are none."""
    if is_present is None:
        return values.mean(dim=-2)
    weight = is_present[..., None].to(values.dtype)
    return (values * weight).sum(dim=-2) / weight.sum(dim=-2).clamp(min=1.0)
