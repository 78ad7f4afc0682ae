"""Measure how well a trained model tells the set of objects.

python scripts/evaluate_properties.py checkpoint=outputs/train_properties/NAME data.path=EPISODES
"""

# The launcher comes first: it sets memory and threads before torch is loaded.
from launch import output_dir, script

# isort: split
import json
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

import ocrl
from ocrl import checkpoint
from ocrl.data.clips import evaluation_clips
from ocrl.data.store import EpisodeStore
from ocrl.distributed import find_device
from ocrl.log import TensorBoard
from ocrl.set_prediction import SetPredictionResult, evaluate_set_prediction, spec_of


@script("evaluate_properties")
def main(config: DictConfig) -> None:
    """Load, measure, write."""
    settings = checkpoint.plain(config)
    data = settings["data"]
    for key, value in (("checkpoint", settings["checkpoint"]), ("data.path", data["path"])):
        if value is None:
            raise ValueError(f"expected {key}=PATH on the command line, got none")
    console = Console(stderr=True, soft_wrap=True)
    device = find_device(settings["device"])
    meta = checkpoint.read_meta(settings["checkpoint"])
    model = ocrl.load(settings["checkpoint"]).to(device)
    clips = evaluation_clips(
        EpisodeStore(data.pop("path")),
        image_size=model.encoder.backbone.image_size,
        properties=spec_of(model),
        **data,
    )
    result = evaluate_set_prediction(model, clips, device=device)
    write_result(output_dir(), result, {"checkpoint": str(settings["checkpoint"])})
    with TensorBoard(output_dir() / "tensorboard") as board:
        board.scalars(result.scalars(), step=meta["step"])
    say(result, output_dir(), console)


def write_result(directory: Path, result: SetPredictionResult, details: Mapping[str, str]) -> None:
    """Write metrics.json."""
    record = result.to_json() | {"details": dict(details)}
    (directory / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")


def say(result: SetPredictionResult, directory: Path, console: Console) -> None:
    """Say what was found and where it is."""
    console.print(f"{result.num_objects} objects in {result.num_frames} frames", highlight=False)
    for name, value in result.scalars().items():
        console.print(f"{name:>20} {value:.3f}", highlight=False)
    console.print(f"metrics.json: {directory}")


if __name__ == "__main__":
    main()
