"""How each slot of a set differs from the others.

K slots, F features of one, P = K (K-1) / 2 pairs.
"""

from __future__ import annotations

import torch
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
        # A pair differs as much either way, and nothing from itself: P pairs are read, not K * K.
        num_slots = slots.shape[-2]
        first, second = torch.triu_indices(num_slots, num_slots, 1, device=slots.device)
        differences = slots.index_select(-2, first) - slots.index_select(-2, second)
        pairs = self.to_pairs(differences.abs()).relu()
        alone = self.to_pairs.bias.relu().to(pairs.dtype)
        whose = torch.eye(num_slots, dtype=pairs.dtype, device=pairs.device)
        is_first, is_second = whose[:, first], whose[:, second]
        if is_present is None:
            mean = ((is_first + is_second) @ pairs + alone) / num_slots
        else:
            present = is_present.to(pairs.dtype)
            of_first, of_second = present[..., None, second], present[..., None, first]
            total = (is_first * of_first + is_second * of_second) @ pairs
            total = total + present[..., None] * alone
            mean = total / present.sum(-1)[..., None, None].clamp(min=1.0)
        return torch.as_tensor(self.from_pairs(mean))


def mean_of_present(values: Tensor, is_present: Tensor | None) -> Tensor:
    """Mean (...,D) of the present ones of (...,K,D); zero where there are none."""
    if is_present is None:
        return values.mean(dim=-2)
    weight = is_present[..., None].to(values.dtype)
    return (values * weight).sum(dim=-2) / weight.sum(dim=-2).clamp(min=1.0)
