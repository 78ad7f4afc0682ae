"""Training with a world model: resumed equals uninterrupted, and what goes wrong costs nothing."""

import csv
import os
import signal

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from ocrl.agents import load, saving
from ocrl.agents.model_based import ModelBased
from ocrl.agents.replay import EpisodeReplay
from ocrl.agents.run import AgentRun
from ocrl.agents.set_world import SetWorld
from ocrl.envs.crafter import crafter_score
from ocrl.train import InterruptedTraining, NonFiniteLossError

BOX = Box(np.array([-2.0], np.float32), np.array([6.0], np.float32))


class Killed(Exception):
    """As if the machine had lost power."""


def train(folder, env, settings, *, interrupt=None, at=0, key="objects", has_order=True, **changes):
    """Train on sets; call `interrupt` in the first evaluation from step `at` on."""

    def evaluate(agent, step, board):
        # What an evaluation draws must not change what training draws.
        np.random.rand(3)
        torch.rand(3)
        if interrupt is not None and step >= at:
            interrupt(agent)
        return {"return": 0.5}

    agent = ModelBased(**settings | {"evaluate_every": 12} | changes)
    return agent.train(
        env,
        run=AgentRun(folder, {"env": "toy", "encoder": None}),
        network=agent.network(plain_key=key, has_order=has_order),
        evaluate=evaluate,
        score=crafter_score,
    )


def kill(agent):
    raise Killed


def ctrl_c(agent):
    os.kill(os.getpid(), signal.SIGINT)


