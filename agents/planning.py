"""Agents that plan: with a world model that they learn as they act, or with one that is given.

E environments, R rows (slots), F features of a row, A action size, H steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ocrl.agents.costs import DreamCost, GoalCost, Judged, Matching, RewardCost
from ocrl.agents.interface import State
from ocrl.agents.planner import Planner, find_solver
from ocrl.agents.set_world import SetWorld
from ocrl.agents.solvers import ActionSpace
from ocrl.agents.world_agent import Behaviour


class Planning(Behaviour):
    """Searches for the actions of the best imagined future, does the first, and searches again.

    Model-predictive control on slots, as C-JEPA and Slot-MPC (Nam et al. 2026, arXiv 2602.11389;
    arXiv 2605.14937), for discrete and continuous actions. What is best is the reward that is
    expected, or with a goal the nearness to it. Nothing is learned but the world model. An action
    that is drawn is one of those that the search ended with, so that what is played varies.

    Args:
        num_slots: R of what is observed.
        slot_dim: F.
        has_presence: whether a row says that it holds something; not used.
        num_actions: of a discrete action space, 0 for none.
        action_dim: A of a continuous action space, 0 for none.
        pooling: not used, as nothing reads rows but the world model.
        horizon: H of what is imagined.
        discount: of rewards.
        continuous: describes the `Solver` of continuous actions.
        discrete: describes that of discrete ones.
        matching: of rows with those of a goal, see `GoalCost`.
        judged: the steps that are compared with a goal, see there.
        seed: of the search.

    Raises:
        ValueError: if a number is out of range, or a solver is none of these actions.
    """

    has_memory = True
    goal: Tensor
    has_goal: Tensor

    def __init__(
        self,
        *,
        num_slots: int,
        slot_dim: int,
        has_presence: bool,
        num_actions: int,
        action_dim: int,
        pooling: Mapping[str, Any],
        horizon: int,
        discount: float,
        continuous: Mapping[str, Any],
        discrete: Mapping[str, Any],
        matching: Matching,
        judged: Judged,
        seed: int,
    ) -> None:
        super().__init__()
        if not 0 < discount <= 1:
            raise ValueError(f"expected agent.arguments.discount in (0,1], got {discount}")
        space = ActionSpace(num_actions, (-1.0,) * action_dim, (1.0,) * action_dim)
        solver = find_solver(space, continuous=continuous, discrete=discrete)
        self.planner = Planner(solver, space=space, horizon=horizon, seed=seed)
        self.discount, self.matching, self.judged = discount, matching, judged
        self.register_buffer("goal", torch.zeros(1, num_slots, slot_dim))
        self.register_buffer("has_goal", torch.zeros((), dtype=torch.bool))
        GoalCost(self.goal, matching=matching, judged=judged)

    def initial_state(self, num_envs: int) -> State:
        """See `Planner.initial_state`."""
        return self.planner.initial_state(num_envs)

    def act(
        self,
        world: SetWorld,
        rows: Tensor,
        state: State,
        is_first: Tensor,
        *,
        is_deterministic: bool,
    ) -> tuple[Tensor, State]:
        """Plan, see `Behaviour.act`; beyond the steps that the world was trained on with a warning.

        Raises:
            ValueError: if what is observed or imagined is not finite, or there is neither a goal
                nor a world that has learned rewards.
        """
        return self.planner.choose(
            world,
            rows,
            state,
            is_first,
            cost=self.cost(world),
            is_deterministic=is_deterministic,
        )

    def cost(self, world: SetWorld) -> DreamCost:
        """What plans are judged by in a world.

        Raises:
            ValueError: if there is no goal, and the world has learned no rewards.
        """
        if self.has_goal:
            return GoalCost(self.goal, matching=self.matching, judged=self.judged)
        if not world.weights["reward"]:
            raise ValueError(
                "expected a goal, or a world model that has learned rewards to plan by, got "
                "weights.reward=0"
            )
        return RewardCost(self.discount, ends=bool(world.weights["continue"]))

    def aim_at(self, rows: Tensor) -> None:
        """Plan for rows (1,R,F) from now on, in place of rewards.

        Raises:
            ValueError: if they are of another shape.
        """
        if rows.shape != self.goal.shape:
            raise ValueError(f"expected a goal {tuple(self.goal.shape)}, got {tuple(rows.shape)}")
        self.goal.copy_(rows)
        self.has_goal.fill_(True)
