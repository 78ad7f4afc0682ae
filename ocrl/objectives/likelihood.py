"""The frame is likely under the decoder.

B batch, T frames, C H W image.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ocrl.interfaces import Objective
from ocrl.nn.region import check_region, cut
from ocrl.types import Clip, DecoderOutput, SlotOutput


class Likelihood(Objective):
    """Negative log density of the frames, for decoders that are a distribution over frames.

    With a mixture of slots per pixel it is the likelihood of IODINE (Greff et al. 2019, arXiv
    1903.00450, equation 1): a pixel must be the colour of one slot, not of the slots' mean, which
    is what the squared error of an alpha mixture asks for.

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
        """Mean over (B,T,C,H,W), nats.

        Raises:
            ValueError: if the decoder gives no density.
        """
        log_prob = decoded.aux.get("log_prob")
        if log_prob is None:
            raise ValueError(
                "expected the log density of the frames, got none: this objective needs a decoder "
                "that is a distribution over frames, such as glimpse; else use reconstruction"
            )
        return -cut(log_prob, self.region).mean() / clip.video.shape[-3]
