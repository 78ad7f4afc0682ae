"""Episodes on disk as plain memory maps: `EpisodeWriter` appends whole ones, `EpisodeStore` reads.

A store is a folder of shards, `shard-<worker>-<number>/`. A shard holds one raw little-endian file
per array, `<name>.bin`, with the rows of its episodes one after the other, and `index.jsonl` (see
`ocrl.data.format`). An episode exists from the moment its index line does; rows that no line names
are what an interrupted writer left, and the next writer cuts them off.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from ocrl.data.format import (
    INDEX_NAME,
    Arrays,
    ArraySpec,
    Damage,
    Entry,
    Header,
    Shard,
    checksum,
    encode_line,
    normalize_episode,
    raw_bytes,
    to_json,
)
from ocrl.data.shard import TORN, PlainShard, num_rows, read_index

try:
    import fcntl
except ImportError:  # Windows has no flock: two writers that share a number are not told apart.
    fcntl = None  # type: ignore[assignment]

Verify = Literal["lazy", "full", "none"]
_MAX_WARNINGS = 5
_logger = logging.getLogger(__name__)
_HOW_TO_COLLECT = (
    "collect episodes with `python scripts/collect_rollouts.py`, or correct `data.path`"
)


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
            shards.append(PlainShard(folder, header=index.header, index=index))
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


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give a folder to fill, which takes the name `path` once that is done, and vanishes if not.

    Raises:
        FileExistsError: if `path` is there already.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already; remove it or choose another name")
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def describe_difference(expected: Mapping[str, ArraySpec], got: Mapping[str, ArraySpec]) -> str:
    """Name the first array in which two layouts differ."""
    names = sorted(set(expected) | set(got))
    name = next(name for name in names if expected.get(name) != got.get(name))

    def words(spec: ArraySpec | None) -> str:
        return f"{np.dtype(spec.dtype)} {spec.shape} in each row" if spec else "not there"

    return f"expected {name!r} {words(expected.get(name))}, got {words(got.get(name))}"


class EpisodeWriter:
    """Appends episodes to a store, each wholly or not at all.

    The rows of an episode reach the disk before its index line does, so a process killed at any
    moment leaves a valid store. Several processes may write to one store, each as another `worker`.
    A writer goes on in the last shard of its worker where that is sound and of the same origin.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        metadata: Mapping[str, Any],
        worker: int = 0,
        shard_megabytes: float = 512,
    ) -> None:
        """Open a store for writing; the folder is made if it is not there.

        Args:
            path: the folder.
            metadata: where the episodes come from: environment and its arguments, versions, policy,
                names of categories and attributes. JSON values only.
            worker: the writer's own number; no two open writers of a store may share it.
            shard_megabytes: a shard that has grown beyond this is followed by a new one.

        Raises:
            ValueError: if `metadata` is no JSON, or the store holds another format version.
            OSError: if the folder cannot be written, or another process writes as this worker.
        """
        self.path = Path(path)
        self._metadata = to_json(dict(metadata))
        self._prefix = f"shard-{worker:03d}-"
        self._limit = shard_megabytes * 2**20
        self._arrays: Mapping[str, ArraySpec] | None = None
        self._shard = self.path
        self._index = -1
        self._index_size = 0
        self._is_untouched = False
        self._files: dict[str, int] = {}
        self._rows = 0
        self.num_episodes = 0
        self.num_frames = 0
        if self.path.is_file():
            raise ValueError(f"expected a folder to append to, got the file {self.path}; unpack it")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._resume()
        except OSError as error:
            self.close()
            raise self._failure(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def append(self, episode: Mapping[str, Any]) -> int:
        """Write one episode; when this returns it is on the disk.

        Args:
            episode: array name to L + 1 rows (see `docs/data.md`); 0-d arrays hold for the whole
                episode; a structured `objects` table (L+1,M) is split into its fields.

        Returns:
            How many episodes this worker has in the store.

        Raises:
            ValueError: if the episode breaks the format, or has other arrays than those before it.
            OSError: if it cannot be written; the store is as it was before.
        """
        if self._index < 0:
            raise ValueError(f"the writer of {self.path} is closed")
        arrays, values = normalize_episode(episode)
        specs = {name: ArraySpec(a.dtype.str, a.shape[1:]) for name, a in arrays.items()}
        if self._arrays is not None and specs != self._arrays:
            raise ValueError(
                f"the episode does not fit into {self.path}: "
                f"{describe_difference(self._arrays, specs)}; write it to another store"
            )
        crc32 = {name: checksum(array) for name, array in arrays.items()}
        num_frames = len(arrays["frames"])
        try:
            if self._rows * sum(spec.row_bytes for spec in specs.values()) >= self._limit:
                self._new_shard()
            if not self._files:
                self._start_shard(specs)
            line = encode_line(Entry(self._rows, num_frames, crc32, values).to_record())
            self._write(arrays, line)
        except OSError as error:
            self._roll_back()
            raise self._failure(error) from error
        except BaseException:
            self._roll_back()
            raise
        self._index_size += len(line)
        self._rows += num_frames
        self.num_episodes += 1
        self.num_frames += num_frames
        return self.num_episodes

    def close(self) -> None:
        """Let go of the files; episodes already appended need no closing."""
        if self._is_untouched:
            shutil.rmtree(self._shard, ignore_errors=True)
            self._is_untouched = False
        for descriptor in (*self._files.values(), self._index):
            if descriptor >= 0:
                os.close(descriptor)
        self._files, self._index = {}, -1

    def _resume(self) -> None:
        """Go on in this worker's last shard, or start one after it."""
        last = None
        for shard in sorted(self.path.glob("shard-*")):
            index = read_index(shard)
            if self._arrays is None and index.header is not None:
                self._arrays = index.header.arrays
            if shard.name.startswith(self._prefix):
                last = shard
                self.num_episodes += len(index.entries)
                self.num_frames += sum(entry.rows for _, entry in index.entries)
        if last is None or not self._reopen(last):
            self._new_shard(after=last)

    def _reopen(self, shard: Path) -> bool:
        """Lock a shard and cut off what an interrupted writer left; False if it cannot go on."""
        if not (shard / INDEX_NAME).is_file():
            return False
        self._open_index(shard)
        index = read_index(shard)
        if index.header is None and not index.damages:
            os.ftruncate(self._index, 0)
            return True
        if index.damages or index.header != Header(self._arrays or {}, self._metadata):
            return False
        if any(rows < index.end for rows in num_rows(shard, index.header).values()):
            return False
        self._index_size, self._rows = index.size, index.end
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        for name in index.header.arrays:
            self._files[name] = os.open(shard / f"{name}.bin", flags, 0o644)
        self._truncate(index.header.arrays)
        return True

    def _open_index(self, shard: Path) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        descriptor = os.open(shard / INDEX_NAME, flags, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise OSError(
                f"another process is writing {shard.name}; wait for it, or give each writer "
                "another worker number"
            ) from error
        self._shard, self._index = shard, descriptor

    def _new_shard(self, *, after: Path | None = None) -> None:
        last = after if self._index < 0 else self._shard
        number = 0 if last is None else int(re.findall(r"\d+", last.name)[-1]) + 1
        self.close()
        shard = self.path / f"{self._prefix}{number:05d}"
        shard.mkdir()
        self._open_index(shard)
        self._is_untouched = True
        self._index_size = self._rows = 0

    def _start_shard(self, specs: Mapping[str, ArraySpec]) -> None:
        """Make the files of the shard; it exists for readers from its first index line on."""
        for name in specs:
            file = self._shard / f"{name}.bin"
            file.parent.mkdir(exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC
            self._files[name] = os.open(file, flags, 0o644)
        line = encode_line(Header(specs, self._metadata).to_record())
        _write_all(self._index, line)
        os.fsync(self._index)
        for folder in (self._shard, self.path):
            _sync_folder(folder)
        self._index_size = len(line)
        self._arrays = specs
        self._is_untouched = False

    def _write(self, arrays: Arrays, line: bytes) -> None:
        for name, array in arrays.items():
            _write_all(self._files[name], raw_bytes(array))
        for descriptor in self._files.values():
            os.fsync(descriptor)
        _write_all(self._index, line)
        os.fsync(self._index)

    def _roll_back(self) -> None:
        """Cut the shard back to its whole episodes; if even that fails, write no more."""
        try:
            if self._index_size:
                self._truncate(self._arrays or {})
            else:
                os.ftruncate(self._index, 0)
                for descriptor in self._files.values():
                    os.close(descriptor)
                self._files = {}
        except OSError:
            self.close()

    def _truncate(self, specs: Mapping[str, ArraySpec]) -> None:
        os.ftruncate(self._index, self._index_size)
        for name, spec in specs.items():
            os.ftruncate(self._files[name], self._rows * spec.row_bytes)

    def _failure(self, error: OSError) -> OSError:
        return OSError(
            f"could not write to {self.path} ({error.strerror or error}); the "
            f"{self.num_episodes} episodes already there are safe: free space or mend the cause, "
            "then run the same command again to go on"
        )


def _write_all(descriptor: int, content: bytes | memoryview) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
