"""Clips that come again: the loader's own, with slots that are read once."""

import numpy as np
import pytest
import torch

from ocrl.data.clip_pool import ClipPool
from ocrl.data.clips import ClipLoader, Prefetcher
from ocrl.types import Clip

SETTINGS = {"clip_length": 4, "batch_size": 6, "seed": 3, "holdout": 0.25}


def mean_colours(clip: Clip) -> torch.Tensor:
    """Slots (B,T,1,3) in place of an encoder's."""
    return clip.to_float().video.mean((-2, -1))[:, :, None]


def filled(loader, *, num_clips=8, batch_size=6, seed=0, encode=mean_colours, note=lambda _: None):
    pool = ClipPool(loader, num_clips=num_clips, batch_size=batch_size, seed=seed)
    pool.remember(encode, device="cpu", note=note)
    return pool


def test_clips_come_with_their_own_slots(make_store):
    pool = filled(ClipLoader(make_store([12, 9, 30]), **SETTINGS))
    for step in range(4):
        clip = pool.batch(step)
        assert clip.video.dtype == torch.uint8 and clip.slots.shape == (6, 4, 1, 3)
        torch.testing.assert_close(clip.slots, mean_colours(clip))
    with Prefetcher(pool, start_step=2, device="cpu") as batches:
        assert torch.equal(next(batches).video, pool.batch(2).video)


def test_each_clip_is_read_once_and_comes_again(make_store):
    read, notes = [], []

    def encode(clip):
        read.extend(clip.video.flatten(1).double().sum(1).tolist())
        return mean_colours(clip)

    loader = ClipLoader(make_store([12, 9, 30]), **SETTINGS)
    pool = filled(loader, num_clips=8, encode=encode, note=notes.append)
    assert len(pool) == len(read) == len(set(read)) == 8 and notes == [6, 8]
    come = [clip.video.flatten(1).double().sum(1) for clip in map(pool.batch, range(40))]
    assert set(torch.cat(come).tolist()) == set(read) and len(read) == 8


def test_a_batch_depends_on_the_step_and_the_seed_alone(make_store):
    store = make_store([12, 9, 30])
    one, again = (filled(ClipLoader(store, **SETTINGS)) for _ in range(2))
    for step in (5, 0, 5):
        assert torch.equal(one.batch(step).slots, again.batch(step).slots)
    assert not torch.equal(one.batch(0).slots, one.batch(1).slots)
    other = filled(ClipLoader(store, **SETTINGS), seed=1)
    assert not torch.equal(other.batch(0).slots, one.batch(0).slots)


def test_there_are_no_more_clips_than_the_loader_has_and_none_of_held_out_episodes(make_store):
    loader = ClipLoader(make_store([12, 9, 30]), **SETTINGS)
    episodes, starts = loader.draw_different(10_000)
    places = set(zip(episodes.tolist(), starts.tolist(), strict=True))
    assert len(places) == len(episodes) == loader.num_clips
    drawn = {place for step in range(60) for place in zip(*loader.draw(step), strict=True)}
    assert {(int(episode), int(start)) for episode, start in drawn} <= places


@pytest.mark.parametrize("num_clips", [7, 10_000])
def test_processes_have_different_clips(make_store, num_clips):
    store = make_store([12, 9, 30])
    parts = [
        ClipLoader(store, **SETTINGS, rank=rank, world_size=2).draw_different(num_clips)
        for rank in (0, 1)
    ]
    places = [set(zip(*(values.tolist() for values in part), strict=True)) for part in parts]
    assert not places[0] & places[1]
    whole = ClipLoader(store, **SETTINGS).draw_different(num_clips)
    assert places[0] | places[1] == set(zip(*(v.tolist() for v in whole), strict=True))


def test_damaged_episodes_are_passed_over(make_store, monkeypatch):
    store = make_store([12, 9, 30])
    loader = ClipLoader(store, **SETTINGS)
    bad = int(loader.draw(0)[0][0])
    monkeypatch.setattr(type(store), "is_sound", lambda _, index: index != bad)
    episodes, _ = loader.draw_different(10_000)
    assert len(episodes) and bad not in episodes
    monkeypatch.setattr(type(store), "is_sound", lambda *_: False)
    with pytest.raises(ValueError, match=r"expected at least 1 sound clips in .*restore it"):
        loader.draw_different(5)


def test_nothing_comes_before_slots_are_read(make_store):
    loader = ClipLoader(make_store([12, 9, 30]), **SETTINGS)
    pool = ClipPool(loader, num_clips=np.int64(4), batch_size=2, seed=0)
    with pytest.raises(ValueError, match=r"call of remember\(\) first"):
        pool.batch(0)
