"""Streams of slots against each episode encoded alone and offline, and streams that are wrong."""

import copy
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from hydra import compose, initialize_config_dir
from torch.utils._pytree import tree_map

from ocrl.checkpoint import build
from ocrl.nn.location import mask_geometry
from ocrl.stream import SlotStream

CONFIGS = str(Path(__file__).parents[2] / "configs")
SIZES = ["+image_size=[36,36]", "+num_slots=4", "+slot_dim=16"]
SMALL = [*SIZES, "backbone@encoder.backbone=cnn_small"]
RECIPES = {
    "slot_attention": ["+encoder=slot_attention"],
    "savi": ["+encoder=savi"],
    "smooth_sa": ["+encoder=smooth_sa"],
    "psb": ["+encoder=psb", "encoder.bottom_up_window=3", "encoder.residual_gain=1"],
    "slot_ssm": ["+encoder=slot_ssm"],
    "located": ["+encoder=located"],
    "vq_sa": ["+encoder=vq_sa"],
    "vq_sa_with_memory": ["+encoder=vq_sa", "encoder@encoder.encoder=savi"],
}
WITH_MEMORY = ("savi", "smooth_sa", "psb", "vq_sa_with_memory")
# Environment by environment, the lengths of its episodes in frames; some end at the same step.
LENGTHS = ((4, 2, 6), (7, 4), (3, 2, 2, 6))
TOLERANCE = 1e-4


def make_encoder(name, *options):
    return copy.deepcopy(built(name, *options))


@functools.cache
def built(name, *options):
    with initialize_config_dir(CONFIGS, version_base=None):
        config = compose(overrides=[*RECIPES[name], *SMALL, *options])
    torch.manual_seed(0)
    encoder = build(config)["encoder"].eval()
    # Untrained encoders see little difference between frames: larger weights, larger differences.
    with torch.no_grad():
        for weight in encoder.parameters():
            if weight.ndim > 1:
                weight *= 2
    return encoder


@pytest.fixture(scope="module", params=list(RECIPES))
def encoder(request):
    return make_encoder(request.param)


def episodes(seed=0):
    """Environment by environment its episodes, (length,H,W,3): a square that moves over noise."""
    rng = np.random.default_rng(seed)
    return [
        [np.stack([_frame(rng, t) for t in range(length)]) for length in lengths]
        for lengths in LENGTHS
    ]


def _frame(rng, t):
    frame = rng.integers(0, 256, 3, dtype=np.uint8) + rng.integers(0, 60, (36, 36, 3), np.uint8)
    frame[3 * t : 3 * t + 9, 5:15] = rng.integers(0, 256, 3)
    return frame


def steps(games):
    """What an environment gives in each step: its frame, and the last one where an episode ends."""
    for number, game in enumerate(games):
        for t in range(1, len(game)):
            is_end = t == len(game) - 1 and number + 1 < len(games)
            yield (games[number + 1][0], game[t]) if is_end else (game[t], None)


def play(stream, played):
    """Feed episodes to a stream: what it gave, by environment and episode."""
    given = [[[entry]] for entry in stream.reset(np.stack([games[0][0] for games in played]))]
    for step in zip(*map(steps, played), strict=True):
        final = [last for _, last in step if last is not None]
        ended = np.array([last is not None for _, last in step])
        slots, final_slots = stream.step(
            np.stack([frame for frame, _ in step]),
            ended=ended,
            final_frames=np.stack(final) if final else None,
        )
        for row, entry in zip(np.flatnonzero(ended), final_slots, strict=True):
            given[row][-1].append(entry)
            given[row].append([])
        for row, entry in enumerate(slots):
            given[row][-1].append(entry)
    return [[np.stack(episode) for episode in of_one] for of_one in given]


def video(game):
    """Frames (T,H,W,3) as a clip (1,T,3,H,W)."""
    return rearrange(torch.tensor(game), "t h w c -> 1 t c h w").float() / 255


def encode_alone(encoder, game, **options):
    frames = video(game)
    with torch.no_grad():
        return encoder(frames, torch.arange(len(game))[None] == 0, **options)


