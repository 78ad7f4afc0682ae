"""Studies: what is trained, in which order, and what a wrong file says."""

import json
import re
import shlex
import sys
import threading
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "results").glob("*.yaml") if path.stem != "published")
STUDY = {
    "encoders": {
        "idle": ["env=sprites"],
        "first": ["env=sprites"],
        "second": ["start_from={first}", "data.path={first}/episodes"],
    },
    "shared": ["agent.evaluate_every=0"],
    "agents": {
        "reach-objects": ["obs=objects", "name=${env.size}"],
        "reach-slots": ["obs=slots", "encoder.path={second}"],
        "goal-slots": ["obs=slots", "encoder.path={first}"],
    },
}
WORLDS = {
    "encoders": {"first": ["env=sprites"]},
    "shared": ["env=sprites-reach"],
    "worlds": {
        "reach-graph": ["dynamics=graph", "checkpoint={first}"],
        "reach-window-2": ["dynamics.window=2", "checkpoint={first}"],
    },
}
VIEWS = {
    "encoders": {"first": ["env=scenes3d"]},
    "shared": ["env=scenes3d", "data.path={first}/episodes"],
    "views": {"psb": [], "savi": ["encoder=savi_posed"]},
}
POSED = {
    "details": {},
    "training": {"steps": 7},
    **{"num_clips": 4, "num_frames": 32, "num_views": 5, "num_seen": 3},
    "segments": {"model": {"fg_ari": 0.123456}},
    "pictures": {"model": {"psnr": 20.0}},
    "per_clip": {"model": {"fg_ari": [0.1, 0.2]}},
}
MEASURED = {
    "details": {"environment": "sprites-reach", "slots": "encoders/first"},
    "horizons": [1],
    "num_clips": 2,
    "table": {"psnr": {name: [0.123456] for name in ("prediction", "copy", "encoder")}},
}


class Recorder:
    """Stands for the scripts: leaves what they leave, or fails."""

    def __init__(self, failing=(), stopped=None, slow=None):
        self.commands, self.failing, self.stopped = [], failing, stopped
        self.slow, self.others_are_through = slow, threading.Event()
        self.lock = threading.Lock()

    def __call__(self, command, *, env, output):
        options = dict(argument.split("=", 1) for argument in command[2:])
        run = Path(options["hydra.run.dir"])
        for name in ("start_from", "encoder.path"):
            assert name not in options or (Path(options[name]) / "metrics.json").is_file()
        with self.lock:
            self.commands.append((Path(command[1]).stem, run.name, options))
        if run.name == self.stopped:
            raise KeyboardInterrupt
        if run.name == self.slow:
            assert self.others_are_through.wait(timeout=20)
        elif Path(command[1]).stem == "train_agent":
            self.others_are_through.set()
        if run.name in self.failing:
            output.write("training\nthe disk is full\n")
            return 3
        is_agent = Path(command[1]).stem == "train_agent"
        is_posed = options.get("env") == "scenes3d"
        text = "{}" if is_agent else json.dumps(POSED if is_posed else MEASURED)
        (run / ("evaluation.json" if is_agent else "metrics.json")).write_text(text)
        words = ["python", f"scripts/{Path(command[1]).name}", *command[2:-1]]
        (run / "command.txt").write_text(f"{shlex.join(words)}\n")
        return 0


@pytest.fixture
def study(load_script, stand_in, monkeypatch, tmp_path):
    module = load_script("run_study")
    compared = []
    monkeypatch.setattr(module, "write_comparison", compared.append)
    file = tmp_path / "reach.yaml"
    file.write_text(yaml.safe_dump(STUDY))

    def start(*arguments, content=None, **recorded):
        if content is not None:
            file.write_text(content)
        recorder = Recorder(**recorded)
        stand_in(recorder)
        output = ["--output", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["run_study.py", str(file), *output, *arguments])
        compared.clear()
        module.main()
        return recorder.commands, compared[0] if compared else None

    return start


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_encoders_come_before_the_agents_that_need_them(study, tmp_path, jobs):
    commands, compared = study("--seeds", "4", "5", "--jobs", jobs, "--", "agent.total_steps=9")
    encoders = [name for job, name, _ in commands if job == "pretrain_slots"]
    assert encoders == ["first", "second"]
    agents = {name: options for job, name, options in commands if job == "train_agent"}
    assert agents.keys() == {f"{name}-{seed}" for name in STUDY["agents"] for seed in (4, 5)}
    told = agents["reach-slots-5"]
    assert told["encoder.path"] == (tmp_path / "out/encoders/second").as_posix()
    assert told["agent.seed"] == "5" and told["agent.total_steps"] == "9"
    assert told["agent.evaluate_every"] == "0"
    assert agents["reach-objects-4"]["name"] == "${env.size}"
    second = next(options for _, name, options in commands if name == "second")
    assert second["data.path"] == (tmp_path / "out/encoders/first/episodes").as_posix()
    assert {path.name for path in compared.runs} == agents.keys() and compared.write is None


