"""Alpha-mixture decoder: every slot paints a whole picture and says where it wants to be seen.

B batch, T frames, K slots, D slot size, C H W image, (h, w) the grid that slots are broadcast to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ocrl.interfaces import Decoder, Space
from ocrl.nn.position import LinearPosition
from ocrl.types import NUM_COLOURS, DecoderOutput


class SpatialBroadcastDecoder(Decoder):
    """The spatial broadcast decoder of Slot Attention and SAVi.

    Watters et al. (2019, arXiv 1901.07017); Locatello et al. (2020, arXiv 2006.15055, appendix
    E.3): broadcast each slot to a grid, add positions, up-sample with transposed convolutions to
    colours and one alpha logit; softmax of alpha over slots.

    What differs: the first convolution sees slot + position only, so by linearity it is applied
    to the D basis vectors of a slot and to the position once, and every slot's result is one
    matrix product. A slot's part is the same everywhere but near the borders, so it is computed
    on the smallest grid that has them all, and repeated. This is exact.

    Args:
        slot_dim: D.
        image_size: (H, W).
        channels: hidden channels, one entry per transposed convolution before the output layer.
        strides: one per entry of `channels`; slots are broadcast to `image_size` divided by their
            product and by `patch_size`.
        kernel_size: odd size of the kernels.
        patch_size: side of the patch of pixels that one cell of the last layer paints. 1 as in the
            papers; the layers at full resolution are most of the cost.

    Raises:
        ValueError: if strides times patch_size do not divide `image_size`.
    """

    space: Space = "pixels"

    def __init__(
        self,
        slot_dim: int,
        *,
        image_size: Sequence[int],
        channels: Sequence[int],
        strides: Sequence[int],
        kernel_size: int,
        patch_size: int,
    ) -> None:
        super().__init__()
        if len(channels) != len(strides) or not channels:
            raise ValueError(
                f"expected one stride per channel, got channels={list(channels)} and "
                f"strides={list(strides)}"
            )
        factor = math.prod(strides) * patch_size
        if image_size[0] % factor or image_size[1] % factor:
            raise ValueError(
                f"image_size must be a multiple of strides times patch_size {factor}, "
                f"got {list(image_size)}"
            )
        self.grid = (image_size[0] // factor, image_size[1] // factor)
        self.norm = nn.LayerNorm(slot_dim)
        self.position = LinearPosition(self.grid, dim=slot_dim)
        sizes = [slot_dim, *channels]
        padding = kernel_size // 2
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(
                sizes[i],
                sizes[i + 1],
                kernel_size,
                stride=strides[i],
                padding=padding,
                output_padding=strides[i] - 1,
            )
            for i in range(len(channels))
        )
        output_dim = (NUM_COLOURS + 1) * patch_size**2
        output_kernel = 3 if patch_size == 1 else 1
        self.output = nn.Conv2d(channels[-1], output_dim, output_kernel, padding=output_kernel // 2)
        self.patch_size = patch_size
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _grid(self, vectors: Tensor) -> Tensor:
        height, width = self.grid
        return rearrange(vectors, "b (h w) d -> b d h w", h=height, w=width)

    def _first(self, slots: Tensor) -> Tensor:
        """The first layer on the broadcast slots (M,D), activated; factored where it saves work."""
        first = self.layers[0]
        assert isinstance(first, nn.ConvTranspose2d) and first.bias is not None
        position = self._grid(self.position.embedding()[None])
        num_slots, slot_dim = slots.shape
        small = [min(size, sum(_borders(first)) + 1) for size in self.grid]
        if num_slots * math.prod(self.grid) <= slot_dim * math.prod(small):
            return first(slots[:, :, None, None] + position).relu_()
        basis = torch.eye(slot_dim, device=slots.device, dtype=slots.dtype)
        response = first(basis[:, :, None, None].expand(-1, -1, *small))
        response = rearrange(response - first.bias[:, None, None], "d c h w -> d (h w c)")
        mixed = (slots @ response.to(slots.dtype)).view(
            num_slots, small[0] * first.stride[0], small[1] * first.stride[1], -1
        )
        for axis in (1, 2):
            mixed = _repeat_middle(mixed, first, axis=axis, num_cells=self.grid[axis - 1])
        # In place on the tensor and not on the view of it that the next layer gets: the backward
        # pass of a change to a view copies all of it.
        mixed = mixed + rearrange(first(position), "1 c h w -> h w c")
        return rearrange(mixed.relu_(), "m h w c -> m c h w")

    def _start(self, slots: Tensor) -> Tensor:
        """The first two layers on slots (M,D).

        What comes out of the first is as large as any layer's output and cheap to make, so the
        backward pass makes it again.
        """
        second = self.layers[1] if len(self.layers) > 1 else self.output

        # In place: the backward pass reads what comes out of a layer after the activation only.
        def run(slots: Tensor) -> Tensor:
            hidden: Tensor = second(self._first(slots))
            return hidden

        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return run(slots)
        hidden: Tensor = checkpoint(run, slots, use_reentrant=False, preserve_rng_state=False)
        return hidden

    def forward(
        self, slots: Tensor, target: Tensor | None = None, *, attn: Tensor | None = None
    ) -> DecoderOutput:
        """Paint (B,T,3,H,W); masks are at full resolution, parts are (B,T,K,3,H,W)."""
        batch_size, num_frames, num_slots = slots.shape[:3]
        painted = self._start(self.norm(slots).flatten(0, 2))
        for layer in [*self.layers[1:], self.output][1:]:
            painted = layer(painted.relu_())
        if self.patch_size > 1:
            painted = nn.functional.pixel_shuffle(painted, self.patch_size)
        painted = painted.unflatten(0, (batch_size, num_frames, num_slots))
        parts, alpha = painted.split([NUM_COLOURS, 1], dim=3)
        masks = alpha.float().softmax(dim=2)
        recon = (masks * parts.float()).sum(dim=2)
        return DecoderOutput(recon, masks.squeeze(3), parts)


def _borders(layer: nn.ConvTranspose2d) -> tuple[int, int]:
    """Cells at the start and the end of an axis whose outputs lack some of the kernel's taps."""
    padding, stride = int(layer.padding[0]), layer.stride[0]
    return -(-padding // stride), -(-(stride + padding - 1) // stride)


def _repeat_middle(
    outputs: Tensor, layer: nn.ConvTranspose2d, *, axis: int, num_cells: int
) -> Tensor:
    """Widen an axis of a layer's outputs on a constant to those of `num_cells` cells."""
    stride = layer.stride[0]
    missing = num_cells - outputs.shape[axis] // stride
    if not missing:
        return outputs
    start, end = (stride * border for border in _borders(layer))
    left, middle, right = outputs.split([start, stride, end], dim=axis)
    return torch.cat([left, *[middle] * (missing + 1), right], dim=axis)
