"""An actor and a critic that learn in imagination.

B windows, T frames, N starts, H steps, R rows, F features of a row, A action size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam, Optimizer

from ocrl.agents.actor_critic import Actor, Critic
from ocrl.agents.interface import State
from ocrl.agents.replay import Window
from ocrl.agents.returns import PercentileScale, lambda_returns
from ocrl.agents.set_world import SetWorld, Starts
from ocrl.agents.world_agent import Behaviour


@dataclass(frozen=True)
class Future:
    """What was imagined from N starts, with an actor that chose.

    Attributes:
        rows: (N,H+1,R,F), those of the starts first.
        action: (N,H) or (N,H,A).
        reward: (N,H), expected.
        goes_on: (N,H) in [0,1], the probability that the episode does not terminate there.
        weight: (N,H) of the frame where each action was chosen: how likely it is to be reached.
        entropy: (N,H) of the choices, with their gradient; None where they were discrete.
    """

    rows: Tensor
    action: Tensor
    reward: Tensor
    goes_on: Tensor
    weight: Tensor
    entropy: Tensor | None


class ActorCritic(Behaviour):
    """DreamerV3's actor-critic (Hafner et al. 2023, arXiv 2301.04104) on sets of slots.

    From frames of the replayed windows a future is imagined; the critic learns its
    lambda-returns, the actor to raise them: by REINFORCE where actions are discrete, and by the
    gradient through what was imagined where they are continuous, as SOLD (Mosbach et al. 2025,
    arXiv 2410.08822). Imagined steps count as much as they are likely to be reached. Differs from
    both: actor and critic see the rows of one frame alone, through a pooling of their own; returns
    go on from the slow critic, where DreamerV3 pulls the fast one towards it; actions of a box are
    a Gaussian through tanh, with the entropy of what comes out.

    Args:
        slot_dim: F.
        num_slots: R.
        has_presence: whether the first feature of a row says that it holds something.
        num_actions: of a discrete space, 0 for none.
        action_dim: A of a continuous one, 0 for none.
        pooling: describes the pooling of actor and critic.
        hidden_dims: of the MLPs after it.
        horizon: H.
        gamma: factor of what is a step later.
        gae_lambda: see `lambda_returns`.
        entropy: weight of the entropy of choices, beside returns in units of their scale.
        learning_rate: of actor and critic, by Adam.
        clip_norm: largest norm of the gradient of each.
        target_decay: of the slow critic, per update.
        bins: arguments of the critic's `TwoHot`.
        scale: arguments of the returns' `PercentileScale`.
        num_starts: N, drawn from the frames of an update's windows; None for all of them.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        *,
        slot_dim: int,
        num_slots: int,
        has_presence: bool,
        num_actions: int,
        action_dim: int,
        pooling: Mapping[str, Any],
        hidden_dims: Sequence[int],
        horizon: int,
        gamma: float,
        gae_lambda: float,
        entropy: float,
        learning_rate: float,
        clip_norm: float,
        target_decay: float,
        bins: Mapping[str, Any],
        scale: Mapping[str, Any],
        num_starts: int | None = None,
    ) -> None:
        super().__init__()
        if horizon < 1 or not 0 < gamma <= 1 or not 0 <= gae_lambda <= 1 or entropy < 0:
            raise ValueError(
                "expected horizon >= 1, gamma in (0,1], gae_lambda in [0,1] and entropy >= 0, got "
                f"{horizon}, {gamma}, {gae_lambda} and {entropy}"
            )
        if num_starts is not None and num_starts < 1:
            raise ValueError(
                f"expected num_starts of at least 1, or null for all, got {num_starts}"
            )
        if not 0 <= target_decay < 1:
            raise ValueError(f"expected target_decay in [0,1), got {target_decay}")
        network = {"pooling": pooling, "hidden_dims": hidden_dims, "has_presence": has_presence}
        self.actor = Actor(network, num_actions=num_actions, action_dim=action_dim)
        self.critic = Critic(network, **bins)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.scale = PercentileScale(**scale)
        self.horizon, self.num_starts = horizon, num_starts
        self.gamma, self.gae_lambda = gamma, gae_lambda
        self.entropy, self.clip_norm, self.target_decay = entropy, clip_norm, target_decay
        self._optimizers = {
            "actor": Adam(self.actor.parameters(), lr=learning_rate),
            "critic": Adam(self.critic.parameters(), lr=learning_rate),
        }

    def act(
        self,
        world: SetWorld,
        rows: Tensor,
        state: State,
        is_first: Tensor,
        *,
        is_deterministic: bool,
    ) -> tuple[Tensor, State]:
        """See `Behaviour.act`; the world is not asked."""
        choice = self.actor(rows)
        return choice.mode() if is_deterministic else choice.sample(), state

    def attention(self, rows: Tensor) -> Tensor | None:
        """See `Behaviour.attention`: that of the actor's pooling."""
        return self.actor.network.attention(rows)

    def optimizers(self) -> Mapping[str, Optimizer]:
        """See `Behaviour.optimizers`."""
        return self._optimizers

    def learn(self, world: SetWorld, rows: Tensor, window: Window) -> Mapping[str, float]:
        """See `Behaviour.learn`."""
        with torch.no_grad():
            starts = world.starts(rows, window, num_starts=self.num_starts)
        losses, figures = self.losses(world, starts)
        for name, loss in losses.items():
            self._optimizers[name].zero_grad(set_to_none=True)
            loss.backward()
        norms = {
            name: clip_grad_norm_(getattr(self, name).parameters(), self.clip_norm)
            for name in losses
        }
        for name, norm in norms.items():
            if not bool(norm.isfinite()):
                raise FloatingPointError(f"the {name}'s loss or its gradient is not finite")
        for optimizer in self._optimizers.values():
            optimizer.step()
        self.follow()
        figures |= {f"{name}_gradient_norm": norm for name, norm in norms.items()}
        return {name: float(value) for name, value in figures.items()}

    def losses(
        self, world: SetWorld, starts: Starts
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The scalars that actor and critic minimise, and figures; updates the returns' scale.

        Raises:
            FloatingPointError: if imagined returns are not finite.
        """
        future = self.imagine(world, starts)
        value = self._values(future)
        returns = lambda_returns(
            future.reward, self.gamma * future.goes_on, value[:, 1:], self.gae_lambda
        )
        if not bool(returns.isfinite().all()):
            raise FloatingPointError("what was imagined is not finite, or what comes of it,")
        self.scale.update(returns.detach())
        seen, weight = future.rows[:, :-1].detach().flatten(0, 1), future.weight
        if future.entropy is None:
            choice = self.actor.discrete(seen)
            advantage = ((returns - value[:, :-1]) / self.scale()).detach()
            likelihood = choice.log_prob(future.action.flatten()).view_as(weight)
            gain, entropy = advantage * likelihood, choice.entropy().view_as(weight)
        else:
            gain, entropy = returns / self.scale(), future.entropy
        critic_loss = self.critic.loss(seen, returns.detach().flatten()).view_as(weight)
        losses = {
            "actor": -(weight * (gain + self.entropy * entropy)).mean(),
            "critic": (weight * critic_loss).mean(),
        }
        figures = {
            "actor_loss": losses["actor"].detach(),
            "critic_loss": losses["critic"].detach(),
            "imagined_return": returns[:, 0].detach().mean(),
            "imagined_reward": future.reward.detach().mean(),
            "value": value.detach().mean(),
            "goes_on": future.goes_on.detach().mean(),
            "entropy": entropy.detach().mean(),
            "scale": self.scale(),
        }
        return losses, figures

    def imagine(self, world: SetWorld, starts: Starts) -> Future:
        """Imagine with the actor; where actions are continuous, with its gradient through it all.

        The world's own weights get none.
        """
        entropies: list[Tensor] = []

        def policy(rows: Tensor) -> Tensor:
            if self.actor.is_discrete:
                return self.actor.discrete(rows).sample()
            action, entropy = self.actor.bounded(rows).sample_with_entropy()
            entropies.append(entropy)
            return action

        with frozen(world), torch.set_grad_enabled(not self.actor.is_discrete):
            dream = world.imagine(
                starts.rows, starts.state, policy, self.horizon, is_first=starts.is_first
            )
        assert dream.action is not None
        reached = dream.goes_on.detach().cumprod(dim=1)
        before = torch.cat([torch.ones_like(reached[:, :1]), reached[:, :-1]], dim=1)
        return Future(
            torch.cat([starts.rows[:, None], dream.slots], dim=1),
            dream.action,
            dream.reward,
            dream.goes_on,
            starts.weight[:, None] * before,
            torch.stack(entropies, dim=1) if entropies else None,
        )

    def _values(self, future: Future) -> Tensor:
        """What the slow critic says of all frames (N,H+1)."""
        with torch.set_grad_enabled(future.entropy is not None):
            value: Tensor = self.slow_critic(future.rows.flatten(0, 1))
        return value.unflatten(0, future.rows.shape[:2])

    @torch.no_grad()
    def follow(self) -> None:
        """Move the slow critic a step towards the fast one."""
        pairs = zip(self.slow_critic.parameters(), self.critic.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, 1 - self.target_decay)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients flow through a module, and none into its parameters."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
