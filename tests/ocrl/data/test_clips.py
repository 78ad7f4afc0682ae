from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from ocrl.data.clips import ClipLoader, Prefetcher, evaluation_clips, split_episodes
from ocrl.data.store import EpisodeStore, EpisodeWriter
from ocrl.types import Clip

SETTINGS = {"clip_length": 4, "batch_size": 6, "seed": 3, "segmentation": ["entities"]}


def assert_equal(one: Clip, other: Clip) -> None:
    for name in ("video", "is_first", "action", "reward", "terminated", "truncated", "boxes"):
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None)
        assert first is None or torch.equal(first, second), name
    for name, masks in one.segmentation.items():
        assert torch.equal(masks, other.segmentation[name])


def joined(clips: list[Clip], name: str) -> torch.Tensor:
    return torch.cat([getattr(clip, name) for clip in clips])


def number_store(path: Path, rows: list[int]) -> EpisodeStore:
    """A store in which a frame's channels say its episode and its place there."""
    with EpisodeWriter(path, metadata={}, shard_megabytes=1e-4) as writer:
        for index, count in enumerate(rows):
            frames = np.zeros((count, 2, 2, 3), np.uint8)
            frames[..., 0], frames[..., 1] = index, np.arange(count)[:, None, None]
            writer.append({"frames": frames})
    return EpisodeStore(path)


def places(clip: Clip) -> list[tuple[int, int]]:
    """Episode and first frame of each clip of a `number_store`; checks that frames follow on."""
    numbers = clip.video[:, :, :2, 0, 0].int()
    assert (numbers[:, 1:] - numbers[:, :-1] == torch.tensor([0, 1])).all()
    return [(int(episode), int(start)) for episode, start in numbers[:, 0]]


def test_clips_hold_what_the_episodes_hold(make_store):
    store = make_store([12, 9, 7], shard_megabytes=1e-3)
    loader = ClipLoader(store, **SETTINGS, split="all", objects=True)
    clip = loader.batch(5)
    assert clip.video.dtype == torch.uint8 and clip.video.shape == (6, 4, 3, 8, 8)
    assert clip.video.stride()[2] == 1  # channels-last memory, not copied
    assert clip.segmentation["entities"].dtype == torch.int32
    assert clip.action.dtype == torch.int64 and clip.reward.dtype == torch.float32
    assert clip.is_first.dtype == clip.terminated.dtype == torch.bool
    assert clip.properties["id"].shape == (6, 4, 3) and clip.boxes.shape == (6, 4, 3, 4)
    assert clip.boxes[:, :, 1:].eq(-1).all() and clip.boxes[:, :, 0].ge(0).all()
    episodes, starts = loader.draw(5)
    for row, (index, start) in enumerate(zip(episodes, starts, strict=True)):
        episode = store.episode(int(index))
        part = slice(start, start + 4)
        frames = np.moveaxis(episode["frames"][part], -1, 1)
        np.testing.assert_array_equal(clip.video[row], frames)
        ids = episode["segmentation/entities"][part]
        np.testing.assert_array_equal(clip.segmentation["entities"][row], ids)
        for name in ("action", "reward", "terminated", "truncated", "is_first"):
            np.testing.assert_array_equal(getattr(clip, name)[row], episode[name][part])
        np.testing.assert_array_equal(clip.boxes[row, :, 0], episode["objects/box"][part][:, 0])


