"""The script as a user starts it, on tiny untrained models."""

import pytest
import torch
from PIL import Image

from ocrl.visualize import write_mp4

EPISODES = ("data.path=episodes", "data.clip_length=4", "data.num_clips=2")


def test_editing_and_looking(workplace):
    edits = "edits=[swap 1@0 2@3, copy 0@0 new@1, drop 3@3]"
    for model in ("run", "palette"):
        done = workplace.run("edit_slots", f"checkpoint={model}", *EPISODES, edits, f"name={model}")
        assert done.returncode == 0, done.stderr
        assert "frame 3: slots 0, 1, 2" in done.stderr
        assert "frame 1: slots 0, 1, 2, 3, 4" in done.stderr
        with Image.open(workplace.output("edit_slots", model) / "edit.png") as image:
            width, height = image.size
        # Frames 0, 1 and 3; five rows with names, and below what colours mean.
        assert 50 < width - 3 * 164 < 150 and 0 < height - (26 + 5 * 164) < 80


def test_codes_and_a_video(workplace):
    video = torch.randint(0, 256, (3, 3, 40, 60), dtype=torch.uint8)
    write_mp4(workplace.folder / "clip.mp4", video, frames_per_second=8)
    options = ("checkpoint=coded", "data.path=clip.mp4", "name=codes")
    done = workplace.run("edit_slots", *options, "edits=[code 1@2 0:3,code 1@2 1:2]")
    assert done.returncode == 0, done.stderr
    assert "1 (3 2)" in done.stderr
    assert (workplace.output("edit_slots", "codes") / "edit.png").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("checkpoint=run", "edits=[drop 4@0]"), "slot of frame 0 among 0, 1, 2, 3, got 4"),
        (("checkpoint=run", "edits=[drop 0@4]"), "frame in [0, 4), got 4"),
        (("checkpoint=run", "edits=[code 0@0 0:1]"), "got SAVi, whose slots have none"),
        (("checkpoint=coded", "edits=[code 0@0 1:3]"), "a code of group 1 in [0, 3), got 3"),
        (("checkpoint=features", "edits=[]"), "which makes features"),
        (("checkpoint=run", "data.clip=7"), "no such clip"),
    ],
)
def test_mistakes_end_in_one_sentence(workplace, options, words):
    workplace.assert_mistake("edit_slots", *EPISODES, *options, words=words)
