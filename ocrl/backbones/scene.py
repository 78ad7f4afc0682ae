"""Posed pixels of all views to one set of tokens.

B batch, V views, C H W image, N = V * n tokens, F token features, E size of an encoded direction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from ocrl.interfaces import Backbone
from ocrl.nn.octaves import RayEncoding
from ocrl.nn.rays import camera_rays
from ocrl.nn.transformer import TransformerBlock
from ocrl.nn.triangulation import NUM_RAY, token_rays
from ocrl.nn.views import fold_views, unfold_views
from ocrl.types import NUM_COLOURS, Camera

_PLACES_DEVIATION = 0.02
"""Of the weights from the code of places to tokens at first, so that looks are not drowned."""
_GROUP = 8
"""Channels that are normalised together."""


class SceneBackbone(Backbone):
    """The set-latent scene representation: a CNN on posed pixels, a transformer over all views.

    SRT and OSRT (Sajjadi et al. 2022, arXiv 2206.06922, appendix A.4) and, frame by frame, PSB
    (Singh et al. 2024, arXiv 2402.17077, appendix D.4.1). Each pixel is its colour and its ray,
    origin and direction in sines and cosines. With `num_residual` blocks after each convolution it
    is PSB's CNN, with none OSRT's. The tokens have no place among the pixels but what the rays
    say, so their order, and that of the views, does not matter.

    What differs: the origin is the same for all pixels of a camera, so that its code is mapped
    once a view and added to what the first convolution makes, as if the code went on beyond the
    border of the image, where convolutions see zeros. PSB's lift from 9 channels is not described:
    here it is the first convolution, on encoded rays.

    Args:
        channels: output channels of the strided convolutions.
        strides: of the convolutions, one each.
        kernel_size: of all convolutions, odd.
        num_residual: residual blocks after each convolution; none makes it a plain CNN.
        num_octaves: of the rays' code, see `ocrl.nn.octaves.RayEncoding`.
        first_octave: of the rays' origins.
        image_size: (H, W).
        out_dim: F, but for the rays.
        num_layers: of the transformer.
        num_heads: of its attention.
        mlp_dim: hidden size of its perceptrons.
        plane: see `ocrl.nn.octaves.RayEncoding`.
        colour_gain: on the first convolution's weights for colours, at the start. The sines of a
            ray's code are many and of unit size, colours three and of little contrast: with 1, as
            in OSRT, hardly anything of what an object's token says at first depends on its colour.
        has_rays: append the tokens' rays, so that `out_dim` is 7 more.

    Raises:
        ValueError: if `channels` and `strides` differ in length, the kernel is even, or
            `colour_gain` is not positive.
    """

    needs_camera = True

    def __init__(
        self,
        channels: Sequence[int],
        *,
        strides: Sequence[int],
        kernel_size: int,
        num_residual: int,
        num_octaves: int,
        first_octave: int,
        image_size: Sequence[int],
        out_dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        plane: Sequence[float] | None = None,
        colour_gain: float = 1.0,
        has_rays: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) != len(strides) or not channels:
            raise ValueError(
                f"expected one stride per convolution, got channels {list(channels)} and "
                f"strides {list(strides)}"
            )
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        if colour_gain <= 0:
            raise ValueError(f"colour_gain must be positive, got {colour_gain}")
        height, width = image_size
        self.image_size = (height, width)
        self.out_dim = out_dim + NUM_RAY * has_rays
        self.has_rays = has_rays
        self.encoding = RayEncoding(num_octaves, first_octave=first_octave, plane=plane)
        self.origin = nn.Linear(self.encoding.origin_dim, channels[0], bias=False)
        self.stages = nn.ModuleList()
        in_channels = NUM_COLOURS + self.encoding.pixel_dim
        for size, stride in zip(channels, strides, strict=True):
            is_first = not len(self.stages)
            stage = _Stage(in_channels, size, kernel_size, stride, num_residual, is_first)
            if is_first:
                with torch.no_grad():
                    stage.convolution.weight[:, :NUM_COLOURS] *= colour_gain
            self.stages.append(stage)
            in_channels = size
            height, width = -(-height // stride), -(-width // stride)
        self.grid = (height, width)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.to_tokens = nn.Linear(in_channels, out_dim)
        # What a slot attends to is a mean of tokens: with this, of codes of places too.
        self.to_places = (
            None if plane is None else nn.Linear(self.encoding.plane_dim, out_dim, bias=False)
        )
        if self.to_places is not None:
            nn.init.normal_(self.to_places.weight, std=_PLACES_DEVIATION)
        self.layers = nn.ModuleList(
            TransformerBlock(out_dim, num_heads=num_heads, mlp_dim=mlp_dim, norm_first=True)
            for _ in range(num_layers)
        )

    def forward(self, frames: Tensor, *, camera: Camera | None = None) -> Tensor:
        """Encode (B,[V,]C,H,W), see `Backbone.forward`.

        Raises:
            ValueError: if there are no cameras, or not one for each view.
        """
        images, num_views = fold_views(frames, image_size=self.image_size)
        origins, directions = self._rays(camera, batch_size=len(frames), num_views=num_views)
        code = self.encoding.of_pixels(origins[:, None], directions.flatten(1, 2))
        code = rearrange(code, "b (h w) e -> b e h w", h=self.image_size[0])
        added = self.origin(self.encoding.origin(origins))[..., None, None]
        features = torch.cat([images, code.to(images.dtype)], dim=1)
        features = features.contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            features = stage(features, added)
            added = None
        tokens = self.to_tokens(features.flatten(2).mT)
        tokens = unfold_views(tokens, num_views=num_views)
        if self.to_places is None and not self.has_rays:
            return self._interact(tokens)
        assert camera is not None
        rays = token_rays(
            camera.intrinsics, camera.extrinsics, size=self.image_size, grid=self.grid
        ).flatten(1, 3)
        if self.to_places is not None:
            places = self.encoding.of_plane(rays[..., :3], rays[..., 3:6])
            tokens = tokens + self.to_places(places).to(tokens.dtype)
        tokens = self._interact(tokens)
        if not self.has_rays:
            return tokens
        # In the precision of the poses, whatever the autocast.
        return torch.cat([tokens, rays], dim=-1)

    def _interact(self, tokens: Tensor) -> Tensor:
        """The transformer over the tokens of all views."""
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens

    def _rays(
        self, camera: Camera | None, *, batch_size: int, num_views: int
    ) -> tuple[Tensor, Tensor]:
        """Origins (B*V,3) and directions (B*V,H,W,3)."""
        if camera is None:
            raise ValueError(
                "expected the cameras of the views, got none: this backbone reads posed pixels; "
                "take episodes with cameras, such as those of env=scenes_multiview"
            )
        if tuple(camera.extrinsics.shape[:3]) != (batch_size, 1, num_views):
            raise ValueError(
                f"expected a camera for each of the {num_views} views of {batch_size} frames, "
                f"got extrinsics {tuple(camera.extrinsics.shape)}"
            )
        cameras = camera.map(lambda value: value.flatten(0, 2))
        _, directions = camera_rays(cameras.intrinsics, cameras.extrinsics, size=self.image_size)
        return cameras.extrinsics[:, :3, 3], directions


class _Stage(nn.Module):
    """A strided convolution, then residual blocks or a ReLU; what it reads is normalised."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int,
        stride: int,
        num_residual: int,
        is_first: bool,
    ) -> None:
        super().__init__()
        is_normalised = num_residual > 0 and not is_first
        self.norm = _group_norm(in_channels) if is_normalised else nn.Identity()
        self.convolution = nn.Conv2d(
            in_channels, channels, kernel_size, stride, padding=kernel_size // 2
        )
        self.blocks = nn.ModuleList(_Residual(channels, kernel_size) for _ in range(num_residual))

    def forward(self, features: Tensor, added: Tensor | None) -> Tensor:
        features = self.convolution(self.norm(features))
        if added is not None:
            features = features + added
        if not len(self.blocks):
            return features.relu()
        for block in self.blocks:
            features = block(features)
        return features


class _Residual(nn.Module):
    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.layers = nn.Sequential(
            _group_norm(channels),
            nn.Conv2d(channels, channels, kernel_size, padding=padding),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, kernel_size, padding=padding),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layers(features)


def _group_norm(channels: int) -> nn.GroupNorm:
    if channels % _GROUP:
        raise ValueError(f"expected channels in multiples of {_GROUP}, got {channels}")
    return nn.GroupNorm(channels // _GROUP, channels)
