"""What the world model scripts share: how one is built on a slot model and episodes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from ocrl import checkpoint
from ocrl.data.clip_pool import ClipPool
from ocrl.data.clips import ClipLoader, ClipSource, Split, evaluation_clips, split_episodes
from ocrl.data.sources import stored_clips, stored_presets
from ocrl.data.store import EpisodeStore
from ocrl.distributed import World
from ocrl.horizon import check_horizons
from ocrl.interfaces import SlotCodes
from ocrl.log import ProgressBar
from ocrl.model import SlotModel
from ocrl.types import Clip
from ocrl.world_model import WorldModel, draws_imagined

_IMAGE_WEIGHT = 100.0  # frames differ by a thousandth where slots, which tremble, do by tenths
_SETTINGS = ("weights", "num_context", "horizon", "num_decoded", "rollout")


def action_sizes(store: EpisodeStore) -> dict[str, int]:
    """The actions of episodes: `num_actions` if they are discrete, `action_dim` if they are not.

    Raises:
        ValueError: if the number of discrete actions is not stored.
    """
    spec = store.arrays.get("action")
    if spec is None:
        return {"num_actions": 0, "action_dim": 0}
    if spec.shape:
        return {"num_actions": 0, "action_dim": spec.shape[0]}
    space = str(store.metadata.get("action_space"))
    number = re.fullmatch(r"Discrete\((\d+).*\)", space)
    if number is None:
        raise ValueError(
            f"expected an action_space Discrete(n) in the metadata of {store.path}, got {space}"
        )
    return {"num_actions": int(number[1]), "action_dim": 0}


def count_events(store: EpisodeStore) -> tuple[int, int]:
    """The steps of episodes with a reward other than 0 or a termination, and all steps.

    What is not stored makes no events; episodes in which that is damaged are left out.
    """
    stored = [name for name in ("reward", "terminated") if name in store.arrays]
    if not stored:
        return 0, store.num_frames - len(store)
    number = num_steps = 0
    for index in range(len(store)):
        try:
            outcomes = store.read(index, stored)
        except ValueError:
            continue  # the loader names it, and draws others
        is_event = np.any([rows[1:] != 0 for rows in outcomes.values()], axis=0)
        number, num_steps = number + int(is_event.sum()), num_steps + len(is_event)
    return number, num_steps


def check_lengths(
    store: EpisodeStore, horizons: Sequence[int], *, num_context: int, holdout: float
) -> None:
    """Refuse horizons that no held-out episode is long enough for, before anything is trained.

    Raises:
        ValueError: naming the longest of these episodes.
    """
    held_out = split_episodes(store, split="holdout", holdout=holdout)
    longest = int(store.lengths[held_out].max())
    if horizons and num_context + max(horizons) > longest:
        raise ValueError(
            f"expected evaluation.horizons up to {longest - num_context}, as the longest held-out "
            f"episode of {store.path} has {longest} frames and {num_context} are context, got "
            f"{max(horizons)}"
        )


def build_world(
    config: DictConfig, model: SlotModel, *, source: Path, store: EpisodeStore
) -> tuple[WorldModel, dict[str, Any]]:
    """A new world model around a trained slot model, and the configuration it is saved with.

    Args:
        config: of `configs/world_model.yaml`; the sizes of the slots and actions are filled in.
        model: the trained one.
        source: its checkpoint.
        store: the episodes.

    Raises:
        ValueError: if the parts do not fit each other, or the episodes.
    """
    encoder = model.encoder
    config.slot_dim = encoder.slot_dim
    config.code_sizes = list(encoder.code_sizes) if isinstance(encoder, SlotCodes) else []
    config.merge_with(action_sizes(store))
    if config.weights.image is None:
        config.weights.image = _IMAGE_WEIGHT if draws_imagined(model.decoder) else 0.0
    settings = checkpoint.plain(config)
    parts = {name: settings[name] for name in ("dynamics", "outcome")}
    own = {name: settings[name] for name in _SETTINGS}
    built = {name: checkpoint.build(part) for name, part in parts.items()}
    world_model = WorldModel(model, **built, **own)
    world_model.take_codes()
    world_model.outcome.expect(*count_events(store))
    target = {"_target_": "ocrl.world_model.WorldModel", "model": checkpoint.read_config(source)}
    return world_model, target | parts | own


def training_clips(
    config: DictConfig, model: WorldModel, loader: ClipLoader, *, run: Path, world: World
) -> ClipSource:
    """The clips of training, with slots that a frozen encoder reads once if they come again.

    With `trainer.max_minutes` they are read as they come.

    Args:
        config: of `configs/world_model.yaml`.
        model: whose encoder it is.
        loader: of this process's clips.
        run: where the run keeps its checkpoint; one that is through needs no slots any more.
        world: the processes that train together.

    Raises:
        ValueError: if `data.repeats` is not a whole number from 1 on.
    """
    repeats, batch_size = config.data.repeats, config.data.batch_size
    if not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"expected data.repeats to be a whole number from 1 on, got {repeats}")
    # Under a limit of time nobody knows how many clips will come, and reading them would not count.
    is_open = config.trainer.max_minutes is not None
    if repeats == 1 or not model.is_frozen or is_open or _is_through(run, config.trainer.max_steps):
        return loader
    pool = ClipPool(
        loader,
        num_clips=max(config.trainer.max_steps * batch_size // repeats, world.size),
        batch_size=batch_size // world.size,
        seed=config.trainer.seed,
    )
    model.to(world.device)
    with ProgressBar("reading slots", total=len(pool), is_silent=not world.is_first) as bar:
        pool.remember(model.slots_of, device=world.device, note=bar.update)
    return pool


def _is_through(run: Path, max_steps: int) -> bool:
    try:
        return bool(checkpoint.read_meta(run)["step"] >= max_steps)
    except FileNotFoundError:
        return False


def held_out_clips(
    config: DictConfig, model: WorldModel, store: EpisodeStore
) -> Callable[[int], Iterator[Clip]]:
    """Gives so many held-out clips, of the context and the longest horizon of the evaluation.

    Raises:
        ValueError: if the horizons do not rise, or the episodes have other segmentations only.
    """
    evaluation = config.evaluation
    check_horizons(evaluation.horizons)
    stored_presets([evaluation.preset], store.arrays, path=store.path)
    return lambda num_clips: stored_clips(
        store,
        image_size=model.model.encoder.backbone.image_size,
        presets=[evaluation.preset],
        split="holdout",
        holdout=config.data.holdout,
        clip_length=model.num_context + evaluation.horizons[-1],
        num_clips=num_clips,
        batch_size=4,
    )


def ending_clips(
    model: WorldModel, store: EpisodeStore, *, split: Split, holdout: float, num_clips: int
) -> Callable[[int], Iterator[Clip]]:
    """Gives clips of so many frames that end with their episodes; none if all are shorter."""

    def clips(clip_length: int) -> Iterator[Clip]:
        episodes = split_episodes(store, split=split, holdout=holdout)
        if store.lengths[episodes].max() < clip_length:
            return iter(())
        return evaluation_clips(
            store,
            clip_length=clip_length,
            num_clips=num_clips,
            split=split,
            holdout=holdout,
            batch_size=4,
            image_size=model.model.encoder.backbone.image_size,
            objects=model.model.is_conditioned,
            at_end=True,
        )

    return clips
