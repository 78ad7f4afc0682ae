"""Clips to look at, from whatever lies at a path: a store, a video, pictures with or without masks.

B batch, T frames, H W image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ocrl.data.clips import Split, evaluation_clips
from ocrl.data.folders import VIDEO_SUFFIXES, read_episodes
from ocrl.data.store import EpisodeStore
from ocrl.types import Clip


def is_footage(path: str | Path) -> bool:
    """Whether there are pictures or videos rather than an episode store."""
    path = Path(path)
    if path.is_dir():
        return not any(path.glob("shard-*"))
    return path.suffix.lower() in VIDEO_SUFFIXES


def read_clips(
    path: str | Path,
    *,
    image_size: Sequence[int],
    presets: Sequence[str],
    split: Split,
    holdout: float,
    clip_length: int,
    num_clips: int,
    batch_size: int,
    max_frames: int,
) -> Iterator[Clip]:
    """Clips of a store (see `evaluation_clips`), or each video or folder of pictures as one clip.

    Args:
        path: an episode store, or what `ocrl.data.folders.import_folder` takes.
        image_size: (H, W); a store must have it, pictures are brought to it.
        presets: segmentations that are read, where there are any.
        split: of a store.
        holdout: of a store.
        clip_length: T, of a store.
        num_clips: of a store.
        batch_size: B, of a store; footage comes one by one.
        max_frames: T of footage at most: its first frames.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if it cannot be read, does not fit, or has other segmentations only.
    """
    if is_footage(path):
        yield from _read_footage(path, image_size, presets, max_frames)
        return
    yield from stored_clips(
        EpisodeStore(path),
        image_size=image_size,
        presets=presets,
        split=split,
        holdout=holdout,
        clip_length=clip_length,
        num_clips=num_clips,
        batch_size=batch_size,
    )


def stored_clips(store: EpisodeStore, *, presets: Sequence[str], **options: Any) -> Iterator[Clip]:
    """Clips of a store that is open, with its objects and those of `presets` that it has.

    The options are those of `evaluation_clips`.

    Raises:
        ValueError: as there, or if it has other segmentations only.
    """
    return evaluation_clips(
        store,
        segmentation=stored_presets(presets, store.arrays, path=store.path),
        objects=any(name.startswith("objects/") for name in store.arrays),
        **options,
    )


def stored_presets(presets: Sequence[str], arrays: Iterable[str], *, path: str | Path) -> list[str]:
    """Those of the presets that are among the arrays of an episode.

    Raises:
        ValueError: if none is, although there are others: a name that is misspelt would look like
            data without masks.
    """
    stored = sorted(a.removeprefix("segmentation/") for a in arrays if "segmentation/" in a)
    found = [preset for preset in presets if preset in stored]
    if presets and stored and not found:
        raise ValueError(
            f"expected a segmentation of {path}, one of {', '.join(stored)}, got "
            f"{', '.join(map(repr, presets))}; correct the name"
        )
    return found


def _read_footage(
    path: str | Path, image_size: Sequence[int], presets: Sequence[str], max_frames: int
) -> Iterator[Clip]:
    for _, episode in read_episodes(path, image_size=image_size, max_frames=max_frames):
        arrays = {name: torch.from_numpy(rows) for name, rows in episode.items()}
        video = arrays["frames"].movedim(-1, 1)[None]
        is_first = torch.zeros(video.shape[:2], dtype=torch.bool)
        is_first[:, 0] = True
        truth = {
            preset: arrays[f"segmentation/{preset}"][None].to(torch.int32)
            for preset in stored_presets(presets, arrays, path=path)
        }
        yield Clip(video, is_first, segmentation=truth)
