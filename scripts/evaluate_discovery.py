"""Measure how well a trained model finds objects, and show it.

python scripts/evaluate_discovery.py checkpoint=outputs/pretrain_slots/NAME data.path=EPISODES
"""

# The launcher comes first: it sets memory and threads before torch is loaded.
from launch import output_dir, script

# isort: split
from collections.abc import Iterable, Iterator

from omegaconf import DictConfig
from rich.console import Console

import ocrl
from ocrl import checkpoint
from ocrl.data.sources import read_clips
from ocrl.discovery import evaluate_discovery
from ocrl.distributed import find_device
from ocrl.log import TensorBoard
from ocrl.metrics import get_protocol
from ocrl.report import example_movie, summary, write_results
from ocrl.types import Clip
from ocrl.visualize import to_gif


@script("evaluate")
def main(config: DictConfig) -> None:
    """Load, measure, write."""
    settings = checkpoint.plain(config)
    data = settings["data"]
    for key, value in (("checkpoint", settings["checkpoint"]), ("data.path", data["path"])):
        if value is None:
            raise ValueError(f"expected {key}=PATH on the command line, got none")
    protocol = get_protocol(settings["protocol"])
    console = Console(stderr=True)
    device = find_device(settings["device"])
    meta = checkpoint.read_meta(settings["checkpoint"])
    model = ocrl.load(settings["checkpoint"]).to(device)
    clips = read_clips(**data, image_size=model.encoder.backbone.image_size)
    result = evaluate_discovery(
        model,
        counted(clips, console),
        protocol=protocol,
        presets=data["presets"],
        mask_source=settings["mask_source"],
        merge=settings["merge"],
        merge_by=settings["merge_by"],
        baselines=settings["baselines"],
        device=device,
        num_examples=settings["num_examples"],
    )
    details = {
        "checkpoint": f"{settings['checkpoint']} (step {meta['step']:,})",
        "data": str(data["path"]),
    }
    if settings["merge"] is not None:
        details["merged"] = (
            f"slots from a likeness of {settings['merge_by']} of {settings['merge']} on"
        )
    rate = settings["frames_per_second"]
    written = write_results(
        output_dir(),
        result,
        title=f"Object discovery: {meta['env']}",
        details=details,
        frames_per_second=rate,
    )
    with TensorBoard(output_dir() / "tensorboard") as board:
        board.scalars(result.scalars(), step=meta["step"])
        for index, example in enumerate(result.examples):
            movie = to_gif(example_movie(example)[1], frames_per_second=rate)
            board.picture(f"masks/{index}", movie, step=meta["step"])
    for sentence in summary(result):
        console.print(sentence, soft_wrap=True)
    for path in [*written, output_dir() / "tensorboard"]:
        console.print(f"{path.name:>12}: {path}", soft_wrap=True)


def counted(clips: Iterable[Clip], console: Console) -> Iterator[Clip]:
    """The same clips, with their number on the terminal."""
    with console.status("measuring") as status:
        for number, clip in enumerate(clips):
            if number == 0 and not clip.segmentation:
                console.print("there are no masks: nothing to score against")
            status.update(f"measuring: batch {number + 1}, {clip.num_frames} frames a clip")
            yield clip


if __name__ == "__main__":
    main()
