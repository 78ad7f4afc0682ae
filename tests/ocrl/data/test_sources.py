"""T frames: what comes from a store and what from pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from ocrl.data.sources import is_footage, read_clips
from ocrl.data.store import EpisodeWriter

OPTIONS = {
    "image_size": (8, 8),
    "presets": ["entities", "scene"],
    "split": "all",
    "holdout": 0.1,
    "clip_length": 3,
    "num_clips": 4,
    "batch_size": 3,
    "max_frames": 5,
}


def save_pictures(folder, number):
    folder.mkdir(parents=True)
    for index in range(number):
        Image.new("L", (8, 8), index).convert("RGB").save(folder / f"{index}.png")


def test_store(tmp_path):
    with EpisodeWriter(tmp_path / "store", metadata={}) as writer:
        rows = {"reward": np.zeros(6, np.float32), "terminated": np.zeros(6, bool)}
        ids = np.full((6, 8, 8), 40000, np.uint16)
        frames = np.zeros((6, 8, 8, 3), np.uint8)
        rows |= {"action": np.zeros(6, np.int64), "truncated": np.zeros(6, bool)}
        writer.append({"frames": frames, "segmentation/scene": ids, **rows})
    assert not is_footage(tmp_path / "store")
    clips = list(read_clips(tmp_path / "store", **OPTIONS))
    assert [clip.video.shape for clip in clips] == [(3, 3, 3, 8, 8), (1, 3, 3, 8, 8)]
    assert list(clips[0].segmentation) == ["scene"]
    assert clips[0].segmentation["scene"].unique().tolist() == [40000]
    with pytest.raises(ValueError, match=r"store, one of scene, got 'scne'; correct the name"):
        next(read_clips(tmp_path / "store", **OPTIONS | {"presets": ["scne"]}))
    assert next(read_clips(tmp_path / "store", **OPTIONS | {"presets": []})).segmentation == {}


def test_each_folder_of_pictures_is_a_clip(tmp_path):
    save_pictures(tmp_path / "films" / "one", 3)
    save_pictures(tmp_path / "films" / "two", 9)
    assert is_footage(tmp_path / "films")
    clips = list(read_clips(tmp_path / "films", **OPTIONS))
    assert [clip.num_frames for clip in clips] == [3, 5]
    assert clips[1].video[0, :, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert clips[1].is_first.tolist() == [[True, False, False, False, False]]
    assert clips[1].segmentation == {}


def test_of_footage_only_the_frames_shown_are_read(tmp_path):
    save_pictures(tmp_path / "film", 9)
    (tmp_path / "film" / "5.png").write_bytes(b"not to be opened")
    (clip,) = read_clips(tmp_path / "film", **OPTIONS)
    assert clip.num_frames == 5


def test_masks_beside_frames(tmp_path):
    save_pictures(tmp_path / "frames" / "one", 2)
    (tmp_path / "masks" / "one").mkdir(parents=True)
    for index in range(2):
        Image.new("L", (8, 8), 7).save(tmp_path / "masks" / "one" / f"{index}.png")
    (clip,) = read_clips(tmp_path, **OPTIONS)
    assert clip.segmentation["entities"].dtype == torch.int32
    assert clip.segmentation["entities"].shape == (1, 2, 8, 8)
    assert clip.segmentation["entities"].unique().tolist() == [7]
    with pytest.raises(ValueError, match="one of entities, got 'scene'"):
        next(read_clips(tmp_path, **OPTIONS | {"presets": ["scene"]}))


def test_nothing_there(tmp_path):
    assert is_footage("film.MP4")
    for name in ("nowhere", "nowhere.mp4"):
        with pytest.raises(FileNotFoundError, match=name):
            next(read_clips(tmp_path / name, **OPTIONS))
