"""Agents that have a world model: what they are built from, and how they act.

E environments, R rows, F features of a row, A action size.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Space
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from ocrl import checkpoint
from ocrl.agents import spaces
from ocrl.agents.actions import Actions
from ocrl.agents.interface import Agent, Observation, State
from ocrl.agents.pooling import Matching, has_fixed_size
from ocrl.agents.replay import Window
from ocrl.agents.row_error import RowError
from ocrl.agents.rows import ObservedRows, in_order_of
from ocrl.agents.saving import WEIGHTS
from ocrl.agents.set_world import SetWorld


class Behaviour(nn.Module, ABC):
    """What chooses actions with a world model, and perhaps learns in it.

    Built from `num_slots` (R), `slot_dim` (F), `has_presence`, `num_actions` and `action_dim` of
    what is observed and done, from `pooling`, which describes a `Pooling`, and from arguments of
    its own. What is to be saved stands in parameters and buffers.

    Attributes:
        has_memory: `act` goes on from a state, so rows must keep their order.
    """

    has_memory: bool = False

    def initial_state(self, num_envs: int) -> State:
        """The state before any frame of E environments: nothing, as here, without a memory."""
        return {}

    @abstractmethod
    def act(
        self,
        world: SetWorld,
        rows: Tensor,
        state: State,
        is_first: Tensor,
        *,
        is_deterministic: bool,
    ) -> tuple[Tensor, State]:
        """Choose what each environment does next.

        Args:
            world: what it acts with.
            rows: (E,R,F) of the frame.
            state: from `initial_state` or the previous call; it is not changed in place.
            is_first: (E,) bool; true starts those environments afresh.
            is_deterministic: take the likeliest action instead of drawing one.

        Returns:
            Actions as networks know them, (E,) int64 or (E,A) in [-1,1], and the next state.
        """

    def optimizers(self) -> Mapping[str, Optimizer]:
        """What `learn` steps, by name: none, as here, where nothing is learned."""
        return {}

    def learn(self, world: SetWorld, rows: Tensor, window: Window) -> Mapping[str, float]:
        """Make one update in the world as it is now, which does not learn from it.

        Args:
            world: in training mode, so that what it draws is drawn.
            rows: (B,T,R,F) of the window.
            window: what was played, on the device.

        Returns:
            Figures by name; nothing, as here, where nothing is learned.

        Raises:
            FloatingPointError: if a loss or its gradient is not finite; nothing is changed then.
        """
        return {}

    def attention(self, rows: Tensor) -> Tensor | None:
        """The share (E,R) of its attention on each row; None, as here, where there is no such."""
        return None


@dataclass(frozen=True)
class WorldNetwork:
    """Everything but spaces that an agent is built from, in plain values.

    Attributes:
        algorithm: its name.
        arguments: describes the `Behaviour`, but for the sizes and the pooling.
        pooling: describes a `Pooling`, but for the sizes.
        dynamics: describes a `SlotDynamics`; sizes that are None are those of what is observed, and
            so are `places`.
        outcome: describes an `OutcomeHead`, likewise.
        world: of `SetWorld`, but for dynamics and outcome; its `error` describes a `RowError`.
        plain_key: name of the only part of an observation that is no `Dict`.
        has_order: whether a row stays with its object from frame to frame. If it does not, rows are
            put where the nearest ones of the frame before stood.
        num_boxed: see `ObservedRows`.
        places: see there.
        match_dim: products of each row with the vectors beside the set, which policies and the
            outcome read; 0 for none.
    """

    algorithm: str
    arguments: Mapping[str, Any]
    pooling: Mapping[str, Any]
    dynamics: Mapping[str, Any]
    outcome: Mapping[str, Any]
    world: Mapping[str, Any]
    plain_key: str
    has_order: bool
    num_boxed: int = 0
    places: Sequence[int] = ()
    match_dim: int = 0


class WorldAgent(Agent):
    """Acts by a behaviour with a world model, live in training or loaded.

    Attributes:
        rows: reads observations.
        actions: of the environment.
        world: the world model.
        behaviour: what acts.
        network: what all of it was built from.
    """

    def __init__(
        self, observation_space: Space[Any], action_space: Space[Any], *, network: WorldNetwork
    ) -> None:
        """Build everything with fresh weights.

        Raises:
            ValueError: if the spaces are of a kind that no world model here foretells, or a part
                does not fit.
        """
        self.network = network
        self.rows = self._reads(observation_space)
        self.actions = Actions(action_space)
        sizes = {
            "slot_dim": self.rows.row_dim,
            "num_slots": self.rows.num_rows,
            "num_actions": self.actions.num_actions,
            "action_dim": self.actions.action_dim,
        }
        num_beside = self.rows.row_dim - self.rows.set_dim
        match = {"num_beside": num_beside, "match_dim": network.match_dim if num_beside else 0}
        world = dict(network.world)
        try:
            error = RowError(self.rows, **world.pop("error", {}))
        except TypeError as mistake:
            raise ValueError(f"agent.world.error: {mistake}") from mistake
        dynamics = _filled(network.dynamics, {**sizes, "places": self.rows.places})
        self.world = SetWorld(
            checkpoint.build(dynamics),
            outcome=checkpoint.build({**_filled(network.outcome, sizes), **match}),
            error=error,
            **world,
        )
        arguments = dict(network.arguments)
        name = str(arguments.pop("_target_"))
        target = checkpoint.find_class(name, Behaviour, where="agent.arguments")  # type: ignore[type-abstract]
        try:
            self.behaviour: Behaviour = target(
                **sizes,
                has_presence=self.rows.has_presence,
                pooling=self._pooling(match),
                **arguments,
            )
        except TypeError as error:
            raise ValueError(f"agent.arguments: {error}") from error
        self.modules = nn.ModuleDict(
            {"rows": self.rows, "world": self.world, "behaviour": self.behaviour}
        )

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.rows.scale.shift.device

    def to(self, device: torch.device | str) -> WorldAgent:
        """Move the weights."""
        self.modules.to(device)
        return self

    def initial_state(self, num_envs: int) -> State:
        """That of the behaviour, and the set of the frame before where its order counts."""
        return {"before": None, "behaviour": self.behaviour.initial_state(num_envs)}

    @torch.no_grad()
    def act(
        self,
        observation: Observation,
        state: State,
        is_first: NDArray[Any],
        *,
        is_deterministic: bool,
    ) -> tuple[NDArray[Any], State]:
        """Choose actions, see `Agent.act`."""
        self.modules.eval()
        parts = self.rows.parts(observation)
        if self.behaviour.has_memory:
            parts = self.ordered(parts, state["before"], is_first)
        action, after = self.behaviour.act(
            self.world,
            self.read(parts),
            state["behaviour"],
            torch.as_tensor(is_first, device=self.device),
            is_deterministic=is_deterministic,
        )
        return self.actions.to_env(action), {"before": parts[self.rows.name], "behaviour": after}

    def ordered(
        self,
        parts: dict[str, NDArray[Any]],
        before: NDArray[Any] | None,
        is_first: NDArray[Any] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Parts (E,...) with the rows of the set in the order of those of the frame before.

        As they are where sets keep their order, there is no frame before, or an episode begins.
        """
        if self.network.has_order or before is None:
            return parts
        found = parts[self.rows.name]
        moved = in_order_of(before, found)
        if is_first is not None:
            moved = np.where(np.asarray(is_first)[:, None, None], found, moved)
        return {**parts, self.rows.name: moved}

    def ordered_episode(self, sets: NDArray[Any]) -> NDArray[Any]:
        """The sets (L,K,F) of an episode, each in the order of the one before."""
        if self.network.has_order:
            return sets
        moved = [sets[:1]]
        for found in sets[1:]:
            moved.append(in_order_of(moved[-1], found[None]))
        return np.concatenate(moved)

    def read(self, parts: Mapping[str, NDArray[Any]]) -> Tensor:
        """The rows (E,R,F) of parts of an observation.

        Raises:
            ValueError: if they are of another space.
        """
        expected = (self.rows.num_slots, self.rows.num_columns)
        found = parts[self.rows.name].shape[1:]
        if found != expected:
            raise ValueError(f"expected {self.rows.name} of shape {expected}, got {found}")
        rows: Tensor = self.rows({n: torch.as_tensor(p).to(self.device) for n, p in parts.items()})
        return rows

    @torch.no_grad()
    def attention(
        self, observation: Observation, state: State, is_first: NDArray[Any]
    ) -> NDArray[Any] | None:
        """Share (E,K) of each row of the set, see `Agent.attention`."""
        self.modules.eval()
        share = self.behaviour.attention(self.read(self.rows.parts(observation)))
        if share is None:
            return None
        own = share[:, : self.rows.num_slots]
        return (own / own.sum(-1, keepdim=True).clamp(min=1e-12)).cpu().numpy()

    def reading(self, space: Space[Any]) -> WorldAgent:
        """The same agent for observations whose sets have other numbers of rows.

        Raises:
            ValueError: if it differs in more than that, or the pooling concatenates rows.
        """
        found = self._reads(space)
        own = self.rows
        if found.num_slots == own.num_slots and found.row_dim == own.row_dim:
            return self
        if (found.set_dim, found.vectors) != (own.set_dim, own.vectors):
            raise ValueError(f"expected observations of {own.space} but for rows, got {space}")
        if has_fixed_size(self.behaviour):
            raise ValueError(f"expected {own.space}, whose rows are concatenated, got {space}")
        other = copy.copy(self)
        found.scale = own.scale
        other.rows = found
        return other

    def _reads(self, space: Space[Any]) -> ObservedRows:
        network = self.network
        return ObservedRows(
            space,
            plain_key=network.plain_key,
            num_boxed=network.num_boxed,
            places=network.places,
        )

    def _pooling(self, match: Mapping[str, int]) -> dict[str, Any]:
        """Describes the pooling of rows, and of products with them if `match` has any."""
        sizes = {"slot_dim": self.rows.row_dim, "num_slots": self.rows.num_rows}
        if not match["match_dim"]:
            return {**self.network.pooling, **sizes}
        inner_dim = sizes["slot_dim"] + match["match_dim"]
        return {
            "_target_": f"{Matching.__module__}.{Matching.__qualname__}",
            "slot_dim": sizes["slot_dim"],
            "inner": {**self.network.pooling, **sizes, "slot_dim": inner_dim},
            **match,
        }

    def config(self) -> dict[str, Any]:
        """What `restore` builds the agent from, in plain values."""
        target = "ocrl.agents.world_agent.WorldAgent"
        return {"_target_": target, **asdict(self.network), "encoder": None}

    def save_weights(self, folder: Path) -> None:
        """Write the weights into a folder."""
        state = self.modules.state_dict()
        save_file(
            {name: value.detach().cpu().clone().contiguous() for name, value in state.items()},
            folder / WEIGHTS,
        )

    def load_weights(self, folder: Path) -> None:
        """Read what `save_weights` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, or its weights are of another agent.
        """
        weights = checkpoint.read_tensors(folder / WEIGHTS)
        checkpoint.load_state(self.modules, weights, folder)

    @classmethod
    def restore(
        cls, folder: Path, *, config: Mapping[str, Any], meta: Mapping[str, Any]
    ) -> WorldAgent:
        """Load an agent that was saved, see `ocrl.agents.load`."""
        known = {name: config[name] for name in WorldNetwork.__dataclass_fields__ if name in config}
        try:
            network = WorldNetwork(**known)
        except TypeError as error:
            raise ValueError(f"{folder / 'config.yaml'} is no agent's: {error}") from error
        observation, action = (
            spaces.from_json(meta[name]) for name in ("observation_space", "action_space")
        )
        agent = cls(observation, action, network=network)
        agent.load_weights(folder)
        agent.modules.eval()
        return agent


def _filled(description: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """A description in which sizes that are None are those of what is observed and done."""
    filled: dict[str, Any] = {}
    for name, value in description.items():
        if isinstance(value, Mapping):
            filled[name] = _filled(value, sizes)
        else:
            filled[name] = sizes[name] if value is None and name in sizes else value
    return filled
