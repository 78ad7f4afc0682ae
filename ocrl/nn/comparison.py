"""How each slot of a set differs from the others.

K slots, F features of one.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn


class PairComparison(nn.Module):
    """What comes of the differences between a slot and each of its set, for each slot.

    A layer reads the absolute differences of each pair, feature by feature, and a slot is given the
    mean over its pairs: "alike in this, unlike in that" is plain there, where attention has to make
    it from products. The pair with itself, whose differences are zero, counts among them if the
    slot is present. Nothing is learned before slots are compared, so two of a kind are alike from
    the first step on, and a relation is learned from few examples, for it can not be told by heart
    from what the slots are: a relational bottleneck (Webb et al. 2024, arXiv 2309.06629) beside the
    slots themselves. A relation network (Santoro et al. 2017, arXiv 1706.01427) of distances
    instead of pairs, with one result for each slot. Ours.

    Args:
        slot_dim: F.
        dim: of the hidden layer and of the result.
    """

    def __init__(self, slot_dim: int, *, dim: int) -> None:
        super().__init__()
        self.to_pairs = nn.Linear(slot_dim, dim)
        self.from_pairs = nn.Linear(dim, dim)

    def forward(self, slots: Tensor, is_present: Tensor | None = None) -> Tensor:
        """Compare.

        Args:
            slots: (...,K,F).
            is_present: (...,K) bool, whom slots are compared with; None for all.

        Returns:
            (...,K,dim).
        """
        first, second = (rearrange(slots, f"... k f -> ... {to}") for to in ("k 1 f", "1 k f"))
        pairs = self.to_pairs((first - second).abs()).relu()
        among = None if is_present is None else is_present[..., None, :]
        return torch.as_tensor(self.from_pairs(mean_of_present(pairs, among)))


def mean_of_present(values: Tensor, is_present: Tensor | None) -> Tensor:
    """Mean (...,D) of the present ones of (...,K,D); zero where there are none."""
    if is_present is None:
        return values.mean(dim=-2)
    weight = is_present[..., None].to(values.dtype)
    return (values * weight).sum(dim=-2) / weight.sum(dim=-2).clamp(min=1.0)
