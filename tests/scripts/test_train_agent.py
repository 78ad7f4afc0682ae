"""One command trains an agent from what it sees, goes on where it stopped, and says what is wrong.

The models and episodes are those of `workplace`: sprites of 32 pixels.
"""

import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from ocrl import checkpoint
from ocrl.agents import load, saving
from ocrl.nn.location import NUM_GEOMETRY

ROOT = Path(__file__).parents[2]
BROADCAST = ("decoder=broadcast", "decoder.channels=[8]", "decoder.strides=[4]")
SMALL = (
    *("env=sprites-object_comparison", "env.size=32", "env.max_steps=20"),
    *("agent.num_envs=2", "agent.arguments.n_steps=16", "agent.arguments.batch_size=16"),
    *("agent.total_steps=200", "agent.log_every=64", "agent.checkpoint_every=64"),
    *("agent.evaluate_every=96", "evaluation.num_episodes=2", "pooling.dim=8"),
    "pooling.num_heads=2",
)
NOISY = ("encoder.mode=gradient", "observation.is_noisy=true")


def save_model(folder, overrides):
    """A small untrained slot model, as a run leaves it."""
    common = [
        *("num_slots=4", "slot_dim=8", "image_size=[32,32]"),
        *("encoder.backbone.channels=[8]", "encoder.backbone.strides=[4]"),
    ]
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
        config = compose("pretrain", overrides=[*overrides, *common])
    model = {"_target_": "ocrl.model.SlotModel", "is_conditioned": False}
    for part in ("encoder", "decoder", "objectives", "weights"):
        model[part] = checkpoint.plain(config[part])
    checkpoint.save(
        folder / "checkpoint", checkpoint.build(model), config=model, step=1, env="sprites"
    )


def rows(directory):
    with (directory / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "options",
    [
        ("obs=objects",),
        ("obs=slots", "encoder.path=run"),
        pytest.param(("obs=pixels", "vision.out_dim=16"), marks=pytest.mark.slow),
    ],
    ids=["objects", "slots", "pixels"],
)
def test_one_command_trains_an_agent_and_knows_when_it_is_done(workplace, options):
    name = options[0].partition("=")[2]
    done = workplace.run("train_agent", *SMALL, *options, f"name={name}")
    assert done.returncode == 0, done.stderr
    directory = workplace.output("train_agent", name)
    assert {path.name for path in directory.iterdir()} >= {"agent", "progress.csv", "tensorboard"}
    meta = saving.read_meta(directory)
    assert meta["step"] == 224 and meta["env"] == "sprites-object_comparison"
    assert meta["env_arguments"]["size"] == 32
    assert (meta["encoder"] is None) == (name != "slots")
    assert [int(row["step"]) for row in rows(directory)][-1] == 224
    assert all(0 <= float(row["success"]) <= 1 for row in rows(directory) if row["success"])
    assert "evaluation at step 96" in done.stderr
    # The same as a picture that moves.
    events = b"".join(path.read_bytes() for path in (directory / "tensorboard").iterdir())
    assert b"evaluation/episode" in events and b"GIF89a" in events
    agent = load(directory)
    if name == "slots":
        turn = agent.features.whitenings["slots"].turn
        assert len(turn) == agent.policy.observation_space.shape[1] - NUM_GEOMETRY
        assert not turn.equal(torch.eye(len(turn)))
        assert saving.encoder_path(directory) == (workplace.folder / "run/checkpoint").resolve()
    again = workplace.run("train_agent", *SMALL, *options, f"name={name}")
    assert again.returncode == 0 and "nothing to do" in again.stderr
    assert saving.read_meta(directory) == meta
    command = shlex.split((directory / "command.txt").read_text())
    assert command == ["python", "scripts/train_agent.py", *SMALL, *options, f"name={name}"]
    other = workplace.run("train_agent", *SMALL, *options, f"name={name}", "agent.match_dim=5")
    assert other.returncode == 1 and "was trained to its end in another run" in other.stderr
    assert shlex.split((directory / "command.txt").read_text()) == command


