"""Rays of posed pinhole cameras, and what must hold of poses before anything is learned from them.

... any leading axes, such as B, T, V; P points or rays, H W image.

The conventions, those of `ocrl.types.Camera` and of every stored episode:
  - The world is right-handed with z up; one unit is the unit of positions, depth, near and far.
  - A camera looks along its own +z; +x is right and +y is down in the image (as in OpenCV; cameras
    of OpenGL or Blender have y and z the other way).
  - `extrinsics` (...,4,4) is world-from-camera: a point p of the camera is R p + t in the world, so
    the columns of R are the camera's axes and t is where it stands.
  - `intrinsics` (...,3,3) is in pixels. A place in the image is (column, row) from the upper left
    corner, and the centre of the pixel in column i and row j is (i + 0.5, j + 0.5).
  - Directions are unit vectors, so `near`, `far` and sample distances are lengths along the ray.
    `depth` is along the camera's axis instead; `distance_of` turns it into lengths along rays.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

_ORTHONORMAL = 1e-3
_LEAST_BASELINE = 1e-6


def pixel_centers(size: tuple[int, int], *, device: torch.device | None = None) -> Tensor:
    """Column and row (H,W,2) of the centres of the pixels of an image (H, W), in float32."""
    row = torch.arange(size[0], device=device, dtype=torch.float32) + 0.5
    column = torch.arange(size[1], device=device, dtype=torch.float32) + 0.5
    return torch.stack(torch.meshgrid(column, row, indexing="xy"), dim=-1)


def rays_through(
    pixels: Tensor, *, intrinsics: Tensor, extrinsics: Tensor
) -> tuple[Tensor, Tensor]:
    """The rays through places in the images of cameras.

    Args:
        pixels: (...,P,2) column and row, in pixels.
        intrinsics: (...,3,3); leading axes are broadcast with those of `pixels`.
        extrinsics: (...,4,4) world from camera.

    Returns:
        Origins (...,P,3) and unit directions (...,P,3) in the world; the first is expanded, not
        copied.
    """
    local = _through(pixels, intrinsics)
    directions = local @ extrinsics[..., :3, :3].mT
    directions = directions / local.norm(dim=-1, keepdim=True)
    return extrinsics[..., None, :3, 3].expand_as(directions), directions


def camera_rays(
    intrinsics: Tensor, extrinsics: Tensor, *, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The rays through the centres of all pixels: `camera_rays(camera.intrinsics, ...)`.

    Args:
        intrinsics: (...,3,3).
        extrinsics: (...,4,4) world from camera.
        size: (H, W).

    Returns:
        Origins (...,H,W,3) and unit directions (...,H,W,3) in the world.
    """
    pixels = pixel_centers(size, device=intrinsics.device).flatten(0, 1)
    rays = rays_through(pixels, intrinsics=intrinsics, extrinsics=extrinsics)
    origins, directions = (part.unflatten(-2, size) for part in rays)
    return origins, directions


def distance_of(depth: Tensor, *, intrinsics: Tensor) -> Tensor:
    """Lengths (...,H,W) along the rays of `camera_rays` to what lies at a depth (...,H,W)."""
    size = (depth.shape[-2], depth.shape[-1])
    pixels = pixel_centers(size, device=depth.device).flatten(0, 1)
    return depth * _through(pixels, intrinsics).norm(dim=-1).unflatten(-1, size)


Plane = tuple[float, float]
"""Height z of a horizontal plane, and how far along rays it is looked for; units of the world."""


def check_plane(plane: Sequence[float] | None) -> Plane | None:
    """Check (height, reach).

    Raises:
        ValueError: if there are other than two numbers, or the reach is not positive.
    """
    if plane is None:
        return None
    if len(plane) != 2 or not plane[1] > 0:
        raise ValueError(
            f"plane must be its height and a positive reach, such as [0.3, 16], got {list(plane)}"
        )
    return plane[0], plane[1]


