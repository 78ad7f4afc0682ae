"""Cameras that go around what others look at.

O cameras of the orbit, ... any leading axes of the others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocrl.nn.rays import focus_of


def orbit(extrinsics: Tensor, *, num_cameras: int) -> Tensor | None:
    """Poses (O,4,4) on a horizontal circle around the point that cameras (...,4,4) look at.

    Height and radius are the mean of those of the cameras; the circle starts at the first of them.

    Args:
        extrinsics: (...,4,4) world from camera, z up.
        num_cameras: O.

    Returns:
        None if the cameras look at no common point (`ocrl.nn.rays.focus_of`), or down on it.
    """
    focus = focus_of(extrinsics)
    if focus is None:
        return None
    away = extrinsics[..., :3, 3].double().reshape(-1, 3) - focus
    radius, height = away[:, :2].norm(dim=1).mean(), away[:, 2].mean()
    if radius < 1e-3 * away.norm(dim=1).mean():
        return None
    angle = torch.arange(num_cameras, device=away.device, dtype=away.dtype)
    angle = angle * (2 * math.pi / num_cameras) + torch.atan2(away[0, 1], away[0, 0])
    place = torch.stack(
        [radius * angle.cos(), radius * angle.sin(), height.expand(num_cameras)], dim=1
    )
    back = torch.nn.functional.normalize(place, dim=1)
    right = torch.stack([-angle.sin(), angle.cos(), torch.zeros_like(angle)], dim=1)
    poses = torch.eye(4, device=away.device, dtype=away.dtype).repeat(num_cameras, 1, 1)
    # The camera's axes: right, down and forward.
    poses[:, :3, :3] = torch.stack([right, torch.linalg.cross(right, back), -back], dim=-1)
    poses[:, :3, 3] = focus + place
    return poses.to(extrinsics.dtype)
