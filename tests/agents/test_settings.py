"""Every choice of `configs/agent.yaml` composes and makes an agent that can be built."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from ocrl import checkpoint
from ocrl.agents.model_based import ModelBased
from ocrl.agents.policy import find_algorithm
from ocrl.agents.ppo import ModelFree

CONFIGS = Path(__file__).parents[2] / "configs"


def stems(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def composed(*overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return compose("agent", overrides=list(overrides))


def built(config):
    # The name is made of choices that only a running command has.
    return instantiate(config.agent, _recursive_=False, _convert_="all")


@pytest.mark.parametrize("task", stems("task"))
@pytest.mark.parametrize("agent", [s for s in stems("agent") if "recurrent" not in s])
def test_every_agent_can_be_chosen_for_every_task(agent, task):
    trainer = built(composed(f"agent={agent}", f"task={task}", f"env={task}"))
    if isinstance(trainer, ModelBased):
        assert trainer.arguments["gamma"] == (0.95 if task == "sprites" else 0.99)
        return
    assert isinstance(trainer, ModelFree)
    algorithm, _ = find_algorithm(trainer.algorithm)
    known = algorithm.__init__.__code__.co_varnames
    assert set(trainer.arguments) <= set(known)
    rollout = trainer.arguments.get("n_steps", 1) * trainer.num_envs
    # Stable-Baselines3 warns of a last batch that is smaller.
    assert rollout % trainer.arguments.get("batch_size", 1) == 0 or trainer.algorithm == "dqn"


@pytest.mark.parametrize("group", ["obs", "pooling", "vision"])
def test_every_option_can_be_chosen(group):
    for option in stems(group):
        config = composed(f"{group}={option}")
        trainer = built(config)
        assert "_partial_" not in trainer.pooling and "_partial_" not in trainer.vision
        if group == "obs":
            wanted = {"objects": "objects", "slots": "slots"}.get(option, "frame")
            assert config.observation.main == wanted
        else:
            described = getattr(trainer, group)
            own = checkpoint.read_yaml(CONFIGS / group / f"{option}.yaml")
            assert described["_target_"] == own["_target_"]


def test_the_true_objects_come_in_no_order_and_pixels_alone():
    assert composed("obs=objects").observation.is_shuffled is True
    assert composed("obs=resnet").vision._target_.endswith("ImpalaResNet")


def test_tasks_set_what_an_environment_asks_for():
    assert composed("task=sprites").agent.arguments.gamma < 0.99
    crafter = composed("task=crafter", "env=crafter")
    assert crafter.env.size == 72 and crafter.agent.arguments.gae_lambda == 0.65
    assert composed("task=minigrid", "env=minigrid").observation.vectors == ["mission"]