def largest_error(encoder, stream):
    played = episodes()
    errors = [
        np.abs(streamed - encode_alone(encoder, game).slots[0].numpy()).max()
        for games, given in zip(played, play(stream, played), strict=True)
        for game, streamed in zip(games, given, strict=True)
    ]
    assert len(errors) == sum(map(len, LENGTHS))
    return max(errors)


def test_every_episode_is_as_if_encoded_alone(encoder):
    assert largest_error(encoder, SlotStream(encoder, num_envs=3)) < TOLERANCE


class EncodesLastFramesAfterTheReset(SlotStream):
    def _step_over_ends(self, going_on, starting, rows, action):
        slots, _ = super()._step_over_ends(going_on, starting, rows, action)
        return slots, self._columns(*self._start(tuple(part[rows] for part in going_on), ())[0])


class ForgetsTheReset(SlotStream):
    def _step_over_ends(self, going_on, starting, rows, action):
        self._rows = rows
        return super()._step_over_ends(going_on, starting, rows, action)

    def _start(self, seen, noise):
        if len(seen[0]) == self.num_envs:
            return super()._start(seen, noise)
        kept = tree_map(lambda leaf: leaf[self._rows], self._state)
        return self._encode(seen, kept, noise, is_first=False)


class MixesEnvironments(SlotStream):
    def _follow(self, seen, action):
        self._state = tree_map(lambda leaf: leaf.roll(1, 0), self._state)
        return super()._follow(seen, action)


class MixesEndedEpisodes(SlotStream):
    def _start(self, seen, noise):
        is_all = len(seen[0]) == self.num_envs
        return super()._start(seen if is_all else tuple(part.flip(0) for part in seen), noise)


class ReordersSlots(SlotStream):
    def _columns(self, slots, attn):
        return np.sort(super()._columns(slots, attn), axis=1)


NEEDS_MEMORY = (EncodesLastFramesAfterTheReset, ForgetsTheReset, MixesEnvironments)
ANYWHERE = (MixesEndedEpisodes, ReordersSlots)


@pytest.mark.parametrize("name", WITH_MEMORY)
@pytest.mark.parametrize("wrong", [*NEEDS_MEMORY, *ANYWHERE], ids=lambda kind: kind.__name__)
def test_a_wrong_stream_is_told(name, wrong):
    assert largest_error(make_encoder(name), wrong(make_encoder(name), num_envs=3)) > 1e-2


@pytest.mark.parametrize("wrong", ANYWHERE, ids=lambda kind: kind.__name__)
def test_a_wrong_stream_without_memory_is_told(wrong):
    encoder = make_encoder("slot_attention")
    assert largest_error(encoder, wrong(encoder, num_envs=3)) > 1e-2


def test_an_encoder_without_memory_costs_one_call_a_step(monkeypatch):
    calls = []
    for name, expected in (("slot_attention", 1), ("savi", 2)):
        encoder = make_encoder(name)
        stream = SlotStream(encoder, num_envs=3)
        frames = np.stack([games[0][0] for games in episodes()])
        stream.reset(frames)
        step = encoder.step
        monkeypatch.setattr(encoder, "step", lambda *a, s=step, **k: calls.append(1) or s(*a, **k))
        calls.clear()
        stream.step(frames)
        assert len(calls) == 1
        calls.clear()
        stream.step(frames, ended=np.array([True, False, True]), final_frames=frames[:2])
        assert len(calls) == expected


def first_frames(seed=0):
    return np.stack([games[0][0] for games in episodes(seed)])


def noisy_savi():
    return make_encoder("savi", "initializer@encoder.initializer=gaussian")


def flat(given):
    return np.concatenate([episode for games in given for episode in games])


def test_noise_follows_from_the_seed_alone():
    encoder, played = noisy_savi(), episodes()
    first = play(SlotStream(encoder, num_envs=3, is_noisy=True, seed=5), played)
    before = torch.get_rng_state()
    stream = SlotStream(encoder, num_envs=3, is_noisy=True, seed=0)
    stream.seed(5)
    again = play(stream, played)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(flat(again), flat(first))
    # The generators have gone on, as in the next run of the same environments.
    assert np.abs(flat(play(stream, played)) - flat(first)).max() > 1e-2


