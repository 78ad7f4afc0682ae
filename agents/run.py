"""A run of training an agent, whatever learns: what it keeps, how it goes on, how it ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Generic, Protocol, TypeVar

import torch
from stable_baselines3.common.callbacks import BaseCallback

from ocrl import checkpoint
from ocrl.agents import saving
from ocrl.agents.callbacks import Checkpoints, Evaluator, Recorder, RunPart, Score
from ocrl.agents.interface import Agent
from ocrl.interrupt import asked_to_stop
from ocrl.log import ProgressBar, TensorBoard
from ocrl.train import InterruptedTraining, NonFiniteLossError

AgentType = TypeVar("AgentType", bound=Agent)

Evaluate = Callable[[AgentType, int, TensorBoard], Mapping[str, float]]
"""Figures of an agent by name, at a step; may log pictures."""

MakePart = Callable[[AgentType, TensorBoard], RunPart]
"""Makes a further part of a run, such as one that tunes the encoder."""


@dataclass(frozen=True)
class AgentRun:
    """What an agent is trained on, and where the run keeps its things.

    Attributes:
        directory: the run's own.
        meta: plain values that the agent's `meta.json` repeats: `env`, `env_arguments`,
            `observation`, `encoder` (None, or `path` and `hash`).
    """

    directory: Path
    meta: Mapping[str, Any]

    @property
    def agent(self) -> Path:
        """Folder of the run's agent."""
        return self.directory / saving.FOLDER


class RunSettings(Protocol):
    """What every kind of training is told of its run, in environment steps."""

    total_steps: int
    seed: int
    log_every: int
    checkpoint_every: int
    evaluate_every: int


def check_from_one(**counts: int) -> None:
    """Refuse settings of an agent that are not from 1 on.

    Raises:
        ValueError: if one is not.
    """
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"expected agent.{name} to be from 1 on, got {value}")


