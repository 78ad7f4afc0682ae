"""Average precision of predicted sets of objects, pooled over all frames that were predicted.

I frames, K predictions and M objects of a frame, P coordinates, F factors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DISTANCES = (math.inf, 1.0, 0.5, 0.25, 0.125, 0.0625)
"""What is published for CLEVR, in its units."""


@dataclass(frozen=True)
class PredictedSets:
    """Predictions and objects of frames.

    Attributes:
        presence: (I,K) how sure each prediction is that there is its object.
        classes: (I,K,F) int64, the likeliest class of each factor.
        coordinates: (I,K,P) in the unit of distances.
        is_object: (I,M) bool, which rows of the truth are objects.
        true_classes: (I,M,F) int64.
        true_coordinates: (I,M,P).
    """

    presence: Tensor
    classes: Tensor
    coordinates: Tensor
    is_object: Tensor
    true_classes: Tensor
    true_coordinates: Tensor

    def __post_init__(self) -> None:
        frames = {len(value) for value in vars(self).values()}
        if len(frames) != 1:
            raise ValueError(f"expected predictions and objects of as many frames, got {frames}")
        if not self.presence.isfinite().all():
            raise ValueError("expected finite presence to sort by, got NaN or infinity among it")

    def nearest(self) -> tuple[Tensor, Tensor]:
        """The nearest object of a prediction's own frame that agrees with it in every factor.

        Returns:
            Its row (I,K) and distance (I,K), float64; the distance is infinite without one.
        """
        is_same = (self.classes[:, :, None] == self.true_classes[:, None]).all(-1)
        is_same &= self.is_object[:, None]
        apart = self.coordinates.double()[:, :, None] - self.true_coordinates.double()[:, None]
        distance = apart.square().sum(-1).sqrt().masked_fill(~is_same, math.inf)
        nearest, row = distance.min(dim=-1)
        return row, nearest


def average_precision(
    sets: PredictedSets, *, distances: Sequence[float] = DISTANCES
) -> dict[float, float]:
    """Average precision at each distance, as Locatello et al. (2020, arXiv 2006.15055) count it.

    Predictions of all frames are sorted by presence, the surest first; equal ones stay in the order
    of frames and slots. Each is right if the nearest object of its frame that agrees in every
    factor is nearer than the distance (any object that agrees, for an infinite one) and no surer
    prediction had that object; it does not turn to another object instead. The value is the area
    under the envelope of precision over recall, of all objects of the pool. It depends on the pool:
    it is no mean over frames.

    Returns:
        Distance to a value in [0,1]; NaN if there is no object.
    """
    row, nearest = sets.nearest()
    order = sets.presence.flatten().argsort(descending=True, stable=True)
    frame = torch.arange(len(row), device=row.device)[:, None]
    num_rows = sets.is_object.shape[1]
    owner = (row + frame * num_rows).flatten()[order]
    apart = nearest.flatten()[order]
    num_objects = int(sets.is_object.sum())
    values = {}
    for distance in distances:
        is_near = apart.isfinite() if math.isinf(distance) else apart < distance
        is_right = _is_first(owner, is_near, sets.is_object.numel())
        values[distance] = _area(is_right, num_objects)
    return values


def _is_first(owner: Tensor, is_near: Tensor, num_owners: int) -> Tensor:
    """Which of the near ones (I*K,) is the first to name its object."""
    rank = torch.arange(len(owner), device=owner.device)
    first = torch.full((num_owners,), len(owner), device=owner.device)
    first.scatter_reduce_(0, owner[is_near], rank[is_near], "amin")
    return is_near & (first[owner] == rank)


def _area(is_right: Tensor, num_objects: int) -> float:
    """Area under the envelope of precision over recall, of sorted predictions (I*K,)."""
    if num_objects == 0:
        return math.nan
    hits = is_right.double().cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1, device=hits.device)
    envelope = precision.flip(0).cummax(0).values.flip(0)
    # Recall grows by the same step at every hit, and there only.
    return float(envelope[is_right].sum() / num_objects)
