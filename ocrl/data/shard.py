"""One shard folder: its index read with care, its arrays memory-mapped.

B pieces in a batch, T rows of a piece.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocrl.data.format import (
    INDEX_NAME,
    Arrays,
    Damage,
    Entry,
    Header,
    checksum,
    decode_line,
)

try:
    import resource
except ImportError:  # Windows has no such limit.
    resource = None  # type: ignore[assignment]

TORN = "an unfinished line ends its index: a writer was interrupted"
_MOST_MAPS = 16384
"""However many files a process may open, Linux lets it have 65530 maps."""
MapFile = Callable[[Path, str, tuple[int, ...]], NDArray[Any]]
_SMALL_ROW_BYTES = 256
"""Below this one fancy index is faster than a slice for each piece."""


@dataclass
class Index:
    """What a shard's index says.

    Attributes:
        header: None if the shard has no usable one.
        entries: number of the line and its episode, where the line is sound.
        damages: lines that are not what was written.
        size: bytes in whole lines.
        is_torn: whether an unfinished line follows them, as an interrupted writer leaves it.
    """

    header: Header | None = None
    entries: list[tuple[int, Entry]] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    size: int = 0
    is_torn: bool = False

    @property
    def end(self) -> int:
        """The row after the last episode's."""
        return max((entry.end for _, entry in self.entries), default=0)


def read_index(shard: Path) -> Index:
    """Read a shard's index.

    Raises:
        ValueError: if it is of another format version.
    """
    has_index = (shard / INDEX_NAME).is_file()
    content = (shard / INDEX_NAME).read_bytes() if has_index else b""
    *lines, tail = content.split(b"\n")
    index = Index(size=len(content) - len(tail), is_torn=bool(tail))
    if not lines:
        # Rows are only written below a whole first line.
        if any(file.stat().st_size for file in shard.rglob("*.bin")):
            index.damages.append(Damage(shard, None, f"{INDEX_NAME} is missing or cut off"))
        return index
    record = decode_line(lines[0])
    if record is None:
        index.damages.append(Damage(shard, None, "the first line of its index is damaged"))
        return index
    index.header = Header.from_record(record, source=shard)
    for number, line in enumerate(lines[1:]):
        record = decode_line(line)
        if record is None:
            index.damages.append(Damage(shard, number, "its index line is damaged"))
        else:
            index.entries.append((number, Entry.from_record(record)))
    return index


def num_rows(shard: Path, header: Header) -> dict[str, int]:
    """How many whole rows each array's file has, 0 where it is missing."""
    rows = {}
    for name, spec in header.arrays.items():
        try:
            rows[name] = (shard / f"{name}.bin").stat().st_size // spec.row_bytes
        except FileNotFoundError:
            rows[name] = 0
    return rows


def max_maps() -> int:
    """How many files a store may keep mapped: each map holds one of the process's descriptors."""
    if resource is None:
        return _MOST_MAPS
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_MAPS if limit == resource.RLIM_INFINITY else min(_MOST_MAPS, limit // 4)


def map_file(file: Path, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Map the rows of a file, read-only."""
    size = np.dtype(dtype).itemsize * math.prod(shape)
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, dtype).reshape(shape)


class PlainShard:
    """A shard folder, memory-mapped.

    Attributes:
        path: the folder.
        header: its arrays and metadata.
        entries: the episodes whose index line is sound and whose rows are all there.
        numbers: their numbers, counted in index lines.
        damages: what had to be left out.
    """

    def __init__(self, path: Path, *, header: Header, index: Index, map_file: MapFile) -> None:
        """Open a shard.

        Args:
            path: the folder.
            header: what its index says of its arrays.
            index: what `read_index` gave.
            map_file: as the function of that name; all shards of a store share the maps it keeps.
        """
        self.path = path
        self.header = header
        self.damages = list(index.damages)
        self.entries: list[Entry] = []
        self.numbers: list[int] = []
        rows = num_rows(path, header)
        for number, entry in index.entries:
            short = [name for name in header.arrays if rows[name] < entry.end]
            if short:
                reason = f"{short[0]}.bin is missing or shorter than the index says"
                self.damages.append(Damage(path, number, reason))
            else:
                self.entries.append(entry)
                self.numbers.append(number)
        if index.is_torn:
            self.damages.append(Damage(path, None, TORN))
        end = max((entry.end for entry in self.entries), default=0)
        self._map_file = map_file
        self._files = {
            name: (path / f"{name}.bin", spec.dtype, (end, *spec.shape))
            for name, spec in header.arrays.items()
        }

    def check(self, number: int) -> str | None:
        """Say what is wrong with the content of `entries[number]`, or None."""
        for name, array in self.read(number).items():
            if checksum(array) != self.entries[number].crc32[name]:
                return f"the checksum of {name}.bin is wrong: the file was altered"
        return None

    def read(self, number: int) -> Arrays:
        """Every array of `entries[number]`, as views of the memory maps."""
        entry = self.entries[number]
        rows = slice(entry.start, entry.end)
        return {name: self._map_file(*file)[rows] for name, file in self._files.items()}

    def gather(
        self, rows: NDArray[np.int64], where: NDArray[np.int64], out: Mapping[str, NDArray[Any]]
    ) -> None:
        """Copy T rows from `rows[i]` on into `out[name][where[i]]` (B,T,...), for each name."""
        pairs = list(zip(where.tolist(), rows.tolist(), strict=True))
        for name, target in out.items():
            source, length = self._map_file(*self._files[name]), target.shape[1]
            if self.header.arrays[name].row_bytes < _SMALL_ROW_BYTES:
                target[where] = source[rows[:, None] + np.arange(length)]
                continue
            for position, row in pairs:
                target[position] = source[row : row + length]
