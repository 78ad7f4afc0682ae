"""Keep codes near their prior, or slots near their codes.

B batch, T frames, K slots.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ocrl.interfaces import Objective
from ocrl.types import Clip, DecoderOutput, SlotOutput

Term = Literal["divergence", "commitment"]


class Quantization(Objective):
    """What the quantiser of `ocrl.encoders.vq_sa.VQSA` asks of the slots it reads.

    `divergence` is KL(q || uniform) of the codes of a slot in nats, summed over the groups, of the
    Gumbel quantiser; `commitment` the squared distance of a slot to its codes, of the EMA
    quantiser. Differs from VQ-SA's published code, whose divergence is a fifth of this, summed
    over batch and slots: a weight of 1/64 there, with batches of 64, is K/5 here.

    Args:
        term: `divergence` or `commitment`.

    Raises:
        ValueError: if `term` is unknown.
    """

    def __init__(self, term: Term) -> None:
        super().__init__()
        if term not in ("divergence", "commitment"):
            raise ValueError(f"term must be 'divergence' or 'commitment', got {term!r}")
        self.term = term

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Mean over (B,T,K), sum over the groups of a slot.

        Raises:
            ValueError: if the encoder has no quantiser with this term.
        """
        name = f"code_{self.term}"
        if name not in encoded.aux:
            raise ValueError(
                f"expected an encoder that gives {name!r} (vq_sa with the "
                f"{'gumbel' if self.term == 'divergence' else 'ema'} quantizer), "
                f"got one that gives {sorted(encoded.aux)}"
            )
        return encoded.aux[name].float().mean()
