"""A model of what slots do and what comes of actions, wherever the slots come from.

B batch, T frames, K slots, D slot size, A action size, C frames of the context, H steps.
"""

from __future__ import annotations

import warnings
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ocrl.interfaces import Policy, SlotDynamics, State
from ocrl.nn.outcome import OutcomeHead
from ocrl.types import SlotPrediction


@dataclass(frozen=True)
class WorldModelOutput:
    """One pass over a clip.

    Attributes:
        losses: by name, before weighting.
        total: their weighted sum.
        prediction: of the frames after the first, (B,T-1,K,...).
    """

    losses: dict[str, Tensor]
    total: Tensor
    prediction: SlotPrediction


@dataclass(frozen=True)
class Dream:
    """An imagined future with what comes of it.

    Attributes:
        slots: (B,H,K,D) after each action.
        action: (B,H) or (B,H,A); None without actions.
        reward: (B,H), expected.
        goes_on: (B,H) in [0,1], the probability that the episode does not terminate there.
        state: of the dynamics, which has not read the last slots yet.
    """

    slots: Tensor
    action: Tensor | None
    reward: Tensor
    goes_on: Tensor
    state: State


class SlotWorld(nn.Module, ABC):
    """How slots move and what comes of actions: what world models have in common.

    Attributes:
        dynamics: of the slots.
        outcome: tells rewards and terminations.
        weights: a factor for each loss; `reward` and `continue` with 0 are not computed, and
            `event` is if one of them is.
        horizon: H, steps of a rollout in training.
    """

    dynamics: SlotDynamics
    outcome: OutcomeHead
    weights: Mapping[str, float]
    horizon: int

    def outcomes(
        self, before: Tensor, action: Tensor | None, after: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Expected rewards and probabilities to go on (B,T) of steps, see `OutcomeHead`."""
        outcome = self.outcome(before, action, after)
        return self.outcome.reward(outcome), self.outcome.goes_on(outcome)

    def imagine(
        self,
        slots: Tensor,
        state: State,
        policy: Policy | Tensor | None,
        horizon: int,
        *,
        is_first: Tensor | None = None,
    ) -> Dream:
        """Imagine a future with its rewards, see `SlotDynamics.imagine`.

        A horizon beyond what the dynamics was trained on is imagined with a warning.
        """
        beyond = describe_beyond(self, horizon)
        if beyond is not None:
            warnings.warn(beyond, stacklevel=2)
        imagined = self.dynamics.imagine(slots, state, policy, horizon, is_first=is_first)
        before = torch.cat([slots[:, None], imagined.slots[:, :-1]], dim=1)
        reward, goes_on = self.outcomes(before, imagined.action, imagined.slots)
        return Dream(imagined.slots, imagined.action, reward, goes_on, imagined.state)

    def read(self, slots: Tensor, action: Tensor | None, is_first: Tensor) -> State:
        """The dynamics' state after a context (B,T,K,D) without its last frame.

        With that frame's slots it is what `imagine` starts from. Actions (B,T,...) and `is_first`
        may go on beyond the context.
        """
        state, num_read = self.dynamics.initial_state(len(slots)), slots.shape[1] - 1
        if not num_read:
            return state
        done = None if action is None else action[:, :num_read]
        return self.dynamics.observe(slots[:, :-1], done, state, is_first[:, :num_read])[1]

    def compare(
        self,
        slots: Tensor,
        action: Tensor | None,
        prediction: SlotPrediction,
        *,
        reward: Tensor | None,
        terminated: Tensor | None,
        is_counted: Tensor,
        is_first: Tensor,
        num_given: int,
        num_typical: int | None = None,
    ) -> dict[str, Tensor]:
        """The losses of a prediction, by name and before weighting.

        `slots`, how wrong slots are, see `slot_errors`; `event`, `reward` and `continue`,
        cross-entropies in nats of what is read from slots that were foretold, see
        `OutcomeHead.losses`; and what the dynamics itself asks for. Outcomes teach the head alone:
        a dynamics that may bend slots so that rewards can be read from them foretells slots worse,
        and rewards in the end, too.

        Args:
            slots: (B,T,K,D) that came true.
            action: (B,T) or (B,T,A), done after each frame; None without actions.
            prediction: of the frames after the first.
            reward: (B,T) that came with each frame.
            terminated: (B,T) bool, whether the episode ended there.
            is_counted: (B,T-1) bool, the predictions that count.
            is_first: (B,T) bool, where episodes begin.
            num_given: the frames at the start that the dynamics went on from as they came, and not
                as it had foretold them. From these, and from those where an episode begins,
                outcomes are read, too, as they are in acting.
            num_typical: of the B, the first ones, in which events are as common as they are; how
                common they are is learned from no others. None for all.
        """
        losses = self.compare_motion(slots, prediction, is_counted=is_counted)
        if not self.weights["reward"] and not self.weights["continue"]:
            return losses
        typical = slice(num_typical)
        slots, said = slots[typical], prediction.slots[typical].detach()
        is_given = is_first[typical, :-1].bool()
        foretold = torch.cat([slots[:, :1], said[:, :-1]], dim=1)
        is_given = is_given | (torch.arange(is_given.shape[1], device=slots.device) < num_given)
        before = torch.where(is_given[..., None, None], slots[:, :-1], foretold).detach()
        done = None if action is None else action[typical, :-1]
        outcome = self.outcome(before, done, said)
        taught = self.taught(reward, terminated)
        costs = self.outcome.losses(
            outcome,
            **{name: None if v is None else v[typical, 1:] for name, v in taught.items()},
        )
        return losses | {
            name: mean_of_counted(cost, is_counted[typical]) for name, cost in costs.items()
        }

    def compare_motion(
        self, slots: Tensor, prediction: SlotPrediction, *, is_counted: Tensor
    ) -> dict[str, Tensor]:
        """The losses of how slots move, by name: `slots`, and what the dynamics itself asks for.

        Args:
            slots: (B,T,K,D) that came true.
            prediction: of the frames after the first.
            is_counted: (B,T-1) bool, the predictions that count.
        """
        target = slots[:, 1:].detach()
        errors = self.slot_errors(prediction.slots, target)
        losses = {"slots": mean_of_counted(errors, is_counted)}
        for name, cost in self.dynamics.costs(prediction, target).items():
            losses[name] = mean_of_counted(cost.mean(-1), is_counted)
        return losses

    def slot_errors(self, predicted: Tensor, target: Tensor) -> Tensor:
        """How wrong (B,T) slots (B,T,K,D) are: the mean of the squares."""
        return (predicted - target).float().square().mean((-2, -1))

    def taught(self, reward: Tensor | None, terminated: Tensor | None) -> dict[str, Tensor | None]:
        """The rewards and terminations, by name, that are learned; None for those that are not."""
        return {
            "reward": reward if self.weights["reward"] else None,
            "terminated": terminated if self.weights["continue"] else None,
        }

    def weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The sum of losses by their weights; 1 for those that have none."""
        return torch.stack([self.weights.get(name, 1.0) * v for name, v in losses.items()]).sum()


def describe_beyond(model: SlotWorld, horizon: int) -> str | None:
    """What to know of a horizon, in words; None if the model was trained on it."""
    if horizon <= model.horizon:
        return None
    return (
        f"the dynamics was trained on rollouts of {model.horizon} steps, and is asked for "
        f"{horizon}: beyond those errors add up unseen, slots blur or change hands, and rewards "
        "are read from slots unlike any in training"
    )


def mean_of_counted(values: Tensor, is_counted: Tensor) -> Tensor:
    """The mean of those values (B,T) that count, 0 if none does."""
    return (values * is_counted).sum() / is_counted.sum().clamp(min=1)
