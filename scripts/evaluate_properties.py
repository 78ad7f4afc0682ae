"""Measure how well a trained model tells the set of objects.

python scripts/evaluate_properties.py checkpoint=outputs/train_properties/NAME data.path=EPISODES
"""

# The launcher comes first: it reads the command line, and sets memory and threads, before torch is
# loaded.
from launch import Command, output_dir

command = Command("evaluate_properties", globals(), goes_on=False)

# isort: split
import json
from collections.abc import Mapping
from pathlib import Path

from measuring import subject_of
from omegaconf import DictConfig
from rich.console import Console

from ocrl.data.clips import evaluation_clips
from ocrl.data.store import EpisodeStore
from ocrl.log import TensorBoard
from ocrl.set_prediction import SetPredictionResult, evaluate_set_prediction, spec_of


@command
def main(config: DictConfig) -> None:
    """Load, measure, write."""
    subject = subject_of(config)
    data = dict(subject.data)
    clips = evaluation_clips(
        EpisodeStore(data.pop("path")),
        image_size=subject.image_size,
        properties=spec_of(subject.model),
        **data,
    )
    result = evaluate_set_prediction(subject.model, clips, device=subject.device)
    write_result(output_dir(), result, subject.details)
    with TensorBoard(output_dir() / "tensorboard") as board:
        board.scalars(result.scalars(), step=subject.step)
    say(result, output_dir(), subject.console)


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
