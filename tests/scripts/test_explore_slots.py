"""The script as a user starts it, on tiny untrained models."""

import json
import re

import pytest
import torch

from ocrl.visualize import write_mp4


def data_of(path):
    found = re.search(r'id="data">(.*?)</script>', path.read_text(), re.S)
    return json.loads(found[1])


def test_episodes_and_a_video_become_a_page(workplace):
    options = ("checkpoint=coded", "data.path=episodes", "data.clip_length=4", "data.num_clips=2")
    done = workplace.run("explore_slots", *options)
    assert done.returncode == 0, done.stderr
    data = data_of(workplace.output("explore_slots") / "explorer.html")
    assert len(data["clips"]) == 2
    clip = data["clips"][0]
    assert (clip["num_frames"], clip["num_slots"]) == (4, 4)
    assert len(clip["codes"][0][0]) == 2
    names = [one[0] for frame in clip["objects"] for one in frame if one]
    assert all(re.match(r"(agent|object) \d+$", name) for name in names)
    video = torch.randint(0, 256, (3, 3, 40, 60), dtype=torch.uint8)
    write_mp4(workplace.folder / "film.mp4", video, frames_per_second=8)
    done = workplace.run("explore_slots", "checkpoint=run", "data.path=film.mp4", "name=film")
    assert done.returncode == 0, done.stderr
    (clip,) = data_of(workplace.output("explore_slots", "film") / "explorer.html")["clips"]
    assert clip["objects"] is None and clip["num_frames"] == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("checkpoint=run", "data.path=nowhere"), "nowhere"),
        (("checkpoint=run", "data.path=episodes", "frames_per_second=0"), "frames_per_second"),
    ],
)
def test_mistakes_end_in_one_sentence(workplace, options, words):
    workplace.assert_mistake("explore_slots", "data.clip_length=4", *options, words=words)
