"""Clips in memory: equally long pieces of episodes, drawn at random or spread over held-out ones.

B batch, T frames, V views, M objects, C H W image. Frames stay uint8; `Clip.to_float` makes floats
of them on the device where they are used.
"""

from __future__ import annotations

import itertools
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocrl.data.property_table import PropertyTable
from ocrl.data.store import EpisodeStore
from ocrl.properties import PropertySpec
from ocrl.types import NUM_COLOURS, Camera, Clip

Split = Literal["train", "holdout", "all"]
_PER_STEP = ("is_first", "action", "reward", "terminated", "truncated")
_CAMERA = ("intrinsics", "extrinsics")
_MAX_REDRAWS = 1000


def split_episodes(store: EpisodeStore, *, split: Split, holdout: float) -> NDArray[np.int64]:
    """Numbers of the episodes of a split.

    A hash of their content decides which are held out, and who comes first: a split depends
    neither on a seed nor on the order of writing, which several workers leave to chance, and it
    hardly changes when episodes are appended. All episodes come as they are stored.

    Args:
        store: the episodes.
        split: "holdout", "train" (the others) or "all".
        holdout: the fraction of episodes that is held out; at least one is.

    Raises:
        ValueError: if the split is empty.
    """
    if split not in ("train", "holdout", "all"):
        raise ValueError(f"expected split to be 'train', 'holdout' or 'all', got {split!r}")
    if not 0 < holdout < 1:
        raise ValueError(f"expected holdout to be a fraction between 0 and 1, got {holdout}")
    every = np.arange(len(store))
    if split == "all":
        return every
    keys = [zlib.crc32(store.checksums(index).encode()) for index in range(len(store))]
    order = np.argsort(np.array(keys), kind="stable")
    num_held_out = max(1, round(holdout * len(store)))
    chosen = order[:num_held_out] if split == "holdout" else order[num_held_out:]
    if not len(chosen):
        raise ValueError(
            f"{store.path} holds {len(store)} episode(s) and one is held out, so none is left to "
            "train on: expected at least 2; collect more episodes"
        )
    return chosen


