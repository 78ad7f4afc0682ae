"""What becomes of an encoder while an agent learns: frozen, tuned by replay or by the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from gymnasium.vector import VectorEnv
from torch import Tensor

from ocrl import checkpoint
from ocrl.agents.callbacks import RunPart
from ocrl.agents.episode_encoder import EpisodeEncoder
from ocrl.agents.tuning import Drift, DriftReport, EncoderTuning, TuningSettings
from ocrl.data.clips import ClipLoader
from ocrl.data.store import EpisodeStore
from ocrl.envs import make_vec
from ocrl.envs.recent_frames import RecentFrames
from ocrl.interfaces import FrameSlotEncoder
from ocrl.log import TensorBoard
from ocrl.model import SlotModel
from ocrl.posed import chooser_of

MODES = ("frozen", "replay", "gradient")
_PROBE_ENVS, _PROBE_FRAMES = 8, 4


@dataclass(frozen=True)
class Encoder:
    """A trained encoder and what becomes of it.

    Attributes:
        model: the slot model.
        path: of its checkpoint.
        described: entry of the agent's `meta.json`.
        settings: `encoder` of `configs/agent.yaml`.
    """

    model: SlotModel
    path: Path
    described: Mapping[str, str]
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: as `mode`, or if fewer steps are remembered than a clip of them takes.
        """
        if self.mode != "replay":
            return
        remember, length = (self.settings["replay"][name] for name in ("remember", "clip_length"))
        if remember <= length:
            raise ValueError(
                f"expected encoder.replay.remember above encoder.replay.clip_length={length}, got "
                f"{remember}"
            )

    @property
    def mode(self) -> str:
        """One of `MODES`.

        Raises:
            ValueError: if it is none of them, or the encoder is of posed views and is to learn on.
        """
        mode: str = self.settings["mode"]
        if mode not in MODES:
            raise ValueError(f"expected encoder.mode to be one of {list(MODES)}, got {mode!r}")
        if mode != "frozen" and self.model.encoder.backbone.needs_camera:
            raise ValueError(
                f"expected encoder.mode=frozen for an encoder of posed views, got {mode}: an "
                "agent learns from frames without their cameras"
            )
        return mode

    @property
    def remember(self) -> int:
        """Steps whose frames must be kept."""
        return int(self.settings["replay"]["remember"]) if self.mode == "replay" else 0

    def for_episodes(self, observation: Mapping[str, Any], *, seed: int) -> EpisodeEncoder:
        """What makes of a whole episode the slots that the agent observes."""
        is_of_decoder = observation["has_geometry"] and observation["geometry_of"] == "decoder"
        is_posed = self.model.encoder.backbone.needs_camera
        return EpisodeEncoder(
            self.model.encoder,
            num_views=chooser_of(self.model).num_seen if is_posed else None,
            decoder=self.model.decoder if is_of_decoder else None,
            has_geometry=observation["has_geometry"],
            is_noisy=observation["is_noisy"],
            seed=seed,
        )

    @property
    def has_order(self) -> bool:
        """Whether a slot stays with its object from frame to frame."""
        return not any(isinstance(part, FrameSlotEncoder) for part in self.model.encoder.modules())

    @property
    def config(self) -> dict[str, Any]:
        """What the encoder alone is built from."""
        config: dict[str, Any] = checkpoint.read_config(self.path)["encoder"]
        return config

    def part(
        self, envs: VectorEnv[Any, Any, Any], *, env: str, arguments: Mapping[str, Any], seed: int
    ) -> Callable[[Any, TensorBoard], RunPart] | None:
        """What belongs to the agent's training, see `ModelFree.train`; None for a frozen encoder.

        Args:
            envs: of the training.
            env: their name.
            arguments: of the environment.
            seed: of the run.
        """
        if self.mode == "frozen":
            return None
        drift = Drift(self.model.encoder, probe_video(env, arguments))
        if self.mode == "gradient":
            return lambda agent, board: DriftReport(
                agent.features.encoder, drift=drift, board=board, every=self.settings["every"]
            )
        replay = self.settings["replay"]
        tuning = {name: replay[name] for name in ("num_steps", "batch_size", "clip_length")}
        return lambda agent, board: EncoderTuning(
            self.model,
            _recent(envs),
            loader=self._loader(replay, seed),
            settings=TuningSettings(
                **tuning,
                every=self.settings["every"],
                learning_rate=replay["learning_rate"],
                clip_norm=replay["clip_norm"],
                seed=seed,
            ),
            drift=drift,
            board=board,
            origin=self.described,
            config=checkpoint.read_config(self.path),
            env=env,
        )

    def _loader(self, replay: Mapping[str, Any], seed: int) -> ClipLoader | None:
        """Clips of the episodes of pretraining, as far as they lie beside the checkpoint."""
        path = Path(replay["episodes"] or self.path.parent / "episodes")
        if not path.is_dir():
            return None
        return ClipLoader(
            EpisodeStore(path),
            clip_length=replay["clip_length"],
            batch_size=replay["batch_size"] // 2,
            seed=seed,
            image_size=self.model.encoder.backbone.image_size,
        )


def _recent(envs: VectorEnv[Any, Any, Any]) -> RecentFrames:
    below = envs
    while not isinstance(below, RecentFrames):
        below = below.env  # type: ignore[attr-defined]
    return below


def probe_video(env: str, arguments: Mapping[str, Any]) -> Tensor:
    """Frames (B,T,C,H,W) uint8 of random play that are the same in every run."""
    envs = make_vec(env, _PROBE_ENVS, **arguments)
    frame, _ = envs.reset(seed=0)
    envs.action_space.seed(0)
    frames = [frame]
    for _ in range(_PROBE_FRAMES - 1):
        frames.append(envs.step(envs.action_space.sample())[0])
    envs.close()
    return rearrange(torch.from_numpy(np.stack(frames, axis=1)), "b t h w c -> b t c h w")
