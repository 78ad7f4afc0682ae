"""Measure posed slots: objects across cameras and time, and views that were not seen.

python scripts/evaluate_views.py checkpoint=outputs/pretrain_slots/NAME data.path=EPISODES
"""

# The launcher comes first: it sets memory and threads before torch is loaded.
from launch import output_dir, script

# isort: split

from evaluate_discovery import counted
from omegaconf import DictConfig
from rich.console import Console

import ocrl
from ocrl import checkpoint
from ocrl.data.clips import evaluation_clips
from ocrl.data.store import EpisodeStore
from ocrl.distributed import find_device
from ocrl.log import TensorBoard
from ocrl.model import SlotModel
from ocrl.novel_views import evaluate_views
from ocrl.novel_views_report import summary, write_views
from ocrl.posed import is_posed


@script("evaluate_views")
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
    if not isinstance(model, SlotModel) or not is_posed(model):
        raise ValueError(
            f"expected a model of posed views at {source}, with a decoder of rays, got another: "
            "scripts/evaluate_discovery.py measures models of frames"
        )
    store, preset = EpisodeStore(data.pop("path")), data.pop("preset")
    clips = evaluation_clips(
        store,
        **data,
        image_size=model.encoder.backbone.image_size,
        segmentation=[preset] if f"segmentation/{preset}" in store.arrays else [],
        depth="depth" in store.arrays,
    )
    result = evaluate_views(
        model.to(device),
        counted(clips, console),
        num_seen=settings["num_seen"],
        preset=preset,
        is_aligned=settings["is_aligned"],
        baselines=settings["baselines"],
        device=device,
        num_examples=settings["num_examples"],
        num_orbit=settings["num_orbit"],
    )
    details = {
        "checkpoint": f"{source} (step {meta['step']:,})",
        "data": str(store.path),
    }
    if settings["is_aligned"]:
        details["aligned"] = "slots of each frame in the order of those before they are most like"
    written = write_views(
        output_dir(),
        result,
        title=f"Posed slots: {meta['env']}",
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
