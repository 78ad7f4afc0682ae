"""Training: resumed equals uninterrupted, and what goes wrong costs nothing."""

import csv
import os
import signal

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from ocrl.agents import saving
from ocrl.agents.ppo import ModelFree
from ocrl.agents.run import AgentRun
from ocrl.agents.vector import StableBaselinesVecEnv
from ocrl.envs.crafter import crafter_score
from ocrl.train import InterruptedTraining, NonFiniteLossError


class Killed(Exception):
    """As if the machine had lost power."""


def train(folder, env, settings, *, interrupt=None, at=0, network=None, **changes):
    """Train on sets; call `interrupt` in the first evaluation from step `at` on."""

    def evaluate(agent, step, board):
        # What an evaluation draws must not change what training draws.
        np.random.rand(3)
        torch.rand(3)
        if interrupt is not None and step >= at:
            interrupt(agent)
        return {"return": 0.5}

    agent = ModelFree(**settings | {"evaluate_every": 30} | changes)
    return agent.train(
        env,
        run=AgentRun(folder, {"env": "toy", "encoder": None}),
        network=network or agent.network(plain_key="objects"),
        evaluate=evaluate,
        score=crafter_score,
    )


def kill(agent):
    raise Killed


def ctrl_c(agent):
    os.kill(os.getpid(), signal.SIGINT)


