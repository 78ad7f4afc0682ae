"""The encoder looks at what the decoder draws.

B batch, T frames, K slots, (H, W) masks, N = h * w tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ocrl.interfaces import Objective, ScheduledModule
from ocrl.nn.position import grid_like
from ocrl.types import Clip, DecoderOutput, SlotOutput


class Agreement(Objective, ScheduledModule):
    """Cross-entropy of the attention under the decoder's masks, which are the teacher.

    A decoder that reads of the attention only where its middle is leaves the attention free to
    shrink to a pointer, which loses its object when that moves. The masks are averaged over each
    token and detached: the attention comes to cover what is drawn, and drawing does not change.
    The weight grows linearly with training's progress, as the masks come to mean something.

    SPOT (Kakogeorgiou et al. 2024, arXiv 2312.00648, section 3.2) distils masks into attention as
    well: from another, frozen model, matched slot by slot.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("progress", torch.zeros(()))

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Mean over (B,T,N), nats.

        Raises:
            ValueError: if the attention is on no grid of the masks' shape.
        """
        masks = decoded.masks.detach().float()
        height, width = masks.shape[-2:]
        grid = grid_like(encoded.attn.shape[-1], shape=(height, width), what="masks")
        teacher = functional.adaptive_avg_pool2d(masks.flatten(0, 1), grid).flatten(2)
        logarithm = encoded.attn.float().clamp_min(1e-6).log().flatten(0, 1)
        return -self.progress * (teacher * logarithm).sum(dim=1).mean()
