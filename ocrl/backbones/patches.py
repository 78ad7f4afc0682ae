"""Patches through a perceptron: every token knows its own patch and nothing else.

B batch, V views, C H W image, N tokens, F token features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from ocrl.interfaces import Backbone
from ocrl.nn.mlp import MLP
from ocrl.nn.position import LinearPosition
from ocrl.nn.views import fold_views, unfold_views
from ocrl.types import NUM_COLOURS, Camera


class Patches(Backbone):
    """Non-overlapping patches, a perceptron on each, optionally a position embedding.

    For worlds made of tiles: with patches on the tiles, two tiles that look alike get the same
    token wherever they stand and whatever stands beside them, which convolutions with overlap do
    not give.

    Args:
        patch_size: pixels of a patch's side.
        hidden_dims: hidden layers of the perceptron.
        out_dim: F.
        image_size: (H, W).
        position: `linear` adds a learned linear map of the patch's place, `none` adds nothing.

    Raises:
        ValueError: if the patches do not tile the image, or `position` is unknown.
    """

    def __init__(
        self,
        patch_size: int,
        *,
        hidden_dims: Sequence[int],
        out_dim: int,
        image_size: Sequence[int],
        position: Literal["linear", "none"],
    ) -> None:
        super().__init__()
        height, width = image_size
        if height % patch_size or width % patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size={patch_size}, got {list(image_size)}"
            )
        if position not in ("linear", "none"):
            raise ValueError(f"position must be 'linear' or 'none', got {position!r}")
        self.patch_size = patch_size
        self.image_size = (height, width)
        self.grid = (height // patch_size, width // patch_size)
        self.out_dim = out_dim
        self.embed = MLP(NUM_COLOURS * patch_size**2, hidden_dims=hidden_dims, out_dim=out_dim)
        self.position = (
            LinearPosition(self.grid, dim=out_dim) if position == "linear" else nn.Identity()
        )

    def forward(self, frames: Tensor, *, camera: Camera | None = None) -> Tensor:
        """Encode (B,[V,]C,H,W), see `Backbone.forward`; the camera is not read."""
        images, num_views = fold_views(frames, image_size=self.image_size)
        size = self.patch_size
        patches = rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=size, q=size)
        return unfold_views(self.position(self.embed(patches)), num_views=num_views)
