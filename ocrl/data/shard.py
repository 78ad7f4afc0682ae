"""One shard folder: its index read with care, its arrays memory-mapped.

B pieces in a batch, T rows of a piece.
"""

from __future__ import annotations

from collections.abc import Mapping
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

TORN = "an unfinished line ends its index: a writer was interrupted"
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


class PlainShard:
    """A shard folder, memory-mapped.

    Attributes:
        path: the folder.
        header: its arrays and metadata.
        entries: the episodes whose index line is sound and whose rows are all there.
        numbers: their numbers, counted in index lines.
        damages: what had to be left out.
    """

    def __init__(self, path: Path, *, header: Header, index: Index) -> None:
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
        self._maps = {name: self._map(name, end) for name in header.arrays} if end else {}

    def _map(self, name: str, rows: int) -> NDArray[Any]:
        spec = self.header.arrays[name]
        shape = (rows, *spec.shape)
        memory_map = np.memmap(self.path / f"{name}.bin", np.dtype(spec.dtype), "r", shape=shape)
        return np.asarray(memory_map)  # slices of a plain array are several times cheaper

    def check(self, number: int) -> str | None:
        """Say what is wrong with the content of `entries[number]`, or None."""
        for name, array in self.read(number).items():
            if checksum(array) != self.entries[number].crc32[name]:
                return f"the checksum of {name}.bin is wrong: the file was altered"
        return None

    def read(self, number: int) -> Arrays:
        """Every array of `entries[number]`, as views of the memory maps."""
        entry = self.entries[number]
        return {name: rows[entry.start : entry.end] for name, rows in self._maps.items()}

    def gather(
        self, rows: NDArray[np.int64], where: NDArray[np.int64], out: Mapping[str, NDArray[Any]]
    ) -> None:
        """Copy T rows from `rows[i]` on into `out[name][where[i]]` (B,T,...), for each name."""
        pairs = list(zip(where.tolist(), rows.tolist(), strict=True))
        for name, target in out.items():
            source, length = self._maps[name], target.shape[1]
            if self.header.arrays[name].row_bytes < _SMALL_ROW_BYTES:
                target[where] = source[rows[:, None] + np.arange(length)]
                continue
            for position, row in pairs:
                target[position] = source[row : row + length]
