"""Runs kept in results/, the figures of others beside them, and the tables made of both."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from ocrl.agents.comparison import compare
from ocrl.agents.comparison_table import Published, markdown
from ocrl.agents.results import EVALUATION, PROGRESS, Run, read_run, rounded, write_small
from ocrl.horizon_table import RECORD, Record, read_record
from ocrl.horizon_table import markdown as world_tables
from ocrl.page import write_text

RESULTS = Path(__file__).resolve().parents[1] / "results"
MARKERS = ("<!-- results: python scripts/compare.py --readme README.md -->", "<!-- /results -->")
FRACTION = 0.9


def found_runs(paths: Sequence[Path]) -> list[Path]:
    """The directories of runs that the paths stand for."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(progress.parent for progress in path.glob(f"*/{PROGRESS}"))
        found += [path] if (path / PROGRESS).is_file() or not inside else inside
    return found


def keep(run: Run, folder: Path) -> None:
    """Write a run in a few kilobytes, with the command that it came from."""
    _keep_command(run.path, write_small(run, folder), script="train_agent")


def keep_world(path: Path, folder: Path) -> None:
    """Write what a run of train_world_model.py measured, with the command that it came from."""
    kept = folder / path.name
    kept.mkdir(parents=True, exist_ok=True)
    write_text(kept / RECORD, json.dumps(rounded(read_record(path)), allow_nan=False) + "\n")
    _keep_command(path, kept, script="train_world_model")


def _keep_command(path: Path, kept: Path, *, script: str) -> None:
    overrides = path / ".hydra" / "overrides.yaml"
    if overrides.is_file():
        words = ["python", f"scripts/{script}.py", *yaml.safe_load(overrides.read_text())]
        write_text(kept / "command.txt", shlex.join(words) + "\n")


def worlds_table(paths: Sequence[Path]) -> str:
    """World models side by side; seeds are what the names of their runs end with."""
    models: dict[str, list[Record]] = {}
    for path in paths:
        models.setdefault(path.name.rpartition("-")[0], []).append(read_record(path))
    return world_tables(models)


def read_published() -> Published:
    """Figures of others, from results/published.yaml."""
    return dict(yaml.safe_load((RESULTS / "published.yaml").read_text()))


def with_tables(text: str, results: Path) -> str:
    """A text with the tables of everything kept between its markers; as it is without markers.

    Raises:
        ValueError: if there is one marker without the other.
    """
    begin, end = (text.find(marker) for marker in MARKERS)
    if begin == end == -1:
        return text
    if not -1 < begin < end:
        raise ValueError(f"expected both {MARKERS[0]!r} and, after it, {MARKERS[1]!r}")
    parts = []
    for folder in sorted({path.parent.parent for path in results.glob(f"*/*/{EVALUATION}")}):
        runs = [read_run(path) for path in found_runs([folder])]
        table = markdown(compare(runs, fraction=FRACTION), read_published())
        parts.append(f"`results/{folder.name}`:\n\n{table}\n")
    for folder in sorted({path.parent.parent for path in results.glob(f"*/*/{RECORD}")}):
        table = worlds_table(sorted(path.parent for path in folder.glob(f"*/{RECORD}")))
        parts.append(f"`results/{folder.name}`:\n\n{table}\n")
    return text[: begin + len(MARKERS[0])] + "\n\n" + "".join(parts) + text[end:]