class AgentTraining(ABC, Generic[AgentType]):
    """One call of training: from the run's agent, if it has one, to the end.

    Attributes:
        agent: what is trained; set by the class that inherits, as are the next two.
        config: everything that decides what is learned, in plain values.
        meta: what the agent's `meta.json` repeats.
        remark: a sentence on what `restore` went on from, if there is something to say.
    """

    agent: AgentType
    config: dict[str, Any]
    meta: dict[str, Any]
    remark: str | None = None

    def __init__(self, settings: RunSettings, run: AgentRun) -> None:
        self.run, self._settings = run, settings
        self.extra: RunPart | None = None

    @property
    @abstractmethod
    def step(self) -> int:
        """Environment steps until now."""

    @property
    def learns_nothing(self) -> bool:
        """Whether playing would change nothing, so that there is no training: never, as here."""
        return False

    @abstractmethod
    def learn(self, callbacks: list[BaseCallback]) -> None:
        """Train until all steps are done."""

    @abstractmethod
    def resume_state(self) -> dict[str, Any]:
        """Tensors and plain values that `restore` needs, beside the agent's weights."""

    @abstractmethod
    def restore(self, folder: Path, *, state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: the weights in its folder, `resume_state()` and `meta.json`."""

    @abstractmethod
    def save_replay(self, folder: Path) -> None:
        """Write what was remembered of playing, if anything is."""

    @abstractmethod
    def load_replay(self, folder: Path) -> None:
        """Read what `save_replay` wrote."""

    @abstractmethod
    def begin(self, bar: ProgressBar) -> None:
        """Do what comes before the first step of a run."""

    def counted(self) -> dict[str, Any]:
        """What `meta.json` says of the training, beside episodes: nothing, as here."""
        return {}

    def to_the_end(
        self,
        evaluate: Evaluate[AgentType] | None,
        score: Score | None,
        extra: MakePart[AgentType] | None,
    ) -> AgentType:
        """Train what is left of the run.

        Args:
            evaluate: called every `evaluate_every` steps.
            score: of achievements, where the environment has them.
            extra: makes a further part.
        """
        resumed = self._resume()
        settings, directory = self._settings, self.run.directory
        if self.step >= settings.total_steps:
            return self.agent
        # What a part of the run that was killed logged after this step is hidden.
        board = TensorBoard(directory / "tensorboard", start_step=self.step + 1)
        bar = ProgressBar("training", total=settings.total_steps, start=self.step)
        with board, bar, asked_to_stop() as stop:
            self.recorder = Recorder(
                directory / "progress.csv",
                board=board,
                bar=bar,
                log_every=settings.log_every,
                score=score,
            )
            self.extra = None if extra is None else extra(self.agent, board)
            self.recorder.resume(resumed and resumed["recorder"], step=self.step)
            if resumed is None:
                self.begin(bar)
            else:
                bar.say(f"going on at step {self.step}")
                if self.remark is not None:
                    bar.say(self.remark)
                if self.extra is not None:
                    self.extra.resume(resumed["extra"])
            self._learn_or_say_what_is_kept(self._callbacks(evaluate, board, bar, stop))
            self.recorder.write_row()
            self.save()
            if self.learns_nothing:
                bar.say("there is nothing to learn")
            else:
                bar.update(self.step)
                bar.say(f"trained for {self.step} steps")
            if stop.is_set():
                raise InterruptedTraining(
                    f"stopped after the last of {self.step} steps and saved {self.run.agent}; the "
                    "same command goes on from there"
                )
        return self.agent

    def save(self) -> None:
        """Write a checkpoint; the previous one stays until the new one is whole."""
        with checkpoint.replacing(self.run.agent) as folder:
            added = {} if self.extra is None else self.extra.save(folder)
            meta = {"step": self.step, **self.meta, **added}
            meta["training"] = {
                "num_episodes": self.recorder.num_episodes,
                "achieved": self.recorder.achieved,
                **self.counted(),
            }
            saving.write(folder, self.agent, config=self.config, meta=meta)
            (folder / "resume").mkdir()
            state = {
                **self.resume_state(),
                "recorder": self.recorder.state(),
                "extra": {} if self.extra is None else self.extra.state(),
            }
            torch.save(state, folder / "resume" / "state.pt")
            self.save_replay(folder / "resume")

    def kept(self) -> str:
        """Which checkpoint there still is, in words."""
        return saving.describe_kept(self.run.agent)

    def _resume(self) -> dict[str, Any] | None:
        try:
            folder = saving.find(self.run.agent)
        except FileNotFoundError:
            return None
        meta = saving.check_same_run(folder, config=self.config, meta=self.meta)
        state: dict[str, Any] = checkpoint.read_state(folder / "resume" / "state.pt")
        self.restore(folder, state=state, meta=meta)
        if self.step < self._settings.total_steps:
            self.load_replay(folder / "resume")
        return state

    def _callbacks(
        self,
        evaluate: Evaluate[AgentType] | None,
        board: TensorBoard,
        bar: ProgressBar,
        stop: Event,
    ) -> list[BaseCallback]:
        """What happens between rounds of playing, in this order; a checkpoint holds all of it."""
        settings = self._settings
        callbacks: list[BaseCallback] = [self.recorder]
        if self.extra is not None:
            callbacks.append(self.extra)
        if evaluate is not None:
            callbacks.append(
                Evaluator(
                    lambda step, board: evaluate(self.agent, step, board),
                    every=settings.evaluate_every,
                    board=board,
                    bar=bar,
                )
            )
        last = Checkpoints(
            self.save,
            every=settings.checkpoint_every,
            seed=settings.seed,
            stop=stop,
            where=self.run.agent,
            total_steps=settings.total_steps,
        )
        return [*callbacks, last]

    def _learn_or_say_what_is_kept(self, callbacks: list[BaseCallback]) -> None:
        try:
            self.learn(callbacks)
        except ChildProcessError as error:
            raise ChildProcessError(
                f"{error}; {self.kept()}, and the same command goes on from there"
            ) from error
        except NonFiniteLossError:
            raise
        except ValueError as error:
            raise ValueError(f"{error}; {self.kept()}") from error
