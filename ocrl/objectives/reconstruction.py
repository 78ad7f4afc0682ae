"""Reconstruct the pixels.

B batch, T frames, C H W image.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ocrl.interfaces import Objective
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
        if region is not None:
            top, left, bottom, right = region
            if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
                raise ValueError(
                    f"region must be (top, left, bottom, right) in [0,1], got {list(region)}"
                )
        self.region = None if region is None else tuple(region)

    def _cut(self, video: Tensor) -> Tensor:
        if self.region is None:
            return video
        top, left, bottom, right = self.region
        height, width = video.shape[-2:]
        rows = slice(round(top * height), round(bottom * height))
        return video[..., rows, round(left * width) : round(right * width)]

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
        error = self._cut(decoded.recon).float() - self._cut(clip.video).float()
        return error.square().mean()
