"""What a run leaves is read whole, refused in one sentence, and small when it is kept."""

import json

import numpy as np
import pytest

from ocrl.agents.results import (
    headline,
    read_evaluation,
    read_progress,
    read_run,
    thinned,
    value_of,
    write_evaluation,
    write_small,
)


def test_a_run_is_read(make_run):
    run = make_run("slots", 2, 0.9)
    assert (run.env, run.method, run.seed) == ("sprites-object_comparison", "slots ppo", 2)
    assert run.progress["step"][0] == 1000 and len(run.progress["return"]) == 100
    assert np.isnan(run.progress["return"][3]) and np.isfinite(run.progress["return"][4])
    assert value_of(run.evaluation, "success") == 0.9
    assert value_of(run.evaluation, "score") is None
    assert headline([run.evaluation]) == "success"
    game = make_run("slots", 2, 0.5, env="crafter", score=True)
    assert headline([game.evaluation]) == "score"
    assert headline([game.evaluation, run.evaluation]) == "return"


def test_a_thinned_curve_is_the_mean_of_neighbours():
    progress = {
        "step": np.array([1.0, 2.0, 3.0, 4.0]),
        "return": np.array([1.0, np.nan, 3.0, 5.0]),
        "success": np.full(4, np.nan),
    }
    small = thinned(progress, 2)
    np.testing.assert_array_equal(small["step"], [2.0, 4.0])
    np.testing.assert_array_equal(small["return"], [1.0, 4.0])
    assert np.isnan(small["success"]).all()
    np.testing.assert_array_equal(thinned(progress, 9)["step"], progress["step"])


def test_a_kept_run_is_small_and_reads_like_the_run(make_run, tmp_path):
    variants = {f"variant_{number}": 0.5 for number in range(8)}
    run = make_run("slots", 0, 0.9, num_rows=2000, variants=variants)
    folder = write_small(run, tmp_path / "results")
    assert folder.name == "sprites-object_comparison-slots-ppo-0"
    # 9 agents with 3 seeds each stay around 100 kB.
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8_000
    kept = read_run(folder)
    assert (kept.env, kept.method, kept.seed) == (run.env, run.method, run.seed)
    assert kept.progress["step"][-1] == 100_000 and len(kept.progress["step"]) == 40
    assert kept.evaluation["mean"] == pytest.approx(run.evaluation["mean"])
    assert kept.evaluation["num_episodes"] == 40
    assert kept.evaluation["variants"]["variant_3"]["floor"]["mean"]["success"] == 0.25
    assert '"episodes"' not in (folder / "evaluation.json").read_text()
    assert (folder / "progress.csv").read_text().splitlines()[1].split(",")[2] != ""
    again = write_small(kept, tmp_path / "again")
    assert (again / "evaluation.json").read_bytes() == (folder / "evaluation.json").read_bytes()


def test_mistakes_are_one_sentence(make_run, tmp_path):
    run = make_run("slots", 0, 0.9)
    with pytest.raises(FileNotFoundError, match=r"directory of a training run, got .*nowhere"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected env, obs, agent, seed"):
        write_evaluation(tmp_path, {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_evaluation(tmp_path, {**run.evaluation, "score": float("nan")})
    assert not (tmp_path / "evaluation.json").exists()
    (run.path / "evaluation.json").write_text('{"env": ')
    with pytest.raises(ValueError, match=r"expected JSON in .*evaluation.json"):
        read_run(run.path)
    (run.path / "evaluation.json").write_text(json.dumps({"env": "sprites"}))
    with pytest.raises(ValueError, match="expected obs, agent, seed, step, mean, interval"):
        read_run(run.path)
    (run.path / "evaluation.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"run python scripts/evaluate_agent.py"):
        read_evaluation(run.path)
    for text in ("step,return\n", "step,length\n1,2\n"):
        (run.path / "progress.csv").write_text(text)
        with pytest.raises(ValueError, match="rows with step and return"):
            read_progress(run.path / "progress.csv")
    (run.path / "progress.csv").write_text("step,return\n1,nought\n")
    with pytest.raises(ValueError, match="expected numbers"):
        read_progress(run.path / "progress.csv")
    (run.path / "progress.csv").write_text("step,return\n1\n")
    assert np.isnan(read_progress(run.path / "progress.csv")["return"]).all()
    with pytest.raises(ValueError, match="expected one of score, success, return"):
        headline([{"mean": {}}])
