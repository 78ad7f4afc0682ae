"""The training loop: one step, again and again, so that it can be stopped and go on.

B batch, T frames.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from ocrl import checkpoint
from ocrl.device import Precision
from ocrl.diagnose import find_non_finite
from ocrl.distributed import (
    Parallel,
    World,
    load_optimizer_state,
    optimizer_state,
    parallelize,
    shard_like,
    whole,
)
from ocrl.interfaces import ScheduledModule
from ocrl.interrupt import asked_to_stop
from ocrl.log import ProgressBar, TensorBoard
from ocrl.meter import Meter, peak_megabytes
from ocrl.schedules import SCHEDULES, MovingAverage, Schedule, learning_rate_factor
from ocrl.step import parameter_groups, seed_step, split_clip
from ocrl.types import Clip

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]


class NonFiniteLossError(ValueError):
    """The loss or its gradient is NaN or infinite; the message says where it began."""


class InterruptedTraining(KeyboardInterrupt):
    """Training was asked to stop, and saved; the message says how to go on."""


class TrainingOutput(Protocol):
    """What a model gives for a clip, as far as training is concerned."""

    @property
    def losses(self) -> Mapping[str, Tensor]:
        """Scalars to report."""

    @property
    def total(self) -> Tensor:
        """The scalar to minimise."""


class Evaluation(Protocol):
    """Measures a model during training."""

    def __call__(self, model: nn.Module, *, step: int, board: TensorBoard) -> Mapping[str, float]:
        """Give figures by name, and log pictures."""


@dataclass(frozen=True)
class Run:
    """What is trained, on what, and where the run keeps its things.

    Attributes:
        directory: the run's own.
        config: what `ocrl.checkpoint.build` makes the model from.
        env: name of the environment of the data.
        fingerprint: of the data.
    """

    directory: Path
    config: Mapping[str, Any]
    env: str = ""
    fingerprint: str = ""

    @property
    def checkpoint(self) -> Path:
        """Folder of the run's checkpoint."""
        return self.directory / checkpoint.FOLDER


