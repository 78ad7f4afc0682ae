"""The scripts of set prediction as a user starts them, on tiny models."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from ocrl.data.store import EpisodeStore, EpisodeWriter

ROOT = Path(__file__).parents[2]
SMALL = [
    "env=sprites",
    "experiment=set_prediction",
    "env.size=32",
    "env.num_objects=[1,2]",
    "image_size=[32,32]",
    "num_slots=3",
    "slot_dim=16",
    "encoder.backbone.channels=[16,16]",
    "encoder.backbone.strides=[2,2]",
    "encoder.num_iterations=1",
    "collect.num_steps=60",
    "collect.num_workers=0",
    "collect.episode_length=10",
    "data.batch_size=8",
    "trainer.max_steps=4",
    "trainer.device=cpu",
    "evaluation.num_clips=12",
    "evaluation.num_clips_in_training=4",
    "trainer.evaluate_every=2",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("properties")


@pytest.fixture(scope="module")
def run(run_script, folder):
    return partial(run_script, folder=folder)


@pytest.fixture(scope="module")
def workplace(run, folder):
    done = run("train_properties", *SMALL, "name=run")
    assert done.returncode == 0, done.stderr
    return folder


def test_training_measures_the_set(workplace):
    record = json.loads((workplace / "outputs/train_properties/run/metrics.json").read_text())
    figures = record["figures"]
    assert {"ap/inf", "ap/1", "ap/0.0625", "accuracy/shape", "distance", "count"} <= set(figures)
    assert all(0 <= value <= 1 for name, value in figures.items() if name != "distance")
    assert record["num_frames"] == 12 and record["num_objects"] > 12
    assert record["details"]["encoder"] == "slot_attention"


def test_a_checkpoint_is_evaluated_again(run, workplace):
    path = "outputs/train_properties/run"
    options = [f"checkpoint={path}", f"data.path={path}/episodes"]
    done = run("evaluate_properties", *options, "data.num_clips=12", "device=cpu")
    assert done.returncode == 0, done.stderr
    again = json.loads((workplace / "outputs/evaluate_properties/default/metrics.json").read_text())
    before = json.loads((workplace / path / "metrics.json").read_text())
    assert again["figures"] == pytest.approx(before["figures"], abs=1e-6)
    assert "ap/0.25" in done.stderr


def without_tables(workplace):
    store = EpisodeStore(workplace / "outputs/train_properties/run/episodes")
    with EpisodeWriter(workplace / "bare", metadata=dict(store.metadata)) as writer:
        for index in range(len(store)):
            arrays = store.episode(index)
            writer.append({name: x for name, x in arrays.items() if "objects/" not in name})
    return "bare"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["num_slots=2"], "num_slots of at least 3"),
        (["+decoder.spec.factors.material=[a,b]"], "factor 'material' in the object tables"),
        (["decoder.spec.factors.shape=[circle,cirle]"], "got 'cirle'"),
    ],
)
def test_mistakes_end_in_one_sentence(run, workplace, options, words):
    path = "data.path=outputs/train_properties/run/episodes"
    done = run("train_properties", *SMALL, path, *options, "name=mistake")
    assert done.returncode == 1
    assert words in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1
    assert not (workplace / "outputs/train_properties/mistake/checkpoint").exists()


def test_evaluation_of_what_has_no_tables_ends_in_one_sentence(run, workplace):
    options = ["checkpoint=outputs/train_properties/run", f"data.path={without_tables(workplace)}"]
    done = run("evaluate_properties", *options, "device=cpu", "name=bare")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "expected object tables" in done.stderr


@pytest.fixture
def harness(load_script):
    return load_script("compare_set_prediction")


def pretend(commands):
    """Stands for a training whose precision is a tenth for each seed more."""

    def start(command, *, env):
        commands.append(command)
        options = dict(argument.split("=", 1) for argument in command[2:])
        run = Path(options["hydra.run.dir"])
        run.mkdir(parents=True)
        precision = 0.5 + 0.1 * int(options["trainer.seed"])
        figures = {"ap/inf": precision, "ap/0.25": 0.25, "ap/1": 0.75, "distance": 1.5}
        details = {"parameters": "1,000", "encoder": options["encoder"]}
        record = {"figures": figures, "num_objects": 7, "details": details}
        (run / "metrics.json").write_text(json.dumps(record))
        return 0

    return start


def test_the_harness_gives_every_method_the_same_and_reports_the_spread(
    harness, stand_in, monkeypatch, tmp_path, capsys
):
    commands = []
    stand_in(pretend(commands))
    methods = ["slot_attention", "vq_sa,start_from=RUN", "slot_mlp"]
    options = ["--env", "sprites-reach", "--methods", *methods, "--seeds", "0", "2"]
    options += ["--iterations", "5", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["x", *options, "--", "trainer.max_steps=9"])
    harness.main()
    assert len(commands) == 6
    shared = {"env=sprites-reach", "experiment=set_prediction", "trainer.max_steps=9"}
    shared.add("properties@decoder.spec=sprites")
    assert all(shared <= set(command) for command in commands)
    assert "encoder.num_iterations=5" in commands[0]
    assert {"encoder.encoder.num_iterations=5", "start_from=RUN"} <= set(commands[2])
    assert not any("num_iterations" in argument for argument in commands[4])
    path = f"data.path={(tmp_path / 'sprites-reach-slot_attention-0' / 'episodes').as_posix()}"
    assert path not in commands[0] and all(path in command for command in commands[1:])
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0] == "| method | parameters | AP inf | AP 1 | AP 0.25 | distance |"
    row = "| 1,000 | 60.0 +- 14.1 | 75.0 +- 0.0 | 25.0 +- 0.0 | 1.50 +- 0.00 |"
    assert lines[2:] == [f"| {name} {row}" for name in ("slot_attention", "vq_sa", "slot_mlp")]
    record = json.loads((tmp_path / "metrics.json").read_text())["methods"]["vq_sa"]
    assert record["figures"]["ap/inf"]["values"] == [0.5, 0.7]
    harness.main()
    assert len(commands) == 6
    monkeypatch.setattr(sys, "argv", ["x", "--methods", "dspn", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        harness.main()
    assert "there is no method 'dspn'; there are slot_attention" in capsys.readouterr().err
