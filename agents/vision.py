"""From frames to one vector: the baselines without objects.

B batch, C H W image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from ocrl.device import Precision


class Vision(nn.Module, ABC):
    """Frames (B,C,H,W) in [0,1] to vectors (B,out_dim), in float32 whatever the precision.

    Args:
        precision: "32", or "bf16-mixed" for autocast to bfloat16, which takes less time on
            processors that have it.

    Attributes:
        out_dim: size of the vector.

    Raises:
        ValueError: if there is no such precision.
    """

    out_dim: int

    def __init__(self, precision: Precision) -> None:
        super().__init__()
        if str(precision) not in get_args(Precision):
            raise ValueError(f"expected vision.precision 32 or bf16-mixed, got {precision!r}")
        self._is_mixed = str(precision) == "bf16-mixed"

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames (B,C,H,W) of the size that was announced; gives (B,out_dim)."""
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=self._is_mixed):
            return self.encode(frames).float()

    @abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """What `forward` gives, in the precision of the network."""


class CNN(Vision):
    """Three convolutions and a linear layer, for frames of any size from a few pixels on.

    At 64 pixels and above the network of Mnih et al. (2015, Nature 518, 529) with padding: kernels
    8, 4, 3 and strides 4, 2, 1. Differs from it for small frames: a stride (and its kernel, twice
    as wide) shrinks as far as the grid would have fewer than `min_grid` cells a side, so that
    7x7 cells of a grid world stay apart.

    Args:
        frame_shape: (C,H,W).
        channels: of each convolution.
        strides: of each convolution, at most.
        min_grid: cells of a side that a stride must leave, as far as the frame has as many.
        out_dim: size of the vector.
        precision: see `Vision`.

    Raises:
        ValueError: if `channels` and `strides` differ in length or are empty.
    """

    def __init__(
        self,
        frame_shape: Sequence[int],
        *,
        channels: Sequence[int],
        strides: Sequence[int],
        min_grid: int,
        out_dim: int,
        precision: Precision,
    ) -> None:
        super().__init__(precision)
        if len(channels) != len(strides) or not channels:
            raise ValueError(
                f"expected one stride per convolution, got channels {list(channels)} and "
                f"strides {list(strides)}"
            )
        in_channels, *sides = frame_shape
        layers: list[nn.Module] = []
        for size, wanted in zip(channels, strides, strict=True):
            stride = max(1, min(wanted, min(sides) // min_grid))
            kernel = 3 if stride == 1 else 2 * stride
            padding = (kernel - stride + 1) // 2
            layers += [nn.Conv2d(in_channels, size, kernel, stride, padding), nn.ReLU()]
            sides = [(side + 2 * padding - kernel) // stride + 1 for side in sides]
            in_channels = size
        self.grid = tuple(sides)
        self.out_dim = out_dim
        self.layers = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Linear(in_channels * sides[0] * sides[1], out_dim),
            nn.ReLU(),
        )

    def encode(self, frames: Tensor) -> Tensor:
        """See `Vision.encode`."""
        return self.layers(frames)


class _Residual(nn.Module):
    """Two convolutions, each after a normalisation and a ReLU, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                layer
                for _ in range(2)
                for layer in (
                    nn.GroupNorm(1, channels),
                    nn.ReLU(),
                    nn.Conv2d(channels, channels, 3, padding=1),
                )
            )
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layers(features)


class ImpalaResNet(Vision):
    """The residual network of IMPALA, wide and normalised.

    Espeholt et al. (2018, arXiv 1802.01561, figure 3 right). Differs from it as the strong PPO on
    Crafter does (Moon et al. 2023, arXiv 2307.03486): four times as wide and more, and normalised
    over channels and places before each convolution of a block and before the linear layer.

    Args:
        frame_shape: (C,H,W), at least 2 to the number of stages a side.
        channels: of each stage; a stage halves the sides.
        num_blocks: residual blocks of each stage.
        hidden_dim: of the layer between the grid and the vector.
        out_dim: size of the vector.
        precision: see `Vision`.

    Raises:
        ValueError: if the frame is too small.
    """

    def __init__(
        self,
        frame_shape: Sequence[int],
        *,
        channels: Sequence[int],
        num_blocks: int,
        hidden_dim: int,
        out_dim: int,
        precision: Precision,
    ) -> None:
        super().__init__(precision)
        in_channels, *sides = frame_shape
        if min(sides) < 2 ** len(channels):
            raise ValueError(
                f"expected frames of at least {2 ** len(channels)} pixels a side for "
                f"{len(channels)} stages, got {sides[0]}x{sides[1]}; use vision=cnn"
            )
        layers: list[nn.Module] = []
        for size in channels:
            layers += [
                nn.Conv2d(in_channels, size, 3, padding=1),
                nn.MaxPool2d(3, 2, padding=1),
                *(_Residual(size) for _ in range(num_blocks)),
            ]
            sides = [-(-side // 2) for side in sides]
            in_channels = size
        flat = in_channels * sides[0] * sides[1]
        self.out_dim = out_dim
        self.layers = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.LayerNorm(flat),
            nn.ReLU(),
            nn.Linear(flat, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, out_dim),
            nn.LayerNorm(out_dim),
            nn.ReLU(),
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, frames: Tensor) -> Tensor:
        """See `Vision.encode`."""
        return self.layers(frames.contiguous(memory_format=torch.channels_last))