def test_a_batch_depends_only_on_seed_and_step(make_store):
    store = make_store([12, 9, 30])
    one, other = ClipLoader(store, **SETTINGS), ClipLoader(EpisodeStore(store.path), **SETTINGS)
    other.batch(0)
    assert_equal(one.batch(7), other.batch(7))
    assert not torch.equal(one.batch(7).video, one.batch(8).video)
    different = ClipLoader(store, **(SETTINGS | {"seed": 4}))
    assert not torch.equal(one.batch(7).video, different.batch(7).video)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_give_the_whole_batch(make_store, world_size):
    store = make_store([12, 9, 30])
    whole = ClipLoader(store, **SETTINGS)
    ranks = [
        ClipLoader(store, **SETTINGS, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step in range(3):
        parts = [loader.batch(step) for loader in ranks]
        for name in ("video", "action", "is_first"):
            assert torch.equal(joined(parts, name), getattr(whole.batch(step), name))


def test_every_clip_is_equally_likely(tmp_path):
    store = number_store(tmp_path, [4, 6, 2])
    loader = ClipLoader(store, clip_length=3, batch_size=60, seed=0, split="all")
    assert loader.num_clips == 2 + 4
    seen = [place for step in range(100) for place in places(loader.batch(step))]
    counts = {place: seen.count(place) for place in set(seen)}
    assert set(counts) == {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3)}
    assert all(850 < count < 1150 for count in counts.values())  # 5 standard deviations


def test_splits_share_no_episode_and_hardly_move(tmp_path):
    store = number_store(tmp_path, [5] * 30)
    train, held_out = (split_episodes(store, split=s, holdout=0.2) for s in ("train", "holdout"))
    assert len(held_out) == 6 and sorted([*train, *held_out]) == list(range(30))
    loader = ClipLoader(store, clip_length=2, batch_size=50, seed=0, holdout=0.2, split="holdout")
    assert {episode for episode, _ in places(loader.batch(0))} <= set(held_out.tolist())
    with EpisodeWriter(tmp_path, metadata={}, worker=1) as writer:
        writer.append({"frames": np.full((5, 2, 2, 3), 77, np.uint8)})
    grown = split_episodes(EpisodeStore(tmp_path), split="holdout", holdout=0.2)
    assert len(set(grown) & set(held_out)) >= 5


def test_one_episode_at_least_is_held_out(tmp_path):
    store = number_store(tmp_path, [5, 5])
    assert len(split_episodes(store, split="holdout", holdout=0.01)) == 1
    assert len(split_episodes(store, split="train", holdout=0.01)) == 1
    single = number_store(tmp_path / "single", [5])
    with pytest.raises(ValueError, match=r"holds 1 episode.*at least 2; collect more"):
        split_episodes(single, split="train", holdout=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_length": 13}, "at least clip_length=13 frames, got at most 12"),
        ({"clip_length": 0}, "clip_length to be at least 1, got 0"),
        ({"image_size": [64, 48]}, r"size \(64, 48\).*got uint8 frames of \(8, 8\); train or take"),
        ({"segmentation": ["scene"]}, r"segmentation 'scene'.*got \['entities'\]"),
        ({"split": "test"}, "'train', 'holdout' or 'all', got 'test'"),
        ({"holdout": 1.0}, "fraction between 0 and 1, got 1.0"),
        ({"batch_size": 0}, "batch_size to be at least 1, got 0"),
        ({"batch_size": 7, "world_size": 2}, "multiple of the 2 processes .*got 7"),
        ({"rank": 2, "world_size": 2}, r"rank in \[0, 2\), got 2"),
    ],
)
def test_what_the_store_cannot_give_is_named(make_store, changes, message):
    store = make_store([12, 9, 12])
    with pytest.raises(ValueError, match=message):
        ClipLoader(store, **(SETTINGS | {"split": "all", "image_size": [8, 8]} | changes))


def test_frames_that_are_not_rgb_are_refused_where_a_size_is_asked_for(tmp_path):
    with EpisodeWriter(tmp_path, metadata={}) as writer:
        writer.append({"frames": np.zeros((5, 8, 8, 1), np.uint8)})
    settings = {"clip_length": 4, "batch_size": 2, "seed": 0, "split": "all"}
    store = EpisodeStore(tmp_path)
    with pytest.raises(ValueError, match=r"expected frames \(H,W,3\) in .*, got \(8, 8, 1\)"):
        ClipLoader(store, **settings, image_size=(8, 8))
    assert ClipLoader(store, **settings).batch(0).video.shape == (2, 4, 1, 8, 8)


def test_episodes_that_are_too_short_are_not_drawn(tmp_path):
    store = number_store(tmp_path, [3, 9, 5])
    loader = ClipLoader(store, clip_length=6, batch_size=40, seed=0, split="all")
    assert {episode for episode, _ in places(loader.batch(0))} == {1}


