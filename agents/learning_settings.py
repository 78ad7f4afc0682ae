"""How an agent with a world model learns, and what it remembers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LearningSettings:
    """How the world model is learned, and how much.

    Attributes:
        updates_per_step: updates to each environment step.
        pretrain_updates: before the first step that is not played at random.
        play_steps: of each environment, from one round of updates to the next.
        batch_size: windows of an update.
        surprise_share: of the windows that are drawn by surprise, see `EpisodeReplay.windows`; at
            least one if it is above 0.
        event_share: of the windows that hold an event, likewise.
        outcome_batch: steps, at least half of them events, that an update learns outcomes from
            besides, see `OutcomeHead.balanced_loss`; 0 for none.
        motion_updates: of the dynamics alone, before each update, see `SetWorld.move`; they need
            no imagining, and cost little.
        motion_batch: windows of each of them, of which as large a share is drawn by surprise.
        learning_rate: of the world model, by Adam.
        clip_norm: largest norm of its gradient.
    """

    updates_per_step: float
    pretrain_updates: int
    play_steps: int
    batch_size: int
    surprise_share: float
    event_share: float
    outcome_batch: int
    motion_updates: int
    motion_batch: int
    learning_rate: float
    clip_norm: float

    @property
    def num_surprising(self) -> int:
        """Windows of an update that are drawn by surprise."""
        return _part(self.surprise_share, self.batch_size)

    @property
    def num_surprising_motions(self) -> int:
        """Windows of an update of the dynamics alone that are drawn by surprise."""
        return _part(self.surprise_share, self.motion_batch)

    @property
    def num_eventful(self) -> int:
        """Windows of an update that hold an event."""
        return _part(self.event_share, self.batch_size)

    @property
    def num_typical(self) -> int:
        """The other windows, which are drawn alike."""
        return self.batch_size - self.num_surprising - self.num_eventful

    def __post_init__(self) -> None:
        for name in ("play_steps", "batch_size", "motion_batch"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"expected agent.learning.{name} from 1 on, got {getattr(self, name)}"
                )
        for name in ("surprise_share", "event_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"expected agent.learning.{name} in [0,1], got {getattr(self, name)}"
                )
        if self.num_typical < 1:
            raise ValueError(
                "expected agent.learning.surprise_share and event_share that leave at least one of "
                f"{self.batch_size} windows, got {self.surprise_share} and {self.event_share}"
            )
        for name in ("updates_per_step", "pretrain_updates", "outcome_batch", "motion_updates"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"expected agent.learning.{name} from 0 on, got {getattr(self, name)}"
                )


def _part(share: float, number: int) -> int:
    """So many of a number, at least one if any are asked for."""
    return max(1, round(share * number)) if share else 0


@dataclass(frozen=True)
class ReplaySettings:
    """What is remembered, and what there is before anything is learned.

    Attributes:
        capacity: frames.
        prefill_steps: environment steps that are played at random first; they count.
        rollouts: an episode store that the replay begins with; None for none.
        piece: frames, after which the piece of a long episode is learned from; None to wait for the
            end of each. Where slots are made again of frames episodes are always whole.
    """

    capacity: int
    prefill_steps: int
    rollouts: str | None
    piece: int | None

    def __post_init__(self) -> None:
        if self.piece is not None and self.piece < 2:
            raise ValueError(
                "expected agent.replay.piece from 2 frames on, or null for whole episodes, got "
                f"{self.piece}"
            )
