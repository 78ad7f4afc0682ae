"""Streams of posed views against each episode encoded alone, and streams with wrong cameras."""

import copy
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from hydra import compose, initialize_config_dir

from ocrl.checkpoint import build
from ocrl.envs.scenes_camera import look_at, pinhole
from ocrl.nn.location import mask_geometry
from ocrl.stream import SlotStream, camera_now
from ocrl.types import Camera

CONFIGS = str(Path(__file__).parents[2] / "configs")
SIZES = [
    *("+image_size=[16,16]", "+num_slots=3", "+slot_dim=16", "encoder.backbone.num_layers=1"),
    *("encoder.backbone.channels=[8,8]", "encoder.backbone.strides=[2,2]"),
    *("encoder.backbone.out_dim=16", "encoder.backbone.mlp_dim=16"),
]
RECIPES = {
    "slot_attention": ["+encoder=slot_attention_posed"],
    "savi": ["+encoder=savi_posed"],
    "psb": ["+encoder=psb_posed", "encoder.bottom_up_window=3", "encoder.residual_gain=1"],
}
# Environment by environment, the lengths of its episodes in frames; some end at the same step.
LENGTHS = ((3, 2, 4), (5, 3), (2, 2, 5))
NUM_VIEWS, TOLERANCE = 2, 1e-4


@functools.cache
def built(name):
    with initialize_config_dir(CONFIGS, version_base=None):
        config = compose(overrides=[*RECIPES[name], *SIZES])
    torch.manual_seed(0)
    encoder = build(config)["encoder"].eval()
    # Untrained encoders see little difference between frames: larger weights, larger differences.
    with torch.no_grad():
        for weight in encoder.parameters():
            if weight.ndim > 1:
                weight *= 2
    return encoder


def make_encoder(name):
    return copy.deepcopy(built(name))


@functools.cache
def episodes():
    """Environment by environment its episodes: frames, and cameras that move, each their own way.

    Frames (length,V,H,W,3), intrinsics (length,V,3,3) and extrinsics (length,V,4,4).
    """
    rng = np.random.default_rng(0)
    return [[_episode(rng, length) for length in lengths] for lengths in LENGTHS]


def _episode(rng, length):
    poses = [
        [look_at(*rng.uniform((0, 10, 5), (360, 60, 9)), np.zeros(3)) for _ in range(NUM_VIEWS)]
        for _ in range(length)
    ]
    views = [[pinhole(16, rng.uniform(30, 60)) for _ in range(NUM_VIEWS)] for _ in range(length)]
    frames = rng.integers(0, 256, (length, NUM_VIEWS, 16, 16, 3), np.uint8)
    return frames, np.array(views), np.array(poses)


def encode_alone(encoder, episode):
    frames, intrinsics, extrinsics = episode
    video = rearrange(torch.tensor(frames), "t v h w c -> 1 t v c h w") / 255
    camera = Camera(*(torch.tensor(m).float()[None] for m in (intrinsics, extrinsics)))
    with torch.no_grad():
        return encoder(video, torch.arange(len(frames))[None] == 0, camera=camera)


def moments(games):
    """What an environment gives in each step: its frame, and the last one where an episode ends."""
    for number, game in enumerate(games):
        for t in range(1, len(game[0])):
            is_end = t == len(game[0]) - 1 and number + 1 < len(games)
            now = tuple(part[t] for part in game)
            yield (tuple(part[0] for part in games[number + 1]), now) if is_end else (now, None)


def stacked(entries):
    frames, intrinsics, extrinsics = (np.stack(parts) for parts in zip(*entries, strict=True))
    return frames, camera_now(intrinsics, extrinsics)


def play(stream):
    """Feed the episodes to a stream: what it gave, by environment and episode."""
    frames, camera = stacked([tuple(part[0] for part in games[0]) for games in episodes()])
    given = [[[entry]] for entry in stream.reset(frames, camera=camera)]
    for step in zip(*map(moments, episodes()), strict=True):
        final = [last for _, last in step if last is not None]
        ended = np.array([last is not None for _, last in step])
        frames, camera = stacked([now for now, _ in step])
        final_frames, final_camera = stacked(final) if final else (None, None)
        slots, final_slots = stream.step(
            frames,
            camera=camera,
            ended=ended,
            final_frames=final_frames,
            final_camera=final_camera,
        )
        for row, entry in zip(np.flatnonzero(ended), final_slots, strict=True):
            given[row][-1].append(entry)
            given[row].append([])
        for row, entry in enumerate(slots):
            given[row][-1].append(entry)
    return given


def largest_error(encoder, stream):
    errors = [
        np.abs(np.stack(streamed) - encode_alone(encoder, game).slots[0].numpy()).max()
        for games, given in zip(episodes(), play(stream), strict=True)
        for game, streamed in zip(games, given, strict=True)
    ]
    assert len(errors) == sum(map(len, LENGTHS))
    return max(errors)


@pytest.mark.parametrize("name", RECIPES)
def test_every_episode_is_as_if_encoded_alone(name):
    encoder = make_encoder(name)
    stream = SlotStream(encoder, num_envs=3, num_views=NUM_VIEWS)
    assert largest_error(encoder, stream) < TOLERANCE


