"""One HTML page about a comparison that no link leads out of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from ocrl.agents.comparison import grouped, learning_curve
from ocrl.agents.comparison_table import (
    NAMES,
    Published,
    score_head,
    score_rows,
    sources,
    variant_rows,
    with_interval,
)
from ocrl.agents.results import Run
from ocrl.charts import Band, Spread, band_chart, interval_chart
from ocrl.page import page, sheet, table

_COLORS = (
    *(("#2457d6", "#7aa2ff"), ("#b4590a", "#f0a35e"), ("#0b7a62", "#4fd1b0")),
    *(("#a3278f", "#f08bd8"), ("#7a6a00", "#d9c84a"), ("#5b5f6b", "#b4bac6")),
    *(("#b3261e", "#ff8a80"), ("#5a3fc0", "#b5a3ff")),
)
"""Of each method, on a light and on a dark page."""


def render(
    runs: Sequence[Run], comparison: Mapping[str, Any], *, published: Published, title: str
) -> str:
    """The whole page: tables, learning curves with bands, scores of every seed, who is better.

    Args:
        runs: of any environments and methods.
        comparison: what `compare` says of them.
        published: figures of others, to stand beside.
        title: of the page.
    """
    colors, fraction = _colors(runs), comparison["fraction"]
    legend = "".join(
        f"<span><span class='key' style='background:{color}'></span>{escape(name)}</span>"
        for name, color in colors.items()
    )
    head = [escape(name) for name in score_head(fraction)]
    rows = [[escape(cell) for cell in row] for row in score_rows(comparison, published)]
    body = [
        f"<style>{_palette()}</style>",
        "<h2>Scores</h2>",
        table(head[1:], _in_groups(rows)),
        *(f"<p class='soft'>Published: {escape(s)}</p>" for s in sources(comparison, published)),
        "<h2>Learning, and every seed</h2>",
        f"<p class='legend'>{legend}</p>",
        *_plots(runs, comparison, colors),
        *_variants(comparison),
        *_improvements(comparison),
        *_achievements(comparison),
        _explanation(fraction),
    ]
    details = {"runs": str(len(runs)), "environments": str(len(comparison["envs"]))}
    return page(title, details=details, warnings=_warnings(comparison), body=body)


def curves(runs: Sequence[Run], comparison: Mapping[str, Any]) -> str:
    """Curves in training of what each environment is judged by, as an SVG file by itself.

    Args:
        runs: of any environments and methods.
        comparison: what `compare` says of them.
    """
    colors, charts = _colors(runs), {}
    for env, methods in grouped(runs).items():
        own = comparison["envs"][env]
        chart = _curves(methods, own["metric"], _levels(own), colors)
        if chart is not None:
            charts[f"{env}: {NAMES[own['metric']]}"] = chart
    envs = comparison["envs"].values()
    drawn = {name for env in envs for name, own in env["methods"].items() if own["has_curve"]}
    legend = {name: color for name, color in colors.items() if name in drawn}
    return sheet(charts, legend=legend, style=_palette())


def _colors(runs: Sequence[Run]) -> dict[str, str]:
    methods = list(dict.fromkeys(run.method for run in runs))
    return {name: f"var(--method-{index % len(_COLORS)})" for index, name in enumerate(methods)}


def _palette() -> str:
    light, dark = (
        ";".join(f"--method-{index}:{pair[side]}" for index, pair in enumerate(_COLORS))
        for side in (0, 1)
    )
    return f":root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"


def _in_groups(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Rows under a line with what their first cells say."""
    grouped_rows: list[list[str]] = []
    last = None
    for first, *rest in rows:
        if first != last:
            grouped_rows.append([first])
        last = first
        grouped_rows.append(rest)
    return grouped_rows


def _plots(
    runs: Sequence[Run], comparison: Mapping[str, Any], colors: Mapping[str, str]
) -> Iterator[str]:
    for env, methods in grouped(runs).items():
        own = comparison["envs"][env]
        metric = own["metric"]
        yield f"<h3 style='margin-top:22px'>{escape(env)}</h3><div class='plots'>"
        for column in [metric] if metric in ("return", "success") else [metric, "return"]:
            levels = _levels(own) if column == metric else {}
            chart = _curves(methods, column, levels, colors)
            if chart is not None:
                heading = f"{NAMES[column]} of the episodes in training"
                yield f"<div class='card'><h3>{heading}</h3>{chart}</div>"
        spreads = {
            name: Spread(m["scores"], m["mean"], m["interval"], colors[name])
            for name, m in own["methods"].items()
        }
        values = [value for m in own["methods"].values() for value in m["scores"]]
        levels = _levels(own)
        limits = _limits([*values, *levels.values()], metric)
        chart = interval_chart(spreads, levels=levels, limits=limits)
        yield f"<div class='card'><h3>{NAMES[metric]} in evaluation, each seed</h3>{chart}</div>"
        yield "</div>"