class Trainer:
    """Trains a model on clips, on one device or on many, and resumes exactly.

    A step depends on nothing but the weights, the optimiser, the seed and its own number: its
    clips are asked for by number, and the random generators are set afresh from
    (seed, step, rank). So a run that was killed and started again ends, on a CPU in float32, with
    the very weights of one that was not. (Not with `max_minutes`, where the clock decides.)
    """

    def __init__(
        self,
        *,
        max_steps: int,
        max_minutes: float | None,
        seed: int,
        device: str,
        parallel: Parallel,
        precision: Precision,
        compile: bool,
        accumulation: int,
        clip_norm: float | None,
        clip_kind: float | str,
        schedule: Schedule,
        warmup_steps: int,
        final_fraction: float,
        rates: Mapping[str, Mapping[str, Any]],
        average_decay: float | None,
        log_every: int,
        evaluate_every: int,
        checkpoint_every: int,
    ) -> None:
        """Check the settings.

        Args:
            max_steps: optimiser steps of the whole run.
            max_minutes: end after so much training time even if steps are left; schedules then
                follow whichever share is larger.
            seed: of everything drawn at random.
            device: "auto", "cpu", "cuda" or "cuda:N".
            parallel: with several processes, replicate the model ("ddp") or shard it ("fsdp").
            precision: "32", or "bf16-mixed" for autocast to bfloat16.
            compile: whether to run the model through `torch.compile`.
            accumulation: pieces that a batch is cut into, one after the other, to save memory;
                the mean over pieces is the batch's own for losses that are means over clips.
            clip_norm: gradients of a larger norm are scaled down to it; None for never.
            clip_kind: order of that norm, 2 or "inf".
            schedule: of the learning rate after the warm-up.
            warmup_steps: steps of linear warm-up.
            final_fraction: of the learning rate at the end of the schedule.
            rates: by the name of a part of the model, such as `decoder.target`, the `factor` on
                its learning rate, and whether it `is_constant`, without warm-up and schedule.
            average_decay: of the weights' moving average, which is then what is evaluated and
                saved; None for none.
            log_every: steps between lines of figures.
            evaluate_every: steps between evaluations; 0 for none but the one after the last step.
            checkpoint_every: steps between checkpoints.

        Raises:
            ValueError: if a setting is out of range.
        """
        _check("max_steps", max_steps, isinstance(max_steps, int) and max_steps >= 1, "from 1 on")
        _check("seed", seed, isinstance(seed, int) and seed >= 0, "a whole number from 0 on")
        _check("precision", precision, str(precision) in get_args(Precision), "32 or bf16-mixed")
        _check("parallel", parallel, parallel in ("ddp", "fsdp"), "ddp or fsdp")
        _check("schedule", schedule, schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        _check("accumulation", accumulation, accumulation >= 1, "from 1 on")
        _check("clip_kind", clip_kind, float(clip_kind) in (2.0, math.inf), "2 or inf")
        _check("clip_norm", clip_norm, clip_norm is None or clip_norm > 0, "above 0, or null")
        _check("max_minutes", max_minutes, max_minutes is None or max_minutes > 0, "above 0")
        are_rates = all(set(rate) == {"factor", "is_constant"} for rate in rates.values())
        _check("rates", rates, are_rates, "a factor and is_constant for each part")
        for name, every in (("log_every", log_every), ("checkpoint_every", checkpoint_every)):
            _check(name, every, isinstance(every, int) and every >= 1, "from 1 on")
        self.max_steps, self.max_minutes = max_steps, max_minutes
        self.seed, self.device, self.parallel = seed, device, parallel
        self.precision, self.compile, self.accumulation = str(precision), compile, accumulation
        self.clip_norm, self.clip_kind = clip_norm, float(clip_kind)
        self.schedule, self.warmup_steps = schedule, warmup_steps
        self.final_fraction, self.average_decay = final_fraction, average_decay
        self.rates = rates
        self.log_every, self.evaluate_every = log_every, evaluate_every
        self.checkpoint_every = checkpoint_every

    def fit(
        self,
        model: nn.Module,
        *,
        optimizer: OptimizerFactory,
        batches: Callable[[int], AbstractContextManager[Iterator[Clip]]],
        run: Run,
        world: World,
        evaluate: Evaluation | None = None,
    ) -> dict[str, float]:
        """Train, from the run's checkpoint if it has one.

        Args:
            model: gives a `TrainingOutput` for a clip.
            optimizer: makes one for parameter groups.
            batches: gives this process's clips from a step on.
            run: what and where.
            world: the processes that train together.
            evaluate: called every `evaluate_every` steps and after the last one, in the first
                process, with a copy of the model.

        Returns:
            The figures of the last evaluation, and what training cost: `train/frames_per_second`
            over all steps, `train/minutes`, and `train/peak_megabytes` of this process, see
            `ocrl.meter.peak_megabytes`.

        Raises:
            ValueError: if the run's checkpoint is of another model or other data.
            NonFiniteLossError: if the loss is NaN or infinite; the last checkpoint stays.
            InterruptedTraining: if asked to stop (Ctrl-C, SIGTERM), after saving.
        """
        return _Fit(self, model, optimizer, run, world, evaluate).run_to_the_end(batches)


class _Fit:
    """The state of one call of `Trainer.fit`."""

    def __init__(
        self,
        settings: Trainer,
        model: nn.Module,
        optimizer: OptimizerFactory,
        run: Run,
        world: World,
        evaluate: Evaluation | None,
    ) -> None:
        self.settings, self.run, self.world, self.evaluate = settings, run, world, evaluate
        self.step, self.elapsed = 0, 0.0
        self.metrics: dict[str, float] = {}
        resumed = self._read_resume()
        if resumed is not None:
            model.load_state_dict(resumed["model"])
        self.model = model.to(world.device)
        # Whole and plain, for evaluating whatever the other is wrapped in.
        self.copy = copy.deepcopy(self.model)
        self.parallel = parallelize(self.model, world, settings.parallel)
        self.forward: Callable[[Clip], TrainingOutput] = (
            torch.compile(self.parallel) if settings.compile else self.parallel
        )
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = optimizer(parameter_groups(self.model, settings.rates))
        groups = self.optimizer.param_groups
        self.base_rates = [group["lr"] * group.get("factor", 1.0) for group in groups]
        self.are_constant = [group.get("is_constant", False) for group in groups]
        self.average: MovingAverage | None = None
        if settings.average_decay is not None:
            self.average = MovingAverage(self.model, decay=settings.average_decay)
        if resumed is not None:
            self._take_over(resumed)

    # --- going on where a run stopped -----------------------------------------------------------

    def _read_resume(self) -> dict[str, Any] | None:
        try:
            folder = checkpoint.find(self.run.checkpoint)
        except FileNotFoundError:
            return None
        meta = checkpoint.read_meta(folder)
        difference = checkpoint.describe_difference(
            checkpoint.read_config(folder), checkpoint.plain(self.run.config)
        )
        if difference is None and meta["fingerprint"] != self.run.fingerprint:
            difference = "it was trained on other data"
        if difference is not None:
            raise ValueError(
                f"{folder} belongs to another run: {difference}; give this one another name=... "
                "or move that folder away"
            )
        self.step, self.metrics = meta["step"], meta["metrics"]
        return checkpoint.read_resume(folder)

    def _take_over(self, resumed: Mapping[str, Any]) -> None:
        self.elapsed = resumed["elapsed"]
        load_optimizer_state(self.optimizer, resumed["optimizer"])
        if self.average is not None and resumed["average"] is not None:
            self.average.state = shard_like(resumed["average"], self.average.state)

    def save(self) -> None:
        """Write a checkpoint; every process must come here."""
        state = whole(self.model.state_dict())
        average = None if self.average is None else whole(self.average.state)
        optimizer = optimizer_state(self.optimizer)
        if self.world.is_first:
            checkpoint.save(
                self.run.checkpoint,
                self.copy,
                config=self.run.config,
                step=self.step,
                env=self.run.env,
                metrics=self.metrics,
                fingerprint=self.run.fingerprint,
                weights=state if average is None else average,
                resume={
                    "model": _on_cpu(state),
                    "average": None if average is None else _on_cpu(average),
                    "optimizer": optimizer,
                    "elapsed": self.elapsed,
                },
            )
        self.world.wait()

    # --- the loop -------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """The share of training that is done."""
        share = self.step / self.settings.max_steps
        if self.settings.max_minutes is not None:
            share = max(share, self.elapsed / (60 * self.settings.max_minutes))
        return min(1.0, share)

    def run_to_the_end(
        self, batches: Callable[[int], AbstractContextManager[Iterator[Clip]]]
    ) -> dict[str, float]:
        settings, first = self.settings, self.world.is_first
        if self.progress >= 1.0:
            return self.metrics
        board = TensorBoard(
            self.run.directory / "tensorboard",
            start_step=self.step + 1 if self.step else 0,
            is_silent=not first,
        )
        bar = ProgressBar(
            "training", total=settings.max_steps, start=self.step, is_silent=not first
        )
        self.parallel.train()
        meter = Meter()
        with board, bar, asked_to_stop() as stop, batches(self.step) as clips:
            if self.step:
                bar.say(f"going on at step {self.step}")
            while self.progress < 1.0:
                started = time.monotonic()
                clip = next(clips)
                loaded = time.monotonic()
                rate, losses, norm = self._one_step(clip)
                seconds = time.monotonic() - started
                meter.add(clip, losses, norm, seconds=seconds, loading=loaded - started)
                # The clock and a wish to stop may differ between processes: agree on them.
                self.elapsed, stopping = self.world.largest(
                    self.elapsed + seconds, float(stop.is_set())
                )
                is_last = self.progress >= 1.0
                if self.step % settings.log_every == 0 or is_last:
                    figures = meter.read(self.world)
                    board.scalars({"train/learning_rate": rate, **figures}, step=self.step)
                    bar.update(self.step, note=_note(figures), fraction=self.progress)
                    if is_last:
                        bar.say(f"trained for {self.step} steps: {_note(figures)}")
                # Nothing goes on with a run that is whole: it is evaluated now or never.
                if is_last or (not stopping and _is_due(self.step, settings.evaluate_every)):
                    self._evaluate(board, bar)
                    meter.restart()
                if is_last:
                    self.metrics |= self._cost(clip)
                if stopping or is_last or _is_due(self.step, settings.checkpoint_every):
                    self.save()
                if stopping and not is_last:
                    raise InterruptedTraining(
                        f"stopped after step {self.step} of {settings.max_steps} and saved "
                        f"{self.run.checkpoint}; the same command goes on from there"
                    )
        return self.metrics

    def _cost(self, clip: Clip) -> dict[str, float]:
        """The mean speed of all steps, each like that on `clip`, and the memory they took."""
        frames = clip.batch_size * clip.num_frames * self.world.size * self.step
        return {
            "train/frames_per_second": frames / self.elapsed,
            "train/minutes": self.elapsed / 60,
            "train/peak_megabytes": peak_megabytes(self.world.device),
        }

    def _one_step(self, clip: Clip) -> tuple[float, dict[str, Tensor], float]:
        settings = self.settings
        factor = learning_rate_factor(
            settings.schedule,
            step=self.step,
            progress=self.progress,
            warmup_steps=settings.warmup_steps,
            final_fraction=settings.final_fraction,
        )
        groups = self.optimizer.param_groups
        for group, rate, fixed in zip(groups, self.base_rates, self.are_constant, strict=True):
            group["lr"] = rate if fixed else rate * factor
        for module in self.model.modules():
            if isinstance(module, ScheduledModule):
                module.set_progress(self.progress)
        seed_step(settings.seed, step=self.step, rank=self.world.rank)
        losses = self._backward(clip)
        norm = self._clip_gradients()
        if not all(self.world.largest(-math.isfinite(norm), -_are_finite(losses))):
            self._give_up(clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.average is not None:
            self.average.update(self.model, step=self.step)
        return self.base_rates[0] * factor, losses, norm

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.precision == "32":
            return nullcontext()
        return torch.autocast(self.world.device.type, dtype=torch.bfloat16)

    def _backward(self, clip: Clip) -> dict[str, Tensor]:
        pieces = split_clip(clip, self.settings.accumulation)
        losses: dict[str, Tensor] = {}
        for index, piece in enumerate(pieces):
            is_last = index == len(pieces) - 1
            with self._without_exchange(not is_last), self._autocast():
                output = self.forward(piece)
                share = piece.batch_size / clip.batch_size
            with self._without_exchange(not is_last):
                (output.total * share).backward()
            for name, loss in {**output.losses, "total": output.total}.items():
                losses[name] = losses.get(name, torch.zeros_like(loss)) + loss.detach() * share
        return losses

    def _without_exchange(self, is_wanted: bool) -> AbstractContextManager[Any]:
        """Keep gradients local until the last piece of a batch."""
        if is_wanted and isinstance(self.parallel, DistributedDataParallel):
            return self.parallel.no_sync()
        return nullcontext()

    def _clip_gradients(self) -> float:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = get_total_norm(gradients, self.settings.clip_kind)
        limit = self.settings.clip_norm
        if limit is not None:
            clip_grads_with_norm_(self.parameters, limit, norm)
        return float(whole({"norm": norm})["norm"])

    def _give_up(self, clip: Clip) -> None:
        self.optimizer.zero_grad(set_to_none=True)

        def again() -> Tensor:
            seed_step(self.settings.seed, step=self.step, rank=self.world.rank)
            with self._autocast():
                total: Tensor = self.copy(clip).total
            return total

        self.copy.load_state_dict(whole(self.model.state_dict()))
        where = find_non_finite(self.copy.train(), again)
        kept = "no checkpoint had been saved yet"
        if (self.run.checkpoint / "meta.json").is_file():
            saved = checkpoint.read_meta(self.run.checkpoint)["step"]
            kept = f"the checkpoint of step {saved} in {self.run.checkpoint} is kept"
        raise NonFiniteLossError(
            f"the loss or its gradient is not finite at step {self.step}: {where}; {kept}; try a "
            "lower optimizer.lr, more trainer.warmup_steps or a smaller trainer.clip_norm"
        )

    def _evaluate(self, board: TensorBoard, bar: ProgressBar) -> None:
        if self.evaluate is None:
            return
        state = self.model.state_dict() if self.average is None else self.average.state
        state = whole(state)
        if self.world.is_first:
            self.copy.load_state_dict(state)
            figures = self.evaluate(self.copy.eval(), step=self.step, board=board)
            self.metrics = dict(figures)
            board.scalars({f"evaluation/{k}": v for k, v in figures.items()}, step=self.step)
            board.flush()
        self.world.wait()


def _note(figures: Mapping[str, float]) -> str:
    return (
        f"loss {figures['loss/total']:.4g}, {figures['speed/frames_per_second']:.0f} frames/s, "
        f"{figures['speed/loading_share']:.0%} of it loading"
    )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _are_finite(losses: Mapping[str, Tensor]) -> bool:
    return bool(torch.stack([loss.float() for loss in losses.values()]).isfinite().all())


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def _check(name: str, value: object, is_right: bool, expected: str) -> None:
    if not is_right:
        raise ValueError(f"expected trainer.{name} to be {expected}, got {value!r}")
