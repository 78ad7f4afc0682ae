"""What every report is made of: a page without links, tables, moving pictures, files.

T frames, C H W image.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from ocrl.tables import RECORD
from ocrl.visualize import to_gif

_PALETTE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #16181d;
  --soft: #5b6270; --line: #dfe3ea; --model: #2457d6; --grid: #b4590a; --k-means: #0b7a62;
  --good: #0b7a4b; --bad: #b3261e; --warn: #fff4d6; --warn-line: #d9a514; }
@media (prefers-color-scheme: dark) { :root { --page: #101216; --card: #191c22; --ink: #e8eaf0;
  --soft: #9aa3b2; --line: #2d323c; --model: #7aa2ff; --grid: #f0a35e; --k-means: #4fd1b0;
  --good: #5ad19a; --bad: #ff8a80; --warn: #33290f; --warn-line: #b98c14; } }
"""
_CHARTS = """
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
svg .rule { stroke: var(--line); stroke-width: 1; }
svg .level { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 4; }
svg .name { fill: var(--ink); }
svg .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .hit { fill: transparent; } svg .hit:hover { fill: currentColor; }
"""
_CHART_WIDTH, _CHART_HEIGHT, _MARGIN = 400, 202, 20
_STYLE = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 10px; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 38px 0 10px; } h3 { font-size: 15px; margin: 0 0 8px; }
p { margin: 6px 0; max-width: 76ch; } .soft { color: var(--soft); }
code { font: 13px ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 16px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 16px 18px; margin: 0 0 14px; }
.cards { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(225px, 1fr)); }
.cards .card { margin: 0; }
.number { font-size: 34px; line-height: 1.15; font-weight: 650;
  font-variant-numeric: tabular-nums; color: var(--model); }
.good { color: var(--good); } .bad { color: var(--bad); }
.warning { background: var(--warn); border-left: 4px solid var(--warn-line);
  border-radius: 6px; padding: 9px 14px; margin: 12px 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line);
  white-space: nowrap; } th { color: var(--soft); font-weight: 550; font-size: 13px; }
th[title] { text-decoration: underline dotted; text-underline-offset: 3px; cursor: help; }
th:first-child, td:first-child { text-align: left; }
tr.group td { padding-top: 14px; font-weight: 650; border-bottom-width: 2px; }
td.best { font-weight: 700; } tr:last-child td { border-bottom: 0; }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px; }
.strips { display: grid; grid-template-columns: 96px minmax(0, 1fr); gap: 5px 12px;
  align-items: center; min-width: 660px; }
.strips .name { color: var(--soft); font-size: 13px; text-align: right; line-height: 1.25; }
.frames { display: grid; grid-template-columns: repeat(var(--n), minmax(0, 1fr)); gap: 5px; }
img { display: block; width: 100%; image-rendering: pixelated; border-radius: 3px; }
.movie { max-width: 100%; margin-bottom: 14px; }
.movie .names { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; text-align: center;
  color: var(--soft); font-size: 13px; }
