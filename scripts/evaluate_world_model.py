"""Measure how far ahead a world model can foretell.

python scripts/evaluate_world_model.py checkpoint=outputs/train_world_model/NAME data.path=EPISODES
"""

# The launcher comes first: it sets memory and threads before torch is loaded.
from launch import output_dir, script

# isort: split

from evaluate_discovery import counted
from omegaconf import DictConfig
from rich.console import Console
from worlds import action_sizes, ending_clips

import ocrl
from ocrl import checkpoint
from ocrl.data.sources import is_footage, read_clips
from ocrl.data.store import EpisodeStore
from ocrl.distributed import find_device
from ocrl.horizon import evaluate_horizons
from ocrl.horizon_report import summary, write_results
from ocrl.log import TensorBoard
from ocrl.world_model import WorldModel


@script("evaluate_world_model")
def main(config: DictConfig) -> None:
    """Load, measure, write."""
    settings = checkpoint.plain(config)
    source, data = settings["checkpoint"], settings["data"]
    for key, value in (("checkpoint", source), ("data.path", data["path"])):
        if value is None:
            raise ValueError(f"expected {key}=PATH on the command line, got none")
    console = Console(stderr=True)
    device = find_device(settings["device"])
    meta, model = checkpoint.read_meta(source), ocrl.load(source)
    if not isinstance(model, WorldModel):
        raise ValueError(
            f"expected the checkpoint of a world model at {source}, as train_world_model writes "
            f"it, got that of a {type(model).__name__}"
        )
    if is_footage(data["path"]):
        raise ValueError(f"expected episodes at {data['path']}, got pictures or a video")
    store = EpisodeStore(data["path"])
    dynamics, found = model.dynamics, action_sizes(store)
    wanted = {"num_actions": dynamics.num_actions, "action_dim": dynamics.action_dim}
    if any(wanted.values()) and found != wanted:
        raise ValueError(f"expected episodes with {wanted}, as the model has, got {found}")
    judge = None
    if settings["judge"] is not None:
        judge = ocrl.load(settings["judge"]).encoder.backbone.to(device)
    preset, horizons = data.pop("preset"), settings["horizons"]
    clips = read_clips(
        **data,
        presets=[preset],
        clip_length=model.num_context + horizons[-1],
        max_frames=0,
        image_size=model.model.encoder.backbone.image_size,
    )
    result = evaluate_horizons(
        model.to(device),
        counted(clips, console),
        horizons=horizons,
        preset=preset,
        ends=ending_clips(model, store, **{k: data[k] for k in ("split", "holdout", "num_clips")}),
        judge=judge,
        device=device,
        num_examples=settings["num_examples"],
    )
    details = {
        "checkpoint": f"{source} (step {meta['step']:,})",
        "data": str(data["path"]),
        "perceptual": str(settings["judge"] or "the model's own backbone"),
    }
    written = write_results(
        output_dir(),
        result,
        title=f"World model: {meta['env']}",
        details=details,
        frames_per_second=settings["frames_per_second"],
    )
    with TensorBoard(output_dir() / "tensorboard") as board:
        board.scalars(result.scalars(), step=meta["step"])
    for sentence in summary(result):
        console.print(sentence, soft_wrap=True, highlight=False)
    for path in written:
        console.print(f"{path.name:>12}: {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
