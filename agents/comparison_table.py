"""A comparison as rows of text and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ocrl.agents.results import HEADLINES, headline, value_of
from ocrl.tables import DASH, markdown_table

Published = Mapping[str, Sequence[Mapping[str, Any]]]
"""Entries by environment: `name`, `source`, some of `HEADLINES`, perhaps `spread` and `steps`."""

NAMES = {"score": "score (%)", "success": "success", "return": "return"}
KINDS = {"pixels": "pixels", "slots": "slots", "true objects": "objects"}
"""Kinds of observations, and the word that the names of methods with them begin with."""


def number(value: float | None, metric: str) -> str:
    """A figure with as many digits as its metric deserves; a dash for none."""
    if value is None:
        return DASH
    return f"{value:.1f}" if metric == "score" else f"{value:.3f}"


def with_interval(value: float, interval: Sequence[float] | None, metric: str) -> str:
    """A figure and its interval, as 0.912 [0.880, 0.941]."""
    if interval is None:
        return number(value, metric)
    low, high = (number(end, metric) for end in interval)
    return f"{number(value, metric)} [{low}, {high}]"


def steps_cell(reached: Sequence[float | None]) -> str:
    """The median number of steps of the seeds that came there, and how many did not."""
    known = [value for value in reached if value is not None]
    if not known:
        return "never"
    missing = f" ({len(known)} of {len(reached)})" if len(known) < len(reached) else ""
    return f"{thousands(statistics.median(known))}{missing}"


def thousands(steps: float) -> str:
    """A number of steps: 820, 112k, 1.5M."""
    if steps >= 1e6:
        return f"{steps / 1e6:.3g}M"
    return f"{steps / 1e3:.3g}k" if steps >= 1e3 else f"{steps:.0f}"


def published_of(env: str, published: Published) -> Sequence[Mapping[str, Any]]:
    """Entries for an environment, or for the environment that it is a version of."""
    return published.get(published_name(env, published), ())


def published_name(env: str, published: Published) -> str:
    """The environment that the entries for this one are of; empty where there are none."""
    fits = [name for name in published if env == name or env.startswith(f"{name} ")]
    return max(fits, key=len, default="")


def evaluation_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Head and rows of `evaluation.json`: each world, with floor and ceiling."""
    metric = headline([record])
    shown = [name for name in ("score", "success", "return") if value_of(record, name) is not None]
    head = ["world", "episodes", *(f"{NAMES[name]} [95 %]" for name in shown), "length"]
    rows = [[*head, f"floor ({NAMES[metric]})", "ceiling"]]
    for name, block in {"as trained": record, **record["variants"]}.items():
        ends = [block.get("floor"), block.get("ceiling")]
        figures = [None if end is None else value_of(end, metric) for end in ends]
        rows.append(
            [
                name.replace("_", " "),
                str(block["num_episodes"]),
                *(with_interval(_value(block, n), block["interval"].get(n), n) for n in shown),
                f"{_value(block, 'length'):.1f}",
                *(number(figure, metric) for figure in figures),
            ]
        )
    return rows


def _value(block: Mapping[str, Any], name: str) -> float:
    value = value_of(block, name)
    assert value is not None
    return value


def score_head(fraction: float) -> list[str]:
    """Names of the columns of `score_rows`."""
    return [
        *("environment", "agent", "seeds", "judged by", "mean [95 %]", "IQM [95 %]", "return"),
        *("floor", "ceiling", "steps", f"steps to {fraction:.0%} of the best return"),
    ]


def score_rows(comparison: Mapping[str, Any], published: Published) -> list[list[str]]:
    """A row of text for each method, then one for each published figure beside it."""
    rows = []
    for env, own in comparison["envs"].items():
        metric = own["metric"]
        for name, method in own["methods"].items():
            rows.append(
                [
                    *(env, name, str(len(method["seeds"])), NAMES[metric]),
                    with_interval(method["mean"], method["interval"], metric),
                    with_interval(method["iqm"], method["iqm_interval"], metric),
                    number(statistics.fmean(method["returns"]), "return"),
                    *(number(method[end], metric) for end in ("floor", "ceiling")),
                    thousands(statistics.median(method["step"])),
                    steps_cell(method["steps_to"]) if method["has_curve"] else DASH,
                ]
            )
            if method["training_score"] is not None:
                figure = number(method["training_score"], "score")
                name = f"{name}, over all episodes of training"
                rows.append([env, name, "", NAMES["score"], figure, *[""] * 6])
        source = published_name(env, published)
        rows += [_published_row(source, entry) for entry in published_of(env, published)]
    return rows