def test_noise_is_an_environments_own_and_every_episodes():
    """Environment 2 alone, seeded alike, gives the same; and offline with the noise it drew."""
    encoder, played = noisy_savi(), episodes()
    together = play(SlotStream(encoder, num_envs=3, is_noisy=True, seed=5), played)
    alone = play(SlotStream(encoder, num_envs=1, is_noisy=True, seed=7), played[2:])
    np.testing.assert_allclose(flat(alone), flat(together[2:]), atol=TOLERANCE)
    generator = torch.Generator().manual_seed(7)
    for game, streamed in zip(played[2], together[2], strict=True):
        noise = torch.randn(1, 4, 16, generator=generator)
        offline = encode_alone(encoder, game, condition=noise).slots[0].numpy()
        np.testing.assert_allclose(streamed, offline, atol=TOLERANCE)
        assert np.abs(streamed - encode_alone(encoder, game).slots[0].numpy()).max() > 1e-2


def test_noise_without_memory_lasts_an_episode():
    encoder = make_encoder("slot_attention", "initializer@encoder.initializer=gaussian")
    played = [[np.repeat(first_frames()[:1], 3, axis=0)] * 2]
    first, second = play(SlotStream(encoder, num_envs=1, is_noisy=True), played)[0]
    for episode in (first, second):
        np.testing.assert_allclose(episode, episode[:1].repeat(3, 0), atol=TOLERANCE)
    assert np.abs(first[0] - second[0]).max() > 1e-2


def test_an_order_of_slots_lasts_an_episode():
    """Queries in another order at the start give the slots in that order, to the last frame."""
    encoder = make_encoder("savi")
    plain = play(SlotStream(encoder, num_envs=3), episodes())
    order = [2, 0, 3, 1]
    encoder.initializer.slots.data = encoder.initializer.slots.data[order]
    moved = play(SlotStream(encoder, num_envs=3), episodes())
    np.testing.assert_allclose(flat(moved), flat(plain)[:, order], atol=TOLERANCE)
    assert np.abs(flat(moved) - flat(plain)).max() > 1e-2


@pytest.mark.parametrize("name", ["slot_attention", *WITH_MEMORY])
def test_a_kept_state_brings_back_what_followed(name):
    encoder = make_encoder(name)
    stream = SlotStream(encoder, num_envs=3)
    frames, later = first_frames(), first_frames(seed=1)
    stream.reset(frames)
    stream.step(later)
    kept, attn = stream.get_state(), stream.attn
    ended = np.array([True, False, True])
    first, last = stream.step(frames, ended=ended, final_frames=later[:2])
    stream.reset(later)
    stream.set_state(kept)
    np.testing.assert_array_equal(stream.attn, attn)
    again, last_again = stream.step(frames, ended=ended, final_frames=later[:2])
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(last_again, last)
    with pytest.raises(ValueError, match="state of 2 environments, got one of 3"):
        SlotStream(encoder, num_envs=2).set_state(kept)


def test_a_kept_state_has_the_noise_to_come():
    stream = SlotStream(noisy_savi(), num_envs=3, is_noisy=True)
    stream.reset(first_frames())
    kept = stream.get_state()
    first = stream.reset(first_frames())
    assert np.abs(stream.reset(first_frames()) - first).max() > 1e-2
    stream.set_state(kept)
    np.testing.assert_array_equal(stream.reset(first_frames()), first)


def test_geometry_and_attention_are_of_the_frames_given():
    encoder = make_encoder("savi")
    stream = SlotStream(encoder, num_envs=3, has_geometry=True)
    stream.reset(first_frames(seed=1))
    frames, last = first_frames(), first_frames(seed=2)
    slots, final = stream.step(frames, ended=np.ones(3, bool), final_frames=last)
    assert slots.shape == final.shape == (3, 4, stream.num_columns) == (3, 4, 23)
    for frame, row, attn in zip(frames, slots, stream.attn, strict=True):
        alone = encode_alone(encoder, frame[None])
        np.testing.assert_allclose(attn, alone.attn[0, 0], atol=TOLERANCE)
        geometry = mask_geometry(alone.attn[0, 0].unflatten(-1, stream.grid))
        np.testing.assert_allclose(row[:, 16:], geometry, atol=TOLERANCE)
    assert np.abs(final[..., 16:] - slots[..., 16:]).max() > 1e-3