def test_damaged_episodes_are_passed_over_by_all_ranks_alike(tmp_path):
    store = number_store(tmp_path, [9] * 6)
    whole = ClipLoader(store, clip_length=3, batch_size=8, seed=0, split="all")
    before = places(whole.batch(0))
    for shard, row in ((0, 0), (1, 0)):
        file = tmp_path / f"shard-000-{shard:05d}" / "frames.bin"
        content = bytearray(file.read_bytes())
        content[row * 12 + 2] ^= 1  # the unused third channel
        file.write_bytes(content)
    store = EpisodeStore(tmp_path)
    settings = {"clip_length": 3, "batch_size": 8, "seed": 0, "split": "all"}
    after = places(ClipLoader(store, **settings).batch(0))
    damaged = {i for i in range(6) if not store.is_sound(i)}
    assert damaged and not damaged & {episode for episode, _ in after}
    kept = [i for i, (episode, _) in enumerate(before) if episode not in damaged]
    assert [before[i] for i in kept] == [after[i] for i in kept]
    ranks = [ClipLoader(EpisodeStore(tmp_path), **settings, rank=r, world_size=2) for r in (0, 1)]
    assert [place for rank in ranks for place in places(rank.batch(0))] == after


def test_when_all_is_damaged_drawing_stops(tmp_path):
    store = number_store(tmp_path, [9])
    file = tmp_path / "shard-000-00000" / "frames.bin"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(ValueError, match="found no sound episode"):
        ClipLoader(store, clip_length=3, batch_size=2, seed=0, split="all").batch(0)
    with pytest.raises(ValueError, match=r"every episode asked for in .* is damaged"):
        next(evaluation_clips(store, clip_length=3, num_clips=2, split="all"))


def test_evaluation_clips_are_spread_and_fixed(tmp_path):
    store = number_store(tmp_path, [20, 40, 8, 20])
    settings = {"clip_length": 4, "num_clips": 12, "split": "all"}
    first = [places(clip)[0] for clip in evaluation_clips(store, **settings)]
    batches = [places(clip) for clip in evaluation_clips(store, **settings, batch_size=5)]
    assert [len(batch) for batch in batches] == [5, 5, 2]
    assert [place for batch in batches for place in batch] == first
    assert [episode for episode, _ in first] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for episode in (0, 1, 3):  # long enough: no frame is judged twice
        starts = [start for number, start in first if number == episode]
        assert all(later - start >= 4 for start, later in itertools.pairwise(starts))
    few = [places(clip)[0] for clip in evaluation_clips(store, **(settings | {"num_clips": 2}))]
    assert [episode for episode, _ in few] == [0, 2]
    with pytest.raises(ValueError, match="num_clips to be at least 1"):
        next(evaluation_clips(store, clip_length=4, num_clips=0))


@pytest.mark.parametrize("at_end", [False, True])
def test_only_episodes_that_are_evaluated_are_checked_and_damaged_ones_replaced(tmp_path, at_end):
    settings = {"clip_length": 4, "num_clips": 3, "split": "all", "at_end": at_end}
    number_store(tmp_path, [9] * 12)
    store = EpisodeStore(tmp_path)
    checked, check = [], store.check
    store.check = lambda index: [checked.append(index), check(index)][1]
    chosen = [places(clip)[0][0] for clip in evaluation_clips(store, **settings)]
    assert sorted(set(checked)) == chosen == [0, 4, 8]
    file = tmp_path / "shard-000-00004" / "frames.bin"
    file.write_bytes(bytes(file.stat().st_size))
    store = EpisodeStore(tmp_path)
    found = [places(clip)[0][0] for clip in evaluation_clips(store, **settings)]
    assert not store.is_sound(4) and 4 not in found and len(set(found)) == 3
    again = [places(clip)[0][0] for clip in evaluation_clips(store, **settings)]
    assert again == found


def test_evaluation_clips_are_held_out_from_training(tmp_path):
    store = number_store(tmp_path, [10] * 20)
    train = ClipLoader(store, clip_length=3, batch_size=200, seed=0, holdout=0.25)
    held_out = evaluation_clips(store, clip_length=3, num_clips=10, holdout=0.25)
    used = {episode for episode, _ in places(train.batch(0))}
    assert not used & {places(clip)[0][0] for clip in held_out}


