"""Encoders that go on learning while an agent learns, and how far they have drifted.

E environments, B batch, T frames, K slots, D slot size, C H W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.nn.utils import clip_grad_norm_

from ocrl import checkpoint
from ocrl.agents.callbacks import RunPart, kept_random_state
from ocrl.data.clips import ClipLoader
from ocrl.interfaces import SlotEncoder
from ocrl.log import TensorBoard
from ocrl.matching import hungarian, matched_scores
from ocrl.model import SlotModel
from ocrl.step import seed_step
from ocrl.types import Clip

FOLDER = "encoder"
"""Where the tuned model lies, inside the agent's folder."""


class Recent(Protocol):
    """What was played lately, such as `ocrl.envs.recent_frames.RecentFrames`."""

    def __len__(self) -> int:
        """Steps that are remembered now."""

    def clips(self, num_clips: int, *, clip_length: int, seed: Sequence[int]) -> Clip:
        """Draw pieces of what was played."""


class Drift:
    """How far an encoder is from where it began, on frames that stay the same."""

    def __init__(self, encoder: SlotEncoder, video: Tensor) -> None:
        """Remember what the encoder makes of a video.

        Args:
            encoder: as it is at the beginning.
            video: (B,T,C,H,W) uint8.
        """
        self._video = video
        self._reference = self._slots(encoder)

    def measure(self, encoder: SlotEncoder) -> dict[str, float]:
        """Figures of the encoder as it is now; all are 0 where nothing has changed.

        `cosine` is one minus the mean cosine of each slot and what it was; `matched_cosine` the
        same after the best matching in each frame, so that the difference of the two tells slots
        that changed places; `distance` the length of the change in units of the slots' own.
        """
        slots, before = self._slots(encoder), self._reference
        likeness = cosine_similarity(before[:, :, :, None], slots[:, :, None], dim=-1)
        matched = matched_scores(likeness, hungarian(likeness, maximize=True))
        return {
            "cosine": 1 - float(cosine_similarity(before, slots, dim=-1).mean()),
            "matched_cosine": 1 - float(matched.mean()),
            "distance": float((slots - before).norm() / before.norm()),
        }

    @torch.no_grad()
    def _slots(self, encoder: SlotEncoder) -> Tensor:
        was_training = encoder.training
        encoder.eval()
        device = next(encoder.parameters()).device
        video = self._video.to(device).float() / 255.0
        is_first = torch.zeros(video.shape[:2], dtype=torch.bool, device=device)
        is_first[:, 0] = True
        slots: Tensor = encoder(video, is_first).slots
        encoder.train(was_training)
        return slots


@dataclass(frozen=True)
class TuningSettings:
    """How an encoder is tuned by its own objectives.

    Attributes:
        every: rollouts from one tuning to the next.
        num_steps: optimiser steps of one tuning.
        batch_size: clips of a step; half of them are old ones, where there are any.
        clip_length: T.
        learning_rate: of Adam.
        clip_norm: largest norm of the gradient.
        seed: of the drawing of clips.
    """

    every: int
    num_steps: int
    batch_size: int
    clip_length: int
    learning_rate: float
    clip_norm: float
    seed: int

    def __post_init__(self) -> None:
        for option in ("every", "replay.num_steps", "replay.batch_size", "replay.clip_length"):
            value = getattr(self, option.rpartition(".")[2])
            if value < 1:
                raise ValueError(f"expected encoder.{option} to be from 1 on, got {value}")


