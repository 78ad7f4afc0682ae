import pytest
import torch

from ocrl.distributed import World
from ocrl.meter import Meter
from ocrl.types import Clip

ALONE = World(0, 1, torch.device("cpu"))


def test_reads_means_and_speeds_and_starts_afresh():
    meter = Meter()
    clip = Clip(torch.zeros(4, 3, 3, 2, 2), torch.zeros(4, 3, dtype=torch.bool))
    for value in (1.0, 2.0):
        meter.add(clip, {"a": torch.tensor(value)}, 10 * value, seconds=0.5, loading=0.05)
    figures = meter.read(ALONE)
    assert figures == pytest.approx(
        {
            "loss/a": 1.5,
            "train/gradient_norm": 15.0,
            "speed/clips_per_second": 8.0,
            "speed/frames_per_second": 24.0,
            "speed/loading_share": 0.1,
        }
    )
    meter.add(clip, {"a": torch.tensor(7.0)}, 1.0, seconds=1.0, loading=0.0)
    assert meter.read(ALONE)["loss/a"] == 7.0