def test_views_and_cameras(tmp_path):
    generator = np.random.default_rng(0)
    episode = {
        "frames": generator.integers(0, 256, (6, 2, 4, 5, 3), dtype=np.uint8),
        "segmentation/entities": generator.integers(0, 9, (6, 2, 4, 5)).astype(np.uint16),
        "intrinsics": np.triu(generator.random((6, 2, 3, 3), dtype=np.float32) + 1.0),
        "extrinsics": np.tile(np.eye(4, dtype=np.float32), (6, 2, 1, 1)),
        "action": generator.random((6, 3), dtype=np.float32),
    }
    episode["extrinsics"][..., :3, 3] = generator.random((6, 2, 3))
    with EpisodeWriter(tmp_path, metadata={}) as writer:
        writer.append(episode)
    loader = ClipLoader(
        EpisodeStore(tmp_path), split="all", **(SETTINGS | {"clip_length": 6}), image_size=(4, 5)
    )
    clip = loader.batch(0)
    assert clip.video.shape == (6, 6, 2, 3, 4, 5) and clip.num_views == 2
    np.testing.assert_array_equal(clip.video[0].movedim(-3, -1), episode["frames"])
    assert clip.camera.intrinsics.shape == (6, 6, 2, 3, 3)
    np.testing.assert_array_equal(clip.camera.extrinsics[1], episode["extrinsics"])
    assert clip.action.shape == (6, 6, 3) and clip.reward is None


def test_prefetching_changes_nothing(make_store):
    loader = ClipLoader(make_store([12, 9, 30]), **SETTINGS)
    with Prefetcher(loader, start_step=4, device="cpu") as batches:
        for step, clip in zip(range(4, 9), batches, strict=False):
            assert_equal(clip, loader.batch(step))


def test_prefetching_hands_on_errors(make_store, monkeypatch):
    loader = ClipLoader(make_store([12, 9, 30]), **SETTINGS)

    def fail(*_, **__):
        raise ValueError("the disk is gone")

    monkeypatch.setattr(loader, "batch", fail)
    with (
        Prefetcher(loader, start_step=0, device="cpu") as batches,
        pytest.raises(ValueError, match="the disk is gone"),
    ):
        next(batches)


@pytest.mark.gpu
def test_prefetching_to_a_gpu(make_store):
    loader = ClipLoader(make_store([12, 9, 30]), **SETTINGS)
    with Prefetcher(loader, start_step=0, device="cuda") as batches:
        for step, clip in zip(range(5), batches, strict=False):
            assert clip.video.is_cuda
            assert_equal(clip.to("cpu"), loader.batch(step))


def test_clips_do_not_depend_on_the_order_of_writing(tmp_path):
    generator = np.random.default_rng(0)
    episodes = [
        {"frames": generator.integers(0, 256, (rows, 4, 4, 3), dtype=np.uint8)}
        for rows in (7, 9, 6, 8, 10, 7)
    ]
    stores = []
    for name, order in (("left", range(6)), ("right", (3, 5, 0, 2, 4, 1))):
        with EpisodeWriter(tmp_path / name, metadata={}) as writer:
            for index in order:
                writer.append(episodes[index])
        stores.append(EpisodeStore(tmp_path / name))
    settings = {"clip_length": 4, "holdout": 0.4}
    left, right = (ClipLoader(store, batch_size=5, seed=1, **settings) for store in stores)
    for step in range(3):
        assert torch.equal(left.batch(step).video, right.batch(step).video)
    held_out = [list(evaluation_clips(store, num_clips=3, **settings)) for store in stores]
    for one, other in zip(*held_out, strict=True):
        assert torch.equal(one.video, other.video)


def test_clips_at_the_end_are_the_last_of_their_episodes(tmp_path):
    store = number_store(tmp_path / "store", [6, 3, 9, 4])
    settings = {"clip_length": 4, "split": "all", "at_end": True}
    found = [places(clip)[0] for clip in evaluation_clips(store, num_clips=10, **settings)]
    assert sorted(found) == [(0, 2), (2, 5), (3, 0)]
    few = [places(clip)[0] for clip in evaluation_clips(store, num_clips=2, **settings)]
    assert len(few) == 2 and set(few) < set(found)
