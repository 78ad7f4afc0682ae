"""Train the preheater of SmoothSA.

B batch, T frames, K slots, D slot size.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ocrl.interfaces import Objective
from ocrl.types import Clip, DecoderOutput, SlotOutput

QUERIES = "preheat_queries"
"""Name in `SlotOutput.aux` of the warm queries (B,T,K,D)."""


class Preheat(Objective):
    """Draw warm queries to the slots they led to (SmoothSA, Zhao et al. 2025, arXiv 2508.05417).

    Mean squared error to the stop-gradient slots, on the frames that bind from a fresh start.

    Args:
        is_normalised: compare with slots of zero mean and unit variance over D, for an initializer
            that gives such queries. The paper does not.
    """

    def __init__(self, *, is_normalised: bool = False) -> None:
        super().__init__()
        self.is_normalised = is_normalised

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Mean over the K x D numbers of the first frames.

        Raises:
            ValueError: if the encoder has no preheater.
        """
        if QUERIES not in encoded.aux:
            raise ValueError(
                f"the preheat objective expected an encoder that gives {QUERIES!r} (smooth_sa), "
                f"got one that gives {sorted(encoded.aux)}"
            )
        is_first = clip.is_first.clone()
        is_first[:, 0] = True
        slots = encoded.slots.detach().float()
        if self.is_normalised:
            slots = functional.layer_norm(slots, slots.shape[-1:])
        error = encoded.aux[QUERIES].float() - slots
        per_frame = error.square().mean(dim=(2, 3))
        return (per_frame * is_first).sum() / is_first.sum()
