"""Measures and draws posed slots during training, for TensorBoard and for the terminal.

B batch, T frames, V views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from ocrl.log import SayOnce, TensorBoard
from ocrl.model import SlotModel
from ocrl.novel_views import BASELINES, evaluate_views
from ocrl.novel_views_report import orbit_movie, views_movie
from ocrl.types import Clip
from ocrl.visualize import to_gif

_FRAMES_PER_SECOND = 5.0


class ViewsMonitor:
    """Objects across cameras and views that were not seen, every so many steps of training."""

    def __init__(
        self,
        clips: Callable[[], Iterable[Clip]],
        *,
        preset: str,
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        """Remember what to evaluate on.

        Args:
            clips: gives the same held-out clips at every call.
            preset: ground truth to score, if the clips have it.
            device: where the model will be.
            say: takes a sentence about collapsed slots, once per finding.
        """
        self._clips, self._preset, self._device = clips, preset, device
        self._say = SayOnce(say)
        self._baselines: dict[str, float] = {}

    def __call__(self, model: nn.Module, *, step: int, board: TensorBoard) -> Mapping[str, float]:
        """Evaluate a model, log what there is to see, and give the metrics by name.

        Baselines do not change from one evaluation to the next: they are measured in the first.
        """
        if not isinstance(model, SlotModel):
            raise TypeError(f"expected a SlotModel, got {type(model).__name__}")
        result = evaluate_views(
            model,
            self._clips(),
            preset=self._preset,
            device=self._device,
            baselines=not self._baselines,
        )
        figures = result.scalars()
        if not self._baselines:
            self._baselines = {
                name: value for name, value in figures.items() if name.split("/")[0] in BASELINES
            }
        for index, example in enumerate(result.examples):
            movies = {"views": views_movie(example), "orbit": orbit_movie(example)}
            for name, movie in movies.items():
                if movie is not None:
                    gif = to_gif(movie[1], frames_per_second=_FRAMES_PER_SECOND)
                    board.picture(f"{name}/{index}", gif, step=step)
        self._say(result.warnings)
        return {**self._baselines, **figures}
