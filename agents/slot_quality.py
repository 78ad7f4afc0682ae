"""How well agents do against how well their encoders find objects.

N encoders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from ocrl.agents.comparison import metric_of
from ocrl.agents.comparison_table import NAMES
from ocrl.agents.results import Run, value_of
from ocrl.agents.statistics import pearson, pearson_interval
from ocrl.charts import Line, scatter_chart
from ocrl.page import page, table

KEY = "discovery"
"""Of `evaluation.json`: what was measured of the slots that the agent was given, by name."""


@dataclass(frozen=True)
class Relation:
    """One agent on one environment, with encoders of different quality.

    Attributes:
        env: name of the environment.
        agent: name of the agent.
        measure: of slots, such as `video_fg_ari`.
        metric: what the agent is judged by, see `ocrl.agents.results.headline`.
        points: N pairs of both by the name of the slots; the second is the mean over seeds.
        num_runs: of all seeds.
        correlation: Pearson's; None of fewer than three encoders, or where nothing varies.
        interval: of it, with 95 %; None of fewer than four encoders.
    """

    env: str
    agent: str
    measure: str
    metric: str
    points: Mapping[str, tuple[float, float]]
    num_runs: int
    correlation: float | None
    interval: tuple[float, float] | None

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        about = f"{self.env}, {self.agent}: {NAMES[self.metric]} against {self.measure} of slots"
        number = f"n = {len(self.points)} encoders, {self.num_runs} runs"
        if self.correlation is None:
            return f"{about}: no correlation to speak of ({number})"
        within = "" if self.interval is None else " [{:.2f}, {:.2f}]".format(*self.interval)
        return f"{about}: r = {self.correlation:.2f}{within} ({number})"


def relations(runs: Sequence[Run], *, measure: str) -> list[Relation]:
    """How success and slots go together, for each environment and agent.

    An encoder is a point, whichever seeds of an agent were trained on it: runs with the same slots
    and the same figure are of one encoder.

    Args:
        runs: those without a figure of their slots are left out.
        measure: of slots, such as `video_fg_ari`.

    Raises:
        ValueError: if no run has that figure.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if _figure(run, measure) is not None:
            groups.setdefault((run.env, str(run.evaluation["agent"])), []).append(run)
    if not groups:
        raise ValueError(
            f"expected runs whose evaluation.json has {measure} of their slots, got none in "
            f"{len(runs)} runs: evaluate runs again whose encoder's metrics.json is still there"
        )
    return [_relation(*names, group, measure) for names, group in groups.items()]


def _figure(run: Run, measure: str) -> float | None:
    value = (run.evaluation.get(KEY) or {}).get(measure)
    return None if value is None else float(value)


def _relation(env: str, agent: str, runs: Sequence[Run], measure: str) -> Relation:
    metric = metric_of({agent: runs})
    scores: dict[tuple[str, float], list[float]] = {}
    for run in runs:
        figure, score = _figure(run, measure), value_of(run.evaluation, metric)
        assert figure is not None and score is not None
        scores.setdefault((str(run.evaluation["obs"]), figure), []).append(score)
    points: dict[str, tuple[float, float]] = {}
    for (obs, figure), own in scores.items():
        name = f"{obs}, {measure} {figure:.3f}"
        if name in points:
            name += f" ({sum(known.startswith(name) for known in points) + 1})"
        points[name] = (figure, float(np.mean(own)))
    places, heights = zip(*points.values(), strict=True)
    found = pearson(places, heights)
    interval = None if found is None else pearson_interval(found, len(points))
    return Relation(env, agent, measure, metric, points, len(runs), found, interval)


def as_json(relations: Sequence[Relation]) -> list[dict[str, Any]]:
    """The relations in plain values."""
    return [{**vars(relation), "points": dict(relation.points)} for relation in relations]


def render(relations: Sequence[Relation], *, title: str) -> str:
    """One HTML page with a chart and a sentence for each relation."""
    body = []
    for relation in relations:
        places, heights = np.array(list(relation.points.values())).T
        line = None
        if relation.correlation is not None:
            slope, start = np.polyfit(places, heights, 1)
            line = Line(float(slope), float(start))
        chart = scatter_chart(
            relation.points,
            axes=(f"{relation.measure} of the slots", NAMES[relation.metric]),
            limits=(_around(places), _around(heights)),
            line=line,
            color="var(--model)",
        )
        rows = [[escape(n), f"{x:.3f}", f"{y:.3f}"] for n, (x, y) in relation.points.items()]
        heading = f"{escape(relation.env)}, {escape(relation.agent)}"
        body += [
            f"<h2>{heading}</h2><p>{escape(relation.sentence)}</p>",
            f"<div class='plots'><div class='card'>{chart}</div><div class='card wide'>",
            table([escape(relation.measure), NAMES[relation.metric]], rows),
            "</div></div>",
        ]
    body.append(
        "<p class='soft'>A dot is an encoder; its height is the mean over the seeds of the agent. "
        "The interval is Fisher's, of 95 %. Published for planning on PushT: r = 0.96 with video "
        "FG-ARI (arXiv 2608.12078).</p>"
    )
    number = sum(relation.num_runs for relation in relations)
    return page(title, details={"runs": str(number)}, warnings=[], body=body)


def _around(values: Any) -> tuple[float, float]:
    """An axis that holds shares from 0 to 1, and further where values go further."""
    low, high = float(np.min(values)), float(np.max(values))
    return min(0.0, low), max(1.0, high)
