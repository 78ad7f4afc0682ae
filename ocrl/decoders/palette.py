"""Palette decoder: every slot is one texture, drawn wherever the encoder saw the slot.

B batch, T frames, K slots, D slot size, C H W image, N = h * w patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from ocrl.interfaces import Decoder, Space
from ocrl.nn.mlp import MLP
from ocrl.types import NUM_COLOURS, DecoderOutput


class PaletteDecoder(Decoder):
    """One patch of texture per slot, laid out by the encoder's own attention.

    A decoder that knows positions explains a static tile world best by cutting it by place. This
    one knows none: a patch is the sum over slots of attention times texture, so a slot can only
    lower the error by gathering patches that look alike. It is soft k-means with a learned
    distance and learned centres, and costs K textures and one (N,K) x (K, patch) product a frame.

    It can not draw imagined slots, of which no attention is known.

    Args:
        slot_dim: D.
        image_size: (H, W).
        patch_size: pixels of a patch's side; the encoder's tokens must be on the same grid.
        hidden_dims: hidden layers of the perceptron from slot to texture.

    Raises:
        ValueError: if the patches do not tile the image.
    """

    space: Space = "pixels"
    needs_attn = True

    def __init__(
        self,
        slot_dim: int,
        *,
        image_size: Sequence[int],
        patch_size: int,
        hidden_dims: Sequence[int],
    ) -> None:
        super().__init__()
        if image_size[0] % patch_size or image_size[1] % patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size={patch_size}, got {list(image_size)}"
            )
        self.patch_size = patch_size
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.draw = MLP(
            slot_dim,
            hidden_dims=hidden_dims,
            out_dim=NUM_COLOURS * patch_size**2,
            norm_first=True,
        )

    def textures(self, slots: Tensor) -> Tensor:
        """The texture (B,T,K,3,p,p) of each slot."""
        shape = (NUM_COLOURS, self.patch_size, self.patch_size)
        return self.draw(slots).float().unflatten(-1, shape)

    def forward(
        self, slots: Tensor, target: Tensor | None = None, *, attn: Tensor | None = None
    ) -> DecoderOutput:
        """Draw (B,T,3,H,W); masks (B,T,K,h,w) are `attn`, parts (B,T,K,3,p,p) the textures.

        Raises:
            ValueError: if there is no `attn`, or it is on another grid than the patches.
        """
        height, width = self.grid
        if attn is None or attn.shape[-1] != height * width:
            got = "none" if attn is None else f"{attn.shape[-1]} tokens"
            raise ValueError(
                f"a palette decoder of {height} x {width} patches expected the encoder's attention "
                f"over {height * width} tokens, got {got}: give the backbone strides whose product "
                f"is patch_size={self.patch_size}"
            )
        masks = attn.float()
        textures = self.textures(slots)
        patches = torch.einsum("btkn,btkp->btnp", masks, textures.flatten(3))
        recon = rearrange(
            patches,
            "b t (h w) (c p q) -> b t c (h p) (w q)",
            h=height,
            w=width,
            p=self.patch_size,
            q=self.patch_size,
        )
        return DecoderOutput(recon, masks.unflatten(-1, self.grid), textures)
