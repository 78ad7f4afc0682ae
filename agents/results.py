"""What a training run leaves, read, written and made small: `evaluation.json`, `progress.csv`.

P points of a curve.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocrl.page import write_text

EVALUATION, PROGRESS = "evaluation.json", "progress.csv"
HEADLINES = ("score", "success", "return")
"""What an environment is judged by: the first of these that it has."""
_KEYS = ("env", "obs", "agent", "seed", "step", "mean", "interval")
_LAST = ("step", "seconds")
"""Columns of a curve that rise; of the others a mean is kept."""


@dataclass(frozen=True)
class Run:
    """One seed of one agent.

    Attributes:
        path: its directory.
        evaluation: what `evaluation.json` holds.
        progress: the columns (P,) of `progress.csv`, NaN where a row says nothing.
    """

    path: Path
    evaluation: Mapping[str, Any]
    progress: Mapping[str, NDArray[np.float64]]

    @property
    def env(self) -> str:
        """The environment, with what sets it apart from others of its name."""
        return str(self.evaluation["env"])

    @property
    def method(self) -> str:
        """What is compared: observation and agent."""
        return f"{self.evaluation['obs']} {self.evaluation['agent']}"

    @property
    def seed(self) -> int:
        """Of its training."""
        return int(self.evaluation["seed"])

    @property
    def name(self) -> str:
        """A name for a folder."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{self.env}-{self.method}-{self.seed}")


def headline(blocks: Iterable[Mapping[str, Any]]) -> str:
    """What blocks of `evaluation.json` are judged by: the first of `HEADLINES` that all have."""
    blocks = list(blocks)
    for name in HEADLINES:
        if all(value_of(block, name) is not None for block in blocks):
            return name
    raise ValueError(f"expected one of {', '.join(HEADLINES)} in every evaluation, got none")


def value_of(block: Mapping[str, Any], name: str) -> float | None:
    """A figure of a block of `evaluation.json`; None where it has no such figure."""
    value = block.get("score") if name == "score" else block.get("mean", {}).get(name)
    return None if value is None else float(value)


def write_evaluation(directory: Path | str, record: Mapping[str, Any]) -> Path:
    """Write `evaluation.json` into a run's directory.

    Raises:
        ValueError: if a number is not finite or what says whose it is is missing.
    """
    _check(record, directory)
    path = Path(directory) / EVALUATION
    write_text(path, json.dumps(record, allow_nan=False) + "\n")
    return path


def read_run(directory: Path | str) -> Run:
    """Read what a run left.

    Raises:
        FileNotFoundError: if one of the two files is not there.
        ValueError: if one of them can not be read.
    """
    directory = Path(directory)
    if not (directory / PROGRESS).is_file():
        raise FileNotFoundError(f"expected the directory of a training run, got {directory}")
    return Run(directory, read_evaluation(directory), read_progress(directory / PROGRESS))


def read_evaluation(directory: Path | str) -> dict[str, Any]:
    """What `evaluation.json` of a run's directory holds.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no such record.
    """
    path = Path(directory) / EVALUATION
    if not path.is_file():
        raise FileNotFoundError(
            f"expected {path}: run python scripts/evaluate_agent.py checkpoint={directory} first"
        )
    try:
        record = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON in {path}, got {error}") from error
    _check(record, directory)
    return dict(record)


def _check(record: Mapping[str, Any], directory: Path | str) -> None:
    missing = [key for key in _KEYS if key not in record]
    if missing:
        raise ValueError(f"expected {', '.join(missing)} in {EVALUATION} of {directory}, got none")


def read_progress(path: Path) -> dict[str, NDArray[np.float64]]:
    """The columns (P,) of a curve; an empty cell is NaN.

    Raises:
        ValueError: if it has no column `step` or `return`, no row, or a word among its numbers.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"step", "return"} <= set(rows[0]):
        raise ValueError(f"expected rows with step and return in {path}, got {rows[:1]}")
    try:
        return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected numbers in {path}, got {error}") from error


def thinned(
    progress: Mapping[str, NDArray[np.float64]], num_points: int
) -> dict[str, NDArray[np.float64]]:
    """The same curve with at most `num_points` rows, each the mean of neighbours."""
    length = len(progress["step"])
    parts = np.array_split(np.arange(length), min(num_points, length))
    return {
        name: np.array([column[p[-1]] if name in _LAST else _mean(column[p]) for p in parts])
        for name, column in progress.items()
    }


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def write_small(run: Run, directory: Path, *, num_points: int = 40) -> Path:
    """Write a run's curve and evaluation in a few kilobytes, as a folder that `read_run` reads.

    The curve is thinned; of the episodes only their number, means and intervals are kept.

    Returns:
        The folder, inside `directory`.
    """
    folder = directory / run.name
    folder.mkdir(parents=True, exist_ok=True)
    curve = thinned(run.progress, num_points)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(curve)
    for row in zip(*curve.values(), strict=True):
        writer.writerow("" if np.isnan(value) else _number(value) for value in row)
    (folder / PROGRESS).write_text(text.getvalue())
    (folder / EVALUATION).write_text(
        json.dumps(rounded(_without_episodes(run.evaluation)), allow_nan=False) + "\n"
    )
    return folder


def _without_episodes(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_episodes(value) for key, value in node.items() if key != "episodes"}
    return node


def rounded(node: Any) -> Any:
    """Plain values with four digits after the point."""
    if isinstance(node, Mapping):
        return {key: rounded(value) for key, value in node.items()}
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [rounded(value) for value in node]
    return round(node, 4) if isinstance(node, float) else node


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.4g}"