def points_on_plane(origins: Tensor, directions: Tensor, *, plane: Plane) -> Tensor:
    """Where rays meet a horizontal plane: (x, y) (...,2), in float32.

    A ray that has not met it within the plane's reach, or never will, ends there.

    Args:
        origins: (...,3).
        directions: (...,3).
        plane: see `check_plane`.
    """
    height, reach = plane
    origins, directions = origins.float(), directions.float()
    along = (height - origins[..., 2:]) / directions[..., 2:]
    # Neither what lies behind the camera nor a ray along the plane, whose quotient is not finite.
    along = torch.where((along > 0) & (along < reach), along, reach)
    return origins[..., :2] + along * directions[..., :2]


def project(points: Tensor, *, intrinsics: Tensor, extrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Where cameras see points of the world.

    Args:
        points: (...,P,3).
        intrinsics: (...,3,3).
        extrinsics: (...,4,4) world from camera.

    Returns:
        Column and row (...,P,2) in pixels, and depth (...,P) along the axis; what is not before the
        camera has a depth of 0 or less, and no meaningful place.
    """
    local = (points - extrinsics[..., None, :3, 3]) @ extrinsics[..., :3, :3]
    seen = local @ intrinsics.mT
    return seen[..., :2] / seen[..., 2:], local[..., 2]


def _through(pixels: Tensor, intrinsics: Tensor) -> Tensor:
    """Points (...,P,3) of the cameras at depth 1: the inverse of a triangle, written out."""
    focal_x, skew, center_x = (intrinsics[..., None, 0, column] for column in range(3))
    focal_y, center_y = intrinsics[..., None, 1, 1], intrinsics[..., None, 1, 2]
    down = (pixels[..., 1] - center_y) / focal_y
    across = (pixels[..., 0] - center_x - skew * down) / focal_x
    return torch.stack([across, down, torch.ones_like(down)], dim=-1)


def check_num_cameras(intrinsics: Tensor, extrinsics: Tensor, *, num_views: int) -> None:
    """Refuse other than one camera for each view, by their shapes alone: no device is waited for.

    Args:
        intrinsics: (...,V,3,3).
        extrinsics: (...,V,4,4).
        num_views: V of the frames that go with them.

    Raises:
        ValueError: if there are other than `num_views` cameras.
    """
    for name, matrix, side in (("intrinsics", intrinsics, 3), ("extrinsics", extrinsics, 4)):
        if matrix.ndim < 3 or matrix.shape[-3:] != (num_views, side, side):
            raise ValueError(
                f"expected {name} (...,V,{side},{side}) with a camera for each of the {num_views} "
                f"views of the frames, got {tuple(matrix.shape)}"
            )


def check_cameras(intrinsics: Tensor, extrinsics: Tensor, *, num_views: int) -> None:
    """Refuse poses that are none.

    Args:
        intrinsics: (...,V,3,3).
        extrinsics: (...,V,4,4) world from camera.
        num_views: V of the frames that go with them.

    Raises:
        ValueError: if there are other than `num_views` cameras, a number is not finite, a focal
            length is not positive, or a rotation is none: its columns are not orthonormal, or it
            mirrors.
    """
    check_num_cameras(intrinsics, extrinsics, num_views=num_views)
    for name, matrix in (("intrinsics", intrinsics), ("extrinsics", extrinsics)):
        if not matrix.isfinite().all():
            raise ValueError(f"expected finite {name}, got NaN or infinity in some cameras")
    focal = intrinsics[..., :2, :2].diagonal(dim1=-2, dim2=-1)
    if (focal <= 0).any():
        raise ValueError(f"expected positive focal lengths in pixels, got {focal.min().item():g}")
    rotation = extrinsics[..., :3, :3].double()
    unit = torch.eye(3, dtype=torch.float64, device=rotation.device)
    error = (rotation.mT @ rotation - unit).abs().max().item()
    if error > _ORTHONORMAL:
        raise ValueError(
            f"expected rotations with orthonormal columns in extrinsics, got one that is off by "
            f"{error:.2g}; take scale and shear out of the poses"
        )
    if (torch.linalg.det(rotation) < 0).any():
        raise ValueError(
            "expected rotations in extrinsics, got one that mirrors (determinant -1); flip an even "
            "number of the camera's axes"
        )


def check_bounds(near: float, far: float) -> None:
    """Refuse a range of distances along rays that is empty.

    Raises:
        ValueError: unless 0 <= near < far.
    """
    if not 0.0 <= near < far:
        raise ValueError(f"expected 0 <= near < far along the rays, got near={near} and far={far}")


def check_scale(
    intrinsics: Tensor,
    extrinsics: Tensor,
    *,
    near: float,
    far: float,
    depth: Tensor | None = None,
) -> None:
    """Warn where what cameras look at lies outside of `near` and `far`: another unit, most likely.

    With depth, what they look at is the surfaces that are seen: the middle 80 percent of their
    distances. Without, it is the point that the cameras' axes pass by nearest, if they have one.

    Args:
        intrinsics: (...,V,3,3).
        extrinsics: (...,V,4,4) world from camera.
        near: least length along rays.
        far: greatest length along rays.
        depth: (...,V,H,W) along the cameras' axes.

    Raises:
        ValueError: see `check_bounds`.
    """
    check_bounds(near, far)
    if depth is not None:
        distance = distance_of(depth.float(), intrinsics=intrinsics).flatten()
        # Quantiles of a sample: torch refuses large tensors, and more would say no more.
        sample = distance[:: max(1, len(distance) // 100_000)]
        quantiles = sample.quantile(torch.tensor([0.1, 0.9], device=sample.device))
        least, most = (float(value) for value in quantiles)
        what = "surfaces from"
    else:
        ahead = _to_focus(extrinsics)
        if ahead is None:
            return
        least, most = float(ahead.min()), float(ahead.max())
        what = "cameras that look at a point from"
    if least < near or most > far:
        warnings.warn(
            f"near={near:g} and far={far:g} do not hold the scene: measured {what} {least:.3g} to "
            f"{most:.3g} units away; scale the poses, or set near and far to that extent",
            stacklevel=2,
        )


def _to_focus(extrinsics: Tensor) -> Tensor | None:
    """How far cameras are from the point nearest to all their axes; None if there is no such."""
    focus = focus_of(extrinsics)
    if focus is None:
        return None
    place, axis = extrinsics[..., :3, 3].double(), extrinsics[..., :3, 2].double()
    return ((focus - place) * axis).sum(-1).flatten()


def focus_of(extrinsics: Tensor) -> Tensor | None:
    """The point (3,) nearest to the axes of all cameras (...,4,4), in float64.

    The least squares point of lines (t, a): the sum of (1 - a a') x = (1 - a a') t over cameras.

    Returns:
        None if cameras look the same way, stand in one place, or have it behind them.
    """
    place, axis = extrinsics[..., :3, 3].double(), extrinsics[..., :3, 2].double()
    place, axis = place.reshape(-1, 3), axis.reshape(-1, 3)
    unit = torch.eye(3, dtype=torch.float64, device=axis.device)
    across = unit - axis[:, :, None] * axis[:, None]
    total = across.sum(0)
    # Cameras that look the same way, or from one place, meet nowhere or where they stand.
    spread = (place - place.mean(0)).norm(dim=1).max()
    if torch.linalg.eigvalsh(total)[0] < 1e-3 * len(axis) or spread < _LEAST_BASELINE:
        return None
    focus = torch.linalg.solve(total, (across @ place[..., None]).sum(0)[:, 0])
    ahead = ((focus - place) * axis).sum(1)
    return focus if bool((ahead > 0).all()) else None
