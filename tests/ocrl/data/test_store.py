from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ocrl.data.store import EpisodeStore, EpisodeWriter, new_folder

SHARD = "shard-000-00000"
slow_io = settings(
    max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


def small_episode(rows: int, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng([seed, rows])
    return {
        "frames": generator.integers(0, 256, (rows, 2, 3, 1), dtype=np.uint8),
        "action": generator.integers(0, 9, rows),
        "seed": seed,
    }


def write(path: Path, lengths: list[int], **options: Any) -> None:
    with EpisodeWriter(path, metadata={"env": "test"}, **options) as writer:
        for seed, rows in enumerate(lengths):
            writer.append(small_episode(rows, seed))


def assert_same(found: dict[str, Any], episode: dict[str, Any]) -> None:
    for name, array in episode.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].dtype == np.asarray(array).dtype


def test_what_is_written_is_read(make_store, random_episode):
    store = make_store([5, 9, 2])
    assert len(store) == 3 and store.num_frames == 16
    assert store.lengths.tolist() == [5, 9, 2] and store.metadata == {"env": "test"}
    for index, rows in enumerate([5, 9, 2]):
        episode = random_episode(rows, seed=index)
        table = episode.pop("objects")
        found = store.episode(index)
        assert_same(found, episode)
        np.testing.assert_array_equal(found["objects/box"], table["box"])
        np.testing.assert_array_equal(found["is_first"], np.arange(rows) == 0)
        assert "objects/attributes" not in found  # no attributes, no bytes
        assert not found["frames"].flags.writeable
    with pytest.raises(IndexError, match=r"in \[0, 3\), got 3"):
        store.episode(3)


def test_the_documented_numpy_lines_read_it(make_store, random_episode):
    store = make_store([4, 6])
    shard = store.path / SHARD
    header, *episodes = map(json.loads, (shard / "index.jsonl").read_text().splitlines())
    spec, episode = header["arrays"]["frames"], episodes[1]
    frames = np.fromfile(shard / "frames.bin", spec["dtype"]).reshape(-1, *spec["shape"])
    frames = frames[episode["start"] : episode["start"] + episode["rows"]]
    np.testing.assert_array_equal(frames, random_episode(6, seed=1)["frames"])


def test_names_may_be_several_folders_deep(tmp_path):
    episode = small_episode(3, 0) | {"observation/camera/back": np.arange(3)}
    with EpisodeWriter(tmp_path, metadata={}) as writer:
        writer.append(episode)
    assert_same(EpisodeStore(tmp_path).episode(0), episode)
    with EpisodeWriter(tmp_path, metadata={}) as writer:
        writer.append(episode)
    assert len(EpisodeStore(tmp_path, verify="full")) == 2


def test_shards_follow_one_another(tmp_path):
    write(tmp_path, [5] * 6, shard_megabytes=1e-4)
    assert len(list(tmp_path.glob("shard-000-*"))) > 1
    store = EpisodeStore(tmp_path)
    assert len(store) == 6
    for index in range(6):
        assert_same(store.episode(index), small_episode(5, index))


def test_a_second_writer_appends_to_the_last_shard(tmp_path):
    write(tmp_path, [5, 4])
    with EpisodeWriter(tmp_path, metadata={"env": "test"}) as writer:
        assert (writer.num_episodes, writer.num_frames) == (2, 9)
        assert writer.append(small_episode(3, 7)) == 3
    assert [path.name for path in tmp_path.iterdir()] == [SHARD]
    assert_same(EpisodeStore(tmp_path).episode(2), small_episode(3, 7))


def test_another_origin_gets_another_shard(tmp_path):
    write(tmp_path, [5])
    with EpisodeWriter(tmp_path, metadata={"env": "other"}) as writer:
        writer.append(small_episode(3, 7))
    store = EpisodeStore(tmp_path)
    assert [store.origin(index)["env"] for index in range(2)] == ["test", "other"]


def test_workers_write_at_the_same_time(tmp_path):
    writers = [EpisodeWriter(tmp_path, metadata={}, worker=worker) for worker in range(3)]
    for seed in range(15):
        writers[seed % 3].append(small_episode(4, seed))
    for writer in writers:
        writer.close()
    store = EpisodeStore(tmp_path, verify="full")
    assert sorted(int(store.episode(index)["seed"]) for index in range(15)) == list(range(15))
    assert len(list(tmp_path.iterdir())) == 3


def test_two_writers_cannot_share_a_worker(tmp_path):
    with (
        EpisodeWriter(tmp_path, metadata={}),
        pytest.raises(OSError, match="another process is writing"),
    ):
        EpisodeWriter(tmp_path, metadata={})


def test_a_writer_without_episodes_leaves_nothing(tmp_path):
    with EpisodeWriter(tmp_path / "store", metadata={}):
        pass
    assert list((tmp_path / "store").iterdir()) == []


@slow_io
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.floats(0, 1))
def test_killed_at_any_byte_the_whole_episodes_remain(tmp_path_factory, lengths, part):
    """Cut the stream of writes at one byte: the whole episodes are there, and writing goes on."""
    path = tmp_path_factory.mktemp("killed")
    kept = [len(lengths)]
    real_write, written = os.write, [0]

    class Killed(BaseException):
        pass

    def count(descriptor, content):
        written[0] += len(content)
        return real_write(descriptor, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", count)
        write(path / "whole", lengths)
    budget = [int(part * written[0])]

    def cut(descriptor, content):
        content = content[: budget[0]]
        budget[0] -= len(content)
        if not content:
            raise Killed
        return real_write(descriptor, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", cut)
        patch.setattr(EpisodeWriter, "_roll_back", lambda self: None)  # a dead process does nothing
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        try:
            with EpisodeWriter(path / "cut", metadata={"env": "test"}) as writer:
                kept[0] = 0
                for seed, rows in enumerate(lengths):
                    writer.append(small_episode(rows, seed))
                    kept[0] += 1
        except Killed:
            pass
    if kept[0]:
        store = EpisodeStore(path / "cut")
        assert len(store) == kept[0] and store.lengths.tolist() == lengths[: kept[0]]
        assert EpisodeStore(path / "cut", verify="full").fingerprint == store.fingerprint
    else:
        with pytest.raises(FileNotFoundError, match="no whole episode"):
            EpisodeStore(path / "cut")
    with EpisodeWriter(path / "cut", metadata={"env": "test"}) as writer:
        assert writer.num_episodes == kept[0]
        for seed in range(kept[0], len(lengths)):
            writer.append(small_episode(lengths[seed], seed))
    mended = EpisodeStore(path / "cut")
    assert mended.verify() == [] and mended.fingerprint == EpisodeStore(path / "whole").fingerprint
    for file in sorted((path / "whole" / SHARD).iterdir()):  # and not a byte of litter
        assert file.read_bytes() == (path / "cut" / SHARD / file.name).read_bytes()


def test_a_full_disk_and_a_killed_process(tmp_path):
    code = f"""
        import os, resource, sys, numpy as np
        from ocrl.data.store import EpisodeWriter
        episode = {{"frames": np.ones((10, 8, 8, 1), np.uint8)}}
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        writer = EpisodeWriter({str(tmp_path)!r}, metadata={{}})
        try:
            while True:
                writer.append(episode)
        except OSError as error:
            sys.stderr.write(f"{{error}}, {{os.path.getsize(sys.argv[1])}} bytes")
            sys.stderr.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        writer.append(episode)
        real = os.write
        def die(descriptor, content):
            real(descriptor, content[:20])
            os.kill(os.getpid(), 9)
        os.write = die
        writer.append(episode)
    """
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / SHARD / "frames.bin")],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9
    assert "File too large); the 3 episodes already there are safe" in done.stderr
    assert done.stderr.endswith(", 1920 bytes")  # nothing of the episode that did not fit
    store = EpisodeStore(tmp_path, verify="full")
    assert store.lengths.tolist() == [10, 10, 10, 10] and store.verify() == []


