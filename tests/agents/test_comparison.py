"""Curves, steps to a threshold and estimates follow from the runs; pages show all of them."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from ocrl.agents.comparison import compare, grouped, learning_curve, steps_to
from ocrl.agents.comparison_page import curves, render
from ocrl.agents.comparison_table import (
    markdown,
    overview_rows,
    published_of,
    score_rows,
    steps_cell,
    thousands,
    variant_rows,
    with_interval,
)
from ocrl.agents.results import thinned

PUBLISHED = {
    "sprites-object_comparison": [
        {"name": "A & B", "success": 0.98, "spread": 0.01, "steps": 2_000_000, "source": "here"}
    ],
    "crafter": [{"name": "C", "return": 9.0, "steps": 1_000_000, "source": "there"}],
}


@pytest.fixture
def runs(make_run):
    unseen = {"shapes": 0.7, "more_objects": 0.5}
    rates = {"pixels": (0.25, 0.275, 0.3), "slots": (0.9, 0.95, 1.0)}
    sprites = [
        make_run(obs, seed, rate, variants=unseen if obs == "slots" else None)
        for obs, seeds in rates.items()
        for seed, rate in enumerate(seeds)
    ]
    goal = [
        make_run(obs, seed, 0.9, env="sprites-object_goal")
        for obs in ("pixels", "slots")
        for seed in range(3)
    ]
    return [*sprites, *goal, make_run("slots", 0, 0.5, env="crafter", score=True)]


def test_the_curve_is_the_mean_of_the_seeds(make_run):
    runs = [make_run("slots", seed, rate) for seed, rate in enumerate((0.5, 0.7, 0.9))]
    curve = learning_curve(runs, "return")
    assert len(curve.steps) == 60 and curve.steps[-1] == 100_000
    assert curve.mean[0] == pytest.approx(0.26, abs=0.04)
    assert curve.mean[-1] == pytest.approx(0.7, abs=0.02)
    low, high = curve.interval
    assert (low <= curve.mean).all() and (curve.mean <= high).all()
    assert (low[-1], high[-1]) == pytest.approx((0.5, 0.9), abs=0.04)
    halfway = np.interp(25_000, curve.steps, curve.mean)
    # The mean of the 10,000 steps before: what it was 5,000 steps ago.
    assert halfway == pytest.approx(0.25 + 0.45 * 20_000 / 50_000, abs=0.03)
    assert learning_curve(runs[:1], "return").interval is None
    assert learning_curve(runs, "score") is None


def test_a_curve_ends_with_the_shortest_run(make_run):
    long, short = make_run("slots", 0, 0.5), make_run("slots", 1, 0.5)
    rows = (short.path / "progress.csv").read_text().splitlines()[:41]
    cut = {name: column[:40] for name, column in short.progress.items()}
    assert len(rows) == 41
    curve = learning_curve([long, type(short)(short.path, short.evaluation, cut)], "return")
    assert curve.steps[-1] == cut["step"][-1] < 100_000


def test_steps_to_a_threshold(make_run):
    run = make_run("slots", 0, 1.0, num_rows=10, until=100_000, floor=0.0)
    # A row of 11,000 steps is a mean of its own; rows rise by 0.11 from 0.01.
    assert steps_to(run, 0.6) == pytest.approx(67_000, abs=1)
    assert steps_to(run, 0.5) == pytest.approx(56_000, abs=1)
    assert steps_to(run, 2.0) is None
    assert steps_to(run, 0.0) == 1000


def test_steps_to_a_threshold_hang_little_on_how_far_rows_are_apart(make_run):
    run = make_run("slots", 0, 1.0, num_rows=200, until=100_000, floor=0.0)
    for num_points in (200, 100, 40, 20):
        few = type(run)(run.path, run.evaluation, thinned(run.progress, num_points))
        # 0.6 is reached after 60,000 steps, by the mean of the 10,000 before 5,000 later.
        assert steps_to(few, 0.6) == pytest.approx(65_000, abs=4_000)


def test_the_numbers_of_a_comparison(runs):
    result = compare(runs, fraction=0.9)
    assert json.loads(json.dumps(result)) and list(result["envs"]) == [
        *("sprites-object_comparison", "sprites-object_goal", "crafter")
    ]
    own = result["envs"]["sprites-object_comparison"]
    slots, pixels = own["methods"]["slots ppo"], own["methods"]["pixels ppo"]
    assert slots["scores"] == [0.9, 0.95, 1.0] and slots["mean"] == pytest.approx(0.95)
    assert slots["interval"] == pytest.approx((0.9, 1.0))
    assert slots["floor"] == 0.25 and slots["ceiling"] is None
    assert slots["variants"]["shapes"]["mean"] == pytest.approx(0.7)
    assert own["threshold"] == pytest.approx(0.9 * 0.95, abs=0.03)
    # 0.25 + 0.7 s / 50k reaches 0.855 at 43k.
    assert np.median([s or np.inf for s in slots["steps_to"]]) == pytest.approx(45_000, abs=9_000)
    assert pixels["steps_to"] == [None] * 3
    better = {(b["method"], b["than"]): b["probability"] for b in own["better"]}
    assert better == {("slots ppo", "pixels ppo"): 1.0, ("pixels ppo", "slots ppo"): 0.0}
    crafter = result["envs"]["crafter"]
    assert crafter["metric"] == "score" and crafter["methods"]["slots ppo"]["interval"] is None
    assert crafter["methods"]["slots ppo"]["achievements"]["collect_wood"] == 0.5
    overall = result["overall"]
    assert overall["envs"] == ["sprites-object_comparison", "sprites-object_goal"]
    # The middle half of 0.25, 0.275, 0.3, 0.9, 0.9, 0.9.
    expected = np.mean([0.275, 0.3, 0.9, 0.9])
    assert overall["methods"]["pixels ppo"]["iqm"] == pytest.approx(expected)
    (first, _) = overall["better"]
    assert (first["method"], first["probability"]) == ("pixels ppo", 0.25)


def test_there_are_no_steps_to_a_share_of_what_random_play_has(make_run):
    for rate, has_steps in ((0.3, False), (0.8, True)):
        run = make_run("slots", 0, rate, env=f"sprites-{rate}", floor=0.25)
        record = dict(run.evaluation) | {"floor": {"mean": {"return": 0.3, "success": 0.3}}}
        (own,) = compare([type(run)(run.path, record, run.progress)], fraction=0.9)["envs"].values()
        assert (own["threshold"] is not None) == has_steps
        assert (own["methods"]["slots ppo"]["steps_to"] != [None]) == has_steps


def test_ground_truth_is_the_ceiling_of_those_beside_it(make_run):
    runs = [make_run("slots", 0, 0.5), make_run("objects", 0, 0.75), make_run("objects", 1, 1.0)]
    goal = make_run("slots", 0, 0.5, env="sprites-object_goal")
    envs = compare([*runs, goal], fraction=0.5)["envs"]
    assert envs["sprites-object_comparison"]["methods"]["slots ppo"]["ceiling"] == 0.875
    assert envs["sprites-object_goal"]["methods"]["slots ppo"]["ceiling"] is None


def test_only_methods_with_as_many_seeds_everywhere_count_over_all(runs):
    fewer = [run for run in runs if not (run.method == "slots ppo" and run.seed == 2)]
    assert set(compare(fewer, fraction=0.9)["overall"]["methods"]) == {"pixels ppo", "slots ppo"}
    one_less = [run for run in runs if run.path.name != "sprites-object_goal-slots-2"]
    assert set(compare(one_less, fraction=0.9)["overall"]["methods"]) == {"pixels ppo"}
    assert compare(runs[:6], fraction=0.9)["overall"] is None


def test_tables(runs):
    result = compare(runs, fraction=0.9)
    rows = {(row[0], row[1]): row for row in score_rows(result, PUBLISHED)}
    slots = rows["sprites-object_comparison", "slots ppo"]
    assert slots[2:4] == ["3", "success"] and slots[4] == slots[5] == "0.950 [0.900, 1.000]"
    assert slots[6:10] == ["0.950", "0.250", "-", "100k"] and slots[10].endswith("k")
    assert rows["sprites-object_comparison", "pixels ppo"][10] == "never"
    published = rows["sprites-object_comparison", "published: A & B"]
    assert published[4] == "0.980 +- 0.010" and published[6] == "" and published[9] == "2M"
    assert rows["crafter", "slots ppo"][3] == "score (%)"
    assert rows["crafter", "published: C"][3:7] == ["return", "9.000", "", "9.000"]
    text = markdown(result, PUBLISHED)
    assert "Published figures: here; there." in text
    start, pixels = "| sprites-object_comparison |", "0.275 [0.250, 0.300]"
    assert f"{start} as trained | {pixels} | 0.950 [0.900, 1.000] | 0.250 |" in text
    assert f"{start} more objects | - | 0.500 [0.500, 0.500] | 0.250 |" in text
    assert len({line.count("|") for line in text.splitlines()[:8]}) == 1
    assert variant_rows(compare(runs[6:], fraction=0.9)) == []
    assert "Held-out" not in markdown(compare(runs[6:], fraction=0.9), {})


def test_the_overview_has_the_best_method_of_each_kind_of_observation(runs, make_run):
    published = {
        "sprites-object_comparison": [
            {"name": "no ceiling", "success": 0.99, "source": "here"},
            {"name": "A & B", "success": 0.98, "steps": 2_000_000, "is_ceiling": True},
        ],
        "crafter": [{"name": "C", "return": 9.0, "is_ceiling": True}],
    }
    others = [make_run("slots+inventory", 0, 0.97), make_run("objects", 0, 0.99)]
    studies = {
        "first": compare([*runs, *others], fraction=0.9),
        "second": compare(others, fraction=1),
    }
    head, *rows = overview_rows(studies, published)
    assert head == [
        *("study", "environment", "judged by", "random", "pixels", "slots", "true objects"),
        "published",
    ]
    table = {tuple(row[:2]): row[2:] for row in rows}
    assert table["first", "sprites-object_comparison"] == [
        *("success", "0.250", "0.275 [0.250, 0.300]; 3 seeds, 100k", "0.975; 1 seed, 100k"),
        *("1.000; 1 seed, 100k", "0.980 (A & B, 2M)"),
    ]
    assert table["first", "crafter"][2:] == ["-", "50.0; 1 seed, 100k", "-", "return 9.000 (C)"]
    assert table["first", "sprites-object_goal"][-1] == "-"
    assert [row[0] for row in rows].count("second") == 1


def test_words_for_numbers():
    assert [thousands(n) for n in (820, 112_345, 1_500_000)] == ["820", "112k", "1.5M"]
    assert steps_cell([10_000, None, 30_000]) == "20k (2 of 3)"
    assert with_interval(4.56, (4.0, 5.0), "score") == "4.6 [4.0, 5.0]"
    entries = {"minigrid": [1], "minigrid id=A": [2]}
    assert published_of("minigrid id=A", entries) == [2]
    assert published_of("minigrid id=B size=9", entries) == [1]
    assert published_of("minigrids", entries) == ()


def test_the_page_shows_everything(runs):
    page = render(runs, compare(runs, fraction=0.9), published=PUBLISHED, title="Agents <here>")
    assert "Agents &lt;here&gt;" in page and "http" not in page.replace("http-equiv", "")
    assert page.count("<svg") == 2 + 2 + 3 and page.count("fill-opacity='.16'") == 4
    assert "A &amp; B" in page and "Probability of improvement" in page
    assert "collect wood" in page and "Held-out variants" in page
    assert "Fewer than three seeds, so little is known: slots ppo on crafter." in page


def test_learning_curves_are_a_picture_of_their_own(runs):
    root = ElementTree.fromstring(curves(runs, compare(runs, fraction=0.9)))
    charts = root.findall("{*}svg")
    words = [text.text for text in root.findall("{*}text")]
    assert words == [
        *("sprites-object_comparison: success", "sprites-object_goal: success"),
        *("crafter: score (%)", "pixels ppo", "slots ppo"),
    ]
    assert len({(chart.get("x"), chart.get("y")) for chart in charts}) == 3
    assert [len(chart.findall("{*}path[@class='curve']")) for chart in charts] == [2, 2, 1]
    style = root.find("{*}style").text
    assert "--method-1" in style and ".curve" in style and "body" not in style


def test_what_did_not_train_has_no_curve_and_stands_in_the_table_alone(runs, make_run):
    still = make_run("slots", 5, 0.9, env="sprites-object_goal")
    still = replace(still, evaluation={**still.evaluation, "agent": "planning"})
    gaps = {**still.progress, "return": np.full_like(still.progress["return"], np.nan)}
    gaps["success"] = gaps["return"]
    every = [*runs, replace(still, progress=gaps)]
    result = compare(every, fraction=0.9)
    assert "slots planning" not in curves(every, result)
    rows = [line for line in markdown(result, {}).splitlines() if "| slots planning |" in line]
    assert rows[0].endswith("| - |")


def test_mistakes(runs):
    with pytest.raises(ValueError, match="at least one run, got none"):
        grouped([])
    with pytest.raises(ValueError, match=r"expected one run of pixels ppo on .* with seed 0, got"):
        grouped([runs[0], replace(runs[0], path=runs[0].path / "again")])
    with pytest.raises(ValueError, match=r"each run once, got .* given twice"):
        grouped([runs[0], runs[0]])
    with pytest.raises(ValueError, match=r"fraction in \(0,1\], got 90"):
        compare(runs, fraction=90)
