"""Hungarian matching of batches of sets: objects to slots, predictions to targets, over time.

B batch, T frames, K slots, D slot size, R rows (objects), S columns (segments or slots).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def hungarian(score: Tensor, *, maximize: bool = False) -> Tensor:
    """Match rows one to one to columns, so that the sum over the matched pairs is extreme.

    Solved exactly on the CPU for each matrix of the batch; no gradient flows through it. Where
    there are more rows than columns, the rows left over are those whose absence costs least.

    Args:
        score: (...,R,S), costs, or gains with `maximize`.
        maximize: look for the largest sum instead of the smallest.

    Returns:
        (...,R) int64 on the device of `score`: the column of each row, -1 for a row without one.

    Raises:
        ValueError: if `score` has fewer than two dimensions, or is not finite.
    """
    if score.ndim < 2:
        raise ValueError(f"score must be (...,R,S), got shape {tuple(score.shape)}")
    values = score.detach().to("cpu", torch.float64).reshape(-1, *score.shape[-2:]).numpy()
    if not np.isfinite(values).all():
        raise ValueError("expected finite scores to match by, got NaN or infinity among them")
    columns = np.full(values.shape[:2], -1, dtype=np.int64)
    for matched, matrix in zip(columns, values, strict=True):
        rows, chosen = linear_sum_assignment(matrix, maximize=maximize)
        matched[rows] = chosen
    return torch.from_numpy(columns).view(score.shape[:-1]).to(score.device)


def matched_scores(score: Tensor, columns: Tensor) -> Tensor:
    """Read the score of each matched pair.

    Args:
        score: (...,R,S).
        columns: (...,R) from `hungarian`.

    Returns:
        (...,R), zero for rows without a partner; differentiable in `score`.
    """
    taken = score.gather(-1, columns.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return taken.masked_fill(columns < 0, 0.0)


def slot_distances(slots: Tensor, others: Tensor) -> Tensor:
    """Mean squared differences (...,K,K) of every slot (...,K,D) with every other (...,K,D)."""
    product = slots @ others.mT
    length, other = slots.square().sum(-1), others.square().sum(-1)
    distance = length[..., :, None] + other[..., None, :] - 2 * product
    return distance.clamp(min=0) / slots.shape[-1]


def align_over_time(slots: Tensor) -> Tensor:
    """Give the slots of each frame the order of those of the frame before that they are nearest to.

    For encoders that see each frame by itself, whose slots have no order of their own.

    Args:
        slots: (B,T,K,D).

    Returns:
        (B,T,K) int64: `slots` gathered by it along K are aligned, those of the first frame as they
        are.

    Raises:
        ValueError: if the slots are not finite.
    """
    frames = slots.detach()
    # Who follows whom does not depend on the order of a frame, so that all are matched at once.
    followers = hungarian(slot_distances(frames[:, :-1].double(), frames[:, 1:].double()))
    first = torch.arange(slots.shape[2], device=slots.device).expand(len(slots), -1)
    orders = [first]
    for follower in followers.unbind(1):
        orders.append(follower.gather(1, orders[-1]))
    return torch.stack(orders, dim=1)
