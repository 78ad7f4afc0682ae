from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hydra import compose, initialize_config_dir
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage

import ocrl.envs
from ocrl.agents.vector import SlotVecEnv, StableBaselinesVecEnv, split_info
from ocrl.checkpoint import build
from ocrl.envs.slots import SlotVectorEnv

CONFIGS = str(Path(__file__).parents[2] / "configs")
TASK, NUM_ENVS = "sprites-object_goal", 3
SETTINGS = {"size": 36, "max_steps": 5, "step_size": 0.12}


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


def make_encoder(*options):
    sizes = ["+image_size=[36,36]", "+num_slots=4", "+slot_dim=16"]
    backbone = "backbone@encoder.backbone=cnn_small"
    with initialize_config_dir(CONFIGS, version_base=None):
        config = compose(overrides=["+encoder=savi", *sizes, backbone, *options])
    torch.manual_seed(0)
    return build(config)["encoder"].eval()


def adapted(**options):
    envs = ocrl.envs.make_vec(TASK, NUM_ENVS, **{**SETTINGS, **options})
    return StableBaselinesVecEnv(envs)


def of_stable_baselines():
    """The same environments as Stable-Baselines3 runs them, with its own episode statistics."""
    return DummyVecEnv([lambda: Monitor(ocrl.envs.make(TASK, **SETTINGS))] * NUM_ENVS)


def play(envs, seed=3, num_steps=16):
    rng = np.random.default_rng(0)
    envs.seed(seed)
    rows = [(envs.reset(), None, None, [dict(info) for info in envs.reset_infos])]
    for _ in range(num_steps):
        rows.append(envs.step(rng.integers(4, size=NUM_ENVS)))
    return rows


def test_it_is_what_stable_baselines_makes_of_the_environments():
    """Observations, rewards, ends and infos against `DummyVecEnv` of monitored environments."""
    mine, theirs = adapted(), of_stable_baselines()
    assert mine.observation_space == theirs.observation_space
    assert mine.action_space == theirs.action_space
    kinds = set()
    for one, other in zip(play(mine), play(theirs), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        for value, expected in zip(one[1:3], other[1:3], strict=True):
            np.testing.assert_array_equal(value, expected)
            assert value is None or value.dtype == expected.dtype
        for info, expected in zip(one[3], other[3], strict=True):
            assert info.keys() == expected.keys()
            assert info.get("is_success") == expected.get("is_success")
            if "episode" in info:
                kinds.add((info["is_success"], info["TimeLimit.truncated"]))
                assert info["TimeLimit.truncated"] == expected["TimeLimit.truncated"]
                assert info["episode"]["r"] == expected["episode"]["r"]
                assert info["episode"]["l"] == expected["episode"]["l"]
                assert info["episode"]["t"] >= 0
                np.testing.assert_array_equal(
                    info["terminal_observation"], expected["terminal_observation"]
                )
    assert {truncated for _, truncated in kinds} == {True, False}
    assert len(mine.reset_infos) == NUM_ENVS
    assert all(info == {"is_success": False} for info in mine.reset_infos)


def test_slots_of_both_libraries_are_the_same(encoder):
    """The wrapper of Gymnasium's environments, adapted, and that of Stable-Baselines3's own."""
    envs = ocrl.envs.make_vec(TASK, NUM_ENVS, **SETTINGS)
    mine = StableBaselinesVecEnv(SlotVectorEnv(envs, encoder, has_geometry=True, has_frame=True))
    theirs = SlotVecEnv(of_stable_baselines(), encoder, has_geometry=True, has_frame=True)
    assert mine.observation_space == theirs.observation_space
    num_ended = 0
    for one, other in zip(play(mine), play(theirs), strict=True):
        for key in ("slots", "frame"):
            np.testing.assert_array_equal(one[0][key], other[0][key])
        for info, expected in zip(one[3], other[3], strict=True):
            assert ("terminal_observation" in info) == ("terminal_observation" in expected)
            if "terminal_observation" in info:
                num_ended += 1
                for key in ("slots", "frame"):
                    np.testing.assert_array_equal(
                        info["terminal_observation"][key], expected["terminal_observation"][key]
                    )
    assert num_ended > 3
    assert theirs.slots.stream.attn.shape == (NUM_ENVS, 4, 81)


def test_a_seed_is_also_that_of_the_noise():
    encoder = make_encoder("initializer@encoder.initializer=gaussian")
    for make in (
        lambda: SlotVecEnv(of_stable_baselines(), encoder, is_noisy=True),
        lambda: StableBaselinesVecEnv(
            SlotVectorEnv(ocrl.envs.make_vec(TASK, NUM_ENVS, **SETTINGS), encoder, is_noisy=True)
        ),
    ):
        envs = make()
        first, again = play(envs), play(envs)
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one[0], other[0])
        assert np.abs(envs.reset() - first[0][0]).max() > 1e-3


