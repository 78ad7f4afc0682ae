"""Reading episodes, from plain memory maps or from an archive.

A store is a folder of shards, `shard-<worker>-<number>/`, each with one raw file per array and an
index (see `ocrl.data.format`), or one file made by `ocrl.data.archive.pack`.

B pieces in a batch, T frames of a piece.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from ocrl.data.format import Arrays, Damage, Entry, Shard, checksum, describe_difference
from ocrl.data.shard import TORN, PlainShard, map_file, max_maps, read_index
from ocrl.data.writer import EpisodeWriter, new_folder

__all__ = ["EpisodeStore", "EpisodeWriter", "Verify", "new_folder"]

Verify = Literal["lazy", "full", "none"]
_MAX_WARNINGS = 5
_logger = logging.getLogger(__name__)
_HOW_TO_COLLECT = "collect episodes with `python scripts/collect_rollouts.py`, or correct the path"


class EpisodeStore:
    """Reads episodes, from a folder of memory maps or from a packed archive.

    Episodes whose index line is damaged or whose rows are missing are named in a warning and are
    not part of the store. Those whose content is damaged are refused when they are asked for.

    Attributes:
        path: the folder or archive.
        metadata: where the episodes come from, as the writer of the first shard was told.
        arrays: array name to its `ArraySpec`.
        lengths: (len(self),) frames of each episode, that is L + 1 for L steps.
        num_frames: their sum.
    """

    def __init__(self, path: str | Path, *, verify: Verify = "lazy") -> None:
        """Open a store.

        Args:
            path: a folder written by `EpisodeWriter` or a file written by `ocrl.data.archive.pack`.
            verify: when checksums are compared: at the first read of an episode ("lazy"), of all
                episodes now, leaving the damaged ones out ("full"), or never ("none").

        Raises:
            FileNotFoundError: if there is nothing at `path`, or no episode in it.
            ValueError: if nothing in it can be read, or its shards do not fit together.
        """
        if verify not in ("lazy", "full", "none"):
            raise ValueError(f"expected verify to be 'lazy', 'full' or 'none', got {verify!r}")
        self.path = Path(path)
        self._verify = verify
        self._damages: list[Damage] = []
        self._shards = self._open_shards()
        for shard in self._shards:
            self._damages += shard.damages
        self._warn(self._damages)
        self._places = [
            (shard, number) for shard in self._shards for number in range(len(shard.entries))
        ]
        self._sound: dict[int, str | None] = {}
        if verify == "full":
            self._places = [
                place for index, place in enumerate(self._places) if self.check(index) is None
            ]
            self._sound = {}
            self._verify = "none"
        if not self._places:
            self._raise_empty()
        self.metadata: Mapping[str, Any] = self._shards[0].header.metadata
        self.arrays = self._shards[0].header.arrays
        entries = [shard.entries[number] for shard, number in self._places]
        self.lengths: NDArray[np.int64] = np.array([entry.rows for entry in entries])
        self.num_frames = int(self.lengths.sum())
        self._rows = np.array([entry.start for entry in entries])
        order = {id(shard): index for index, shard in enumerate(self._shards)}
        self._shard_of = np.array([order[id(shard)] for shard, _ in self._places])

    def _open_shards(self) -> list[Shard]:
        if self.path.is_file():
            from ocrl.data.archive import open_archive  # it imports this module

            return list(open_archive(self.path))
        if not self.path.is_dir():
            raise FileNotFoundError(f"no episodes at {self.path}; {_HOW_TO_COLLECT}")
        shards: list[Shard] = []
        keep_maps = lru_cache(max_maps())(map_file)
        for folder in sorted(self.path.glob("shard-*")):
            index = read_index(folder)
            if index.header is None:
                self._damages += index.damages
                continue
            if shards and shards[0].header.arrays != index.header.arrays:
                raise ValueError(
                    f"{folder} and {shards[0].path} hold different arrays: "
                    f"{describe_difference(shards[0].header.arrays, index.header.arrays)}; "
                    "keep them in two stores"
                )
            shards.append(PlainShard(folder, header=index.header, index=index, map_file=keep_maps))
        return shards

    @staticmethod
    def _warn(damages: list[Damage]) -> None:
        for damage in damages[:_MAX_WARNINGS]:
            _logger.warning("Leaving out damaged data: %s", damage)
        if len(damages) > _MAX_WARNINGS:
            _logger.warning("and %d more", len(damages) - _MAX_WARNINGS)

    def _raise_empty(self) -> NoReturn:
        reasons = [damage.reason for damage in self._damages if damage.reason != TORN]
        if reasons:
            raise ValueError(
                f"every episode in {self.path} is damaged ({reasons[0]}); "
                f"restore it from a copy, or {_HOW_TO_COLLECT}"
            )
        raise FileNotFoundError(f"{self.path} holds no whole episode; {_HOW_TO_COLLECT}")

    def __len__(self) -> int:
        return len(self._places)

    def check(self, index: int) -> str | None:
        """Compare the checksums of an episode; say what is wrong, or None. Remembers the answer."""
        if index not in self._sound:
            shard, number = self._places[index]
            reason = shard.check(number)
            self._sound[index] = reason
            if reason is not None:
                damage = Damage(shard.path, shard.numbers[number], reason)
                self._damages.append(damage)
                self._warn([damage])
        return self._sound[index]

    def is_sound(self, index: int) -> bool:
        """Whether an episode may be read, under the `verify` that the store was opened with."""
        return self._verify == "none" or self.check(index) is None

    def verify(self) -> list[Damage]:
        """Compare every checksum; the list of what is damaged, empty for a sound store."""
        for index in range(len(self)):
            self.check(index)
        return list(self._damages)

    def episode(self, index: int) -> Arrays:
        """One episode: array name to (L+1, ...), read-only, and 0-d arrays for its values.

        Raises:
            IndexError: if there is no such episode.
            ValueError: if its content is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"expected an episode in [0, {len(self)}), got {index}")
        shard, number = self._places[index]
        if not self.is_sound(index):
            raise ValueError(
                f"episode {index} of {self.path} is damaged ({self.check(index)}); restore it from "
                "a copy, or open the store with verify='full' to leave it out"
            )
        values = shard.entries[number].values
        return shard.read(number) | {name: np.asarray(value) for name, value in values.items()}

    def read(self, index: int, names: Collection[str]) -> Arrays:
        """Some arrays of an episode, (L+1, ...) each; only these are read and verified.

        Raises:
            ValueError: if one of them is damaged.
        """
        entry = self.entry(index)
        specs = {name: self.arrays[name] for name in names}
        out = {n: np.empty((1, entry.rows, *spec.shape), spec.dtype) for n, spec in specs.items()}
        self.gather(np.array([index]), np.zeros(1, np.int64), out=out)
        arrays = {name: array[0] for name, array in out.items()}
        for name, array in arrays.items():
            if self._verify != "none" and checksum(array) != entry.crc32[name]:
                raise ValueError(
                    f"{name!r} of episode {index} of {self.path} is damaged; restore it from a copy"
                )
        return arrays

    def entry(self, index: int) -> Entry:
        """The index entry of an episode; its `start` counts rows within the shard."""
        shard, number = self._places[index]
        return shard.entries[number]

    def origin(self, index: int) -> Mapping[str, Any]:
        """The metadata that the writer of an episode was given."""
        return self._places[index][0].header.metadata

    def checksums(self, index: int) -> str:
        """A word that stands for the content of an episode, wherever it is stored."""
        crc32 = self.entry(index).crc32
        return " ".join(f"{name}:{crc32[name]:08x}" for name in sorted(crc32))

    @property
    def fingerprint(self) -> str:
        """A hash of the content of all episodes, the same for a store and its archive."""
        words = "\n".join(self.checksums(index) for index in range(len(self)))
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    def gather(
        self,
        episodes: NDArray[np.int64],
        starts: NDArray[np.int64],
        *,
        out: Mapping[str, NDArray[Any]],
    ) -> None:
        """Copy equally long pieces of episodes into arrays that are already there.

        Args:
            episodes: (B,) which episodes; they are not verified here.
            starts: (B,) the first frame of each piece.
            out: array name to (B,T,...); values are cast to its dtype.
        """
        rows = self._rows[episodes] + starts
        shards = self._shard_of[episodes]
        for shard in np.unique(shards):
            where = np.flatnonzero(shards == shard)
            self._shards[shard].gather(rows[where], where, out)
