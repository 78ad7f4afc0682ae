"""Tokens that also carry what they were made of.

B batch, C H W image, N tokens, F token features, h w tokens per side, P pixels of a cell.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from ocrl.interfaces import Backbone
from ocrl.types import NUM_COLOURS, Camera


class WithPixels(Backbone):
    """The tokens of another backbone, each followed by the pixels of its cell.

    For encoders that look at a part of the frame again, at full resolution, once they know where.

    Args:
        backbone: of one view; its grid must divide the frame.

    Raises:
        ValueError: if it needs cameras, or its grid does not divide the frame.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        sizes = [
            size / cells for size, cells in zip(backbone.image_size, backbone.grid, strict=True)
        ]
        if backbone.needs_camera or not all(size.is_integer() for size in sizes):
            raise ValueError(
                "pixels need a backbone of plain frames whose grid divides them, got frames "
                f"{backbone.image_size} and a grid {backbone.grid} of "
                f"{type(backbone).__name__}"
            )
        self.backbone = backbone
        self.cell = (int(sizes[0]), int(sizes[1]))
        self.image_size, self.grid = backbone.image_size, backbone.grid
        self.num_pixel_features = NUM_COLOURS * self.cell[0] * self.cell[1]
        self.out_dim = backbone.out_dim + self.num_pixel_features

    def forward(self, frames: Tensor, *, camera: Camera | None = None) -> Tensor:
        """Encode (B,C,H,W) to (B,N,F + 3P), see `Backbone.forward`."""
        tokens = self.backbone(frames, camera=camera)
        height, width = self.cell
        pixels = rearrange(frames, "b c (h p) (w q) -> b (h w) (c p q)", p=height, q=width)
        return torch.cat([tokens, pixels.to(tokens.dtype)], dim=-1)

    def frames(self, pixels: Tensor) -> Tensor:
        """The frames (B,C,H,W) of which (B,N,3P), the ends of tokens, are the pixels."""
        (height, width), rows = self.cell, self.grid[0]
        return rearrange(pixels, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=height, q=width)
