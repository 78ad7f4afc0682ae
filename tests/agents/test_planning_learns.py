"""A world model learned from random play is enough to plan by: reaching, with the true objects."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from ocrl.agents.evaluation import RandomAgent, play
from ocrl.agents.run import AgentRun
from ocrl.envs import make_vec

CONFIGS = Path(__file__).parents[2] / "configs"
WORLD = {"num_objects": 2, "step_size": 0.1, "max_steps": 20, "size": 16}
OPTIONS = (
    *("agent=planning", "agent.num_envs=16", "agent.total_steps=2016"),
    *("agent.replay.prefill_steps=2000", "agent.learning.pretrain_updates=300"),
    *("agent.learning.batch_size=64", "agent.learning.learning_rate=0.001"),
    *("agent.world.horizon=4", "agent.arguments.horizon=4", "agent.arguments.gamma=0.95"),
    *("agent.arguments.steps_per_plan=2", "agent.evaluate_every=0", "agent.device=cpu"),
)


def make(num_envs):
    return make_vec("sprites-reach", num_envs, observe=["objects"], is_shuffled=True, **WORLD)


@pytest.mark.slow
def test_planning_reaches_where_random_play_does_not(tmp_path):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("agent", overrides=list(OPTIONS)).agent
    trainer = instantiate(config, _recursive_=False, _convert_="all")
    run = AgentRun(tmp_path, {"env": "sprites-reach", "env_arguments": WORLD, "encoder": None})
    envs = make(16)
    agent = trainer.train(
        envs, run=run, network=trainer.network(plain_key="objects", has_order=False)
    )
    envs.close()
    options = {"num_episodes": 32, "seed": 0, "is_deterministic": True}
    apart = make(16)
    planned = play(agent, apart, **options)
    floor = play(RandomAgent(apart.single_action_space, seed=0), apart, **options)
    apart.close()
    assert planned.successes.mean() > floor.successes.mean() + 0.3
    assert planned.returns.mean() > floor.returns.mean() + 0.3
