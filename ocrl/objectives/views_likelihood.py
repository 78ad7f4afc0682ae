"""The colours of rays are likely under a mixture of slots.

B batch, T frames, K slots, (h, w) the picture of the rays.
"""

from __future__ import annotations

import math

from torch import Tensor

from ocrl.objectives.views import Views
from ocrl.types import Clip, DecoderOutput, SlotOutput


class ViewsLikelihood(Views):
    """Negative log density of the colours of sampled rays, each that of one slot.

    As `Views`, which asks that the mean of the slots is right; here a ray must be the colour of
    one slot, under the likelihood of IODINE (Greff et al. 2019, arXiv 1903.00450, equation 1). It
    needs a decoder that gives what each slot makes of a ray (`parts`).

    Args:
        num_seen: see `Views`, as for the next three.
        num_rays: see there.
        held_out_share: see there.
        rare_share: see there.
        deviation: standard deviation of a ray's colour around that of its slot.

    Raises:
        ValueError: if `deviation` is not positive, or as `Views`.
    """

    def __init__(
        self,
        num_seen: int,
        *,
        num_rays: int,
        held_out_share: float,
        rare_share: float,
        deviation: float,
    ) -> None:
        super().__init__(
            num_seen, num_rays=num_rays, held_out_share=held_out_share, rare_share=rare_share
        )
        if deviation <= 0:
            raise ValueError(f"deviation must be positive, got {deviation}")
        self.deviation = deviation

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Mean over (B,T,C,h,w), nats.

        Raises:
            ValueError: if the decoder painted other rays than these, or no parts of slots.
        """
        parts = decoded.parts
        if parts is None or parts.shape[:2] + parts.shape[3:] != clip.video.shape:
            raise ValueError(
                f"expected what each slot makes of the rays {tuple(clip.video.shape)}, got "
                f"{'none' if parts is None else tuple(parts.shape)}: this objective needs a "
                "decoder of rays with parts, such as solids or light_field"
            )
        errors = (parts.float() - clip.video.float().unsqueeze(2)) / self.deviation
        constant = clip.video.shape[2] * math.log(self.deviation * math.sqrt(2 * math.pi))
        log_masks = decoded.masks.float().clamp_min(1e-9).log()
        joint = log_masks - 0.5 * errors.square().sum(dim=3) - constant
        return -joint.logsumexp(dim=2).mean() / clip.video.shape[2]
