"""Teach the decoder's tokenizer.

B batch, T frames, C H W image.
"""

from __future__ import annotations

from torch import Tensor

from ocrl.interfaces import Objective
from ocrl.types import Clip, DecoderOutput, SlotOutput


class TokenizerReconstruction(Objective):
    """Squared error of the frames that the tokenizer gives back.

    The first term of SLATE (Singh et al. 2022, arXiv 2110.11405, equation 2): summed over the
    pixels of a frame and averaged over frames. Slots get no gradient from it, and the tokenizer
    none from the slots.
    """

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Sum over (C,H,W), mean over (B,T).

        Raises:
            ValueError: if the decoder has no tokenizer.
        """
        tokenized = decoded.aux.get("tokenized")
        if tokenized is None or tokenized.shape != clip.video.shape:
            got = "none" if tokenized is None else f"{tuple(tokenized.shape)}"
            raise ValueError(
                f"expected the frames {tuple(clip.video.shape)} as a tokenizer saw them, got "
                f"{got}: choose decoder=slate or steve"
            )
        error = tokenized.float() - clip.video.float()
        return error.square().sum() / clip.video.shape[:2].numel()
