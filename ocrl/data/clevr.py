"""Episodes of one frame from CLEVR's folders: pictures, and what stands in them.

M objects of a scene, H W image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from ocrl.data.folders import check_image_size, open_picture
from ocrl.data.format import Arrays
from ocrl.data.store import EpisodeStore, EpisodeWriter, new_folder

CLASSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "size": ("small", "large"),
        "material": ("rubber", "metal"),
        "shape": ("cube", "sphere", "cylinder"),
        "color": ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow"),
    }
)
"""Of CLEVR (Johnson et al. 2017, arXiv 1612.06890)."""
_AXES = ("x", "y", "z")


def import_clevr(
    source: str | Path, path: str | Path, *, split: str, image_size: Sequence[int] | None
) -> EpisodeStore:
    """Make a store of CLEVR's scenes: an episode of one frame, with its object table, for each.

    Pictures are brought to `image_size` whole, with another ratio of their sides if need be: every
    object of the table stays in view. There are no masks and no boxes. `position` is the centre in
    the picture, in [0,1]; attributes are the classes and the place in space, in CLEVR's unit.

    Args:
        source: has `images/<split>/*.png` (or `images/*.png`) and
            `scenes/CLEVR_<split>_scenes.json`.
        path: the store's folder; it appears when it is whole.
        split: such as `train` or `val`; `test` has no scenes.
        image_size: (H, W); None keeps the size of the pictures.

    Raises:
        FileNotFoundError: if the scenes of that split, or a picture of one, are not there.
        FileExistsError: if `path` is there already.
        ValueError: if the scenes or a picture can not be read, or name another class than CLEVR's.
        OSError: if the store can not be written.
    """
    check_image_size(image_size)
    source = Path(source)
    scenes = _read_scenes(source / "scenes" / f"CLEVR_{split}_scenes.json")
    most = max(len(scene["objects"]) for scene in scenes)
    metadata = {
        "source": "clevr",
        "path": source.name,
        "split": split,
        "categories": ["object"],
        "attribute_names": [*CLASSES, *_AXES],
        "attribute_classes": dict(CLASSES),
    }
    with new_folder(path) as folder, EpisodeWriter(folder, metadata=metadata) as writer:
        for scene in scenes:
            name = scene["image_filename"]
            frame, size = _read_picture(_find_picture(source / "images", split, name), image_size)
            tables = _tables(scene["objects"], size=size, num_rows=most, name=name)
            writer.append({"frames": frame[None], "name": np.array(name), **tables})
    return EpisodeStore(path)


def _read_scenes(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise FileNotFoundError(f"no scenes at {file}; correct the path or the split")
    try:
        scenes = json.loads(file.read_text())["scenes"]
        if not scenes or not all({"objects", "image_filename"} <= set(scene) for scene in scenes):
            raise KeyError("objects and image_filename in every scene")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} holds no scenes of CLEVR's form: {error}") from error
    return scenes


def _find_picture(images: Path, split: str, name: str) -> Path:
    for file in (images / split / name, images / name):
        if file.is_file():
            return file
    raise FileNotFoundError(f"no picture {name} in {images / split}; restore it")


def _read_picture(
    file: Path, image_size: Sequence[int] | None
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], tuple[int, int]]:
    """The frame (H,W,3), and the width and height of the file."""
    with open_picture(file) as picture:
        shown = picture.convert("RGB")
        if image_size is not None:
            shown = shown.resize((image_size[1], image_size[0]), Image.Resampling.BOX)
        return np.asarray(shown), picture.size


def _tables(
    objects: Sequence[Mapping[str, Any]], *, size: tuple[int, int], num_rows: int, name: str
) -> Arrays:
    """The object table of a scene, (1,M,...)."""
    attributes = np.zeros((1, num_rows, len(CLASSES) + len(_AXES)), np.float32)
    position = np.zeros((1, num_rows, 2), np.float32)
    ids = np.zeros((1, num_rows), np.uint16)
    ids[0, : len(objects)] = np.arange(len(objects)) + 1
    for row, entry in enumerate(objects):
        for column, (factor, classes) in enumerate(CLASSES.items()):
            if entry.get(factor) not in classes:
                raise ValueError(
                    f"expected a {factor} of {list(classes)} in the scene of {name}, "
                    f"got {entry.get(factor)!r}"
                )
            attributes[0, row, column] = classes.index(entry[factor])
        attributes[0, row, len(CLASSES) :] = entry["3d_coords"]
        position[0, row] = np.array(entry["pixel_coords"][:2]) / size
    return {
        "objects/id": ids,
        "objects/category": np.zeros((1, num_rows), np.uint8),
        "objects/position": position,
        "objects/attributes": attributes,
    }
