"""Swap, copy, drop and recode slots, and draw what comes of it.

python scripts/edit_slots.py checkpoint=RUN data.path=EPISODES 'edits=[swap 2@0 5@3, drop 1@0]'
"""

# The launcher comes first: it reads the command line, and sets memory and threads, before torch is
# loaded.
from launch import Command, output_dir

command = Command("edit", globals(), goes_on=False)

# isort: split
from itertools import islice
from typing import Any

import torch
from measuring import subject_of
from omegaconf import DictConfig

from ocrl.data.sources import read_clips
from ocrl.inspection.edit import apply_edits, parse_edit, scenes_of
from ocrl.inspection.edit_strip import describe_scene, edit_picture
from ocrl.page import write_bytes
from ocrl.types import Clip
from ocrl.visualize import spread, to_png


@command
def main(config: DictConfig) -> None:
    """Load, encode, edit, draw, write."""
    subject = subject_of(config)
    settings, model = subject.settings, subject.model
    edits = [parse_edit(text) for text in settings["edits"]]
    clip = chosen_clip(subject.data, subject.image_size)
    with torch.inference_mode():
        before = scenes_of(model.encode(clip.to(subject.device)))
        after = apply_edits(
            before,
            edits,
            encoder=model.encoder,
            moves_attention=settings["moves_attention"],
        )
        shown = sorted({frame for edit in edits for frame in edit.frames})
        frames = shown or spread(len(before), settings["num_shown"])
        picture = edit_picture(model.decoder, clip.video[0], before, after, frames=frames)
    path = output_dir() / "edit.png"
    write_bytes(path, to_png(picture))
    subject.say((describe_scene(after[frame], frame=frame) for frame in frames), [path])


def chosen_clip(data: dict[str, Any], image_size: tuple[int, int]) -> Clip:
    """The clip of that number, of those that `evaluate_discovery.py` would read."""
    data = dict(data)
    number = data.pop("clip")
    clips = read_clips(**data, image_size=image_size, presets=[], batch_size=1)
    found = None if number < 0 else next(islice(clips, number, None), None)
    if found is None:
        raise ValueError(f"expected the number of a clip in data.clip, got {number}: no such clip")
    return found


if __name__ == "__main__":
    main()
