"""Policies as agents: what they read, and what comes back from a file."""

import sys

import numpy as np
import pytest
import torch
import yaml
from gymnasium.spaces import Box

from ocrl.agents import load, saving
from ocrl.agents.policy import find_algorithm
from ocrl.agents.ppo import ModelFree
from ocrl.agents.run import AgentRun

ALGORITHMS = ("ppo", "a2c", "dqn", "recurrent_ppo")


@pytest.fixture(autouse=True)
def _needs_contrib(request):
    if "recurrent_ppo" in str(getattr(request, "param", "")) + request.node.name:
        pytest.importorskip("sb3_contrib")


def trained(folder, env, settings, *, plain_key="objects", steps=40):
    agent = ModelFree(**settings | {"total_steps": steps})
    run = AgentRun(folder, {"env": "toy", "encoder": None})
    return agent.train(env, run=run, network=agent.network(plain_key=plain_key))


def played(agent, env, *, seed=3, steps=12):
    """Actions of an agent that takes the likeliest ones."""
    observation, _ = env.reset(seed=seed)
    state, is_first = agent.initial_state(env.num_envs), np.ones(env.num_envs, bool)
    actions = []
    for _ in range(steps):
        action, state = agent.act(observation, state, is_first, is_deterministic=True)
        observation, _, terminated, truncated, _ = env.step(action)
        is_first = terminated | truncated
        actions.append(action)
    return np.stack(actions)


def attended(agent, observation):
    """The policy's attention at the start of two episodes."""
    return agent.attention(observation, agent.initial_state(2), np.ones(2, bool))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_learns_saves_and_loads(algorithm, tmp_path, make_toy, small_settings):
    env = make_toy("objects", "inventory", "frame")
    agent = trained(tmp_path, env, small_settings(algorithm))
    loaded = load(tmp_path, env=env)
    ours, theirs = agent.policy.state_dict(), loaded.policy.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    np.testing.assert_array_equal(played(loaded, env), played(agent, env))
    names = {path.name for path in (tmp_path / "agent").iterdir()}
    assert names == {"policy.safetensors", "config.yaml", "meta.json", "resume"}
    share = attended(loaded, env.reset(seed=0)[0])
    np.testing.assert_allclose(share.sum(-1), 1.0, rtol=1e-5)
    # The third row is not there.
    assert share.shape == (2, 3) and (share[:, 2] == 0).all() and (share[:, :2] > 0).all()


@pytest.mark.parametrize(
    "keys", [("frame",), ("slots",), ("frame", "inventory"), ("slots", "inventory"), ("inventory",)]
)
def test_a_policy_reads_any_parts(keys, tmp_path, make_toy, small_settings):
    env = make_toy(*keys)
    agent = trained(tmp_path, env, small_settings("ppo"), plain_key=keys[0])
    np.testing.assert_array_equal(played(load(tmp_path, env=env), env), played(agent, env))
    assert (attended(agent, env.reset(seed=0)[0]) is None) == ("slots" not in keys)


def test_rows_that_are_not_there_and_their_order_change_nothing(tmp_path, make_toy, small_settings):
    env = make_toy("objects")
    agent = trained(tmp_path, env, small_settings("ppo"))
    table, _ = env.reset(seed=1)
    other = table[:, [2, 1, 0]].copy()
    other[:, 0, 1:] = 7.0
    values = [agent.policy.predict_values(torch.from_numpy(t)) for t in (table, other)]
    torch.testing.assert_close(values[0], values[1])


def test_what_is_asked_for_decides_which_rows_matter(tmp_path, make_toy, small_settings):
    env = make_toy("slots", "inventory")
    agent = trained(tmp_path, env, small_settings("ppo"), plain_key="slots")
    seen, _ = env.reset(seed=1)
    other = {**seen, "inventory": seen["inventory"] + 3}
    shares = [attended(agent, observation) for observation in (seen, other)]
    assert np.abs(shares[0] - shares[1]).max() > 1e-4
    # A table's first column is no feature, and vectors are not taken for one.
    env = make_toy("objects", "inventory")
    features = trained(tmp_path / "table", env, small_settings("ppo")).features
    named = {name: torch.from_numpy(part) for name, part in env.reset(seed=1)[0].items()}
    rows, is_present = features._set("objects", named)
    width = named["inventory"].shape[1]
    begin = named["objects"].shape[-1] - 1
    assert rows.shape[-1] == begin + width + small_settings("ppo")["match_dim"]
    torch.testing.assert_close(rows[:, 1, begin : begin + width], named["inventory"])
    assert torch.equal(is_present, named["objects"][..., 0] > 0.5)


def test_features_of_sets_are_scaled_by_what_was_measured(tmp_path, make_toy, small_settings):
    env = make_toy("slots")
    agent = trained(tmp_path, env, small_settings("ppo"), plain_key="slots")
    rows = torch.from_numpy(np.concatenate([env.reset(seed=s)[0] for s in range(200)]))
    scaled = agent.features.scales["slots"](rows).flatten(0, 1)
    # Few random steps measured it, so it is about that.
    assert scaled.mean(0).abs().max() < 0.25
    torch.testing.assert_close(scaled.std(0), torch.ones(4), atol=0.2, rtol=0)


def test_agents_of_before_have_slots_as_they_are(tmp_path, make_toy, small_settings):
    env = make_toy("slots")
    settings = small_settings("ppo") | {"whitening": None, "hides_empty": False}
    agent = trained(tmp_path, env, settings, plain_key="slots")
    path = tmp_path / "agent/config.yaml"
    config = yaml.safe_load(path.read_text())
    for name in ("whitening", "hides_empty", "num_geometry"):
        del config[name]
    path.write_text(yaml.safe_dump(config))
    np.testing.assert_array_equal(played(load(tmp_path, env=env), env), played(agent, env))


