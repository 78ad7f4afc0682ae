"""Reconstruct the pixels.

B batch, T frames, C H W image.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ocrl.interfaces import Objective
from ocrl.nn.region import check_region, cut
from ocrl.types import Clip, DecoderOutput, SlotOutput


class Reconstruction(Objective):
    """Mean squared error of the reconstructed frames (Locatello et al. 2020, arXiv 2006.15055).

    Args:
        region: (top, left, bottom, right) in [0,1], the part of the frame that counts; the whole
            frame if None. A status bar below a game's view would take slots from the game.

    Raises:
        ValueError: if the region is empty or leaves the frame.
    """

    def __init__(self, region: Sequence[float] | None) -> None:
        super().__init__()
        self.region = check_region(region)

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Mean over (B,T,C,H,W).

        Raises:
            ValueError: if the decoder reconstructs something else than these frames.
        """
        if decoded.recon.shape != clip.video.shape:
            raise ValueError(
                f"expected a reconstruction of the frames {tuple(clip.video.shape)}, "
                f"got {tuple(decoded.recon.shape)}: this objective needs a decoder of pixels"
            )
        error = cut(decoded.recon, self.region).float() - cut(clip.video, self.region).float()
        return error.square().mean()
