"""One command trains an agent in imagination, as it trains any other, and what it leaves is read.

The models and episodes are those of `workplace`: sprites of 32 pixels.
"""

import json

import pytest

from ocrl.agents import load, saving
from ocrl.agents.world_agent import WorldAgent

SMALL = (
    *("env=sprites-object_goal", "env.size=32", "env.max_steps=9", "agent=imagination"),
    *("agent.num_envs=2", "agent.total_steps=72", "agent.log_every=24", "agent.world.horizon=3"),
    *("agent.checkpoint_every=32", "agent.evaluate_every=48", "agent.arguments.horizon=3"),
    *("agent.replay.prefill_steps=32", "agent.learning.pretrain_updates=2"),
    *("agent.learning.batch_size=4", "pooling.dim=8", "pooling.num_heads=2"),
    *("agent.dynamics.dim=8", "agent.dynamics.num_heads=2", "agent.outcome.dim=8"),
    *("evaluation.num_episodes=2",),
)


def trained(workplace, name, *options):
    done = workplace.run("train_agent", *SMALL, *options, f"name={name}")
    assert done.returncode == 0, done.stderr
    return done, workplace.output("train_agent", name)


def test_it_learns_on_slots_and_is_evaluated_and_compared(workplace):
    done, directory = trained(workplace, "dreams", "obs=slots", "encoder.path=run")
    assert "evaluation at step 48" in done.stderr
    files = {path.name for path in directory.iterdir()}
    assert files >= {"agent", "progress.csv", "tensorboard", "evaluation.json", "video.mp4"}
    meta = saving.read_meta(directory)
    assert meta["step"] == 72 and meta["training"]["num_updates"] > 2
    assert saving.encoder_path(directory) == (workplace.folder / "run/checkpoint").resolve()
    agent = load(directory, encoder=workplace.folder / "run")
    assert isinstance(agent, WorldAgent) and agent.network.num_boxed == 7
    with pytest.raises(ValueError, match=r"learned with the encoder .* its slots mean something"):
        load(directory, encoder=workplace.folder / "palette")
    events = b"".join(path.read_bytes() for path in (directory / "tensorboard").iterdir())
    for name in (
        *("rollout/length", "speed/steps_per_second", "speed/updates_per_second", "world/slots"),
        *("world/reward", "world/continue", "behaviour/imagined_return", "behaviour/entropy"),
        *("replay/steps", "evaluation/episode"),
    ):
        assert name.encode() in events, name
    record = json.loads((directory / "evaluation.json").read_text())
    assert (
        record["agent"] == "imagination comparing transformer" and record["obs"] == "slots (savi)"
    )
    again = workplace.run("train_agent", *SMALL, "obs=slots", "encoder.path=run", "name=dreams")
    assert again.returncode == 0 and "nothing to do" in again.stderr
    played = workplace.run(
        "evaluate_agent",
        *("checkpoint=outputs/train_agent/dreams", "episodes=2", "num_envs=2", "video=false"),
        "worlds=[pairs]",
    )
    assert played.returncode == 0, played.stderr
    assert "| pairs | 2 | " in played.stdout
    compared = workplace.run("compare", str(directory))
    assert compared.returncode == 0, compared.stderr
    assert "slots (savi) imagination comparing transformer" in compared.stdout
    assert_it_plans(workplace, directory)


def assert_it_plans(workplace, directory):
    """What it has learned can be planned with, as a run of its own that stands beside it."""
    planning = ["agent=planning_guided" if o == "agent=imagination" else o for o in SMALL]
    search = [f"agent.arguments.discrete.{o}" for o in ("num_candidates=8", "num_elites=2")]
    given = (*planning, *search, f"world_model.path={directory}", "evaluation.worlds=[pairs]")
    done = workplace.run("train_agent", *given, "obs=slots", "name=plans")
    assert done.returncode == 0 and "there is nothing to learn" in done.stderr, done.stderr
    plans = workplace.output("train_agent", "plans")
    meta, known = saving.read_meta(plans), saving.read_meta(directory)
    assert meta["step"] == 72 and meta["encoder"]["hash"] == known["encoder"]["hash"]
    record = json.loads((plans / "evaluation.json").read_text())
    assert record["variants"].keys() == {"pairs"}
    again = workplace.run("train_agent", *given, "obs=slots", "name=plans")
    assert again.returncode == 0 and "nothing to do" in again.stderr, again.stderr
    compared = workplace.run("compare", str(directory), str(plans))
    row = next(line for line in compared.stdout.splitlines() if "guided planning" in line)
    assert "guided planning CategoricalCEM, after imagination" in row and "| 72 | - |" in row
    for wrong, words in (
        (("obs=slots", "world_model.learns=true"), "expected world_model.learns=false"),
        (("obs=slots", "goal=x.png"), "no goal with that of the agent"),
        (("obs=slots", "encoder.path=palette"), "learned with the encoder"),
        (("obs=objects",), "expected the observation of the agent"),
        (("obs=slots", "evaluation.worlds=[pears]"), "there is no variant 'pears'"),
        (("obs=slots", "agent=imagination"), "expected agent=planning or planning_guided with"),
    ):
        own = [o for o in given if o != "agent=planning_guided" or "agent=imagination" not in wrong]
        own = [o for o in own if "discrete" not in o or "agent=imagination" not in wrong]
        workplace.assert_mistake("train_agent", *own, *wrong, words=words)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("obs=objects", "env.action_kind=continuous"),
        ("obs=objects", "observation.is_shuffled=false", "dynamics@agent.dynamics=graph"),
        ("obs=slots", "encoder.path=run", "encoder.mode=replay", "encoder.replay.num_steps=1"),
    ],
    ids=["continuous", "graph", "tuned"],
)
def test_other_ways_to_learn(workplace, options, request):
    kept = [o for o in SMALL if not ("graph" in options[-1] and "dynamics.num_heads" in o)]
    done = workplace.run("train_agent", *kept, *options, f"name={request.node.callspec.id}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("obs=pixels",), "expected an observation with one set (K,F) for a world model"),
        (("obs=slots", "encoder.path=run", "encoder.mode=gradient"), "mode=frozen or replay"),
    ],
    ids=["pixels", "gradient"],
)
def test_a_mistake_is_one_sentence(workplace, options, words):
    workplace.assert_mistake("train_agent", *SMALL, *options, words=words)
