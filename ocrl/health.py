"""Whether slots are alive, and codes in use: what can be said without ground truth.

B batch, T frames, K slots, D slot size, G groups of codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_ENOUGH_CODES = 0.5


def slot_health(slots: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Signs of a collapse, one value per clip.

    Args:
        slots: (B,T,K,D).
        masks: (B,T,K,h,w), sums to 1 over K.

    Returns:
        (B,) each: `slots_in_use`, how many slots win at least 1 % of a frame's pixels, mean over
        frames; `largest_share` of a frame's pixels won by one slot, mean over frames;
        `dead_slots`, how many win no pixel in the whole clip; `slot_similarity`, mean cosine of
        two different slots of a frame; `temporal_drift`, mean of 1 - cosine of a slot with itself
        one frame later.
    """
    num_slots = slots.shape[2]
    winner = masks.argmax(2).flatten(2)
    share = F.one_hot(winner, num_slots).double().mean(2)
    unit = F.normalize(slots.double(), dim=-1)
    cosine = unit @ unit.transpose(-1, -2)
    others = cosine.sum((-2, -1)) - cosine.diagonal(dim1=-2, dim2=-1).sum(-1)
    kept = (unit[:, 1:] * unit[:, :-1]).sum(-1)
    still = torch.zeros(len(slots), dtype=torch.float64, device=slots.device)
    return {
        "slots_in_use": (share >= 0.01).sum(-1).double().mean(1),
        "largest_share": share.amax(-1).mean(1),
        "dead_slots": (share.sum(1) == 0).sum(-1).double(),
        "slot_similarity": others.mean(1) / max(num_slots * (num_slots - 1), 1),
        "temporal_drift": 1.0 - kept.mean((1, 2)) if slots.shape[1] > 1 else still,
    }


def code_use(codes: Tensor) -> tuple[Tensor, Tensor]:
    """How evenly, and how much, the codes of each group are used.

    Args:
        codes: (...,G) int, G groups.

    Returns:
        Perplexity (G,), the exponential of the entropy in nats of a group's codes, and the number
        (G,) of different codes. Both are 1 if all that was encoded has one code.
    """
    perplexity, used = [], []
    for group in codes.flatten(0, -2).unbind(-1):
        counts = group.unique(return_counts=True)[1].double()
        shares = counts / counts.sum()
        perplexity.append((-(shares * shares.log()).sum()).exp())
        used.append(float(len(counts)))
    return torch.stack(perplexity), torch.tensor(used, dtype=torch.float64)


def describe_code_use(codes: Tensor, sizes: Sequence[int]) -> list[str]:
    """Say in words when the codes of a group stay unused.

    Args:
        codes: (...,G) int of what was encoded, G groups.
        sizes: number of codes of each group.

    Returns:
        A sentence about the group that uses the least, if that is less than half of its codes.
    """
    _, used = code_use(codes)
    shares = used / torch.tensor(sizes, dtype=torch.float64)
    group = int(shares.argmin())
    if shares[group] >= _ENOUGH_CODES:
        return []
    return [
        f"Held-out frames use {int(used[group])} of the {sizes[group]} codes of group {group}: the "
        "codebook is larger than the data can use, or the encoder collapsed. Try fewer codes, or "
        "look whether slots look alike."
    ]


def describe_health(health: Mapping[str, float], *, num_slots: int) -> list[str]:
    """Say in words when slots have collapsed, and what to try.

    Args:
        health: means of `slot_health`.
        num_slots: K.
    """
    findings = []
    if num_slots > 1 and health["largest_share"] > 0.95:
        findings.append(
            f"Collapse: one slot holds {health['largest_share']:.0%} of the pixels of a frame. "
            "Try another seed, a lower learning rate with a longer warm-up, more iterations in "
            "the first frame, or feature targets instead of pixels."
        )
    elif num_slots > 2 and health["slots_in_use"] < num_slots / 3:
        findings.append(
            f"Only {health['slots_in_use']:.1f} of {num_slots} slots are in use. Try fewer slots, "
            "or a decoder with less capacity for each slot."
        )
    if num_slots > 1 and health["slot_similarity"] > 0.95:
        findings.append(
            f"All slots look alike (mean cosine {health['slot_similarity']:.2f}). Try an "
            "initializer with one learned query per slot, or a higher learning rate."
        )
    return findings
