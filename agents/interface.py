"""What every agent offers, whatever it was trained with.

E environments, K slots, A action size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Space
from numpy.typing import NDArray
from torch.utils._pytree import tree_map

State = Any
"""A pytree (dict, tuple, array) of arrays or tensors; passed in and out, never kept."""

Observation = NDArray[Any] | Mapping[str, NDArray[Any]]
"""(E,...) of a plain space, or such an array for each key of a dictionary."""


def _rows(leaf: Any, *, places: NDArray[Any]) -> Any:
    """Rows of an array or a tensor; anything else as it is."""
    if isinstance(leaf, torch.Tensor):
        return leaf[torch.as_tensor(places, device=leaf.device)]
    return leaf[places] if isinstance(leaf, np.ndarray) else leaf


class Agent(ABC):
    """Acts on a batch of environments."""

    @abstractmethod
    def initial_state(self, num_envs: int) -> State:
        """The state before any observation of `num_envs` environments."""

    @abstractmethod
    def act(
        self,
        observation: Observation,
        state: State,
        is_first: NDArray[Any],
        *,
        is_deterministic: bool,
    ) -> tuple[NDArray[Any], State]:
        """Choose what each environment does next.

        Args:
            observation: (E,...), as the agent's environment gives it.
            state: from `initial_state` or the previous call; it is not changed in place.
            is_first: (E,) bool; true starts those environments afresh.
            is_deterministic: take the likeliest action instead of drawing one.

        Returns:
            Actions (E,) or (E,A), and the next state.

        Raises:
            ValueError: if the observation is not of the agent's space.
        """

    def cut(self, state: State, places: NDArray[Any]) -> State:
        """The state of some environments alone, as `act` takes it for observations of these.

        Args:
            state: of E environments; its arrays and tensors are (E,...), as here, or this is
                overridden.
            places: (N,) of the environments.
        """
        return tree_map(partial(_rows, places=places), state)

    def attention(
        self, observation: Observation, state: State, is_first: NDArray[Any]
    ) -> NDArray[Any] | None:
        """The share (E,K) of the policy's attention on each slot; it sums to 1 over K.

        Args:
            observation: that `act` decides on, as are the others.
            state: see `act`.
            is_first: see `act`.

        Returns:
            None where the policy has no attention over a set of slots or objects.
        """
        return None

    def reading(self, space: Space[Any]) -> Agent:
        """The same agent for observations whose sets have other numbers of rows.

        Itself, as here, for agents that no number of rows is a matter to.

        Args:
            space: of the observation in one environment.

        Raises:
            ValueError: if it can not read them.
        """
        return self

    @classmethod
    def restore(cls, folder: Path, *, config: Mapping[str, Any], meta: Mapping[str, Any]) -> Agent:
        """Build the agent that was saved in a folder, see `ocrl.agents.load`.

        Args:
            folder: holds its weights.
            config: what the folder's `config.yaml` says, `_target_` included.
            meta: what its `meta.json` says.

        Raises:
            ValueError: if agents of this class are not saved, or the folder does not fit.
        """
        raise ValueError(f"expected an agent that can be loaded, got {cls.__name__}")
