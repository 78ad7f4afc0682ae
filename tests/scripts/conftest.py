"""A folder to start scripts in: tiny untrained models, episodes of sprites, and some without."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from ocrl import checkpoint
from ocrl.data.store import EpisodeWriter
from ocrl.envs.collect import collect

ROOT = Path(__file__).parents[2]
COMMON = (
    *("env=sprites", "env.size=32", "num_slots=4", "slot_dim=8", "image_size=[32,32]"),
    *("encoder.backbone.channels=[8]", "encoder.backbone.strides=[4]"),
)
BROADCAST = ("decoder=broadcast", "decoder.channels=[8]", "decoder.strides=[4]")
CODES = ("encoder=vq_sa", "encoder.quantizer.sizes=[4,3]", "encoder.quantizer.code_dim=4")
MODELS = {
    "run": ("encoder=savi", *BROADCAST),
    "coded": (*CODES, *BROADCAST),
    "palette": ("encoder=savi", "decoder=palette", "decoder.patch_size=4"),
    "features": ("encoder=savi", "decoder=mlp", "decoder.patch_size=4"),
}


@pytest.fixture
def load_script(monkeypatch):
    """Import a script by its name, with those beside it."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module


@pytest.fixture
def stand_in(load_script, monkeypatch):
    """Put a function in the place of `processes.call`: nothing is started."""
    return lambda function: monkeypatch.setattr(load_script("comparison"), "call", function)


class Scripts:
    """Runs scripts to their end, as `subprocess.run` would, see `fork_server.py`."""

    def __init__(self, folder):
        self.folder = folder
        self.env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.env,
        )

    def __call__(self, script, *options, folder, path=()):
        """Run `scripts/<script>.py` in a folder, with more folders to import from."""
        argv = [str(ROOT / "scripts" / f"{script}.py"), *map(str, options)]
        out, err = self.folder / "stdout", self.folder / "stderr"
        request = {"argv": argv, "cwd": str(folder), "stdout": str(out), "stderr": str(err)}
        request["env"] = {
            **self.env,
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path))),
        }
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        code = self.server.stdout.readline()
        if not code:
            raise RuntimeError(f"the process that starts scripts ended before {argv} did")
        return subprocess.CompletedProcess(argv, int(code), out.read_text(), err.read_text())

    def close(self):
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait(timeout=60)


@pytest.fixture(scope="session")
def run_script(tmp_path_factory):
    scripts = Scripts(tmp_path_factory.mktemp("scripts"))
    yield scripts
    scripts.close()


class Workplace:
    """Where a script runs, and what it left."""

    def __init__(self, folder, run_script):
        self.folder = folder
        self.run_script = run_script

    def run(self, script, *options):
        return self.run_script(script, *options, folder=self.folder)

    def output(self, script, name="default"):
        return self.folder / "outputs" / script / name

    def assert_mistake(self, script, *options, words):
        """One sentence, exit code 1, no file."""
        done = self.run(script, *options, "name=mistake")
        assert done.returncode == 1, done.stderr
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        left = [path.name for path in self.output(script, "mistake").glob("*")]
        assert set(left) <= {".hydra", f"{script}.log"}, left


def save_model(folder, overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
        config = compose("pretrain", overrides=[*COMMON, *overrides])
    model = {
        "_target_": "ocrl.model.SlotModel",
        **{name: checkpoint.plain(config[name]) for name in ("encoder", "decoder", "objectives")},
        "weights": checkpoint.plain(config.weights),
        "is_conditioned": False,
    }
    built = checkpoint.build(model)
    checkpoint.save(folder / "checkpoint", built, config=model, step=7, env="sprites")


@pytest.fixture(scope="session")
def workplace(tmp_path_factory, run_script):
    folder = tmp_path_factory.mktemp("workplace")
    torch.manual_seed(0)
    for name, overrides in MODELS.items():
        save_model(folder / name, overrides)
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
        env = checkpoint.plain(compose("pretrain", overrides=list(COMMON)).env)
    collect(
        "sprites",
        {name: value for name, value in env.items() if name != "_target_"},
        path=folder / "episodes",
        num_steps=70,
        policy="random",
        num_workers=0,
        seed=0,
        episode_length=10,
        segmentation=["entities"],
        progress=False,
    )
    with EpisodeWriter(folder / "bare", metadata={}) as writer:
        for seed in range(2):
            frames = np.random.default_rng(seed).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
            rows = {
                "frames": frames,
                "action": np.zeros(8, np.int64),
                "reward": np.zeros(8, np.float32),
                "terminated": np.zeros(8, bool),
                "truncated": np.zeros(8, bool),
            }
            writer.append(rows)
    return Workplace(folder, run_script)
