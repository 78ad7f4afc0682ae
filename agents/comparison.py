"""Runs of several agents side by side: scores over seeds, learning curves, who is better.

R runs (seeds) of one method, M environments, P points of a curve. See `ocrl.agents.statistics` for
the estimators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocrl.agents.results import Run, headline, value_of
from ocrl.agents.statistics import (
    interquartile_mean,
    mean_interval,
    overall_mean,
    probability_of_improvement,
    stratified_interval,
)

Table = dict[str, dict[str, list[Run]]]
"""Environment, method, runs."""

CEILING = "objects"
"""Runs with this observation, the ground truth, are the ceiling of those beside them."""
_NUM_POINTS = 60
_WINDOW = 10_000
"""Environment steps that a running mean takes together, or one row of progress if that has more."""


@dataclass(frozen=True)
class Curve:
    """The mean over runs at common steps, with its 95 % interval.

    Attributes:
        steps: (P,).
        mean: (P,).
        interval: (2,P); None of a single run.
    """

    steps: NDArray[np.float64]
    mean: NDArray[np.float64]
    interval: NDArray[np.float64] | None


def grouped(runs: Sequence[Run]) -> Table:
    """Runs by environment and method, in the order given.

    Raises:
        ValueError: if there is no run, one is there twice, or two are of one environment, method
            and seed.
    """
    if not runs:
        raise ValueError("expected at least one run, got none")
    table: Table = {}
    for run in runs:
        others = table.setdefault(run.env, {}).setdefault(run.method, [])
        for other in others:
            if other.path.resolve() == run.path.resolve():
                raise ValueError(f"expected each run once, got {run.path} given twice")
            if other.seed == run.seed:
                raise ValueError(
                    f"expected one run of {run.method} on {run.env} with seed {run.seed}, got "
                    f"{other.path} and {run.path}"
                )
        others.append(run)
    return table


def metric_of(methods: Mapping[str, Sequence[Run]]) -> str:
    """What all runs of an environment are judged by, see `headline`."""
    return headline(run.evaluation for runs in methods.values() for run in runs)


def learning_curve(runs: Sequence[Run], column: str) -> Curve | None:
    """The mean over runs of a column of progress, as far as all of them came.

    Each run's curve is a running mean over the steps before, see `_WINDOW`, read off between its
    rows.

    Args:
        runs: R seeds of one method.
        column: such as `return`.

    Returns:
        None if a run has no such column, or nothing in it.
    """
    curves = [_smooth(run, column) for run in runs]
    if any(len(steps) == 0 for steps, _ in curves):
        return None
    start = max(steps[0] for steps, _ in curves)
    end = min(steps[-1] for steps, _ in curves)
    grid = np.linspace(min(start, end), end, _NUM_POINTS if start < end else 1)
    values = np.stack([np.interp(grid, steps, means) for steps, means in curves])
    return Curve(grid, values.mean(axis=0), mean_interval(values))


def _smooth(run: Run, column: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = run.progress.get(column, np.zeros(0))
    is_known = np.isfinite(values)
    steps, values = run.progress["step"][: len(values)][is_known], values[is_known]
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    # A row tells of the steps from the row before on.
    begins = np.concatenate([[0.0], steps[:-1]])[: len(steps)]
    starts = np.minimum(np.searchsorted(begins, steps - _WINDOW), ends - 1)
    return steps, (sums[ends] - sums[starts]) / (ends - starts)


def steps_to(run: Run, threshold: float, *, column: str = "return") -> float | None:
    """The first step at which a run's running mean reaches `threshold`; None if it never does."""
    steps, means = _smooth(run, column)
    reached = np.flatnonzero(means >= threshold)
    return float(steps[reached[0]]) if len(reached) else None


