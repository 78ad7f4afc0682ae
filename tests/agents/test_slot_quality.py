"""Success is set against the slots it came from: encoders are the points, seeds are not."""

import json
from pathlib import Path

import pytest

from ocrl.agents.results import Run
from ocrl.agents.slot_quality import as_json, relations, render


def run(success, fg_ari, *, obs="slots (savi)", seed=0, agent="planning ICEM", env="reach", **more):
    evaluation = {
        "env": env,
        "obs": obs,
        "agent": agent,
        "seed": seed,
        "mean": {"success": success},
    }
    evaluation["discovery"] = None if fg_ari is None else {"video_fg_ari": fg_ari, "ari": None}
    return Run(Path("run"), evaluation | more, {})


def test_an_encoder_is_a_point_whatever_its_seeds():
    runs = [run(0.2, 0.1), run(0.4, 0.1, seed=1), run(0.5, 0.5), run(0.9, 0.9), run(0.6, 0.7)]
    (found,) = relations([*runs, run(1.0, None)], measure="video_fg_ari")
    assert sorted(found.points.values()) == [
        (0.1, pytest.approx(0.3)),
        *((0.5, 0.5), (0.7, 0.6), (0.9, 0.9)),
    ]
    assert found.num_runs == 5 and found.metric == "success"
    assert found.correlation == pytest.approx(0.245 / 0.065625**0.5)
    low, high = found.interval
    assert -1 < low < found.correlation < high < 1
    assert found.sentence == (
        "reach, planning ICEM: success against video_fg_ari of slots: r = 0.96 "
        f"[{low:.2f}, {high:.2f}] (n = 4 encoders, 5 runs)"
    )
    assert json.loads(json.dumps(as_json([found])))[0]["points"]


def test_kinds_of_encoders_with_one_figure_are_two_points():
    runs = [run(0.2, 0.5), run(0.4, 0.5, obs="slots (psb)")]
    (found,) = relations(runs, measure="video_fg_ari")
    assert len(found.points) == 2 and found.correlation is None
    assert found.sentence.endswith("no correlation to speak of (n = 2 encoders, 2 runs)")


def test_encoders_that_agree_to_three_digits_are_points_of_their_own():
    figures = (0.1, 0.5, 0.8121, 0.8123, 0.8124)
    runs = [run(figure, figure) for figure in figures]
    (found,) = relations(runs, measure="video_fg_ari")
    assert sorted(place for place, _ in found.points.values()) == list(figures)


def test_agents_and_environments_stand_apart():
    runs = [run(0.1 * i, 0.1 * i, agent=agent) for i in range(3) for agent in ("a", "b")]
    runs += [run(0.5, 0.3, env="push")]
    found = relations(runs, measure="video_fg_ari")
    names = [(one.env, one.agent, len(one.points)) for one in found]
    assert names == [("reach", "a", 3), ("reach", "b", 3), ("push", "planning ICEM", 1)]
    # Three points have a correlation and no interval.
    assert found[0].correlation == pytest.approx(1.0) and found[0].interval is None
    page = render(found, title="Mine & others")
    assert page.count("<svg") == 3 and page.count("class='level'") == 2
    assert "r = 1.00 (n = 3 encoders, 3 runs)" in page and "Mine &amp; others" in page
    assert "http" not in page.replace("http-equiv", "")


def test_runs_without_the_figure_are_refused():
    with pytest.raises(ValueError, match=r"video_fg_ari of their slots, got none in 1 runs"):
        relations([run(0.5, None)], measure="video_fg_ari")
    with pytest.raises(ValueError, match="got none in 1 runs"):
        relations([run(0.5, 0.3)], measure="ari")
