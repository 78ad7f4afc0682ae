"""Slots of several cameras as observations: which views and which cameras the encoder is given."""

import functools
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from hydra import compose, initialize_config_dir
from stable_baselines3.common.vec_env import DummyVecEnv

import ocrl.envs
from ocrl.agents.episode_encoder import EpisodeEncoder
from ocrl.agents.vector import SlotVecEnv
from ocrl.checkpoint import build
from ocrl.envs.observation import ObservedEnv
from ocrl.envs.slots import SlotVectorEnv
from ocrl.envs.vector import SameProcessVectorEnv
from ocrl.types import Camera

CONFIGS = str(Path(__file__).parents[2] / "configs")
PARTS = ["frame", "intrinsics", "extrinsics"]
LENGTHS, NUM_STEPS, SEED, TOLERANCE = (2, 3, 5), 6, 1, 1e-4
SMALL = {
    **{"size": 16, "supersampling": 1, "num_views": 3, "num_objects": 2, "rooms": ["studio"]},
    **{"min_visible": 0.0, "depth": False, "ego_speed": 0.5},
}
needs_mujoco = pytest.mark.skipif(
    importlib.util.find_spec("mujoco") is None, reason="MuJoCo is not installed"
)


@pytest.fixture(scope="module")
def encoder():
    sizes = [
        *("+image_size=[16,16]", "+num_slots=3", "+slot_dim=16", "encoder.backbone.num_layers=1"),
        *("encoder.backbone.channels=[8,8]", "encoder.backbone.strides=[2,2]"),
        *("encoder.backbone.out_dim=16", "encoder.backbone.mlp_dim=16"),
    ]
    with initialize_config_dir(CONFIGS, version_base=None):
        config = compose(overrides=["+encoder=savi_posed", *sizes])
    torch.manual_seed(0)
    built = build(config)["encoder"].eval()
    # Untrained encoders see little difference between frames: larger weights, larger differences.
    with torch.no_grad():
        for weight in built.parameters():
            if weight.ndim > 1:
                weight *= 2
    return built


def driving(length, **options):
    """A world whose cameras drive, and whose episodes have so many steps."""
    return ocrl.envs.make("scenes3d_ego", **{**SMALL, "max_steps": length, **options})


def make_envs(parts=PARTS):
    builds = [
        lambda length=length: ObservedEnv(driving(length), parts, is_shuffled=False)
        for length in LENGTHS
    ]
    return SameProcessVectorEnv(builds)


@functools.cache
def episodes_of(index):
    """The frames and cameras of each episode of an environment that is played by hand."""
    env = driving(LENGTHS[index])
    episodes = [[(env.reset(seed=SEED + index)[0], *env.cameras().values())]]
    for _ in range(NUM_STEPS):
        frame, _, terminated, truncated, _ = env.step(0)
        episodes[-1].append((frame, *env.cameras().values()))
        if terminated or truncated:
            episodes.append([(env.reset()[0], *env.cameras().values())])
    return [tuple(np.stack(part) for part in zip(*rows, strict=True)) for rows in episodes]


def encode_alone(encoder, episode, views=slice(None)):
    frames, intrinsics, extrinsics = (part[:, views] for part in episode)
    video = rearrange(torch.tensor(frames), "t v h w c -> 1 t v c h w") / 255
    camera = Camera(*(torch.tensor(matrix)[None] for matrix in (intrinsics, extrinsics)))
    with torch.no_grad():
        slots = encoder(video, torch.arange(len(frames))[None] == 0, camera=camera).slots
    return slots[0].numpy()


def played(envs):
    """What the environments gave, by environment and episode."""
    observation, _ = envs.reset(seed=SEED)
    assert envs.observation_space.contains(observation)
    given = [[[row]] for row in observation]
    for _ in range(NUM_STEPS):
        observation, _, terminated, truncated, info = envs.step(np.zeros(3, np.int64))
        for row in range(3):
            if terminated[row] or truncated[row]:
                given[row][-1].append(info["final_obs"][row])
                given[row].append([])
            given[row][-1].append(observation[row])
    return given


def largest_error(encoder, envs, views=slice(None)):
    errors = [
        np.abs(np.stack(slots) - encode_alone(encoder, episode, views)).max()
        for row, of_one in enumerate(played(envs))
        for episode, slots in zip(episodes_of(row), of_one, strict=True)
    ]
    assert len(errors) > 6
    return max(errors)


def test_the_cameras_move_and_differ():
    first, second = (episodes_of(row)[0][2] for row in (1, 2))
    assert np.abs(first[1] - first[0]).max() > 0.1
    assert np.abs(first[0] - second[0]).max() > 0.1


def test_observations_are_the_slots_of_each_episode_alone(encoder):
    assert largest_error(encoder, SlotVectorEnv(make_envs(), encoder)) < TOLERANCE


class MovesCameras(SlotVectorEnv):
    """Gives every environment the cameras of another one."""

    def step(self, actions):
        inner = self.slots._seen
        self.slots._seen = lambda parts: (
            inner(parts)[0],
            inner(parts)[1].map(lambda value: value.roll(1, 0)),
        )
        try:
            return super().step(actions)
        finally:
            self.slots._seen = inner


class KeepsCameras(SlotVectorEnv):
    """Gives last frames the cameras of the frames after the reset."""

    def step(self, actions):
        inner, now = self.slots._seen, []

        def seen(parts):
            frames, camera = inner(parts)
            now.append(camera)
            rows = slice(len(frames))
            return frames, now[0].map(lambda value: value[rows])

        self.slots._seen = seen
        try:
            return super().step(actions)
        finally:
            self.slots._seen = inner


