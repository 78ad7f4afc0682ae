"""Planning from the command line: with a world model that is given, and one that is learned."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

import ocrl
from ocrl import checkpoint
from ocrl.agents import load, saving

ROOT = Path(__file__).parents[2]
SIZES = ("dim=16", "num_heads=2", "mlp_dim=16", "num_layers=1")
SEARCH = ("num_candidates=8", "num_elites=3", "num_iterations=1")
SMALL = (
    *("env=sprites-object_comparison", "env.size=32", "env.max_steps=8", "agent=planning"),
    *(
        "agent.num_envs=2",
        "agent.total_steps=40",
        "agent.log_every=20",
        "agent.checkpoint_every=20",
    ),
    *("agent.evaluate_every=0", "evaluation.num_episodes=2", "agent.arguments.horizon=2"),
    *(f"agent.arguments.discrete.{option}" for option in SEARCH),
)
GIVEN = ("obs=slots", "world_model.path=world")


@pytest.fixture(scope="module")
def worlds(workplace):
    """World models of the slots of `run`, as training leaves them, and one of other actions."""
    sizes = [f"{part}.{size}" for part in ("dynamics", "outcome") for size in SIZES]
    for name, actions, seed in (("world", 4, 0), ("other", 4, 1), ("wider", 6, 0)):
        overrides = ["slot_dim=8", f"num_actions={actions}", "action_dim=0", *sizes]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            config = checkpoint.plain(compose("world_model", overrides=overrides)["dynamics"])
            outcome = checkpoint.plain(compose("world_model", overrides=overrides)["outcome"])
        whole = {
            "_target_": "ocrl.world_model.WorldModel",
            "model": checkpoint.read_config(workplace.folder / "run"),
            "dynamics": config,
            "outcome": outcome,
            "weights": dict.fromkeys(("slots", "reward", "continue", "image", "model"), 1.0)
            | {"image": 0.0, "model": 0.0},
            **{"num_context": 2, "horizon": 4, "num_decoded": 1, "rollout": "whole"},
        }
        torch.manual_seed(seed)
        world = checkpoint.build(whole)
        world.model.load_state_dict(ocrl.load(workplace.folder / "run").state_dict())
        folder = workplace.folder / name / "checkpoint"
        checkpoint.save(folder, world, config=whole, step=1, env="sprites")
    return workplace


def test_a_given_world_model_plans_and_is_named(worlds):
    done = worlds.run("train_agent", *SMALL, *GIVEN, "name=given")
    assert done.returncode == 0, done.stderr
    directory = worlds.output("train_agent", "given")
    meta = saving.read_meta(directory)
    world = worlds.folder / "world/checkpoint"
    assert meta["world_model"]["hash"] == checkpoint.digest(world)
    assert meta["encoder"]["path"] == "encoder/checkpoint"
    assert meta["observation"]["has_geometry"] is False
    record = json.loads((directory / "evaluation.json").read_text())
    assert record["agent"] == "planning CategoricalCEM, world model given"
    assert record["obs"] == "slots (savi)" and np.isfinite(record["mean"]["return"])
    agent = load(directory, encoder=worlds.folder / "run")
    # It did not learn, and it is saved whole.
    given = ocrl.load(world).dynamics.state_dict()
    assert all(torch.equal(own, given[n]) for n, own in agent.world.dynamics.state_dict().items())


@pytest.mark.slow
def test_it_goes_on_with_the_same_world_model_alone(worlds):
    learning = ("world_model.learns=true", "agent.replay.prefill_steps=8", "name=longer")
    first = worlds.run("train_agent", *SMALL, *GIVEN, *learning)
    assert first.returncode == 0, first.stderr
    longer = worlds.run("train_agent", *SMALL, *GIVEN, *learning, "agent.total_steps=60")
    assert longer.returncode == 0 and "going on at step 40" in longer.stderr, longer.stderr
    other = (*SMALL, "obs=slots", "world_model.path=other", *learning)
    refused = worlds.run("train_agent", *other)
    assert refused.returncode == 1 and "its world_model is not that of other" in refused.stderr
    other = (*other, "agent.total_steps=80")
    refused = worlds.run("train_agent", *other)
    assert refused.returncode == 1 and "belongs to another run: its world_model" in refused.stderr
    directory = worlds.output("train_agent", "longer")
    again = worlds.run("evaluate_agent", f"checkpoint={directory}", "episodes=2", "video=false")
    assert again.returncode == 0 and "| as trained | 2 | " in again.stdout, again.stderr


@pytest.mark.slow
def test_plans_in_a_world_model_that_stays_as_it_is_are_evaluated_at_once(worlds):
    first = worlds.run("train_agent", *SMALL, *GIVEN, "name=fixed")
    assert first.returncode == 0 and "there is nothing to learn" in first.stderr, first.stderr
    again = worlds.run("train_agent", *SMALL, *GIVEN, "name=fixed")
    assert again.returncode == 0 and "trained for 0 steps before" in again.stderr


@pytest.mark.slow
def test_it_aims_at_a_picture(worlds):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(picture).save(worlds.folder / "goal.png")
    done = worlds.run("train_agent", *SMALL, *GIVEN, "goal=goal.png", "name=goal")
    assert done.returncode == 0, done.stderr
    agent = load(worlds.output("train_agent", "goal"))
    model = ocrl.load(worlds.folder / "run")
    frame = torch.from_numpy(picture).permute(2, 0, 1)[None, None] / 255
    slots = model.encoder(frame, torch.ones(1, 1, dtype=torch.bool)).slots[0]
    assert agent.behaviour.has_goal
    torch.testing.assert_close(agent.behaviour.goal, slots)


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["planning", "planning_guided"])
def test_a_world_model_is_learned_while_planning(worlds, agent):
    options = (
        *(*SMALL, f"agent={agent}", "obs=slots", "encoder.path=run", f"name={agent}"),
        *("agent.replay.prefill_steps=20", "agent.learning.pretrain_updates=2"),
        *("agent.learning.batch_size=2", "pooling.dim=8", "pooling.num_heads=2"),
    )
    done = worlds.run("train_agent", *options)
    assert done.returncode == 0, done.stderr
    meta = saving.read_meta(worlds.output("train_agent", agent))
    assert meta["world_model"] is None and meta["training"]["num_updates"] >= 2
    whole = load(worlds.output("train_agent", agent))
    assert (whole.behaviour.guide is not None) == (agent == "planning_guided")


@pytest.fixture
def found(worlds, load_script, tmp_path, monkeypatch):
    """Find a world model as the command does, from its options."""
    monkeypatch.chdir(worlds.folder)
    module = load_script("given_worlds")

    def find(*options, agent="planning"):
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            config = compose("agent", overrides=[f"agent={agent}", *options])
        trainer = instantiate(config.agent, _recursive_=False, _convert_="all")
        return module.find_world(config, trainer, directory=tmp_path), config

    return find


def test_the_environments_get_the_encoder_of_the_world_model(worlds, found, tmp_path):
    world, config = found(*GIVEN)
    slots = ocrl.load(worlds.folder / "run")
    own = ocrl.load(config.encoder.path)
    assert config.encoder.path == str(tmp_path / "encoder/checkpoint")
    assert checkpoint.read_meta(config.encoder.path)["env"] == "sprites"
    for name, value in own.state_dict().items():
        assert torch.equal(value, slots.state_dict()[name])
    assert not world.learns and world.goal is None
    world, config = found(*GIVEN, "encoder.path=run", "world_model.learns=true")
    assert world.learns and config.encoder.path == "run"
    assert found("obs=slots")[0] is None


def test_a_picture_becomes_the_slots_of_a_goal(worlds, found):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(picture).save(worlds.folder / "goal.png")
    world, _ = found(*GIVEN, "goal=goal.png")
    frame = torch.from_numpy(picture).permute(2, 0, 1)[None, None] / 255
    slots = ocrl.load(worlds.folder / "run").encoder(frame, torch.ones(1, 1).bool()).slots[0]
    np.testing.assert_allclose(world.goal, slots.detach().numpy(), atol=1e-5)
    assert world.meta["goal"] != found(*GIVEN)[0].meta["goal"]
    Image.fromarray(picture[:16]).save(worlds.folder / "low.png")
    with pytest.raises(
        ValueError, match=r"a picture of \(32, 32\) pixels at low.png, got \(16, 32\)"
    ):
        found(*GIVEN, "goal=low.png")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("obs=objects", "world_model.path=world"), "expected obs=slots and encoder.mode=frozen"),
        ((*GIVEN, "encoder.mode=replay"), "got slots and replay"),
        (("obs=slots", "world_model.path=run"), "expected a world model at run"),
        ((*GIVEN, "encoder.path=palette"), "expected the encoder that the world model"),
        (("obs=slots", "encoder.path=run", "goal=goal.png"), "expected world_model.path=RUN"),
    ],
    ids=["objects", "mode", "slots", "encoder", "goal"],
)
def test_what_does_not_fit_is_refused(found, options, words):
    with pytest.raises(ValueError, match=words):
        found(*options)


def test_agents_without_a_world_model_take_none(found):
    with pytest.raises(ValueError, match="expected agent=planning or imagination"):
        found(*GIVEN, agent="ppo")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("obs=slots", "world_model.path=wider"), "6 discrete actions, which the world model"),
        (
            (*GIVEN, "agent.arguments.horizon=0"),
            "agent.arguments.horizon of at least 1 and steps_per_plan",
        ),
    ],
    ids=["actions", "horizon"],
)
def test_a_mistake_is_one_sentence(worlds, options, words):
    done = worlds.run("train_agent", *SMALL, *options, "name=unfit")
    assert done.returncode == 1 and words in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
