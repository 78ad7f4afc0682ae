"""Slots from rollouts of an environment, from nothing to a measured checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from episodes import find_episodes
from omegaconf import DictConfig
from rich.console import Console

import ocrl
from ocrl import checkpoint
from ocrl.data.clips import ClipLoader, Prefetcher, evaluation_clips
from ocrl.data.sources import stored_presets
from ocrl.data.store import EpisodeStore
from ocrl.discovery import evaluate_discovery
from ocrl.distributed import World, join_world
from ocrl.model import SlotModel
from ocrl.monitor import DiscoveryMonitor
from ocrl.novel_views import evaluate_views
from ocrl.novel_views_report import summary as describe_views
from ocrl.novel_views_report import write_views
from ocrl.posed import check_posed, chooser_of, is_posed
from ocrl.report import summary, write_results
from ocrl.train import Evaluation, Run, Trainer
from ocrl.types import Clip
from ocrl.views_monitor import ViewsMonitor


def pretrain(config: DictConfig, *, directory: Path, env: str, encoder: str) -> None:
    """Collect rollouts, train slots on them, measure; each part goes on where it was stopped.

    Args:
        config: what `configs/pretrain.yaml` composes to.
        directory: of the run.
        env: short name of the environment.
        encoder: name of the encoder's configuration, for the report.
    """
    settings = checkpoint.plain(config)
    data, evaluation = settings["data"], settings["evaluation"]
    trainer: Trainer = hydra.utils.instantiate(config.trainer, _convert_="all")
    with join_world(trainer.device) as world:
        console = Console(stderr=True, quiet=not world.is_first, soft_wrap=True)
        model, model_config = new_model(settings, seed=trainer.seed)
        if not checkpoint.load_teachers(model) and settings["teacher"] is not None:
            raise ValueError("expected an objective that learns from teacher=PATH, got none")
        store = rollouts(settings, directory=directory, env=env, world=world, console=console)
        shared = {"holdout": data["holdout"], "image_size": settings["image_size"]}
        loader = training_clips(store, settings, seed=trainer.seed, world=world, **shared)
        held_out = shared | {
            "clip_length": evaluation["clip_length"],
            "segmentation": stored_presets(data["presets"], store.arrays, path=store.path),
            "objects": any(name.startswith("objects/") for name in store.arrays),
        }
        for name in ("num_clips", "num_clips_in_training"):
            # What can not be measured is said before training, not after it.
            next(evaluation_clips(store, num_clips=evaluation[name], **held_out))
        if is_posed(model):
            has_depth = "depth" in store.arrays
            clips = evaluation_clips(store, num_clips=1, depth=has_depth, **held_out)
            check_posed(next(clips), model.decoder, num_seen=chooser_of(model).num_seen)
        trainer.fit(
            model,
            optimizer=hydra.utils.instantiate(config.optimizer, _convert_="all"),
            batches=lambda step: Prefetcher(loader, start_step=step, device=world.device),
            run=Run(directory, model_config, env=env, fingerprint=store.fingerprint),
            world=world,
            evaluate=monitor(
                model,
                lambda: evaluation_clips(
                    store, num_clips=evaluation["num_clips_in_training"], **held_out
                ),
                settings=settings,
                device=world.device,
                say=console.print,
            ),
        )
        if world.is_first:
            console.print("measuring object discovery on held-out episodes")
            written, sentences = measure(
                ocrl.load(directory).to(world.device),
                evaluation_clips(store, num_clips=evaluation["num_clips"], **held_out),
                settings=settings,
                directory=directory,
                title=f"Slots on {env}",
                details={"encoder": encoder, "checkpoint": str(checkpoint.find(directory))},
            )
            for sentence in sentences:
                console.print(sentence, soft_wrap=True, highlight=False)
            names = ", ".join(path.name for path in written)
            console.print(f"{names}, checkpoint, tensorboard: {directory}", soft_wrap=True)


def monitor(
    model: SlotModel,
    clips: Callable[[], Iterable[Clip]],
    *,
    settings: Mapping[str, Any],
    device: torch.device,
    say: Callable[[str], None],
) -> Evaluation:
    """What measures a model on held-out clips as it learns."""
    presets = settings["data"]["presets"]
    if is_posed(model):
        return ViewsMonitor(clips, preset=presets[0], device=device, say=say)
    source = settings["evaluation"]["mask_source"]
    return DiscoveryMonitor(clips, presets=presets, mask_source=source, device=device, say=say)


def measure(
    model: SlotModel,
    clips: Iterable[Clip],
    *,
    settings: Mapping[str, Any],
    directory: Path,
    title: str,
    details: Mapping[str, str],
) -> tuple[list[Path], list[str]]:
    """Measure a trained model on held-out clips: the files written, and what they say."""
    presets, device = settings["data"]["presets"], next(model.parameters()).device
    if is_posed(model):
        found = evaluate_views(model, clips, preset=presets[0], device=device)
        spent = costs(directory)
        spent["rays_per_second"] = spent["frames_per_second"] * chooser_of(model).num_rays
        written = write_views(directory, found, title=title, details=details, training=spent)
        return written, describe_views(found)
    source = settings["evaluation"]["mask_source"]
    result = evaluate_discovery(model, clips, presets=presets, mask_source=source, device=device)
    return write_results(directory, result, title=title, details=details), summary(result)


def costs(directory: Path) -> dict[str, float]:
    """What training cost, as its checkpoint says: steps, minutes, frames/s, megabytes."""
    meta, begin = checkpoint.read_meta(directory), "train/"
    measured = {n.removeprefix(begin): v for n, v in meta["metrics"].items() if n.startswith(begin)}
    return {"steps": meta["step"], **measured}


def new_model(settings: Mapping[str, Any], *, seed: int) -> tuple[SlotModel, dict[str, Any]]:
    """The model of a training run before its first step, and the configuration it is saved with.

    Args:
        settings: plain values of `configs/pretrain.yaml`.
        seed: of the weights.

    Raises:
        FileNotFoundError: if there is nothing at `start_from`.
        ValueError: if the parts do not fit each other, or what is at `start_from`.
    """
    parts = ("encoder", "decoder", "objectives", "weights", "is_conditioned")
    config = {"_target_": "ocrl.model.SlotModel"} | {name: settings[name] for name in parts}
    torch.manual_seed(seed)
    model = checkpoint.build(config)
    if settings["start_from"] is not None:
        checkpoint.load_encoder(model.encoder, settings["start_from"])
    return model, config


def rollouts(
    settings: Mapping[str, Any], *, directory: Path, env: str, world: World, console: Console
) -> EpisodeStore:
    """The episodes at `data.path`, or those that the run's directory has or collects."""
    return find_episodes(
        env,
        arguments=settings["env"],
        image_size=settings["image_size"],
        path=settings["data"]["path"],
        default_path=directory / "episodes",
        collection=settings["collect"],
        world=world,
        console=console,
    )


def training_clips(
    store: EpisodeStore, settings: Mapping[str, Any], *, seed: int, world: World, **options: Any
) -> ClipLoader:
    """This process's share of the clips of each step; `options` are those of `ClipLoader`."""
    return ClipLoader(
        store,
        clip_length=settings["data"]["clip_length"],
        batch_size=settings["data"]["batch_size"],
        seed=seed,
        objects=settings["is_conditioned"],
        rank=world.rank,
        world_size=world.size,
        **options,
    )