def test_an_agent_learns_and_is_evaluated_on_slots(encoder):
    envs = StableBaselinesVecEnv(
        SlotVectorEnv(ocrl.envs.make_vec(TASK, NUM_ENVS, **SETTINGS), encoder)
    )
    agent = PPO("MlpPolicy", envs, n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu")
    agent.learn(48)
    assert len(agent.ep_info_buffer) > 3
    returns, lengths = evaluate_policy(agent, envs, n_eval_episodes=4, return_episode_rewards=True)
    assert len(returns) == len(lengths) == 4
    assert max(lengths) <= SETTINGS["max_steps"]


class Counting(gymnasium.Env):
    """Its info says more: nested numbers, text, and something in the last step only."""

    observation_space = gymnasium.spaces.Box(0, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    render_mode = None

    def __init__(self, length):
        self.length = length

    def reset(self, *, seed=None, options=None):
        self.count, self.options = 0, options
        return np.zeros(1, np.float32), {"count": 0, "text": "start"}

    def step(self, action):
        self.count += 1
        info = {"count": self.count, "text": "go", "reached": {"wood": self.count, "map": [1]}}
        is_over = self.count == self.length
        if is_over:
            info["score"] = 0.5
        return np.full(1, self.count, np.float32), 1.0, is_over, is_over, info


def counting_envs():
    env_fns = [lambda length=length: Counting(length) for length in (2, 3)]
    return SyncVectorEnv(env_fns, autoreset_mode=AutoresetMode.SAME_STEP)


def test_infos_are_of_one_environment_each():
    envs = StableBaselinesVecEnv(counting_envs())
    envs.reset()
    assert envs.reset_infos == [{"count": 0, "text": "start"}] * 2
    *_, infos = envs.step(np.zeros(2, int))
    going = {"count": 1, "text": "go", "reached": {"wood": 1, "map": [1]}}
    going["TimeLimit.truncated"] = False
    assert infos == [going, going]
    observation, _, done, infos = envs.step(np.zeros(2, int))
    assert done.tolist() == [True, False]
    assert observation.tolist() == [[0.0], [2.0]]
    last = infos[0]
    assert last.pop("terminal_observation").tolist() == [2.0]
    assert last.pop("episode")["r"] == 2.0
    # Both flags at once: the episode really ended, nothing is to be bootstrapped.
    assert last.pop("TimeLimit.truncated") is False
    assert last == {"count": 2, "text": "go", "reached": {"wood": 2, "map": [1]}, "score": 0.5}
    assert infos[1] == {**going, "count": 2, "reached": {"wood": 2, "map": [1]}}
    assert envs.reset_infos[0] == {"count": 0, "text": "start"}
    *_, infos = envs.step(np.zeros(2, int))
    assert infos[1]["episode"]["l"] == 3


def test_a_reset_starts_the_statistics_afresh():
    envs = StableBaselinesVecEnv(counting_envs())
    envs.reset()
    envs.step(np.zeros(2, int))
    envs.reset()
    envs.step(np.zeros(2, int))
    *_, infos = envs.step(np.zeros(2, int))
    assert infos[0]["episode"]["l"] == infos[0]["episode"]["r"] == 2


def test_options_reach_the_environments_once():
    envs = StableBaselinesVecEnv(counting_envs())
    envs.set_options({"level": 3})
    envs.reset()
    assert [env.options for env in envs.vector_env.envs] == [{"level": 3}] * 2
    envs.reset()
    assert [env.options for env in envs.vector_env.envs] == [None] * 2
    envs.set_options([{"level": 3}, {"level": 4}])
    with pytest.raises(ValueError, match="the same options"):
        envs.reset()


def test_methods_and_attributes():
    envs = adapted()
    envs.reset()
    assert envs.get_attr("task") == ["object_goal"] * NUM_ENVS
    assert envs.get_attr("task", indices=1) == ["object_goal"]
    assert len(envs.env_method("objects")) == NUM_ENVS
    envs.set_attr("goal_radius", 0.5)
    assert envs.get_attr("goal_radius", indices=[0, 2]) == [0.5, 0.5]
    assert envs.env_is_wrapped(Monitor) == [True] * NUM_ENVS
    assert envs.env_is_wrapped(gymnasium.Wrapper, indices=0) == [False]
    assert envs.render("rgb_array").shape[-1] == 3
    for call in (lambda: envs.env_method("objects", indices=0), lambda: envs.set_attr("x", 1, [1])):
        with pytest.raises(ValueError, match="expected all 3 environments"):
            call()


def test_a_killed_process_passes_through():
    envs = adapted(processes=True)
    envs.reset()
    process = envs.vector_env.processes[1]
    process.kill()
    process.join()
    with pytest.raises(ChildProcessError, match=r"environment 1 \(exit code -9\) has ended"):
        envs.step(np.zeros(NUM_ENVS, int))
    envs.close()


def test_what_nobody_can_adapt(encoder):
    with pytest.raises(ValueError, match=r"SAME_STEP, got AutoresetMode\.NEXT_STEP"):
        StableBaselinesVecEnv(SyncVectorEnv([lambda: Counting(2)]))
    with pytest.raises(ValueError, match="colours last"):
        SlotVecEnv(VecTransposeImage(of_stable_baselines()), encoder)


def test_infos_without_a_mask_are_of_nobody():
    assert split_info({"elapsed": 3.0}, 2) == [{}, {}]
