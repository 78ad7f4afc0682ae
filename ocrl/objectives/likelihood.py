"""The frame is likely under the decoder.

B batch, T frames, C H W image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ocrl.interfaces import Objective
from ocrl.nn.region import check_region, cut
from ocrl.types import Clip, DecoderOutput, SlotOutput


class Likelihood(Objective):
    """Negative log density of the frames.

    With a mixture of slots per pixel it is the likelihood of IODINE (Greff et al. 2019, arXiv
    1903.00450, equation 1): a pixel must be the colour of one slot, not of the slots' mean, which
    is what the squared error of an alpha mixture asks for. A decoder that gives a mean and no
    density counts as one Gaussian around it, which is the squared error in nats.

    Args:
        deviation: standard deviation of that Gaussian; a decoder with a density has its own.
        region: (top, left, bottom, right) in [0,1], the part of the frame that counts; the whole
            frame if None.

    Raises:
        ValueError: if `deviation` is not positive, or the region is empty or leaves the frame.
    """

    def __init__(self, deviation: float, *, region: Sequence[float] | None) -> None:
        super().__init__()
        if deviation <= 0:
            raise ValueError(f"deviation must be positive, got {deviation}")
        self.deviation = deviation
        self.region = check_region(region)

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Mean over (B,T,C,H,W), nats.

        Raises:
            ValueError: if the decoder gives neither a density nor a mean of these frames.
        """
        log_prob = decoded.aux.get("log_prob")
        if log_prob is None:
            log_prob = self._around(decoded.recon, clip.video)
        return -cut(log_prob, self.region).mean() / clip.video.shape[-3]

    def _around(self, mean: Tensor, video: Tensor) -> Tensor:
        """Log density (B,T,H,W) of frames (B,T,C,H,W) under a Gaussian around a mean."""
        if mean.shape != video.shape:
            raise ValueError(
                f"expected a density or a reconstruction of the frames {tuple(video.shape)}, got "
                f"{tuple(mean.shape)}: this objective needs a decoder of pixels"
            )
        constant = math.log(self.deviation * math.sqrt(2 * math.pi))
        errors = (mean.float() - video.float()) / self.deviation
        return -(0.5 * errors.square() + constant).sum(dim=-3)
