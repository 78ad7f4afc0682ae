"""What counts of rows that were foretold wrongly."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict

from ocrl.agents.row_error import RowError
from ocrl.agents.rows import ObservedRows

LOOKS, GEOMETRY = 2, 7
X, Y, AREA = 2, 3, 4
"""Places in a row of looks and of what is read of the geometry of its mask."""


def observed(*, has_vector=False):
    space = Box(-np.inf, np.inf, (3, LOOKS + GEOMETRY), np.float32)
    parts = Dict({"slots": space, "mission": Box(0, 1, (2,), np.float32)})
    return ObservedRows(parts if has_vector else space, plain_key="slots", num_boxed=GEOMETRY)


def plain():
    return ObservedRows(Box(-np.inf, np.inf, (3, 5), np.float32), plain_key="slots")


def test_by_default_errors_are_squares():
    for rows in (observed(), plain()):
        predicted, target = torch.randn(2, 4, 6, 3, 5)
        expected = (predicted - target).square().mean((-2, -1))
        torch.testing.assert_close(RowError(rows)(predicted, target), expected)


def test_beyond_the_limit_errors_count_as_they_are():
    error = RowError(plain(), delta=0.5)
    target, off = torch.zeros(7, 3, 5), torch.tensor([-4.0, -0.5, -0.1, 0.0, 0.2, 0.5, 3.0])
    predicted = off[:, None, None].expand(7, 3, 5).clone().requires_grad_()
    found = error(predicted, target)
    # Twice the limit times the size, less its square; squares within.
    expected = [3.75, 0.25, 0.01, 0.0, 0.04, 0.25, 2.75]
    torch.testing.assert_close(found, torch.tensor(expected))
    found.sum().backward()
    slope = predicted.grad.sum((1, 2))
    torch.testing.assert_close(slope, torch.tensor([-1.0, -1.0, -0.2, 0.0, 0.4, 1.0, 1.0]))


def test_where_rows_are_counts_more_than_looks():
    target = torch.zeros(1, 3, 5)
    costs = []
    for column in range(5):
        predicted = target.clone()
        predicted[0, 1, column] = 1.0
        costs.append(RowError(observed(), place_weight=8.0)(predicted, target).item() * 15)
    assert costs == pytest.approx([1, 1, 8, 8, 1])
    # Where no feature is known to be a place, none is weighted.
    predicted, target = torch.randn(2, 1, 3, 5)
    torch.testing.assert_close(
        RowError(plain(), place_weight=8.0)(predicted, target), RowError(plain())(predicted, target)
    )


def test_rows_that_hold_little_of_the_picture_count_little():
    rows = observed(has_vector=True)
    slots = torch.rand(4, 3, LOOKS + GEOMETRY)
    slots[..., LOOKS + 2] = torch.tensor([0.0, 0.01, 0.99])
    rows.measure([slots.numpy()])
    target = rows({"slots": slots, "mission": torch.ones(4, 2)})
    error = RowError(rows, half_area=0.01)
    costs = []
    for row in range(4):
        predicted = target.clone()
        predicted[:, row, X] += 1.0
        costs.append(error(predicted, target)[0].item() * 4 * rows.row_dim)
    # The last is a vector's, which holds no part of the picture and counts as all of it.
    assert costs == pytest.approx([0.0, 0.5, 0.99, 1 / 1.01], abs=1e-3)
    # Where areas are not known, all rows count.
    predicted, target = torch.randn(2, 1, 3, 5)
    torch.testing.assert_close(
        RowError(plain(), half_area=0.1)(predicted, target), RowError(plain())(predicted, target)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("delta", 0.0), ("delta", -1.0), ("place_weight", 0.0), ("half_area", -0.1)],
)
def test_numbers_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"agent.world.error.{name} .*got {value}"):
        RowError(plain(), **{name: value})
