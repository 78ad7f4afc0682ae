"""Episodes packed into one file with zstd: for moving and keeping, and readable as it is.

The rows of an episode are cut into chunks. Each large array is a stream of its own, the small ones
share one; a stream's chunk is a zstd frame that holds the rows of its arrays one array after the
other. The file is: magic, chunks, table of chunks, footer, trailer. The table (chunk, stream) says
where each zstd frame lies and its CRC-32; the footer is one JSON line, checked like an index line;
the trailer says where table and footer begin and holds the CRC-32 of both.

B pieces in a batch, T rows of a piece.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zstandard
from numpy.typing import NDArray

from ocrl.data.format import (
    Arrays,
    ArraySpec,
    Damage,
    Entry,
    Header,
    decode_line,
    encode_line,
    raw_bytes,
)
from ocrl.data.store import EpisodeStore, EpisodeWriter, new_folder

_MAGIC = b"OCRLPACK"
_TRAILER = struct.Struct("<QQI8s")
_CHUNK_ROWS = 8
_LEVEL = 3
_SMALL_ROW_BYTES = 512
_TABLE_ROW = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4")])
_MAX_THREADS = 4

Streams = list[list[str]]


def pack(store: EpisodeStore, path: str | Path) -> Path:
    """Write all episodes of a store into one archive; it appears under its name when it is whole.

    Args:
        store: the episodes.
        path: the file to make.

    Returns:
        `path`.

    Raises:
        FileExistsError: if it is there already.
        ValueError: if an episode is damaged.
        OSError: if it cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already; remove it or pack under another name")
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            _write_archive(store, file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        raise OSError(
            f"could not write {path} ({error.strerror or error}); nothing of {store.path} was "
            "changed: free space or mend the cause, then pack again"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def unpack(archive: str | Path, path: str | Path, *, shard_megabytes: float = 512) -> Path:
    """Turn an archive back into a folder of memory maps; it appears when it is whole.

    Args:
        archive: a file made by `pack`.
        path: the folder to make.
        shard_megabytes: see `EpisodeWriter`.

    Returns:
        `path`.

    Raises:
        FileExistsError: if it is there already.
        ValueError: if the archive is damaged.
        OSError: if it cannot be written.
    """
    store = EpisodeStore(archive)
    with new_folder(path) as folder:
        first = 0
        while first < len(store):
            metadata = store.origin(first)
            with EpisodeWriter(
                folder, metadata=metadata, shard_megabytes=shard_megabytes
            ) as writer:
                while first < len(store) and store.origin(first) == metadata:
                    writer.append(store.episode(first))
                    first += 1
    return Path(path)


def open_archive(path: Path) -> list[ArchiveShard]:
    """Open an archive: one shard for each origin of its episodes.

    Raises:
        ValueError: if the file is no archive, is cut short or damaged beyond its episodes.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    content = memoryview(mapped)
    if size < len(_MAGIC) + _TRAILER.size or content[: len(_MAGIC)] != _MAGIC:
        raise ValueError(
            f"{path} is no episode archive; name one made by `ocrl.data.archive.pack`, or a folder "
            "of shards"
        )
    end = size - _TRAILER.size
    table_start, footer_start, crc32, magic = _TRAILER.unpack_from(content, end)
    if (
        magic != _MAGIC
        or not len(_MAGIC) <= table_start <= footer_start <= end
        or zlib.crc32(content[table_start:end]) != crc32
    ):
        raise ValueError(f"{path} is cut short or its table is damaged; copy it again")
    footer = decode_line(bytes(content[footer_start : end - 1]))
    if footer is None:
        raise ValueError(f"{path} has a damaged footer; copy it again")
    streams: Streams = footer["streams"]
    table = np.frombuffer(content[table_start:footer_start], _TABLE_ROW)
    table = table.reshape(-1, len(streams))
    shards: list[ArchiveShard] = []
    num_entries = 0
    for shard in footer["shards"]:
        header = Header.from_record({**footer, "metadata": shard["metadata"]}, source=path)
        entries = [Entry.from_record(record) for record in shard["entries"]]
        shards.append(
            ArchiveShard(
                path,
                header=header,
                entries=entries,
                first_number=num_entries,
                content=content,
                table=table,
                streams=streams,
                chunk_rows=footer["chunk_rows"],
            )
        )
        num_entries += len(entries)
    return shards


class ArchiveShard:
    """The episodes of one origin in an archive, decompressed as they are read.

    Each episode begins with a fresh chunk; `entries[i].start` counts rows as if every chunk were
    full, so that a row lies in chunk `row // chunk_rows`.

    Attributes:
        path: the archive.
        header: its arrays and metadata.
        entries: the episodes.
        numbers: their numbers in the whole archive.
        damages: empty; damage to more than single episodes refuses the archive.
    """

    def __init__(
        self,
        path: Path,
        *,
        header: Header,
        entries: list[Entry],
        first_number: int,
        content: memoryview,
        table: NDArray[np.void],
        streams: Streams,
        chunk_rows: int,
    ) -> None:
        self.path = path
        self.header = header
        self.entries = entries
        self.numbers = list(range(first_number, first_number + len(entries)))
        self.damages: list[Damage] = []
        self._content = content
        self._table = table
        self._streams = streams
        self._chunk_rows = chunk_rows
        self._decompressor = zstandard.ZstdDecompressor()
        self._num_threads = min(_MAX_THREADS, os.cpu_count() or 1)

    def check(self, number: int) -> str | None:
        """Say what is wrong with the content of `entries[number]`, or None."""
        entry = self.entries[number]
        chunks = slice(entry.start // self._chunk_rows, -(-entry.end // self._chunk_rows))
        for names, cells in zip(self._streams, self._table[chunks].T, strict=True):
            for offset, size, crc32 in cells.tolist():
                if zlib.crc32(self._content[offset : offset + size]) != crc32:
                    return f"the checksum of {names[0]} is wrong: the file was altered"
        return None

    def read(self, number: int) -> Arrays:
        """Every array of `entries[number]`."""
        entry = self.entries[number]
        out = {
            name: np.empty((1, entry.rows, *spec.shape), spec.dtype)
            for name, spec in self.header.arrays.items()
        }
        self.gather(np.array([entry.start]), np.array([0]), out)
        return {name: array[0] for name, array in out.items()}

    def gather(
        self, rows: NDArray[np.int64], where: NDArray[np.int64], out: Mapping[str, NDArray[Any]]
    ) -> None:
        """Copy T rows from `rows[i]` on into `out[name][where[i]]` (B,T,...), for each name."""
        length = next(iter(out.values())).shape[1]
        pieces = list(_pieces(rows, where, length, self._chunk_rows))
        chunks = np.array([piece[0] for piece in pieces])
        for stream, names in enumerate(self._streams):
            wanted = [name for name in names if name in out]
            if not wanted:
                continue
            parts = self._parts(names)
            stream_row_bytes = sum(self.header.arrays[name].row_bytes for name in names)
            frames = self._decompress(self._table[chunks, stream])
            for (_, position, source, target), frame in zip(pieces, frames, strict=True):
                num_rows = len(frame) // stream_row_bytes
                for name in wanted:
                    dtype, shape, row_items, before = parts[name]
                    array = np.frombuffer(frame, dtype, num_rows * row_items, num_rows * before)
                    out[name][position, target] = array.reshape(num_rows, *shape)[source]

    def _parts(self, names: list[str]) -> dict[str, tuple[np.dtype, tuple[int, ...], int, int]]:
        """Of each array of a stream: dtype, shape and items of a row, bytes before it per row."""
        parts, before = {}, 0
        for name in names:
            spec = self.header.arrays[name]
            parts[name] = (np.dtype(spec.dtype), spec.shape, math.prod(spec.shape), before)
            before += spec.row_bytes
        return parts

    def _decompress(self, cells: NDArray[np.void]) -> Iterator[Any]:
        segments = np.stack([cells["offset"], cells["size"].astype(np.uint64)], axis=1)
        try:
            # One call for the whole batch: zstd runs in threads, without the interpreter.
            frames = self._decompressor.multi_decompress_to_buffer(
                zstandard.BufferWithSegments(self._content, segments.tobytes()),
                threads=self._num_threads,
            )
        except zstandard.ZstdError as error:
            raise ValueError(
                f"an episode of {self.path} is damaged ({error}); copy the archive again, or open "
                "it with verify='full' to leave the episode out"
            ) from error
        return (frames[index] for index in range(len(frames)))


def _pieces(
    rows: NDArray[np.int64], where: NDArray[np.int64], length: int, chunk_rows: int
) -> Iterator[tuple[int, int, slice, slice]]:
    """Chunk, position in the batch, rows of the chunk and rows of the piece, in copying order."""
    for row, position in zip(rows.tolist(), where.tolist(), strict=True):
        for chunk in range(row // chunk_rows, (row + length - 1) // chunk_rows + 1):
            first = max(row, chunk * chunk_rows)
            last = min(row + length, (chunk + 1) * chunk_rows)
            source = slice(first - chunk * chunk_rows, last - chunk * chunk_rows)
            yield chunk, position, source, slice(first - row, last - row)


def _choose_streams(arrays: Mapping[str, ArraySpec]) -> Streams:
    large = [name for name, spec in arrays.items() if spec.row_bytes >= _SMALL_ROW_BYTES]
    small = [name for name in arrays if name not in large]
    return [[name] for name in large] + ([small] if small else [])


def _write_archive(store: EpisodeStore, file: BinaryIO) -> None:
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    streams = _choose_streams(store.arrays)
    cells: list[tuple[int, int, int]] = []
    shards: list[dict[str, Any]] = []
    file.write(_MAGIC)
    for index in range(len(store)):
        if not shards or shards[-1]["metadata"] != store.origin(index):
            shards.append({"metadata": store.origin(index), "entries": []})
        entry = store.entry(index)
        start = len(cells) // len(streams) * _CHUNK_ROWS
        moved = Entry(start, entry.rows, entry.crc32, entry.values)
        shards[-1]["entries"].append(moved.to_record())
        episode = store.episode(index)
        for first in range(0, entry.rows, _CHUNK_ROWS):
            for names in streams:
                parts = [raw_bytes(episode[name][first : first + _CHUNK_ROWS]) for name in names]
                frame = compressor.compress(b"".join(parts))
                cells.append((file.tell(), len(frame), zlib.crc32(frame)))
                file.write(frame)
    table = np.array(cells, _TABLE_ROW).tobytes()
    record = Header(store.arrays, {}).to_record() | {
        "chunk_rows": _CHUNK_ROWS,
        "streams": streams,
        "shards": shards,
    }
    footer = encode_line(record)
    start = file.tell()
    crc32 = zlib.crc32(footer, zlib.crc32(table))
    file.write(table + footer + _TRAILER.pack(start, start + len(table), crc32, _MAGIC))