class _ClipReader:
    """Copies pieces of episodes into a `Clip`, after checking that the store has what is asked."""

    def __init__(
        self,
        store: EpisodeStore,
        *,
        clip_length: int,
        episodes: NDArray[np.int64],
        image_size: Sequence[int] | None,
        segmentation: Sequence[str],
        objects: bool,
        properties: PropertySpec | None,
        depth: bool,
    ) -> None:
        if clip_length < 1:
            raise ValueError(f"expected clip_length to be at least 1, got {clip_length}")
        self.store = store
        self.clip_length = clip_length
        self.num_starts = np.maximum(store.lengths[episodes] - clip_length + 1, 0)
        if not self.num_starts.sum():
            raise ValueError(
                f"expected episodes of at least clip_length={clip_length} frames, got at most "
                f"{store.lengths[episodes].max()} in {store.path}; use shorter clips or collect "
                "longer episodes"
            )
        self.episodes = episodes[self.num_starts > 0]
        self.num_starts = self.num_starts[self.num_starts > 0]
        self._check_frames(image_size)
        self._segmentation = self._preset_names(segmentation)
        self._table = None if properties is None else PropertyTable(properties, store)
        wanted = set() if self._table is None else self._table.arrays
        self._objects = [
            name
            for name in store.arrays
            if name in wanted or (objects and name.startswith("objects/"))
        ]
        self._names = [name for name in (*_PER_STEP, *_CAMERA) if name in store.arrays]
        if depth:
            self._names.append(self._depth_name())

    def _check_frames(self, image_size: Sequence[int] | None) -> None:
        spec = self.store.arrays["frames"]
        found = spec.shape[-3:-1]
        if image_size is not None and spec.shape[-1] != NUM_COLOURS:
            raise ValueError(
                f"expected frames (H,W,{NUM_COLOURS}) in {self.store.path}, got "
                f"{spec.shape[-3:]}; collect or import them as RGB"
            )
        if image_size is not None and (tuple(image_size) != found or spec.dtype != "|u1"):
            raise ValueError(
                f"expected uint8 frames of image_size {tuple(image_size)} in {self.store.path}, "
                f"got {np.dtype(spec.dtype)} frames of {found}; train or take a model of that "
                "image_size, or collect episodes of the size wanted"
            )

    def _depth_name(self) -> str:
        if "depth" not in self.store.arrays:
            raise ValueError(
                f"expected depth in {self.store.path}, got {sorted(self.store.arrays)}; leave it "
                "out or collect episodes with it"
            )
        return "depth"

    def _preset_names(self, presets: Sequence[str]) -> dict[str, str]:
        names = {preset: f"segmentation/{preset}" for preset in presets}
        stored = sorted(
            name.partition("/")[2] for name in self.store.arrays if name.startswith("segmentation/")
        )
        for preset in presets:
            if preset not in stored:
                raise ValueError(
                    f"expected segmentation {preset!r} in {self.store.path}, got {stored}; leave "
                    "it out or collect episodes with it"
                )
        return names

    def read(
        self, episodes: NDArray[np.int64], starts: NDArray[np.int64], *, pin_memory: bool = False
    ) -> Clip:
        """The clips that begin at frame `starts` (B,) of `episodes` (B,)."""
        names = ["frames", *self._names, *self._segmentation.values(), *self._objects]
        tensors = {name: self._empty(name, len(episodes), pin_memory) for name in names}
        out = {name: tensor.numpy() for name, tensor in tensors.items()}
        self.store.gather(episodes, starts, out=out)
        properties = {name.partition("/")[2]: tensors[name] for name in self._objects}
        boxes = properties.pop("box", None)
        if boxes is not None:
            is_padding = properties["id"] == 0
            if boxes.ndim == 5:
                is_padding = is_padding[:, :, None]
            boxes.masked_fill_(is_padding[..., None], -1.0)
        if self._table is not None:
            properties = self._table(tensors)
        camera = None
        if all(name in tensors for name in _CAMERA):
            camera = Camera(tensors["intrinsics"], tensors["extrinsics"])
        frames = tensors["frames"]
        return Clip(
            video=frames.movedim(-1, -3),
            segmentation={key: tensors[name] for key, name in self._segmentation.items()},
            boxes=boxes,
            properties=properties,
            camera=camera,
            depth=tensors.get("depth"),
            is_first=tensors["is_first"],
            action=tensors.get("action"),
            reward=tensors.get("reward"),
            terminated=tensors.get("terminated"),
            truncated=tensors.get("truncated"),
        )

    def _empty(self, name: str, batch_size: int, pin_memory: bool) -> Tensor:
        spec = self.store.arrays[name]
        kind = np.dtype(spec.dtype).kind
        if name == "frames":
            dtype = torch.uint8
        elif name in ("is_first", "terminated", "truncated"):
            dtype = torch.bool
        elif kind == "f" or name == "reward":
            dtype = torch.float32
        else:
            dtype = torch.int64 if name == "action" else torch.int32
        shape = (batch_size, self.clip_length, *spec.shape)
        return torch.empty(shape, dtype=dtype, pin_memory=pin_memory)


