"""Make a slot recognise itself in the next frame.

B batch, T frames, K slots, D slot size.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ocrl.interfaces import Objective
from ocrl.types import Clip, DecoderOutput, SlotOutput

Negatives = Literal["batch", "clip"]


class SlotContrast(Objective):
    """Temporal contrast of slots (SlotContrast, Manasyan et al. 2025, arXiv 2412.14295).

    InfoNCE with cosine similarity: the positive of slot k at t is slot k at t + 1; the negatives
    are the other slots at t + 1.

    What differs: pairs across the start of an episode do not count, and the negatives can be kept
    to the same clip: in one game the same sprite stands in every episode, and pushing it from
    itself teaches nothing.

    Args:
        temperature: divides the similarities; 0.1 in the paper.
        negatives: `batch` as in the paper, or `clip`.

    Raises:
        ValueError: if `negatives` is unknown.
    """

    def __init__(self, temperature: float, *, negatives: Negatives) -> None:
        super().__init__()
        if negatives not in ("batch", "clip"):
            raise ValueError(f"negatives must be 'batch' or 'clip', got {negatives!r}")
        self.temperature = temperature
        self.negatives = negatives

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Mean over all pairs of adjacent frames and slots; 0 for one frame."""
        slots = nn.functional.normalize(encoded.slots.float(), dim=-1)
        batch_size, num_frames, num_slots = slots.shape[:3]
        if num_frames < 2:
            return slots.sum() * 0.0
        is_pair = ~clip.is_first[:, 1:]
        before, after = slots[:, :-1], slots[:, 1:]
        if self.negatives == "clip":
            logits = torch.einsum("btkd,btjd->btkj", before, after) / self.temperature
            target = torch.arange(num_slots, device=slots.device).expand(logits.shape[:3])
            losses = nn.functional.cross_entropy(
                logits.flatten(0, 2), target.flatten(), reduction="none"
            ).view(target.shape)
        else:
            logits = torch.einsum(
                "tmd,tnd->tmn",
                rearrange(before, "b t k d -> t (b k) d"),
                rearrange(after, "b t k d -> t (b k) d"),
            )
            target = repeat(
                torch.arange(batch_size * num_slots, device=slots.device),
                "m -> (t m)",
                t=num_frames - 1,
            )
            losses = nn.functional.cross_entropy(
                logits.flatten(0, 1) / self.temperature, target, reduction="none"
            )
            losses = rearrange(losses, "(t b k) -> b t k", t=num_frames - 1, b=batch_size)
        weights = is_pair[..., None].expand_as(losses)
        return (losses * weights).sum() / weights.sum().clamp_min(1)
