"""World models side by side over the horizon, as Markdown.

H steps ahead.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ocrl import tables
from ocrl.horizon import COPY, ENCODER, PREDICTION
from ocrl.horizon_report import METRICS

_DIGITS = {"psnr": 1}
_PARTS = ("details", "horizons", "table")

Record = Mapping[str, Any]
"""What `metrics.json` of a world model holds."""


def read_record(directory: Path | str) -> dict[str, Any]:
    """What was measured of a world model in a run's directory, see `tables.read_record`."""
    return tables.read_record(directory, parts=_PARTS, what="a world model")


def markdown(models: Mapping[str, Sequence[Record]]) -> str:
    """A table for each environment: a row for each world model, between copy and encoder.

    A cell has the means over seeds at each horizon, and the largest of their standard deviations
    where there are several seeds. Copy and encoder are those of the first model of each choice of
    slots; they do not depend on the dynamics, but for rewards and terminations.

    Args:
        models: the records of the seeds of each, by name.

    Raises:
        ValueError: if there is none, or horizons of one environment differ.
    """
    if not models:
        raise ValueError("expected world models to set side by side, got none")
    environments: dict[str, dict[str, Sequence[Record]]] = {}
    for name, records in models.items():
        environment = str(records[0]["details"].get("environment", ""))
        environments.setdefault(environment, {})[name] = records
    return "\n".join(_of_environment(name, inside) for name, inside in environments.items())


def _of_environment(environment: str, models: Mapping[str, Sequence[Record]]) -> str:
    first = next(iter(models.values()))[0]
    horizons = [tuple(record["horizons"]) for records in models.values() for record in records]
    if len(set(horizons)) > 1:
        found = sorted({str(list(horizon)) for horizon in horizons})
        raise ValueError(f"expected the same horizons of {environment}, got {' and '.join(found)}")
    known = {metric for records in models.values() for r in records for metric in r["table"]}
    metrics = [metric for metric in METRICS if metric in known]
    steps = ", ".join(map(str, horizons[0]))
    head = ["world model", "seeds", *(METRICS[metric][0] for metric in metrics)]
    rows = [head]
    seen: set[str] = set()
    for name, records in models.items():
        slots = str(records[0]["details"].get("slots", ""))
        if slots not in seen:
            kind = f" ({Path(slots).name})" if slots else ""
            for method in (ENCODER, COPY):
                rows.append([f"{method}{kind}", "", *_cells([records[0]], metrics, method)])
        seen.add(slots)
        rows.append([name, str(len(records)), *_cells(records, metrics, PREDICTION)])
    said = f"{environment}, {steps} steps ahead, {first['num_clips']} clips:"
    return f"{said}\n\n{tables.markdown_table(rows)}\n"


def _cells(records: Sequence[Record], metrics: Sequence[str], method: str) -> list[str]:
    return [
        _cell([record["table"].get(metric, {}).get(method) for record in records], metric)
        for metric in metrics
    ]


def _cell(seeds: Sequence[Sequence[float | None] | None], metric: str) -> str:
    """Means of seeds at each horizon, and the largest spread; a dash for what none has."""
    digits = _DIGITS.get(metric, 3)
    shown, spreads = [], []
    for values in zip(*(values for values in seeds if values is not None), strict=True):
        known = [value for value in values if value is not None and math.isfinite(value)]
        shown.append(f"{statistics.fmean(known):.{digits}f}" if known else tables.DASH)
        spreads += [statistics.stdev(known)] if len(known) > 1 else []
    spread = f" (+- {max(spreads):.{digits}f})" if spreads else ""
    return (" ".join(shown) or tables.DASH) + spread