@pytest.mark.parametrize("wrong", [MovesCameras, KeepsCameras])
def test_cameras_of_others_are_told(encoder, wrong):
    assert largest_error(encoder, wrong(make_envs(), encoder)) > 1e-2


def test_the_first_views_are_seen(encoder):
    envs = SlotVectorEnv(make_envs(), encoder, num_views=2)
    assert largest_error(encoder, envs, slice(2)) < TOLERANCE
    assert envs.slots.frames.shape == (3, 2, 16, 16, 3)
    with pytest.raises(ValueError, match=r"at least 4 cameras, as many as the encoder saw.*got 3"):
        SlotVectorEnv(make_envs(), encoder, num_views=4)


def test_frames_and_cameras_stand_beside_the_slots_where_asked_for(encoder):
    envs = SlotVectorEnv(make_envs(), encoder, has_frame=True, has_geometry=True)
    assert {key: space.shape for key, space in envs.single_observation_space.items()} == {
        "slots": (3, 16 + 3 * 7),
        "frame": (3, 16, 16, 3),
        "intrinsics": (3, 3, 3),
        "extrinsics": (3, 4, 4),
    }
    observation, _ = envs.reset(seed=SEED)
    plain, _ = make_envs().reset(seed=SEED)
    for key in PARTS:
        np.testing.assert_array_equal(observation[key], plain[key])
    bare = SlotVectorEnv(make_envs(), encoder).single_observation_space
    assert isinstance(bare, Box) and bare.shape == (3, 16)


def test_cameras_are_asked_for_in_one_sentence(encoder):
    with pytest.raises(ValueError, match=r"cameras of the frames as 'intrinsics' \(3, 3, 3\).*got"):
        SlotVectorEnv(make_envs(["frame"]), encoder)
    with pytest.raises(ValueError, match=r"as 'extrinsics' \(3, 4, 4\).*got none.*observe="):
        SlotVectorEnv(make_envs(["frame", "intrinsics"]), encoder)


def test_environments_of_stable_baselines_give_the_same(encoder):
    builds = [lambda length=n: ObservedEnv(driving(length), PARTS) for n in LENGTHS]
    theirs, mine = SlotVecEnv(DummyVecEnv(builds), encoder), SlotVectorEnv(make_envs(), encoder)
    theirs.seed(SEED)
    given, (expected, _) = theirs.reset(), mine.reset(seed=SEED)
    np.testing.assert_array_equal(given, expected)
    for _ in range(NUM_STEPS):
        given, _, ended, infos = theirs.step(np.zeros(3, np.int64))
        expected, *_, info = mine.step(np.zeros(3, np.int64))
        np.testing.assert_array_equal(given, expected)
        for row in np.flatnonzero(ended):
            np.testing.assert_array_equal(
                infos[row]["terminal_observation"], info["final_obs"][row]
            )


def test_episodes_on_disk_give_what_the_environment_gave(encoder):
    episodes = [episodes_of(row)[0] for row in range(3)]
    frames = [frames for frames, *_ in episodes]
    actions = [np.zeros(len(video), np.int64) for video in frames]
    cameras = [matrices for _, *matrices in episodes]
    made = EpisodeEncoder(encoder, num_views=2).encode(frames, actions, cameras=cameras)
    for slots, episode in zip(made, episodes, strict=True):
        np.testing.assert_allclose(slots, encode_alone(encoder, episode, slice(2)), atol=TOLERANCE)
    with pytest.raises(ValueError, match="expected cameras for an encoder of posed views"):
        EpisodeEncoder(encoder).encode(frames, actions)


@needs_mujoco
def test_a_table_ends_episodes_at_any_step(encoder):
    """Two cameras that stand still, and episodes that end by what the hand touches."""
    settings = {"size": 16, "renderer": "rays", "supersampling": 1, "max_steps": 4}
    settings |= {"hand_speed": 6.0, "action_kind": "discrete"}
    envs = ocrl.envs.make_vec("tabletop-reach", 3, observe=PARTS, **settings)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    slots = SlotVectorEnv(envs, encoder)
    actions = np.random.default_rng(0).integers(5, size=(10, 3))
    given = [[[row]] for row in slots.reset(seed=SEED)[0]]
    kinds = set()
    for action in actions:
        observation, _, terminated, truncated, info = slots.step(action)
        kinds |= set(zip(terminated, truncated, strict=True))
        for row in np.flatnonzero(terminated | truncated):
            given[row][-1].append(info["final_obs"][row])
            given[row].append([])
        for row in range(3):
            given[row][-1].append(observation[row])
    assert kinds == {(False, False), (True, False), (False, True)}
    for row in range(3):
        env = ocrl.envs.make("tabletop-reach", **settings)
        rows = [[(env.reset(seed=SEED + row)[0], *env.cameras().values())]]
        for action in actions[:, row]:
            frame, _, terminated, truncated, _ = env.step(action)
            rows[-1].append((frame, *env.cameras().values()))
            if terminated or truncated:
                rows.append([(env.reset()[0], *env.cameras().values())])
        for seen, made in zip(rows, given[row], strict=True):
            episode = tuple(np.stack(part) for part in zip(*seen, strict=True))
            expected = encode_alone(encoder, episode)
            np.testing.assert_allclose(np.stack(made), expected, atol=TOLERANCE)
