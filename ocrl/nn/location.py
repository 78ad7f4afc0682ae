"""Where slots are: places and scales, and how they weigh in the competition.

B batch, K slots, N tokens of a grid in row-major order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cell_centres(grid: tuple[int, int]) -> Tensor:
    """The centres (N,2), as (y, x) in [0,1], of the cells of a grid (h, w)."""
    axes = [(torch.arange(size) + 0.5) / size for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)


def log_density(places: Tensor, log_scales: Tensor, coordinates: Tensor) -> Tensor:
    """Logarithm of round Gaussians, relative to the uniform density on the unit square.

    Args:
        places: (B,K,2) means.
        log_scales: (B,K,1) logarithms of the standard deviation.
        coordinates: (N,2).

    Returns:
        (B,K,N).
    """
    squares = coordinates.square().sum(-1) + places.square().sum(-1, keepdim=True)
    distances = squares - 2 * places @ coordinates.mT
    return -0.5 * distances * (-2 * log_scales).exp() - 2 * log_scales - math.log(2 * math.pi)


def moments(attn: Tensor, coordinates: Tensor, *, eps: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Mean and variance of where each slot's attention stands.

    Args:
        attn: (...,K,N), not negative.
        coordinates: (N,2).
        eps: the least attention, in tokens, that a slot's sum is taken for.

    Returns:
        Means (...,K,2), and variances (...,K,1), the mean of both axes.
    """
    total = attn.sum(dim=-1, keepdim=True).clamp_min(eps)
    mean = attn @ coordinates / total
    squares = attn @ coordinates.square() / total
    return mean, (squares - mean.square()).clamp_min(0.0).mean(dim=-1, keepdim=True)


def follow(
    attn: Tensor,
    coordinates: Tensor,
    *,
    places: Tensor,
    prior_scales: Tensor,
    num_prior_tokens: float,
) -> tuple[Tensor, Tensor]:
    """Move Gaussians to what their slots won, held back by a prior worth some tokens.

    The maximum a posteriori step of expectation maximisation: a slot that wins little stays where
    it was, and widens, so that it finds something again.

    Args:
        attn: (B,K,N).
        coordinates: (N,2).
        places: (B,K,2), where they were.
        prior_scales: (B,K,1), the standard deviation that a slot without tokens returns to.
        num_prior_tokens: what the prior counts for.

    Returns:
        Places (B,K,2) and variances (B,K,1).
    """
    mean, variance = moments(attn, coordinates)
    total = attn.sum(dim=-1, keepdim=True)
    share = total / (total + num_prior_tokens)
    return torch.lerp(places, mean, share), torch.lerp(prior_scales.square(), variance, share)


def spread_places(num_places: int) -> Tensor:
    """Places (K,2) in [0,1] that cover the picture evenly: a sunflower's seeds."""
    index = torch.arange(num_places) + 0.5
    radius = 0.42 * (index / max(num_places, 1)).sqrt()
    angle = index * math.pi * (3 - math.sqrt(5))
    return 0.5 + torch.stack([radius * angle.sin(), radius * angle.cos()], dim=-1)
