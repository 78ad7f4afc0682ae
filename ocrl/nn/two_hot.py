"""Numbers of any size as a distribution over bins.

... leading axes, M bins.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def symlog(values: Tensor) -> Tensor:
    """sign(x) ln(|x| + 1): the identity near 0, a logarithm far from it, for both signs.

    Hafner et al. 2023 (DreamerV3, arXiv 2301.04104, equation 9).
    """
    return values.sign() * values.abs().log1p()


def symexp(values: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return values.sign() * values.abs().expm1()


class TwoHot(nn.Module):
    """Bins at equal distances in `symlog`, and a number as its shares of the two next to it.

    DreamerV3's two-hot regression (arXiv 2301.04104, equations 10 and 11, in the first version:
    bins and mean in the transformed space). What lies beyond the bins is at the last one.

    Args:
        num_bins: M.
        low: the first bin, in symlog.
        high: the last bin, in symlog.

    Raises:
        ValueError: if there are fewer than two bins, or `low` is not below `high`.
    """

    bins: Tensor

    def __init__(self, num_bins: int, *, low: float, high: float) -> None:
        super().__init__()
        if num_bins < 2 or not low < high:
            raise ValueError(
                f"expected at least 2 bins from low to a higher one, got {num_bins} from {low} "
                f"to {high}"
            )
        self.register_buffer("bins", torch.linspace(low, high, num_bins), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """The shares (...,M) of numbers (...), which sum to 1."""
        below, share = self._place(values)
        shares = torch.zeros(*values.shape, len(self.bins), device=share.device, dtype=share.dtype)
        shares.scatter_(-1, below[..., None], (1 - share)[..., None])
        return shares.scatter_add_(-1, (below + 1)[..., None], share[..., None])

    def loss(self, logits: Tensor, values: Tensor) -> Tensor:
        """The cross-entropy (...) of logits (...,M) with numbers (...), in nats and float32."""
        below, share = self._place(values)
        log_probability = logits.log_softmax(-1, dtype=share.dtype)
        at_below = log_probability.gather(-1, below[..., None]).squeeze(-1)
        at_above = log_probability.gather(-1, below[..., None] + 1).squeeze(-1)
        return -torch.lerp(at_below, at_above, share)

    def mean(self, logits: Tensor) -> Tensor:
        """The numbers (...) that logits (...,M) expect, in float32."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        return symexp((logits.softmax(-1, dtype=wide) * self.bins).sum(-1))

    def _place(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The bin (...) below each number, and the share (...) of the one above it."""
        bins = self.bins
        place = (symlog(values.to(bins.dtype)) - bins[0]) / (bins[1] - bins[0])
        place = place.clamp(0, len(bins) - 1)
        below = place.floor().clamp(max=len(bins) - 2)
        return below.long(), place - below