def test_a_run_may_name_another_of_its_seed(study, tmp_path):
    agents = {
        **STUDY["agents"],
        "reach-planned": ["obs=slots", "world_model.path={reach-slots}", "encoder.path={first}"],
    }
    content = yaml.safe_dump({**STUDY, "agents": agents}, sort_keys=False)
    commands, compared = study("--only", "*-planned", "--seeds", "3", "4", content=content)
    names = [name for job, name, _ in commands if job == "train_agent"]
    assert sorted(names) == sorted(f"reach-{n}-{s}" for n in ("slots", "planned") for s in (3, 4))
    for seed in (3, 4):
        assert names.index(f"reach-slots-{seed}") < names.index(f"reach-planned-{seed}")
        told = next(options for _, name, options in commands if name == f"reach-planned-{seed}")
        assert told["world_model.path"] == (tmp_path / f"out/agents/reach-slots-{seed}").as_posix()
    assert {path.name for path in compared.runs} == set(names)
    # No other way round, and not both under one name.
    turned = dict(reversed(agents.items()))
    with pytest.raises(SystemExit):
        study(content=yaml.safe_dump({**STUDY, "agents": turned}, sort_keys=False))
    with pytest.raises(SystemExit):
        study(content=yaml.safe_dump({**STUDY, "agents": {"first": ["obs=slots"]}}))


def test_nobody_waits_for_an_encoder_while_there_is_other_work(study):
    commands, _ = study("--seeds", "0", "--jobs", "2", slow="first")
    assert {name for _, name, _ in commands[:2]} == {"first", "reach-objects-0"}


def test_what_is_finished_is_not_repeated_and_a_part_can_be_chosen(study, tmp_path):
    commands, compared = study("--only", "goal-*", "--seeds", "0", "--write")
    assert [name for _, name, _ in commands] == ["first", "goal-slots-0"]
    assert compared.write == tmp_path / "reach"
    commands, _ = study("--seeds", "0")
    assert [name for _, name, _ in commands] == ["second", "reach-objects-0", "reach-slots-0"]
    # Asked for something else the script itself has to say what that means for a finished run.
    commands, _ = study("--only", "goal-*", "--seeds", "0", "--", "agent.total_steps=9")
    assert [name for _, name, _ in commands] == ["goal-slots-0"]
    (tmp_path / "out/agents/goal-slots-0/command.txt").unlink()
    assert study("--only", "goal-*", "--seeds", "0")[0] == []


def test_a_run_that_fails_ends_the_study_with_its_last_words(study, capsys):
    with pytest.raises(SystemExit) as stopped:
        study("--seeds", "0", "--jobs", "2", failing=["second"])
    assert stopped.value.code == 3
    assert "second: the disk is full" in capsys.readouterr().err
    commands, _ = study("--seeds", "0")
    assert "first" not in [name for _, name, _ in commands]


def test_ctrl_c_ends_it_with_a_sentence(study, capsys):
    with pytest.raises(SystemExit) as stopped:
        study("--seeds", "0", stopped="reach-objects-0")
    assert stopped.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_world_models_are_trained_and_set_side_by_side(study, tmp_path, capsys):
    commands, compared = study("--seeds", "1", "2", "--write", content=yaml.safe_dump(WORLDS))
    assert compared is None
    assert [(job, name) for job, name, _ in commands] == [
        ("pretrain_slots", "first"),
        *(
            ("train_world_model", f"{name}-{seed}")
            for seed in (1, 2)
            for name in ("reach-graph", "reach-window-2")
        ),
    ]
    told = commands[-1][2]
    assert told["checkpoint"] == (tmp_path / "out/encoders/first").as_posix()
    assert told["trainer.seed"] == "2" and told["env"] == "sprites-reach"
    text = (tmp_path / "out/table.md").read_text()
    assert capsys.readouterr().out == text
    assert "| reach-graph | 2 | 0.1 (+- 0.0) |" in text and "| reach-window-2 | 2 |" in text
    kept = tmp_path / "reach/reach-window-2-1"
    assert json.loads((kept / "metrics.json").read_text())["table"]["psnr"]["copy"] == [0.1235]
    command = (kept / "command.txt").read_text()
    start = "python scripts/train_world_model.py env=sprites-reach dynamics.window=2 checkpoint="
    assert command.startswith(start)


