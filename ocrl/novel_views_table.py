"""Models of posed views side by side, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ocrl import tables
from ocrl.discovery import MODEL
from ocrl.novel_views import ATTENTION, BASELINES
from ocrl.novel_views_report import PICTURES, SEGMENTS
from ocrl.tables import DASH, markdown_table, mean_and_spread

_PARTS = ("details", "segments", "pictures", "training")
_GROUPS = {"segments": SEGMENTS, "pictures": PICTURES}
_COSTS = {
    "steps": "steps",
    "minutes": "minutes",
    "frames_per_second": "moments/s",
    "rays_per_second": "rays/s",
    "peak_megabytes": "MB",
}
_STATIC = "static_explained"

Record = Mapping[str, Any]
"""What `metrics.json` of a model of posed views holds."""


def read_record(directory: Path | str) -> dict[str, Any]:
    """What was measured of posed slots in a run's directory, see `tables.read_record`."""
    return tables.read_record(directory, parts=_PARTS, what="slots of posed views")


def markdown(models: Mapping[str, Sequence[Record]]) -> str:
    """Tables of segments, pictures and costs: means over seeds, +- their standard deviation.

    Of a model the table of segments has what its decoder draws and what its encoder attends to.
    Baselines are those of the first model; they depend on the clips alone, and k-means on the
    number of slots.

    Args:
        models: the records of the seeds of each, by name.

    Raises:
        ValueError: if there is none.
    """
    if not models:
        raise ValueError("expected models of posed views to set side by side, got none")
    first = next(iter(models.values()))[0]
    said = (
        f"{first['num_clips']} clips, {first['num_frames']} moments of {first['num_views']} "
        f"cameras, of which the encoder saw {first['num_seen']}:"
    )
    parts = [said, _segments(models, first), _pictures(models, first), _training(models)]
    return "\n\n".join(parts) + "\n"


def _segments(models: Mapping[str, Sequence[Record]], first: Record) -> str:
    rows = [["model", "seeds", "cut", *(title for title, _ in SEGMENTS.values())]]
    for name, records in models.items():
        for method, cut in ((MODEL, "decoder"), (ATTENTION, "attention")):
            rows.append([name, str(len(records)), cut, *_cells(records, "segments", method)])
    for method in BASELINES:
        if method in first["segments"]:
            rows.append([method, "", "pixels", *_cells([first], "segments", method)])
    return markdown_table(rows)


def _pictures(models: Mapping[str, Sequence[Record]], first: Record) -> str:
    titles = (title for title, _ in PICTURES.values())
    rows = [["model", "seeds", *titles, "background without a slot"]]
    for name, records in models.items():
        static = mean_and_spread(
            [record.get("separation", {}).get(_STATIC) for record in records], digits=3
        )
        rows.append([name, str(len(records)), *_cells(records, "pictures", MODEL), static])
    for method in BASELINES:
        if method in first["pictures"]:
            rows.append([method, "", *_cells([first], "pictures", method), DASH])
    return markdown_table(rows)


def _training(models: Mapping[str, Sequence[Record]]) -> str:
    rows = [["model", *_COSTS.values()]]
    for name, records in models.items():
        cells = [
            mean_and_spread([r["training"].get(cost) for r in records], digits=0) for cost in _COSTS
        ]
        rows.append([name, *cells])
    return markdown_table(rows)


def _cells(records: Sequence[Record], group: str, method: str) -> list[str]:
    return [
        mean_and_spread(
            [record[group].get(method, {}).get(metric) for record in records],
            digits=2 if "psnr" in metric else 3,
        )
        for metric in _GROUPS[group]
    ]
