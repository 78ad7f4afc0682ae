"""Statistics of codes and factors against numbers worked out by hand, and scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import mutual_info_score

from ocrl.inspection.disentanglement import (
    code_factor_counts,
    discretise,
    disentanglement,
    entropy,
    normalised_mutual_information,
    purity,
    shuffled_information,
    value_given_code,
)


def test_counts_by_hand():
    codes = torch.tensor([[0, 1], [0, 1], [2, 0], [2, 1]])
    factors = torch.tensor([[0], [1], [1], [1]])
    counts = code_factor_counts(codes, factors, num_codes=3, num_values=2)
    assert counts.shape == (2, 1, 3, 2)
    assert counts[0, 0].tolist() == [[1, 1], [0, 0], [0, 2]]
    assert counts[1, 0].tolist() == [[0, 1], [1, 2], [0, 0]]
    table = value_given_code(counts)[0, 0]
    assert table[0].tolist() == [0.5, 0.5] and table[2].tolist() == [0, 1]
    assert table[1].isnan().all()
    # Group 0: codes 0 and 2 have at best 1 and 2 of 4; group 1: codes 0 and 1 have 1 and 2.
    assert purity(counts)[:, 0].tolist() == [0.75, 0.75]


def test_entropy_by_hand():
    assert float(entropy(torch.tensor([2, 2]))) == pytest.approx(math.log(2))
    assert float(entropy(torch.tensor([1, 3]))) == pytest.approx(
        0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    )
    assert entropy(torch.tensor([0, 0])).isnan()


def test_information_by_hand():
    # The code tells the value: I = H(value). Two codes may say the same value.
    told = torch.tensor([[2, 0], [0, 1], [0, 1]])
    assert float(normalised_mutual_information(told)) == pytest.approx(1.0)
    # Independent.
    assert float(normalised_mutual_information(torch.tensor([[2, 2], [1, 1]]))) == pytest.approx(0)
    # p(c) = 1/2; p(v|c=0) = (1, 0), p(v|c=1) = (1/2, 1/2): I = H(3/4, 1/4) - 1/2 log 2.
    half = torch.tensor([[2, 0], [1, 1]])
    values = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    expected = (values - 0.5 * math.log(2)) / values
    assert float(normalised_mutual_information(half)) == pytest.approx(expected)
    # A constant factor has nothing to tell.
    assert float(normalised_mutual_information(torch.tensor([[3, 0], [2, 0]]))) == 0


def test_information_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 5, (300, 2), generator=generator)
    factors = (codes[:, :1] + torch.randint(0, 3, (300, 3), generator=generator)) % 4
    counts = code_factor_counts(codes, factors, num_codes=5, num_values=4)
    found = normalised_mutual_information(counts)
    for i in range(2):
        for k in range(3):
            mutual = mutual_info_score(codes[:, i], factors[:, k])
            spread = mutual_info_score(factors[:, k], factors[:, k])
            assert float(found[i, k]) == pytest.approx(mutual / spread)
    left = shuffled_information(codes, factors, num_codes=5, num_values=4)
    assert (left[0] < 0.1).all() and (left[0] < found[0]).all()


def test_one_group_per_factor_is_disentangled():
    scores = disentanglement(torch.tensor([[0.9, 0.0], [0.0, 0.5]]))
    assert scores.modularity.tolist() == [1, 1] and scores.completeness.tolist() == [1, 1]
    assert scores.mean_modularity == scores.mean_completeness == 1
    assert scores.gap == pytest.approx(0.7)


def test_everything_everywhere_is_not():
    scores = disentanglement(torch.full((3, 2), 0.4))
    assert scores.modularity.abs().max() < 1e-12 and scores.completeness.abs().max() < 1e-12
    assert scores.gap == pytest.approx(0)


def test_disentanglement_by_hand():
    # Rows: (3/4, 1/4) with weight 0.4 and (0, 1) with weight 0.6, of 1.0 in all.
    scores = disentanglement(torch.tensor([[0.3, 0.1], [0.0, 0.6]]))
    first = 1 - (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(2)
    assert scores.modularity.tolist() == pytest.approx([first, 1.0])
    assert scores.mean_modularity == pytest.approx(0.4 * first + 0.6)
    # Columns: (1, 0) and (1/7, 6/7).
    second = 1 - (math.log(7) / 7 + 6 / 7 * math.log(7 / 6)) / math.log(2)
    assert scores.completeness.tolist() == pytest.approx([1.0, second])
    assert scores.mean_completeness == pytest.approx((1 + second) / 2)
    assert scores.gap == pytest.approx((0.3 + 0.5) / 2)


def test_a_silent_group_counts_for_nothing():
    scores = disentanglement(torch.tensor([[0.5, 0.0], [0.0, 0.0]]))
    assert scores.modularity[1].isnan() and scores.mean_modularity == 1
    assert scores.completeness[1].isnan() and scores.mean_completeness == 1
    alone = disentanglement(torch.tensor([[0.5, 0.5]]))
    assert alone.completeness.isnan().all() and alone.mean_modularity == pytest.approx(0)
    assert alone.gap == pytest.approx(0.5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"codes in \[0, 2\), got \[0, 2\]"):
        code_factor_counts(torch.tensor([[0], [2]]), torch.zeros(2, 1), num_codes=2, num_values=1)
    with pytest.raises(ValueError, match=r"codes \(P,G\) and factors"):
        code_factor_counts(torch.zeros(3, 1), torch.zeros(2, 1), num_codes=2, num_values=1)
    with pytest.raises(ValueError, match="not negative"):
        disentanglement(torch.tensor([[-0.1]]))
    with pytest.raises(ValueError, match="not negative"):
        disentanglement(torch.tensor([[math.nan]]))


def test_factors_become_countable():
    columns = {
        "size": torch.tensor([[0.28], [0.2], [0.28], [0.2]]),
        "fixed": torch.ones(4, 1),
        "speed": torch.tensor([[0.0], [0.5], [0.9], [3.0]]),
        "position": torch.tensor([[0.1, 0.1], [0.1, 0.2], [0.9, 0.5], [1.0, 1.0]]),
    }
    found = discretise(columns, num_bins=3, max_values=3)
    assert set(found) == {"size", "speed", "position"}
    assert found["size"] == ((found["size"].values), ("0.2", "0.28"))
    assert found["size"].values.tolist() == [1, 0, 1, 0]
    assert found["speed"].values.tolist() == [0, 0, 0, 2]
    assert found["speed"].names == ("0 to 1", "1 to 2", "2 to 3")
    assert found["position"].values.tolist() == [0, 0, 1, 2]
    assert found["position"].names == ("x0 y0", "x2 y1", "x2 y2")
