"""Tables in Markdown, and the records of measurements that they are made of."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

RECORD = "metrics.json"
"""In the directory of a run: what was measured of its model."""
DASH = "-"
"""Where there is no figure."""


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A head and rows in Markdown, without a last line break."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def mean_and_spread(values: Sequence[float | None], *, digits: int) -> str:
    """The mean of the finite values +- their standard deviation if there are several.

    Args:
        values: None where there is none; without any the cell is a dash.
        digits: after the point.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return DASH
    spread = f" +- {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{spread}"


def read_record(directory: Path | str, *, parts: Collection[str], what: str) -> dict[str, Any]:
    """What a script measured and left in a run's directory.

    Args:
        directory: of the run.
        parts: keys that a record of this kind has.
        what: it is of, in words.

    Raises:
        FileNotFoundError: if there is no record.
        ValueError: if it is of another kind.
    """
    path = Path(directory) / RECORD
    if not path.is_file():
        raise FileNotFoundError(
            f"expected {path}, which the script that trains {what} writes at its end"
        )
    try:
        record = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON in {path}, got {error}") from error
    if not isinstance(record, dict) or not set(parts) <= set(record):
        raise ValueError(f"expected {', '.join(parts)} of {what} in {path}")
    return record