def weights(agent):
    return {name: value.clone() for name, value in agent.modules.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def rows(folder):
    with (folder / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def replayed(folder):
    replay = EpisodeReplay(capacity=80, seed=0)
    replay.load(folder / "agent/resume")
    return replay


@pytest.mark.parametrize(
    ("keys", "action_space", "has_order", "learning"),
    [
        (("objects",), None, True, {}),
        (("slots", "inventory"), BOX, False, {}),
        (("slots",), BOX, True, {"motion_updates": 2, "motion_batch": 5, "surprise_share": 0.25}),
    ],
    ids=["objects", "slots", "motions"],
)
def test_killed_and_resumed_equals_uninterrupted(
    keys, action_space, has_order, learning, tmp_path, make_toy, small_world_settings
):
    def once(name, **interruption):
        env = make_toy(*keys, action_space=action_space)
        settings = small_world_settings()
        settings["learning"] |= learning
        arguments = {"key": keys[0], "has_order": has_order, **interruption}
        return train(tmp_path / name, env, settings, **arguments)

    whole = once("whole")
    for at in (30, 60):  # before and after the first checkpoint
        with pytest.raises(Killed):
            once("killed", interrupt=kill, at=at)
    resumed = once("killed")
    assert_same(weights(whole), weights(resumed))
    timing = ("seconds", "steps_per_second")
    one, other = (
        [{k: v for k, v in row.items() if k not in timing} for row in rows(tmp_path / name)]
        for name in ("whole", "killed")
    )
    assert one == other and len(one) > 3
    metas = [saving.read_meta(tmp_path / name) for name in ("whole", "killed")]
    assert metas[0] == metas[1]
    # 18 steps of prefill; then a tenth of an update to a step, beside those before playing.
    assert metas[0]["training"]["num_updates"] == 2 + (metas[0]["step"] - 18) // 10
    replays = [replayed(tmp_path / name) for name in ("whole", "killed")]
    windows = [replay.cut(replay.windows(5, batch_size=20, length=4)) for replay in replays]
    for name, part in windows[0].observation.items():
        assert torch.equal(part, windows[1].observation[name])
    assert torch.equal(windows[0].action, windows[1].action)


def test_what_the_world_was_wrong_about_is_drawn_again(
    tmp_path, make_toy, small_world_settings, monkeypatch
):
    drawn, noted = [], []
    draw, note = EpisodeReplay.windows, EpisodeReplay.note_surprise

    def windows(self, number, **arguments):
        drawn.append(arguments)
        return draw(self, number, **arguments)

    def note_surprise(self, frames, surprise):
        noted.append(surprise)
        note(self, frames, surprise)

    monkeypatch.setattr(EpisodeReplay, "windows", windows)
    monkeypatch.setattr(EpisodeReplay, "note_surprise", note_surprise)
    settings = small_world_settings()
    learning, num_context = settings["learning"], settings["world"]["num_context"]
    learning |= {"batch_size": 8, "surprise_share": 0.25, "event_share": 0.375}
    train(tmp_path, make_toy("objects"), settings)
    assert {one["num_surprising"] for one in drawn} == {2}
    assert {one["num_given"] for one in drawn} == {num_context}
    assert {one["num_eventful"] for one in drawn} == {3}
    assert len(noted) == len(drawn) and all(len(one) == 8 * num_context for one in noted)
    assert all((one >= 0).all() and one.any() for one in noted)
    learning |= {"surprise_share": 0.0, "event_share": 0.0}
    noted.clear()
    train(tmp_path / "none", make_toy("objects"), settings)
    assert drawn[-1]["num_surprising"] == 0 and not noted
    learning |= {"surprise_share": 0.01, "event_share": 0.01}
    train(tmp_path / "few", make_toy("objects"), settings)
    assert drawn[-1]["num_surprising"] == drawn[-1]["num_eventful"] == 1
    learning |= {"surprise_share": 1.5, "event_share": 0.0}
    with pytest.raises(ValueError, match=r"surprise_share in \[0,1\], got 1.5"):
        train(tmp_path / "refused", make_toy("objects"), settings)
    learning |= {"surprise_share": 0.5, "event_share": 0.5}
    with pytest.raises(ValueError, match=r"of 8 windows, got 0\.5 and 0\.5"):
        train(tmp_path / "refused", make_toy("objects"), settings)


def test_the_dynamics_learns_from_more_steps_before_each_update(
    tmp_path, make_toy, small_world_settings, monkeypatch
):
    calls, rolled, moved = [], SetWorld.forward, SetWorld.move

    def forward(self, rows, window, *others, **named):
        calls.append("windows")
        return rolled(self, rows, window, *others, **named)

    def move(self, rows, window):
        calls.append("motions")
        assert rows.shape[:2] == (5, self.motion_length)
        return moved(self, rows, window)

    monkeypatch.setattr(SetWorld, "forward", forward)
    monkeypatch.setattr(SetWorld, "move", move)
    settings = small_world_settings()
    settings["learning"] |= {"motion_updates": 3, "motion_batch": 5}
    train(tmp_path / "with", make_toy("objects"), settings)
    number = calls.count("windows")
    assert calls == ["motions", "motions", "motions", "windows"] * number and number > 5
    # Windows that are drawn by surprise are as large a share of these.
    settings["learning"] |= {"surprise_share": 0.4}
    drawn, draw = [], EpisodeReplay.windows

    def windows(self, number, **arguments):
        drawn.append((arguments.get("series", ()), arguments["num_surprising"]))
        return draw(self, number, **arguments)

    monkeypatch.setattr(EpisodeReplay, "windows", windows)
    train(tmp_path / "surprised", make_toy("objects"), settings)
    assert drawn[:4] == [((2, 0), 2), ((2, 1), 2), ((2, 2), 2), ((), 2)]


@pytest.mark.parametrize(("reward", "is_rare"), [(0.0, True), (1.0, False)])
def test_updates_have_steps_of_which_many_are_events(
    tmp_path, make_toy, small_world_settings, monkeypatch, reward, is_rare
):
    whole, drawn = SetWorld.forward, []

    def noted(self, rows, window, steps=None, **others):
        drawn.append(steps)
        return whole(self, rows, window, steps, **others)

    monkeypatch.setattr(SetWorld, "forward", noted)
    settings = small_world_settings()
    settings["learning"]["outcome_batch"] = 20
    env = make_toy("objects")
    play = env.step

    def paid(action):
        observation, rewards, *rest = play(action)
        return observation, np.full_like(rewards, reward), *rest

    monkeypatch.setattr(env, "step", paid)
    agent = train(tmp_path, env, settings)
    for rows, steps in drawn:
        assert len(rows) == 20 and steps.shape == (20, 2)
        is_event = ((steps.reward != 0) | steps.terminated)[:, 1]
        assert is_event.sum() == (10 if is_rare else 20)
    outcome, replay = agent.world.outcome, replayed(tmp_path)
    assert bool(outcome.is_rare) == is_rare
    odds = (replay.num_events + 1) / (replay.num_steps - replay.num_events + 1)
    assert abs(float(outcome.log_odds) - np.log(odds)) < 0.7
    settings["learning"]["outcome_batch"] = 0
    drawn.clear()
    train(tmp_path / "none", make_toy("objects"), settings)
    assert drawn and not any(drawn)


@pytest.mark.parametrize("piece", [None, 3])
def test_the_replay_holds_what_was_played(tmp_path, make_toy, small_world_settings, piece):
    settings = small_world_settings()
    settings["replay"] |= {"capacity": 1000, "piece": piece}
    train(tmp_path, make_toy("objects", "inventory"), settings)
    replay = EpisodeReplay(capacity=1000, seed=0)
    replay.load(tmp_path / "agent/resume")
    step = saving.read_meta(tmp_path)["step"]
    num_pieces = len(replay)
    # Every step is there once; steps come in vector steps of two.
    assert replay.num_steps == step == replay.num_frames - num_pieces
    kinds, lengths = set(), set()
    for place in range(num_pieces):
        parts, outcomes = replay.episode(place)
        lengths.add(len(outcomes["reward"]))
        assert set(parts) == {"objects", "inventory"}
        assert outcomes["terminated"][-1] != outcomes["truncated"][-1]
        kinds.add(bool(outcomes["terminated"][-1]))
        answers = parts["objects"][:, 0, 1]
        # Reward came with a frame for the action that the frame before asked for.
        expected = outcomes["action"][:-1] == answers[:-1]
        assert (outcomes["reward"][1:] == expected).all() and outcomes["reward"][0] == 0
    assert kinds == {True, False}
    assert max(lengths) == 3 if piece else max(lengths) > 3


def test_shuffled_rows_are_remembered_in_the_order_of_their_objects(
    tmp_path, make_toy, small_world_settings
):
    def shuffled(parts):
        # A hundred apart, so that nobody can take one row for another.
        apart = parts + 100 * np.arange(3, dtype=np.float32)[:, None]
        return np.stack([table[np.random.permutation(3)] for table in apart])

    env = make_toy("slots")
    reset, step = env.reset, env.step

    def shuffling_step(actions):
        observation, *rest, info = step(actions)
        if "final_obs" in info:
            for row in np.flatnonzero(info["_final_obs"]):
                info["final_obs"][row] = shuffled(info["final_obs"][row][None])[0]
        return shuffled(observation), *rest, info

    env.reset = lambda **kwargs: (shuffled(reset(**kwargs)[0]), {})
    env.step = shuffling_step
    train(tmp_path, env, small_world_settings(), key="slots", has_order=False)
    replay = replayed(tmp_path)
    for place in range(len(replay)):
        slots = replay.episode(place)[0]["slots"]
        order = slots[:, :, 0].argsort(axis=1)
        assert (order == order[:1]).all()


def test_what_was_saved_acts_alike(tmp_path, make_toy, small_world_settings):
    env = make_toy("objects", action_space=BOX)
    trained = train(tmp_path, env, small_world_settings())
    loaded = load(tmp_path, env=env)
    observation, _ = env.reset(seed=3)
    for is_deterministic in (True, False):
        actions = []
        for agent in (trained, loaded):
            torch.manual_seed(0)
            state = agent.initial_state(2)
            action, _ = agent.act(
                observation, state, np.ones(2, bool), is_deterministic=is_deterministic
            )
            actions.append(action)
        assert (actions[0] == actions[1]).all() and actions[0].dtype == np.float32
        assert (actions[0] >= -2).all() and (actions[0] <= 6).all()
    share = loaded.attention(observation, loaded.initial_state(2), np.ones(2, bool))
    assert share.shape == (2, 3) and (share[:, 2] == 0).all()
    np.testing.assert_allclose(share.sum(1), 1.0, rtol=1e-5)
    with pytest.raises(ValueError, match="expected the action space of its training"):
        load(tmp_path, env=make_toy("objects"))


def test_an_agent_reads_other_numbers_of_rows_and_nothing_else(
    tmp_path, make_toy, small_world_settings
):
    agent = train(tmp_path, make_toy("objects"), small_world_settings())
    wider = agent.reading(Box(-np.inf, np.inf, (5, 4), np.float32))
    table = np.zeros((1, 5, 4), np.float32)
    table[0, :2] = 1.0
    options = {"is_deterministic": True}
    state, is_first = agent.initial_state(1), np.ones(1, bool)
    one, _ = agent.act(table[:, :3], state, is_first, **options)
    other, _ = wider.act(table, state, is_first, **options)
    assert one == other and agent.reading(agent.rows.space) is agent
    with pytest.raises(ValueError, match="but for rows"):
        agent.reading(Box(-np.inf, np.inf, (3, 5), np.float32))
    with pytest.raises(ValueError, match=r"expected objects of shape \(3, 4\), got \(5, 4\)"):
        agent.act(table, state, is_first, **options)


def test_asked_to_stop_it_saves_and_goes_on_from_there(tmp_path, make_toy, small_world_settings):
    with pytest.raises(InterruptedTraining, match=r"stopped after step \d+ of 96 and saved"):
        train(tmp_path, make_toy("objects"), small_world_settings(), interrupt=ctrl_c, at=54)
    step = saving.read_meta(tmp_path)["step"]
    assert 54 <= step < 80
    train(tmp_path, make_toy("objects"), small_world_settings())
    assert saving.trained_steps(tmp_path) >= 96


@pytest.mark.parametrize("foretells", [False, True])
def test_boxes_are_foretold_if_asked_for(small_world_settings, foretells):
    trainer = ModelBased(**small_world_settings() | {"foretells_boxes": foretells})
    network = trainer.network(plain_key="slots", has_order=True, num_geometry=7)
    assert network.num_boxed == (0 if foretells else 7)


def test_other_settings_are_another_run(tmp_path, make_toy, small_world_settings):
    settings = small_world_settings()
    train(tmp_path, make_toy("objects"), settings)
    for name, changed in (
        ("training.seed", {"seed": 3}),
        ("arguments.horizon", {"arguments": settings["arguments"] | {"horizon": 1}}),
        ("training.learning.batch_size", {"learning": settings["learning"] | {"batch_size": 5}}),
    ):
        with pytest.raises(ValueError, match=f"belongs to another run: its {name} is"):
            train(tmp_path, make_toy("objects"), settings, **changed)


def test_a_finished_run_does_nothing_and_a_longer_one_goes_on(
    tmp_path, make_toy, small_world_settings
):
    first = train(tmp_path, make_toy("objects"), small_world_settings())
    again = train(tmp_path, make_toy("objects"), small_world_settings(), interrupt=kill)
    assert_same(weights(first), weights(again))
    train(tmp_path, make_toy("objects"), small_world_settings(), total_steps=110)
    assert saving.trained_steps(tmp_path) >= 110


@pytest.mark.parametrize("part", ["world", "behaviour"])
def test_a_loss_that_is_nan_stops_and_keeps_the_last_checkpoint(
    part, tmp_path, make_toy, small_world_settings
):
    def spoil(agent):
        parts = {
            "world": agent.world.outcome.to_goes_on,
            "behaviour": agent.behaviour.critic.network.head.layers[-1],
        }
        with torch.no_grad():
            parts[part].bias.fill_(torch.nan)

    with pytest.raises(NonFiniteLossError) as caught:
        train(tmp_path, make_toy("objects"), small_world_settings(), interrupt=spoil, at=50)
    kept = saving.read_meta(tmp_path)["step"]
    assert f"the checkpoint of step {kept} in {tmp_path / 'agent'} is kept" in str(caught.value)
    assert "\n" not in str(caught.value) and "learning_rate" in str(caught.value)
    saved = train(tmp_path, make_toy("objects"), small_world_settings())
    assert all(
        value.isfinite().all() for value in weights(saved).values() if value.is_floating_point()
    )


def test_an_observation_that_is_nan_is_named(tmp_path, make_toy, small_world_settings):
    with pytest.raises(ValueError, match=r"of environment 0, 1 is not finite at step \d+; the che"):
        train(tmp_path, make_toy("objects", poison=30), small_world_settings())


def test_an_environment_whose_process_ends_costs_nothing(tmp_path, make_toy, small_world_settings):
    env = make_toy("objects")
    inner, calls = env.step, []

    def step(actions):
        calls.append(actions)
        if len(calls) > 30:
            raise ChildProcessError("the process of environment 1 has ended")
        return inner(actions)

    env.step = step
    with pytest.raises(
        ChildProcessError, match=r"has ended; the checkpoint of step \d+ .* is kept"
    ):
        train(tmp_path, env, small_world_settings())


@pytest.mark.parametrize(
    ("group", "changes", "sentence"),
    [
        ("learning", {"batch_size": 0}, r"agent\.learning\.batch_size from 1 on, got 0"),
        (
            "learning",
            {"updates_per_step": -1},
            r"agent.learning.updates_per_step from 0 on, got -1",
        ),
        ("learning", {"batch": 1}, "agent.learning or agent.replay: .*'batch'"),
        ("replay", {"capacity": 1}, "capacity of at least 2 frames"),
        ("replay", {"piece": 1}, r"agent\.replay\.piece from 2 frames on, .*, got 1"),
        ("arguments", {"horizons": 3}, "agent.arguments: .*'horizons'"),
        ("arguments", {"_target_": "ocrl.nn.mlp.MLP"}, "expected _target_ to name a Behaviour"),
        ("dynamics", {"num_heads": 3}, "num_heads"),
    ],
)
def test_settings_that_make_no_sense(
    group, changes, sentence, tmp_path, make_toy, small_world_settings
):
    settings = small_world_settings()
    settings[group] |= changes
    with pytest.raises(ValueError, match=sentence):
        train(tmp_path, make_toy("objects"), settings)


def test_a_run_that_ends_before_learning_begins_is_refused(
    tmp_path, make_toy, small_world_settings
):
    settings = small_world_settings() | {"total_steps": 18}
    words = r"agent.total_steps above agent.replay.prefill_steps=18.*, got 18"
    with pytest.raises(ValueError, match=words):
        train(tmp_path, make_toy("objects"), settings)


def test_pixels_are_refused_in_words(tmp_path, make_toy, small_world_settings):
    with pytest.raises(ValueError, match=r"expected an observation with one set .* obs=slots"):
        train(tmp_path, make_toy("frame"), small_world_settings(), key="frame")
