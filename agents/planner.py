"""From step to step: search for actions in imagination, do the first, and remember.

E environments, R rows (slots), F features of a row, A action size, H steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ocrl import checkpoint
from ocrl.agents.costs import DreamCost, imagined_cost
from ocrl.agents.interface import State
from ocrl.agents.solvers import ActionSpace, Problem, Solver
from ocrl.interfaces import Policy
from ocrl.slot_world import SlotWorld


class Planner:
    """Model-predictive control: at every step a search that goes on from that of the step before.

    The state is the dynamics', which has read all frames but the present one, and the last plan.
    What is drawn follows from the seed, the place of an environment among those of
    `initial_state`, and the steps done since: a state that is cut goes on as it would have.
    """

    def __init__(self, solver: Solver, *, space: ActionSpace, horizon: int, seed: int) -> None:
        """Set what is searched for, and how.

        Args:
            solver: of the actions' kind.
            space: of actions, as the world model knows them.
            horizon: H.
            seed: of the draws.

        Raises:
            ValueError: if the horizon is not positive.
        """
        if horizon < 1:
            raise ValueError(f"expected agent.arguments.horizon of at least 1, got {horizon}")
        self.solver, self.space, self.horizon, self.seed = solver, space, horizon, seed

    def initial_state(self, num_envs: int) -> State:
        """The state before any frame of E environments; the dynamics' comes with the first."""
        return {
            "dynamics": None,
            "plan": None,
            "place": torch.arange(num_envs),
            "step": torch.zeros(num_envs, dtype=torch.int64),
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
            is_deterministic: do the plan's first action, instead of one drawn from where the
                search ended.

        Returns:
            Actions (E,) int64 or (E,A), and the next state.

        Raises:
            ValueError: if what is observed or imagined is not finite.
        """
        before = state["dynamics"]
        if before is None:
            before = world.dynamics.initial_state(len(rows))
        proposals = None
        if actor is not None:
            imagined = world.dynamics.imagine(rows, before, actor, self.horizon, is_first=is_first)
            assert imagined.action is not None
            proposals = imagined.action[:, None]
        problem = Problem(
            imagined_cost(world, rows, before, is_first, cost),
            self.space,
            horizon=self.horizon,
            generators=self._generators(state),
            device=rows.device,
            previous=state["plan"],
            is_fresh=is_first,
            proposals=proposals,
        )
        plan = self.solver.solve(problem)
        action = plan.action[:, 0] if is_deterministic else plan.first
        _, after = world.dynamics.step(rows, action, before, is_first)
        later = {"dynamics": after, "plan": plan, "step": state["step"] + 1}
        return action, {**state, **later}

    def _generators(self, state: State) -> list[torch.Generator]:
        pairs = zip(state["place"].tolist(), state["step"].tolist(), strict=True)
        seeds = [np.random.SeedSequence((self.seed, place, step)) for place, step in pairs]
        return [torch.Generator().manual_seed(int(s.generate_state(1)[0])) for s in seeds]


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
