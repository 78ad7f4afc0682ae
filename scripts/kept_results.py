"""Runs kept in results/, the figures of others beside them, and the tables made of both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from launch import COMMAND

from ocrl import horizon_table, novel_views_table
from ocrl.agents.comparison import compare
from ocrl.agents.comparison_page import curves
from ocrl.agents.comparison_table import Published, markdown, overview_rows
from ocrl.agents.results import EVALUATION, PROGRESS, Run, read_run, rounded, write_small
from ocrl.page import write_text
from ocrl.tables import RECORD, markdown_table, read_record

RESULTS = Path(__file__).resolve().parents[1] / "results"
SCORES = "<!-- results: python scripts/compare.py --readme README.md -->"
EVERYTHING = "<!-- all results: python scripts/compare.py --readme results/README.md -->"
END = "<!-- /results -->"
FRACTION = 0.9
CURVES = "curves.svg"


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


def keep_record(path: Path, folder: Path) -> None:
    """Write what a run measured of a world model or of posed views, with its command."""
    kept, record = folder / path.name, _tables_of(path).read_record(path)
    record.pop("per_clip", None)
    kept.mkdir(parents=True, exist_ok=True)
    write_text(kept / RECORD, json.dumps(rounded(record), allow_nan=False) + "\n")
    _keep_command(path, kept)


def _keep_command(path: Path, kept: Path) -> None:
    if (path / COMMAND).is_file():
        write_text(kept / COMMAND, (path / COMMAND).read_text())


def records_table(paths: Sequence[Path]) -> str:
    """World models, or models of posed views, side by side.

    Seeds are what the names of their runs end with.
    """
    tables = _tables_of(paths[0])
    models: dict[str, list[Mapping[str, Any]]] = {}
    for path in paths:
        models.setdefault(path.name.rpartition("-")[0], []).append(tables.read_record(path))
    return tables.markdown(models)


def _tables_of(path: Path) -> ModuleType:
    """What reads the record of a run and draws tables of such records."""
    what = "a world model or slots of posed views"
    record = read_record(path, parts=["details"], what=what)
    return novel_views_table if "pictures" in record else horizon_table


def read_published() -> Published:
    """Figures of others, from results/published.yaml."""
    return dict(yaml.safe_load((RESULTS / "published.yaml").read_text()))


def with_tables(text: str, results: Path) -> str:
    """A text with the tables of what is kept between its markers; as it is without markers.

    Args:
        text: with `SCORES` for an overview of agents, or `EVERYTHING` for all of their scores,
            their held-out worlds, world models and models of posed views, and `END`.
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
            parts[folder.name] = records_table(runs)
        tables = "".join(f"`results/{name}`:\n\n{t.strip()}\n\n" for name, t in parts.items())
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n\n{tables}{END}{rest.partition(END)[2]}"


def study_curves(results: Path) -> dict[Path, str]:
    """Learning curves of each study that is kept, by the file that they belong in."""
    pictures = {}
    for folder in _studies(results, EVALUATION):
        runs = [read_run(path) for path in found_runs([folder])]
        pictures[folder / CURVES] = curves(runs, compare(runs, fraction=FRACTION))
    return pictures


def _studies(results: Path, name: str) -> list[Path]:
    """The folders whose runs left the file `name`."""
    return sorted({path.parent.parent for path in results.glob(f"*/*/{name}")})
