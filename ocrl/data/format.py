"""The format of episodes on disk: array layouts, index lines and their checks.

A shard's index is a text file of JSON lines: the first describes the arrays and their origin, each
further line one episode. Every line carries the CRC-32 of itself, and every episode the CRC-32 of
each of its arrays. L steps make L + 1 rows.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ocrl.nn.rays import check_cameras

FORMAT = "ocrl-episodes"
VERSION = 1
INDEX_NAME = "index.jsonl"

Arrays = dict[str, NDArray[Any]]
_NAME = re.compile(r"[A-Za-z0-9_][\w-]*(/[A-Za-z0-9_][\w-]*)*", re.ASCII)


@dataclass(frozen=True)
class ArraySpec:
    """One row of an array.

    Attributes:
        dtype: NumPy's type string, little-endian.
        shape: without the row axis.
    """

    dtype: str
    shape: tuple[int, ...]

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The first line of an index.

    Attributes:
        arrays: what every episode of the shard holds.
        metadata: where the episodes come from; JSON values only.
    """

    arrays: Mapping[str, ArraySpec]
    metadata: Mapping[str, Any]

    def to_record(self) -> dict[str, Any]:
        """Its JSON form."""
        arrays = {
            name: {"dtype": spec.dtype, "shape": list(spec.shape)}
            for name, spec in self.arrays.items()
        }
        metadata = dict(self.metadata)
        return {"format": FORMAT, "version": VERSION, "arrays": arrays, "metadata": metadata}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], *, source: Path) -> Header:
        """Read it from a decoded index line.

        Raises:
            ValueError: if the line is of another format or version.
        """
        found = (record.get("format"), record.get("version"))
        if found != (FORMAT, VERSION):
            raise ValueError(
                f"{source}: expected format {FORMAT!r} version {VERSION}, got {found[0]!r} version "
                f"{found[1]!r}; read it with the release of this library that wrote it"
            )
        arrays = {
            name: ArraySpec(spec["dtype"], tuple(spec["shape"]))
            for name, spec in record["arrays"].items()
        }
        return cls(arrays, record["metadata"])


@dataclass(frozen=True)
class Entry:
    """An episode's index line.

    Attributes:
        start: its first row in the shard.
        rows: L + 1.
        crc32: array name to the CRC-32 of the episode's rows.
        values: numbers and words that hold for the whole episode, such as its seed.
    """

    start: int
    rows: int
    crc32: Mapping[str, int]
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The row after its last one."""
        return self.start + self.rows

    def to_record(self) -> dict[str, Any]:
        """Its JSON form."""
        return {
            "start": self.start,
            "rows": self.rows,
            "crc32": dict(self.crc32),
            "values": dict(self.values),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Entry:
        """Read it from its JSON form."""
        return cls(record["start"], record["rows"], record["crc32"], record["values"])


@dataclass(frozen=True)
class Damage:
    """Something on disk that is not what was written.

    Attributes:
        source: the shard folder or the archive.
        episode: number of the episode in it, counted in index lines; None for the shard as a whole.
        reason: what is wrong.
    """

    source: Path
    episode: int | None
    reason: str

    def __str__(self) -> str:
        which = "" if self.episode is None else f", episode {self.episode}"
        return f"{self.source}{which}: {self.reason}"


class Shard(Protocol):
    """What both forms of a shard offer to the reader."""

    path: Path
    header: Header
    entries: list[Entry]
    numbers: list[int]
    damages: list[Damage]

    def check(self, number: int) -> str | None:
        """Say what is wrong with the content of entry `number`, or None."""

    def read(self, number: int) -> Arrays:
        """Every array of entry `number`, (rows, ...)."""

    def gather(
        self, rows: NDArray[np.int64], where: NDArray[np.int64], out: Mapping[str, NDArray[Any]]
    ) -> None:
        """Copy the rows from `rows[i]` on into `out[name][where[i]]`, for each name of `out`."""


def encode_line(record: Mapping[str, Any]) -> bytes:
    """Write a record as an index line that carries its own CRC-32 as `check`."""
    return _dump(dict(record) | {"check": zlib.crc32(_dump(record))}) + b"\n"


def decode_line(line: bytes) -> dict[str, Any] | None:
    """Read a line made by `encode_line`; None if it is not exactly what was written."""
    try:
        record = json.loads(line)
        del record["check"]
        return record if encode_line(record) == line + b"\n" else None
    except (ValueError, KeyError, TypeError):
        return None


def _dump(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()


def describe_difference(expected: Mapping[str, ArraySpec], got: Mapping[str, ArraySpec]) -> str:
    """Name the first array in which two layouts differ."""
    names = sorted(set(expected) | set(got))
    name = next(name for name in names if expected.get(name) != got.get(name))

    def words(spec: ArraySpec | None) -> str:
        return f"{np.dtype(spec.dtype)} {spec.shape} in each row" if spec else "not there"

    return f"expected {name!r} {words(expected.get(name))}, got {words(got.get(name))}"


def to_json(value: Any) -> Any:
    """Turn a value of a metadata dictionary into plain JSON.

    Raises:
        ValueError: if it has no JSON form.
    """

    def convert(item: object) -> Any:
        if isinstance(item, np.ndarray | np.generic):
            return item.tolist()
        if isinstance(item, Path):
            return str(item)
        raise ValueError(f"expected metadata of JSON values, got {type(item).__name__}: {item!r}")

    return json.loads(json.dumps(value, default=convert))


def raw_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array in C order, without a copy."""
    return array.data.cast("B")


