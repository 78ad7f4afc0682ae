"""Learn how the slots of a trained model move, and what comes of actions.

python scripts/train_world_model.py checkpoint=outputs/pretrain_slots/NAME
"""

# The launcher comes first: it reads the command line, and sets memory and threads, before torch is
# loaded.
from launch import Command, choice, note_command, output_dir

command = Command("world_model", globals())

# isort: split
from pathlib import Path

import hydra
import torch
from comparison import run
from episodes import find_episodes
from omegaconf import DictConfig
from rich.console import Console
from worlds import build_world, check_lengths, ending_clips, held_out_clips, training_clips

import ocrl
from ocrl import checkpoint
from ocrl.data.clips import ClipLoader, Prefetcher
from ocrl.distributed import join_world
from ocrl.envs.registry import label
from ocrl.horizon import HorizonMonitor, evaluate_horizons
from ocrl.horizon_report import summary, write_results
from ocrl.train import Run, Trainer


@command
def main(config: DictConfig) -> None:
    """Find a slot model and episodes, train, measure; the same command goes on."""
    directory, env, source = output_dir(), choice("env"), config.checkpoint
    if source is None:
        source = directory / "slots"
        run("pretrain_slots", source, [f"env={env}", *config.pretrain])
    trainer: Trainer = hydra.utils.instantiate(config.trainer, _convert_="all")
    with join_world(trainer.device) as world:
        console = Console(stderr=True, quiet=not world.is_first, soft_wrap=True)
        slot_model, kept = ocrl.load(source), Path(source) / "episodes"
        image_size = list(slot_model.encoder.backbone.image_size)
        store = find_episodes(
            env,
            arguments=checkpoint.plain(config.env),
            image_size=image_size,
            path=config.data.path or (str(kept) if kept.exists() else None),
            default_path=directory / "episodes",
            collection=checkpoint.plain(config.collect),
            world=world,
            console=console,
        )
        torch.manual_seed(trainer.seed)
        model, model_config = build_world(config, slot_model, source=source, store=store)
        loader = ClipLoader(
            store,
            clip_length=model.clip_length,
            batch_size=config.data.batch_size,
            seed=trainer.seed,
            objects=slot_model.is_conditioned,
            holdout=config.data.holdout,
            image_size=image_size,
            rank=world.rank,
            world_size=world.size,
        )
        held_out, evaluation = held_out_clips(config, model, store), config.evaluation
        check_lengths(
            store,
            evaluation.horizons,
            num_context=model.num_context,
            holdout=config.data.holdout,
        )
        clips = training_clips(config, model, loader, run=directory, world=world)
        measured = {"horizons": list(evaluation.horizons), "preset": evaluation.preset}
        measured["device"] = world.device
        trainer.fit(
            model,
            optimizer=hydra.utils.instantiate(config.optimizer, _convert_="all"),
            batches=lambda step: Prefetcher(clips, start_step=step, device=world.device),
            run=Run(
                directory,
                model_config,
                env=env,
                fingerprint=f"{store.fingerprint} {checkpoint.digest(source)[:16]}",
            ),
            world=world,
            evaluate=HorizonMonitor(lambda: held_out(evaluation.num_clips_in_training), **measured),
        )
        if world.is_first:
            trained = ocrl.load(directory).to(world.device)
            number = evaluation.num_clips
            share = {"split": "holdout", "holdout": config.data.holdout, "num_clips": number}
            ends = ending_clips(trained, store, **share)
            result = evaluate_horizons(trained, held_out(number), ends=ends, **measured)
            details = {
                "environment": label(env, checkpoint.plain(config.env)),
                "dynamics": choice("dynamics"),
                "slots": str(source),
            }
            note_command(directory)
            write_results(directory, result, title=f"World model of {env}", details=details)
            for sentence in [*summary(result), f"report.html, checkpoint: {directory}"]:
                console.print(sentence, soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
