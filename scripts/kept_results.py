"""Runs kept in results/, the figures of others beside them, and the tables made of both."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from ocrl.agents.comparison import compare
from ocrl.agents.comparison_table import Published, markdown
from ocrl.agents.results import EVALUATION, PROGRESS, Run, read_run, write_small
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
    kept = write_small(run, folder)
    overrides = run.path / ".hydra" / "overrides.yaml"
    if overrides.is_file():
        words = ["python", "scripts/train_agent.py", *yaml.safe_load(overrides.read_text())]
        write_text(kept / "command.txt", shlex.join(words) + "\n")


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
    return text[: begin + len(MARKERS[0])] + "\n\n" + "".join(parts) + text[end:]