class ClipLoader:
    """Random clips of a store, by step number.

    `batch(step)` depends on nothing but the store, the seed, the step and the rank: a run that is
    resumed at a step sees what it would have seen. Every frame that can begin a clip is equally
    likely. Damaged episodes are passed over, and other clips drawn in their place.
    """

    def __init__(
        self,
        store: EpisodeStore,
        *,
        clip_length: int,
        batch_size: int,
        seed: int,
        split: Split = "train",
        holdout: float = 0.1,
        image_size: Sequence[int] | None = None,
        segmentation: Sequence[str] = (),
        objects: bool = False,
        properties: PropertySpec | None = None,
        depth: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Prepare to draw.

        Args:
            store: the episodes.
            clip_length: T; episodes with fewer frames are not drawn from.
            batch_size: clips of a step over all ranks together; rank r gives the r-th part of them.
            seed: of the drawing; the split does not depend on it.
            split: which episodes, see `split_episodes`.
            holdout: the fraction of episodes that is held out, at least one.
            image_size: (H, W) that RGB frames must have; None for whatever they have.
            segmentation: presets whose masks are loaded.
            objects: whether boxes and properties are loaded.
            properties: which targets of set prediction are loaded, in place of the tables' columns.
            depth: whether depth maps are loaded.
            rank: of this process.
            world_size: number of processes that share a batch.

        Raises:
            ValueError: if no episode is long enough, frames are not of `image_size`, a preset or
                depth is not stored, or `batch_size` cannot be shared out.
        """
        if batch_size < 1:
            raise ValueError(f"expected batch_size to be at least 1, got {batch_size}")
        if batch_size % world_size:
            raise ValueError(
                f"expected batch_size to be a multiple of the {world_size} processes that share "
                f"it, got {batch_size}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"expected rank in [0, {world_size}), got {rank}")
        self._reader = _ClipReader(
            store,
            clip_length=clip_length,
            episodes=split_episodes(store, split=split, holdout=holdout),
            image_size=image_size,
            segmentation=segmentation,
            objects=objects,
            properties=properties,
            depth=depth,
        )
        self._ends = np.cumsum(self._reader.num_starts)
        self._batch_size = batch_size
        self._seed = seed
        part = batch_size // world_size
        self._part = slice(rank * part, (rank + 1) * part)

    @property
    def num_clips(self) -> int:
        """How many different clips there are."""
        return int(self._ends[-1])

    def batch(self, step: int, *, pin_memory: bool = False) -> Clip:
        """The clips of one training step: video (B,T,[V,]C,H,W) in uint8, masks in int32.

        `video` is a permuted view of memory in which the channels come last.

        Args:
            step: any whole number from 0 on.
            pin_memory: put the clips into page-locked memory, from which CUDA copies faster.

        Raises:
            ValueError: if almost every episode is damaged.
        """
        return self.read(*self.draw(step), pin_memory=pin_memory)

    def read(
        self, episodes: NDArray[np.int64], starts: NDArray[np.int64], *, pin_memory: bool = False
    ) -> Clip:
        """The clips that begin at frame `starts` (B,) of `episodes` (B,)."""
        return self._reader.read(episodes, starts, pin_memory=pin_memory)

    def draw(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Episode (B,) and first frame (B,) of each clip of a step."""
        generator = np.random.default_rng([self._seed, step])
        store = self._reader.store
        place = np.zeros(self._part.stop - self._part.start, np.int64)
        wanting = np.ones(len(place), bool)
        for _ in range(_MAX_REDRAWS):
            # All ranks draw for the whole batch, so that together they give what one would.
            drawn = generator.integers(self.num_clips, size=self._batch_size)[self._part]
            place[wanting] = drawn[wanting]
            episodes, starts = self._where(place)
            wanting = ~self._are_sound(episodes)
            if not wanting.any():
                return episodes, starts
        raise ValueError(
            f"found no sound episode in {_MAX_REDRAWS} draws from {store.path}; restore it from a "
            "copy or collect new episodes"
        )

    def draw_different(self, num_clips: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Episode (P,) and first frame (P,) of this rank's part of so many different clips.

        Args:
            num_clips: over all ranks together; fewer if there are fewer that are sound.

        Raises:
            ValueError: if there is no sound one for this rank.
        """
        generator = np.random.default_rng([self._seed, self._batch_size, num_clips])
        size = self._part.stop - self._part.start
        places = generator.permutation(self.num_clips)[:num_clips]
        rank, world_size = self._part.start // size, self._batch_size // size
        episodes, starts = self._where(places[rank::world_size])
        is_sound = self._are_sound(episodes)
        if not is_sound.any():
            raise ValueError(
                f"expected at least {world_size} sound clips in {self._reader.store.path}, one for "
                f"each process, got {num_clips} of {self.num_clips}; take more, or restore it"
            )
        return episodes[is_sound], starts[is_sound]

    def _where(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Episode and first frame of clips by number."""
        which = np.searchsorted(self._ends, places, side="right")
        first = (self._ends - self._reader.num_starts)[which]
        return self._reader.episodes[which], places - first

    def _are_sound(self, episodes: NDArray[np.int64]) -> NDArray[np.bool_]:
        found = {index: self._reader.store.is_sound(int(index)) for index in np.unique(episodes)}
        return np.array([found[index] for index in episodes], bool)


def evaluation_clips(
    store: EpisodeStore,
    *,
    clip_length: int,
    num_clips: int,
    split: Split = "holdout",
    holdout: float = 0.1,
    seed: int = 0,
    batch_size: int = 1,
    image_size: Sequence[int] | None = None,
    segmentation: Sequence[str] = (),
    objects: bool = False,
    properties: PropertySpec | None = None,
    depth: bool = False,
    at_end: bool = False,
) -> Iterator[Clip]:
    """Clips spread evenly over the episodes of a split, the same ones in the same order every time.

    Args:
        store: the episodes.
        clip_length: T.
        num_clips: how many; clips of one episode overlap only if it is too short for its share.
        split: which episodes, see `split_episodes`.
        holdout: the fraction of episodes that is held out, at least one.
        seed: where in its stretch of the episode a clip begins.
        batch_size: clips given at a time; the last batch may be smaller.
        image_size: (H, W) that RGB frames must have; None for whatever they have.
        segmentation: presets whose masks are loaded.
        objects: whether boxes and properties are loaded.
        properties: which targets of set prediction are loaded, in place of the tables' columns.
        depth: whether depth maps are loaded.
        at_end: clips that end with their episodes, one of each: fewer if there are fewer.

    Raises:
        ValueError: as `ClipLoader`.
    """
    episodes = split_episodes(store, split=split, holdout=holdout)
    reader = _ClipReader(
        store,
        clip_length=clip_length,
        episodes=episodes,
        image_size=image_size,
        segmentation=segmentation,
        objects=objects,
        properties=properties,
        depth=depth,
    )
    if num_clips < 1:
        raise ValueError(f"expected num_clips to be at least 1, got {num_clips}")
    places = _ends(reader, num_clips) if at_end else _spread(reader, num_clips, seed)
    for first in range(0, len(places), batch_size):
        part = places[first : first + batch_size]
        yield reader.read(part[:, 0], part[:, 1])


def _choose(reader: _ClipReader, num_clips: int) -> NDArray[np.int64]:
    """Places (num_clips,) among the reader's episodes, in order and evenly spread.

    Only episodes that are chosen are checked; without those that are damaged it chooses anew.
    """
    places = np.arange(len(reader.episodes))
    while len(places):
        chosen = places[np.arange(num_clips) * len(places) // num_clips]
        tried = np.unique(chosen)
        sound = np.array([reader.store.is_sound(int(reader.episodes[place])) for place in tried])
        if sound.all():
            return chosen
        places = np.setdiff1d(places, tried[~sound])
    raise ValueError(f"every episode asked for in {reader.store.path} is damaged; restore it")


def _ends(reader: _ClipReader, num_clips: int) -> NDArray[np.int64]:
    """(episode, first frame) of the last clips of episodes, (num_clips, 2) at most."""
    which = np.unique(_choose(reader, num_clips))
    return np.stack([reader.episodes[which], reader.num_starts[which] - 1], axis=1)


def _spread(reader: _ClipReader, num_clips: int, seed: int) -> NDArray[np.int64]:
    """(episode, first frame) of each clip, (num_clips, 2)."""
    episodes, num_starts = reader.episodes, reader.num_starts
    which = _choose(reader, num_clips)
    shares = np.bincount(which, minlength=len(episodes))[which]
    turn = np.arange(num_clips) - np.searchsorted(which, which)
    offset = np.random.default_rng(seed).random(num_clips)
    # Each clip has its own stretch of the episode; it begins where all of it fits in, if it can.
    stretch = num_starts[which] / shares
    slack = np.maximum(stretch - reader.clip_length, 0.0)
    starts = np.floor(turn * stretch + offset * slack).astype(np.int64)
    return np.stack([episodes[which], np.minimum(starts, num_starts[which] - 1)], axis=1)


class ClipSource(Protocol):
    """Gives the clips of a step of training, see `ClipLoader.batch`."""

    def batch(self, step: int, *, pin_memory: bool = False) -> Clip:
        """The clips of one training step."""


class Prefetcher:
    """Batches from a given step on, made by a thread while the last one is used.

    On CUDA they come through pinned memory, copied without blocking.
    """

    def __init__(
        self,
        loader: ClipSource,
        *,
        start_step: int,
        device: torch.device | str,
        num_ahead: int = 2,
    ) -> None:
        """Start making batches.

        Args:
            loader: where they come from.
            start_step: of the first batch.
            device: where they go.
            num_ahead: how many are made before they are asked for.
        """
        self._loader = loader
        self._device = torch.device(device)
        self._steps = itertools.count(start_step)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clips")
        self._pending: deque[Future[Clip]] = deque()
        for _ in range(num_ahead):
            self._submit()

    def __iter__(self) -> Iterator[Clip]:
        return self

    def __next__(self) -> Clip:
        self._submit()
        return self._pending.popleft().result().to(self._device, non_blocking=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the batches not asked for and wait for the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self) -> None:
        is_cuda = self._device.type == "cuda"
        step = next(self._steps)
        self._pending.append(self._pool.submit(self._loader.batch, step, pin_memory=is_cuda))
