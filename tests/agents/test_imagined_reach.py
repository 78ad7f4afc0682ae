"""What imagination is enough for: a reach that a random player seldom ends, from few steps."""

import csv
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ocrl.agents.imagination import ActorCritic
from ocrl.agents.run import AgentRun
from ocrl.envs import make_vec

CONFIGS = str(Path(__file__).parents[2] / "configs")
SMALL = (
    *("env.num_objects=1", "agent.total_steps=4000", "agent.replay.prefill_steps=1000"),
    *("agent.evaluate_every=0", "agent.log_every=500", "agent.checkpoint_every=100000"),
    *("agent.world.horizon=4", "agent.arguments.horizon=4", "agent.learning.batch_size=16"),
    "agent.learning.pretrain_updates=200",
    *("pooling.num_heads=2", "agent.dynamics.num_heads=2", "agent.outcome.num_heads=2"),
)
CONTINUOUS = ("agent.arguments.entropy=0.005", "agent.learning.updates_per_step=0.0625")
DISCRETE = ("env.action_kind=discrete", "agent.arguments.entropy=0.01")


def successes(folder, *overrides):
    """Rates of success in play at random, and in the last quarter of training."""
    with initialize_config_dir(version_base="1.3", config_dir=CONFIGS):
        config = compose(
            "agent",
            overrides=[
                *("env=sprites-reach", "task=sprites", "obs=objects", "agent=imagination"),
                *(*SMALL, *overrides),
            ],
        )
    trainer = instantiate(config.agent, _recursive_=False, _convert_="all")
    arguments = OmegaConf.to_container(config.env, resolve=True)
    del arguments["_target_"]
    name = "sprites-reach"
    envs = make_vec(name, trainer.num_envs, observe=["objects"], is_shuffled=True, **arguments)
    network = trainer.network(plain_key="objects", has_order=False)
    trainer.train(envs, run=AgentRun(folder, {"env": name, "encoder": None}), network=network)
    with (folder / "progress.csv").open(newline="") as file:
        rows = [(int(row["step"]), float(row["success"])) for row in csv.DictReader(file)]
    prefill, total = config.agent.replay.prefill_steps, trainer.total_steps
    first = [success for step, success in rows if step <= prefill + 100]
    last = [success for step, success in rows if step > 0.75 * total]
    return sum(first) / len(first), sum(last) / len(last)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
def test_three_thousand_steps_are_enough_to_reach(kind, tmp_path):
    at_random, learned = successes(tmp_path, *kind)
    assert at_random < 0.5 and learned > 0.8, (at_random, learned)


@pytest.mark.slow
def test_without_the_actors_loss_nothing_is_learned(tmp_path, monkeypatch):
    whole = ActorCritic.losses

    def cut(self, world, starts):
        losses, figures = whole(self, world, starts)
        nothing = sum(parameter.sum() for parameter in self.actor.parameters())
        return losses | {"actor": torch.zeros(()) * nothing}, figures

    monkeypatch.setattr(ActorCritic, "losses", cut)
    _, learned = successes(tmp_path, *CONTINUOUS)
    assert learned < 0.6, learned
