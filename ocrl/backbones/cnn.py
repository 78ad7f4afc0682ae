"""A small convolutional backbone.

B batch, V views, C H W image, N tokens, F token features, h w tokens per side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ocrl.interfaces import Backbone
from ocrl.nn.mlp import MLP
from ocrl.nn.position import LinearPosition
from ocrl.nn.views import fold_views, unfold_views
from ocrl.types import Camera


class CNN(Backbone):
    """Convolutions, a position embedding, and a LayerNorm with an MLP.

    The frame encoder of Slot Attention (Locatello et al. 2020, arXiv 2006.15055, appendix E.3) and
    of SAVi (Kipf et al. 2022, arXiv 2111.12594): kernel 5, strides 1; SAVi-S has four layers of 32
    channels. Differs from both in padding: the same on both sides of a strided convolution.

    Args:
        channels: output channels of the convolutions.
        kernel_size: side of the kernels, odd.
        strides: of the convolutions, one each.
        out_dim: F.
        image_size: (H, W).
        position: `linear` adds a learned linear map of the cell's place (y, x, 1 - y, 1 - x),
            `none` adds nothing.

    Raises:
        ValueError: if `channels` and `strides` differ in length, the kernel is even or `position`
            is unknown.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        kernel_size: int,
        strides: Sequence[int],
        out_dim: int,
        image_size: Sequence[int],
        position: Literal["linear", "none"],
    ) -> None:
        super().__init__()
        if len(channels) != len(strides) or not channels:
            raise ValueError(
                f"expected one stride per convolution, got channels {list(channels)} and "
                f"strides {list(strides)}"
            )
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        if position not in ("linear", "none"):
            raise ValueError(f"position must be 'linear' or 'none', got {position!r}")
        height, width = image_size
        self.image_size = (height, width)
        self.out_dim = out_dim
        layers: list[nn.Module] = []
        in_channels = 3
        for size, stride in zip(channels, strides, strict=True):
            layers += [
                nn.Conv2d(in_channels, size, kernel_size, stride, padding=kernel_size // 2),
                nn.ReLU(inplace=True),
            ]
            in_channels = size
            height, width = -(-height // stride), -(-width // stride)
        self.grid = (height, width)
        self.convolutions = nn.Sequential(*layers)
        self.convolutions.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.position = (
            LinearPosition(self.grid, dim=in_channels) if position == "linear" else nn.Identity()
        )
        self.head = MLP(in_channels, hidden_dims=[out_dim], out_dim=out_dim, norm_first=True)

    def forward(self, frames: Tensor, *, camera: Camera | None = None) -> Tensor:
        """Encode (B,[V,]C,H,W), see `Backbone.forward`; the camera is not read."""
        images, num_views = fold_views(frames, image_size=self.image_size)
        features = self.convolutions(images.contiguous(memory_format=torch.channels_last))
        tokens = self.position(features.flatten(2).mT)
        return unfold_views(self.head(tokens), num_views=num_views)