def test_without_an_encoder_it_pretrains_one_and_says_so(workplace):
    options = [
        *("trainer.max_steps=2", "num_slots=4", "slot_dim=8", "collect.num_steps=60"),
        *("collect.num_workers=0", "collect.episode_length=10", "collect.policy=random"),
        *("data.batch_size=2", "evaluation.num_clips=2", "evaluation.clip_length=3"),
        *("evaluation.num_clips_in_training=1",),
    ]
    pretrain = ",".join(f'"{option}"' for option in options)
    arguments = [*SMALL, f"encoder.pretrain=[{pretrain}]", "agent.total_steps=32", "name=alone"]
    done = workplace.run("train_agent", *arguments)
    assert done.returncode == 0, done.stderr
    assert "no encoder.path given: pretraining slots of sprites-object_comparison" in done.stderr
    directory = workplace.output("train_agent", "alone")
    assert saving.read_meta(directory)["encoder"]["path"] == "encoder/checkpoint"
    assert saving.encoder_path(directory) == directory / "encoder/checkpoint"
    longer = workplace.run("train_agent", *arguments, "agent.total_steps=64")
    assert longer.returncode == 0 and "pretraining" not in longer.stderr, longer.stderr
    assert "going on at step 32" in longer.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slot_attention", "savi"])
@pytest.mark.parametrize("mode", ["replay", "gradient"])
def test_the_encoder_learns_on(workplace, mode, name):
    save_model(workplace.folder / name, [f"encoder={name}", *BROADCAST])
    options = [
        *SMALL,
        *("obs=slots", f"encoder.path={name}", f"encoder.mode={mode}", "encoder.every=1"),
        *("encoder.replay.num_steps=1", "encoder.replay.batch_size=4", f"name={mode}-{name}"),
        f"encoder.replay.episodes={workplace.folder / 'episodes'}",
    ]
    done = workplace.run("train_agent", *options)
    assert done.returncode == 0, done.stderr
    directory = workplace.output("train_agent", f"{mode}-{name}")
    meta = saving.read_meta(directory)
    assert meta["observation"]["main"] == ("slots" if mode == "replay" else "frame")
    path = saving.encoder_path(directory)
    assert path == directory / "agent/encoder" or mode == "gradient"
    agent = load(directory)
    assert (agent.features.encoder is not None) == (mode == "gradient")
    longer = workplace.run("train_agent", *options, "agent.total_steps=230")
    assert longer.returncode == 0 and "going on at step 224" in longer.stderr, longer.stderr
    played = workplace.run("evaluate_agent", f"checkpoint={directory}", "episodes=2")
    assert played.returncode == 0, played.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("obs=slots", "encoder.path=run", "env.size=48"), "(32, 32, 3)"),
        (("obs=slots", "encoder.path=run", "env=crafter", "~env.max_steps"), "trained on sprites"),
        (("obs=objects", "agent=dqn", "env.action_kind=continuous"), "discrete actions for dqn"),
        (("obs=slots", "encoder.path=run", *NOISY), "is_noisy=false for encoder.mode=gradient"),
        (("obs=object",), "Did you mean 'objects'?"),
    ],
    ids=["size", "environment", "actions", "noise", "name"],
)
def test_a_mistake_is_one_sentence(workplace, options, words):
    kept = [o for o in SMALL if not (o.startswith("agent.arguments") and "agent=dqn" in options)]
    if "env=crafter" in options:
        kept, options = [], options[:-1]
    workplace.assert_mistake("train_agent", *kept, *options, words=words)


@pytest.mark.slow
def test_another_encoder_is_another_run(workplace):
    options = [*SMALL, "obs=slots", "agent.total_steps=32", "name=exchanged"]
    assert workplace.run("train_agent", *options, "encoder.path=run").returncode == 0
    done = workplace.run("train_agent", *options, "encoder.path=features", "agent.total_steps=64")
    assert done.returncode == 1 and "belongs to another run: its encoder." in done.stderr


@pytest.mark.parametrize("processes", [pytest.param(False, marks=pytest.mark.slow), True])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(workplace, processes):
    name = f"stopped-{processes}"
    options = [*SMALL, "obs=objects", "agent.total_steps=1000000", f"agent.processes={processes}"]
    command = [sys.executable, str(ROOT / "scripts/train_agent.py"), *options, f"name={name}"]
    process = subprocess.Popen(
        command,
        cwd=workplace.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    directory = workplace.output("train_agent", name)
    for _ in range(1800):
        if (directory / "progress.csv").is_file() or process.poll() is not None:
            break
        time.sleep(0.1)
    # As a terminal does it: to every process of the group.
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "the same command goes on from there" in err.strip().splitlines()[-1]
    assert saving.trained_steps(directory) >= 64
