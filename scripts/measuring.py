"""What the scripts that measure a trained model share: opening it, and saying what was found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

import ocrl
from ocrl import checkpoint
from ocrl.device import find_device
from ocrl.types import Clip


@dataclass(frozen=True)
class Subject:
    """A trained model and the data it is measured on.

    Attributes:
        settings: of the command, plain.
        data: those of the group `data`; `path` among them.
        model: in eval mode, on `device`.
        step: of training, at which it was saved.
        env: what it was trained on.
        device: where it computes.
        console: the terminal.
    """

    settings: dict[str, Any]
    data: dict[str, Any]
    model: Any
    step: int
    env: str
    device: torch.device
    console: Console = field(default_factory=lambda: Console(stderr=True, soft_wrap=True))

    @property
    def image_size(self) -> tuple[int, int]:
        """Of the frames that its encoder takes."""
        size: tuple[int, int] = self.model.encoder.backbone.image_size
        return size

    @property
    def details(self) -> dict[str, str]:
        """What was measured, in names and values."""
        return {
            "checkpoint": f"{self.settings['checkpoint']} (step {self.step:,})",
            "data": str(self.data["path"]),
        }

    def say(self, sentences: Iterable[str], paths: Iterable[Path]) -> None:
        """What was found, and where it is written."""
        for sentence in sentences:
            self.console.print(sentence, highlight=False)
        for path in paths:
            self.console.print(f"{path.name:>12}: {path}")

    def counted(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        """The same clips, with their number on the terminal."""
        with self.console.status("measuring") as status:
            for number, clip in enumerate(clips):
                if number == 0 and not clip.segmentation:
                    self.console.print("there are no masks: nothing to score against")
                status.update(f"measuring: batch {number + 1}, {clip.num_frames} frames a clip")
                yield clip


def subject_of(config: DictConfig) -> Subject:
    """Open what a command is asked to measure.

    Raises:
        ValueError: if the command line names no checkpoint or no data, moving pictures could not be
            written at that rate, or there is no such device.
    """
    settings = checkpoint.plain(config)
    source, data = settings["checkpoint"], settings["data"]
    for key, value in (("checkpoint", source), ("data.path", data["path"])):
        if value is None:
            raise ValueError(f"expected {key}=PATH on the command line, got none")
    check_rate(settings.get("frames_per_second", 1.0))
    device = find_device(settings["device"])
    meta = checkpoint.read_meta(source)
    model = ocrl.load(source).to(device)
    return Subject(settings, data, model, meta["step"], meta["env"], device)


def check_rate(frames_per_second: float | None) -> None:
    """Refuse a rate of moving pictures before anything is measured for them.

    Raises:
        ValueError: if it is not above 0.
    """
    if frames_per_second is None or not frames_per_second > 0:
        raise ValueError(f"expected frames_per_second above 0, got {frames_per_second}")
