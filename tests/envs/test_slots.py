from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from einops import rearrange
from gymnasium.spaces import Box, Dict, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hydra import compose, initialize_config_dir

import ocrl.envs
from ocrl.checkpoint import build
from ocrl.envs.slots import SlotVectorEnv

CONFIGS = str(Path(__file__).parents[2] / "configs")
NUM_ENVS, NUM_STEPS, TOLERANCE = 3, 16, 1e-4
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


def make_envs(**options):
    return ocrl.envs.make_vec("sprites-object_goal", NUM_ENVS, **{**SETTINGS, **options})


def actions():
    return np.random.default_rng(0).integers(4, size=(NUM_STEPS, NUM_ENVS))


def episodes_of(index, seed):
    """The frames of each episode of an environment that is played by hand, and how it ended."""
    env = ocrl.envs.make("sprites-object_goal", **SETTINGS)
    episodes, ends = [[env.reset(seed=seed + index)[0]]], []
    for action in actions()[:, index]:
        frame, _, terminated, truncated, _ = env.step(action)
        episodes[-1].append(frame)
        if terminated or truncated:
            ends.append((terminated, truncated))
            episodes.append([env.reset()[0]])
    return episodes, ends


def encode_alone(encoder, frames):
    video = rearrange(torch.tensor(np.stack(frames)), "t h w c -> 1 t c h w") / 255
    with torch.no_grad():
        slots = encoder(video, torch.arange(len(frames))[None] == 0).slots
    return slots[0].numpy()


@pytest.mark.parametrize("processes", [False, True], ids=["same_process", "sub_process"])
def test_observations_are_the_slots_of_each_episode_alone(encoder, processes):
    envs = SlotVectorEnv(make_envs(processes=processes), encoder)
    observation, _ = envs.reset(seed=1)
    assert envs.observation_space.contains(observation)
    given = [[[row]] for row in observation]
    ends = [[] for _ in given]
    for action in actions():
        observation, _, terminated, truncated, info = envs.step(action)
        for row in range(NUM_ENVS):
            if terminated[row] or truncated[row]:
                assert info["_final_obs"][row]
                assert envs.single_observation_space.contains(info["final_obs"][row])
                given[row][-1].append(info["final_obs"][row])
                given[row].append([])
                ends[row].append((terminated[row], truncated[row]))
            given[row][-1].append(observation[row])
    envs.close()
    kinds = set()
    for row in range(NUM_ENVS):
        episodes, expected_ends = episodes_of(row, seed=1)
        assert ends[row] == expected_ends
        kinds |= set(expected_ends)
        for frames, slots in zip(episodes, given[row], strict=True):
            np.testing.assert_allclose(slots, encode_alone(encoder, frames), atol=TOLERANCE)
    assert kinds == {(True, False), (False, True)}, "play longer: both kinds of end are to be seen"
    assert len({len(of_one) for of_one in given}) > 1


def test_other_parts_stand_beside_the_slots(encoder):
    envs = make_envs(observe=["frame", "objects"])
    plain = make_envs(observe=["frame", "objects"])
    slots = SlotVectorEnv(envs, encoder, has_geometry=True, has_frame=True)
    assert {key: space.shape for key, space in slots.single_observation_space.items()} == {
        "slots": (4, 23),
        "frame": (36, 36, 3),
        "objects": plain.single_observation_space["objects"].shape,
    }
    observation, _ = slots.reset(seed=1)
    expected, _ = plain.reset(seed=1)
    num_ended = 0
    for action in actions():
        assert slots.observation_space.contains(observation)
        np.testing.assert_array_equal(slots.slots.frames, expected["frame"])
        for key in ("frame", "objects"):
            np.testing.assert_array_equal(observation[key], expected[key])
        observation, _, terminated, truncated, info = slots.step(action)
        expected, *_, plain_info = plain.step(action)
        for row in np.flatnonzero(terminated | truncated):
            num_ended += 1
            final = info["final_obs"][row]
            assert slots.single_observation_space.contains(final)
            for key in ("frame", "objects"):
                np.testing.assert_array_equal(final[key], plain_info["final_obs"][row][key])
    assert num_ended > 2