def test_geometry_of_a_decoder():
    with initialize_config_dir(CONFIGS, version_base=None):
        decoder = build(compose(overrides=["+decoder=glimpse_small", *SIZES]))["decoder"]
    stream = SlotStream(make_encoder("savi"), num_envs=3, decoder=decoder, has_geometry=True)
    slots = torch.tensor(stream.reset(first_frames()))
    attn = torch.tensor(stream.attn)
    with torch.no_grad():
        masks = decoder(slots[:, None, :, :16], attn=attn[:, None]).masks[:, 0]
    torch.testing.assert_close(slots[..., 16:], mask_geometry(masks))
    own = mask_geometry(attn.unflatten(-1, stream.grid))
    assert (slots[..., 16:] - own).abs().max() > 1e-3


def test_it_changes_nothing_but_the_mode():
    encoder = make_encoder("smooth_sa").train()
    weights = [value.clone() for value in encoder.state_dict().values()]
    stream = SlotStream(encoder, num_envs=3)
    assert not encoder.training
    frames = first_frames()
    kept = frames.copy()
    stream.reset(frames)
    stream.step(frames, ended=np.array([True, False, False]), final_frames=frames[:1])
    np.testing.assert_array_equal(frames, kept)
    for before, after in zip(weights, encoder.state_dict().values(), strict=True):
        assert torch.equal(before, after)


def test_misuse():
    encoder = make_encoder("savi")
    stream, frames = SlotStream(encoder, num_envs=3), first_frames()
    with pytest.raises(ValueError, match="call of reset"):
        stream.step(frames)
    with pytest.raises(ValueError, match="call of reset"):
        _ = stream.attn
    with pytest.raises(
        ValueError, match=r"expected frames of shape \(3, 36, 36, 3\) in uint8, got"
    ):
        stream.reset(frames[:, :32])
    with pytest.raises(ValueError, match="in float64"):
        stream.reset(frames / 255.0)
    stream.reset(frames)
    with pytest.raises(ValueError, match="final_frames of the 1 ended"):
        stream.step(frames, ended=np.array([True, False, False]))
    with pytest.raises(ValueError, match=r"shape \(1, 36, 36, 3\) in uint8, got \(2,"):
        stream.step(frames, ended=np.array([True, False, False]), final_frames=frames[:2])
    encoder.train()
    with pytest.raises(ValueError, match=r"call encoder.eval\(\) after training"):
        stream.step(frames)


def test_bad_arguments():
    encoder = make_encoder("savi")
    with pytest.raises(ValueError, match="num_envs of at least 1"):
        SlotStream(encoder, num_envs=0)
    with pytest.raises(ValueError, match="GaussianInitializer"):
        SlotStream(encoder, num_envs=1, is_noisy=True)
    with initialize_config_dir(CONFIGS, version_base=None):
        config = compose(
            overrides=["+decoder=content_mixer", "+image_size=[32,32]", "+slot_dim=16"]
        )
    decoder = build(config)["decoder"]
    with pytest.raises(ValueError, match="expected has_geometry"):
        SlotStream(encoder, num_envs=1, decoder=decoder)
    with pytest.raises(ValueError, match="which needs the frames"):
        SlotStream(encoder, num_envs=1, decoder=decoder, has_geometry=True)


@pytest.mark.gpu
def test_it_runs_where_the_encoder_is():
    played = episodes()
    on_cpu, on_gpu = (
        play(SlotStream(encoder, num_envs=3, is_noisy=True, has_geometry=True), played)
        for encoder in (noisy_savi(), noisy_savi().cuda())
    )
    # Convolutions may round to TF32 there; a box may be a cell larger for it.
    np.testing.assert_allclose(flat(on_gpu)[..., :16], flat(on_cpu)[..., :16], atol=0.05)
