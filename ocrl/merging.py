"""Merge slots that hold one thing, where the number of slots must not change.

B batch, T frames, K slots, D slot size, N tokens, h w the size of masks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ocrl.types import SlotOutput

Likeness = Literal["attn", "slots"]


def soft_iou(maps: Tensor) -> Tensor:
    """The overlap of every two maps: the sum of their minima over that of their maxima.

    Args:
        maps: (...,K,N), at least 0.

    Returns:
        (...,K,K) in [0,1], symmetric; 0 for two maps that are 0.
    """
    maps = maps.float()
    total = maps.sum(-1)
    both = total.unsqueeze(-1) + total.unsqueeze(-2)
    # min(a, b) = (a + b - |a - b|) / 2, and the maximum likewise.
    apart = torch.cdist(maps, maps, p=1)
    return ((both - apart) / (both + apart).clamp_min(1e-8)).clamp(0.0, 1.0)


def find_holders(likeness: Tensor, size: Tensor, *, threshold: float) -> Tensor:
    """Which slot holds what each slot held, after merging.

    Slots whose likeness reaches the threshold belong together, and so do those between whom there
    is a chain of such slots. Of slots that belong together the largest, the first of several,
    holds all.

    Args:
        likeness: (...,K,K), symmetric.
        size: (...,K), how much each slot has won.
        threshold: in (0,1].

    Returns:
        (...,K) int64 in [0,K): a slot that is not merged into another holds itself.

    Raises:
        ValueError: if `threshold` is not in (0,1].
    """
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"expected a threshold of likeness in (0,1] to merge at, got {threshold}")
    num_slots = likeness.shape[-1]
    itself = torch.eye(num_slots, dtype=torch.bool, device=likeness.device)
    is_joined = (likeness >= threshold) | itself
    for _ in range((num_slots - 1).bit_length()):
        is_joined = is_joined.float() @ is_joined.float() > 0
    rank = size.argsort(dim=-1, descending=True, stable=True).argsort(-1).unsqueeze(-2)
    return rank.expand_as(likeness).masked_fill(~is_joined, num_slots).argmin(-1)


def holders_of(output: SlotOutput, *, threshold: float, by: Likeness) -> Tensor:
    """`find_holders` for an encoder's output, frame by frame.

    Args:
        output: of an encoder.
        threshold: in (0,1].
        by: likeness of `attn` (`soft_iou`), or of `slots` (cosine).

    Returns:
        (B,T,K) int64.

    Raises:
        ValueError: if `by` is unknown, or `threshold` not in (0,1].
    """
    if by not in ("attn", "slots"):
        raise ValueError(f"expected slots to be merged by 'attn' or 'slots', got {by!r}")
    if by == "attn":
        likeness = soft_iou(output.attn)
    else:
        unit = functional.normalize(output.slots.float(), dim=-1)
        likeness = unit @ unit.mT
    return find_holders(likeness, output.attn.sum(-1), threshold=threshold)


def merge_masks(masks: Tensor, holders: Tensor) -> Tensor:
    """Masks (B,T,K,h,w), or maps (B,T,K,N), summed into those of their holders (B,T,K).

    The masks of slots that were merged away are 0: the sum over slots stays.
    """
    into = functional.one_hot(holders, holders.shape[-1]).to(masks.dtype).mT
    return (into @ masks.flatten(3)).view_as(masks)


def merge_slots(output: SlotOutput, *, threshold: float, by: Likeness) -> SlotOutput:
    """Merge slots that hold one thing; for inference.

    Each frame by itself, so that a stream and a clip agree. There are K slots as before, in their
    places: a slot that holds others too is their mean, weighted by what each has won, and has the
    sum of their attention; a slot that was merged away is 0 and false in `slot_mask`.

    The mean by weight is that of "When Slots Compete" (Chatzisavvas et al. 2026, arXiv
    2603.11246), which merges in training and infers the threshold; chains of likeness are merged
    as in SSync (Moon and Heo 2026, arXiv 2606.15527). What differs: `soft_iou` is 1 for two slots
    that share a thing half and half; slots are not removed.

    Args:
        output: of an encoder.
        threshold: likeness from which on slots belong together, in (0,1].
        by: see `holders_of`. Slots that overlap are alike in `attn`; slots that hold parts of a
            thing, side by side, can only be in `slots`.

    Returns:
        `output` with other `slots` and `attn`, and a `slot_mask` (B,T,K); the rest is as it was.

    Raises:
        ValueError: if `by` is unknown, or `threshold` not in (0,1].
    """
    holders = holders_of(output, threshold=threshold, by=by)
    num_slots = holders.shape[-1]
    size = output.attn.float().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    into = functional.one_hot(holders, num_slots).to(size.dtype)
    # Exactly 1 for slots that stay alone.
    share = size / (into.mT @ size.unsqueeze(-1)).squeeze(-1).gather(-1, holders)
    slots = (into * share.unsqueeze(-1)).mT @ output.slots.float()
    return replace(
        output,
        slots=slots.to(output.slots.dtype),
        attn=merge_masks(output.attn, holders),
        slot_mask=holders == torch.arange(num_slots, device=holders.device),
    )
