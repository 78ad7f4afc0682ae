"""What true objects are enough for: the task that a network without objects does not learn."""

import csv
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ocrl.agents.run import AgentRun
from ocrl.envs import make_vec

CONFIGS = str(Path(__file__).parents[2] / "configs")
CHANCE = 0.25


def success(folder, *overrides):
    """Mean over the episodes that ended in the last fifth of training."""
    with initialize_config_dir(version_base="1.3", config_dir=CONFIGS):
        config = compose(
            "agent",
            overrides=[
                *("env=sprites-object_comparison", "task=sprites", "obs=objects"),
                *("agent.evaluate_every=0", *overrides),
            ],
        )
    trainer = instantiate(config.agent, _recursive_=False, _convert_="all")
    arguments = OmegaConf.to_container(config.env, resolve=True)
    del arguments["_target_"]
    name = "sprites-object_comparison"
    envs = make_vec(name, trainer.num_envs, observe=["objects"], is_shuffled=True, **arguments)
    network = trainer.network(plain_key="objects")
    trainer.train(envs, run=AgentRun(folder, {"env": name, "encoder": None}), network=network)
    with (folder / "progress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = [float(row["success"]) for row in rows if int(row["step"]) > 0.8 * trainer.total_steps]
    return sum(last) / len(last)


@pytest.mark.slow
def test_a_policy_over_the_true_objects_finds_the_odd_one(tmp_path):
    assert success(tmp_path, "agent.total_steps=100000") > 0.85


@pytest.mark.slow
def test_the_mean_over_objects_stays_near_chance_as_long(tmp_path):
    assert success(tmp_path, "agent.total_steps=100000", "pooling=mean") < 2 * CHANCE