details > summary { cursor: pointer; color: var(--soft); margin: 12px 0 8px; }
.plots { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(430px, 1fr)); }
.plots .card { margin: 0; }
svg { display: block; width: 100%; height: auto; }
.legend > span { margin-right: 18px; font-size: 13px; color: var(--soft); }
"""


def sheet(charts: Mapping[str, str], *, legend: Mapping[str, str], style: str) -> str:
    """Charts side by side, two in a row, as an SVG file that needs no page.

    Args:
        charts: as `ocrl.charts.band_chart` draws them, by their headings.
        legend: colours by name, as CSS writes them.
        style: rules of CSS besides those of every page, such as the variables of colours.
    """
    columns = 1 + (len(charts) > 1)
    width = columns * (_CHART_WIDTH + _MARGIN) + _MARGIN
    top = 2 * _MARGIN + _CHART_HEIGHT
    parts = []
    for index, (heading, chart) in enumerate(charts.items()):
        left, row = _MARGIN + (index % columns) * (_CHART_WIDTH + _MARGIN), index // columns
        place = f"x='{left}' y='{row * top + 1.5 * _MARGIN}'"
        size = f"width='{_CHART_WIDTH}' height='{_CHART_HEIGHT}'"
        parts += [
            f"<text class='name' x='{left}' y='{row * top + _MARGIN}'>{escape(heading)}</text>",
            chart.replace("<svg", f"<svg {place} {size}", 1),
        ]
    height = top * math.ceil(len(charts) / columns) + _MARGIN
    for name, color in legend.items():
        parts.append(
            f"<rect x='{_MARGIN}' y='{height - 10}' width='10' height='10' fill='{color}'/>"
            f"<text x='{_MARGIN + 18}' y='{height}'>{escape(name)}</text>"
        )
        height += _MARGIN
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}'>"
        f"<style>{_PALETTE}{_CHARTS}{style}</style>"
        f"<rect width='{width}' height='{height}' fill='var(--page)'/>{''.join(parts)}</svg>\n"
    )


def write_record(directory: Path | str, record: Mapping[str, Any], text: str) -> list[Path]:
    """Write `metrics.json`, and a page as `report.html`; return their paths.

    Args:
        directory: where to; it is made if it is not there.
        record: plain values.
        text: the page.

    Raises:
        OSError: if writing fails; a file is whole or not there.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    texts = {
        RECORD: json.dumps(record, indent=2, allow_nan=False) + "\n",
        "report.html": text,
    }
    for name, content in texts.items():
        write_text(directory / name, content)
    return [directory / name for name in texts]


def write_text(path: Path | str, text: str) -> None:
    """Write a text file, see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file, which appears when it is whole.

    Raises:
        OSError: if it cannot be written; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def page(
    title: str, *, details: Mapping[str, str], warnings: Sequence[str], body: Sequence[str]
) -> str:
    """A whole page in the reports' style: a heading, what was measured, warnings, HTML."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_PALETTE}{_STYLE}{_CHARTS}</style></head>\n<body><main>\n"
        f"<h1>{escape(title)}</h1>\n<div class='card'>{_pairs(details)}</div>\n"
        + "".join(f"<p class='warning'>{escape(warning)}</p>\n" for warning in warnings)
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML cells in a card; a row of one cell begins a group."""
    lines = []
    for row in rows:
        if len(row) == 1:
            lines.append(f"<tr class='group'><td colspan='{len(head)}'>{row[0]}</td></tr>")
        else:
            lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
    names = "".join(f"<th>{name}</th>" for name in head)
    return (
        f"<div class='card wide'><table><thead><tr>{names}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def number(value: float, digits: int = 3) -> str:
    """A figure as HTML; a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "&ndash;"


def hint(name: str, meaning: str) -> str:
    """A name that says what it means when a pointer rests on it."""
    return f"<span title='{escape(meaning, quote=True)}'>{escape(name)}</span>"


def meanings(names: Iterable[tuple[str, str]]) -> str:
    """A list of names and what they mean."""
    lines = (f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>" for name, meaning in names)
    return f"<dl>{''.join(lines)}</dl>"


def image(data: bytes, kind: str, alt: str) -> str:
    """A picture within the page; `kind` is png or gif."""
    text = base64.b64encode(data).decode("ascii")
    return f"<img alt='{escape(alt, quote=True)}' src='data:image/{kind};base64,{text}'>"


def movie(
    names: Sequence[str],
    video: Tensor,
    *,
    alt: str,
    frames_per_second: float,
    column_width: int = 180,
) -> str:
    """A moving picture (T,3,H,W) of columns, with their names below."""
    labels = "".join(f"<span>{escape(name)}</span>" for name in names)
    gif = image(to_gif(video, frames_per_second=frames_per_second), "gif", alt)
    return (
        f"<div class='movie' style='width:{column_width * len(names)}px'>{gif}"
        f"<div class='names'>{labels}</div></div>"
    )


def _pairs(values: Mapping[str, str]) -> str:
    lines = (f"<dt>{escape(k)}</dt><dd><code>{escape(v)}</code></dd>" for k, v in values.items())
    return f"<dl>{''.join(lines)}</dl>"
