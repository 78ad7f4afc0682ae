"""The estimators against what follows from their definitions and against rliable's numbers."""

import numpy as np
import pytest
from scipy import stats

from ocrl.agents.statistics import (
    interquartile_mean,
    mean_interval,
    overall_mean,
    pearson,
    pearson_interval,
    probability_of_improvement,
    stratified_interval,
)

OURS = np.array([[0.91, 0.12, 0.50], [0.95, 0.33, 0.42], [0.20, 0.28, 0.61], [0.88, 0.28, 0.77]])
OTHERS = np.array([[0.25, 0.28, 0.40], [0.95, 0.30, 0.39], [0.31, 0.10, 0.66]])


def test_golden_numbers_of_rliable():
    # rliable 1.2.0: metrics.aggregate_iqm, metrics.probability_of_improvement.
    assert interquartile_mean(OURS) == pytest.approx(0.485, abs=1e-12)
    assert interquartile_mean(OTHERS) == pytest.approx(0.336, abs=1e-12)
    assert probability_of_improvement(OURS, OTHERS) == pytest.approx(0.625, abs=1e-12)
    # rliable.library.get_interval_estimates with 50,000 resamples, here 2,000.
    assert stratified_interval(interquartile_mean, OURS) == pytest.approx((0.335, 0.6483), abs=0.02)
    both = stratified_interval(probability_of_improvement, OURS, OTHERS)
    assert both == pytest.approx((0.3611, 0.875), abs=0.03)


def test_the_middle_half():
    assert interquartile_mean([[0.0, 1.0, 2.0, 100.0]]) == 1.5
    assert interquartile_mean([[0.0], [4.0], [5.0]]) == 3.0
    assert interquartile_mean(np.arange(8.0).reshape(2, 4)) == 3.5
    several = np.random.default_rng(0).random((5, 3, 4))
    expected = [stats.trim_mean(one, 0.25, axis=None) for one in several]
    np.testing.assert_allclose(interquartile_mean(several), expected)
    np.testing.assert_allclose(overall_mean(several), [one.mean() for one in several])


def test_chances_to_be_better():
    assert probability_of_improvement([[2.0], [3.0]], [[0.0], [1.0]]) == 1.0
    assert probability_of_improvement([[1.0], [1.0]], [[1.0]]) == 0.5
    assert probability_of_improvement([[1.0, 0.0]], [[0.0, 1.0]]) == 0.5
    scores, others = np.random.default_rng(0).integers(0, 4, (2, 5, 3)).astype(float)
    u = [stats.mannwhitneyu(*pair).statistic for pair in zip(scores.T, others.T, strict=True)]
    assert probability_of_improvement(scores, others) == pytest.approx(np.mean(u) / 25)


def test_the_interval_of_a_mean_is_the_textbooks():
    values = np.random.default_rng(3).normal(2.0, 1.5, 400)
    half = 1.959964 * values.std() / 20
    low, high = mean_interval(values)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert stratified_interval(overall_mean, values[:, None]) == pytest.approx(
        (low, high), abs=0.02
    )


def test_an_interval_of_what_follows_from_a_mean():
    values = np.random.default_rng(3).random((50, 2))
    low, high = mean_interval(values.sum(axis=1))
    assert mean_interval(values, transform=np.sum) == pytest.approx((low, high))


@pytest.mark.parametrize("number", [3, 49, 50])
def test_means_of_ones_are_one(number):
    asked = []
    mean_interval(np.ones((number, 2)), transform=lambda mean: asked.append(mean) or 0.0)
    assert (np.array(asked) == 1).all()


def test_curves_are_drawn_whole():
    # Where one point is low the other is high: the same draws give both.
    curves = np.array([[0.0, 1.0], [0.25, 0.75], [1.0, 0.0]])
    low, high = mean_interval(curves)
    assert low.shape == (2,) and (low < high).all()
    np.testing.assert_allclose(low, 1.0 - high[::-1], atol=1e-12)


def test_runs_are_drawn_within_their_task():
    # Each task's runs are alike: nothing changes, unless runs cross tasks.
    scores = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert stratified_interval(overall_mean, scores) == (0.5, 0.5)
    assert stratified_interval(interquartile_mean, scores) == (0.5, 0.5)


def test_one_run_has_no_interval_and_seeds_repeat():
    assert mean_interval([0.5]) is None
    assert stratified_interval(overall_mean, [[0.5, 0.7]]) is None
    assert stratified_interval(overall_mean, OURS, seed=1) == stratified_interval(
        overall_mean, OURS, seed=1
    )
    assert stratified_interval(overall_mean, OURS, seed=1) != stratified_interval(
        overall_mean, OURS, seed=2
    )


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: interquartile_mean([]), "expected finite scores"),
        (lambda: mean_interval([0.0, np.nan]), "expected finite scores"),
        (lambda: probability_of_improvement([[1.0, 2.0]], [[1.0]]), "2 tasks, got 1"),
        (lambda: stratified_interval(overall_mean, np.zeros((2, 2, 2))), r"got shape \(2, 2, 2\)"),
    ],
)
def test_mistakes(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_a_correlation_and_its_interval():
    x = np.array([0.1, 0.4, 0.5, 0.9, 0.3])
    assert pearson(x, 3 * x + 1) == pytest.approx(1.0)
    assert pearson(x, -x) == pytest.approx(-1.0)
    y = np.array([0.2, 0.1, 0.7, 0.8, 0.3])
    expected = ((x - x.mean()) * (y - y.mean())).mean() / (x.std() * y.std())
    assert pearson(x, y) == pytest.approx(expected)
    assert pearson(x[:2], y[:2]) is None and pearson(x, np.ones(5)) is None
    # Of 28 pairs the deviation of z is 0.2.
    low, high = pearson_interval(0.6, 28)
    assert (low, high) == pytest.approx((0.29237, 0.79510), abs=1e-5)
    assert pearson_interval(0.6, 3) is None
    assert pearson_interval(1.0, 10)[0] < 1.0
    with pytest.raises(ValueError, match="finite"):
        pearson(x, [*y[:4], np.nan])
    with pytest.raises(ValueError, match="pairs"):
        pearson(x, y[:4])