class TakesCamerasOfTheNextEnvironment(SlotStream):
    def _encode(self, seen, *args, **kwargs):
        return super()._encode((seen[0], *(part.roll(1, 0) for part in seen[1:])), *args, **kwargs)


class SwapsViews(SlotStream):
    def _encode(self, seen, *args, **kwargs):
        return super()._encode((seen[0].flip(1), *seen[1:]), *args, **kwargs)


class KeepsTheFirstCameras(SlotStream):
    def reset(self, frames, *, camera):
        self._first = camera.map(torch.clone)
        return super().reset(frames, camera=camera)

    def step(self, frames, *, camera, **kwargs):
        return super().step(frames, camera=self._first, **kwargs)


class SeesLastFramesByTheNextCameras(SlotStream):
    def step(self, frames, *, camera, ended, final_camera, **kwargs):
        if ended.any():
            final_camera = camera.map(lambda value: value[torch.from_numpy(ended)])
        return super().step(frames, camera=camera, ended=ended, final_camera=final_camera, **kwargs)


WRONG = (
    TakesCamerasOfTheNextEnvironment,
    SwapsViews,
    KeepsTheFirstCameras,
    SeesLastFramesByTheNextCameras,
)


@pytest.mark.parametrize("name", ["savi", "slot_attention"])
@pytest.mark.parametrize("wrong", WRONG, ids=lambda kind: kind.__name__)
def test_wrong_cameras_are_told(name, wrong):
    encoder = make_encoder(name)
    assert largest_error(encoder, wrong(encoder, num_envs=3, num_views=NUM_VIEWS)) > 1e-2


def test_a_step_is_one_call_for_all_views_and_environments(monkeypatch):
    encoder = make_encoder("slot_attention")
    stream = SlotStream(encoder, num_envs=3, num_views=NUM_VIEWS)
    frames, camera = stacked([tuple(part[0] for part in games[0]) for games in episodes()])
    stream.reset(frames, camera=camera)
    calls, step = [], encoder.step
    monkeypatch.setattr(encoder, "step", lambda *a, **k: calls.append(a[0].shape) or step(*a, **k))
    stream.step(frames, camera=camera)
    assert calls == [(3, NUM_VIEWS, 3, 16, 16)]


def test_geometry_is_of_each_view():
    encoder = make_encoder("savi")
    stream = SlotStream(encoder, num_envs=3, num_views=NUM_VIEWS, has_geometry=True)
    assert stream.num_columns == 16 + 7 * NUM_VIEWS
    frames, camera = stacked([tuple(part[0] for part in games[0]) for games in episodes()])
    slots = stream.reset(frames, camera=camera)
    for row, games in zip(slots, episodes(), strict=True):
        attn = encode_alone(encoder, tuple(part[:1] for part in games[0])).attn[0, 0]
        for view, own in enumerate(attn.unflatten(-1, (NUM_VIEWS, *stream.grid)).unbind(1)):
            columns = row[:, 16 + 7 * view : 16 + 7 * (view + 1)]
            np.testing.assert_allclose(columns, mask_geometry(own), atol=TOLERANCE)


def test_one_view_needs_no_axis():
    encoder = make_encoder("savi")
    frames, camera = stacked([tuple(part[0] for part in games[0]) for games in episodes()])
    first = camera.map(lambda value: value[:, :, :1])
    with_axis = SlotStream(encoder, num_envs=3, num_views=1).reset(frames[:, :1], camera=first)
    without = SlotStream(encoder, num_envs=3).reset(frames[:, 0], camera=first)
    np.testing.assert_allclose(without, with_axis, atol=TOLERANCE)


def test_cameras_that_are_none_are_refused():
    stream = SlotStream(make_encoder("savi"), num_envs=3, num_views=NUM_VIEWS)
    frames, camera = stacked([tuple(part[0] for part in games[0]) for games in episodes()])
    with pytest.raises(ValueError, match="expected cameras for an encoder of posed views"):
        stream.reset(frames)
    with pytest.raises(ValueError, match=r"shape \(3, 1, 2\), one for each view.*got \(3, 1, 1\)"):
        stream.reset(frames, camera=camera.map(lambda value: value[:, :, :1]))
    with pytest.raises(ValueError, match="extrinsics"):
        stream.reset(frames, camera=Camera(camera.intrinsics, 2 * camera.extrinsics))
    with pytest.raises(ValueError, match=r"frames of shape \(3, 2, 16, 16, 3\)"):
        stream.reset(frames[:, 0], camera=camera)
    stream.reset(frames, camera=camera)
    with pytest.raises(ValueError, match=r"shape \(1, 1, 2\), one for each view.*got \(3, 1, 2\)"):
        stream.step(
            frames,
            camera=camera,
            ended=np.array([True, False, False]),
            final_frames=frames[:1],
            final_camera=camera,
        )


def test_several_views_for_plain_frames_are_refused():
    with initialize_config_dir(CONFIGS, version_base=None):
        plain = ["+encoder=savi", *SIZES[:3], "backbone@encoder.backbone=cnn_small"]
        encoder = build(compose(overrides=plain))["encoder"]
    with pytest.raises(ValueError, match=r"one view \(H,W,3\) for an encoder of plain frames"):
        SlotStream(encoder, num_envs=1, num_views=2)
