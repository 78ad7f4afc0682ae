from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ocrl.data.archive import pack, unpack
from ocrl.data.clips import ClipLoader, evaluation_clips
from ocrl.data.store import EpisodeStore, EpisodeWriter


@pytest.fixture
def packed(make_store, tmp_path):
    store = make_store([17, 8, 1, 9], shard_megabytes=1e-3)
    return store, EpisodeStore(pack(store, tmp_path / "store.ocrl"))


def test_an_archive_reads_like_the_store(packed):
    store, archive = packed
    assert archive.fingerprint == store.fingerprint and archive.metadata == store.metadata
    assert archive.lengths.tolist() == [17, 8, 1, 9] and archive.verify() == []
    for index in range(4):
        found, episode = archive.episode(index), store.episode(index)
        assert list(found) == list(episode)
        for name, array in episode.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


@pytest.mark.parametrize("clip_length", [1, 5, 8, 9])
def test_clips_from_an_archive_are_those_of_the_store(packed, clip_length):
    options = {"clip_length": clip_length, "segmentation": ["entities"], "objects": True}
    loaders = [ClipLoader(s, **options, batch_size=16, seed=1, split="all") for s in packed]
    for step in range(3):
        one, other = (loader.batch(step) for loader in loaders)
        for name in ("video", "action", "reward", "terminated", "is_first", "boxes"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert torch.equal(one.segmentation["entities"], other.segmentation["entities"])
    one, other = (
        next(evaluation_clips(store, **options, num_clips=1, split="all")) for store in packed
    )
    assert torch.equal(one.video, other.video)


def test_unpacking_gives_the_store_back(packed, tmp_path):
    store, archive = packed
    again = EpisodeStore(unpack(archive.path, tmp_path / "again"), verify="full")
    assert again.fingerprint == store.fingerprint
    for name in ("frames", "objects/box", "seed"):
        np.testing.assert_array_equal(again.episode(3)[name], store.episode(3)[name])


def test_origins_are_kept(tmp_path, random_episode):
    for env in ("a", "b"):
        with EpisodeWriter(tmp_path / "store", metadata={"env": env}) as writer:
            writer.append(random_episode(3))
    archive = pack(EpisodeStore(tmp_path / "store"), tmp_path / "packed")
    for path in (archive, unpack(archive, tmp_path / "again")):
        store = EpisodeStore(path)
        assert [store.origin(index)["env"] for index in range(2)] == ["a", "b"]


def test_frames_alone_can_be_packed(tmp_path):
    frames = np.random.default_rng(0).integers(0, 9, (5, 4, 4, 3), dtype=np.uint8)
    with EpisodeWriter(tmp_path / "store", metadata={}) as writer:
        writer.append({"frames": frames})
    archive = EpisodeStore(pack(EpisodeStore(tmp_path / "store"), tmp_path / "packed"))
    np.testing.assert_array_equal(archive.episode(0)["frames"], frames)


def test_an_altered_chunk_costs_its_episode_only(packed, caplog):
    _, archive = packed
    content = bytearray(archive.path.read_bytes())
    content[20] ^= 1  # in the first chunk
    archive.path.write_bytes(content)
    lazy = EpisodeStore(archive.path)
    assert [damage.episode for damage in lazy.verify()] == [0]
    assert "episode 0: the checksum of" in caplog.text
    with pytest.raises(ValueError, match=r"episode 0 of .* is damaged"):
        lazy.episode(0)
    assert EpisodeStore(archive.path, verify="full").lengths.tolist() == [8, 1, 9]
    # Even unverified, zstd's own checksum keeps altered frames from being read.
    unverified = EpisodeStore(archive.path, verify="none")
    with pytest.raises(ValueError, match="is damaged"):
        unverified.episode(0)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_an_altered_or_cut_archive_is_named_and_never_read(packed, tmp_path, data):
    store, archive = packed
    content = bytearray(archive.path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    damaged = tmp_path / "damaged"
    damaged.write_bytes(content)
    try:
        found = EpisodeStore(damaged)
    except ValueError as error:
        assert str(damaged) in str(error)
        return
    assert len(found.verify()) == 1
    for index in range(4):
        if found.is_sound(index):
            for name, array in store.episode(index).items():
                np.testing.assert_array_equal(found.episode(index)[name], array)


def test_an_altered_table_footer_or_trailer_refuses_the_archive(packed, tmp_path):
    _, archive = packed
    content = archive.path.read_bytes()
    (start,) = np.frombuffer(content[-28:-20], "<u8")  # the trailer says where the table begins
    for place in range(int(start), len(content), 5):
        altered = bytearray(content)
        altered[place] ^= 1
        (tmp_path / "altered").write_bytes(altered)
        with pytest.raises(
            ValueError, match=r"altered (is cut short|has a damaged footer).*copy it again"
        ):
            EpisodeStore(tmp_path / "altered")


def test_a_damaged_episode_is_not_packed(make_store, tmp_path):
    store = make_store([5, 5])
    frames = store.path / "shard-000-00000" / "frames.bin"
    frames.write_bytes(bytes(frames.stat().st_size))
    with pytest.raises(ValueError, match=r"episode 0 of .* is damaged.*verify='full'"):
        pack(EpisodeStore(store.path), tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_nothing_is_overwritten_or_left_half_written(packed, tmp_path, monkeypatch):
    store, archive = packed
    with pytest.raises(FileExistsError, match="there already"):
        pack(store, archive.path)
    with pytest.raises(FileExistsError, match="there already"):
        unpack(archive.path, store.path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"could not write .*No space left.*pack again"):
        pack(store, tmp_path / "other")
    with pytest.raises(OSError, match=r"could not write .*No space left"):
        unpack(archive.path, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "store.ocrl"]


def test_an_empty_file_is_no_archive(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="no episode archive"):
        EpisodeStore(tmp_path / "empty")
