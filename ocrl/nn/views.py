"""Several views of one moment as more images, and their tokens as more tokens.

B batch, V views, C H W image, n tokens of one view, N = V * n tokens, F token features.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def fold_views(frames: Tensor, *, image_size: tuple[int, int]) -> tuple[Tensor, int]:
    """Make single images of (B,[V,]C,H,W).

    Returns:
        Images (B*V,C,H,W) and V, which is 1 without a view axis.

    Raises:
        ValueError: if the frames are not floating point, not of 4 or 5 axes, of another size, or
            not of three colours.
    """
    if not frames.is_floating_point():
        raise ValueError(f"expected float frames in [0,1], got {frames.dtype}")
    if frames.ndim not in (4, 5) or tuple(frames.shape[-3:]) != (3, *image_size):
        height, width = image_size
        raise ValueError(
            f"expected frames (B,3,{height},{width}) or with a view axis after B, "
            f"got {tuple(frames.shape)}; bring them to that size and to three colours"
        )
    if frames.ndim == 4:
        return frames, 1
    return frames.flatten(0, 1), frames.shape[1]


def unfold_views(tokens: Tensor, *, num_views: int) -> Tensor:
    """Lay the tokens (B*V,n,F) of all views side by side: (B,N,F)."""
    return rearrange(tokens, "(b v) n f -> b (v n) f", v=num_views)
