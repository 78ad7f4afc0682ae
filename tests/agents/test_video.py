"""An episode is recorded as it was played, and drawn so that attention can be seen."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ocrl.agents.interface import Agent
from ocrl.agents.video import Recording, draw, record, write_video
from ocrl.colours import palette
from ocrl.envs.vector import make_vec


class Rightward(Agent):
    """Moves right, and attends to the slot that the picture's colours say nothing about."""

    def __init__(self, num_slots):
        self.num_slots = num_slots

    def initial_state(self, num_envs):
        return None

    def act(self, observation, state, is_first, *, is_deterministic):
        return np.full(len(is_first), 3), None

    def attention(self, observation, state, is_first):
        if self.num_slots is None:
            return None
        share = np.full((len(observation), self.num_slots), 0.1, np.float32)
        share[:, 1] = 1.0 - 0.1 * (self.num_slots - 1)
        return share


def masks_of(env, num_slots):
    ids = env.segmentation()[0]
    return (ids[None] == np.arange(num_slots)[:, None, None]).astype(np.float32)


@pytest.fixture
def env():
    made = make_vec("sprites-object_goal", 1, max_steps=12)
    yield made
    made.close()


def play(env, num_slots, **options):
    options = {"seed": 3, "num_steps": 40, "is_deterministic": True} | options

    def look():
        frame = env.call("render")[0]
        return frame, None if num_slots is None else masks_of(env, num_slots)

    return record(Rightward(num_slots), env, look, **options)


def test_a_recording_is_the_episode(env):
    names = ("up", "down", "left", "move_right")
    recording = play(env, 6, action_names=names)
    length = len(recording.frames)
    assert 1 < length <= 12 and recording.rewards.shape == (length,)
    assert recording.masks.shape == (length, 6, 64, 64) and recording.attention.shape == (length, 6)
    np.testing.assert_allclose(recording.masks.sum(1), 1.0)
    assert set(recording.actions) == {"move right"}
    assert not np.array_equal(recording.frames[0], recording.frames[1])
    first, _ = env.reset(seed=3)
    np.testing.assert_array_equal(recording.frames[0], first[0])
    bare = play(env, None, num_steps=2)
    assert bare.masks is None and bare.attention is None and bare.actions == ["3", "3"]


def test_what_is_attended_to_is_bright():
    # Slot 1 has the right half of a white frame, and nine times the attention of slot 0.
    masks = np.zeros((1, 2, 64, 64), np.float32)
    masks[:, 0, :, :32], masks[:, 1, :, 32:] = 1.0, 1.0
    recording = Recording(
        frames=np.full((1, 64, 64, 3), 255, np.uint8),
        masks=masks,
        attention=np.array([[0.1, 0.9]], np.float32),
        actions=["noop"],
        rewards=np.zeros(1),
    )
    video = draw(recording)
    assert video.dtype == torch.uint8 and video.shape[:2] == (6, 3)
    picture = video[0]
    height, width = 18 + 256 + 24, 3 * 256 + 132 + 3 * 6
    assert picture.shape == (3, height, width)
    attended = picture[:, 18 : 18 + 256, 2 * (256 + 6) : 2 * (256 + 6) + 256].float()
    assert attended[:, 100, 200].min() == 255 and attended[:, 100, 40].max() < 100
    slots = picture[:, 18 : 18 + 256, 256 + 6 : 2 * 256 + 6].float()
    # Of two slots of one size the first is the ground: it has no hue, and a grey bar.
    assert slots[:, 100, 40].std() == 0 and slots[:, 100, 200].std() > 40
    bars = picture[:, :274, -132:]
    colours = torch.tensor([[120, 126, 138], palette(2)[1].tolist()], dtype=torch.uint8)
    painted = [int((bars == c.view(3, 1, 1)).all(0).sum()) for c in colours]
    assert painted[1] == pytest.approx(9 * painted[0], rel=0.3)


def test_panels_are_those_that_there_is_something_for(env):
    small = draw(play(env, None, num_steps=1))
    assert small.shape == (6, 3, 18 + 256 + 24, 256)
    bars_only = draw(
        Recording(
            frames=np.zeros((1, 40, 40, 3), np.uint8),
            masks=None,
            attention=np.full((1, 12), 1 / 12, np.float32),
            actions=["+0.50 -1.00"],
            rewards=np.ones(1),
        )
    )
    assert bars_only.shape[-1] == 240 + 6 + 132


def test_files(env, tmp_path):
    mp4, gif = write_video(tmp_path, play(env, 6), frames_per_second=6, num_gif_frames=4)
    with av.open(str(mp4)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) > 6 and frames[0].width == 3 * 256 + 132 + 18
    with Image.open(gif) as opened:
        assert opened.n_frames <= 4 and opened.size[1] == 298


def test_mistakes(env):
    several = make_vec("sprites-object_goal", 2)
    with pytest.raises(ValueError, match="expected one environment and a step or more, got 2 and"):
        play(several, None)
    with pytest.raises(ValueError, match="got 1 and 0"):
        play(env, None, num_steps=0)