def test_frames_can_be_left_out(encoder):
    slots = SlotVectorEnv(make_envs(observe=["frame", "objects"]), encoder)
    assert set(slots.single_observation_space.keys()) == {"slots", "objects"}
    assert set(slots.reset(seed=0)[0]) == {"slots", "objects"}


def test_masks_tables_and_methods_are_reached(encoder):
    envs, plain = SlotVectorEnv(make_envs(), encoder), make_envs()
    envs.reset(seed=0)
    plain.reset(seed=0)
    np.testing.assert_array_equal(envs.segmentation("scene"), plain.segmentation("scene"))
    for mine, theirs in zip(envs.objects(), plain.objects(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert len(envs.call("render")) == NUM_ENVS
    assert envs.get_attr("task") == ("object_goal",) * NUM_ENVS
    envs.set_attr("goal_radius", 0.5)
    assert envs.get_attr("goal_radius") == (0.5,) * NUM_ENVS
    assert envs.slots.stream.attn.shape == (NUM_ENVS, 4, 81)


def test_the_seed_of_a_reset_is_that_of_the_noise():
    encoder = make_encoder("initializer@encoder.initializer=gaussian")
    runs = []
    for seed in (0, 1):
        envs = SlotVectorEnv(make_envs(), encoder, is_noisy=True, seed=seed)
        rows = [envs.reset(seed=7)[0]]
        rows += [envs.step(action)[0] for action in actions()]
        runs.append(np.stack(rows))
    np.testing.assert_array_equal(*runs)
    again, _ = envs.reset(seed=[7, None, 7])
    np.testing.assert_array_equal(again[0], runs[0][0, 0])
    assert np.abs(again[1] - runs[0][0, 1]).max() > 1e-3


class Observing(gymnasium.Env):
    """Does nothing but have an observation space."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, space):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}


FRAME = Box(0, 255, (36, 36, 3), np.uint8)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Dict({"image": FRAME}), r"Dict with them as 'frame', got Dict\('image'"),
        (Dict({"frame": FRAME, "slots": FRAME}), "expected an observation of frames"),
        (Tuple([FRAME]), "expected an observation of frames"),
        (Box(0, 1, (36, 36, 3), np.float32), "in uint8"),
        (Box(0, 255, (2, 36, 36, 3), np.uint8), r"one view \(H,W,3\) for an encoder of plain"),
        (Box(0, 255, (3, 36, 36), np.uint8), "colours last, got shape"),
        (Box(0, 255, (36, 36), np.uint8), "colours last, got shape"),
        (Box(0, 255, (40, 40, 3), np.uint8), r"\(36, 36, 3\), which the encoder was trained on"),
        (Dict({"frame": FRAME, "x": Dict({"y": FRAME})}), "vectors"),
        (Dict({"frame": FRAME, "other": FRAME}), "got Box.* as 'other'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_observations_that_nobody_mapped(encoder, space, message):
    envs = SyncVectorEnv([lambda: Observing(space)], autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(ValueError, match=message):
        SlotVectorEnv(envs, encoder)


def test_other_ways_to_reset_are_refused(encoder):
    envs = SyncVectorEnv([lambda: Observing(FRAME)])
    with pytest.raises(ValueError, match=r"SAME_STEP, got AutoresetMode.NEXT_STEP"):
        SlotVectorEnv(envs, encoder)
    with pytest.raises(ValueError, match="got a reset_mask"):
        SlotVectorEnv(make_envs(), encoder).reset(options={"reset_mask": np.ones(3, bool)})


def test_an_encoder_that_is_trained_meanwhile_is_refused():
    encoder = make_encoder()
    envs = SlotVectorEnv(make_envs(), encoder)
    envs.reset(seed=0)
    encoder.train()
    with pytest.raises(ValueError, match="eval mode"):
        envs.step(actions()[0])
    encoder.eval()
    envs.reset(seed=0)
    envs.step(actions()[0])
