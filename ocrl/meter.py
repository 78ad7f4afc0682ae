"""Figures of training: losses, gradient norms, speed and the share of loading.

B batch, T frames.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from ocrl.distributed import World
from ocrl.types import Clip


def peak_megabytes(device: torch.device) -> float:
    """The most memory held so far: by tensors on a CUDA device, else by this process.

    0 where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "win32":
        return 0.0
    import resource

    # In kilobytes, but on macOS in bytes.
    scale = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


class Meter:
    """Means over a few training steps."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what was added."""
        self._sums: dict[str, Tensor] = {}
        self._norm = self._seconds = self._loading = 0.0
        self._steps = self._clips = self._frames = 0

    def add(
        self,
        clip: Clip,
        losses: Mapping[str, Tensor],
        norm: float,
        *,
        seconds: float,
        loading: float,
    ) -> None:
        """Add a step.

        Args:
            clip: what it was trained on.
            losses: its scalars.
            norm: of its gradient.
            seconds: it took.
            loading: seconds of them that were spent waiting for `clip`.
        """
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(loss)) + loss
        self._norm += norm
        self._seconds += seconds
        self._loading += loading
        self._steps += 1
        self._clips += clip.batch_size
        self._frames += clip.batch_size * clip.num_frames

    def read(self, world: World) -> dict[str, float]:
        """The means since the last time, over all processes; every process must ask."""
        figures = {
            f"loss/{name}": float(world.mean(total) / self._steps)
            for name, total in self._sums.items()
        }
        figures["train/gradient_norm"] = self._norm / self._steps
        figures["speed/clips_per_second"] = world.size * self._clips / self._seconds
        figures["speed/frames_per_second"] = world.size * self._frames / self._seconds
        figures["speed/loading_share"] = self._loading / self._seconds
        self.restart()
        return figures