def test_a_recurrent_policy_starts_afresh_with_an_episode(tmp_path, make_toy, small_settings):
    env = make_toy("slots")
    agent = trained(tmp_path, env, small_settings("recurrent_ppo"), plain_key="slots")
    observation, _ = env.reset(seed=0)
    fresh = agent.initial_state(2)
    _, after = agent.act(observation, fresh, np.ones(2, bool), is_deterministic=True)
    assert all((part == 0).all() for part in fresh)
    _, going_on = agent.act(observation, after, np.array([True, False]), is_deterministic=True)
    np.testing.assert_allclose(going_on[0][:, 0], after[0][:, 0], atol=1e-6)
    assert not np.allclose(going_on[0][:, 1], after[0][:, 1], atol=1e-4)


@pytest.mark.parametrize("algorithm", ["ppo", "recurrent_ppo"])
def test_some_environments_go_on_alone(algorithm, tmp_path, make_toy, small_settings):
    env = make_toy("slots", num_envs=4)
    agent = trained(tmp_path, env, small_settings(algorithm), plain_key="slots")
    observation, _ = env.reset(seed=0)
    goes_on, own = np.zeros(4, bool), np.array([2, 0])
    _, state = agent.act(
        observation, agent.initial_state(4), np.ones(4, bool), is_deterministic=True
    )
    observation, *_ = env.step(np.zeros(4, int))
    _, after = agent.act(observation, state, goes_on, is_deterministic=True)
    _, alone = agent.act(
        observation[own], agent.cut(state, own), goes_on[own], is_deterministic=True
    )
    for one, other in zip(agent.cut(after, own) or (), alone or (), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert (alone is None) == (algorithm == "ppo")


def test_what_does_not_fit_is_refused(tmp_path, make_toy, small_settings):
    with pytest.raises(ValueError, match=r"agent.whitening above 0, or null for none, got 0"):
        ModelFree(**small_settings("ppo") | {"whitening": 0})
    env = make_toy("objects")
    trained(tmp_path, env, small_settings("ppo"))
    with pytest.raises(ValueError, match="expected the observation space of its training"):
        load(tmp_path, env=make_toy("objects", "inventory"))
    with pytest.raises(ValueError, match="expected the action space of its training"):
        load(tmp_path, env=make_toy("objects", action_space=Box(-1, 1, (2,))))
    with pytest.raises(ValueError, match="learned without an encoder"):
        load(tmp_path, encoder=tmp_path)
    with pytest.raises(FileNotFoundError, match="expected an agent"):
        load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="expected discrete actions for dqn"):
        trained(
            tmp_path / "x",
            make_toy("objects", action_space=Box(-1, 1, (2,))),
            small_settings("dqn"),
        )
    settings = small_settings("ppo")
    settings["arguments"]["n_stepz"] = 3
    with pytest.raises(ValueError, match="n_stepz"):
        trained(tmp_path / "x", env, settings)
    with pytest.raises(ValueError, match="expected algorithm to be one of"):
        ModelFree(**small_settings("ppo") | {"algorithm": "sac"})
    with pytest.raises(ValueError, match=r"agent.num_envs to be from 1 on, got 0"):
        ModelFree(**small_settings("ppo") | {"num_envs": 0})


def test_a_damaged_or_foreign_folder_is_refused(tmp_path, make_toy, small_settings):
    trained(tmp_path, make_toy("objects"), small_settings("ppo"))
    folder = tmp_path / "agent"
    config, meta = (folder / "config.yaml").read_text(), (folder / "meta.json").read_text()

    def refused(match):
        with pytest.raises(ValueError, match=match):
            load(tmp_path)

    (folder / "config.yaml").write_text(
        config.replace("ocrl.agents.policy.PolicyAgent", "os.system")
    )
    refused("a Agent class|an Agent class|Agent class defined under ocrl")
    (folder / "config.yaml").write_text(
        config.replace("pooling.ComparingTransformer", "policy.Network")
    )
    refused("torch.nn.Module class defined under ocrl")
    (folder / "config.yaml").write_text(config.replace("dim: 8", "dim: 16"))
    refused("do not fit")
    (folder / "config.yaml").write_text(config)
    (folder / "meta.json").write_text(meta.replace('"version": 1', '"version": 9'))
    refused("expected version 1, got 9")
    (folder / "meta.json").write_text(meta)
    (folder / "policy.safetensors").write_bytes(b"no tensors")
    refused("damaged")


def test_an_agent_names_its_encoder_and_refuses_another(tmp_path, make_toy, small_settings):
    for name in ("first", "second"):
        folder = tmp_path / name / "checkpoint"
        folder.mkdir(parents=True)
        for file in ("config.yaml", "model.safetensors", "meta.json"):
            (folder / file).write_text(name)
    agent = ModelFree(**small_settings("ppo") | {"total_steps": 16})
    run = tmp_path / "run"
    described = saving.describe_part(tmp_path / "first" / "checkpoint", run)
    agent.train(
        make_toy("slots"),
        run=AgentRun(run, {"env": "toy", "encoder": described}),
        network=agent.network(plain_key="slots"),
    )
    load(run, encoder=tmp_path / "first")
    assert saving.encoder_path(run) == (tmp_path / "first" / "checkpoint").resolve()
    with pytest.raises(ValueError, match="its slots mean something else"):
        load(run, encoder=tmp_path / "second")
    # One inside the run is found wherever the run is.
    inner = saving.describe_part(tmp_path / "first" / "checkpoint", tmp_path)
    assert inner["path"] == "first/checkpoint"


def test_what_a_missing_package_needs_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(ValueError, match=r"pip install 'ocrl\[recurrent\]'"):
        find_algorithm("recurrent_ppo")
