"""Every choice of `configs/agent.yaml` composes and makes an agent that can be built."""

from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from ocrl import checkpoint
from ocrl.agents.model_based import ModelBased
from ocrl.agents.policy import find_algorithm
from ocrl.agents.ppo import ModelFree
from ocrl.agents.world_agent import WorldAgent
from ocrl.nn.multiplicative import RowProducts

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


def test_messages_know_where_slots_are_if_agents_know_it():
    trainer = built(composed("agent=imagination_contact"))
    num_geometry, looks = 7, 4
    for foretells_boxes in (False, True):
        trainer.foretells_boxes = foretells_boxes
        network = trainer.network(plain_key="slots", has_order=True, num_geometry=num_geometry)
        space = Box(-np.inf, np.inf, (3, looks + num_geometry), np.float32)
        agent = WorldAgent(space, Discrete(4), network=network)
        displacements = agent.world.dynamics.displacements
        if foretells_boxes:
            assert displacements is None
        else:
            assert displacements.places == agent.rows.places == [looks, looks + 1]
    # Of true objects the environment tells; what is set by hand stays.
    for set_by_hand, expected in (([], [3, 4]), (["agent.dynamics.places=[5]"], [5])):
        trainer = built(composed("agent=imagination_contact", *set_by_hand))
        network = trainer.network(plain_key="objects", has_order=True, places=[3, 4])
        space = Box(-np.inf, np.inf, (3, 8), np.float32)
        agent = WorldAgent(space, Discrete(4), network=network)
        assert agent.world.dynamics.displacements.places == expected


@pytest.mark.parametrize("name", ["imagination", "planning_guided"])
@pytest.mark.parametrize("match_dim", [0, 6])
def test_what_is_asked_for_is_matched_by_outcomes_and_policies(name, match_dim):
    trainer = built(composed(f"agent={name}", f"agent.match_dim={match_dim}"))
    network = trainer.network(plain_key="slots", has_order=True)
    slots = Box(-np.inf, np.inf, (3, 8), np.float32)
    asked = Dict({"slots": slots, "mission": Box(0, 1, (5,), np.float32)})
    for space, num_beside in ((slots, 0), (asked, 5)):
        agent = WorldAgent(space, Discrete(4), network=network)
        found = [part for part in agent.modules.modules() if isinstance(part, RowProducts)]
        # Of the outcome, the actor, the critic and the slow one.
        assert len(found) == (4 if num_beside and match_dim else 0)
        assert {part.num_beside for part in found} <= {num_beside}


def test_a_setting_of_the_error_that_does_not_exist_is_named():
    trainer = built(composed("agent=imagination", "+agent.world.error.dleta=1"))
    network = trainer.network(plain_key="slots", has_order=True)
    with pytest.raises(ValueError, match=r"agent\.world\.error: .*dleta"):
        WorldAgent(Box(-np.inf, np.inf, (3, 8), np.float32), Discrete(4), network=network)


def test_tasks_set_what_an_environment_asks_for():
    assert composed("task=sprites").agent.arguments.gamma < 0.99
    crafter = composed("task=crafter", "env=crafter")
    assert crafter.env.size == 72 and crafter.agent.arguments.gae_lambda == 0.65
    assert composed("task=minigrid", "env=minigrid").observation.vectors == ["mission"]
