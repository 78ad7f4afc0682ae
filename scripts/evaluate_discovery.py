"""Measure how well a trained model finds objects, and show it.

python scripts/evaluate_discovery.py checkpoint=outputs/pretrain_slots/NAME data.path=EPISODES
"""

# The launcher comes first: it reads the command line, and sets memory and threads, before torch is
# loaded.
from launch import Command, output_dir

command = Command("evaluate", globals(), goes_on=False)

# isort: split

from measuring import subject_of
from omegaconf import DictConfig

from ocrl.data.sources import read_clips
from ocrl.discovery import evaluate_discovery
from ocrl.log import TensorBoard
from ocrl.metrics import get_protocol
from ocrl.report import example_movie, summary, write_results
from ocrl.visualize import to_gif


@command
def main(config: DictConfig) -> None:
    """Load, measure, write."""
    subject = subject_of(config)
    settings, data = subject.settings, subject.data
    protocol = get_protocol(settings["protocol"])
    clips = read_clips(**data, image_size=subject.image_size)
    result = evaluate_discovery(
        subject.model,
        subject.counted(clips),
        protocol=protocol,
        presets=data["presets"],
        mask_source=settings["mask_source"],
        merge=settings["merge"],
        merge_by=settings["merge_by"],
        baselines=settings["baselines"],
        device=subject.device,
        num_examples=settings["num_examples"],
    )
    details = subject.details
    if settings["merge"] is not None:
        details["merged"] = (
            f"slots from a likeness of {settings['merge_by']} of {settings['merge']} on"
        )
    rate = settings["frames_per_second"]
    written = write_results(
        output_dir(),
        result,
        title=f"Object discovery: {subject.env}",
        details=details,
        frames_per_second=rate,
    )
    with TensorBoard(output_dir() / "tensorboard") as board:
        board.scalars(result.scalars(), step=subject.step)
        for index, example in enumerate(result.examples):
            movie = to_gif(example_movie(example)[1], frames_per_second=rate)
            board.picture(f"masks/{index}", movie, step=subject.step)
    subject.say(summary(result), [*written, output_dir() / "tensorboard"])


if __name__ == "__main__":
    main()
