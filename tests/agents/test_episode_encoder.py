"""Slots made of remembered frames, and rollouts that a replay begins with."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from ocrl import checkpoint
from ocrl.agents import saving
from ocrl.agents.episode_encoder import EpisodeEncoder
from ocrl.agents.model_based import ModelBased
from ocrl.agents.replay import EpisodeReplay
from ocrl.agents.run import AgentRun
from ocrl.agents.tuning import Drift, EncoderTuning, TuningSettings
from ocrl.data.store import EpisodeStore, EpisodeWriter
from ocrl.envs.collect import collect
from ocrl.envs.recent_frames import RecentFrames
from ocrl.envs.slots import SlotVectorEnv
from ocrl.envs.vector import make_vec

CONFIGS = str(Path(__file__).parents[2] / "configs")
ENV = "sprites-object_comparison"
ARGUMENTS = {"size": 16, "max_steps": 8, "num_objects": 3, "step_size": 0.11}
SMALL = (
    *("decoder=broadcast", "num_slots=3", "slot_dim=8", "image_size=[16,16]"),
    *("encoder.backbone.channels=[4]", "encoder.backbone.strides=[4]"),
    *("decoder.channels=[4]", "decoder.strides=[4]"),
)
TUNING = {"every": 4, "num_steps": 1, "batch_size": 2, "clip_length": 3, "seed": 0}


@pytest.fixture(scope="module")
def slot_model():
    """A slot model with a memory, and what it is built from."""
    with initialize_config_dir(version_base="1.3", config_dir=CONFIGS):
        settings = compose("pretrain", overrides=["encoder=savi", *SMALL])
    config = {"_target_": "ocrl.model.SlotModel", "is_conditioned": False}
    for part in ("encoder", "decoder", "objectives", "weights"):
        config[part] = checkpoint.plain(settings[part])
    torch.manual_seed(0)
    return checkpoint.build(config).eval(), config


def slot_envs(model, *, num_envs=2, **options):
    frames = RecentFrames(make_vec(ENV, num_envs, **ARGUMENTS), num_steps=12)
    return SlotVectorEnv(frames, model.encoder, has_geometry=True, **options)


def reader(model):
    return EpisodeEncoder(model.encoder, has_geometry=True)


def train(folder, model, settings, *, envs=None, extra=None, **changes):
    agent = ModelBased(**settings | changes)
    envs = slot_envs(model, has_frame=True) if envs is None else envs
    meta = {"env": ENV, "env_arguments": ARGUMENTS, "encoder": {"path": "p", "hash": "h"}}
    network = agent.network(plain_key="slots", has_order=True)
    return agent.train(
        envs, run=AgentRun(folder, meta), network=network, encoder=reader(model), extra=extra
    )


def observed(observation):
    return observation["frame"], observation["slots"]


def test_an_episode_gives_what_the_environment_gave(slot_model):
    model, _ = slot_model
    envs = slot_envs(model, num_envs=3, has_frame=True)
    observation, _ = envs.reset(seed=0)
    envs.action_space.seed(0)
    running = [[(frame, row, 0)] for frame, row in zip(*observed(observation), strict=True)]
    episodes = []
    for _ in range(40):
        done = envs.action_space.sample()
        observation, _, terminated, truncated, info = envs.step(done)
        for env, (frame, row) in enumerate(zip(*observed(observation), strict=True)):
            running[env][-1] = (*running[env][-1][:2], done[env])
            if terminated[env] | truncated[env]:
                last = info["final_obs"][env]
                episodes.append([*running[env], (last["frame"], last["slots"], 0)])
                running[env] = []
            running[env].append((frame, row, 0))
    episodes = [[np.stack(column) for column in zip(*e, strict=True)] for e in episodes]
    made = reader(model).encode([video for video, _, _ in episodes], [e[2] for e in episodes])
    assert len({len(video) for video, _, _ in episodes}) > 1 and len(episodes) > 4
    for found, (_, expected, _) in zip(made, episodes, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_fingerprint_changes_with_the_weights_alone(slot_model):
    model = copy.deepcopy(slot_model[0])
    one = reader(model)
    before = one.fingerprint
    assert before == reader(slot_model[0]).fingerprint == one.fingerprint
    with torch.no_grad():
        next(model.encoder.parameters()).add_(1e-3)
    assert one.fingerprint == reader(model).fingerprint != before
    model.encoder.load_state_dict(slot_model[0].encoder.state_dict())
    assert one.fingerprint == before
    with torch.no_grad():
        next(model.decoder.parameters()).add_(1e-3)
    other = EpisodeEncoder(model.encoder, decoder=model.decoder, has_geometry=True)
    assert other.fingerprint != EpisodeEncoder(model.encoder, has_geometry=True).fingerprint


def tuning(model, config, envs):
    def make(agent, board):
        return EncoderTuning(
            model,
            envs.env,
            loader=None,
            settings=TuningSettings(**TUNING, learning_rate=1e-3, clip_norm=1.0),
            drift=Drift(model.encoder, torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8)),
            board=board,
            origin={"path": "p", "hash": "h"},
            config=config,
            env=ENV,
        )

    return make


def test_slots_are_made_again_where_the_encoder_learns_on(
    tmp_path, slot_model, small_world_settings
):
    settings = small_world_settings()
    settings["learning"]["updates_per_step"] = 0.2

    def once(name, num_steps=None):
        """Train, or break down after so many steps of the environments."""
        model = copy.deepcopy(slot_model[0])
        envs = slot_envs(model, has_frame=True)
        inner, calls = envs.step, []

        def step(actions):
            calls.append(actions)
            if len(calls) == num_steps:
                raise ChildProcessError("gone")
            return inner(actions)

        envs.step = step
        extra = tuning(model, slot_model[1], envs)
        train(tmp_path / name, model, settings, envs=envs, extra=extra, total_steps=60)
        return model

    model = once("whole")
    assert reader(model).fingerprint != reader(slot_model[0]).fingerprint
    replay = EpisodeReplay(capacity=80, seed=0)
    replay.load(tmp_path / "whole/agent/resume")
    assert replay.version == reader(model).fingerprint
    places = range(len(replay))
    current = set(places) - set(replay.outdated(places))
    # What was drawn last is of the encoder as it is now, from its frames.
    assert current
    for place in sorted(current):
        parts, outcomes = replay.episode(place)
        again = reader(model).encode([parts["frame"]], [outcomes["action"]])[0]
        np.testing.assert_allclose(parts["slots"], again, atol=1e-5)
    meta = saving.read_meta(tmp_path / "whole")
    assert meta["encoder"]["origin"] == {"path": "p", "hash": "h"}
    with pytest.raises(ChildProcessError, match=r"the checkpoint of step 42 .* is kept"):
        once("killed", num_steps=25)
    assert reader(once("killed")).fingerprint == reader(model).fingerprint


def test_an_encoder_that_changes_under_frames_that_are_gone_is_refused(
    tmp_path, slot_model, small_world_settings
):
    model = copy.deepcopy(slot_model[0])
    envs = slot_envs(model)
    step, calls = envs.step, []

    def changing(actions):
        calls.append(actions)
        if len(calls) == 20:
            with torch.no_grad():
                next(model.encoder.parameters()).add_(0.01)
        return step(actions)

    envs.step = changing
    with pytest.raises(ValueError, match=r"the encoder has changed under the replay.*is kept"):
        train(tmp_path, model, small_world_settings(), envs=envs)


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory):
    path = tmp_path_factory.mktemp("rollouts") / "episodes"
    collect(
        *(ENV, ARGUMENTS),
        path=path,
        num_steps=40,
        policy="random",
        num_workers=0,
        seed=0,
        episode_length=6,
        segmentation=[],
        progress=False,
    )
    return path


def test_a_replay_begins_with_rollouts(tmp_path, slot_model, small_world_settings, rollouts):
    settings = small_world_settings()
    settings["replay"] |= {"rollouts": str(rollouts), "prefill_steps": 0, "capacity": 1000}
    model = slot_model[0]
    train(tmp_path, model, settings, envs=slot_envs(model), total_steps=24)
    replay = EpisodeReplay(capacity=1000, seed=0)
    replay.load(tmp_path / "agent/resume")
    store = EpisodeStore(rollouts)
    assert replay.num_steps == store.num_frames - len(store) + saving.read_meta(tmp_path)["step"]
    for index in range(len(store)):
        episode = store.episode(index)
        parts, outcomes = replay.episode(index)
        for name in ("action", "reward", "terminated", "truncated"):
            assert (outcomes[name] == episode[name]).all(), name
        again = reader(model).encode([np.asarray(episode["frames"])], [episode["action"]])[0]
        np.testing.assert_allclose(parts["slots"], again, atol=1e-6)


def bare(path, **metadata):
    with EpisodeWriter(path, metadata=metadata) as writer:
        frames = np.zeros((4, 16, 16, 3), np.uint8)
        rows = {"frames": frames, "action": np.zeros(4, np.int64)}
        if metadata:
            rows |= {"reward": np.zeros(4, np.float32)}
            rows |= {name: np.zeros(4, bool) for name in ("terminated", "truncated")}
        writer.append(rows)
    return path


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({}, "expected episodes with action, reward, .* got none of reward, terminated"),
        ({"env": "ocrl/Sprites-ObjectGoal-v0"}, "expected rollouts of env=sprites-object_comp"),
        ({"action_space": "Discrete(9)"}, r"expected actions of Discrete\(4\).*Discrete\(9\)"),
        ({"env_arguments": {"num_objects": 4}}, r"rollouts with env.num_objects=3, got 4"),
    ],
)
def test_rollouts_that_do_not_fit_are_refused(
    metadata, sentence, tmp_path, slot_model, small_world_settings
):
    settings = small_world_settings()
    settings["replay"]["rollouts"] = str(bare(tmp_path / "episodes", **metadata))
    with pytest.raises(ValueError, match=sentence):
        train(tmp_path / "run", slot_model[0], settings, envs=slot_envs(slot_model[0]))


def test_rollouts_are_of_frames(tmp_path, make_toy, small_world_settings, rollouts):
    settings = small_world_settings()
    settings["replay"]["rollouts"] = str(rollouts)
    agent = ModelBased(**settings)
    with pytest.raises(ValueError, match=r"expected an agent that sees slots alone"):
        agent.train(
            make_toy("objects"),
            run=AgentRun(tmp_path, {"env": ENV, "encoder": None}),
            network=agent.network(plain_key="objects", has_order=True),
        )
