"""Episodes from picture folders, from frame-and-mask folders laid out like DAVIS, and from videos.

L steps make L + 1 frames; H W image.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ocrl.data.format import Arrays
from ocrl.data.store import EpisodeStore, EpisodeWriter, new_folder
from ocrl.types import VOID_ID

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v")
_FRAME_FOLDERS = ("JPEGImages", "frames")
_MASK_FOLDERS = ("Annotations", "masks")
_PALETTE_VOID = 255
_PRESET = "entities"


def import_folder(
    source: str | Path, path: str | Path, *, image_size: Sequence[int] | None
) -> EpisodeStore:
    """Make a store of pictures or videos: one episode for each folder of pictures or video file.

    Args:
        source: a video file; a folder of pictures; a folder of such folders or of videos; or a
            DAVIS-like folder with `JPEGImages` and `Annotations` (or `frames` and `masks`), each
            with one folder a video, below a resolution such as `480p` or not. Masks become the
            segmentation `entities`.
        path: the store's folder; it appears when it is whole.
        image_size: (H, W); frames are scaled to cover it and cropped around the centre. None keeps
            their size, which must then be the same everywhere.

    Raises:
        FileNotFoundError: if `source` is not there, or holds no pictures and no video.
        FileExistsError: if `path` is there already.
        ValueError: if a picture or video cannot be read, or sizes differ.
        OSError: if the store cannot be written.
    """
    source = Path(source)
    with (
        new_folder(path) as folder,
        EpisodeWriter(folder, metadata={"source": "folder", "path": source.name}) as writer,
    ):
        for name, episode in read_episodes(source, image_size=image_size):
            writer.append(episode | {"name": np.array(name)})
    return EpisodeStore(path)


def read_episodes(
    source: str | Path, *, image_size: Sequence[int] | None, max_frames: int | None = None
) -> Iterator[tuple[str, Arrays]]:
    """Name and arrays of each episode in `source`, see `import_folder`.

    Args:
        source: as there.
        image_size: as there.
        max_frames: no more than so many of the first frames of each are read; None for all.
    """
    check_image_size(image_size)
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"no pictures or video at {source}; correct the path")
    if source.is_file():
        frames = read_video(source, image_size=image_size, max_frames=max_frames)
        yield source.stem, {"frames": frames}
        return
    frames_root = _find_root(source, _FRAME_FOLDERS)
    if frames_root is not None:
        masks_root = _find_root(source, _MASK_FOLDERS)
        yield from _read_tree(frames_root, masks_root, image_size, max_frames)
        return
    videos = [file for file in _sorted(source) if file.suffix.lower() in VIDEO_SUFFIXES]
    for file in videos:
        frames = read_video(file, image_size=image_size, max_frames=max_frames)
        yield file.stem, {"frames": frames}
    if not videos:
        yield from _read_tree(source, None, image_size, max_frames)


def check_image_size(image_size: Sequence[int] | None) -> None:
    """Refuse a size that no picture can be brought to.

    Raises:
        ValueError: if a side is shorter than a pixel.
    """
    if image_size is not None and min(image_size) < 1:
        sides = " ".join(map(str, image_size))
        raise ValueError(f"expected an image size of at least 1 1, got {sides}")


def read_frames(
    folder: str | Path, *, image_size: Sequence[int] | None, max_frames: int | None = None
) -> NDArray[np.uint8]:
    """The pictures of a folder in the order of the numbers in their names, (L+1,H,W,3).

    At most `max_frames` of them are read, if that is given.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if one cannot be read, or has another size and `image_size` is None.
    """
    files = _pictures(Path(folder))[:max_frames]
    if not files:
        raise FileNotFoundError(
            f"no pictures ({', '.join(IMAGE_SUFFIXES)}) in {folder}; correct the path"
        )
    return _stack([_read_picture(file, image_size) for file in files], files)


def read_video(
    file: str | Path, *, image_size: Sequence[int] | None, max_frames: int | None = None
) -> NDArray[np.uint8]:
    """The frames of a video file, (L+1,H,W,3); at most `max_frames` are decoded, if that is given.

    Raises:
        ValueError: if it is no video that can be read.
    """
    try:
        with av.open(str(file)) as container:
            frames = [
                np.asarray(_fit(frame.to_image(), image_size, Image.Resampling.BOX))
                for frame in itertools.islice(container.decode(video=0), max_frames)
            ]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{file} is no video that can be read ({error}); convert it") from error
    if not frames:
        raise ValueError(f"{file} holds no frame; convert it or leave it out")
    return np.stack(frames)


def read_mask(file: str | Path, *, image_size: Sequence[int] | None) -> NDArray[np.uint16]:
    """Object ids (H,W) from a palette picture (255 is void) or a grey one (grey levels are ids).

    Raises:
        ValueError: if it is neither.
    """
    with open_picture(Path(file)) as picture:
        if picture.mode not in ("P", "L", "1", "I", "I;16"):
            raise ValueError(
                f"expected a mask with a palette or in grey levels in {file}, got {picture.mode}"
            )
        # Bring the ids into one mode that is scaled without mixing neighbours.
        values = Image.fromarray(np.asarray(picture).astype(np.int32))
        ids = np.asarray(_fit(values, image_size, Image.Resampling.NEAREST)).astype(np.uint16)
        if picture.mode == "P":
            ids[ids == _PALETTE_VOID] = VOID_ID
        return ids


def _read_tree(
    frames_root: Path,
    masks_root: Path | None,
    image_size: Sequence[int] | None,
    max_frames: int | None,
) -> Iterator[tuple[str, Arrays]]:
    folders = [folder for folder in _sorted(frames_root) if folder.is_dir() and _pictures(folder)]
    for folder in folders or [frames_root]:
        frames = read_frames(folder, image_size=image_size, max_frames=max_frames)
        episode: Arrays = {"frames": frames}
        if masks_root is not None:
            masks_folder = masks_root / folder.relative_to(frames_root)
            files = {file.stem: file for file in _pictures(masks_folder)}
            if not files:
                raise FileNotFoundError(
                    f"no masks in {masks_folder} for the frames in {folder}; add them, or remove "
                    "the folder of masks"
                )
            episode[f"segmentation/{_PRESET}"] = _read_masks(folder, files, frames, image_size)
        yield folder.name, episode


def _read_masks(
    folder: Path,
    files: dict[str, Path],
    frames: NDArray[np.uint8],
    image_size: Sequence[int] | None,
) -> NDArray[np.uint16]:
    """Masks (L+1,H,W) of the first frames in a folder; those without one are void all over."""
    masks = np.full(frames.shape[:3], VOID_ID, np.uint16)
    for target, picture in zip(masks, _pictures(folder)[: len(masks)], strict=True):
        if picture.stem in files:
            ids = read_mask(files[picture.stem], image_size=image_size)
            if ids.shape != target.shape:
                raise ValueError(
                    f"expected a mask of {target.shape} like its frame in {files[picture.stem]}, "
                    f"got {ids.shape}"
                )
            target[:] = ids
    return masks


def _find_root(source: Path, names: Sequence[str]) -> Path | None:
    """The folder of one of these names, or the only resolution below it."""
    for name in names:
        root = source / name
        if not root.is_dir():
            continue
        inner = [entry for entry in _sorted(root) if entry.is_dir()]
        is_resolution = len(inner) == 1 and any(entry.is_dir() for entry in inner[0].iterdir())
        return inner[0] if is_resolution else root
    return None


def _sorted(folder: Path) -> list[Path]:
    """What is in a folder, with numbers in names in the order of their values."""

    def key(entry: Path) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", entry.name)
        return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]

    return sorted((entry for entry in folder.iterdir() if entry.name[0] != "."), key=key)


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [file for file in _sorted(folder) if file.suffix.lower() in IMAGE_SUFFIXES]


def open_picture(file: Path) -> Image.Image:
    """Open a picture, and read all of it.

    Raises:
        ValueError: if it is none that can be read.
    """
    try:
        with file.open("rb") as content:
            picture = Image.open(content)
            picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(
            f"{file} is no picture that can be read ({error}); replace it or leave it out"
        ) from error
    return picture


def _read_picture(file: Path, image_size: Sequence[int] | None) -> NDArray[np.uint8]:
    with open_picture(file) as picture:
        return np.asarray(_fit(picture.convert("RGB"), image_size, Image.Resampling.BOX))


def _stack(frames: list[NDArray[np.uint8]], files: list[Path]) -> NDArray[np.uint8]:
    for frame, file in zip(frames, files, strict=True):
        if frame.shape != frames[0].shape:
            raise ValueError(
                f"expected frames of {frames[0].shape[:2]} as in {files[0]}, got "
                f"{frame.shape[:2]} in {file}; give an image_size to bring them to one"
            )
    return np.stack(frames)


def _fit(
    picture: Image.Image, image_size: Sequence[int] | None, resampling: Image.Resampling
) -> Image.Image:
    """Scale a picture to cover (H, W) and cut out the middle; nothing is stretched."""
    if image_size is None:
        return picture
    height, width = image_size
    scale = min(picture.width / width, picture.height / height)
    left, top = (picture.width - width * scale) / 2, (picture.height - height * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    return picture.resize((width, height), resampling, box=box)
