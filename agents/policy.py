"""Policies of Stable-Baselines3 as agents.

E environments, K slots, A action size.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium.spaces import Discrete, Space
from numpy.typing import NDArray
from safetensors.torch import save_file
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.dqn.policies import MultiInputPolicy as QPolicy
from torch import nn

from ocrl import checkpoint
from ocrl.agents import spaces
from ocrl.agents.encoder_state import EncoderState, find_state
from ocrl.agents.features import Features
from ocrl.agents.interface import Agent, Observation, State
from ocrl.agents.pooling import has_fixed_size
from ocrl.agents.saving import WEIGHTS

Algorithm = Literal["ppo", "a2c", "dqn", "recurrent_ppo"]
_KNOWN: dict[str, tuple[type[BaseAlgorithm], type[BasePolicy]]] = {
    "ppo": (PPO, MultiInputActorCriticPolicy),
    "a2c": (A2C, MultiInputActorCriticPolicy),
    "dqn": (DQN, QPolicy),
}
_RECURRENT = "recurrent_ppo"
_NOT_OF_NETWORK = ("_target_", "training")


def find_algorithm(name: str) -> tuple[type[BaseAlgorithm], type[BasePolicy]]:
    """The classes of an algorithm and of its policy.

    Raises:
        ValueError: if there is no such algorithm, or its package is not installed.
    """
    if name in _KNOWN:
        return _KNOWN[name]
    if name != _RECURRENT:
        raise ValueError(f"expected algorithm to be one of {[*_KNOWN, _RECURRENT]}, got {name!r}")
    try:
        contrib = importlib.import_module("sb3_contrib")
        policies = importlib.import_module("sb3_contrib.ppo_recurrent.policies")
    except ModuleNotFoundError as error:
        raise ValueError(
            "algorithm recurrent_ppo needs sb3-contrib: pip install 'ocrl[recurrent]'"
        ) from error
    return contrib.RecurrentPPO, policies.RecurrentMultiInputActorCriticPolicy


def check_actions(algorithm: str, space: Space[Any]) -> None:
    """Refuse actions that an algorithm can not choose.

    Raises:
        ValueError: if they are continuous and the algorithm is DQN.
    """
    if algorithm == "dqn" and not isinstance(space, Discrete):
        raise ValueError(
            f"expected discrete actions for dqn, which compares the value of each, got {space}; "
            "use agent=ppo, or an environment with discrete actions"
        )


@dataclass(frozen=True)
class Network:
    """Everything but spaces that a policy is built from, in plain values.

    Attributes:
        algorithm: whose policy it is.
        policy: further arguments of the policy, by the names of Stable-Baselines3.
        plain_key: name of the only part of an observation that is no `Dict`.
        pooling: see `Features`.
        vision: see `Features`.
        match_dim: see `Features`.
        encoder: see `Features`.
        whitening: see `Features`; agents of before had none.
        hides_empty: see `Features`, likewise.
        num_geometry: see `Features`, likewise.
    """

    algorithm: str
    policy: Mapping[str, Any]
    plain_key: str
    pooling: Mapping[str, Any]
    vision: Mapping[str, Any]
    match_dim: int
    encoder: Mapping[str, Any] | None
    whitening: float | None = None
    hides_empty: bool = False
    num_geometry: int = 0

    def arguments(self) -> dict[str, Any]:
        """What the policy's constructor takes beside spaces and learning rate."""
        return {
            **self.policy,
            "features_extractor_class": Features,
            "features_extractor_kwargs": {
                "plain_key": self.plain_key,
                "pooling": self.pooling,
                "vision": self.vision,
                "match_dim": self.match_dim,
                "whitening": self.whitening,
                "hides_empty": self.hides_empty,
                "num_geometry": self.num_geometry,
                "encoder": self.encoder,
            },
        }

    def states(self) -> EncoderState | None:
        """How the state of the encoder stands in what the policy reads; None without a memory.

        Raises:
            ValueError: as `EncoderState`.
        """
        if self.encoder is None:
            return None
        return find_state(checkpoint.build(self.encoder), plain_key=self.plain_key)