def _curves(
    methods: Mapping[str, Sequence[Run]],
    column: str,
    levels: Mapping[str, float],
    colors: Mapping[str, str],
) -> str | None:
    """A chart of learning curves with their bands; None where no run has the column."""
    bands = {}
    for name, group in methods.items():
        curve = learning_curve(group, column)
        if curve is not None:
            low, high = (None, None) if curve.interval is None else curve.interval.tolist()
            steps, mean = curve.steps.tolist(), curve.mean.tolist()
            bands[name] = Band(steps, mean, low, high, colors[name])
    if not bands:
        return None
    values = [v for band in bands.values() for v in (*band.mean, *(band.high or ()))]
    values += [v for band in bands.values() for v in band.low or ()]
    return band_chart(
        bands,
        levels=levels,
        limits=_limits([*values, *levels.values()], column),
        x_name="environment steps",
    )


def _levels(own: Mapping[str, Any]) -> dict[str, float]:
    levels = {}
    for end in ("floor", "ceiling"):
        known = [m[end] for m in own["methods"].values() if m[end] is not None]
        if known:
            levels[end] = float(np.mean(known))
    return levels


def _limits(values: Sequence[float], metric: str) -> tuple[float, float]:
    if metric == "success":
        return 0.0, 1.0
    low, high = min(0.0, *values), max(values)
    return low, high if high > low else low + 1.0


def _variants(comparison: Mapping[str, Any]) -> Iterator[str]:
    rows = variant_rows(comparison)
    if rows:
        head, *body = ([escape(cell) for cell in row] for row in rows)
        yield "<h2>Held-out variants</h2>"
        yield "<p class='soft'>Worlds with what was held out of training; mean over seeds.</p>"
        yield table(head[1:], _in_groups(body))


def _improvements(comparison: Mapping[str, Any]) -> Iterator[str]:
    rows = []
    parts = {env: own["better"] for env, own in comparison["envs"].items()}
    if comparison["overall"] is not None:
        parts["all environments judged by success"] = comparison["overall"]["better"]
    for env, pairs in parts.items():
        for pair in pairs:
            likely = with_interval(pair["probability"], pair["interval"], "success")
            rows.append([escape(env), escape(f"{pair['method']} over {pair['than']}"), likely])
    if rows:
        yield "<h2>Probability of improvement</h2>"
        yield table(["a run of one over a run of the other", "P [95 %]"], _in_groups(rows))


def _achievements(comparison: Mapping[str, Any]) -> Iterator[str]:
    for env, own in comparison["envs"].items():
        known = {n: m["achievements"] for n, m in own["methods"].items() if m["achievements"]}
        if known:
            names = sorted(set().union(*known.values()))
            cells = [
                [escape(a.replace("_", " ")), *(f"{t.get(a, 0.0):.1%}" for t in known.values())]
                for a in names
            ]
            yield f"<h2>Achievements: {escape(env)}</h2>"
            yield table(["share of episodes", *(escape(n) for n in known)], cells)


def _warnings(comparison: Mapping[str, Any]) -> list[str]:
    few = {
        f"{name} on {env}"
        for env, own in comparison["envs"].items()
        for name, method in own["methods"].items()
        if len(method["seeds"]) < 3
    }
    return [f"Fewer than three seeds, so little is known: {', '.join(sorted(few))}."] if few else []


def _explanation(fraction: float) -> str:
    return (
        "<h2>How it was measured</h2><p>A seed's score is its mean over the episodes of its "
        "evaluation, the same worlds for every agent. Intervals are 95 % percentile bootstraps "
        "over seeds; with one seed there is none. IQM is the mean of the middle half of the seeds "
        "(the plain mean of fewer than four). The floor is a random policy in the same worlds. "
        "Curves are means over seeds of running means over 10,000 steps, as far as all seeds came; "
        f"steps to {fraction:.0%} of the best return are counted to that share of the highest "
        "return that an agent has when it is evaluated, the median over seeds. Estimators: Agarwal "
        "et al. 2021, arXiv:2108.13264.</p>"
    )
