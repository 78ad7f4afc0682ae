import json
import sys
from pathlib import Path

import pytest


def result(score):
    def scores(offset):
        return {"entities": {"video_fg_ari": score + offset, "video_mbo_i": 0.5}}

    return {"model": scores(0.0), "grid": scores(-0.1), "k-means": scores(-0.2)}


def test_rows_hold_the_mean_and_the_spread_over_seeds(load_script):
    rows = load_script("comparison").score_rows
    metrics = ("video_fg_ari", "video_mbo_i")
    assert rows("sprites", "psb", [result(0.6), result(0.8)], metrics=metrics, more=["9"]) == [
        "| sprites | psb | entities | 0.700 +- 0.141 | 0.500 +- 0.000 | 9 |"
    ]
    single = rows("sprites", "grid", [result(0.6)], metrics=metrics, source="grid")
    assert single == ["| sprites | grid | entities | 0.500 | 0.500 |"]


def test_runs_share_episodes_and_finished_ones_are_not_repeated(
    load_script, stand_in, monkeypatch, tmp_path, capsys
):
    commands = []

    def pretend(command, *, env):
        commands.append(command)
        run = Path(next(a for a in command if a.startswith("hydra.run.dir=")).split("=")[1])
        run.mkdir(parents=True)
        (run / "metrics.json").write_text(json.dumps({"table": result(0.9)}))
        return 0

    stand_in(pretend)
    module = load_script("compare_encoders")
    encoders = ["psb", "savi,weights.contrast=2,+data.x=1"]
    arguments = ["x", "--envs", "sprites", "--encoders", *encoders, "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--", "trainer.max_steps=3"])
    module.main()
    assert len(commands) == 2
    assert not any(a.startswith("data.path=") for a in commands[0])
    assert f"data.path={(tmp_path / 'sprites-psb-0' / 'episodes').as_posix()}" in commands[1]
    assert all("trainer.max_steps=3" in command for command in commands)
    assert "encoder=savi" in commands[1]
    for own in ("weights.contrast=2", "+data.x=1"):
        assert own in commands[1] and own not in commands[0]
    table = (tmp_path / "table.md").read_text()
    assert table.count("\n") == 6
    module.main()
    assert len(commands) == 2
    assert capsys.readouterr().out == table * 2


def test_a_failed_run_ends_the_comparison_with_its_code(load_script, stand_in, tmp_path):
    stand_in(lambda command, *, env: 7)
    with pytest.raises(SystemExit) as stop:
        load_script("comparison").run("pretrain_slots", tmp_path / "run", [])
    assert stop.value.code == 7
