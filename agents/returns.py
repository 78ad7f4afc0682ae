"""What imagined rewards come to.

N imagined futures, H steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def lambda_returns(reward: Tensor, discount: Tensor, value: Tensor, gae_lambda: float) -> Tensor:
    """Mixtures of returns over all numbers of steps, with a value for what comes after.

    R_h = r_h + d_h ((1 - lambda) v_h + lambda R_{h+1}), the last R being the last v: TD(lambda)
    (Sutton 1988) as in DreamerV2 (Hafner et al. 2021, arXiv 2010.02193, equation 4).

    Args:
        reward: (N,H) of each step.
        discount: (N,H), the factor of everything after the step; 0 where it ends the episode.
        value: (N,H) of what each step leads to.
        gae_lambda: 0 for one step and the value, 1 for all steps.

    Returns:
        (N,H) from each step on; gradients flow through all three.
    """
    following = value[:, -1]
    returns = []
    for h in reversed(range(reward.shape[1])):
        mixed = torch.lerp(value[:, h], following, gae_lambda)
        following = reward[:, h] + discount[:, h] * mixed
        returns.append(following)
    return torch.stack(returns[::-1], dim=1)


class PercentileScale(nn.Module):
    """How far returns are spread, by percentiles that move slowly.

    DreamerV3's normalisation (Hafner et al. 2023, arXiv 2301.04104, equation 7): returns are
    divided by the distance of two percentiles where that is above a limit, so that one weight of
    the entropy suits rewards of any size, and rare rewards are not blown up. The first returns are
    taken as they are, where that starts from 0.

    Args:
        low: the lower percentile, in [0,1].
        high: the upper one.
        decay: of the moving average.
        floor: the least scale.

    Raises:
        ValueError: if an argument is out of range.
    """

    shares: Tensor
    ends: Tensor
    is_measured: Tensor

    def __init__(self, *, low: float, high: float, decay: float, floor: float) -> None:
        super().__init__()
        if not 0 <= low < high <= 1 or not 0 <= decay < 1 or floor <= 0:
            raise ValueError(
                "expected percentiles 0 <= low < high <= 1, a decay in [0,1) and a positive floor, "
                f"got {low}, {high}, {decay} and {floor}"
            )
        self.decay, self.floor = decay, floor
        self.register_buffer("shares", torch.tensor([low, high]), persistent=False)
        self.register_buffer("ends", torch.zeros(2))
        self.register_buffer("is_measured", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def update(self, returns: Tensor) -> None:
        """Move towards the percentiles of returns of any shape."""
        found = torch.quantile(returns.flatten().float(), self.shares)
        moved = torch.lerp(found, self.ends, self.decay)
        self.ends.copy_(torch.where(self.is_measured, moved, found))
        self.is_measured.fill_(True)

    def forward(self) -> Tensor:
        """The scale, a scalar."""
        return (self.ends[1] - self.ends[0]).clamp(min=self.floor)
