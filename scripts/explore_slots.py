"""Write a page to look inside slots: click an object and see the slot that holds it.

python scripts/explore_slots.py checkpoint=outputs/pretrain_slots/NAME data.path=EPISODES
"""

# The launcher comes first: it sets memory and threads before torch is loaded.
from launch import output_dir, script

# isort: split
from itertools import islice

from omegaconf import DictConfig
from rich.console import Console

import ocrl
from ocrl import checkpoint
from ocrl.data.sources import is_footage, read_clips
from ocrl.data.store import EpisodeStore
from ocrl.distributed import find_device
from ocrl.inspection.explorer import explore, render_explorer
from ocrl.page import write_text


@script("explore")
def main(config: DictConfig) -> None:
    """Load, encode, write."""
    settings = checkpoint.plain(config)
    data = settings["data"]
    for key, value in (("checkpoint", settings["checkpoint"]), ("data.path", data["path"])):
        if value is None:
            raise ValueError(f"expected {key}=PATH on the command line, got none")
    console = Console(stderr=True)
    device = find_device(settings["device"])
    meta = checkpoint.read_meta(settings["checkpoint"])
    model = ocrl.load(settings["checkpoint"]).to(device)
    clips = read_clips(**data, image_size=model.encoder.backbone.image_size, batch_size=1)
    categories = []
    if not is_footage(data["path"]):
        categories = EpisodeStore(data["path"]).metadata.get("categories", [])
    with console.status("encoding"):
        explored = [
            explore(model, clip, name=f"clip {number}", categories=categories, device=device)
            for number, clip in enumerate(islice(clips, data["num_clips"]))
        ]
    details = {
        "checkpoint": f"{settings['checkpoint']} (step {meta['step']:,})",
        "data": str(data["path"]),
    }
    text = render_explorer(
        explored,
        title=f"Inside the slots: {meta['env']}",
        details=details,
        frames_per_second=settings["frames_per_second"],
    )
    path = output_dir() / "explorer.html"
    write_text(path, text)
    console.print(f"{path.name}: {path} ({len(text) / 1e6:.1f} MB)", soft_wrap=True)


if __name__ == "__main__":
    main()
