"""Runs become a table, a page and something small to keep, and the README follows what is kept."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from ocrl.agents.results import HEADLINES, write_evaluation
from ocrl.envs.registry import names

ROOT = Path(__file__).parents[2]


def write_run(folder, obs, seed, rate):
    folder.mkdir(parents=True)
    steps = range(1000, 21_000, 1000)
    rows = [f"{step},{step / 500},{rate * step / 20_000:.4f},9.0,,,500" for step in steps]
    head = "step,seconds,return,length,success,score,steps_per_second"
    (folder / "progress.csv").write_text("\n".join([head, *rows]) + "\n")
    mean = {"return": rate, "length": 9.0, "success": rate}
    record = {
        **{"env": "sprites-object_goal", "obs": obs, "agent": "ppo", "seed": seed, "step": 20_000},
        **{"mean": mean, "interval": {}, "score": None, "achievements": None},
        **{"episodes": {"return": [rate] * 50}, "floor": {"mean": {"success": 0.2}}},
        "num_episodes": 50,
        "variants": {"shapes": {"mean": mean, "interval": {}, "num_episodes": 50}},
    }
    write_evaluation(folder, record)


@pytest.fixture
def compare(load_script, monkeypatch, tmp_path):
    module = load_script("compare")
    for obs, rate in (("pixels", 0.5), ("slots", 0.8)):
        for seed in range(3):
            write_run(tmp_path / "runs" / f"{obs}-{seed}", obs, seed, rate + 0.1 * seed)

    def start(*arguments):
        options = ["--output", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments), *options])
        module.main()

    return start


def test_a_folder_of_runs(compare, tmp_path, capsys):
    compare(tmp_path / "runs", "--fraction", 0.5, "--title", "Mine")
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "out/table.md").read_text()
    row = next(line for line in printed.splitlines() if "slots ppo" in line)
    assert "0.900 [0.800, 1.000]" in row and "steps to 50%" in printed
    assert "published: PPO on SLATE | " in printed
    result = json.loads((tmp_path / "out/comparison.json").read_text())
    assert result["envs"]["sprites-object_goal"]["methods"]["slots ppo"]["seeds"] == [0, 1, 2]
    assert "<title>Mine</title>" in (tmp_path / "out/report.html").read_text()
    assert (tmp_path / "out/curves.svg").read_text().startswith("<svg xmlns=")


def test_what_is_not_evaluated_or_otherwise_is_named(compare, tmp_path, capsys):
    runs = tmp_path / "runs"
    for name in ("slots-1", "pixels-0"):
        (runs / name / "evaluation.json").unlink()
    compare(runs)
    said = capsys.readouterr()
    assert "left out, as they have no evaluation.json yet: pixels-0, slots-1\n" in said.err
    assert "0.900 [0.800, 1.000]" in said.out and "not all" not in said.err
    assert f"table.md, comparison.json, report.html, curves.svg: {tmp_path / 'out'}\n" in said.err
    file = runs / "slots-0" / "evaluation.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_episodes": 2}))
    compare(runs)
    assert "not all were evaluated alike: over 2, 50 episodes" in capsys.readouterr().err


def test_what_is_kept_compares_the_same(compare, tmp_path, capsys):
    command = "python scripts/train_agent.py env=sprites-object_goal 'agent.arguments={gamma: 0.9}'"
    (tmp_path / "runs/slots-0/command.txt").write_text(f"{command}\n")
    kept = tmp_path / "results" / "goal"
    compare(*sorted((tmp_path / "runs").iterdir()), "--write", kept)
    first = capsys.readouterr().out
    compare(kept)
    assert capsys.readouterr().out == first
    found = kept / "sprites-object_goal-slots-ppo-0/command.txt"
    assert found.read_text() == f"{command}\n"
    assert len(list(kept.iterdir())) == 6


def test_the_tables_stand_between_the_markers(compare, load_script, tmp_path, monkeypatch):
    module = load_script("kept_results")
    for name in ("kept_results", "compare"):
        monkeypatch.setattr(load_script(name), "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/published.yaml").write_text("{}\n")
    compare(tmp_path / "runs", "--write", tmp_path / "results/goal")
    scores, everything = tmp_path / "README.md", tmp_path / "results/README.md"
    for readme, begin in ((scores, module.SCORES), (everything, module.EVERYTHING)):
        readme.write_text(f"Before\n\n{begin}\nold\n{module.END}\n\nAfter\n")
    compare("--readme", scores, everything)
    texts = [readme.read_text() for readme in (scores, everything)]
    for text in texts:
        assert text.startswith("Before\n") and text.endswith(f"{module.END}\n\nAfter\n")
        assert "old" not in text and "0.900 [0.800, 1.000]" in text
    assert (tmp_path / "results/goal/curves.svg").read_text().startswith("<svg")
    for part in ("held out", "`results/goal`:", "IQM"):
        assert [part in text for text in texts] == [False, True]
    assert "| goal | sprites-object_goal |" in texts[0]
    compare("--readme", scores, everything)
    assert [readme.read_text() for readme in (scores, everything)] == texts
    assert module.with_tables("no markers", tmp_path / "results") == "no markers"
    empty = module.with_tables(texts[1], tmp_path / "nothing")
    assert empty == f"Before\n\n{module.EVERYTHING}\n\n{module.END}\n\nAfter\n"


@pytest.mark.parametrize("name", ["README.md", "results/README.md"])
def test_the_readmes_are_up_to_date(load_script, name):
    module = load_script("kept_results")
    text = (ROOT / name).read_text()
    assert (module.SCORES if name == "README.md" else module.EVERYTHING) in text
    assert module.with_tables(text, module.RESULTS) == text, f"run compare.py --readme {name}"


def test_the_curves_of_the_studies_are_up_to_date(load_script):
    module = load_script("kept_results")
    pictures = module.study_curves(module.RESULTS)
    assert {file.parent.name for file in pictures} >= {"sprites", "minigrid", "crafter"}
    for file, picture in pictures.items():
        assert file.read_text() == picture, "run compare.py --readme README.md results/README.md"


def test_published_figures_are_of_environments_that_exist_and_name_their_source(load_script):
    published = load_script("kept_results").read_published()
    assert published
    for env, entries in published.items():
        assert env.split()[0] in names()
        for entry in entries:
            assert entry["name"] and entry["source"] and set(entry) & set(HEADLINES)
            known = {"name", "source", "spread", "steps", "is_ceiling", *HEADLINES}
            assert set(entry) <= known and all(np.isfinite(entry.get(k, 0)) for k in HEADLINES)
        assert sum(entry.get("is_ceiling", False) for entry in entries) == 1
    text = (ROOT / "results/published.yaml").read_text()
    assert yaml.safe_load(text)["crafter"][1]["score"] == 15.6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "expected directories of runs, or --readme FILES"),
        (("nowhere",), "expected the directory of a training run, got nowhere"),
        (("runs", "--fraction", "90"), r"expected a fraction in (0,1], got 90"),
        (("runs", "runs"), "expected each run once, got runs/pixels-0 given twice"),
        (("--readme", "broken.md"), "expected '<!-- results"),
    ],
)
def test_mistakes_end_in_one_sentence(compare, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    Path("broken.md").write_text("<!-- /results -->")
    with pytest.raises(SystemExit, match="2"):
        compare(*arguments)
    assert sentence in capsys.readouterr().err


def test_success_is_set_against_the_slots(compare, tmp_path, capsys):
    for seed in range(4):
        folder = tmp_path / "runs" / f"slots-{seed}"
        if not folder.is_dir():
            write_run(folder, "slots", seed, 0.9)
        record = json.loads((folder / "evaluation.json").read_text())
        record["discovery"] = {"video_fg_ari": 0.2 * seed}
        write_evaluation(folder, record)
    # An encoder of the same kind and seed, as at another step of its training.
    again = tmp_path / "runs/slots-again"
    write_run(again, "slots", 0, 0.2)
    record = json.loads((again / "evaluation.json").read_text())
    write_evaluation(again, record | {"discovery": {"video_fg_ari": 0.0}})
    compare(tmp_path / "runs", "--slots", "video_fg_ari")
    printed = capsys.readouterr().out
    # Both have the same figure: one point, at 0.5.
    assert "success against video_fg_ari of slots: r = 0.76 [" in printed
    assert "(n = 4 encoders, 5 runs)" in printed
    (found,) = json.loads((tmp_path / "out/slots.json").read_text())
    assert len(found["points"]) == 4
    assert "<svg" in (tmp_path / "out/slots.html").read_text()
    with pytest.raises(SystemExit):
        compare(tmp_path / "runs", "--slots", "nothing")
    assert (
        "expected runs whose evaluation.json has nothing of their slots" in capsys.readouterr().err
    )
