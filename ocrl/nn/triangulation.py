"""Points of the world and the rays of the tokens that see them.

B batch, K slots, N tokens of all views.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocrl.nn.location import cell_centres
from ocrl.nn.rays import rays_through

NUM_RAY = 7
"""Numbers of a token's ray: its origin, its unit direction, and the area of the whole picture at a
distance of one unit."""
NUM_AXES = 3
"""Numbers of a place in the world."""
_EPS = 1e-6


def token_rays(
    intrinsics: Tensor, extrinsics: Tensor, *, size: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """The rays (...,h*w,7) through the centres of the cells of a grid on each picture.

    Args:
        intrinsics: (...,3,3) in pixels.
        extrinsics: (...,4,4) world from camera.
        size: (H, W) of the pictures.
        grid: (h, w).
    """
    row, column = cell_centres(grid, device=intrinsics.device).to(intrinsics.dtype).unbind(-1)
    centres = torch.stack([column * size[1], row * size[0]], dim=-1)
    rays = rays_through(centres, intrinsics=intrinsics, extrinsics=extrinsics)
    area = size[0] * size[1] / (intrinsics[..., 0, 0] * intrinsics[..., 1, 1])
    return torch.cat([*rays, area[..., None, None].expand(*rays[0].shape[:-1], 1)], dim=-1)


def distances(points: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """How far points are from rays, which go on behind their origin.

    Args:
        points: (B,K,3).
        rays: (B,N,7).

    Returns:
        Squares (B,K,N) of the distances, and how far along the rays (B,K,N) they are nearest.
    """
    origins, directions = rays[..., :3], rays[..., 3:6]
    along = points @ directions.mT - (origins * directions).sum(-1)[:, None]
    apart = points.square().sum(-1, keepdim=True) - 2 * points @ origins.mT
    squares = apart + origins.square().sum(-1)[:, None] - along.square()
    return squares.clamp_min(0.0), along


def log_density(squares: Tensor, along: Tensor, log_scales: Tensor, rays: Tensor) -> Tensor:
    """Logarithm of round Gaussians as cameras see them, relative to the uniform density.

    A Gaussian in the world is one on the picture, smaller the farther it is: the area of the
    picture at that distance is what it is compared with.

    Args:
        squares: (B,K,N) from `distances`, as `along`.
        along: (B,K,N).
        log_scales: (B,K,1) logarithms of the standard deviation, in units of the world.
        rays: (B,N,7).

    Returns:
        (B,K,N).
    """
    area = rays[..., None, :, 6] * along.clamp_min(_EPS).square()
    relative = (area + _EPS).log() - 2 * log_scales - math.log(2 * math.pi)
    return relative - 0.5 * squares * (-2 * log_scales).exp()


def meeting_points(
    attn: Tensor, rays: Tensor, *, places: Tensor, num_prior_tokens: float
) -> Tensor:
    """The points nearest to the rays of the tokens that each slot won.

    The least squares point of weighted lines, held back by where it was: what one camera alone
    sees says nothing of how far it is, and there it stays as far as it was.

    Args:
        attn: (B,K,N).
        rays: (B,N,7).
        places: (B,K,3), where they were.
        num_prior_tokens: how many tokens that counts for.

    Returns:
        (B,K,3).
    """
    origins, directions = rays[..., :3], rays[..., 3:6]
    unit = torch.eye(3, dtype=rays.dtype, device=rays.device)
    across = unit - directions[..., :, None] * directions[..., None, :]
    target = (across @ origins[..., None]).squeeze(-1)
    total = (attn @ across.flatten(2)).unflatten(-1, (3, 3)) + num_prior_tokens * unit
    return torch.linalg.solve(total, attn @ target + num_prior_tokens * places)
