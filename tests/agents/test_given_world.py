"""A trained world model in an agent: what it foretells there, and what does not fit it."""

import runpy
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hydra import compose, initialize_config_dir

from ocrl import checkpoint
from ocrl.agents import saving
from ocrl.agents.given_world import LearnedWorld, TrainedWorld
from ocrl.agents.model_based import ModelBased
from ocrl.agents.ppo import ModelFree
from ocrl.agents.run import AgentRun
from ocrl.agents.world_agent import WorldAgent

ROOT = Path(__file__).parents[2]
SMALL_WORLD = runpy.run_path(str(ROOT / "tests/ocrl/small_world.py"))
K, D = 3, 8
SETS = gymnasium.spaces.Box(-np.inf, np.inf, (K, D), np.float32)
CHOICES = gymnasium.spaces.Discrete(3)


def save(folder, *options, **changes):
    """A small world model, as a run leaves it."""
    config = SMALL_WORLD["settings"](*options, **changes)
    torch.manual_seed(0)
    world = checkpoint.build(config)
    torch.nn.init.normal_(world.dynamics.output.to_slots.weight, std=0.3)
    checkpoint.save(folder / "checkpoint", world, config=config, step=3, env="sprites")
    return TrainedWorld.load(folder, learns=False)


def network(given):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = checkpoint.plain(compose("agent", overrides=["agent=planning"]).agent)
    config.pop("_target_")
    own = ModelBased(**config).network(plain_key="slots", has_order=False)
    return given.network(own)


@pytest.mark.parametrize("dynamics", ["transformer", "recurrent_categorical"])
def test_an_agent_imagines_what_the_world_model_does(tmp_path, dynamics):
    options = () if dynamics != "transformer" else ("dynamics.num_layers=1",)
    config = SMALL_WORLD["settings"](*options, dynamics=dynamics)
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "c", checkpoint.build(config), config=config, step=1, env="sprites")
    given = TrainedWorld.load(tmp_path / "c", learns=False)
    agent = WorldAgent(SETS, CHOICES, network=network(given))
    given.give(agent)
    assert agent.network.has_order and agent.world.horizon == 4
    agent.modules.eval()
    observed = np.random.default_rng(0).normal(size=(2, K, D)).astype(np.float32)
    rows = agent.read({"slots": observed})
    # Slots are read as they are: a world model knows no other scale.
    np.testing.assert_array_equal(rows.numpy(), observed)
    actions = torch.randint(3, (2, 4), generator=torch.Generator().manual_seed(0))
    state = given.model.dynamics.initial_state(2)
    expected = given.model.imagine(rows, state, actions, 4)
    dream = agent.world.imagine(rows, agent.world.dynamics.initial_state(2), actions, 4)
    torch.testing.assert_close(dream.slots, expected.slots)
    torch.testing.assert_close(dream.reward, expected.reward)
    torch.testing.assert_close(dream.goes_on, expected.goes_on)
    with pytest.warns(UserWarning, match="trained on rollouts of 4 steps, and is asked for 5"):
        action, _ = agent.act(
            observed, agent.initial_state(2), np.ones(2, bool), is_deterministic=True
        )
    assert action.shape == (2,) and action.dtype == np.int64


def test_an_agent_is_saved_with_it(tmp_path):
    given = save(tmp_path / "world")
    agent = WorldAgent(SETS, CHOICES, network=network(given))
    given.give(agent)
    agent.save_weights(tmp_path)
    other = WorldAgent(SETS, CHOICES, network=agent.network)
    other.load_weights(tmp_path)
    for name, value in given.model.dynamics.state_dict().items():
        assert torch.equal(other.world.dynamics.state_dict()[name], value)


def test_slots_of_encoders_without_memory_are_put_in_order(tmp_path):
    slots = (*SMALL_WORLD["SLOTS"], "encoder=slot_attention", "decoder=broadcast")
    model = SMALL_WORLD["slot_model"](*slots, *SMALL_WORLD["SMALL"])
    assert not network(save(tmp_path, model=model)).has_order


