import json
import sys
from pathlib import Path

import pytest

SCORES = {"video_fg_ari": 0.5, "video_mbo_i": 0.25, "fg_ari": 0.75, "mbo_i": 0.125}
COSTS = {"train/frames_per_second": 200.4, "train/peak_megabytes": 900.6}


class Recorder:
    """Stands for the scripts: leaves what they leave, or fails."""

    def __init__(self, failing=()):
        self.commands, self.failing = [], failing

    def __call__(self, command, *, env, output):
        options = dict(argument.split("=", 1) for argument in command[2:])
        run = Path(options["hydra.run.dir"])
        self.commands.append((Path(command[1]).stem, run.name, options, env["OMP_NUM_THREADS"]))
        if run.name in self.failing:
            output.write("collecting\nthe disk is full\n")
            return 3
        table = {name: {"entities": SCORES} for name in ("model", "grid", "k-means")}
        (run / "checkpoint").mkdir()
        (run / "metrics.json").write_text(json.dumps({"table": table}))
        (run / "checkpoint/meta.json").write_text(json.dumps({"metrics": COSTS}))
        return 0


@pytest.fixture
def compare(load_script, stand_in, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    module = load_script("compare_methods")

    def start(*arguments, failing=()):
        recorder = Recorder(failing)
        stand_in(recorder)
        monkeypatch.setattr(sys, "argv", ["x", "--output", str(tmp_path), *arguments])
        module.main()
        return recorder.commands

    return start


def test_every_method_gets_the_same_and_what_it_needs_comes_first(compare, tmp_path, capsys):
    options = ["--envs", "sprites", "--methods", "spot_student", "savi", "--seeds", "4"]
    commands = compare(*options, "--", "data.batch_size=2")
    names = [name for _, name, _, _ in commands]
    assert names[0] == "sprites-episodes" and commands[0][0] == "collect_rollouts"
    order = [names.index(f"sprites-{m}-4") for m in ("slot_attention", "spot", "spot_student")]
    assert order == sorted(order) and len(names) == 5
    for job, name, options, threads in commands[1:]:
        assert job == "pretrain_slots" and options["trainer.seed"] == "4"
        assert options["data.path"] == (tmp_path / "sprites-episodes/episodes").as_posix()
        assert options["data.batch_size"] == "2" and int(threads) >= 1
        assert options["experiment"] == f"small/{name.split('-')[1]}"
    last = dict((name, options) for _, name, options, _ in commands)
    assert last["sprites-spot_student-4"]["teacher"] == (tmp_path / "sprites-spot-4").as_posix()
    assert commands[0][2]["env.size"] == "36"
    rows = (tmp_path / "table.md").read_text().splitlines()
    assert rows[2] == (
        "| sprites | spot_student | entities | 0.500 | 0.250 | 0.750 | 0.125 | 200 | 901 |"
    )
    assert [row.split(" | ")[1] for row in rows[3:]] == ["savi", "grid", "k-means"]
    assert rows[-1].endswith("| 0.125 |  |  |")
    assert compare("--envs", "sprites", "--methods", "savi", "--seeds", "4") == []
    assert "sprites-savi-4: " in capsys.readouterr().err


def test_a_failed_run_ends_with_its_last_sentence_and_keeps_the_others(compare, tmp_path, capsys):
    options = ["--envs", "sprites", "--methods", "savi", "psb", "--seeds", "0"]
    with pytest.raises(SystemExit) as stop:
        compare(*options, failing=["sprites-psb-0"])
    assert stop.value.code == 3
    assert "sprites-psb-0: the disk is full" in capsys.readouterr().err
    assert not (tmp_path / "table.md").exists()
    assert [name for _, name, _, _ in compare(*options)] == ["sprites-psb-0"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--methods", "spt"], "there is no method 'spt'; there are dinosaur"),
        (["--envs", "sprits"], "Did you mean 'sprites'?"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
    ],
)
def test_mistakes_end_in_one_sentence(compare, capsys, arguments, sentence):
    with pytest.raises(SystemExit, match="2"):
        compare(*arguments)
    assert sentence in capsys.readouterr().err
