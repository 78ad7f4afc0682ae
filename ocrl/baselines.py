"""Segmenters that learn nothing: what a model has to beat.

B batch, T frames, C H W image, K segments, P points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LONGEST_GRID = 3.0


def grid_rows(num_slots: int) -> list[int]:
    """Cells in each row of the grid of `num_slots` cells that is closest to a square.

    An exact grid where there is one no longer than 3 to 1 (8 gives 2 rows of 4), else rows that
    differ by one cell (7 gives 2, 2 and 3).

    Raises:
        ValueError: if `num_slots` is not positive.
    """
    if num_slots < 1:
        raise ValueError(f"expected at least one cell, got num_slots={num_slots}")
    rows = max(r for r in range(1, math.isqrt(num_slots) + 1) if num_slots % r == 0)
    if num_slots / rows**2 > _LONGEST_GRID:
        rows = round(math.sqrt(num_slots))
    return [(row + 1) * num_slots // rows - row * num_slots // rows for row in range(rows)]


def grid_segmentation(num_slots: int, size: tuple[int, int]) -> Tensor:
    """Cut a frame into `num_slots` cells of about the same area.

    Args:
        num_slots: K.
        size: (H, W); the longer side gets the more cells.

    Returns:
        (H,W) int64 ids, the same for every frame there is.
    """
    height, width = size
    if height > width:
        return grid_segmentation(num_slots, (width, height)).T.contiguous()
    cells = torch.tensor(grid_rows(num_slots))
    # A row's height is its share of the cells, so that all cells have the same area.
    y = (torch.arange(height) + 0.5) / height * num_slots
    row = torch.searchsorted(cells.cumsum(0).double(), y.double(), right=True)
    x = (torch.arange(width) + 0.5) / width
    column = (x[None] * cells[row][:, None]).long()
    return (cells.cumsum(0) - cells)[row][:, None] + column


def _to_lab(video: Tensor) -> Tensor:
    """SRGB (...,3) in [0,1] to CIE L*a*b* under D65, divided by 100."""
    linear = torch.where(video > 0.04045, ((video + 0.055) / 1.055) ** 2.4, video / 12.92)
    to_xyz = linear.new_tensor(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = linear @ to_xyz.T / linear.new_tensor([0.95047, 1.0, 1.08883])
    root = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=0) ** (1 / 3), xyz * 841 / 108 + 4 / 29)
    x, y, z = root.unbind(-1)
    return torch.stack([1.16 * y - 0.16, 5.0 * (x - y), 2.0 * (y - z)], dim=-1)


def _nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance (B,P) to the nearest of the centres (B,K,D), and which it is."""
    offset = centres.square().sum(-1)[:, None] - 2.0 * points @ centres.transpose(1, 2)
    distance, which = offset.min(-1)
    return (distance + points.square().sum(-1)).clamp(min=0), which


def kmeans(points: Tensor, num_clusters: int, *, seed: int = 0, num_iterations: int = 20) -> Tensor:
    """Centres (B,K,D) of the points (B,P,D): Lloyd's algorithm from a k-means++ start.

    The start is that of Arthur and Vassilvitskii 2007, drawn on the CPU from `seed`, and so the
    same on every device. A cluster that loses its points keeps its centre.
    """
    batch_size, num_points, dim = points.shape
    generator = torch.Generator().manual_seed(seed)
    sample = torch.arange(batch_size, device=points.device)
    draws = torch.rand(num_clusters, batch_size, 1, generator=generator).to(points.device)
    chosen = (draws[0, :, 0] * num_points).long().clamp(max=num_points - 1)
    centres = points[sample, chosen][:, None]
    distance = (points - centres).square().sum(-1)
    for draw in draws[1:]:
        mass = distance.double().cumsum(1)
        chosen = torch.searchsorted(mass, draw.double() * mass[:, -1:]).squeeze(1)
        new = points[sample, chosen.clamp(max=num_points - 1)][:, None]
        centres = torch.cat([centres, new], dim=1)
        distance = torch.minimum(distance, (points - new).square().sum(-1))
    for _ in range(num_iterations):
        _, which = _nearest(points, centres)
        sums = torch.zeros_like(centres)
        sums.scatter_add_(1, which[..., None].expand(-1, -1, dim), points)
        number = torch.zeros_like(centres[..., :1])
        number.scatter_add_(1, which[..., None], torch.ones_like(points[..., :1]))
        centres = torch.where(number > 0, sums / number.clamp(min=1.0), centres)
    return centres


def kmeans_segmentation(
    video: Tensor,
    num_slots: int,
    *,
    position_weight: float = 1.0,
    seed: int = 0,
    num_samples: int = 8192,
) -> Tensor:
    """Cluster the pixels of each clip by colour and position.

    Colour is L*a*b* / 100, position is (x, y) in [0,1] times `position_weight`: at 1 a step
    across the frame weighs as much as from black to white. One set of clusters serves the
    whole clip, so ids persist in time. Fitted on pixels drawn at random, all get their nearest.

    Args:
        video: (B,T,3,H,W), uint8 or float in [0,1].
        num_slots: K.
        position_weight: what position counts against colour.
        seed: of the drawn pixels and the start.
        num_samples: pixels of a clip that the clusters are fitted on.

    Returns:
        (B,T,H,W) int64 ids below K.

    Raises:
        ValueError: if the frames do not have three channels.
    """
    if video.ndim != 5 or video.shape[2] != 3:
        raise ValueError(f"expected video (B,T,3,H,W), got shape {tuple(video.shape)}")
    batch_size, num_frames, _, height, width = video.shape
    colour = video.float() / 255.0 if video.dtype == torch.uint8 else video.float()
    colour = _to_lab(colour.permute(0, 1, 3, 4, 2))
    y, x = torch.meshgrid(
        (torch.arange(height, device=video.device) + 0.5) / height,
        (torch.arange(width, device=video.device) + 0.5) / width,
        indexing="ij",
    )
    position = torch.stack([x, y], dim=-1).expand(batch_size, num_frames, -1, -1, -1)
    points = torch.cat([colour, position_weight * position], dim=-1).flatten(1, 3)
    drawn = torch.randperm(points.shape[1], generator=torch.Generator().manual_seed(seed))
    drawn = drawn[:num_samples].to(points.device)
    centres = kmeans(points[:, drawn], num_slots, seed=seed)
    return _nearest(points, centres)[1].view(batch_size, num_frames, height, width)