class PolicyAgent(Agent):
    """Acts by a policy of Stable-Baselines3, live in training or loaded.

    Where the policy has an encoder with a memory, what that remembers is part of the agent's state:
    observations are those of the environment.

    That of DQN takes the best action whether or not the likeliest is asked for: its exploration
    belongs to training.
    """

    def __init__(self, policy: BasePolicy, *, network: Network) -> None:
        """Wrap a policy.

        Args:
            policy: not copied, so that an agent follows its training.
            network: what it was built from.
        """
        self.policy = policy
        self.network = network

    def initial_state(self, num_envs: int) -> State:
        """Zeros of a recurrent policy, nothing for others; beside what its encoder remembers."""
        states, memory = self.features.states, self._initial_memory(num_envs)
        return memory if states is None else (memory, np.tile(states.start, (num_envs, 1)))

    def _initial_memory(self, num_envs: int) -> State:
        if self.network.algorithm != _RECURRENT:
            return None
        memory: Any = self.policy
        layers, _, size = memory.lstm_hidden_state_shape
        zeros = np.zeros((layers, num_envs, size), np.float32)
        return zeros, zeros.copy()

    def cut(self, state: State, places: NDArray[Any]) -> State:
        """See `Agent.cut`; what a recurrent policy remembers is (layers,E,size)."""
        states = self.features.states
        memory, *others = (state,) if states is None else state
        if memory is not None:
            memory = tuple(part[:, places] for part in memory)
        return memory if states is None else (memory, *(other[places] for other in others))

    def act(
        self,
        observation: Observation,
        state: State,
        is_first: NDArray[Any],
        *,
        is_deterministic: bool,
    ) -> tuple[NDArray[Any], State]:
        """Choose actions, see `Agent.act`; those of a box are clipped to it."""
        how: dict[str, Any] = {
            "episode_start": np.asarray(is_first),
            "deterministic": is_deterministic,
        }
        states = self.features.states
        seen, before = self._seen(observation, state, is_first)
        if states is None or before is None:
            return self.policy.predict(seen, state=state, **how)
        actions, memory = self.policy.predict(seen, state=state[0], **how)
        return actions, (memory, states.after(observation, before))

    def _seen(
        self, observation: Observation, state: State, is_first: NDArray[Any]
    ) -> tuple[Any, NDArray[np.float32] | None]:
        """What the policy reads, and (E,S), what its encoder remembers, if it has a memory."""
        states = self.features.states
        if states is None:
            return observation, None
        before = np.where(np.asarray(is_first)[:, None], states.start, state[1])
        return states.beside(observation, before), before

    @torch.no_grad()
    def attention(
        self, observation: Observation, state: State, is_first: NDArray[Any]
    ) -> NDArray[Any] | None:
        """Share (E,K) of each slot in the policy's pooling, see `Agent.attention`."""
        self.policy.set_training_mode(False)
        tensors, _ = self.policy.obs_to_tensor(self._seen(observation, state, is_first)[0])
        inputs: Any = preprocess_obs(tensors, self.policy.observation_space)
        share = self.features.attention(inputs)
        return None if share is None else share.cpu().numpy()

    def reading(self, space: Space[Any]) -> PolicyAgent:
        """The same agent for observations whose sets have other numbers of rows.

        Args:
            space: of the observation in one environment.

        Raises:
            ValueError: if it differs in more than that, or the pooling concatenates rows.
        """
        states = self.features.states
        space = space if states is None else states.space(space)
        own, found = self.policy.observation_space, spaces.channels_first(space)
        if found == own:
            return self
        key = self.network.plain_key
        expected, given = (
            {name: part.shape[len(part.shape) == 2 :] for name, part in parts.items()}
            for parts in (spaces.parts(s, plain_key=key) for s in (own, found))
        )
        if expected != given:
            raise ValueError(f"expected observations of {own} but for rows of sets, got {space}")
        if has_fixed_size(self.policy):
            raise ValueError(f"expected sets of {own}, whose rows are concatenated, got {space}")
        policy = copy.copy(self.policy)
        policy.observation_space = found
        return PolicyAgent(policy, network=self.network)

    @property
    def features(self) -> Features:
        """The part of the policy that reads observations."""
        is_q = self.network.algorithm == "dqn"
        owner: Any = self.policy.q_net if is_q else self.policy
        return owner.features_extractor

    def measure(self, observations: Mapping[str, torch.Tensor]) -> None:
        """Fit the scale of sets to observations (B,K,F) by name, see `Features.measure`."""
        device = self.policy.device
        self.features.measure({name: value.to(device) for name, value in observations.items()})
        self._copy_to_target()

    def take_encoder(self, encoder: nn.Module) -> None:
        """Begin with the weights of a trained encoder.

        Raises:
            ValueError: if the policy has no encoder of its own.
        """
        if self.features.encoder is None:
            raise ValueError("expected a policy with an encoder of its own, got none")
        self.features.encoder.load_state_dict(encoder.state_dict())
        self._copy_to_target()

    def _copy_to_target(self) -> None:
        if self.network.algorithm == "dqn":
            policy: Any = self.policy
            policy.q_net_target.load_state_dict(policy.q_net.state_dict())

    def config(self) -> dict[str, Any]:
        """What `restore` builds the agent from, in plain values."""
        return {"_target_": "ocrl.agents.policy.PolicyAgent", **asdict(self.network)}

    def save_weights(self, folder: Path) -> None:
        """Write the weights into a folder."""
        weights = {
            name: tensor.detach().cpu().clone().contiguous()
            for name, tensor in _once(self.policy).items()
        }
        save_file(weights, folder / WEIGHTS)

    def load_weights(self, folder: Path) -> None:
        """Read what `save_weights` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, or its weights are of another policy.
        """
        weights = checkpoint.read_tensors(folder / WEIGHTS)
        if differing := weights.keys() ^ _once(self.policy).keys():
            raise ValueError(
                f"{folder}: the weights do not fit the configuration: other names: "
                f"{sorted(differing)}"
            )
        checkpoint.load_state(self.policy, weights, folder, strict=False)

    @classmethod
    def restore(
        cls, folder: Path, *, config: Mapping[str, Any], meta: Mapping[str, Any]
    ) -> PolicyAgent:
        """Build the agent that was saved in a folder, see `Agent.restore`."""
        try:
            network = Network(**{k: v for k, v in config.items() if k not in _NOT_OF_NETWORK})
        except TypeError as error:
            raise ValueError(f"{folder / 'config.yaml'} is no agent's: {error}") from error
        observation, action = (
            spaces.from_json(meta[name]) for name in ("observation_space", "action_space")
        )
        policy = _build(network, observation, action)
        agent = cls(policy, network=network)
        agent.load_weights(folder)
        policy.set_training_mode(False)
        return agent


def _once(policy: nn.Module) -> dict[str, torch.Tensor]:
    """Weights by name; those with several names, as shared parts have, by the first one."""
    names: dict[tuple[int, torch.Size], str] = {}
    state = policy.state_dict()
    for name, tensor in state.items():
        names.setdefault((tensor.data_ptr(), tensor.shape), name)
    return {name: state[name] for name in names.values()}


def _build(network: Network, observation: Space[Any], action: Space[Any]) -> BasePolicy:
    """A fresh policy for observations of an environment, with frames (H,W,3)."""
    _, policy_class = find_algorithm(network.algorithm)
    states = network.states()
    read = spaces.channels_first(observation if states is None else states.space(observation))

    def no_rate(progress_remaining: float) -> float:
        return 0.0

    return policy_class(read, action, no_rate, **network.arguments())
