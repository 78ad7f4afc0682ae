"""The world model of an agent: it foretells the very rows that the policy reads.

B windows, T frames, R rows, F features of a row, A action size, C frames of the context, H steps,
N starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ocrl.agents.replay import Window
from ocrl.interfaces import SlotDynamics, State
from ocrl.nn.outcome import OutcomeHead
from ocrl.slot_world import SlotWorld, WorldModelOutput
from ocrl.types import SlotPrediction

LOSSES = ("slots", "reward", "continue")


@dataclass(frozen=True)
class Starts:
    """Frames that were played, to imagine from.

    Attributes:
        rows: (N,R,F) of each frame.
        state: of the dynamics, which has read the frames before it.
        is_first: (N,) bool, where nothing of the state is to be seen.
        weight: (N,) 0 where the episode had ended with the frame, else 1.
    """

    rows: Tensor
    state: State
    is_first: Tensor
    weight: Tensor


class SetWorld(SlotWorld):
    """Foretells rows that come from outside, in windows that run over the ends of episodes.

    Trained as `ocrl.world_model.WorldModel`, with which it shares what comes of actions. Differs
    in that rows are given, not encoded, so that frames are not decoded; and where an episode
    begins within a rollout, that goes on from the true rows of the new one: nothing of a window is
    wasted on short episodes. What would lead from one episode into the next does not count.

    Args:
        dynamics: of rows.
        outcome: tells rewards and terminations.
        weights: a factor for each of `slots`, `reward` and `continue`.
        num_context: C, frames that a rollout starts from, and that are read before imagining.
        horizon: H, steps of a rollout in training.
        error: how wrong (...) rows (...,R,F) are, from those that were foretold and those that
            came; None for the mean of the squares.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        dynamics: SlotDynamics,
        *,
        outcome: OutcomeHead,
        weights: Mapping[str, float],
        num_context: int,
        horizon: int,
        error: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if set(weights) != set(LOSSES):
            raise ValueError(f"expected weights of {sorted(LOSSES)}, got {sorted(weights)}")
        if min(num_context, horizon) < 1:
            raise ValueError(
                f"expected num_context and horizon of at least 1, got {num_context} and {horizon}"
            )
        self.dynamics, self.outcome = dynamics, outcome
        self.weights = {name: float(weights[name]) for name in LOSSES}
        self.num_context, self.horizon = num_context, horizon
        self._error = error

    @property
    def window_length(self) -> int:
        """Frames of the windows that it is trained on: C + H."""
        return self.num_context + self.horizon

    @property
    def motion_length(self) -> int:
        """Frames of the windows that `move` learns from: two where nothing before them counts."""
        return self.num_context + 1 if self.dynamics.initial_state(1) else 2

    @property
    def learns_outcomes(self) -> bool:
        """Whether both rewards and terminations are learned."""
        return bool(self.weights["reward"] and self.weights["continue"])

    def forward(
        self,
        rows: Tensor,
        window: Window,
        steps: tuple[Tensor, Window] | None = None,
        *,
        num_typical: int | None = None,
    ) -> WorldModelOutput:
        """Roll out over windows (B,T,R,F), T >= C + 1, and compare with what came.

        Args:
            rows: (B,T,R,F).
            window: what was played.
            steps: rows (M,2,R,F) and windows of M steps, many of them events, that outcomes are
                learned from besides, see `OutcomeHead.balanced_loss`.
            num_typical: of the windows, see `SlotWorld.compare`.
        """
        prediction = self._foretell(rows, window.action, window.is_first)
        losses = self.compare(
            rows,
            window.action,
            prediction,
            reward=window.reward,
            terminated=window.terminated,
            is_counted=~window.is_first[:, 1:],
            is_first=window.is_first,
            num_given=self.num_context,
            num_typical=num_typical,
        )
        if steps is not None:
            losses["balanced"] = self._balanced(*steps)
        return WorldModelOutput(losses, self.weighted(losses), prediction)

    def move(self, rows: Tensor, window: Window) -> WorldModelOutput:
        """Foretell each frame of windows (B,T,R,F) from the true one before, and nothing else.

        What `forward` learns of how rows move, without rollouts and outcomes: a fraction of its
        cost, so that steps can be learned from much more often.
        """
        prediction, _ = self.dynamics.observe(
            rows[:, :-1],
            window.action[:, :-1],
            self.dynamics.initial_state(len(rows)),
            window.is_first[:, :-1],
        )
        losses = self.compare_motion(rows, prediction, is_counted=~window.is_first[:, 1:])
        return WorldModelOutput(losses, self.weighted(losses), prediction)

    def slot_errors(self, predicted: Tensor, target: Tensor) -> Tensor:
        """See `SlotWorld.slot_errors`; by another measure if one was given."""
        if self._error is None:
            return super().slot_errors(predicted, target)
        return self._error(predicted, target)

    def _balanced(self, rows: Tensor, window: Window) -> Tensor:
        outcome = self.outcome(rows[:, :1], window.action[:, :1], rows[:, 1:])
        taught = self.taught(window.reward[:, 1:], window.terminated[:, 1:])
        return self.outcome.balanced_loss(outcome, **taught)

    def surprise(self, rows: Tensor, prediction: SlotPrediction) -> Tensor:
        """How wrong (B,C) was what `forward` said of the first steps, from rows that came true.

        At most C: as many as there are, of what `move` said.
        """
        given = slice(0, self.num_context)
        return self.slot_errors(prediction.slots[:, given].detach(), rows[:, 1:][:, given])

    def starts(self, rows: Tensor, window: Window, *, num_starts: int | None = None) -> Starts:
        """Frames of windows (B,T,R,F) that have their context, with C - 1 frames read before each.

        Frames of an earlier episode are not seen.

        Args:
            rows: (B,T,R,F).
            window: what was played.
            num_starts: N of them, drawn at random; None, or more than there are, for all
                N = B * (T - C + 1), window by window.
        """
        size = self.num_context
        context = rows.unfold(1, size, 1).movedim(-1, 2).flatten(0, 1)
        action = window.action.unfold(1, size, 1)
        action = action.movedim(-1, 2) if window.action.ndim == 3 else action
        is_first = window.is_first.unfold(1, size, 1).flatten(0, 1)
        parts = [
            context,
            action.flatten(0, 1),
            is_first,
            window.terminated[:, size - 1 :].flatten(),
        ]
        if num_starts is not None and num_starts < len(context):
            drawn = torch.randperm(len(context))[:num_starts].to(context.device)
            parts = [part[drawn] for part in parts]
        context, action, is_first, ended = parts
        state = self.read(context, action, is_first)
        return Starts(context[:, -1], state, is_first[:, -1], 1.0 - ended.float())

    def _foretell(self, rows: Tensor, action: Tensor, is_first: Tensor) -> SlotPrediction:
        """What is said of every frame after the first: from true rows, then from its own."""
        state = self.dynamics.initial_state(len(rows))
        num_read = self.num_context - 1
        parts = []
        if num_read:
            read, state = self.dynamics.observe(
                rows[:, :num_read], action[:, :num_read], state, is_first[:, :num_read]
            )
            parts.append(read)
        carried = self.dynamics.carry(rows[:, num_read : num_read + 1])
        some_begin = is_first.any(0).tolist()
        for t in range(num_read, rows.shape[1] - 1):
            begins = is_first[:, t : t + 1]
            if t > num_read and some_begin[t]:
                true = self.dynamics.carry(rows[:, t : t + 1])
                carried = torch.where(begins[..., None, None], true, carried)
            step, state = self.dynamics.advance(carried, action[:, t : t + 1], state, begins)
            parts.append(step)
            carried = step.carried
        return SlotPrediction.joined(parts)
