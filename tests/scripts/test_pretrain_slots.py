import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ocrl
from ocrl import checkpoint

ROOT = Path(__file__).parents[2]
SMALL = [
    "env=sprites",
    "env.size=32",
    "image_size=[32,32]",
    "num_slots=4",
    "slot_dim=16",
    "encoder=slot_attention",
    "encoder.backbone.channels=[16,16]",
    "encoder.backbone.strides=[2,2]",
    "encoder.num_iterations=1",
    "decoder=broadcast_coarse",
    "decoder.channels=[16,16]",
    "collect.num_steps=200",
    "collect.num_workers=0",
    "collect.episode_length=20",
    "collect.policy=random",
    "data.batch_size=4",
    "data.clip_length=3",
    "evaluation.num_clips=2",
    "evaluation.clip_length=4",
    "evaluation.num_clips_in_training=1",
    "trainer.log_every=1",
    "name=small",
]


def start(directory, *arguments, launcher=(), env=None):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
    command = [sys.executable, *launcher, str(ROOT / "scripts" / "pretrain_slots.py")]
    return subprocess.Popen(
        [*command, *SMALL, *arguments],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def run(run_script):
    def to_the_end(folder, *arguments):
        done = run_script("pretrain_slots", *SMALL, *arguments, folder=folder)
        return done.returncode, done.stderr

    return to_the_end


def run_directory(directory):
    return directory / "outputs" / "pretrain_slots" / "small"


def weights_of(directory):
    return checkpoint.read_weights(run_directory(directory))


def test_one_command_collects_trains_and_measures(run, tmp_path):
    code, err = run(tmp_path, "trainer.max_steps=6", "trainer.evaluate_every=3")
    assert code == 0, err
    directory = run_directory(tmp_path)
    names = {path.name for path in directory.iterdir()}
    assert {"checkpoint", "episodes", "tensorboard"} <= names
    assert {"metrics.json", "overlay.mp4", "examples.png", "report.html"} <= names
    # Nothing else was written: everything is in the run's directory.
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    assert [path.name for path in directory.parent.iterdir()] == ["small"]

    model = ocrl.load(directory)
    assert (model.encoder.num_slots, model.encoder.slot_dim) == (4, 16)
    meta = checkpoint.read_meta(directory)
    assert meta["step"] == 6 and meta["env"] == "sprites" and len(meta["fingerprint"]) > 8
    assert "entities/video_fg_ari" in meta["metrics"]
    table = json.loads((directory / "metrics.json").read_text())["table"]
    assert set(table) == {"model", "grid", "k-means"} and "entities" in table["model"]
    for said in ("episodes of sprites: ", "frames/s", "model: video FG-ARI", "report.html"):
        assert said in err, err


def test_frames_of_another_size_are_refused_before_anything_is_collected(run, tmp_path):
    code, err = run(tmp_path, "image_size=[48,48]")
    assert code == 1 and err.count("\n") == 1, err
    assert "image_size=[48, 48]" in err and "(32, 32, 3)" in err
    assert not (run_directory(tmp_path) / "episodes").exists()


@pytest.mark.slow
def test_episodes_of_another_environment_are_refused(run, tmp_path):
    assert run(tmp_path, "trainer.max_steps=1")[0] == 0
    path = run_directory(tmp_path) / "episodes"
    arguments = [f"data.path={path}", "name=other", "env=sprites-reach"]
    code, err = run(tmp_path, *arguments)
    assert code == 1 and "ocrl/Sprites-Reach-v0" in err and "ocrl/Sprites-v0" in err
    code, err = run(tmp_path, f"data.path={path}", "name=other", "env.action_kind=continuous")
    assert code == 1 and "Box" in err and "Discrete" in err


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_ends_with_the_same_weights(run, tmp_path):
    arguments = ["trainer.max_steps=60", "trainer.checkpoint_every=7", "trainer.evaluate_every=25"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert run(whole, *arguments)[0] == 0
    for _ in range(2):
        process = start(killed, *arguments)
        before = step_of(killed)
        while step_of(killed) <= before and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert step_of(killed) < 60
    code, err = run(killed, *arguments)
    assert code == 0, err
    assert "going on at step" in err
    one, other = weights_of(whole), weights_of(killed)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def step_of(directory):
    try:
        return int(checkpoint.read_meta(run_directory(directory))["step"])
    except FileNotFoundError:
        return -1


@pytest.mark.slow
def test_ctrl_c_saves_says_how_to_go_on_and_exits_130(tmp_path):
    arguments = ["trainer.max_steps=100000", "trainer.checkpoint_every=100000"]
    process = start(tmp_path, *arguments, "trainer.evaluate_every=0")
    for line in process.stderr:
        if "training" in line:
            break
    events = run_directory(tmp_path) / "tensorboard"
    while not events.exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 130, err
    last = err.strip().splitlines()[-1]
    assert "stopped after step" in last and "same command" in last
    assert step_of(tmp_path) > 0


@pytest.mark.slow
def test_two_processes_under_torchrun_share_the_main_job(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = start(tmp_path, "trainer.max_steps=4", launcher=launcher)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert step_of(tmp_path) == 4
    assert err.count("episodes of sprites: ") == 1 and err.count("report.html") == 1
