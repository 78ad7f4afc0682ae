"""From step to step: search for actions in imagination, do the first, and remember.

E environments, R rows (slots), F features of a row, A action size, H steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ocrl import checkpoint
from ocrl.agents.costs import DreamCost, imagined_cost
from ocrl.agents.interface import State
from ocrl.agents.solvers import ActionSpace, Plan, Problem, Solver
from ocrl.interfaces import Policy
from ocrl.slot_world import SlotWorld


class Planner:
    """Model-predictive control: again and again a search that goes on from the one before.

    The state is the dynamics', which has read all frames but the present one, and the last plan
    with the steps done of it. What is drawn follows from the seed, the place of an environment
    among those of `initial_state`, and the steps done since: a state that is cut goes on as it
    would have.
    """

    def __init__(
        self,
        solver: Solver,
        *,
        space: ActionSpace,
        horizon: int,
        steps_per_plan: int,
        seed: int,
    ) -> None:
        """Set what is searched for, and how.

        Args:
            solver: of the actions' kind.
            space: of actions, as the world model knows them.
            horizon: H.
            steps_per_plan: of a plan that are done before the next search, up to H.
            seed: of the draws.

        Raises:
            ValueError: if a number is out of range.
        """
        if not 1 <= steps_per_plan <= horizon:
            raise ValueError(
                "expected agent.arguments.horizon of at least 1 and steps_per_plan from 1 to it, "
                f"got {horizon} and {steps_per_plan}"
            )
        self.solver, self.space, self.horizon = solver, space, horizon
        self.steps_per_plan, self.seed = steps_per_plan, seed

    def initial_state(self, num_envs: int) -> State:
        """The state before any frame of E environments; the dynamics' comes with the first."""
        return {
            "dynamics": None,
            "plan": None,
            "place": torch.arange(num_envs),
            "step": torch.zeros(num_envs, dtype=torch.int64),
            "age": torch.zeros(num_envs, dtype=torch.int64),
        }

    def choose(
        self,
        world: SlotWorld,
        rows: Tensor,
        state: State,
        is_first: Tensor,
        *,
        cost: DreamCost,
        actor: Policy | None = None,
        is_deterministic: bool,
    ) -> tuple[Tensor, State]:
        """Choose what each environment does next.

        Args:
            world: in `eval()`.
            rows: (E,R,F) of the present frame.
            state: from `initial_state` or the previous call; it is not changed in place.
            is_first: (E,) bool; true starts those environments afresh.
            cost: judges what is imagined.
            actor: what it would do is tried, too; None for no such.
            is_deterministic: do the plan, instead of one drawn from where the search ended.

        Returns:
            Actions (E,) int64 or (E,A), and the next state.

        Raises:
            ValueError: if what is observed or imagined is not finite.
        """
        if state["dynamics"] is None:
            state = {**state, "dynamics": world.dynamics.initial_state(len(rows))}
        before = state["dynamics"]
        age = torch.where(is_first.cpu(), 0, state["age"])
        plan, due = state["plan"], (age == 0).nonzero().flatten()
        if len(due):
            part = tree_map(partial(_of, places=due), (rows, state, is_first))
            found = self._search(world, *part, cost=cost, actor=actor)
            plan = found if plan is None else _put(plan, found, due)
        sequence = plan.action if is_deterministic else plan.drawn
        action = sequence[torch.arange(len(rows)), age.to(sequence.device)]
        _, after = world.dynamics.step(rows, action, before, is_first)
        later = {"dynamics": after, "plan": plan, "step": state["step"] + 1}
        return action, {**state, **later, "age": (age + 1) % self.steps_per_plan}

    def _search(
        self,
        world: SlotWorld,
        rows: Tensor,
        state: State,
        is_first: Tensor,
        *,
        cost: DreamCost,
        actor: Policy | None,
    ) -> Plan:
        """A plan for environments whose last one is done, or that begin afresh."""
        proposals = None
        if actor is not None:
            imagined = world.dynamics.imagine(
                rows, state["dynamics"], actor, self.horizon, is_first=is_first
            )
            assert imagined.action is not None
            proposals = imagined.action[:, None]
        problem = Problem(
            imagined_cost(world, rows, state["dynamics"], is_first, cost),
            self.space,
            horizon=self.horizon,
            generators=self._generators(state),
            device=rows.device,
            previous=state["plan"],
            is_fresh=is_first,
            proposals=proposals,
            steps_done=self.steps_per_plan,
        )
        return self.solver.solve(problem)

    def _generators(self, state: State) -> list[torch.Generator]:
        pairs = zip(state["place"].tolist(), state["step"].tolist(), strict=True)
        seeds = [np.random.SeedSequence((self.seed, place, step)) for place, step in pairs]
        return [torch.Generator().manual_seed(int(s.generate_state(1)[0])) for s in seeds]


def _of(value: Tensor | None, *, places: Tensor) -> Tensor | None:
    """What belongs to some environments; nothing of nothing."""
    return None if value is None else value[places.to(value.device)]


def _put(plan: Plan, found: Plan, places: Tensor) -> Plan:
    """A plan with that of some environments in their places."""
    pairs = zip(plan, found, strict=True)
    return Plan(*(old.index_copy(0, places.to(old.device), new) for old, new in pairs))


def find_solver(
    space: ActionSpace, *, continuous: Mapping[str, Any], discrete: Mapping[str, Any]
) -> Solver:
    """Build the solver of an action space.

    Args:
        space: of the actions.
        continuous: describes a solver of continuous actions.
        discrete: describes one of discrete actions.

    Raises:
        ValueError: if it is no solver, or searches actions of the other kind.
    """
    name = "discrete" if space.num_actions else "continuous"
    described = dict(discrete if space.num_actions else continuous)
    where = f"agent.arguments.{name}"
    target = checkpoint.find_class(str(described.pop("_target_")), Solver, where=where)
    if target.is_discrete != bool(space.num_actions):
        raise ValueError(f"{where}: expected a solver of {name} actions, got {target.__name__}")
    try:
        return target(**described)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error