def test_models_of_posed_views_are_trained_and_set_side_by_side(study, tmp_path, capsys):
    commands, compared = study("--seeds", "0", "1", "--write", content=yaml.safe_dump(VIEWS))
    assert compared is None
    assert [(job, name) for job, name, _ in commands] == [
        ("pretrain_slots", name) for name in ("first", "psb-0", "savi-0", "psb-1", "savi-1")
    ]
    told = commands[-1][2]
    assert told["encoder"] == "savi_posed" and told["trainer.seed"] == "1"
    assert told["data.path"] == (tmp_path / "out/encoders/first/episodes").as_posix()
    assert told["hydra.run.dir"] == (tmp_path / "out/views/savi-1").as_posix()
    text = (tmp_path / "out/table.md").read_text()
    assert capsys.readouterr().out == text and "| savi | 2 | decoder | 0.123 +- 0.000 |" in text
    kept = json.loads((tmp_path / "reach/psb-0/metrics.json").read_text())
    assert kept["segments"]["model"]["fg_ari"] == 0.1235 and "per_clip" not in kept


def test_encoders_of_a_study_beside_it_are_trained_where_that_has_them(study, tmp_path):
    other = {"encoders": STUDY["encoders"], "agents": {}}
    (tmp_path / "toys.yaml").write_text(yaml.safe_dump(other))
    borrowing = {
        "encoders_of": ["toys"],
        "encoders": {"own": ["start_from={second}"]},
        "agents": {"goal": ["encoder.path={own}"]},
    }
    commands, _ = study("--seeds", "0", content=yaml.safe_dump(borrowing))
    runs = [options["hydra.run.dir"] for _, _, options in commands]
    folders = ["toys/encoders/first", "toys/encoders/second", "out/encoders/own"]
    assert runs == [(tmp_path / folder).as_posix() for folder in (*folders, "out/agents/goal-0")]
    assert commands[2][2]["start_from"] == runs[1] and commands[3][2]["encoder.path"] == runs[2]


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        (
            "agents: {a: ['x={b}']}",
            [],
            "a: there is no encoder or run before it 'b'; there are none",
        ),
        ("encoders: {a: ['x={b}'], b: [y=1]}\nagents: {}", [], "no encoder or run before it 'b'"),
        ("agents: {a: x=1}", [], "expected a list of options for a, got 'x=1'"),
        ("agents: {a: [1]}", [], "expected a list of options for a"),
        ("[1, 2]", [], r"a study with encoders_of, .*, views, got \[1, 2\]"),
        (
            "agents: {a: []}\nworlds: {a: []}",
            [],
            "expected a study with one of agents, worlds and views",
        ),
        ("shared: [x=1]", [], "expected a study with one of agents, worlds and views"),
        ("encoders_of: [nothing]\nagents: {a: []}", [], "no study at .*nothing.yaml"),
        ("encoders_of: nothing\nagents: {a: []}", [], "expected a list of options for encoders_of"),
        (
            "encoders_of: [reach]\nencoders: {b: []}\nagents: {a: []}",
            [],
            "reach and reach both have an encoder b",
        ),
        ("worlds: {a: []}", ["--only", "b"], "there is no world 'b'"),
        ("agents: {a: []}\nseeds: [1]", [], "expected a study with"),
        ("a: [", [], "is no YAML"),
        (None, ["--only", "goal"], "there is no agent 'goal'.*Did you mean 'goal-slots'"),
        (None, ["--jobs", "0"], "--jobs must be at least 1"),
    ],
)
def test_a_wrong_file_or_option_is_explained(study, capsys, content, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        study(*arguments, content=content)
    assert stopped.value.code == 2
    message = " ".join(capsys.readouterr().err.split())
    assert re.search(said, message), message


def test_a_missing_file_is_explained(study, tmp_path, capsys):
    (tmp_path / "reach.yaml").unlink()
    with pytest.raises(SystemExit):
        study()
    assert "there is no study at" in capsys.readouterr().err


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_studies_of_results_have_options_that_there_are(load_script, path):
    module = load_script("run_study")
    found = module.read_study(path)
    names = {module.AGENTS: "agent", module.WORLDS: "world_model", module.VIEWS: "pretrain"}
    runs_of = names[found.kind]
    scripts = [("pretrain", found.encoders), (runs_of, found.runs)]
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
        for config, runs in scripts:
            for options in runs.values():
                own = [option.split("=")[1] for option in options if option.startswith("env=")]
                family = own[0].split("-")[0]
                group = {"agent": "task", "pretrain": "experiment"}.get(config)
                is_said = any(option.startswith(f"{group}=") for option in options)
                beside = [] if group is None or is_said else [f"{group}={family}"]
                plain = [re.sub(r"\{[\w-]+\}", "run", option) for option in options]
                compose(config, overrides=[*plain, *beside])
