"""Collect rollouts, train slots to tell the set of objects, measure average precision.

python scripts/train_properties.py env=sprites experiment=set_prediction
"""

# The launcher comes first: it reads the command line, and sets memory and threads, before torch is
# loaded.
from launch import Command, choice, output_dir

command = Command("pretrain", globals())

# isort: split
import hydra
from evaluate_properties import say, write_result
from omegaconf import DictConfig
from pretraining import new_model, rollouts, training_clips
from rich.console import Console

import ocrl
from ocrl import checkpoint
from ocrl.data.clips import Prefetcher, evaluation_clips
from ocrl.data.property_table import most_objects
from ocrl.distributed import join_world
from ocrl.set_prediction import SetPredictionMonitor, evaluate_set_prediction, spec_of
from ocrl.train import Run, Trainer


@command
def main(config: DictConfig) -> None:
    """Do the three parts one after the other; each goes on where it was stopped."""
    settings = checkpoint.plain(config)
    data, evaluation = settings["data"], settings["evaluation"]
    trainer: Trainer = hydra.utils.instantiate(config.trainer, _convert_="all")
    directory, env = output_dir(), choice("env")
    with join_world(trainer.device) as world:
        console = Console(stderr=True, quiet=not world.is_first, soft_wrap=True)
        model, model_config = new_model(settings, seed=trainer.seed)
        spec = spec_of(model)
        store = rollouts(settings, directory=directory, env=env, world=world, console=console)
        most = most_objects(store, spec)
        if most > settings["num_slots"]:
            raise ValueError(
                f"expected num_slots of at least {most}, as many objects as frames of {store.path} "
                f"hold, got {settings['num_slots']}"
            )
        shared = {
            "holdout": data["holdout"],
            "image_size": settings["image_size"],
            "properties": spec,
        }
        loader = training_clips(store, settings, seed=trainer.seed, world=world, **shared)
        held_out = shared | {"clip_length": evaluation["clip_length"], "batch_size": 8}
        num_clips = evaluation["num_clips_in_training"]
        trainer.fit(
            model,
            optimizer=hydra.utils.instantiate(config.optimizer, _convert_="all"),
            batches=lambda step: Prefetcher(loader, start_step=step, device=world.device),
            run=Run(directory, model_config, env=env, fingerprint=store.fingerprint),
            world=world,
            evaluate=SetPredictionMonitor(
                lambda: evaluation_clips(store, num_clips=num_clips, **held_out),
                device=world.device,
            ),
        )
        if world.is_first:
            result = evaluate_set_prediction(
                ocrl.load(directory).to(world.device),
                evaluation_clips(store, num_clips=evaluation["num_clips"], **held_out),
                device=world.device,
            )
            parameters = sum(parameter.numel() for parameter in model.parameters())
            details = {"env": env, "encoder": choice("encoder"), "parameters": f"{parameters:,}"}
            write_result(directory, result, details)
            say(result, directory, console)


if __name__ == "__main__":
    main()
