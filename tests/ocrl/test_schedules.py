import math

import pytest
import torch
from torch import nn

from ocrl.schedules import MovingAverage, learning_rate_factor


def factor(schedule, *, step=10**6, progress=0.0, warmup_steps=0, final_fraction=0.1):
    return learning_rate_factor(
        schedule,
        step=step,
        progress=progress,
        warmup_steps=warmup_steps,
        final_fraction=final_fraction,
    )


@pytest.mark.parametrize("schedule", ["cosine", "exponential"])
def test_decays_from_one_to_the_final_fraction(schedule):
    values = [factor(schedule, progress=p / 10) for p in range(11)]
    assert values[0] == pytest.approx(1.0) and values[-1] == pytest.approx(0.1)
    assert values == sorted(values, reverse=True)


def test_golden_values_at_half_time():
    assert factor("cosine", progress=0.5) == pytest.approx(0.55)
    assert factor("exponential", progress=0.5) == pytest.approx(math.sqrt(0.1))
    assert factor("constant", progress=0.5) == 1.0


def test_warmup_is_linear_and_reaches_one():
    values = [factor("constant", step=step, warmup_steps=4) for step in range(6)]
    assert values == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "arguments", [("linear", 0.1), ("cosine", 1.5), ("exponential", 0.0), ("cosine", -0.1)]
)
def test_refuses_what_makes_no_sense(arguments):
    with pytest.raises(ValueError, match="expected"):
        factor(arguments[0], final_fraction=arguments[1])


class Two(nn.Module):
    def __init__(self, weight, buffer):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), float(weight)))
        self.register_buffer("buffer", torch.tensor(buffer))


def test_moving_average_follows_the_recurrence_and_copies_buffers():
    average = MovingAverage(Two(0, 0.0), decay=0.5)
    for step in (100, 101):
        average.update(Two(8, float(step)), step=step)
    torch.testing.assert_close(average.state["weight"], torch.full((2,), 6.0))
    assert average.state["buffer"] == 101


def test_moving_average_forgets_the_start_quickly():
    average = MovingAverage(Two(0, 0), decay=0.999)
    average.update(Two(1, 0), step=1)
    torch.testing.assert_close(average.state["weight"], torch.full((2,), 1 - 2 / 11))


def test_moving_average_does_not_touch_its_source():
    source = Two(0, 0)
    MovingAverage(source, decay=0.5).update(Two(1, 1), step=1)
    assert source.weight.sum().item() == 0.0 and source.buffer.item() == 0
    with pytest.raises(ValueError, match="decay"):
        MovingAverage(source, decay=1.0)
