"""What imagined futures cost: the rewards they lack, or how far from a goal they end.

E environments, N candidates, B = E * N futures, H steps, R rows (slots), F features of a row, A
action size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ocrl.agents.solvers import Cost
from ocrl.interfaces import State
from ocrl.matching import hungarian, matched_scores, slot_distances
from ocrl.slot_world import Dream, SlotWorld

Value = Callable[[Tensor], Tensor]
"""Rows (B,R,F) to what is expected of the rest of the episode (B,), discounted."""
Matching = Literal["aligned", "hungarian"]
Judged = Literal["last", "every"]


class DreamCost(ABC):
    """A judgement of imagined futures."""

    @abstractmethod
    def __call__(self, dream: Dream) -> Tensor:
        """The costs (B,) of futures, in float32; less is better.

        Those of one environment stand together: the futures of E environments are E equal parts.
        """


@dataclass(frozen=True)
class RewardCost(DreamCost):
    """What is expected to come in, discounted and as far as the episode goes on: its negative.

    The rewards of H steps, and after them the value of where they lead, as in TD-MPC2 (Hansen et
    al. 2024, arXiv 2310.16828); differs in that each is weighted by the chance that the episode
    was not over before.

    Attributes:
        discount: of a step.
        ends: whether the world has learned where episodes end; else they all go on.
        value: what is expected after the last step; None for nothing.
    """

    discount: float
    ends: bool
    value: Value | None = None

    def __call__(self, dream: Dream) -> Tensor:
        """See `DreamCost`."""
        goes_on = dream.goes_on.float() if self.ends else torch.ones_like(dream.reward.float())
        chance = (self.discount * goes_on).cumprod(1)
        before = torch.cat([torch.ones_like(chance[:, :1]), chance[:, :-1]], dim=1)
        income = (before * dream.reward.float()).sum(1)
        if self.value is not None:
            income = income + chance[:, -1] * self.value(dream.slots[:, -1]).float()
        return -income


@dataclass(frozen=True)
class GoalCost(DreamCost):
    """The mean squared distance of imagined rows from those of a goal.

    As DINO-WM and C-JEPA plan (Zhou et al. 2024, arXiv 2411.04983; Nam et al. 2026, arXiv
    2602.11389), of the last step. Differs in that rows may be matched one to one first: those of
    a goal come in another order, unless the encoder gives every episode the same.

    Attributes:
        goal: (E,R',F), or (1,R',F) for all environments: the first R' rows are compared.
        matching: `aligned` compares rows of the same place, `hungarian` the nearest ones.
        judged: the `last` step alone, or the mean of `every` one: the sooner the better.

    Raises:
        ValueError: if `matching` or `judged` is unknown, or the goal is no set.
    """

    goal: Tensor
    matching: Matching
    judged: Judged

    def __post_init__(self) -> None:
        if self.matching not in ("aligned", "hungarian"):
            raise ValueError(f"expected matching 'aligned' or 'hungarian', got {self.matching!r}")
        if self.judged not in ("last", "every"):
            raise ValueError(f"expected judged 'last' or 'every', got {self.judged!r}")
        if self.goal.ndim != 3:
            raise ValueError(f"expected a goal (E,R,F), got shape {tuple(self.goal.shape)}")

    def __call__(self, dream: Dream) -> Tensor:
        """See `DreamCost`.

        Raises:
            ValueError: if the goal has more rows or other features than what is imagined, or is of
                another number of environments.
        """
        rows = dream.slots[:, -1:] if self.judged == "last" else dream.slots
        goal = self._for(rows)[:, None].expand(-1, rows.shape[1], -1, -1).float()
        rows = rows[:, :, : goal.shape[2]].float()
        if self.matching == "aligned":
            return (rows - goal).square().mean((1, 2, 3))
        distance = slot_distances(goal, rows)
        return matched_scores(distance, hungarian(distance)).mean((1, 2))

    def _for(self, rows: Tensor) -> Tensor:
        """The goal (B,R',F) of each future."""
        num_goals, num_rows, size = self.goal.shape
        fits = num_rows <= rows.shape[2] and size == rows.shape[3]
        if not fits or len(rows) % num_goals:
            raise ValueError(
                f"expected a goal of up to {rows.shape[2]} rows of {rows.shape[3]} features for "
                f"each environment, got {tuple(self.goal.shape)} for {len(rows)} futures"
            )
        return self.goal.to(rows).repeat_interleave(len(rows) // num_goals, dim=0)


def imagined_cost(
    world: SlotWorld, rows: Tensor, state: State, is_first: Tensor, cost: DreamCost
) -> Cost:
    """The cost of doing actions in imagination, from where environments are.

    What was seen is read once, not once for each candidate: its keys and values are copied.

    Args:
        world: imagines.
        rows: (E,R,F) of the present frame.
        state: of the dynamics, which has read the frames before it.
        is_first: (E,) bool, where the frame begins an episode.
        cost: judges what is imagined.
    """
    copies: dict[int, tuple[Tensor, State, Tensor]] = {}

    def costs(candidates: Tensor) -> Tensor:
        num_envs, number, horizon = candidates.shape[:3]
        if number not in copies:
            copies.clear()
            copies[number] = tree_map(
                lambda value: value.repeat_interleave(number, dim=0), (rows, state, is_first)
            )
        start, before, begins = copies[number]
        actions = candidates.flatten(0, 1)
        dream = world.imagine(start, before, actions, horizon, is_first=begins)
        return cost(dream).unflatten(0, (num_envs, number))

    return costs