@slow_io
@given(st.data())
def test_an_altered_byte_is_named_and_never_read(tmp_path_factory, data):
    lengths = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    path = tmp_path_factory.mktemp("altered")
    write(path, lengths)
    file = data.draw(st.sampled_from(sorted((path / SHARD).iterdir())))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    originals = [small_episode(rows, seed) for seed, rows in enumerate(lengths)]
    for verify in ("lazy", "full"):
        try:
            store = EpisodeStore(path, verify=verify)
        except (ValueError, FileNotFoundError):  # nothing sound is left, and that was said
            continue
        assert [damage for damage in store.verify() if SHARD in str(damage)]
        for index in range(len(store)):
            try:
                found = store.episode(index)
            except ValueError as error:
                assert verify == "lazy" and "is damaged" in str(error)
            else:
                assert_same(found, originals[int(found["seed"])])


@pytest.mark.parametrize("verify", ["lazy", "full"])
def test_an_altered_episode_is_left_out(tmp_path, verify, caplog):
    write(tmp_path, [3, 3, 3])
    with (tmp_path / SHARD / "frames.bin").open("r+b") as file:
        file.seek(3 * 6)  # the first byte of the second episode
        file.write(bytes([file.read(1)[0] ^ 1]))
        file.seek(3 * 6)
        byte = file.read(1)
        file.seek(3 * 6)
        file.write(bytes([byte[0] ^ 1]))
    with caplog.at_level(logging.WARNING):
        store = EpisodeStore(tmp_path, verify=verify)
        (damage,) = store.verify()
    assert damage.episode == 1 and "frames.bin" in damage.reason
    assert "episode 1: the checksum of frames.bin is wrong" in caplog.text
    if verify == "full":
        assert [int(store.episode(index)["seed"]) for index in range(len(store))] == [0, 2]
    else:
        assert not store.is_sound(1)
        with pytest.raises(ValueError, match=r"episode 1 of .* is damaged"):
            store.episode(1)


