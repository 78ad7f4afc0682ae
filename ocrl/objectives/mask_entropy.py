"""Every pixel belongs to one slot.

B batch, T frames, K slots, (H, W) masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ocrl.interfaces import Objective, ScheduledModule
from ocrl.nn.region import check_region, cut
from ocrl.types import Clip, DecoderOutput, SlotOutput


class MaskEntropy(Objective, ScheduledModule):
    """Entropy of the decoder's masks over slots.

    Two slots of one colour that share a thing half and half explain it as well as one does. With
    the negative log density of a mixture (`Likelihood`), whose masks are posterior shares, adding
    their entropy is the step from soft to hard expectation maximisation: each pixel then counts
    for the slot that explains it best. The weight grows linearly with training's progress.

    Args:
        region: (top, left, bottom, right) in [0,1], the part of the frame that counts; the whole
            frame if None.

    Raises:
        ValueError: if the region is empty or leaves the frame.
    """

    def __init__(self, region: Sequence[float] | None) -> None:
        super().__init__()
        self.region = check_region(region)
        self.register_buffer("progress", torch.zeros(()))

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Mean over (B,T,H,W), nats."""
        masks = cut(decoded.masks, self.region).float()
        return self.progress * torch.special.entr(masks.clamp_min(1e-8)).sum(dim=2).mean()
