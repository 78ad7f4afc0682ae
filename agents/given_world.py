"""A world model that was trained on episodes, as that of an agent.

K slots, D slot size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

import ocrl
from ocrl import checkpoint
from ocrl.agents.planning import Planning
from ocrl.agents.world_agent import WorldAgent, WorldNetwork
from ocrl.world_model import WorldModel


@dataclass(frozen=True)
class GivenWorld:
    """A world model of `scripts/train_world_model.py`, with the encoder that it foretells.

    Attributes:
        model: in `eval()`, on the CPU.
        config: what its checkpoint says it is built from.
        described: `path` and `hash` of the checkpoint, as the agent names it.
        learns: whether it goes on learning from what the agent plays.
        goal: (1,K,D) the slots that a planning agent is to bring about; None for its rewards.
    """

    model: WorldModel
    config: Mapping[str, Any]
    described: Mapping[str, str]
    learns: bool
    goal: NDArray[Any] | None = None

    @classmethod
    def load(
        cls, path: Path | str, *, learns: bool, described: Mapping[str, str] | None = None
    ) -> GivenWorld:
        """Load one.

        Args:
            path: of the checkpoint, or of the run that wrote it.
            learns: whether it goes on learning.
            described: see above; None for that of the path as it is.

        Raises:
            FileNotFoundError: if there is no checkpoint.
            ValueError: if it is damaged, or no world model's.
        """
        model = ocrl.load(path)
        if not isinstance(model, WorldModel):
            raise ValueError(
                f"expected a world model at {path}, as scripts/train_world_model.py leaves it, got "
                f"a {type(model).__name__}"
            )
        named = {"path": str(checkpoint.find(path)), "hash": checkpoint.digest(path)}
        return cls(model, checkpoint.read_config(path), described or named, learns)

    @property
    def path(self) -> str:
        """Of the checkpoint."""
        return self.described["path"]

    @property
    def meta(self) -> dict[str, Any]:
        """What an agent's `meta.json` says of it; another one is another run."""
        goal = None if self.goal is None else hashlib.sha256(self.goal.tobytes()).hexdigest()
        return {**self.described, "learns": self.learns, "goal": goal}

    def aiming_at(self, goal: NDArray[Any]) -> GivenWorld:
        """The same, for an agent that is to bring about slots (1,K,D)."""
        return replace(self, goal=goal)

    def network(self, network: WorldNetwork) -> WorldNetwork:
        """What an agent is built from that is to have this world model in place of its own."""
        model = self.model
        weights = {name: model.weights[name] for name in ("slots", "reward", "continue")}
        sizes = {"num_context": model.num_context, "horizon": model.horizon}
        return replace(
            network,
            dynamics=self.config["dynamics"],
            outcome=self.config["outcome"],
            world={"weights": weights, **sizes},
            has_order=not model.model.sees_single_frames,
        )

    def check(self, agent: WorldAgent) -> None:
        """Refuse an agent that observes or does what the world model does not know.

        Raises:
            ValueError: naming both.
        """
        encoder, dynamics = self.model.model.encoder, self.model.dynamics
        known = encoder.num_slots, encoder.slot_dim
        seen = agent.rows.num_rows, agent.rows.row_dim
        if seen != known:
            raise ValueError(
                f"expected observations of {known[0]} slots of size {known[1]}, which the world "
                f"model {self.path} foretells, got {seen[0]} of {seen[1]}; set obs=slots, "
                "observation.has_geometry=false and observation.vectors=[]"
            )
        sizes = dynamics.num_actions, dynamics.action_dim
        found = agent.actions.num_actions, agent.actions.action_dim
        if sizes != found:
            raise ValueError(
                f"expected {_described(*sizes)}, which the world model {self.path} knows, got "
                f"{agent.actions.space}"
            )
        space = agent.actions.space
        if isinstance(space, Box) and not (np.all(space.low == -1) and np.all(space.high == 1)):
            raise ValueError(
                f"expected actions in [-1,1] for a world model of episodes, got {space}; wrap the "
                "environment in gymnasium.wrappers.RescaleAction, and collect with it"
            )

    def give(self, agent: WorldAgent) -> None:
        """Begin with its weights, and read slots as they are.

        Raises:
            ValueError: as `check`, or if there is a goal and the agent does not plan.
        """
        self.check(agent)
        agent.world.dynamics.load_state_dict(self.model.dynamics.state_dict())
        agent.world.outcome.load_state_dict(self.model.outcome.state_dict())
        if self.goal is None:
            return
        if not isinstance(agent.behaviour, Planning):
            raise ValueError(f"expected agent=planning with a goal, got {agent.network.algorithm}")
        agent.behaviour.aim_at(agent.read({agent.rows.name: self.goal}))


def _described(num_actions: int, action_dim: int) -> str:
    if not num_actions and not action_dim:
        return "no actions"
    return f"{num_actions} discrete actions" if num_actions else f"actions of {action_dim} numbers"