def test_arrays_are_read_and_verified_by_themselves(tmp_path):
    write(tmp_path, [3, 4])
    (tmp_path / SHARD / "frames.bin").write_bytes(bytes(7 * 6))
    store = EpisodeStore(tmp_path)
    assert_same(store.read(1, ["action"]), {"action": small_episode(4, 1)["action"]})
    with pytest.raises(ValueError, match=r"'frames' of episode 1 of .* is damaged; restore"):
        store.read(1, ["action", "frames"])
    unverified = EpisodeStore(tmp_path, verify="none").read(1, ["frames"])
    assert not unverified["frames"].any()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_store_of_many_shards_keeps_few_files_open(tmp_path, monkeypatch):
    import resource

    num_shards = 20  # of three arrays each
    write(tmp_path, [2] * num_shards, shard_megabytes=1e-6)
    assert len(list(tmp_path.iterdir())) == num_shards
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64, 64))
    before = len(os.listdir("/proc/self/fd"))
    store = EpisodeStore(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    for _ in range(2):
        for index in range(num_shards):
            assert_same(store.episode(index), small_episode(2, index))
    assert len(os.listdir("/proc/self/fd")) <= before + 64 // 4
    frames = np.empty((num_shards, 1, 2, 3, 1), np.uint8)
    starts = np.ones(num_shards, np.int64)
    store.gather(np.arange(num_shards), starts, out={"frames": frames})
    for index, found in enumerate(frames):
        np.testing.assert_array_equal(found[0], small_episode(2, index)["frames"][1])


def test_a_short_file_is_named_and_the_rest_is_read(tmp_path, caplog):
    write(tmp_path, [3, 3, 3])
    os.truncate(tmp_path / SHARD / "frames.bin", 7 * 6)
    store = EpisodeStore(tmp_path)
    assert len(store) == 2 and "episode 2: frames.bin is missing or shorter" in caplog.text
    with EpisodeWriter(tmp_path, metadata={"env": "test"}) as writer:  # does not touch the wreck
        writer.append(small_episode(2, 9))
    assert (tmp_path / SHARD / "frames.bin").stat().st_size == 7 * 6
    assert len(EpisodeStore(tmp_path)) == 3


def test_many_damages_are_summed_up(tmp_path, caplog):
    write(tmp_path, [2] * 12)
    os.truncate(tmp_path / SHARD / "frames.bin", 2 * 6)
    EpisodeStore(tmp_path)
    assert len(caplog.records) == 6 and "and 6 more" in caplog.text


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_full_disk_is_said_and_the_store_stays_valid(tmp_path, monkeypatch, failing):
    writer = EpisodeWriter(tmp_path, metadata={"env": "test"})
    writer.append(small_episode(3, 0))
    real = getattr(os, failing)
    calls = []

    def fail(descriptor, *content):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, *content)

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match=r"could not write to .*No space left.*1 episodes .*safe"):
        writer.append(small_episode(4, 1))
    monkeypatch.undo()
    assert EpisodeStore(tmp_path).verify() == [] and len(EpisodeStore(tmp_path)) == 1
    writer.append(small_episode(4, 1))  # once there is space again
    writer.close()
    assert EpisodeStore(tmp_path, verify="full").lengths.tolist() == [3, 4]


def test_a_shard_with_a_damaged_index_line_is_left_as_it_is(tmp_path):
    write(tmp_path, [3, 3])
    index = tmp_path / SHARD / "index.jsonl"
    content = index.read_bytes().replace(b'"start":3', b'"start":4')
    index.write_bytes(content)
    with EpisodeWriter(tmp_path, metadata={"env": "test"}) as writer:
        writer.append(small_episode(2, 9))
    assert index.read_bytes() == content
    assert (tmp_path / SHARD / "frames.bin").stat().st_size == 6 * 6
    assert EpisodeStore(tmp_path).lengths.tolist() == [3, 2]


