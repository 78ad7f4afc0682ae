"""Foretell the tokens of the frames.

B batch, T frames, N tokens, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn

from ocrl.interfaces import Objective
from ocrl.types import Clip, DecoderOutput, SlotOutput


class TokenCrossEntropy(Objective):
    """Cross-entropy of a tokenizer's tokens (SLATE, Singh et al. 2022, arXiv 2110.11405, eq. 5).

    Summed over the tokens of a frame and averaged over frames, as SLATE divides by B and STEVE
    (arXiv 2205.14065) by B T: N ln V where nothing is known. Both clip the gradient's largest
    entry, which sums make necessary.
    """

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Sum over N, mean over (B,T).

        Raises:
            ValueError: if the decoder does not give logits (B,T,N,V) and the tokens (B,T,N).
        """
        tokens, logits = decoded.aux.get("target"), decoded.recon
        if tokens is None or tokens.is_floating_point() or tokens.shape != logits.shape[:-1]:
            got = "none" if tokens is None else f"{tokens.dtype} {tuple(tokens.shape)}"
            raise ValueError(
                f"expected a decoder that gives tokens (B,T,N) and their logits, got {got} for "
                f"a reconstruction of {tuple(logits.shape)}: choose decoder=slate or steve"
            )
        total = nn.functional.cross_entropy(
            logits.flatten(0, -2).float(), tokens.flatten(), reduction="sum"
        )
        return total / tokens.shape[:2].numel()
