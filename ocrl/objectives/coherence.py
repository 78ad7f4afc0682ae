"""What a slot attends to looks alike and stands together.

B batch, T frames, V views, K slots, C H W image, N = h * w tokens, P numbers of a token's looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from ocrl.interfaces import Objective, ScheduledModule
from ocrl.nn.position import grid_coordinates, grid_like
from ocrl.nn.region import check_region, cut
from ocrl.objectives.rarity import rarity
from ocrl.types import Clip, DecoderOutput, SlotOutput

Looks = Literal["colours", "patches"]


class Coherence(Objective, ScheduledModule):
    """Variance of the looks, and of the places, that share a slot.

    A decoder that must learn to draw before it can tell slots apart leaves the attention flat for
    thousands of steps. This objective reads no decoder: it is the within-slot variance under the
    encoder's attention, the distortion of soft k-means with the best centres for that attention,
    so that no slot dies of a bad start. Looks alone do not part two objects of one colour; place
    does. The slot with the largest share of a frame, its ground, may be
    anywhere: cutting the ground by place is what k-means on colour and position does wrong.

    Of posed views (V,C,H,W) with tokens of all views, a slot's looks are those in all views: no
    place in a picture is one in the scene, so looks alone count.

    Args:
        looks: `colours` compares the mean colour of each token's patch, `patches` every pixel.
        position_weight: the variance of (y, x) in [0,1], without the ground, times this is added
            to the variance of looks. It grows with the square of training's progress: from the
            start it would drive everything into the ground.
        region: (top, left, bottom, right) in [0,1], the part of the frame that counts; the whole
            frame if None.
        rare_share: of what tokens count, in proportion to how far their looks are from the mean of
            the frame; the rest counts evenly. Small things before a large ground then count as
            much as it does.
        brightness: what the mean of a pixel's colours counts, beside what sets the colours apart.
            Shading and shadows change the mean most; a thing and its shadow are told apart by the
            rest.

    Raises:
        ValueError: if `looks` is unknown, the region is empty or leaves the frame, `rare_share`
            is not in [0,1], or `brightness` is negative.
    """

    reads_seen = True

    def __init__(
        self,
        looks: Looks,
        *,
        position_weight: float,
        region: Sequence[float] | None,
        rare_share: float = 0.0,
        brightness: float = 1.0,
    ) -> None:
        super().__init__()
        if looks not in ("colours", "patches"):
            raise ValueError(f"looks must be 'colours' or 'patches', got {looks!r}")
        self.looks = looks
        self.position_weight = position_weight
        self.region = check_region(region)
        if not 0.0 <= rare_share <= 1.0:
            raise ValueError(f"expected rare_share in [0,1], got {rare_share}")
        if brightness < 0:
            raise ValueError(f"brightness must not be negative, got {brightness}")
        self.rare_share, self.brightness = rare_share, brightness
        self.register_buffer("progress", torch.zeros(()))

    def _tokens(self, maps: Tensor) -> Tensor:
        """The tokens (B,T,N,...) of maps (B,T,...,h,w) that lie in the region."""
        return cut(maps, self.region).flatten(-2).movedim(-1, 2)

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Mean over (B,T,N) and over the numbers that looks are made of.

        Raises:
            ValueError: if the tokens are no square patches of the frame, or there are several
                views and places count.
        """
        video = clip.video
        if video.ndim == 6:
            if self.position_weight or self.region is not None:
                raise ValueError(
                    "expected position_weight=0 and no region for views of several cameras, got "
                    f"position_weight={self.position_weight} and region={self.region}"
                )
            video = rearrange(video, "b t v c h w -> b t c (v h) w")
        height, width = video.shape[-2:]
        grid = grid_like(encoded.attn.shape[-1], shape=(height, width), what="a frame")
        size = height // grid[0]
        if height % grid[0]:
            raise ValueError(
                f"expected tokens of whole patches of a {height} x {width} frame, got {grid[0]} x "
                f"{grid[1]} tokens"
            )
        attn = self._tokens(encoded.attn.float().unflatten(-1, grid))
        pattern = "b t c (h p) (w q) -> b t c p q h w"
        patches = rearrange(video.float(), pattern, p=size, q=size)
        if self.looks == "colours":
            patches = patches.mean(dim=(3, 4))
        if self.brightness != 1.0:
            patches = patches + (self.brightness - 1.0) * patches.mean(dim=2, keepdim=True)
        values = self._tokens(patches).flatten(3)
        ground = attn.sum(dim=2).argmax(dim=-1, keepdim=True)
        if self.rare_share:
            weights = 1 - self.rare_share + self.rare_share * rarity(values)
            attn = attn * weights[..., None]
        loss = _variance(attn, values).sum(dim=-1).mean() / values.shape[-1]
        if self.position_weight:
            coordinates = grid_coordinates(grid, coordinates="four", device=attn.device)
            places = self._tokens(coordinates[:, :2].T.unflatten(-1, grid)[None, None])
            spread = _variance(attn, places.expand(*attn.shape[:2], -1, -1))
            weight = self.position_weight * self.progress.square()
            loss = loss + weight * spread.scatter(-1, ground, 0.0).sum(-1).mean()
        return loss


def _variance(attn: Tensor, values: Tensor) -> Tensor:
    """Each slot's part (B,T,K) of the variance of values (B,T,N,P) under attn (B,T,N,K)."""
    share = attn.sum(dim=2)
    mean = torch.einsum("btnk,btnp->btkp", attn, values) / share[..., None].clamp_min(1e-6)
    squares = torch.einsum("btnk,btn->btk", attn, values.square().sum(dim=-1))
    return (squares - share * mean.square().sum(dim=-1)) / attn.shape[2]