def checksum(array: NDArray[Any]) -> int:
    """CRC-32 of a contiguous array's bytes in C order."""
    return zlib.crc32(raw_bytes(array))


def flatten_objects(table: NDArray[np.void], *, max_objects: int | None = None) -> Arrays:
    """Split a structured object table (rows, M) into plain arrays `objects/<field>`.

    Args:
        table: see `ocrl.envs.interface.object_dtype`; positions and boxes of several views, (V,2)
            and (V,4) each, become (rows, V, M, 2) and (rows, V, M, 4).
        max_objects: pad to that many objects with zeros (id 0 is no object).

    Raises:
        ValueError: if the table has more columns than `max_objects`.
    """
    names = table.dtype.names
    if names is None or table.ndim != 2:
        raise ValueError(
            f"expected a structured object table (rows, M), got {table.dtype} {table.shape}"
        )
    rows, width = table.shape
    if max_objects is not None and width > max_objects:
        raise ValueError(f"expected at most {max_objects} objects in a frame, got {width}")
    padded = np.zeros((rows, max_objects or width), table.dtype)
    padded[:, :width] = table
    columns = {name: padded[name] for name in names}
    for name in ("position", "box"):
        if name in columns and columns[name].ndim == 4:
            columns[name] = columns[name].swapaxes(1, 2)
    return {f"objects/{name}": np.ascontiguousarray(array) for name, array in columns.items()}


def normalize_episode(episode: Mapping[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    """Check an episode and split it into arrays of L + 1 rows and values of the whole episode.

    Adds `is_first` where it is missing, flattens a structured `objects` table, leaves out arrays
    with empty rows.

    Raises:
        ValueError: if it breaks a convention of the format.
    """
    arrays: Arrays = {}
    values: dict[str, Any] = {}
    for name, content in episode.items():
        array = np.asarray(content)
        if not _NAME.fullmatch(name) or name.startswith("index"):
            raise ValueError(f"expected an array name such as 'segmentation/scene', got {name!r}")
        if array.ndim == 0:
            values[name] = to_json(array)
        elif array.dtype.names is not None:
            arrays |= flatten_objects(array)
        elif array.dtype.kind not in "biuf":
            raise ValueError(f"expected numbers in {name!r}, got dtype {array.dtype}")
        else:
            little_endian = array.dtype.newbyteorder("<")
            arrays[name] = np.ascontiguousarray(array, little_endian)
    if "frames" not in arrays:
        raise ValueError(f"expected an episode with 'frames', got {sorted(arrays)}")
    rows = len(arrays["frames"])
    if "is_first" not in arrays and rows:
        arrays["is_first"] = np.arange(rows) == 0
    _check_conventions(arrays, rows)
    return {name: array for name, array in sorted(arrays.items()) if array.size}, values


def _check_conventions(arrays: Arrays, rows: int) -> None:
    frames = arrays["frames"]
    if frames.dtype != np.uint8 or frames.ndim not in (4, 5) or frames.size == 0:
        raise ValueError(
            "expected frames (L+1,[V,]H,W,C) in uint8 with at least one row, "
            f"got {frames.dtype} {frames.shape}"
        )
    for name, array in arrays.items():
        if len(array) != rows:
            raise ValueError(f"expected {rows} rows in {name!r} as in 'frames', got {len(array)}")
        if name.startswith("segmentation/") and (
            array.dtype != np.uint16 or array.shape != frames.shape[:-1]
        ):
            raise ValueError(
                f"expected {name!r} as uint16 {frames.shape[:-1]}, got {array.dtype} {array.shape}"
            )
    num_views = 1 if frames.ndim == 4 else frames.shape[1]
    shapes = {
        "depth": frames.shape[1:-1],
        "intrinsics": (num_views, 3, 3),
        "extrinsics": (num_views, 4, 4),
    }
    for name, shape in shapes.items():
        if name in arrays and (arrays[name].dtype.kind != "f" or arrays[name].shape[1:] != shape):
            raise ValueError(
                f"expected {name!r} as floats {shape} in each row, got {arrays[name].dtype} "
                f"{arrays[name].shape[1:]}"
            )
    _check_cameras(arrays, num_views)
    is_first = arrays["is_first"].astype(bool)
    if not is_first[0] or is_first[1:].any():
        raise ValueError(
            "expected is_first to be true in the first row of an episode and only there"
        )


def _check_cameras(arrays: Arrays, num_views: int) -> None:
    """Refuse half a camera, and poses that are none."""
    given = [name for name in ("intrinsics", "extrinsics") if name in arrays]
    if len(given) == 1:
        raise ValueError(
            f"expected both 'intrinsics' and 'extrinsics' of the cameras, got only {given[0]!r}; "
            "add the other, or leave both out"
        )
    if given:
        matrices = (torch.from_numpy(arrays[name].astype(np.float64)) for name in given)
        check_cameras(*matrices, num_views=num_views)
