"""A small task, small agents for it, and runs as training leaves them, made of nothing."""

import copy
import csv
import functools
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import yaml
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hydra import compose, initialize_config_dir

from ocrl import checkpoint
from ocrl.agents.evaluation import Episodes, summarize
from ocrl.agents.results import read_run, write_evaluation
from ocrl.envs.crafter import crafter_score

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {
    "ppo": {"n_steps": 8, "batch_size": 16, "n_epochs": 2},
    "a2c": {"n_steps": 8},
    "dqn": {"buffer_size": 200, "learning_starts": 20, "batch_size": 8, "gradient_steps": 1},
    "recurrent_ppo": {"n_steps": 8, "batch_size": 16, "n_epochs": 2},
}
SPACES = {
    "objects": Box(-np.inf, np.inf, (3, 4), np.float32),
    "slots": Box(-np.inf, np.inf, (3, 4), np.float32),
    "frame": Box(0, 255, (9, 12, 3), np.uint8),
    "inventory": Box(0.0, 1.0, (2,), np.float32),
}


class Guess(gymnasium.Env):
    """Reward for the action that the first number names; lasts 3 to 9 steps, some truncated."""

    def __init__(self, keys, action_space, poison):
        self.keys, self.action_space, self.poison = keys, action_space, poison
        spaces = {key: SPACES[key] for key in keys}
        self.observation_space = spaces[keys[0]] if len(keys) == 1 else Dict(spaces)
        self.played = 0

    def observe(self):
        self.answer = int(self.np_random.integers(2))
        table = self.np_random.normal(size=(3, 4)).astype(np.float32)
        table[:, 0] = [1, 1, 0]
        table[:, 1] = self.answer
        table[2] = 0
        if self.poison is not None and self.played >= self.poison:
            table[1, 2] = np.nan
        frame = self.np_random.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        vector = self.np_random.random(2, dtype=np.float32)
        made = {"objects": table, "slots": table, "frame": frame, "inventory": vector}
        return made[self.keys[0]] if len(self.keys) == 1 else {k: made[k] for k in self.keys}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(3, 10))
        return self.observe(), {}

    def step(self, action):
        is_right = int(np.asarray(action).flat[0]) == self.answer
        self.left -= 1
        self.played += 1
        is_over = self.left == 0
        info = {"is_success": is_right, "achievements": {"guess": int(is_right), "never": 0}}
        is_cut = bool(self.np_random.integers(2))
        outcome = float(is_right), is_over and not is_cut, is_over and is_cut, info
        return self.observe(), *outcome


@pytest.fixture
def make_toy():
    """Build E copies of the task in one vector environment."""

    def make(*keys, num_envs=2, action_space=None, poison=None):
        space = Discrete(2) if action_space is None else action_space
        build = functools.partial(Guess, keys, space, poison)
        return SyncVectorEnv([build] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

    return make


def settings_of(algorithm):
    """What `configs/agent/<algorithm>.yaml` says, at a small size."""
    settings = yaml.safe_load((CONFIGS / f"agent/{algorithm}.yaml").read_text())
    del settings["_target_"]
    pooling = yaml.safe_load((CONFIGS / "pooling/comparing_transformer.yaml").read_text())
    vision = yaml.safe_load((CONFIGS / "vision/cnn.yaml").read_text())
    small = {"dim": 8, "num_heads": 2}, {"channels": [4, 4, 4], "out_dim": 8}
    settings |= {"pooling": pooling | small[0], "vision": vision | small[1], "device": "cpu"}
    settings["arguments"] |= SMALL[algorithm]
    if algorithm == "recurrent_ppo":
        settings["policy"]["lstm_hidden_size"] = 8
    every = {"log_every": 40, "checkpoint_every": 70, "evaluate_every": 0}
    return settings | every | {"total_steps": 200, "num_envs": 2}


@functools.cache
def _composed_world():
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return checkpoint.plain(compose("agent", overrides=["agent=imagination"]).agent)


def world_settings():
    """What `configs/agent/imagination.yaml` says, at a small size."""
    settings = copy.deepcopy(_composed_world())
    del settings["_target_"]
    settings["pooling"] |= {"dim": 8, "num_heads": 2, "num_layers": 1}
    small = {"dim": 8, "num_layers": 1, "num_heads": 2, "mlp_dim": 8}
    settings["dynamics"] |= small
    settings["outcome"] |= small | {"num_bins": 11}
    settings["arguments"] |= {"hidden_dims": [8], "horizon": 2}
    settings["world"] |= {"horizon": 2}
    learning = {"updates_per_step": 0.1, "pretrain_updates": 2, "play_steps": 3, "batch_size": 4}
    settings["learning"] |= learning
    settings["replay"] |= {"capacity": 80, "prefill_steps": 18}
    every = {"log_every": 24, "checkpoint_every": 40, "evaluate_every": 0}
    return settings | every | {"total_steps": 96, "num_envs": 2, "device": "cpu"}


@pytest.fixture
def small_world_settings():
    """See `world_settings`."""
    return world_settings


@pytest.fixture
def small_settings():
    """See `settings_of`."""
    return settings_of


def block(rate, *, score=False, num_episodes=40, has_success=True):
    successes = np.arange(num_episodes) < rate * num_episodes
    episodes = Episodes(
        returns=successes * (5.0 if score else 1.0),
        lengths=np.full(num_episodes, 30),
        successes=None if score or not has_success else successes,
        achievements={name: successes for name in ("collect_wood", "place_table")} if score else {},
    )
    return summarize(episodes, score=crafter_score if score else None)


@pytest.fixture
def make_run(tmp_path):
    """Write a run whose return rises from `floor` to `rate` until `until`, and read it."""

    def make(
        obs,
        seed,
        rate,
        *,
        env="sprites-object_comparison",
        until=50_000,
        num_rows=100,
        score=False,
        variants=None,
        folder=None,
        floor=0.25,
    ):
        directory = tmp_path / (folder or f"{env}-{obs}-{seed}".replace(" ", "_"))
        directory.mkdir(parents=True)
        steps = np.linspace(1000, 100_000, num_rows)
        returns = floor + (rate - floor) * np.minimum(1.0, steps / until)
        rng = np.random.default_rng(seed)
        returns = returns + rng.normal(0.0, 0.02, num_rows) * (num_rows > 10)
        names = ["step", "seconds", "return", "length", "score" if score else "success"]
        with (directory / "progress.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*names, "steps_per_second"])
            for index, (step, value) in enumerate(zip(steps, returns, strict=True)):
                shown = "" if index == 3 else f"{value:.5f}"
                scale = f"{10 * value:.5f}" if score else shown
                writer.writerow([int(step), index * 2.0, shown, 30.0, scale, 500.0 + index])
        record = {
            "env": env,
            "obs": obs,
            "agent": "ppo",
            "seed": seed,
            "step": 100_000,
            **block(rate, score=score),
            "floor": block(floor, score=score),
            "ceiling": None,
            "variants": {
                name: {**block(own), "floor": block(floor)}
                for name, own in (variants or {}).items()
            },
        }
        write_evaluation(directory, record)
        return read_run(directory)

    return make
