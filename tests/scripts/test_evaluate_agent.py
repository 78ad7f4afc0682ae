"""Agents that learned nothing are evaluated as a user would: tables, records, videos, mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from gymnasium.spaces import Box
from omegaconf import OmegaConf
from PIL import Image

import ocrl
from ocrl import checkpoint
from ocrl.agents import saving, spaces
from ocrl.agents.policy import Network, PolicyAgent, find_algorithm
from ocrl.agents.results import read_evaluation
from ocrl.envs import make, registry

ROOT = Path(__file__).parents[2]
POOLING = {
    "_target_": "ocrl.agents.pooling.SetTransformer",
    **{"dim": 8, "num_layers": 1, "num_heads": 2, "mlp_factor": 2, "is_relative": True},
}
CONCATENATION = {
    "_target_": "ocrl.agents.pooling.Concatenation",
    **{"hidden_dims": [8], "dim": 8},
}
VISION = {
    "_target_": "ocrl.agents.vision.CNN",
    **{"channels": [4, 4, 4], "strides": [4, 2, 1], "min_grid": 2, "out_dim": 8, "precision": 32},
}
TASKS = tuple(name for name in registry.names() if name.startswith("sprites-"))


@pytest.fixture
def scripts(load_script):
    return {
        name: load_script(name)
        for name in ("observations", "agent_evaluation", "agent_context", "kept_results")
    }


@pytest.fixture
def save_run(scripts):
    """Write the run of an agent that learned nothing."""

    def save(run, main, *, env="sprites-object_goal", encoder=None, pooling=POOLING, **changes):
        own = {name: value for name, value in registry.settings(env).items() if name != "_target_"}
        arguments = {**own, "size": 32, "max_steps": 15, **changes}
        observation = {"main": main, "vectors": [], "is_shuffled": False, "is_noisy": False}
        observation |= {"has_geometry": True, "geometry_of": "attn"}
        made = scripts["observations"].make_observed(
            env,
            arguments=arguments,
            observation=observation,
            model=None if encoder is None else ocrl.load(encoder),
            num_envs=1,
            processes=False,
        )
        network = Network("ppo", {}, main, pooling, VISION, 0, None)
        _, policy = find_algorithm("ppo")
        seen, action = made.single_observation_space, made.single_action_space
        built = policy(spaces.channels_first(seen), action, lambda _: 0.0, **network.arguments())
        agent = PolicyAgent(built, network=network)
        config = {**agent.config(), "training": {"seed": 4}}
        meta = {
            "step": 1234,
            "env": env,
            "env_arguments": arguments,
            "observation": observation,
            "encoder": None if encoder is None else saving.describe_part(encoder, run),
            "observation_space": spaces.to_json(seen),
            "action_space": spaces.to_json(action),
            "training": {"num_episodes": 8, "achieved": {}},
        }
        run.mkdir(exist_ok=True)
        with checkpoint.replacing(run / "agent") as folder:
            saving.write(folder, agent, config=config, meta=meta)
        return run

    return save


def settings(**changes):
    text = (ROOT / "configs/evaluate_agent.yaml").read_text()
    small = {"episodes": 6, "num_envs": 3, "video_steps": 4}
    return {**yaml.safe_load(text), **small, "video": False, **changes}


def evaluated(scripts, run, **changes):
    said = []
    record = scripts["agent_evaluation"].evaluate_run(
        run, say=said.append, settings=settings(**changes)
    )
    return record, said


def test_true_objects_in_every_world(scripts, save_run, tmp_path):
    run = save_run(tmp_path / "run", "objects")
    record, said = evaluated(scripts, run, seeds=[0, 1])
    assert record == read_evaluation(run)
    identity = {key: record[key] for key in ("env", "obs", "agent", "seed", "step")}
    assert identity == {
        "env": "sprites-object_goal max_steps=15",
        **{"obs": "objects", "agent": "ppo set transformer", "seed": 4, "step": 1234},
    }
    assert record["num_episodes"] == len(record["episodes"]["return"]) == 12
    assert record["floor"]["num_episodes"] == 12 and "episodes" not in record["floor"]
    assert record["ceiling"]["mean"] == {"success": 0.974}
    assert "Yoon" in record["ceiling"]["source"]
    table = yaml.safe_load((ROOT / "configs/variants/sprites.yaml").read_text())
    assert list(record["variants"]) == list(table)
    assert len(said) == 1 + len(table) + 1 and said[-1] == str(run / "evaluation.json")
    assert record["variants"]["more_objects"]["floor"]["mean"]["length"] <= 15
    assert record["training"] == {"num_episodes": 8, "score": None}


def test_a_world_without_rewards_is_named(scripts, save_run, tmp_path):
    run = save_run(tmp_path / "run", "objects", env="sprites")
    _, said = evaluated(scripts, run)
    assert any("return other than 0 in sprites" in line for line in said)
    _, said = evaluated(scripts, save_run(tmp_path / "goal", "objects"), worlds=[], episodes=20)
    assert not any("return other than 0" in line for line in said)


def test_a_smaller_evaluation_does_not_take_the_place_of_a_larger_one(scripts, save_run, tmp_path):
    run = save_run(tmp_path / "run", "objects")
    whole, _ = evaluated(scripts, run, worlds=["pairs"])
    for fewer in ({"worlds": []}, {"worlds": ["pairs"], "episodes": 2}):
        record, said = evaluated(scripts, run, **fewer)
        assert record != whole and read_evaluation(run) == whole
        assert "stays as it is, of 6 episodes in 2 worlds" in said[-1]
    again, _ = evaluated(scripts, run, worlds=["pairs", "sizes"])
    assert read_evaluation(run) == again != whole


def test_worlds_that_a_policy_can_not_read_are_left_out(scripts, save_run, tmp_path):
    run = save_run(tmp_path / "run", "objects", pooling=CONCATENATION)
    record, said = evaluated(scripts, run, worlds=["more_objects", "pairs"])
    assert list(record["variants"]) == ["pairs"]
    assert any("more_objects: left out: expected sets" in line for line in said)


def test_the_floor_and_the_worlds_are_the_same_for_all_agents(scripts, save_run, tmp_path):
    options = {"worlds": ["pairs"], "ceiling": str(save_run(tmp_path / "a", "objects"))}
    evaluated(scripts, tmp_path / "a", worlds=["pairs"])
    record, _ = evaluated(scripts, save_run(tmp_path / "b", "frame"), **options)
    other = read_evaluation(tmp_path / "a")
    assert record["obs"] == "pixels" and record["agent"] == "ppo cnn"
    assert record["floor"] == other["floor"]
    assert record["ceiling"]["mean"] == other["mean"]
    assert record["variants"]["pairs"]["ceiling"]["mean"] == other["variants"]["pairs"]["mean"]


def test_slots_as_a_user_starts_it(workplace, save_run):
    run = save_run(workplace.folder / "agent_run", "slots", encoder=workplace.folder / "run")
    options = ("episodes=4", "num_envs=2", "worlds=[pairs]", "video_steps=3")
    done = workplace.run("evaluate_agent", "checkpoint=agent_run", *options)
    assert done.returncode == 0, done.stderr
    assert "| as trained | 4 | " in done.stdout and "| pairs | 4 | " in done.stdout
    record = json.loads((run / "evaluation.json").read_text())
    assert record["obs"] == "slots (savi)" and np.isfinite(record["mean"]["length"])
    assert record["seeds"] == [0] and record["is_deterministic"] is False
    with Image.open(run / "video.gif") as opened:
        assert opened.size == (3 * 256 + 132 + 18, 298)
    assert (run / "video.mp4").stat().st_size > 1000


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"worlds": ["pear"]}, "no variant 'pear'; there are .* Did you mean 'pairs'"),
        ({"ceiling": "nobody"}, "no run or published figure 'nobody'; there are PPO on"),
    ],
)
def test_mistakes(scripts, save_run, tmp_path, changes, sentence):
    run = save_run(tmp_path / "run", "objects")
    with pytest.raises(ValueError, match=sentence):
        evaluated(scripts, run, **changes)
    assert not (run / "evaluation.json").exists()


def test_a_mistake_on_the_command_line_is_one_sentence(workplace):
    workplace.assert_mistake("evaluate_agent", words="expected checkpoint=RUN")


def test_a_ceiling_is_of_the_same_environment(scripts, save_run, tmp_path):
    run = save_run(tmp_path / "run", "objects", env="sprites-reach")
    evaluated(scripts, run, worlds=False)
    with pytest.raises(ValueError, match=r"expected a ceiling of sprites, got .* of sprites-reach"):
        scripts["agent_context"].find_ceiling(str(run), "sprites", {})
    assert scripts["agent_context"].find_ceiling(None, "sprites", {}) is None


@pytest.mark.parametrize("task", TASKS)
def test_held_out_worlds_are_of_the_task_and_new(scripts, task):
    own = registry.settings(task)
    variants = scripts["agent_context"].variants_of(task, own, True)
    trained_pairs = {tuple(pair) for pair in own["held_out"]}
    assert ("fewer_objects" in variants) == (own["num_objects"] != 3) and len(variants) >= 7
    for name, changes in variants.items():
        env = make(task, **changes)
        for seed in range(5):
            env.reset(seed=seed)
            table = env.objects()[1:]
            others = table[table["attributes"][:, 3] == 0]
            named = env.attribute_classes
            looks = {
                (named["shape"][int(row[0])], named["color"][int(row[1])])
                for row in table["attributes"]
            }
            if name in ("fewer_objects", "more_objects"):
                assert len(table) == changes["num_objects"] != own["num_objects"]
            elif name == "pairs":
                assert looks & trained_pairs
            elif "shapes" in changes:
                rest = {named["shape"][int(row[0])] for row in others["attributes"]}
                assert not rest & set(own["shapes"])
            elif "colors" in changes:
                rest = {named["color"][int(row[1])] for row in others["attributes"]}
                assert not rest & set(own["colors"])
            else:
                sizes = set(np.round(table["attributes"][:, 2], 3).tolist())
                assert not sizes & set(own["object_sizes"])
    env = make(task)
    for seed in range(20):
        env.reset(seed=seed)
        for row in env.objects()[1:]["attributes"]:
            look = env.attribute_classes["shape"][int(row[0])], list(named["color"])[int(row[1])]
            assert look not in trained_pairs


def test_the_free_world_has_no_variants(scripts):
    assert scripts["agent_context"].variants_of("sprites", registry.settings("sprites"), True) == {}
    assert scripts["agent_context"].variants_of("crafter", registry.settings("crafter"), True) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"frames_per_second": 0}, "frames_per_second above 0, got 0")],
)
def test_settings_are_checked_before_anything_is_played(load_script, changes, message):
    config = OmegaConf.create(settings(checkpoint="nowhere", **changes))
    del config["hydra"]
    with pytest.raises(ValueError, match=message):
        load_script("evaluate_agent").main.__wrapped__(config)


def test_runs_that_can_not_be_compared_are_not_played(load_script, save_run, tmp_path):
    runs = [save_run(tmp_path / name, "objects") for name in ("one", "two")]
    for run in runs:
        (run / "progress.csv").write_text("step,return\n1,0.5\n")
    for given, message in (
        ([runs[0], runs[0]], "each run once, got .*one given twice"),
        (runs, "with seed 4, got .*one and .*two"),
    ):
        config = OmegaConf.create(settings(checkpoint=list(map(str, given))))
        del config["hydra"]
        with pytest.raises(ValueError, match=message):
            load_script("evaluate_agent").main.__wrapped__(config)
        assert not (runs[0] / "evaluation.json").exists()


def test_training_ends_with_an_evaluation(workplace):
    options = [
        *("env=sprites-object_goal", "env.size=32", "env.max_steps=9", "obs=objects"),
        *("agent.num_envs=2", "agent.arguments.n_steps=16", "agent.arguments.batch_size=16"),
        *("agent.total_steps=32", "agent.evaluate_every=0", "evaluation.num_episodes=2"),
        *("pooling.dim=8", "pooling.num_heads=2", "name=ends"),
    ]
    done = workplace.run("train_agent", *options)
    assert done.returncode == 0, done.stderr
    directory = workplace.output("train_agent", "ends")
    record = read_evaluation(directory)
    assert record["step"] == 32 and record["num_episodes"] == 2 and record["variants"]
    assert {path.name for path in directory.iterdir()} >= {"video.mp4", "video.gif"}
    # Stopped between training and evaluation, the same command evaluates.
    (directory / "evaluation.json").unlink()
    again = workplace.run("train_agent", *options)
    assert again.returncode == 0 and read_evaluation(directory) == record


def test_an_agent_reads_other_numbers_of_rows_and_nothing_else(save_run, tmp_path):
    agent = saving.load(save_run(tmp_path / "run", "objects"))
    rows, columns = agent.policy.observation_space.shape
    more = Box(-np.inf, np.inf, (rows + 2, columns), np.float32)
    wider = agent.reading(more)
    table = np.zeros((1, rows + 2, columns), np.float32)
    table[0, :2, 0] = 1.0
    options = {"is_deterministic": True}
    action, _ = wider.act(table, None, np.ones(1, bool), **options)
    same, _ = agent.act(table[:, :rows], None, np.ones(1, bool), **options)
    assert action == same and agent.policy.observation_space.shape == (rows, columns)
    assert agent.reading(agent.policy.observation_space) is agent
    with pytest.raises(ValueError, match="but for rows of sets"):
        agent.reading(Box(-np.inf, np.inf, (rows, columns + 1), np.float32))


def test_an_encoder_that_learns_with_the_policy_is_another_method(scripts, save_run, tmp_path):
    run = save_run(tmp_path / "run", "frame")
    meta, config = saving.read_meta(run), saving.read_config(run)
    config["encoder"] = {"_target_": "ocrl.encoders.slot_attention.SlotAttentionEncoder"}
    identity = scripts["agent_context"].identity(run, meta=meta, config=config)
    assert identity["obs"] == "slots (slot_attention, gradient)"
    assert identity["agent"] == "ppo set transformer"


def test_an_agent_that_began_with_rollouts_is_another_method(scripts, save_run, tmp_path):
    run = save_run(tmp_path / "run", "objects")
    meta, config = saving.read_meta(run), saving.read_config(run)
    for rollouts, expected in ((None, ""), ("runs/x/episodes", ", begun with rollouts")):
        config["training"]["replay"] = {"rollouts": rollouts}
        identity = scripts["agent_context"].identity(run, meta=meta, config=config)
        assert identity["agent"] == f"ppo set transformer{expected}"
