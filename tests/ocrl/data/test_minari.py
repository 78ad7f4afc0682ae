from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from gymnasium import spaces

from ocrl.data.minari import export_minari, import_minari
from ocrl.data.store import EpisodeStore, EpisodeWriter

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    minari = pytest.importorskip("minari")
    from minari.data_collector.episode_buffer import EpisodeBuffer


@pytest.fixture(autouse=True)
def datasets_folder(tmp_path, monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari's own
        yield


@pytest.mark.parametrize("data_format", ["arrow", "hdf5"])
def test_a_store_comes_back_as_it_was(make_store, tmp_path, data_format):
    store = make_store([5, 9])
    export_minari(store, "ocrl/test-v0", data_format=data_format)
    dataset = minari.load_dataset("ocrl/test-v0")
    assert dataset.total_episodes == 2 and dataset.total_steps == 4 + 8
    assert not dataset.storage.jpeg_encoding
    again = import_minari("ocrl/test-v0", tmp_path / "again")
    for index in range(2):
        found, episode = again.episode(index), dict(store.episode(index))
        assert set(found) == set(episode)
        for name in ("action", "reward", "terminated", "truncated"):
            # What followed the last frame and what led to the first one are not Minari's to keep.
            part = slice(0, -1) if name == "action" else slice(1, None)
            np.testing.assert_array_equal(found.pop(name)[part], episode.pop(name)[part])
        for name, array in episode.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
            assert found[name].dtype == array.dtype, name


@pytest.mark.parametrize("data_format", ["arrow", "hdf5"])
def test_nothing_of_an_episode_or_its_origin_is_lost(tmp_path, random_episode, data_format):
    extras = {
        "action": np.array([1, 2, 0, 0], np.uint8),
        "reward": np.array([0.0, 0.1, 0.2, 0.3], np.float64),
        "depth": np.random.default_rng(0).random((4, 8, 8)).astype(np.float16),
        "has_key": np.array([False, True, True, False]),
        "observation/camera/back": np.arange(4, dtype=np.int16),
        "episode": 7,
        "name": "first",
        "env_seed": 2**40,
        "share": 0.1,
        "is_test": True,
    }
    metadata = {
        "env": "test",
        "action_space": "Discrete(9)",
        "attribute_names": ["red", "size"],
        "categories": {"1": "ball"},
    }
    for worker, policy in enumerate(["random", "expert", "random"]):
        origin = metadata | {"policy": policy}
        with EpisodeWriter(tmp_path / "store", metadata=origin, worker=worker) as writer:
            writer.append(random_episode(4, seed=worker) | extras)
    store = EpisodeStore(tmp_path / "store")
    export_minari(store, "ocrl/test-v0", data_format=data_format)
    again = import_minari("ocrl/test-v0", tmp_path / "again")
    assert again.arrays == store.arrays
    for index in range(3):
        assert again.origin(index) == store.origin(index)
        assert again.entry(index).values == store.entry(index).values
        found, episode = again.episode(index), store.episode(index)
        for name in ("has_key", "depth", "observation/camera/back"):
            np.testing.assert_array_equal(found[name], episode[name], err_msg=name)
        np.testing.assert_array_equal(found["reward"][1:], episode["reward"][1:])


def test_continuous_actions(tmp_path, random_episode):
    episode = random_episode(4) | {"action": np.random.default_rng(0).random((4, 2), np.float32)}
    with EpisodeWriter(tmp_path / "store", metadata={}) as writer:
        writer.append(episode)
    export_minari(store=EpisodeStore(tmp_path / "store"), dataset_id="ocrl/continuous-v0")
    found = import_minari("ocrl/continuous-v0", tmp_path / "again").episode(0)["action"]
    np.testing.assert_array_equal(found[:-1], episode["action"][:-1])
    assert found.dtype == np.float32 and (found[-1] == 0).all()


def make_foreign(observations, space, *, jpeg_encoding=False):
    buffer = EpisodeBuffer(
        observations=observations,
        actions=np.array([0, 1, 2]),
        rewards=np.array([0.0, 0.5, 1.0]),
        terminations=np.array([False, False, True]),
        truncations=np.zeros(3, bool),
    )
    minari.create_dataset_from_buffers(
        "other/foreign-v0",
        buffer=[buffer],
        observation_space=space,
        action_space=spaces.Discrete(3),
        jpeg_encoding=jpeg_encoding,
    )


def test_a_foreign_dataset_is_understood(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    image = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    direction = spaces.Discrete(4)
    make_foreign(
        {"image": frames, "direction": np.arange(4)},
        spaces.Dict({"image": image, "direction": direction}),
    )
    episode = import_minari("other/foreign-v0", tmp_path / "store").episode(0)
    np.testing.assert_array_equal(episode["frames"], frames)
    assert episode["observation/direction"].tolist() == [0, 1, 2, 3]
    assert episode["action"].tolist() == [0, 1, 2, 0]
    assert episode["reward"].tolist() == [0, 0, 0.5, 1]
    assert episode["terminated"].tolist() == [False, False, False, True]
    metadata = EpisodeStore(tmp_path / "store").metadata
    assert metadata["action_space"] == "Discrete(3)" and metadata["description"] is None
    with pytest.raises(ValueError, match=r"expected an observation 'rgb', got \['direction', 'im"):
        import_minari("other/foreign-v0", tmp_path / "wrong", frames="rgb")


def test_frames_that_are_chosen_are_kept(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 8, 3), dtype=np.uint8)
    image = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    make_foreign(
        {"frames": frames[0], "back": frames[1]}, spaces.Dict({"frames": image, "back": image})
    )
    store = import_minari("other/foreign-v0", tmp_path / "store", frames="back")
    np.testing.assert_array_equal(store.episode(0)["frames"], frames[1])
    np.testing.assert_array_equal(store.episode(0)["observation/frames"], frames[0])


def test_pictures_stored_as_jpeg_are_marked(tmp_path, caplog):
    frames = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    make_foreign(frames, spaces.Box(0, 255, (8, 8, 3), np.uint8), jpeg_encoding=True)
    store = import_minari("other/foreign-v0", tmp_path / "store")
    assert store.metadata["is_lossy"] and "stored as JPEG" in caplog.text


def test_what_cannot_be_exchanged_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="minari download ocrl/none-v0"):
        import_minari("ocrl/none-v0", tmp_path / "store")
    make_foreign(np.zeros((4, 3), np.float32), spaces.Box(-1, 1, (3,), np.float32))
    with pytest.raises(ValueError, match="expected one observation of pictures"):
        import_minari("other/foreign-v0", tmp_path / "store")
    assert not (tmp_path / "store").exists()
    with EpisodeWriter(tmp_path / "frames", metadata={}) as writer:
        writer.append({"frames": np.zeros((3, 4, 4, 3), np.uint8)})
    with pytest.raises(ValueError, match="got none of \\['action', 'reward'"):
        export_minari(EpisodeStore(tmp_path / "frames"), "ocrl/frames-v0")
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r"pip install ocrl\[minari\]"):
        import_minari("other/foreign-v0", tmp_path / "store")
