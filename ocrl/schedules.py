"""How the learning rate and the weights' moving average go with training."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

Schedule = Literal["constant", "cosine", "exponential"]
SCHEDULES: tuple[Schedule, ...] = ("constant", "cosine", "exponential")


def learning_rate_factor(
    schedule: Schedule,
    *,
    step: int,
    progress: float,
    warmup_steps: int,
    final_fraction: float,
) -> float:
    """The factor on the learning rate: a linear warm-up times a decay over all of training.

    Args:
        schedule: "cosine" and "exponential" fall from 1 to `final_fraction`.
        step: optimiser steps done.
        progress: the share of training that is done, in [0,1].
        warmup_steps: steps until the factor is the decay alone.
        final_fraction: of the learning rate, at the end.

    Raises:
        ValueError: if the schedule is unknown or cannot end at `final_fraction`.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"expected schedule to be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if not 0.0 <= final_fraction <= 1.0 or (schedule == "exponential" and final_fraction == 0.0):
        raise ValueError(
            f"expected final_fraction in [0,1], above 0 for an exponential, got {final_fraction}"
        )
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
    if schedule == "cosine":
        return warmup * (
            final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))
        )
    if schedule == "exponential":
        return warmup * final_fraction**progress
    return warmup


class MovingAverage:
    """An exponential moving average of a module's weights; buffers are copied.

    The average of the first steps is not held back by the start: the decay at step n is at most
    (1 + n) / (10 + n).
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        """Start at a module's state.

        Args:
            module: its state is copied.
            decay: share of the old average that a step keeps, in [0,1).

        Raises:
            ValueError: if `decay` is out of range.
        """
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"expected the decay of a moving average in [0,1), got {decay}")
        self.decay = decay
        self.state = {name: x.detach().clone() for name, x in module.state_dict().items()}
        self._weights = [name for name, _ in module.named_parameters()]

    @torch.no_grad()
    def update(self, module: nn.Module, *, step: int) -> None:
        """Move towards the module's state after `step` steps."""
        current = module.state_dict()
        torch._foreach_lerp_(
            [self.state[name] for name in self._weights],
            [current[name] for name in self._weights],
            1.0 - min(self.decay, (1 + step) / (10 + step)),
        )
        for name in self.state.keys() - set(self._weights):
            self.state[name].copy_(current[name])
