"""Plan in a world model, whether it is learned while acting or was given.

E environments, B windows, T frames, R rows (slots), F features of a row, A action size, H steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ocrl import checkpoint
from ocrl.agents.costs import DreamCost, GoalCost, Judged, Matching, RewardCost
from ocrl.agents.imagination import ActorCritic
from ocrl.agents.interface import State
from ocrl.agents.planner import Planner, find_solver
from ocrl.agents.replay import Window
from ocrl.agents.set_world import SetWorld
from ocrl.agents.solvers import ActionSpace
from ocrl.agents.world_agent import Behaviour


class Planning(Behaviour):
    """Searches for the actions of the best imagined future, does the first, and searches again.

    Model-predictive control on slots, as C-JEPA and Slot-MPC (Nam et al. 2026, arXiv 2602.11389;
    arXiv 2605.14937), for discrete and continuous actions. What is best is the reward that is
    expected, or with a goal the nearness to it. With a guide, an actor-critic that learns in the
    same world model, its critic values what comes after the horizon and what its actor would do is
    tried as well, as in TD-MPC2 (Hansen et al. 2024, arXiv 2310.16828); without, nothing is learned
    but the world model. An action that is drawn comes from where the search ended, so that what is
    played varies.

    Args:
        num_slots: R of what is observed.
        slot_dim: F.
        has_presence: whether the first feature of a row says that it holds something.
        num_actions: of a discrete action space, 0 for none.
        action_dim: A of a continuous action space, 0 for none.
        pooling: describes that of the guide.
        horizon: H of what is imagined.
        steps_per_plan: that are done before the next search: more of them cost less time.
        gamma: factor of a reward that comes a step later.
        guide: describes an `ActorCritic`, but for the sizes and the pooling; None for none.
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
        steps_per_plan: int,
        gamma: float,
        guide: Mapping[str, Any] | None,
        continuous: Mapping[str, Any],
        discrete: Mapping[str, Any],
        matching: Matching,
        judged: Judged,
        seed: int,
    ) -> None:
        super().__init__()
        if not 0 < gamma <= 1:
            raise ValueError(f"expected agent.arguments.gamma in (0,1], got {gamma}")
        space = ActionSpace(num_actions, (-1.0,) * action_dim, (1.0,) * action_dim)
        self.guide: ActorCritic | None = None
        if guide is not None:
            self.guide = _build_guide(
                guide,
                num_slots=num_slots,
                slot_dim=slot_dim,
                has_presence=has_presence,
                num_actions=num_actions,
                action_dim=action_dim,
                pooling=pooling,
            )
        solver = find_solver(space, continuous=continuous, discrete=discrete)
        self.planner = Planner(
            solver, space=space, horizon=horizon, steps_per_plan=steps_per_plan, seed=seed
        )
        self.gamma, self.matching, self.judged = gamma, matching, judged
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
            actor=None if self.guide is None or self.has_goal else self._likeliest,
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
        return RewardCost(
            self.gamma,
            ends=bool(world.weights["continue"]),
            value=None if self.guide is None else self.guide.slow_critic,
        )

    def optimizers(self) -> Mapping[str, Optimizer]:
        """See `Behaviour.optimizers`: those of the guide."""
        return {} if self.guide is None else self.guide.optimizers()

    def learn(self, world: SetWorld, rows: Tensor, window: Window) -> Mapping[str, float]:
        """See `Behaviour.learn`: what the guide learns."""
        return {} if self.guide is None else self.guide.learn(world, rows, window)

    def aim_at(self, rows: Tensor) -> None:
        """Plan for rows (1,R,F) from now on, in place of rewards.

        Raises:
            ValueError: if they are of another shape.
        """
        if rows.shape != self.goal.shape:
            raise ValueError(f"expected a goal {tuple(self.goal.shape)}, got {tuple(rows.shape)}")
        self.goal.copy_(rows)
        self.has_goal.fill_(True)

    def _likeliest(self, rows: Tensor) -> Tensor:
        """What the guide's actor would do."""
        assert self.guide is not None
        return self.guide.actor(rows).mode()


def _build_guide(guide: Mapping[str, Any], **sizes: Any) -> ActorCritic:
    described = dict(guide)
    where = "agent.arguments.guide"
    target = checkpoint.find_class(str(described.pop("_target_")), ActorCritic, where=where)
    try:
        return target(**sizes, **described)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error
