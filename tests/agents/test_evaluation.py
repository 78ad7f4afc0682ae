"""Every episode is played once, whole and on its own, however many environments there are."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ocrl.agents.evaluation import (
    Episodes,
    RandomAgent,
    episode_seeds,
    evaluate,
    joined,
    play,
    summarize,
)
from ocrl.agents.interface import Agent
from ocrl.envs.crafter import crafter_score
from ocrl.envs.vector import make_vec


class Lengths(gymnasium.Env):
    """Lasts between 1 and 20 steps, by its seed; the reward is the action."""

    observation_space = gymnasium.spaces.Box(0.0, 1e9, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1e9, 1e9, (), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length = int(self.np_random.integers(1, 21))
        self.count = 0
        return np.array([self.length, self.count], np.float64), {}

    def step(self, action):
        self.count += 1
        is_over = self.count == self.length
        info = {"is_success": self.length > 10, "achievements": {"last": int(self.length > 19)}}
        observation = np.array([self.length, self.count], np.float64)
        return observation, float(action), is_over and self.length > 10, is_over, info


class Counter(Agent):
    """Acts with how often it has acted in this episode, so rewards prove the state it was given."""

    def initial_state(self, num_envs):
        return np.full(num_envs, 77)

    def act(self, observation, state, is_first, *, is_deterministic):
        count = np.where(is_first, 0, state) + 1
        np.testing.assert_array_equal(count - 1, observation[:, 1])
        return count.astype(np.float64), count


def vector(num_envs, mode=AutoresetMode.SAME_STEP):
    return SyncVectorEnv([Lengths] * num_envs, autoreset_mode=mode)


def lengths_of(seed, num_episodes):
    env = Lengths()
    return [int(env.reset(seed=s)[0][0]) for s in episode_seeds(seed, num_episodes)]


@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_the_episodes_are_those_of_the_seeds(num_envs):
    episodes = play(Counter(), vector(num_envs), num_episodes=20, seed=4, is_deterministic=True)
    expected = np.array(lengths_of(4, 20))
    np.testing.assert_array_equal(episodes.lengths, expected)
    np.testing.assert_array_equal(episodes.returns, expected * (expected + 1) / 2)
    np.testing.assert_array_equal(episodes.successes, expected > 10)
    np.testing.assert_array_equal(episodes.achievements["last"], expected > 19)


def test_short_episodes_are_not_favoured():
    # The first sixteen to end would be shorter than the sixteen that were asked for.
    episodes = play(Counter(), vector(16), num_episodes=16, seed=0, is_deterministic=True)
    assert sorted(episodes.lengths) == sorted(lengths_of(0, 16)) and episodes.lengths.max() > 15


@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_nobody_thinks_about_episodes_that_are_over(num_envs):
    sizes = []

    class Thinking(Counter):
        def act(self, observation, state, is_first, *, is_deterministic):
            assert len(observation) == len(state) == len(is_first)
            sizes.append(len(observation))
            return super().act(observation, state, is_first, is_deterministic=is_deterministic)

    episodes = play(Thinking(), vector(num_envs), num_episodes=20, seed=4, is_deterministic=True)
    assert sum(sizes) == episodes.lengths.sum()


class Drawing(Counter):
    """Acts with a number drawn from torch."""

    def act(self, observation, state, is_first, *, is_deterministic):
        return torch.rand(len(is_first)).numpy(), state


def test_drawn_actions_follow_from_the_seed_and_leave_training_alone():
    torch.manual_seed(7)
    alone = torch.rand(3)
    torch.manual_seed(7)
    options = {"num_episodes": 5, "is_deterministic": False}
    first, again, other = (play(Drawing(), vector(3), seed=s, **options) for s in (1, 1, 2))
    torch.testing.assert_close(torch.rand(3), alone)
    np.testing.assert_array_equal(first.returns, again.returns)
    assert not np.array_equal(first.returns, other.returns)


def test_seeds_are_apart_and_one_list_is_the_start_of_another():
    assert episode_seeds(0, 5) == episode_seeds(0, 50)[:5]
    assert not set(episode_seeds(0, 100)) & set(episode_seeds(1, 100))
    assert min(episode_seeds(0, 100)) > 10_000 and max(episode_seeds(0, 100)) < 2**31


def test_a_block_of_the_record():
    successes = np.array([True, False, True, True])
    episodes = Episodes(
        returns=np.array([1.0, 0.0, 3.0, 2.0]),
        lengths=np.array([4, 9, 2, 5]),
        successes=successes,
        achievements={"a": successes, "b": np.zeros(4, bool)},
    )
    block = summarize(episodes, score=crafter_score)
    assert block["mean"] == {"return": 1.5, "length": 5.0, "success": 0.75}
    assert block["episodes"]["success"] == [True, False, True, True]
    assert block["achievements"] == {"a": 0.75, "b": 0.0}
    assert block["score"] == pytest.approx(crafter_score([0.75, 0.0]))
    low, high = block["interval"]["score"]
    assert crafter_score([0.25, 0]) <= low < block["score"] < high <= crafter_score([1, 0])
    assert block["interval"]["success"] == pytest.approx([0.25, 1.0])
    twice = joined([episodes, episodes])
    assert len(twice) == 8 and summarize(twice)["mean"] == block["mean"]
    bare = Episodes(np.ones(1), np.ones(1, int), None, {})
    block = summarize(bare, score=crafter_score)
    assert "success" not in block["mean"] and block["score"] is None
    assert block["achievements"] is None and block["interval"]["return"] is None


def test_the_floor_repeats_by_its_seed():
    env = make_vec("sprites-object_goal", 4, size=16, max_steps=30)
    floor = RandomAgent(env.single_action_space, seed=0)
    options = {"num_episodes": 12, "is_deterministic": False}
    block = evaluate(floor, env, seeds=[0, 1], **options)
    assert block["num_episodes"] == 24 and 0.0 <= block["mean"]["success"] < 0.8
    assert block["mean"]["return"] == block["mean"]["success"]
    assert evaluate(floor, env, seeds=[0, 1], **options) == block
    other = RandomAgent(env.single_action_space, seed=1)
    assert evaluate(other, env, seeds=[0, 1], **options) != block
    env.close()


def test_the_floor_plays_no_two_rounds_alike():
    seen = []

    class Watched(RandomAgent):
        def act(self, observation, state, is_first, *, is_deterministic):
            action, state = super().act(
                observation, state, is_first, is_deterministic=is_deterministic
            )
            seen.append((state[1], action.tolist()))
            return action, state

    env = make_vec("sprites-object_goal", 8, size=16, max_steps=5)
    floor = Watched(env.single_action_space, seed=0)
    play(floor, env, num_episodes=32, seed=0, is_deterministic=False)
    env.close()
    first = [action for step, action in seen if step == 1]
    assert len(first) == 4 and len({tuple(action) for action in first}) == 4


def test_random_actions_fill_any_space():
    for space in (gymnasium.spaces.Discrete(4), gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)):
        agent = RandomAgent(space, seed=3)
        state = agent.initial_state(5)
        drawn = []
        for _ in range(40):
            action, state = agent.act(None, state, np.zeros(5, bool), is_deterministic=True)
            assert all(space.contains(own) for own in np.asarray(action, space.dtype))
            drawn.append(action)
        assert np.ptp(drawn) > 1.5 and not np.array_equal(drawn[0], drawn[1])


def test_crafter_tells_its_achievements():
    env = make_vec("crafter", 2, size=18, area=[16, 16], length=40)
    floor = RandomAgent(env.single_action_space, seed=0)
    block = evaluate(
        floor, env, num_episodes=3, seeds=[0], is_deterministic=False, score=crafter_score
    )
    assert len(block["achievements"]) == 22 and block["score"] > 0
    assert block["score"] == pytest.approx(crafter_score(block["achievements"]))
    assert "success" not in block["mean"] and block["mean"]["length"] <= 40
    env.close()


@pytest.mark.parametrize(
    ("env", "num_episodes", "sentence"),
    [
        (vector(1), 0, "at least one episode, got 0"),
        (vector(1, AutoresetMode.NEXT_STEP), 1, "SAME_STEP, got AutoresetMode.NEXT_STEP"),
    ],
)
def test_mistakes(env, num_episodes, sentence):
    with pytest.raises(ValueError, match=sentence):
        play(Counter(), env, num_episodes=num_episodes, seed=0, is_deterministic=True)
