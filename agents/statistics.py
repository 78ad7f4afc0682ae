"""Estimates from few runs: means of the middle half, chances to be better, bootstrap intervals.

N values, R runs of one method, M tasks. The estimators are those of Agarwal et al., "Deep
Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS 2021, arXiv:2108.13264).
Their package `rliable` brings matplotlib, statsmodels, arch and pandas along, and its version 1.2
does not start beside pandas 3, so they are written out here; the tests hold its numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from einops import rearrange
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
"""Of every interval."""
_NUM_RESAMPLES = 2000


def overall_mean(scores: ArrayLike) -> NDArray[np.float64]:
    """The mean (...) of all runs on all tasks (...,R,M)."""
    return _finite(scores).mean(axis=(-2, -1))


def interquartile_mean(scores: ArrayLike) -> NDArray[np.float64]:
    """The mean of the middle half of all runs on all tasks (section 4.3 of the paper).

    A quarter of the scores, rounded down, is cut off at each end: fewer than four scores have
    their plain mean.

    Args:
        scores: (...,R,M).

    Returns:
        (...).

    Raises:
        ValueError: if there is no score or one is not finite.
    """
    flat = np.sort(rearrange(_finite(scores), "... r m -> ... (r m)"), axis=-1)
    cut = flat.shape[-1] // 4
    return flat[..., cut : flat.shape[-1] - cut].mean(axis=-1)


def probability_of_improvement(scores: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """How likely a run is better than one of another method, on a task drawn at random.

    The Mann-Whitney U statistic over the number of pairs of runs, averaged over tasks; equal scores
    count one half (section 4.3 of the paper).

    Args:
        scores: (...,R,M).
        others: (...,R',M) of the other method on the same tasks.

    Returns:
        (...), in [0,1].

    Raises:
        ValueError: if the numbers of tasks differ, or a score is not finite.
    """
    left, right = _finite(scores), _finite(others)
    if left.shape[-1] != right.shape[-1]:
        raise ValueError(f"expected scores on {left.shape[-1]} tasks, got {right.shape[-1]}")
    signs = np.sign(left[..., :, None, :] - right[..., None, :, :])
    return 0.5 + 0.5 * signs.mean(axis=(-3, -2, -1))


def stratified_interval(
    statistic: Callable[..., NDArray[np.float64]], *samples: ArrayLike, seed: int = 0
) -> tuple[float, float] | None:
    """A percentile bootstrap interval that draws runs anew within each task.

    Args:
        statistic: one of the above: from arrays (...,R,M) to (...).
        *samples: (R,M), one for each argument of `statistic`; drawn independently.
        seed: of the draws.

    Returns:
        Its lower and its upper end; None where no sample has two runs, so that nothing is known of
        the spread.

    Raises:
        ValueError: if a sample has another number of axes, or a score is not finite.
    """
    arrays = [_finite(sample) for sample in samples]
    for array in arrays:
        if array.ndim != 2:
            raise ValueError(f"expected scores (R,M), got shape {array.shape}")
    if all(len(array) < 2 for array in arrays):
        return None
    rng = np.random.default_rng(seed)
    drawn = [
        np.take_along_axis(a[None], rng.integers(len(a), size=(_NUM_RESAMPLES, *a.shape)), axis=1)
        for a in arrays
    ]
    low, high = np.quantile(statistic(*drawn), _tails())
    return float(low), float(high)


def pearson(values: ArrayLike, others: ArrayLike) -> float | None:
    """Pearson's correlation of pairs (N,); None of fewer than three, or where one side is equal.

    Raises:
        ValueError: if a number is not finite, or there are not as many on both sides.
    """
    first, second = _finite(values), _finite(others)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"expected pairs (N,), got {first.shape} and {second.shape}")
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def pearson_interval(correlation: float, number: int) -> tuple[float, float] | None:
    """The interval of a correlation of N pairs, by Fisher's z; None of fewer than four.

    The tanh of what is normal with a deviation of 1 / sqrt(N - 3) about the atanh (Fisher 1921).
    """
    if number < 4:
        return None
    centre = np.arctanh(np.clip(correlation, -1 + 1e-12, 1 - 1e-12))
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) / np.sqrt(number - 3)
    return float(np.tanh(centre - half)), float(np.tanh(centre + half))


def mean_interval(
    values: ArrayLike,
    *,
    transform: Callable[[NDArray[np.float64]], float] | None = None,
    seed: int = 0,
) -> NDArray[np.float64] | None:
    """A percentile bootstrap interval of the mean over the first axis.

    Where all values are equal, as when every episode succeeds, it is a point.

    Args:
        values: (N,...): episodes, or runs with a curve each, which is drawn as a whole.
        transform: what is asked of the mean (...), such as a score of success rates.
        seed: of the draws.

    Returns:
        (2,...), or (2,) of what `transform` gives: the lower and the upper end; None if there are
        fewer than two values.

    Raises:
        ValueError: if a value is not finite.
    """
    array = _finite(values)
    if len(array) < 2:
        return None
    rng = np.random.default_rng(seed)
    # How often each value is drawn says all that a mean asks for, in one product. Divided after
    # it, means of zeros and ones stay in [0,1].
    counts = rng.multinomial(len(array), np.full(len(array), 1 / len(array)), size=_NUM_RESAMPLES)
    means = np.tensordot(counts, array, axes=1) / len(array)
    if transform is not None:
        means = np.array([transform(mean) for mean in means])
    return np.quantile(means, _tails(), axis=0)


def _tails() -> list[float]:
    return [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"expected finite scores, got {array.tolist()}")
    return array