def compare(runs: Sequence[Run], *, fraction: float) -> dict[str, Any]:
    """All that is known of the runs, ready for JSON.

    Args:
        runs: of any environments and methods.
        fraction: what share of the best return the steps are counted to: that of the method whose
            runs have the highest in their evaluations. None are where random play has as much.

    Returns:
        `envs`: by name, each with its `metric`, its `methods` and who is `better`; and `overall`,
        over the environments that are judged by success, where there are several.

    Raises:
        ValueError: if `fraction` is not in (0,1], or as `grouped`.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"expected a fraction in (0,1], got {fraction}")
    table = grouped(runs)
    envs = {env: _compare_env(methods, fraction) for env, methods in table.items()}
    return {"fraction": fraction, "envs": envs, "overall": _overall(table)}


def _compare_env(methods: Mapping[str, Sequence[Run]], fraction: float) -> dict[str, Any]:
    metric = metric_of(methods)
    every = [run.evaluation for runs in methods.values() for run in runs]
    best = max(
        _mean_of([run.evaluation for run in runs], "return") or 0.0 for runs in methods.values()
    )
    floor = _mean_of([evaluation.get("floor") for evaluation in every], "return") or 0.0
    threshold = fraction * best if best > max(floor, 0.0) else None
    scores = {name: _scores(runs, metric) for name, runs in methods.items()}
    described = {
        name: _describe(runs, scores[name], metric, threshold) for name, runs in methods.items()
    }
    perfect = [own["mean"] for name, own in described.items() if name.startswith(CEILING)]
    for name, method in described.items():
        if perfect and not name.startswith(CEILING):
            method["ceiling"] = max(perfect)
    return {
        "metric": metric,
        "threshold": threshold,
        "methods": described,
        "better": _improvements(scores),
    }


def _scores(runs: Sequence[Run], metric: str) -> NDArray[np.float64]:
    """(R,1)."""
    return np.array([[value_of(run.evaluation, metric)] for run in runs], dtype=np.float64)


def _describe(
    runs: Sequence[Run], scores: NDArray[np.float64], metric: str, threshold: float | None
) -> dict[str, Any]:
    reached = [None if threshold is None else steps_to(run, threshold) for run in runs]
    evaluations = [run.evaluation for run in runs]
    return {
        "seeds": [run.seed for run in runs],
        "step": [int(evaluation["step"]) for evaluation in evaluations],
        "scores": scores[:, 0].tolist(),
        **_estimates(scores),
        "steps_to": reached,
        "has_curve": any(np.isfinite(run.progress["return"]).any() for run in runs),
        "returns": [value_of(evaluation, "return") for evaluation in evaluations],
        "floor": _mean_of([evaluation.get("floor") for evaluation in evaluations], metric),
        "ceiling": _mean_of([evaluation.get("ceiling") for evaluation in evaluations], metric),
        "variants": _variants(evaluations, metric),
        "achievements": _achievements(evaluations),
        "training_score": _mean_of([e.get("training") for e in evaluations], "score"),
        "steps_per_second": _speed(runs),
    }


def _estimates(scores: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "mean": float(overall_mean(scores)),
        "interval": stratified_interval(overall_mean, scores),
        "iqm": float(interquartile_mean(scores)),
        "iqm_interval": stratified_interval(interquartile_mean, scores),
    }


def _mean_of(blocks: Sequence[Mapping[str, Any] | None], metric: str) -> float | None:
    values = [value_of(block, metric) for block in blocks if block is not None]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _variants(evaluations: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """Held-out variants that every run was evaluated on."""
    tables = [evaluation.get("variants") or {} for evaluation in evaluations]
    described = {}
    for name in tables[0]:
        blocks = [table.get(name) for table in tables]
        values = [None if block is None else value_of(block, metric) for block in blocks]
        if None not in values:
            scores = np.array(values, dtype=np.float64)[:, None]
            floors = [block.get("floor") for block in blocks if block is not None]
            described[name] = {**_estimates(scores), "floor": _mean_of(floors, metric)}
    return described


def _achievements(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    tables = [evaluation.get("achievements") for evaluation in evaluations]
    if not all(tables):
        return None
    return {name: float(np.mean([t[name] for t in tables if t])) for name in tables[0] or ()}


def _speed(runs: Sequence[Run]) -> float | None:
    means = [run.progress.get("steps_per_second") for run in runs]
    known = [float(np.nanmean(m)) for m in means if m is not None and np.isfinite(m).any()]
    return float(np.mean(known)) if known else None


def _improvements(scores: Mapping[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """How likely each method is better than each other one."""
    return [
        {
            "method": one,
            "than": other,
            "probability": float(probability_of_improvement(scores[one], scores[other])),
            "interval": stratified_interval(probability_of_improvement, scores[one], scores[other]),
        }
        for one, other in permutations(scores, 2)
    ]


def _overall(table: Table) -> dict[str, Any] | None:
    """Estimates over all environments that are judged by success.

    A method counts that was run in each of them, with as many seeds in one as in the other.
    """
    envs = [env for env, methods in table.items() if metric_of(methods) == "success"]
    if len(envs) < 2:
        return None
    names = [name for name in table[envs[0]] if all(name in table[env] for env in envs)]
    even = [name for name in names if len({len(table[env][name]) for env in envs}) == 1]
    scores = {
        name: np.concatenate([_scores(table[env][name], "success") for env in envs], axis=1)
        for name in even
    }
    if not scores:
        return None
    return {
        "envs": envs,
        "methods": {name: _estimates(own) for name, own in scores.items()},
        "better": _improvements(scores),
    }
