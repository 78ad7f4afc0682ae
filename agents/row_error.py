"""How wrong rows are that were foretold.

... leading axes, R rows, F features of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocrl.agents.rows import ObservedRows


class RowError:
    """Squares of what features are off by, or what outliers do not rule.

    Slots of an encoder do things that nothing foretells: one that is left over jumps to another
    end of the picture, and its looks with it. Squares of a few such jumps are more than those of
    all that agents bring about, so that a network under them learns what is usual and no more.
    Three things make less of them: beyond a limit errors count as they are and not their squares
    (Huber 1964), where a row is counts more than how it looks, and rows that hold little of the
    picture count little. As they stand by default, errors are squares.

    Args:
        rows: what is observed: which features tell where rows are, and how much they hold.
        delta: the limit, in deviations of a feature; None for none.
        place_weight: of features that tell where a row is, the others' being 1; it does nothing
            where `rows` knows of none.
        half_area: the share of the picture at which a row counts half of one that holds much; 0
            where all count alike, as they do where `rows` knows no areas.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        rows: ObservedRows,
        *,
        delta: float | None = None,
        place_weight: float = 1.0,
        half_area: float = 0.0,
    ) -> None:
        if delta is not None and delta <= 0:
            raise ValueError(f"expected agent.world.error.delta above 0, or null, got {delta}")
        if place_weight <= 0:
            raise ValueError(f"expected agent.world.error.place_weight above 0, got {place_weight}")
        if half_area < 0:
            raise ValueError(f"expected agent.world.error.half_area from 0 on, got {half_area}")
        self._rows, self._delta, self._half_area = rows, delta, half_area
        weights = torch.ones(rows.row_dim)
        weights[rows.places] = place_weight
        self._weights = None if place_weight == 1 or not rows.places else weights

    def __call__(self, predicted: Tensor, target: Tensor) -> Tensor:
        """How wrong (...) rows (...,R,F) are that were foretold, the mean over rows and features.

        With squares as long as no feature is off by more than `delta`.
        """
        error = (predicted - target).float()
        cost = error.square()
        if self._delta is not None:
            size = error.abs()
            cost = torch.where(size > self._delta, self._delta * (2 * size - self._delta), cost)
        if self._weights is not None:
            cost = cost * self._weights.to(cost.device)
        of_rows = cost.mean(-1)
        area = self._rows.area(target) if self._half_area else None
        if area is not None:
            of_rows = of_rows * area / (area + self._half_area)
        return of_rows.mean(-1)
