"""An episode is recorded as it was played, and drawn so that attention can be seen."""

import dataclasses

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
    # What is written below does not fit into one line of 256 pixels.
    assert small.shape == (6, 3, 18 + 256 + 40, 256)
    below = small[0, :, 18 + 256 :].float()
    assert below[:, :20].std() > 10 and below[:, 20:].std() > 10
    assert below[..., -4:].std((1, 2)).max() == 0
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


class Watcher(Rightward):
    """Attends to the agent of Sprites, wherever it stands in the table."""

    def attention(self, observation, state, is_first):
        return (observation[..., 1] > 0).astype(np.float32)


def recorded_objects(**options):
    env = make_vec("sprites-object_goal", 1, max_steps=12, observe=["objects"], is_shuffled=True)
    columns = env.get_attr("object_columns")[0]
    assert columns[0] == "presence" and columns[1].startswith("category=")
    kept = {"seed": 3, "num_steps": 6, "is_deterministic": True, "object_columns": columns}

    def look():
        return env.call("render")[0], None

    try:
        return record(Watcher(None), env, look, **kept | options), env.get_attr("max_objects")[0]
    finally:
        env.close()


def test_true_objects_keep_their_numbers_and_are_found_in_the_frame():
    recording, num_objects = recorded_objects()
    length = len(recording.frames)
    assert length > 2 and recording.places.shape == (length, num_objects, 2)
    # One object has all of the attention in every frame, though the table is shuffled.
    (watched,) = {int(share.argmax()) for share in recording.attention}
    assert recording.attention[:, watched].min() == 1.0
    moved = np.abs(recording.places[-1] - recording.places[0]).sum(-1)
    assert np.nanargmax(moved) == watched and np.nansum(moved > 0.05) == 1
    # The red agent is where the numbers say it is.
    for frame, places in zip(recording.frames, recording.places, strict=True):
        x, y = (places[watched] * 64).astype(int)
        red, *others = frame[y, x].astype(int)
        assert red > 150 and max(others) < 100


def test_bars_of_objects_have_no_colours_but_numbers_in_the_frame():
    recording, _ = recorded_objects(num_steps=1)
    marked = draw(recording)[0]
    plain = draw(dataclasses.replace(recording, places=None))[0]
    differs = (marked != plain).any(0)
    assert differs[:, 256:].sum() == 0
    for x, y in recording.places[0][np.isfinite(recording.places[0]).all(-1)]:
        row, column = 18 + int(y * 256), int(x * 256)
        assert differs[max(0, row - 16) : row + 16, max(0, column - 16) : column + 16].any()
    bars = marked[:, 20 : 18 + 256, -132:].float()
    assert (bars.amax(0) - bars.amin(0)).max() < 30


def test_numbers_of_slots_stand_on_them(env):
    recording = play(env, 6, num_steps=1)
    bare = dataclasses.replace(recording, attention=None)
    numbered, plain = (draw(one)[0, :, :, 262 : 262 + 256] for one in (recording, bare))
    differs = (numbered != plain).any(0)[18 : 18 + 256]
    for mask in recording.masks[0]:
        if mask.sum() > 20:
            region = torch.from_numpy(mask).repeat_interleave(4, 0).repeat_interleave(4, 1) > 0
            assert differs[region].any()


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
