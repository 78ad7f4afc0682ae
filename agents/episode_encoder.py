"""Episodes of frames to the slots that an agent would have observed.

E episodes, L frames of an episode, V views, K slots, D columns of a slot, H W image.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocrl.interfaces import Decoder, SlotEncoder
from ocrl.stream import SlotStream, camera_now
from ocrl.types import Camera

_AT_ONCE = 16
Cameras = tuple[NDArray[Any], NDArray[Any]]
"""Intrinsics (L,V,3,3) and extrinsics (L,V,4,4) of the frames of an episode."""


class EpisodeEncoder:
    """What an environment of slots gives for an episode, from its frames, later or elsewhere."""

    def __init__(
        self,
        encoder: SlotEncoder,
        *,
        num_views: int | None = None,
        decoder: Decoder | None = None,
        has_geometry: bool = False,
        is_noisy: bool = False,
        seed: int = 0,
    ) -> None:
        """Take what the environment's observations are made with, see `SlotObservations`."""
        self._encoder, self._views = encoder, slice(num_views)
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
        self,
        frames: Sequence[NDArray[np.uint8]],
        actions: Sequence[NDArray[Any]],
        *,
        cameras: Sequence[Cameras] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Encode whole episodes.

        Args:
            frames: (L,[V,]H,W,3) uint8 of each.
            actions: (L,...) of each, of the environment; the last one is not read.
            cameras: of each, for an encoder of posed views.

        Returns:
            (L,K,D) of each.

        Raises:
            ValueError: if the frames are of another size than the encoder's, or there are no
                cameras though it reads them.
        """
        if cameras is None:
            seen: list[tuple[NDArray[Any], ...]] = [(video,) for video in frames]
        else:
            seen = [
                (
                    video if video.ndim == 4 else video[:, self._views],
                    *(matrix[:, self._views] for matrix in matrices),
                )
                for video, matrices in zip(frames, cameras, strict=True)
            ]
        order = np.argsort([len(video) for video in frames], kind="stable")
        encoded: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(order), _AT_ONCE):
            places = order[start : start + _AT_ONCE].tolist()
            together = self._together([seen[p] for p in places], [actions[p] for p in places])
            encoded |= dict(zip(places, together, strict=True))
        return [encoded[place] for place in range(len(frames))]

    def _together(
        self, seen: list[tuple[NDArray[Any], ...]], actions: list[NDArray[Any]]
    ) -> list[NDArray[np.float32]]:
        """Episodes side by side; those that are over see their last frame again, in vain."""
        first = seen[0][0]
        stream = SlotStream(
            self._encoder,
            num_envs=len(seen),
            num_views=None if first.ndim == 4 else first.shape[1],
            seed=self._seed,
            **self._arguments,
        )

        def moment(t: int) -> tuple[NDArray[np.uint8], Camera | None]:
            rows = [[part[min(t, len(part) - 1)] for part in parts] for parts in seen]
            frames, *matrices = (np.stack(parts) for parts in zip(*rows, strict=True))
            return frames, camera_now(*matrices) if matrices else None

        frames, camera = moment(0)
        made = [stream.reset(frames, camera=camera)]
        for t in range(1, max(len(parts[0]) for parts in seen)):
            frames, camera = moment(t)
            taken = np.stack([done[min(t, len(done)) - 1] for done in actions])
            made.append(stream.step(frames, camera=camera, action=taken)[0])
        slots = np.stack(made, axis=1)
        return [rows[: len(parts[0])] for rows, parts in zip(slots, seen, strict=True)]
