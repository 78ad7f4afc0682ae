"""Parts of a training step: what is trained, on which piece, with which random numbers.

B batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ocrl.types import Camera, Clip


def parameter_groups(
    model: nn.Module, rates: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Parameters that learn: those with two or more axes, then the others without weight decay.

    Biases, gains of norms and learned scalars are not pulled to zero.

    Args:
        model: has the parameters.
        rates: entries of the groups of a part by its name, `decoder.target`; of several names that
            fit a parameter the longest counts.

    Raises:
        ValueError: if there is nothing to train, or a name fits no parameter.
    """
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not learning:
        raise ValueError("expected a model with parameters to train, got none")
    parts = {"": {}, **(rates or {})}
    members: dict[str, list[nn.Parameter]] = {part: [] for part in parts}
    for name, parameter in learning.items():
        fitting = [part for part in parts if not part or name.startswith(f"{part}.")]
        members[max(fitting, key=len)].append(parameter)
    groups: list[dict[str, Any]] = []
    for part, entries in parts.items():
        if part and not members[part]:
            raise ValueError(
                f"expected rates of parts with parameters of their own that learn, got {part!r}"
            )
        matrices = [p for p in members[part] if p.ndim >= 2]
        others = [p for p in members[part] if p.ndim < 2]
        groups.append({"params": matrices, **entries})
        groups.append({"params": others, "weight_decay": 0.0, **entries})
    return [group for group in groups if group["params"]]


def seed_step(seed: int, *, step: int, rank: int) -> None:
    """Set torch's generators to a state that only a run's seed, a step and a process determine."""
    mixed = 0
    for number in (seed, step, rank):
        # The multiplier and shifts of SplitMix64 (Steele, Lea and Flood 2014).
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    torch.manual_seed(mixed >> 1)


def split_clip(clip: Clip, num_pieces: int) -> list[Clip]:
    """Cut a batch of clips into at most `num_pieces` smaller batches."""
    if num_pieces == 1:
        return [clip]
    size = math.ceil(clip.batch_size / num_pieces)
    starts = range(0, clip.batch_size, size)
    return [_rows(clip, slice(start, start + size)) for start in starts]


def _rows(clip: Clip, rows: slice) -> Clip:
    changes: dict[str, Any] = {}
    for entry in fields(clip):
        value = getattr(clip, entry.name)
        if isinstance(value, Tensor):
            changes[entry.name] = value[rows]
        elif isinstance(value, Camera):
            changes[entry.name] = Camera(value.intrinsics[rows], value.extrinsics[rows])
        elif isinstance(value, Mapping):
            changes[entry.name] = {name: tensor[rows] for name, tensor in value.items()}
    return replace(clip, **changes)
