"""What happens beside learning: records, evaluation, checkpoints. All at the ends of rollouts.

E environments.
"""

from __future__ import annotations

import csv
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from ocrl.log import ProgressBar, TensorBoard
from ocrl.train import InterruptedTraining

Score = Callable[[Mapping[str, float]], float]
"""From success rates by name to one number, such as the Crafter score."""
COLUMNS = ("step", "seconds", "return", "length", "success", "score", "steps_per_second")
"""Of `progress.csv`; empty where an environment has no such figure or no episode ended."""


def next_due(step: int, every: int) -> int:
    """The first multiple of `every` after `step`; with `every` 0 none that is ever reached."""
    return (step // every + 1) * every if every > 0 else 2**62


def begin_afresh(model: BaseAlgorithm, *, seed: int) -> None:
    """Reset all environments and all random generators, by (seed, steps done).

    Done at every checkpoint, whether or not the run was stopped there: what follows depends on
    nothing but the checkpoint.
    """
    words = np.random.SeedSequence((seed, model.num_timesteps)).generate_state(1)
    number = int(words[0] >> 1)
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
    model.action_space.seed(number)
    assert model.env is not None
    model.env.seed(number)
    model._last_obs = model.env.reset()  # type: ignore[assignment]
    model._last_episode_starts = np.ones(model.n_envs, dtype=bool)


class RunPart(BaseCallback):
    """A callback whose state is part of the checkpoint."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values that `resume` needs."""
        return {}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""

    def save(self, folder: Path) -> dict[str, Any]:
        """Write what is more than a state into a folder; gives entries of `meta.json`."""
        return {}

    def _on_step(self) -> bool:
        return True


class _BoardWriter(KVWriter):
    """Sends what an algorithm records to TensorBoard."""

    def __init__(self, board: TensorBoard) -> None:
        self._board = board

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        numbers = {
            key: float(value)
            for key, value in key_values.items()
            if "tensorboard" not in key_excluded.get(key, ())
        }
        self._board.scalars(numbers, step=step)

    def close(self) -> None:
        """Nothing: the board is closed by who opened it."""


class Recorder(BaseCallback):
    """Counts episodes; writes `progress.csv`, TensorBoard and the line on the terminal.

    Attributes:
        elapsed: seconds of training, those of earlier parts of the run included.
        num_episodes: that ended in training.
        achieved: by name, in how many of them it was reached.
    """

    def __init__(
        self,
        path: Path,
        *,
        board: TensorBoard,
        bar: ProgressBar,
        log_every: int,
        score: Score | None,
    ) -> None:
        """Prepare.

        Args:
            path: of `progress.csv`; rows of an earlier part of the run stay.
            board: for figures of episodes and of learning.
            bar: for the latest figures.
            log_every: environment steps from one row to the next, at least.
            score: of achievements, where the environment has them.
        """
        super().__init__()
        self._path, self._board, self._bar = path, board, bar
        self._log_every, self._score = log_every, score
        self.elapsed, self.num_episodes = 0.0, 0
        self.achieved: dict[str, int] = {}
        self._ended: list[tuple[Any, ...]] = []
        self._reached: dict[str, int] = {}

    def resume(self, state: Mapping[str, Any] | None, *, step: int) -> None:
        """Go on from `state()`, and forget rows after `step`, which will be played again.

        Args:
            state: None where nothing had been saved.
            step: of the checkpoint.
        """
        if state is not None:
            self.elapsed, self.num_episodes = state["elapsed"], state["num_episodes"]
            self.achieved, self._reached = dict(state["achieved"]), dict(state["reached"])
            self._ended = [tuple(ended) for ended in state["ended"]]
        if not self._path.is_file():
            return
        with self._path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        with self._path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    def state(self) -> dict[str, Any]:
        """What `resume` needs."""
        self._count_time()
        return {
            "elapsed": self.elapsed,
            "num_episodes": self.num_episodes,
            "achieved": dict(self.achieved),
            "ended": [list(ended) for ended in self._ended],
            "reached": dict(self._reached),
        }

    def _on_training_start(self) -> None:
        self._counted = self._row_time = time.monotonic()
        self._row_step = self.num_timesteps
        self._due = next_due(self.num_timesteps, self._log_every)
        self.model.set_logger(Logger(None, [_BoardWriter(self._board)]))

    def _count_time(self) -> None:
        now = time.monotonic()
        self.elapsed += now - self._counted
        self._counted = now

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            episode = info.get("episode")
            if episode is not None:
                success = info.get("is_success")
                solved = None if success is None else float(success)
                self._ended.append((episode["r"], episode["l"], solved))
                self.num_episodes += 1
                for name, count in info.get("achievements", {}).items():
                    reached = int(count > 0)
                    self.achieved[name] = self.achieved.get(name, 0) + reached
                    self._reached[name] = self._reached.get(name, 0) + reached
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._due:
            self._due = next_due(self.num_timesteps, self._log_every)
            self.write_row()
        else:
            self._bar.update(self.num_timesteps, note=self._note)

    _note = ""

    def write_row(self) -> None:
        """Write the mean over the episodes that ended since the row before."""
        now = time.monotonic()
        speed = (self.num_timesteps - self._row_step) / max(now - self._row_time, 1e-9)
        self._row_step, self._row_time = self.num_timesteps, now
        self._count_time()
        figures = self._figures()
        row = {"step": self.num_timesteps, "seconds": f"{self.elapsed:.2f}"}
        row |= {name: f"{value:.6g}" for name, value in figures.items()}
        row["steps_per_second"] = f"{speed:.1f}"
        is_new = not self._path.is_file()
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        scalars = {f"rollout/{name}": value for name, value in figures.items()}
        self._board.scalars({**scalars, "speed/steps_per_second": speed}, step=self.num_timesteps)
        self.logger.dump(self.num_timesteps)
        figures_said = [f"{name} {value:.3g}" for name, value in figures.items()]
        self._note = ", ".join([*figures_said, f"{speed:.0f} steps/s"])
        self._bar.update(self.num_timesteps, note=self._note)

    def _figures(self) -> dict[str, float]:
        ended, reached = self._ended, self._reached
        self._ended, self._reached = [], {}
        if not ended:
            return {}
        returns, lengths, successes = zip(*ended, strict=True)
        figures = {"return": float(np.mean(returns)), "length": float(np.mean(lengths))}
        if None not in successes:
            figures["success"] = float(np.mean(successes))
        if reached and self._score is not None:
            rates = {name: count / len(ended) for name, count in reached.items()}
            figures["score"] = self._score(rates)
        return figures


class EntropyFall(BaseCallback):
    """Lets the weight of the entropy fall with the learning rate, as Stable-Baselines3 does not."""

    def __init__(self, schedule: Callable[[float], float], *, total_steps: int) -> None:
        """Prepare.

        Args:
            schedule: the weight, given the share of the run that is left.
            total_steps: of the run.
        """
        super().__init__()
        self._schedule, self._total_steps = schedule, total_steps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        left = 1 - self.num_timesteps / self._total_steps
        self.model.ent_coef = self._schedule(max(left, 0.0))  # type: ignore[attr-defined]


class Evaluator(BaseCallback):
    """Evaluates the agent every so many environment steps, outside its training environments."""

    def __init__(
        self,
        evaluate: Callable[[int, TensorBoard], Mapping[str, float]],
        *,
        every: int,
        board: TensorBoard,
        bar: ProgressBar,
    ) -> None:
        """Prepare.

        Args:
            evaluate: gives figures by name for the step, and may log pictures.
            every: environment steps from one evaluation to the next, at least; 0 for none.
            board: for the figures.
            bar: to say them.
        """
        super().__init__()
        self._evaluate, self._every, self._board, self._bar = evaluate, every, board, bar

    def _on_training_start(self) -> None:
        self._due = next_due(self.num_timesteps, self._every)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps < self._due:
            return
        self._due = next_due(self.num_timesteps, self._every)
        with kept_random_state():
            figures = self._evaluate(self.num_timesteps, self._board)
        step = self.num_timesteps
        self._board.scalars({f"evaluation/{k}": v for k, v in figures.items()}, step=step)
        said = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        self._bar.say(f"evaluation at step {step}: {said}")


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Give random generators back as they were: what happens inside changes nothing outside."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class Checkpoints(BaseCallback):
    """Saves at the ends of rollouts, when due or asked to stop, and begins afresh there.

    Without being asked to stop the moments depend on the step alone.
    """

    def __init__(
        self,
        save: Callable[[], None],
        *,
        every: int,
        seed: int,
        stop: Event,
        where: Path,
        total_steps: int,
    ) -> None:
        """Prepare.

        Args:
            save: writes a checkpoint.
            every: environment steps from one checkpoint to the next, at least.
            seed: of the run.
            stop: is set when training is asked to stop.
            where: the checkpoint, for the message.
            total_steps: of the run, for the message.
        """
        super().__init__()
        self._save, self._every, self._seed, self._stop = save, every, seed, stop
        self._where, self._total_steps = where, total_steps

    def _on_training_start(self) -> None:
        self._due = next_due(self.num_timesteps, self._every)
        begin_afresh(self.model, seed=self._seed)

    def _on_step(self) -> bool:
        check_finite(self.locals["new_obs"], step=self.num_timesteps)
        return True

    def _on_rollout_start(self) -> None:
        is_asked = self._stop.is_set()
        if not is_asked and self.num_timesteps < self._due:
            return
        self._due = next_due(self.num_timesteps, self._every)
        self._save()
        if is_asked:
            raise InterruptedTraining(
                f"stopped after step {self.num_timesteps} of {self._total_steps} and saved "
                f"{self._where}; the same command goes on from there"
            )
        begin_afresh(self.model, seed=self._seed)


def check_finite(observation: Any, *, step: int) -> None:
    """Refuse observations that are NaN or infinite.

    Raises:
        ValueError: naming the part and the environment.
    """
    parts = observation if isinstance(observation, dict) else {"observation": observation}
    for name, values in parts.items():
        if values.dtype == np.uint8 or np.isfinite(values).all():
            continue
        flat = values.reshape(len(values), -1)
        rows = np.flatnonzero(~np.isfinite(flat).all(axis=1)).tolist()
        raise ValueError(
            f"{name} of environment {', '.join(map(str, rows))} is not finite at step {step}"
        )
