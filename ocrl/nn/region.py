"""A part of the frame that counts.

H W image.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Region = tuple[float, float, float, float]


def check_region(region: Sequence[float] | None) -> Region | None:
    """Check (top, left, bottom, right).

    Raises:
        ValueError: if the region is empty or leaves the frame.
    """
    if region is None:
        return None
    top, left, bottom, right = region
    if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
        raise ValueError(f"region must be (top, left, bottom, right) in [0,1], got {list(region)}")
    return top, left, bottom, right


def cut(maps: Tensor, region: Region | None) -> Tensor:
    """The part of (...,H,W) that lies in the region."""
    if region is None:
        return maps
    top, left, bottom, right = region
    height, width = maps.shape[-2:]
    rows = slice(round(top * height), round(bottom * height))
    return maps[..., rows, round(left * width) : round(right * width)]
