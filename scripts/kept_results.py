"""Runs kept in results/, the figures of others beside them, and the tables made of both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from launch import COMMAND

from ocrl.agents.comparison import compare
from ocrl.agents.comparison_table import Published, markdown, markdown_table, overview_rows
from ocrl.agents.results import EVALUATION, PROGRESS, Run, read_run, rounded, write_small
from ocrl.horizon_table import RECORD, Record, read_record
from ocrl.horizon_table import markdown as world_tables
from ocrl.page import write_text

RESULTS = Path(__file__).resolve().parents[1] / "results"
SCORES = "<!-- results: python scripts/compare.py --readme README.md -->"
EVERYTHING = "<!-- all results: python scripts/compare.py --readme results/README.md -->"
END = "<!-- /results -->"
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
    _keep_command(run.path, write_small(run, folder))


def keep_world(path: Path, folder: Path) -> None:
    """Write what a run of train_world_model.py measured, with the command that it came from."""
    kept = folder / path.name
    kept.mkdir(parents=True, exist_ok=True)
    write_text(kept / RECORD, json.dumps(rounded(read_record(path)), allow_nan=False) + "\n")
    _keep_command(path, kept)


def _keep_command(path: Path, kept: Path) -> None:
    if (path / COMMAND).is_file():
        write_text(kept / COMMAND, (path / COMMAND).read_text())


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
    """A text with the tables of what is kept between its markers; as it is without markers.

    Args:
        text: with `SCORES` for an overview of agents, or `EVERYTHING` for all of their scores,
            their held-out worlds and world models, and `END`.
        results: the folder of studies.

    Raises:
        ValueError: if there is one marker without the other.
    """
    begin = next((marker for marker in (SCORES, EVERYTHING) if marker in text), None)
    if begin is None and END not in text:
        return text
    if begin is None or END not in text.split(begin)[1]:
        raise ValueError(f"expected {SCORES!r} or {EVERYTHING!r} and, after it, {END!r}")
    found = {
        folder.name: compare([read_run(path) for path in found_runs([folder])], fraction=FRACTION)
        for folder in _studies(results, EVALUATION)
    }
    published = read_published()
    if begin == SCORES:
        tables = f"{markdown_table(overview_rows(found, published))}\n\n"
    else:
        parts = {name: markdown(comparison, published) for name, comparison in found.items()}
        for folder in _studies(results, RECORD):
            runs = sorted(path.parent for path in folder.glob(f"*/{RECORD}"))
            parts[folder.name] = worlds_table(runs)
        tables = "".join(f"`results/{name}`:\n\n{t.strip()}\n\n" for name, t in parts.items())
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n\n{tables}{END}{rest.partition(END)[2]}"


def _studies(results: Path, name: str) -> list[Path]:
    """The folders whose runs left the file `name`."""
    return sorted({path.parent.parent for path in results.glob(f"*/*/{name}")})
