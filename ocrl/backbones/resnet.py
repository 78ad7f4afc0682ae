"""Residual networks for small frames.

B batch, V views, C H W image, N tokens, F token features, h w tokens per side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ocrl.interfaces import Backbone
from ocrl.nn.mlp import MLP
from ocrl.nn.position import LinearPosition
from ocrl.nn.views import fold_views, unfold_views
from ocrl.types import Camera

STAGES: dict[int, tuple[int, ...]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Blocks per stage of each depth."""

NUM_GROUPS = 32


class _Block(nn.Module):
    """Two 3x3 convolutions with GroupNorm, and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, num_groups: int) -> None:
        super().__init__()
        self.convolution_1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm_1 = nn.GroupNorm(num_groups, out_channels)
        self.convolution_2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm_2 = nn.GroupNorm(num_groups, out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.GroupNorm(num_groups, out_channels),
            )

    def forward(self, features: Tensor) -> Tensor:
        inner = functional.relu(self.norm_1(self.convolution_1(features)))
        inner = self.norm_2(self.convolution_2(inner))
        return functional.relu(inner + self.shortcut(features))


class ResNet(Backbone):
    """ResNet-18 or -34 as SAVi-L uses it: GroupNorm, and a stem for small frames.

    He et al. (2016, arXiv 1512.03385); Kipf et al. (2022, arXiv 2111.12594). The stem is a 3x3
    convolution of stride 1 without pooling. Differs from both in that widths and strides are
    arguments; SAVi's are (64, 128, 256, 512) and (1, 2, 2, 2).

    Args:
        depth: 18 or 34.
        widths: channels of the four stages, multiples of 32 or smaller than 32.
        strides: of the four stages.
        out_dim: F.
        image_size: (H, W).
        position: as in `CNN`.

    Raises:
        ValueError: if the depth or the position is unknown or there are not four widths and
            strides.
    """

    def __init__(
        self,
        depth: int,
        *,
        widths: Sequence[int],
        strides: Sequence[int],
        out_dim: int,
        image_size: Sequence[int],
        position: Literal["linear", "none"],
    ) -> None:
        super().__init__()
        if depth not in STAGES:
            raise ValueError(f"depth must be one of {sorted(STAGES)}, got {depth}")
        if len(widths) != 4 or len(strides) != 4:
            raise ValueError(
                f"expected four widths and four strides, got {list(widths)} and {list(strides)}"
            )
        if position not in ("linear", "none"):
            raise ValueError(f"position must be 'linear' or 'none', got {position!r}")
        height, width = image_size
        self.image_size = (height, width)
        self.out_dim = out_dim
        blocks: list[nn.Module] = []
        channels = widths[0]
        for size, stride, num_blocks in zip(widths, strides, STAGES[depth], strict=True):
            for i in range(num_blocks):
                blocks.append(
                    _Block(channels, size, stride if i == 0 else 1, min(NUM_GROUPS, size))
                )
                channels = size
            height, width = -(-height // stride), -(-width // stride)
        self.grid = (height, width)
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 1, 1, bias=False),
            nn.GroupNorm(min(NUM_GROUPS, widths[0]), widths[0]),
            nn.ReLU(inplace=True),
        )
        self.blocks = nn.Sequential(*blocks)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.position = (
            LinearPosition(self.grid, dim=channels) if position == "linear" else nn.Identity()
        )
        self.head = MLP(channels, hidden_dims=[out_dim], out_dim=out_dim, norm_first=True)

    def forward(self, frames: Tensor, *, camera: Camera | None = None) -> Tensor:
        """Encode (B,[V,]C,H,W), see `Backbone.forward`; the camera is not read."""
        images, num_views = fold_views(frames, image_size=self.image_size)
        images = images.contiguous(memory_format=torch.channels_last)
        features = self.blocks(self.stem(images))
        tokens = self.position(features.flatten(2).mT)
        return unfold_views(self.head(tokens), num_views=num_views)
