"""Let go of slots that double others while training is young.

B batch, T frames, K slots, D slot size, N tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ocrl.interfaces import Objective, ScheduledModule
from ocrl.types import Clip, DecoderOutput, SlotOutput


def specialisation(attn: Tensor) -> Tensor:
    """How far slots are from looking everywhere: the divergence of their looks from uniform.

    Args:
        attn: (...,K,N), at least 0.

    Returns:
        (...,K) nats in [0, log N]: the Kullback-Leibler divergence of the attention, renormalised
        over tokens, from the uniform distribution; log N is a slot that looks at one token.
    """
    shares = (attn / attn.sum(-1, keepdim=True).clamp_min(1e-8)).clamp_min(1e-8)
    return math.log(attn.shape[-1]) - torch.special.entr(shares).sum(-1)


@torch.no_grad()
def doubles(slots: Tensor, special: Tensor, *, number: int) -> Tensor:
    """Slots that double others, found one after the other.

    Of the two most similar slots (cosine) of those that are left, the less special one goes.

    Args:
        slots: (B,K,D).
        special: (B,K), how special each slot is.
        number: how many to find, less than K.

    Returns:
        (B,K) bool, true for the `number` slots found.
    """
    unit = functional.normalize(slots, dim=-1)
    num_slots = slots.shape[1]
    itself = torch.eye(num_slots, dtype=torch.bool, device=slots.device)
    similarity = (unit @ unit.mT).masked_fill(itself, -torch.inf)
    is_double = torch.zeros(slots.shape[:2], dtype=torch.bool, device=slots.device)
    for _ in range(number):
        is_gone = is_double.unsqueeze(1) | is_double.unsqueeze(2)
        pair = similarity.masked_fill(is_gone, -torch.inf).flatten(1).argmax(1)
        pair = torch.stack([pair // num_slots, pair % num_slots], dim=1)
        loser = pair.gather(1, special.gather(1, pair).argmin(1, keepdim=True))
        is_double = is_double.scatter(1, loser, True)
    return is_double


class SlotRegularization(Objective, ScheduledModule):
    """Draw slots that double others to looking everywhere (SRL, ICLR 2026, arXiv 2602.03390).

    Half of the slots, rounded down, are found to double others (`doubles`, by their last frame and
    by their mean specialisation over the clip) and pay for their specialisation, which leaves the
    things to the other half. It counts in the first `until` of training and is 0 afterwards: then
    those that let go may take up what is left over.

    For encoders whose slots stay the same over a clip, or clips of one frame. Differs from the
    published code, which finds 5 of 11 slots in the first 10,000 of 100,000 steps at weight 0.1,
    in that number and time are shares.

    Args:
        until: the share of training after which it is 0, in (0,1].

    Raises:
        ValueError: if `until` is not in (0,1].
    """

    def __init__(self, until: float) -> None:
        super().__init__()
        if not 0.0 < until <= 1.0:
            raise ValueError(f"until must be in (0,1], got {until}")
        self.until = until
        self.register_buffer("progress", torch.zeros(()))

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Mean over (B,T) and the slots that pay, nats; 0 for a single slot."""
        special = specialisation(encoded.attn.float())
        number = encoded.slots.shape[2] // 2
        pays = doubles(encoded.slots[:, -1].float(), special.mean(1), number=number)
        loss = (special.mean(1) * pays).sum(1).mean() / max(number, 1)
        return loss * (self.progress < self.until)