def test_a_lost_index_is_named_and_its_rows_are_kept(tmp_path, caplog):
    write(tmp_path, [3])
    (tmp_path / SHARD / "index.jsonl").unlink()
    with EpisodeWriter(tmp_path, metadata={"env": "test"}) as writer:
        writer.append(small_episode(2, 9))
    assert (tmp_path / SHARD / "frames.bin").stat().st_size == 3 * 6
    assert EpisodeStore(tmp_path).lengths.tolist() == [2]
    assert "index.jsonl is missing" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_rows_are_on_the_disk_before_their_index_line(tmp_path, monkeypatch):
    with EpisodeWriter(tmp_path, metadata={}) as writer:
        writer.append(small_episode(3, 0))
        real_write, real_sync, calls = os.write, os.fsync, []

        def write_file(descriptor, content):
            calls.append(("write", os.readlink(f"/proc/self/fd/{descriptor}")))
            return real_write(descriptor, content)

        def sync(descriptor):
            calls.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
            real_sync(descriptor)

        monkeypatch.setattr(os, "write", write_file)
        monkeypatch.setattr(os, "fsync", sync)
        writer.append(small_episode(3, 1))
    kinds = [(kind, Path(path).name) for kind, path in calls]
    names = ["action.bin", "frames.bin", "is_first.bin"]
    assert sorted(kinds[:3]) == [("write", name) for name in names]
    assert sorted(kinds[3:6]) == [("sync", name) for name in names]
    assert kinds[6:] == [("write", "index.jsonl"), ("sync", "index.jsonl")]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_new_files_and_folders_are_on_the_disk_with_their_names(tmp_path, monkeypatch):
    real_sync, synced = os.fsync, []

    def sync(descriptor):
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real_sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    with EpisodeWriter(tmp_path, metadata={}) as writer:
        writer.append(small_episode(3, 0) | {"observation/camera/back": np.arange(3)})
    folders = [path for path in synced if path.is_dir()]
    shard = tmp_path / SHARD
    inner = [shard / "observation" / "camera", shard / "observation", shard]
    assert folders == [*inner, tmp_path]


def test_an_interrupt_leaves_the_writer_usable(tmp_path, monkeypatch):
    writer = EpisodeWriter(tmp_path, metadata={"env": "test"})
    real = os.fsync

    def interrupt(descriptor):
        monkeypatch.setattr(os, "fsync", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        writer.append(small_episode(3, 0))
    writer.append(small_episode(4, 1))
    writer.close()
    assert EpisodeStore(tmp_path, verify="full").lengths.tolist() == [4]


def test_what_cannot_be_opened_says_what_to_do(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"collect_rollouts\.py.*correct the path"):
            EpisodeStore(path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="no episode archive"):
        EpisodeStore(tmp_path / "text")
    with pytest.raises(ValueError, match="'lazy', 'full' or 'none', got 'yes'"):
        EpisodeStore(tmp_path, verify="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got the file"):
        EpisodeWriter(tmp_path / "text", metadata={})


def test_a_store_without_a_sound_episode_is_refused(tmp_path):
    write(tmp_path, [3])
    os.truncate(tmp_path / SHARD / "frames.bin", 1)
    with pytest.raises(ValueError, match=r"every episode in .* is damaged"):
        EpisodeStore(tmp_path)


def test_shards_of_different_arrays_are_refused(tmp_path):
    write(tmp_path, [3])
    with (
        EpisodeWriter(tmp_path, metadata={}, worker=1) as writer,
        pytest.raises(ValueError, match=r"expected 'frames' uint8 \(2, 3, 1\).*\(4, 4, 1\)"),
    ):
        writer.append({"frames": np.zeros((2, 4, 4, 1), np.uint8), "action": np.zeros(2, int)})
    write(tmp_path / "other", [3])
    with EpisodeWriter(tmp_path / "third", metadata={}, worker=1) as writer:
        writer.append({"frames": np.zeros((2, 4, 4, 1), np.uint8)})
    (tmp_path / "third" / "shard-001-00000").rename(tmp_path / "other" / "shard-001-00000")
    with pytest.raises(ValueError, match="different arrays"):
        EpisodeStore(tmp_path / "other")


def test_the_fingerprint_stands_for_the_content(tmp_path):
    write(tmp_path / "a", [3, 4])
    write(tmp_path / "b", [3, 4], shard_megabytes=1e-6)
    write(tmp_path / "c", [4, 3])
    a, b, c = (EpisodeStore(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


def test_a_new_folder_is_whole_or_not_there(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "made") as folder:
        folder.mkdir()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "made") as folder:
        folder.mkdir()
    with pytest.raises(FileExistsError, match="there already"), new_folder(tmp_path / "made"):
        pass


def test_the_snippets_of_the_documentation_run(tmp_path, monkeypatch):
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    plain, with_library = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(with_library, names)
    assert names["clip"].to_float().video.shape == (1, 16, 3, 64, 64)
    first = names["store"].episode(0)["frames"]
    exec(plain, names)
    np.testing.assert_array_equal(names["frames"], first)


def test_a_closed_writer_refuses(tmp_path):
    writer = EpisodeWriter(tmp_path, metadata={})
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.append(small_episode(2, 0))
