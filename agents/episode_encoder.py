"""Episodes of frames to the slots that an agent would have observed.

E episodes, L frames of an episode, K slots, D columns of a slot, H W image.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocrl.interfaces import Decoder, SlotEncoder
from ocrl.stream import SlotStream

_AT_ONCE = 16


class EpisodeEncoder:
    """What an environment of slots gives for an episode, from its frames, later or elsewhere."""

    def __init__(
        self,
        encoder: SlotEncoder,
        *,
        decoder: Decoder | None = None,
        has_geometry: bool = False,
        is_noisy: bool = False,
        seed: int = 0,
    ) -> None:
        """Take what the environment's observations are made with, see `SlotStream`."""
        self._encoder = encoder
        self._arguments: dict[str, Any] = {
            "decoder": decoder,
            "has_geometry": has_geometry,
            "is_noisy": is_noisy,
        }
        self._seed = seed
        self._stamp: list[tuple[int, int]] = []
        self._fingerprint = 0

    @property
    def fingerprint(self) -> int:
        """A number that changes with the weights of the encoder (and decoder)."""
        parts = [part for part in (self._encoder, self._arguments["decoder"]) if part is not None]
        weights = [value for part in parts for value in part.state_dict().values()]
        # Where a tensor lies and how often it was written to: nothing is read while both stay.
        stamp = [(value.data_ptr(), value._version) for value in weights]
        if stamp != self._stamp:
            self._stamp, self._fingerprint = stamp, 0
            for value in weights:
                content = value.detach().cpu().contiguous().numpy().tobytes()
                self._fingerprint = zlib.crc32(content, self._fingerprint)
        return self._fingerprint

    def encode(
        self, frames: Sequence[NDArray[np.uint8]], actions: Sequence[NDArray[Any]]
    ) -> list[NDArray[np.float32]]:
        """Encode whole episodes.

        Args:
            frames: (L,H,W,3) uint8 of each.
            actions: (L,...) of each, of the environment; the last one is not read.

        Returns:
            (L,K,D) of each.

        Raises:
            ValueError: if the frames are of another size than the encoder's.
        """
        order = np.argsort([len(video) for video in frames], kind="stable")
        encoded: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(order), _AT_ONCE):
            places = order[start : start + _AT_ONCE].tolist()
            together = self._together([frames[p] for p in places], [actions[p] for p in places])
            encoded |= dict(zip(places, together, strict=True))
        return [encoded[place] for place in range(len(frames))]

    def _together(
        self, frames: list[NDArray[np.uint8]], actions: list[NDArray[Any]]
    ) -> list[NDArray[np.float32]]:
        """Episodes side by side; those that are over see their last frame again, in vain."""
        stream = SlotStream(self._encoder, num_envs=len(frames), seed=self._seed, **self._arguments)
        seen = [stream.reset(np.stack([video[0] for video in frames]))]
        for t in range(1, max(len(video) for video in frames)):
            current = np.stack([video[min(t, len(video) - 1)] for video in frames])
            taken = np.stack([done[min(t, len(done)) - 1] for done in actions])
            seen.append(stream.step(current, action=taken)[0])
        slots = np.stack(seen, axis=1)
        return [rows[: len(video)] for rows, video in zip(slots, frames, strict=True)]
