"""Clips that come again and again, so that what never changes of them is made once.

P clips of the pool, B batch, T frames, K slots, D slot size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ocrl.data.clips import ClipLoader
from ocrl.types import Clip


class ClipPool:
    """Some clips of a `ClipLoader`, with the slots that an encoder makes of them for good.

    A frozen encoder says the same of a clip whenever it comes: it is asked once, and `batch` gives
    its slots with the clip. They stay in memory, P * T * K * D numbers. As the loader's own,
    `batch(step)` depends on nothing but the store, the seed, the step and the rank.

    Args:
        loader: where clips come from.
        num_clips: different clips, over all ranks together; all of the loader's if there are fewer.
        batch_size: B, clips of a step of this rank.
        seed: of the drawing.

    Raises:
        ValueError: if there is no sound clip.
    """

    def __init__(self, loader: ClipLoader, *, num_clips: int, batch_size: int, seed: int) -> None:
        self._loader, self._batch_size, self._seed = loader, batch_size, seed
        self._episodes, self._starts = loader.draw_different(num_clips)
        self._slots: Tensor | None = None

    def __len__(self) -> int:
        """P of this rank."""
        return len(self._episodes)

    def remember(
        self,
        encode: Callable[[Clip], Tensor],
        *,
        device: torch.device | str,
        note: Callable[[int], None],
    ) -> None:
        """Read the slots of all clips, B at a time.

        Args:
            encode: slots (B,T,K,D) of clips.
            device: where that is done.
            note: called with the number of clips that are read.
        """
        for first in range(0, len(self), self._batch_size):
            rows = slice(first, first + self._batch_size)
            clip = self._loader.read(self._episodes[rows], self._starts[rows])
            slots = encode(clip.to(device)).cpu()
            if self._slots is None:
                self._slots = slots.new_empty((len(self), *slots.shape[1:]))
            self._slots[rows] = slots
            note(min(first + self._batch_size, len(self)))

    def batch(self, step: int, *, pin_memory: bool = False) -> Clip:
        """The clips of one step of training, each as likely as any other, see `ClipLoader.batch`.

        Raises:
            ValueError: before `remember`.
        """
        if self._slots is None:
            raise ValueError("expected a call of remember() first: nothing is encoded yet")
        # The loader tells ranks apart by their clips, which are different ones here already.
        rows = np.random.default_rng([self._seed, step]).integers(len(self), size=self._batch_size)
        clip = self._loader.read(self._episodes[rows], self._starts[rows], pin_memory=pin_memory)
        slots = self._slots[torch.from_numpy(rows)]
        return replace(clip, slots=slots.pin_memory() if pin_memory else slots)
