"""Actor and critic over sets of rows, and what an actor may choose.

B batch, R rows, F features of a row, A action size or number of actions, M bins of the value.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ocrl import checkpoint
from ocrl.agents.pooling import Pooling
from ocrl.nn.latent import mix_uniform
from ocrl.nn.mlp import MLP
from ocrl.nn.two_hot import TwoHot

_UNIMIX = 0.01
"""Share of the uniform distribution in discrete choices: no action becomes impossible."""
_LEAST_STD, _LARGEST_STD = 0.1, 1.0


class Choice(ABC):
    """A distribution over actions, for each of B sets."""

    @abstractmethod
    def sample(self) -> Tensor:
        """Draw actions (B,) or (B,A); those of a box have a gradient."""

    @abstractmethod
    def mode(self) -> Tensor:
        """The likeliest actions, or those of the mean before it is bounded."""


@dataclass(frozen=True)
class DiscreteChoice(Choice):
    """Of one of several actions.

    Attributes:
        log_probability: (B,A).
    """

    log_probability: Tensor

    def sample(self) -> Tensor:
        """Draw (B,) int64."""
        # The first arrival of exponential clocks with these rates is a draw.
        clocks = torch.empty_like(self.log_probability).exponential_()
        return (self.log_probability.exp() / clocks).argmax(-1)

    def mode(self) -> Tensor:
        """The likeliest (B,)."""
        return self.log_probability.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Of actions (B,), in nats."""
        return self.log_probability.gather(-1, action[:, None]).squeeze(-1)

    def entropy(self) -> Tensor:
        """(B,) in nats."""
        return -(self.log_probability.exp() * self.log_probability).sum(-1)


@dataclass(frozen=True)
class BoundedChoice(Choice):
    """A Gaussian through tanh: numbers in (-1,1).

    Attributes:
        mean: (B,A) before tanh.
        std: (B,A) before tanh.
    """

    mean: Tensor
    std: Tensor

    def sample(self) -> Tensor:
        """Draw (B,A), with the gradient of mean and std."""
        return self.sample_with_entropy()[0]

    def mode(self) -> Tensor:
        """(B,A)."""
        return self.mean.tanh()

    def sample_with_entropy(self) -> tuple[Tensor, Tensor]:
        """Draw (B,A), and estimate the entropy (B,) by minus the log-density of what was drawn."""
        noise = torch.randn_like(self.mean)
        inner = self.mean + self.std * noise
        log_normal = -0.5 * noise.square() - self.std.log() - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(x)^2), without the loss of digits far from 0.
        log_slope = 2 * (math.log(2) - inner - functional.softplus(-2 * inner))
        return inner.tanh(), (log_slope - log_normal).sum(-1)


class SetNetwork(nn.Module):
    """A pooling of rows and an MLP on its vector.

    Args:
        pooling: describes a `Pooling`.
        hidden_dims: of the MLP.
        out_dim: of the result.
        has_presence: whether the first feature of a row says that it holds something.
    """

    def __init__(
        self,
        pooling: Mapping[str, Any],
        *,
        hidden_dims: Sequence[int],
        out_dim: int,
        has_presence: bool,
    ) -> None:
        super().__init__()
        self.has_presence = has_presence
        self.pooling: Pooling = checkpoint.build(pooling)
        self.head = MLP(
            self.pooling.out_dim, hidden_dims=hidden_dims, out_dim=out_dim, activation="silu"
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Read sets (B,R,F) into (B,out_dim)."""
        return self.head(self.pooling(rows, self._is_present(rows)))

    def attention(self, rows: Tensor) -> Tensor | None:
        """The share (B,R) of each row in the pooling, see `Pooling.attention`."""
        return self.pooling.attention(rows, self._is_present(rows))

    def start_at_zero(self) -> None:
        """Make the last layer give 0 for everything."""
        last = self.head.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def _is_present(self, rows: Tensor) -> Tensor | None:
        return rows[..., 0] > 0.5 if self.has_presence else None


class Actor(nn.Module):
    """From sets to choices; all actions are alike likely at first, but for the width of a box.

    Args:
        network: arguments of `SetNetwork`, but for its size.
        num_actions: of a discrete space, 0 for none.
        action_dim: A of a continuous one, 0 for none.
    """

    def __init__(self, network: Mapping[str, Any], *, num_actions: int, action_dim: int) -> None:
        super().__init__()
        self.is_discrete = num_actions > 0
        self.network = SetNetwork(**network, out_dim=num_actions or 2 * action_dim)
        self.network.start_at_zero()

    def forward(self, rows: Tensor) -> Choice:
        """Choose for sets (B,R,F)."""
        if self.is_discrete:
            return self.discrete(rows)
        return self.bounded(rows)

    def discrete(self, rows: Tensor) -> DiscreteChoice:
        """Choose for sets (B,R,F) among several actions."""
        return DiscreteChoice(mix_uniform(self.network(rows), _UNIMIX))

    def bounded(self, rows: Tensor) -> BoundedChoice:
        """Choose for sets (B,R,F) in a box."""
        mean, width = self.network(rows).float().chunk(2, dim=-1)
        share = (width + 2.0).sigmoid()
        return BoundedChoice(mean, _LEAST_STD + (_LARGEST_STD - _LEAST_STD) * share)


class Critic(nn.Module):
    """From sets to values, as a distribution over bins; every value is 0 at first.

    Args:
        network: arguments of `SetNetwork`, but for its size.
        num_bins: M.
        low: the first bin, in symlog.
        high: the last bin, in symlog.
    """

    def __init__(
        self, network: Mapping[str, Any], *, num_bins: int, low: float, high: float
    ) -> None:
        super().__init__()
        self.two_hot = TwoHot(num_bins, low=low, high=high)
        self.network = SetNetwork(**network, out_dim=num_bins)
        self.network.start_at_zero()

    def forward(self, rows: Tensor) -> Tensor:
        """The values (B,) of sets (B,R,F)."""
        return self.two_hot.mean(self.network(rows))

    def loss(self, rows: Tensor, returns: Tensor) -> Tensor:
        """The cross-entropy (B,) of sets (B,R,F) with returns (B,), in nats."""
        return self.two_hot.loss(self.network(rows), returns)
