"""A world model that an agent does not have to learn: of episodes, or of another agent.

K slots, D slot size.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

import ocrl
from ocrl import checkpoint
from ocrl.agents import saving
from ocrl.agents.imagination import ActorCritic
from ocrl.agents.planning import Planning
from ocrl.agents.world_agent import WorldAgent, WorldNetwork
from ocrl.world_model import WorldModel


class GivenWorld(ABC):
    """What an agent begins with in place of a fresh world model.

    Attributes:
        described: `path` and `hash` of where it is from, as the agent names it.
        learns: whether it goes on learning from what the agent plays.
        has_guide: whether there is an actor-critic with it, which learns no more either.
        num_steps: of the environment that it learned from, as an agent.
    """

    described: Mapping[str, str]
    learns: bool
    has_guide: bool = False
    num_steps: int = 0

    @property
    def path(self) -> str:
        """Where it is from."""
        return self.described["path"]

    @property
    @abstractmethod
    def meta(self) -> dict[str, Any]:
        """What an agent's `meta.json` says of it; another one is another run."""

    @abstractmethod
    def observed(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """What the environments are to show an agent that is asked to see an observation.

        Raises:
            ValueError: if the world model knows another one.
        """

    @abstractmethod
    def network(self, network: WorldNetwork) -> WorldNetwork:
        """What an agent is built from that is to have this world model in place of its own.

        Raises:
            ValueError: if there is nothing in it for such an agent.
        """

    @abstractmethod
    def give(self, agent: WorldAgent) -> None:
        """Put its weights into an agent that was built so.

        Raises:
            ValueError: if the agent observes or does what the world model does not know.
        """


@dataclass(frozen=True)
class TrainedWorld(GivenWorld):
    """A world model of `scripts/train_world_model.py`, with the encoder that it foretells.

    Attributes:
        model: in `eval()`, on the CPU.
        config: what its checkpoint says it is built from.
        described: see `GivenWorld`.
        learns: see there.
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
    ) -> TrainedWorld:
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
    def meta(self) -> dict[str, Any]:
        """See `GivenWorld.meta`."""
        goal = None if self.goal is None else hashlib.sha256(self.goal.tobytes()).hexdigest()
        return {**self.described, "learns": self.learns, "goal": goal}

    def aiming_at(self, goal: NDArray[Any]) -> TrainedWorld:
        """The same, for an agent that is to bring about slots (1,K,D)."""
        return replace(self, goal=goal)

    def observed(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """See `GivenWorld.observed`: slots alone, as the encoder makes them."""
        return {**observation, "has_geometry": False}

    def network(self, network: WorldNetwork) -> WorldNetwork:
        """See `GivenWorld.network`."""
        model = self.model
        weights = {name: model.weights[name] for name in ("slots", "reward", "continue")}
        sizes = {"num_context": model.num_context, "horizon": model.horizon}
        learned = {name: network.world[name] for name in ("error",) if name in network.world}
        return replace(
            network,
            dynamics=self.config["dynamics"],
            outcome=self.config["outcome"],
            world={"weights": weights, **sizes, **learned},
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
        """See `GivenWorld.give`; slots are read as they are.

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


@dataclass(frozen=True)
class LearnedWorld(GivenWorld):
    """The world model of an agent that learned it as it played, to plan in.

    What is planned is judged by that world model and, if it is asked for a guide, by the agent's
    actor-critic; none of them learns on.

    Attributes:
        agent: whose it is.
        observation: what it sees, as its `meta.json` says.
        described: see `GivenWorld`.
        num_steps: see there.
    """

    agent: WorldAgent
    observation: Mapping[str, Any]
    described: Mapping[str, str]
    num_steps: int
    learns: bool = False
    has_guide: bool = True

    @classmethod
    def load(cls, path: Path | str, *, described: Mapping[str, str]) -> LearnedWorld:
        """Take it out of an agent's run.

        Args:
            path: of the run, or of the agent in it.
            described: see `GivenWorld`.

        Raises:
            FileNotFoundError: if there is no agent.
            ValueError: if it is damaged, or has no world model.
        """
        agent, meta = saving.load(path), saving.read_meta(path)
        if not isinstance(agent, WorldAgent):
            raise ValueError(
                f"expected an agent with a world model at {path}, as agent=imagination leaves it, "
                f"got one of {saving.read_config(path).get('algorithm')}"
            )
        return cls(agent, meta["observation"], described, int(meta["step"]))

    @property
    def meta(self) -> dict[str, Any]:
        """See `GivenWorld.meta`."""
        return {**self.described, "learns": False, "of": self.agent.network.algorithm}

    def observed(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """See `GivenWorld.observed`: what the agent saw."""
        difference = checkpoint.describe_difference(self.observation, observation)
        if difference is not None:
            raise ValueError(f"expected the observation of the agent {self.path}: {difference}")
        return dict(observation)

    def network(self, network: WorldNetwork) -> WorldNetwork:
        """See `GivenWorld.network`: all but what acts is the agent's, and so is its guide."""
        arguments = dict(network.arguments)
        if "guide" not in arguments:
            raise ValueError(
                f"expected agent=planning or planning_guided with the world model of the agent "
                f"{self.path}, got {network.algorithm}; to learn on, ask that run for more of "
                "agent.total_steps"
            )
        if arguments["guide"] is not None:
            arguments["guide"] = self._guide[1]
        return replace(self.agent.network, algorithm=network.algorithm, arguments=arguments)

    def give(self, agent: WorldAgent) -> None:
        """See `GivenWorld.give`."""
        for kind, found, known in (
            ("observations", agent.rows.space, self.agent.rows.space),
            ("actions", agent.actions.space, self.agent.actions.space),
        ):
            if found != known:
                raise ValueError(f"expected {kind} of the agent {self.path}, {known}, got {found}")
        agent.rows.load_state_dict(self.agent.rows.state_dict())
        agent.world.load_state_dict(self.agent.world.state_dict())
        behaviour = agent.behaviour
        assert isinstance(behaviour, Planning)
        if behaviour.guide is not None:
            behaviour.guide.load_state_dict(self._guide[0].state_dict())

    @property
    def _guide(self) -> tuple[ActorCritic, Mapping[str, Any]]:
        """The agent's actor-critic, and what describes it."""
        own, arguments = self.agent.behaviour, self.agent.network.arguments
        if isinstance(own, Planning) and own.guide is not None:
            return own.guide, arguments["guide"]
        if not isinstance(own, ActorCritic):
            raise ValueError(
                f"expected an actor-critic to guide plans, which the agent {self.path} has not "
                "learned; take agent=planning"
            )
        return own, arguments


def _described(num_actions: int, action_dim: int) -> str:
    if not num_actions and not action_dim:
        return "no actions"
    return f"{num_actions} discrete actions" if num_actions else f"actions of {action_dim} numbers"
