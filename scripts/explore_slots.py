"""Write a page to look inside slots: click an object and see the slot that holds it.

python scripts/explore_slots.py checkpoint=outputs/pretrain_slots/NAME data.path=EPISODES
"""

# The launcher comes first: it reads the command line, and sets memory and threads, before torch is
# loaded.
from launch import Command, output_dir

command = Command("explore", globals(), goes_on=False)

# isort: split
from itertools import islice

from measuring import subject_of
from omegaconf import DictConfig

from ocrl.data.sources import is_footage, read_clips
from ocrl.data.store import EpisodeStore
from ocrl.inspection.explorer import explore, render_explorer
from ocrl.page import write_text


@command
def main(config: DictConfig) -> None:
    """Load, encode, write."""
    subject = subject_of(config)
    data = subject.data
    clips = read_clips(**data, image_size=subject.image_size, batch_size=1)
    categories = []
    if not is_footage(data["path"]):
        categories = EpisodeStore(data["path"]).metadata.get("categories", [])
    with subject.console.status("encoding"):
        explored = [
            explore(
                subject.model,
                clip,
                name=f"clip {number}",
                categories=categories,
                device=subject.device,
            )
            for number, clip in enumerate(islice(clips, data["num_clips"]))
        ]
    text = render_explorer(
        explored,
        title=f"Inside the slots: {subject.env}",
        details=subject.details,
        frames_per_second=subject.settings["frames_per_second"],
    )
    path = output_dir() / "explorer.html"
    write_text(path, text)
    subject.say([f"{len(text) / 1e6:.1f} MB"], [path])


if __name__ == "__main__":
    main()