def test_what_does_not_fit_is_refused(tmp_path):
    given = save(tmp_path / "world")

    def check(observation, action, world=given):
        fitting = replace(network(world), dynamics=dict(network(world).dynamics))
        WorldAgent(observation, action, network=fitting)
        world.give(WorldAgent(observation, action, network=fitting))

    for shape in ((K + 1, D), (K, D + 4)):
        space = gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float32)
        words = rf"3 slots of size 8, .* got {shape[0]} of {shape[1]}; .*has_geometry=false"
        with pytest.raises(ValueError, match=words):
            check(space, CHOICES)
    box = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    for space in (gymnasium.spaces.Discrete(4), box):
        with pytest.raises(ValueError, match=r"expected 3 discrete actions, which .* got "):
            check(SETS, space)
    continuous = save(tmp_path / "box", "num_actions=0", "action_dim=2")
    check(SETS, box, continuous)
    with pytest.raises(ValueError, match=r"actions in \[-1,1\] .* Box.*RescaleAction"):
        check(SETS, gymnasium.spaces.Box(-2, 2, (2,), np.float32), continuous)
    config = SMALL_WORLD["slot_model"]()
    slots = checkpoint.build(config)
    checkpoint.save(tmp_path / "slots", slots, config=config, step=1, env="sprites")
    with pytest.raises(ValueError, match=r"expected a world model at .*, got a SlotModel"):
        TrainedWorld.load(tmp_path / "slots", learns=False)


class Drift(gymnasium.Env):
    """Three rows of numbers that go their way; a reward now and then."""

    observation_space, action_space = SETS, CHOICES

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 6
        return self.np_random.normal(size=(K, D)).astype(np.float32), {}

    def step(self, action):
        self.left -= 1
        observation = self.np_random.normal(size=(K, D)).astype(np.float32)
        return observation, float(action == 0), self.left == 0, False, {}


def train(folder, given, *, agent):
    same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
    env = SyncVectorEnv([Drift] * 2, **same_step)
    overrides = [
        *(
            f"agent={agent}",
            "agent.total_steps=48",
            "agent.num_envs=2",
            "agent.learning.batch_size=2",
        ),
        *("agent.replay.prefill_steps=16", "agent.learning.pretrain_updates=2"),
        *("agent.arguments.horizon=3", "agent.learning.updates_per_step=0.1"),
    ]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = checkpoint.plain(compose("agent", overrides=overrides).agent)
    config.pop("_target_")
    trainer = ModelBased(**config)
    own = given.network(trainer.network(plain_key="slots", has_order=False))
    run = AgentRun(folder, {"env": "drift", "encoder": None, "world_model": given.meta})
    trained = trainer.train(env, run=run, network=own, world=given)
    env.close()
    return trained, saving.read_meta(folder)


def test_an_actor_learns_in_a_world_model_that_stays_as_it_is(tmp_path):
    given = save(tmp_path / "world")
    agent, meta = train(tmp_path / "run", given, agent="imagination")
    assert meta["step"] == 48 and meta["training"]["num_updates"] > 2
    for name, value in given.model.dynamics.state_dict().items():
        assert torch.equal(agent.world.dynamics.state_dict()[name], value)
    fresh = WorldAgent(SETS, CHOICES, network=agent.network)
    critic, new = agent.behaviour.critic.state_dict(), fresh.behaviour.critic.state_dict()
    assert not all(torch.equal(critic[name], new[name]) for name in new)


def test_plans_in_a_world_model_that_stays_as_it_is_need_no_playing(tmp_path):
    _, meta = train(tmp_path / "run", save(tmp_path / "world"), agent="planning")
    assert meta["step"] == 0 and saving.is_finished(tmp_path / "run", 48)
    assert not saving.is_finished(tmp_path / "other", 48)


def imagined(folder, env, settings, *, algorithm="imagination", **meta):
    """A small agent that learned in imagination, or a planning one, as a run leaves it."""
    trainer = ModelBased(**{**settings, "algorithm": algorithm})
    known = {"env": "toy", "encoder": None, "observation": {"main": "slots"}, **meta}
    run = AgentRun(folder, known)
    network = trainer.network(plain_key="slots", has_order=True)
    trainer.train(env, run=run, network=network)
    return LearnedWorld.load(folder, described=saving.describe_part(saving.find(folder), folder))


def planning(env, settings, given, folder, *, is_guided=True, **meta):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = checkpoint.plain(compose("agent", overrides=["agent=planning_guided"]).agent)
    arguments = {**config["arguments"], "horizon": 2}
    arguments |= {} if is_guided else {"guide": None}
    trainer = ModelBased(**{**settings, "algorithm": "guided planning", "arguments": arguments})
    network = given.network(trainer.network(plain_key="slots", has_order=False))
    run = AgentRun(folder, {"env": "toy", "encoder": None, "world_model": given.meta, **meta})
    return trainer.train(env, run=run, network=network, world=given)


