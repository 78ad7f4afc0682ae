"""The object table of a scene of solids, as several cameras see it.

V views, M objects, H W image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocrl.envs.interface import object_dtype
from ocrl.envs.scenes_camera import project
from ocrl.envs.sprites_render import tight_boxes

ATTRIBUTES = ("shape", "color", "material", "size", "radius", "x", "y", "z", "angle")
"""Names of the attributes: places in lists of names, then numbers of the world."""


def object_rows(
    ids: NDArray[np.uint16],
    *,
    look: NDArray[np.int64],
    radii: NDArray[np.float64],
    centers: NDArray[np.float64],
    angles: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    extrinsics: NDArray[np.float64],
    has_views: bool,
) -> NDArray[np.void]:
    """The objects with a pixel in at least one view; boxes are tight around visible pixels.

    Args:
        ids: (V,H,W) with H = W; object m has id m + 1.
        look: (M,4) shape, colour, material and size as numbers.
        radii: (M,).
        centers: (M,3).
        angles: (M,).
        intrinsics: (V,3,3).
        extrinsics: (V,4,4).
        has_views: whether rows have a V axis.

    Returns:
        A structured array of `object_dtype` with the attributes `ATTRIBUTES`.
    """
    num_views, size = len(ids), ids.shape[-1]
    boxes = np.stack([tight_boxes(view, len(look)) for view in ids], axis=1)
    is_seen = boxes[..., 2] > 0
    visible = np.flatnonzero(is_seen.any(axis=1))
    cameras = zip(intrinsics, extrinsics, strict=True)
    places = np.stack([project(centers, *camera)[0] for camera in cameras], axis=1)
    boxes = np.where(is_seen[..., None], boxes / size, -1.0)

    def per_view(array: NDArray[Any]) -> NDArray[Any]:
        return array if has_views else array[:, 0]

    dtype = object_dtype(len(ATTRIBUTES), num_views=num_views if has_views else None)
    table = np.zeros(len(visible), dtype)
    table["id"] = visible + 1
    table["category"] = look[visible, 0]
    table["position"] = per_view(places[visible]) / size
    table["box"] = per_view(boxes[visible])
    table["attributes"][:, :4] = look[visible]
    table["attributes"][:, 4] = radii[visible]
    table["attributes"][:, 5:8] = centers[visible]
    table["attributes"][:, 8] = angles[visible]
    return table