def _published_row(env: str, entry: Mapping[str, Any]) -> list[str]:
    metric = next(name for name in HEADLINES if name in entry)
    figure = number(entry[metric], metric)
    spread = f" +- {number(entry['spread'], metric)}" if "spread" in entry else ""
    gain = number(entry["return"], "return") if "return" in entry else ""
    steps = thousands(entry["steps"]) if "steps" in entry else ""
    name = f"published: {entry['name']}"
    return [env, name, "", NAMES[metric], f"{figure}{spread}", "", gain, "", "", steps, ""]


def variant_rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    """Head and rows of the held-out variants, a column for each method; empty without variants."""
    envs = {
        env: own
        for env, own in comparison["envs"].items()
        if any(method["variants"] for method in own["methods"].values())
    }
    if not envs:
        return []
    names = list(dict.fromkeys(name for own in envs.values() for name in own["methods"]))
    rows = [["environment", "worlds", *names, "floor"]]
    for env, own in envs.items():
        trained = {name: method for name, method in own["methods"].items() if method["variants"]}
        variants = dict.fromkeys(v for method in trained.values() for v in method["variants"])
        rows.append(_variant_row(env, "as trained", names, own["methods"], own["metric"]))
        for variant in variants:
            blocks = {name: method["variants"].get(variant) for name, method in trained.items()}
            found = {name: block for name, block in blocks.items() if block is not None}
            rows.append(_variant_row(env, variant.replace("_", " "), names, found, own["metric"]))
    return rows


def _variant_row(
    env: str, worlds: str, names: Sequence[str], blocks: Mapping[str, Any], metric: str
) -> list[str]:
    cells = [
        with_interval(blocks[name]["mean"], blocks[name]["interval"], metric)
        if name in blocks
        else DASH
        for name in names
    ]
    floors = [block["floor"] for block in blocks.values() if block["floor"] is not None]
    floor = statistics.fmean(floors) if floors else None
    return [env, worlds, *cells, number(floor, metric)]


def overview_rows(
    comparisons: Mapping[str, Mapping[str, Any]], published: Published
) -> list[list[str]]:
    """Head and rows of studies: an environment each, with a column for each kind of observation.

    Of several methods with one kind of observation the cell has the one with the highest mean.
    """
    rows = [["study", "environment", "judged by", "random", *KINDS, "published"]]
    for study, comparison in comparisons.items():
        for env, own in comparison["envs"].items():
            floors = [method["floor"] for method in own["methods"].values()]
            floor = statistics.fmean(floors) if None not in floors else None
            cells = [_best_cell(own, word) for word in KINDS.values()]
            ceilings = [e for e in published_of(env, published) if e.get("is_ceiling", False)]
            metric = own["metric"]
            figures = [_published_cell(entry, metric) for entry in ceilings] or [DASH]
            rows.append([study, env, NAMES[metric], number(floor, metric), *cells, *figures])
    return rows


def _best_cell(own: Mapping[str, Any], word: str) -> str:
    fits = [method for name, method in own["methods"].items() if name.startswith(word)]
    if not fits:
        return DASH
    best = max(fits, key=lambda method: method["mean"])
    count = len(best["seeds"])
    seeds = f"{count} seed{'s' if count > 1 else ''}"
    figure = with_interval(best["mean"], best["interval"], own["metric"])
    return f"{figure}; {seeds}, {thousands(statistics.median(best['step']))}"


def _published_cell(entry: Mapping[str, Any], judged_by: str) -> str:
    metric = next(name for name in HEADLINES if name in entry)
    kind = "" if metric == judged_by else f"{NAMES[metric]} "
    steps = f", {thousands(entry['steps'])}" if "steps" in entry else ""
    return f"{kind}{number(entry[metric], metric)} ({entry['name']}{steps})"


def markdown(comparison: Mapping[str, Any], published: Published) -> str:
    """The tables of a comparison, and where published figures come from."""
    parts = [
        markdown_table([score_head(comparison["fraction"]), *score_rows(comparison, published)])
    ]
    variants = variant_rows(comparison)
    if variants:
        parts.append("Worlds with what was held out of training (mean over seeds):")
        parts.append(markdown_table(variants))
    found = sources(comparison, published)
    if found:
        parts.append("Published figures: " + "; ".join(found) + ".")
    return "\n\n".join(parts) + "\n"


def sources(comparison: Mapping[str, Any], published: Published) -> list[str]:
    """Where the published figures beside a comparison come from, each once."""
    entries = [entry for env in comparison["envs"] for entry in published_of(env, published)]
    return list(dict.fromkeys(str(entry["source"]) for entry in entries))
