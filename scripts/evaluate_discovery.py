"""Measure how well a trained model finds objects, and show it.

python scripts/evaluate_discovery.py checkpoint=outputs/pretrain_slots/NAME data.path=EPISODES
"""

# The launcher comes first: it sets memory and threads before torch is loaded.
from launch import output_dir, script

# isort: split
from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

import ocrl
from ocrl import checkpoint
from ocrl.data.clips import evaluation_clips
from ocrl.data.store import EpisodeStore
from ocrl.discovery import evaluate_discovery
from ocrl.log import TensorBoard
from ocrl.metrics import get_protocol
from ocrl.report import example_movie, summary, write_results
from ocrl.types import Clip
from ocrl.visualize import is_footage, read_footage, to_gif


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
    result = evaluate_discovery(
        model,
        clips_of(data, tuple(model.encoder.backbone.image_size), console),
        protocol=protocol,
        presets=data["presets"],
        mask_source=settings["mask_source"],
        baselines=settings["baselines"],
        device=device,
        num_examples=settings["num_examples"],
    )
    details = {
        "checkpoint": f"{settings['checkpoint']} (step {meta['step']:,})",
        "data": str(data["path"]),
    }
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


def find_device(name: str) -> torch.device:
    """The device that `auto` stands for, or the one named."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"expected a device of this machine, got {name}: it has no CUDA device")
    return torch.device(name)


def clips_of(data: dict[str, Any], image_size: tuple[int, int], console: Console) -> Iterator[Clip]:
    """The clips to measure on, counted on the terminal."""
    if is_footage(data["path"]):
        video = read_footage(data["path"], size=image_size, max_frames=data["max_frames"])
        console.print(f"measuring on {len(video)} frames without ground truth")
        first = torch.zeros(1, len(video), dtype=torch.bool)
        first[:, 0] = True
        yield Clip(video[None], first)
        return
    store = EpisodeStore(data["path"])
    stored = {name.partition("/")[2] for name in store.arrays if name.startswith("segmentation/")}
    if data["presets"] and not stored.intersection(data["presets"]):
        console.print(f"no masks among {data['presets']} are stored: nothing to score against")
    clips = evaluation_clips(
        store,
        clip_length=data["clip_length"],
        num_clips=data["num_clips"],
        split=data["split"],
        holdout=data["holdout"],
        batch_size=data["batch_size"],
        image_size=image_size,
        segmentation=[name for name in data["presets"] if name in stored],
        objects=any(name.startswith("objects/") for name in store.arrays),
    )
    with console.status("measuring") as status:
        done = 0
        for clip in clips:
            yield clip
            done += clip.batch_size
            status.update(f"measured {done} of {data['num_clips']} clips")


if __name__ == "__main__":
    main()
