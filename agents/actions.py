"""Actions between environments, which have bounds of their own, and networks, which have none.

... leading axes, E environments, A action size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Actions:
    """The actions of one environment as a network knows them.

    Discrete ones are int64 from 0 on; continuous ones (A,) are float32 in [-1,1], the bounds of the
    space.

    Attributes:
        space: of one environment.
        num_actions: of a discrete space, 0 for none.
        action_dim: A of a continuous space, 0 for none.
    """

    space: Space[Any]
    num_actions: int = field(init=False)
    action_dim: int = field(init=False)

    def __post_init__(self) -> None:
        space, sizes = self.space, (0, 0)
        if isinstance(space, Discrete):
            sizes = int(space.n), 0
        elif isinstance(space, Box) and len(space.shape) == 1 and space.is_bounded():
            sizes = 0, space.shape[0]
        if not any(sizes):
            raise ValueError(
                f"expected discrete actions, or a vector (A,) of bounded ones, got {space}; wrap "
                "the environment, as gymnasium.wrappers.RescaleAction can"
            )
        object.__setattr__(self, "num_actions", sizes[0])
        object.__setattr__(self, "action_dim", sizes[1])

    def sample(self, num_envs: int) -> NDArray[Any]:
        """Actions (E,) or (E,A) of the environment, drawn from the space's own generator."""
        return np.stack([self.space.sample() for _ in range(num_envs)])

    def from_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Actions (...,[A]) of the environment as a network knows them."""
        if isinstance(self.space, Discrete):
            return np.asarray(actions, np.int64) - int(self.space.start)
        low, high = self._bounds()
        unit: NDArray[Any] = 2.0 * (np.asarray(actions, np.float64) - low) / (high - low) - 1.0
        return unit.astype(np.float32)

    def to_env(self, actions: Tensor) -> NDArray[Any]:
        """A network's actions (...,[A]) as the environment takes them; clipped to the bounds."""
        if isinstance(self.space, Discrete):
            return actions.cpu().numpy() + int(self.space.start)
        low, high = self._bounds()
        unit = actions.detach().double().cpu().numpy().clip(-1.0, 1.0)
        scaled: NDArray[Any] = low + (unit + 1.0) / 2.0 * (high - low)
        return scaled.astype(self.space.dtype)

    def empty(self) -> NDArray[Any]:
        """An action that stands where none was done: zero."""
        return np.zeros((), np.int64) if self.num_actions else np.zeros(self.action_dim, np.float32)

    def draw(self, *shape: int, device: torch.device) -> Tensor:
        """A network's actions (...,[A]), all alike likely, by torch's generator."""
        if self.num_actions:
            return torch.randint(self.num_actions, shape, device=device)
        return 2.0 * torch.rand(*shape, self.action_dim, device=device) - 1.0

    def _bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        box: Any = self.space
        return box.low.astype(np.float64), box.high.astype(np.float64)
