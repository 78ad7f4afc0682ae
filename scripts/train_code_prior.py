"""Learn a prior over the codes of a trained model, and draw new scenes from it.

python scripts/train_code_prior.py checkpoint=outputs/pretrain_slots/NAME
"""

# The launcher comes first: it reads the command line, and sets memory and threads, before torch is
# loaded.
from launch import Command, output_dir

command = Command("code_prior", globals())

# isort: split
from collections.abc import Iterator
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig
from rich.console import Console

import ocrl
from ocrl import checkpoint
from ocrl.data.clips import ClipLoader, Prefetcher, evaluation_clips
from ocrl.data.store import EpisodeStore
from ocrl.distributed import join_world
from ocrl.scene_prior import PriorMonitor, ScenePrior, code_sizes_of, scene_picture
from ocrl.train import Run, Trainer
from ocrl.types import Clip
from ocrl.visualize import to_png


@command
def main(config: DictConfig) -> None:
    """Train, then draw; the same command goes on where it was stopped."""
    settings = checkpoint.plain(config)
    source, data, evaluation = settings["checkpoint"], settings["data"], settings["evaluation"]
    if source is None:
        raise ValueError("expected checkpoint=PATH on the command line, got none")
    trainer: Trainer = hydra.utils.instantiate(config.trainer, _convert_="all")
    directory = output_dir()
    with join_world(trainer.device) as world:
        console = Console(stderr=True, quiet=not world.is_first, soft_wrap=True)
        model = ocrl.load(source)
        sizes = {"num_slots": model.encoder.num_slots, "code_sizes": list(code_sizes_of(model))}
        prior_config = settings["prior"] | sizes
        torch.manual_seed(trainer.seed)
        scenes = ScenePrior(model, prior=checkpoint.build(prior_config))
        store = EpisodeStore(data["path"] or Path(source) / "episodes")
        shared = {"holdout": data["holdout"], "image_size": model.encoder.backbone.image_size}
        loader = ClipLoader(
            store,
            clip_length=data["clip_length"],
            batch_size=data["batch_size"],
            seed=trainer.seed,
            objects=model.is_conditioned,
            rank=world.rank,
            world_size=world.size,
            **shared,
        )

        def held_out() -> Iterator[Clip]:
            clips = {"num_clips": evaluation["num_clips"], "clip_length": data["clip_length"]}
            return evaluation_clips(store, objects=model.is_conditioned, **clips, **shared)

        figures = trainer.fit(
            scenes,
            optimizer=hydra.utils.instantiate(config.optimizer, _convert_="all"),
            batches=lambda step: Prefetcher(loader, start_step=step, device=world.device),
            run=Run(
                directory,
                {
                    "_target_": "ocrl.scene_prior.ScenePrior",
                    "model": checkpoint.read_config(source),
                    "prior": prior_config,
                },
                env=checkpoint.read_meta(source)["env"],
                fingerprint=f"{store.fingerprint} {checkpoint.digest(source)[:16]}",
            ),
            world=world,
            evaluate=PriorMonitor(
                held_out,
                num_scenes=evaluation["num_scenes"],
                temperature=evaluation["temperature"],
                device=world.device,
                say=console.print,
            ),
        )
        if world.is_first:
            scenes = ocrl.load(directory)
            new = scenes.prior.sample(
                evaluation["num_scenes"],
                temperature=evaluation["temperature"],
                generator=torch.Generator().manual_seed(trainer.seed),
            )
            (directory / "scenes.png").write_bytes(to_png(scene_picture(scenes, new, held_out())))
            found = ", ".join(f"{name} {nats:.3f}" for name, nats in figures.items())
            console.print(f"held-out nats per code: {found}", highlight=False)
            console.print(f"scenes.png, checkpoint, tensorboard: {directory}")


if __name__ == "__main__":
    main()
