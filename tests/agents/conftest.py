"""Runs as training leaves them, made of nothing."""

import csv

import numpy as np
import pytest

from ocrl.agents.evaluation import Episodes, summarize
from ocrl.agents.results import read_run, write_evaluation
from ocrl.envs.crafter import crafter_score

NAMES = ("collect_wood", "place_table")


def block(rate, *, score=False, num_episodes=40, has_success=True):
    successes = np.arange(num_episodes) < rate * num_episodes
    episodes = Episodes(
        returns=successes * (5.0 if score else 1.0),
        lengths=np.full(num_episodes, 30),
        successes=None if score or not has_success else successes,
        achievements={name: successes for name in NAMES} if score else {},
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