class EncoderTuning(RunPart):
    """Trains a slot model on what the agent plays now, by the model's own objectives.

    The encoder is the one that makes the agent's observations, so they are of the new weights from
    the next step on; the policy is told nothing. Half of every batch are clips of the episodes that
    the encoder was pretrained on, against forgetting.
    """

    def __init__(
        self,
        model: SlotModel,
        recent: Recent,
        *,
        loader: ClipLoader | None,
        settings: TuningSettings,
        drift: Drift,
        board: TensorBoard,
        origin: Mapping[str, Any],
        config: Mapping[str, Any],
        env: str,
    ) -> None:
        """Prepare.

        Args:
            model: its encoder is that of the observations.
            recent: between the environments and the encoder.
            loader: of the episodes of pretraining; None for none.
            settings: how.
            drift: measured after every tuning.
            board: for losses and drift.
            origin: what the run says of the encoder as it was.
            config: what the model is built from.
            env: name of the environment.

        Raises:
            ValueError: if the model starts from boxes, which nobody knows here.
        """
        super().__init__()
        if model.is_conditioned:
            raise ValueError("expected a model that needs no boxes for encoder.mode=replay")
        self._model, self._recent, self._loader = model, recent, loader
        self._settings, self._drift, self._board = settings, drift, board
        self._origin, self._config, self._env = dict(origin), config, env
        self._rollouts, self._steps = -1, 0
        self._optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)

    def state(self) -> dict[str, Any]:
        """See `RunPart`."""
        return {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rollouts": self._rollouts,
            "steps": self._steps,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """See `RunPart`."""
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        # The rollout that begins now was counted before the run was saved.
        self._rollouts, self._steps = state["rollouts"] - 1, state["steps"]

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the model beside the policy that reads its slots."""
        path = folder / FOLDER
        checkpoint.save(path, self._model, config=self._config, step=self._steps, env=self._env)
        described = {"path": f"agent/{FOLDER}", "hash": checkpoint.digest(path)}
        return {"encoder": {**described, "origin": self._origin}}

    def _on_rollout_start(self) -> None:
        self._rollouts += 1
        is_due = self._rollouts > 0 and self._rollouts % self._settings.every == 0
        if not is_due or len(self._recent) <= self._settings.clip_length:
            return
        with kept_random_state():
            losses = [self._one_step() for _ in range(self._settings.num_steps)]
        self._model.eval()
        figures = {"loss": float(np.mean(losses))}
        figures |= {f"drift_{k}": v for k, v in self._drift.measure(self._model.encoder).items()}
        scalars = {f"encoder/{name}": value for name, value in figures.items()}
        self._board.scalars(scalars, step=self.num_timesteps)

    def _one_step(self) -> float:
        seed_step(self._settings.seed, step=self._steps, rank=0)
        self._model.train()
        device = next(self._model.parameters()).device
        loss = self._model(self._clips().to(device)).total
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = clip_grad_norm_(self._model.parameters(), self._settings.clip_norm)
        if not bool(norm.isfinite()):
            raise ValueError(
                f"the loss of the encoder or its gradient is not finite at step "
                f"{self.num_timesteps}; try a lower encoder.replay.learning_rate"
            )
        self._optimizer.step()
        self._steps += 1
        return float(loss.detach())

    def _clips(self) -> Clip:
        settings = self._settings
        old = None if self._loader is None else self._loader.batch(self._steps)
        num_new = settings.batch_size - (0 if old is None else old.batch_size)
        new = self._recent.clips(
            num_new, clip_length=settings.clip_length, seed=(settings.seed, self._steps)
        )
        if old is None or old.action is None or new.action is None:
            return new
        return Clip(
            video=torch.cat([old.video, new.video]),
            is_first=torch.cat([old.is_first, new.is_first]),
            action=torch.cat([old.action, new.action]),
        )


class DriftReport(RunPart):
    """Reports the drift of an encoder that the policy's gradient trains."""

    def __init__(self, encoder: nn.Module, *, drift: Drift, board: TensorBoard, every: int) -> None:
        """Prepare.

        Args:
            encoder: the policy's own.
            drift: measured every so many rollouts.
            board: for the figures.
            every: rollouts from one report to the next.
        """
        super().__init__()
        self._encoder: Any = encoder
        self._drift, self._board, self._every = drift, board, every
        self._rollouts = 0

    def _on_rollout_start(self) -> None:
        if self._rollouts % self._every == 0:
            figures = self._drift.measure(self._encoder)
            scalars = {f"encoder/drift_{name}": value for name, value in figures.items()}
            self._board.scalars(scalars, step=self.num_timesteps)
        self._rollouts += 1