@pytest.mark.parametrize("is_guided", [True, False])
def test_an_agent_that_learned_in_imagination_can_plan(
    is_guided, tmp_path, make_toy, small_world_settings
):
    env = make_toy("slots")
    given = imagined(tmp_path / "own", env, small_world_settings())
    agent = planning(env, small_world_settings(), given, tmp_path / "run", is_guided=is_guided)
    meta = saving.read_meta(tmp_path / "run")
    # It has learned from the steps of the other one, from none of its own, and knows whose.
    assert meta["step"] == given.num_steps == 96 and saving.is_finished(tmp_path / "run", 10**6)
    assert meta["world_model"] == {**given.described, "learns": False, "of": "imagination"}
    assert agent.network.has_order
    own = given.agent
    for part in ("world", "rows"):
        theirs = getattr(own, part).state_dict()
        for name, value in getattr(agent, part).state_dict().items():
            assert torch.equal(value, theirs[name])
    assert (agent.behaviour.guide is not None) == is_guided
    if is_guided:
        theirs = own.behaviour.state_dict()
        for name, value in agent.behaviour.guide.state_dict().items():
            assert torch.equal(value, theirs[name])
    # An agent that plans passes it on; some environments go on alone.
    loaded = saving.load(tmp_path / "run")
    observation, _ = env.reset(seed=0)
    begins, options = np.ones(2, bool), {"is_deterministic": True}
    _, state = loaded.act(observation, loaded.initial_state(2), begins, **options)
    both, _ = loaded.act(observation, state, ~begins, **options)
    alone, _ = loaded.act(observation[1:], loaded.cut(state, np.array([1])), ~begins[1:], **options)
    assert alone == both[1:]
    described = saving.describe_part(saving.find(tmp_path / "run"), tmp_path)
    again = LearnedWorld(loaded, {}, described, 96)
    if is_guided:
        assert planning(env, small_world_settings(), again, tmp_path / "again").behaviour.guide
    else:
        with pytest.raises(ValueError, match=r"expected an actor-critic to guide plans.*planning"):
            planning(env, small_world_settings(), again, tmp_path / "again")


def test_what_an_agent_can_not_plan_with_is_refused(
    tmp_path, make_toy, small_settings, small_world_settings
):
    env = make_toy("slots")
    given = imagined(tmp_path / "own", env, small_world_settings())
    with pytest.raises(ValueError, match=r"agent=planning or planning_guided .*got imagination"):
        given.network(ModelBased(**small_world_settings()).network(plain_key="x", has_order=True))
    assert given.observed({"main": "slots"}) == {"main": "slots"}
    with pytest.raises(ValueError, match=r"observation of the agent .*main"):
        given.observed({"main": "objects"})
    for other, words in (
        (make_toy("slots", "inventory"), "expected observations of the agent"),
        (make_toy("slots", action_space=gymnasium.spaces.Discrete(3)), "expected actions of"),
    ):
        with pytest.raises(ValueError, match=words):
            planning(other, small_world_settings(), given, tmp_path / "other")
    trainer = ModelFree(**small_settings("ppo"))
    trainer.train(
        env,
        run=AgentRun(tmp_path / "ppo", {"env": "toy", "encoder": None, "observation": {}}),
        network=trainer.network(plain_key="slots", num_geometry=0, encoder=None),
    )
    with pytest.raises(ValueError, match=r"agent with a world model at .*got one of ppo"):
        LearnedWorld.load(tmp_path / "ppo", described={})


@pytest.mark.gpu
def test_plans_are_the_same_on_a_gpu(tmp_path):
    given = save(tmp_path / "world", "num_actions=0", "action_dim=2")
    box = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    agent = WorldAgent(SETS, box, network=network(given))
    given.give(agent)
    agent.behaviour.planner.horizon = 4
    observed = np.random.default_rng(0).normal(size=(2, K, D)).astype(np.float32)
    options = {"is_deterministic": True}
    begins = np.ones(2, bool)
    here, _ = agent.act(observed, agent.initial_state(2), begins, **options)
    agent.to("cuda")
    there, state = agent.act(observed, agent.initial_state(2), begins, **options)
    np.testing.assert_allclose(there, here, atol=1e-3)
    agent.act(observed, state, np.array([False, True]), **options)