def weights(agent):
    return {name: value.clone() for name, value in agent.policy.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def rows(folder):
    with (folder / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("algorithm", "final_fraction"),
    [("ppo", 1.0), ("ppo", 0.0), ("a2c", 1.0), ("dqn", 1.0), ("recurrent_ppo", 1.0)],
)
def test_killed_and_resumed_equals_uninterrupted(
    algorithm, final_fraction, tmp_path, make_toy, small_settings
):
    if algorithm == "recurrent_ppo":
        pytest.importorskip("sb3_contrib")
    settings = small_settings(algorithm) | {"final_fraction": final_fraction}
    if final_fraction < 1:
        settings["arguments"] = settings["arguments"] | {"ent_coef": 0.1}
    whole = train(tmp_path / "whole", make_toy("objects"), settings)
    for at in (50, 100):  # before and after the first checkpoint
        with pytest.raises(Killed):
            train(tmp_path / "killed", make_toy("objects"), settings, interrupt=kill, at=at)
    resumed = train(tmp_path / "killed", make_toy("objects"), settings)
    assert_same(weights(whole), weights(resumed))
    timing = ("seconds", "steps_per_second")
    one, other = (
        [{k: v for k, v in row.items() if k not in timing} for row in rows(tmp_path / name)]
        for name in ("whole", "killed")
    )
    assert one == other and len(one) > 3
    metas = [saving.read_meta(tmp_path / name) for name in ("whole", "killed")]
    assert metas[0] == metas[1] and metas[0]["training"]["num_episodes"] > 10


def test_the_learning_rate_falls_in_a_line(tmp_path, make_toy, small_settings):
    settings = small_settings("ppo") | {"final_fraction": 0.2}
    model = ModelFree(**settings).build(
        StableBaselinesVecEnv(make_toy("objects")),
        ModelFree(**settings).network(plain_key="objects"),
    )
    start = settings["arguments"]["learning_rate"]
    found = [model.lr_schedule(left) for left in (1.0, 0.5, 0.0)]
    np.testing.assert_allclose(found, [start, 0.6 * start, 0.2 * start])


def test_the_fall_begins_where_it_is_to(small_settings):
    settings = small_settings("ppo") | {"final_fraction": 0.2, "fall_begins": 0.8}
    fall = ModelFree(**settings).falling(2.0)
    found = [fall(1 - done) for done in (0.0, 0.5, 0.8, 0.9, 1.0, 1.01)]
    np.testing.assert_allclose(found, [2.0, 2.0, 2.0, 1.2, 0.4, 0.4])
    with pytest.raises(ValueError, match=r"agent.fall_begins in \[0,1\), got 1"):
        ModelFree(**settings | {"fall_begins": 1.0})


def test_the_weight_of_the_entropy_falls_with_it(tmp_path, make_toy, small_settings, monkeypatch):
    settings = small_settings("ppo") | {"final_fraction": 0.2}
    settings["arguments"] = settings["arguments"] | {"ent_coef": 0.1}
    found = []
    update = PPO.train

    def note(self):
        found.append((self.num_timesteps, self.ent_coef))
        update(self)

    monkeypatch.setattr(PPO, "train", note)
    train(tmp_path, make_toy("objects"), settings)
    steps, entropies = np.array(found).T
    assert len(steps) > 3 and steps[-1] >= settings["total_steps"]
    expected = 0.1 * (1 - 0.8 * np.minimum(steps / settings["total_steps"], 1))
    np.testing.assert_allclose(entropies, expected)


def test_a_learning_rate_that_can_not_fall_is_refused(small_settings):
    settings = small_settings("ppo")
    with pytest.raises(ValueError, match=r"agent.final_fraction in \[0,1\], got 2"):
        ModelFree(**settings | {"final_fraction": 2.0})
    del settings["arguments"]["learning_rate"]
    with pytest.raises(ValueError, match=r"expected agent.arguments.learning_rate.* got none"):
        ModelFree(**settings | {"final_fraction": 0.0})


def test_another_seed_is_another_run(tmp_path, make_toy, small_settings):
    settings = small_settings("ppo")
    runs = [
        train(tmp_path / str(seed), make_toy("objects"), settings, seed=seed) for seed in (0, 1)
    ]
    name = "action_net.weight"
    assert not torch.equal(weights(runs[0])[name], weights(runs[1])[name])


def test_asked_to_stop_it_saves_and_goes_on_from_there(tmp_path, make_toy, small_settings):
    settings = small_settings("ppo")
    with pytest.raises(
        InterruptedTraining,
        match=r"stopped after step \d+ of 200 and saved .* the "
        "same command goes on",
    ):
        train(tmp_path, make_toy("objects"), settings, interrupt=ctrl_c, at=100)
    step = saving.read_meta(tmp_path)["step"]
    # Between two checkpoints, which are due at 70, 140, ...
    assert 100 <= step < 140
    train(tmp_path, make_toy("objects"), settings)
    assert saving.trained_steps(tmp_path) >= 200
    assert [int(row["step"]) for row in rows(tmp_path)] == sorted(
        {int(row["step"]) for row in rows(tmp_path)}
    )


def test_a_finished_run_does_nothing_and_a_longer_one_goes_on(tmp_path, make_toy, small_settings):
    settings = small_settings("ppo")
    first = train(tmp_path, make_toy("objects"), settings)
    again = train(tmp_path, make_toy("objects"), settings, interrupt=kill)
    assert_same(weights(first), weights(again))
    longer = train(tmp_path, make_toy("objects"), settings, total_steps=260)
    assert saving.trained_steps(tmp_path) >= 260
    assert not torch.equal(
        weights(first)["action_net.weight"], weights(longer)["action_net.weight"]
    )


def test_other_settings_are_another_run(tmp_path, make_toy, small_settings):
    settings = small_settings("ppo")
    train(tmp_path, make_toy("objects"), settings)
    with pytest.raises(
        ValueError,
        match=r"belongs to another run: its training.seed is 0, this "
        r"run's is 3; give this one another name",
    ):
        train(tmp_path, make_toy("objects"), settings, seed=3)
    with pytest.raises(ValueError, match="belongs to another run: its observation_space"):
        train(tmp_path, make_toy("objects", "inventory"), settings)


def test_rows_hold_the_means_of_the_episodes_since_the_row_before(
    tmp_path, make_toy, small_settings
):
    train(tmp_path, make_toy("objects"), small_settings("ppo"))
    table = rows(tmp_path)
    assert [int(row["step"]) for row in table] == [48, 80, 128, 160, 208, 208][: len(table)]
    for row in table[:-1]:
        success, length = float(row["success"]), float(row["length"])
        assert 0 <= success <= 1 and 3 <= length <= 9
        assert float(row["return"]) <= length and float(row["steps_per_second"]) > 0
        # One of two achievements is the success, the other one is never reached.
        expected = crafter_score([success, 0.0])
        assert float(row["score"]) == pytest.approx(expected, rel=1e-3)
    episodes = saving.read_meta(tmp_path)["training"]
    assert episodes["achieved"]["never"] == 0 < episodes["achieved"]["guess"]


def test_a_loss_that_is_nan_stops_and_keeps_the_last_checkpoint(tmp_path, make_toy, small_settings):
    def spoil(agent):
        with torch.no_grad():
            agent.policy.value_net.bias.fill_(torch.nan)

    with pytest.raises(NonFiniteLossError) as caught:
        train(tmp_path, make_toy("objects"), small_settings("ppo"), interrupt=spoil, at=90)
    kept = saving.read_meta(tmp_path)["step"]
    assert 70 <= kept < 90
    assert f"the checkpoint of step {kept} in {tmp_path / 'agent'} is kept" in str(caught.value)
    assert "\n" not in str(caught.value)
    saved = train(tmp_path, make_toy("objects"), small_settings("ppo"))
    assert all(value.isfinite().all() for value in weights(saved).values())


def test_an_observation_that_is_nan_is_named(tmp_path, make_toy, small_settings):
    env = make_toy("objects", "inventory", poison=120)
    with pytest.raises(
        ValueError,
        match=r"objects of environment 0, 1 is not finite at step \d+; "
        r"the checkpoint of step \d+ .* is kept",
    ):
        train(tmp_path, env, small_settings("ppo"))


def test_an_environment_whose_process_ends_costs_nothing(tmp_path, make_toy, small_settings):
    env = make_toy("objects")
    inner, calls = env.step, []

    def step(actions):
        calls.append(actions)
        # 65 steps of two environments go before learning, to measure the scale.
        if len(calls) > 120:
            raise ChildProcessError("the process of environment 1 has ended")
        return inner(actions)

    env.step = step
    with pytest.raises(
        ChildProcessError,
        match=r"environment 1 has ended; the checkpoint of step "
        r"80 .* is kept, and the same command goes on",
    ):
        train(tmp_path, env, small_settings("ppo"))
    train(tmp_path, make_toy("objects"), small_settings("ppo"))
    assert saving.trained_steps(tmp_path) >= 200
