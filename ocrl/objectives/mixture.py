"""Every slot must explain what it owns, alone.

B batch, T frames, K slots, C H W image, N = h * w patches, P numbers of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from ocrl.interfaces import Objective
from ocrl.nn.region import check_region, cut
from ocrl.types import Clip, DecoderOutput, SlotOutput


class Mixture(Objective):
    """Expected squared error when one slot is drawn per patch by the masks.

    Reconstruction compares the frame with the *mean* of the slots' patches; slots can then write
    the frame into the weights of the mean, with masks that belong to no one. Here each slot's own
    patch is compared, and the errors are averaged by the masks: reconstruction plus the variance
    of the patches under the masks, so that mixing never pays. It is the distortion of soft
    k-means, and with Gaussians of one variance the bound that expectation maximisation lowers.

    Args:
        region: (top, left, bottom, right) in [0,1], the part of the frame that counts; the whole
            frame if None.

    Raises:
        ValueError: if the region is empty or leaves the frame.
    """

    def __init__(self, region: Sequence[float] | None) -> None:
        super().__init__()
        self.region = check_region(region)

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Mean over (B,T,C,H,W).

        Raises:
            ValueError: if the decoder does not give one texture per slot.
        """
        parts, masks = decoded.parts, decoded.masks.float()
        height, width = masks.shape[-2:]
        expected = (3, clip.video.shape[-2] // height, clip.video.shape[-1] // width)
        if parts is None or tuple(parts.shape[3:]) != expected:
            got = "none" if parts is None else f"{tuple(parts.shape[3:])}"
            raise ValueError(
                f"expected one patch {expected} per slot for masks of {height} x {width}, "
                f"got {got}: with another decoder than the palette, use reconstruction"
            )
        patches = rearrange(clip.video, "b t c (h p) (w q) -> b t h w (c p q)", h=height, w=width)
        textures = parts.float().flatten(3)
        likeness = torch.einsum("bthwp,btkp->btkhw", patches, textures)
        error = (
            patches.square().sum(-1)[:, :, None]
            - 2 * likeness
            + textures.square().sum(-1)[..., None, None]
        )
        per_patch = (masks * error).sum(dim=2) / patches.shape[-1]
        return cut(per_patch, self.region).mean()
