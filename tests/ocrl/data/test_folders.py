from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ocrl.data import folders
from ocrl.data.folders import import_folder, read_episodes, read_frames, read_mask, read_video

GENERATOR = np.random.default_rng(0)


def write_frames(folder: Path, count: int, *, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    frames = GENERATOR.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index}.png")
    return frames


def write_masks(folder: Path, ids: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, mask in enumerate(ids):
        picture = Image.fromarray(mask.astype(np.uint8), mode=None).convert("L")
        picture.putpalette([level for color in range(256) for level in (color, 0, 255 - color)])
        picture.save(folder / f"{index}.png")


def write_video(file: Path, frames: np.ndarray) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264rgb", rate=10, options={"crf": "0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_pictures_come_in_the_order_of_their_numbers(tmp_path):
    frames = write_frames(tmp_path, 12)  # "10.png" sorts before "2.png" as a word
    np.testing.assert_array_equal(read_frames(tmp_path, image_size=None), frames)


def test_a_folder_becomes_a_store(tmp_path):
    frames = write_frames(tmp_path / "source", 5)
    store = import_folder(tmp_path / "source", tmp_path / "store", image_size=None)
    np.testing.assert_array_equal(store.episode(0)["frames"], frames)
    assert str(store.episode(0)["name"]) == "source"
    with pytest.raises(FileExistsError):
        import_folder(tmp_path / "source", tmp_path / "store", image_size=None)


def test_each_folder_is_an_episode(tmp_path):
    lengths = {"walk": 3, "run": 4}
    for name, count in lengths.items():
        write_frames(tmp_path / name, count)
    found = {
        name: len(arrays["frames"]) for name, arrays in read_episodes(tmp_path, image_size=None)
    }
    assert found == lengths


@pytest.mark.parametrize("resolution", ["", "480p"])
def test_davis_folders(tmp_path, resolution):
    ids = GENERATOR.integers(0, 4, (3, 6, 8))
    ids[:, 0, 0] = 255
    frames = write_frames(tmp_path / "JPEGImages" / resolution / "bear", 3)
    write_frames(tmp_path / "JPEGImages" / resolution / "camel", 2)
    write_masks(tmp_path / "Annotations" / resolution / "bear", ids)
    write_masks(tmp_path / "Annotations" / resolution / "camel", ids[:1])
    found = dict(read_episodes(tmp_path, image_size=None))
    np.testing.assert_array_equal(found["bear"]["frames"], frames)
    expected = np.where(ids == 255, 65535, ids)
    np.testing.assert_array_equal(found["bear"]["segmentation/entities"], expected)
    camel = found["camel"]["segmentation/entities"]
    np.testing.assert_array_equal(camel[0], expected[0])
    assert (camel[1] == 65535).all()  # not annotated: counted by no metric


def test_grey_masks_keep_their_levels(tmp_path):
    levels = np.array([[0, 255], [7, 1]], np.uint8)
    Image.fromarray(levels).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", image_size=None), levels)
    wide = np.array([[0, 1000]], np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "wide.png", image_size=None), wide)
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "color.png")
    with pytest.raises(ValueError, match=r"color\.png, got RGB"):
        read_mask(tmp_path / "color.png", image_size=None)


def test_scaling_keeps_the_shape_and_the_ids(tmp_path):
    ids = np.zeros((1, 40, 80), int)
    ids[:, 10:30, 30:50] = 9
    frames = np.zeros((40, 80, 3), np.uint8)
    frames[10:30, 30:50] = 200
    (tmp_path / "frames").mkdir()
    Image.fromarray(frames).save(tmp_path / "frames" / "0.png")
    write_masks(tmp_path / "masks", ids)
    ((_, episode),) = read_episodes(tmp_path, image_size=(20, 20))
    mask, frame = episode["segmentation/entities"][0], episode["frames"][0]
    assert set(np.unique(mask)) == {0, 9}
    assert mask.sum() == 9 * 10 * 10  # a square stays a square, halved
    np.testing.assert_array_equal(frame[..., 0] > 100, mask == 9)
    assert read_frames(tmp_path / "frames", image_size=(7, 13)).shape == (1, 7, 13, 3)


def test_videos(tmp_path):
    frames = GENERATOR.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mkv", frames)
    write_video(tmp_path / "b.mkv", frames[:3])
    np.testing.assert_array_equal(read_video(tmp_path / "a.mkv", image_size=None), frames)
    assert read_video(tmp_path / "a.mkv", image_size=(8, 8)).shape == (5, 8, 8, 3)
    assert [name for name, _ in read_episodes(tmp_path, image_size=None)] == ["a", "b"]
    ((name, episode),) = read_episodes(tmp_path / "b.mkv", image_size=None)
    assert name == "b" and len(episode["frames"]) == 3


def test_no_more_is_read_than_asked_for(tmp_path, monkeypatch):
    frames = write_frames(tmp_path / "frames" / "one", 5)
    ids = GENERATOR.integers(0, 4, (5, 6, 8))
    write_masks(tmp_path / "masks" / "one", ids)
    for folder in ("frames", "masks"):
        (tmp_path / folder / "one" / "3.png").write_bytes(b"not to be opened")
    ((_, episode),) = read_episodes(tmp_path, image_size=None, max_frames=3)
    np.testing.assert_array_equal(episode["frames"], frames[:3])
    np.testing.assert_array_equal(episode["segmentation/entities"], ids[:3])
    write_video(tmp_path / "a.mkv", GENERATOR.integers(0, 256, (9, 16, 16, 3), dtype=np.uint8))
    decoded, fit = [], folders._fit

    def counted(picture, *arguments):
        decoded.append(picture)
        return fit(picture, *arguments)

    monkeypatch.setattr(folders, "_fit", counted)
    found = read_video(tmp_path / "a.mkv", image_size=None, max_frames=2)
    assert len(found) == len(decoded) == 2
    assert len(read_video(tmp_path / "a.mkv", image_size=None, max_frames=20)) == 9


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="correct the path"):
        next(read_episodes(tmp_path / "missing", image_size=None))
    with pytest.raises(FileNotFoundError, match="no pictures"):
        next(read_episodes(tmp_path, image_size=None))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"broken\.mp4 is no video"):
        read_video(tmp_path / "broken.mp4", image_size=None)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"0\.png is no picture"):
        import_folder(tmp_path / "pictures", tmp_path / "store", image_size=None)
    assert not (tmp_path / "store").exists() and not (tmp_path / "store.partial").exists()


def test_a_cut_off_picture_is_named(tmp_path):
    write_frames(tmp_path, 1, size=(64, 64))
    content = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"0\.png is no picture that can be read"):
        read_frames(tmp_path, image_size=None)


def test_sizes_that_do_not_fit_are_named(tmp_path):
    write_frames(tmp_path / "frames", 2)
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(tmp_path / "frames" / "1.png")
    with pytest.raises(ValueError, match=r"expected frames of \(6, 8\).*got \(3, 3\).*image_size"):
        read_frames(tmp_path / "frames", image_size=None)
    write_frames(tmp_path / "frames", 2)
    write_masks(tmp_path / "masks", np.zeros((2, 5, 5)))
    with pytest.raises(ValueError, match=r"a mask of \(6, 8\) like its frame.*got \(5, 5\)"):
        list(read_episodes(tmp_path, image_size=None))
    for file in (tmp_path / "masks").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match="no masks in"):
        list(read_episodes(tmp_path, image_size=None))
