"""Light along a ray through densities: where to look, and what arrives.

... any leading axes, mostly B and P rays; S intervals along a ray, F finer ones.

A ray is cut into intervals by edges (...,S+1), lengths from its origin; a density holds for a whole
interval. So what arrives is exact for a density that is constant there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def even_edges(near: float, far: float, *, num_intervals: int, device: torch.device) -> Tensor:
    """Edges (S+1,) of intervals of one length from near to far."""
    return torch.linspace(near, far, num_intervals + 1, device=device)


def points_within(edges: Tensor, *, is_random: bool) -> Tensor:
    """A place (...,S) in each interval: drawn at random, or the middle.

    Drawn, it is the stratified sampling of NeRF (Mildenhall et al. 2020, arXiv 2003.08934,
    equation 2).
    """
    start, length = edges[..., :-1], edges.diff(dim=-1)
    return start + length * (torch.rand_like(length) if is_random else 0.5)


def transmitted(density: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """What each interval adds to what is seen, and what comes from beyond.

    T_i (1 - exp(-sigma_i l_i)) with T_i = exp(-sum_{j<i} sigma_j l_j) (equation 3 of NeRF).

    Args:
        density: (...,S), not negative.
        lengths: (...,S) of the intervals.

    Returns:
        Weights (...,S), and the share (...) that passes all of them: together they sum to 1.
    """
    depth = density * lengths
    through = depth.cumsum(-1)
    before = nn.functional.pad(through[..., :-1], (1, 0))
    return (-before).exp() * -torch.expm1(-depth), (-through[..., -1]).exp()


def finer_edges(
    edges: Tensor, weights: Tensor, *, num_finer: int, is_random: bool, eps: float = 1e-3
) -> Tensor:
    """Cut the intervals that matter further: (...,S+F+1) edges in order.

    The new edges are drawn from the density over lengths that the weights are a histogram of
    (hierarchical sampling, section 5.2 of NeRF), one in each of F equal parts of its mass.

    Args:
        edges: (...,S+1).
        weights: (...,S), not negative.
        num_finer: F.
        is_random: draw within the parts, or take their middles.
        eps: mass spread evenly over the intervals, so that none is never looked into.
    """
    mass = weights.detach().float() + eps / weights.shape[-1]
    cumulative = (mass / mass.sum(-1, keepdim=True)).cumsum(-1)
    part = torch.arange(num_finer, device=edges.device, dtype=mass.dtype)
    part = part.expand(*mass.shape[:-1], -1)
    place = (part + (torch.rand_like(part) if is_random else 0.5)) / num_finer
    interval = torch.searchsorted(cumulative, place.contiguous(), right=True)
    interval = interval.clamp(max=mass.shape[-1] - 1)
    before = torch.cat([torch.zeros_like(cumulative[..., :1]), cumulative], dim=-1)
    low, high = before.gather(-1, interval), before.gather(-1, interval + 1)
    share = ((place - low) / (high - low).clamp(min=1e-9)).clamp(0.0, 1.0)
    edges = edges.expand(*mass.shape[:-1], -1)
    start, end = edges.gather(-1, interval), edges.gather(-1, interval + 1)
    return torch.cat([edges, start + share * (end - start)], dim=-1).sort(dim=-1).values
