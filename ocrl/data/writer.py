"""Writing episodes as plain files that can be memory-mapped, each wholly or not at all.

An episode exists from the moment its index line does; rows that no line names are what an
interrupted writer left, and the next writer cuts them off. L steps make L + 1 rows.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ocrl.data.format import (
    INDEX_NAME,
    Arrays,
    ArraySpec,
    Entry,
    Header,
    checksum,
    describe_difference,
    encode_line,
    normalize_episode,
    raw_bytes,
    to_json,
)
from ocrl.data.shard import num_rows, read_index

try:
    import fcntl
except ImportError:  # Windows has no flock: two writers that share a number are not told apart.
    fcntl = None  # type: ignore[assignment]


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
            file.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC
            self._files[name] = os.open(file, flags, 0o644)
        line = encode_line(Header(specs, self._metadata).to_record())
        _write_all(self._index, line)
        os.fsync(self._index)
        for folder in self._folders_of(specs):
            _sync_folder(folder)
        self._index_size = len(line)
        self._arrays = specs
        self._is_untouched = False

    def _folders_of(self, specs: Mapping[str, ArraySpec]) -> list[Path]:
        """Those that gained an entry when the shard was made, the innermost first."""
        inner = {folder for name in specs for folder in Path(name).parents}
        deepest_first = sorted(inner, key=lambda folder: len(folder.parts), reverse=True)
        return [*(self._shard / folder for folder in deepest_first), self.path]

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
