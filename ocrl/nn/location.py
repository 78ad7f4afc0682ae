"""Where slots are: places and scales, and how they weigh in the competition.

B batch, K slots, N tokens of a grid (h, w) in row-major order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

NUM_GEOMETRY = 7
"""Columns of `mask_geometry`."""


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


def mask_geometry(masks: Tensor) -> Tensor:
    """Where each slot is and how large, in sides of the picture.

    Args:
        masks: (...,K,h,w), sums to 1 over K.

    Returns:
        (...,K,7): x and y of the mask's centre of mass, its area (the share of the picture), and
        left, top, right, bottom of the cells in which no other slot has more. A slot without such
        a cell has the empty box at its centre.
    """
    height, width = masks.shape[-2:]
    centres = cell_centres((height, width)).to(masks)
    flat = masks.flatten(-2)
    mean, _ = moments(flat, centres)
    area = flat.mean(dim=-1, keepdim=True)
    owner = functional.one_hot(flat.argmax(dim=-2), masks.shape[-3]).mT.bool()
    is_owned = owner.unflatten(-1, (height, width))
    sides = [_range(is_owned.any(dim=axis)) for axis in (-2, -1)]
    center = mean.flip(-1)
    low, high = (torch.stack(pair, dim=-1) for pair in zip(*sides, strict=True))
    is_empty = ~owner.any(dim=-1, keepdim=True)
    corners = [torch.where(is_empty, center, side.to(masks)) for side in (low, high)]
    return torch.cat([center, area, *corners], dim=-1)


def _range(is_owned: Tensor) -> tuple[Tensor, Tensor]:
    """Start and end, in [0,1], of the true part of (...,n)."""
    size = is_owned.shape[-1]
    numbers = is_owned.to(torch.uint8)
    return numbers.argmax(dim=-1) / size, 1 - numbers.flip(-1).argmax(dim=-1) / size
