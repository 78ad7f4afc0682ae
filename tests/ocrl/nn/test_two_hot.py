import math

import pytest
import torch

from ocrl.nn.two_hot import TwoHot, symexp, symlog


def test_symlog_by_hand_and_back():
    values = torch.tensor([0.0, 1.0, -1.0, math.e - 1, 1e6], dtype=torch.float64)
    expected = torch.tensor([0.0, math.log(2), -math.log(2), 1.0, math.log(1e6 + 1)]).double()
    torch.testing.assert_close(symlog(values), expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(symexp(symlog(values)), values)


def test_shares_by_hand():
    # Bins at -2, -1, 0, 1, 2 in symlog; ln 2 = 0.6931 lies between 0 and 1.
    two_hot = TwoHot(5, low=-2.0, high=2.0)
    shares = two_hot(torch.tensor([1.0, 0.0, 1 - math.e, 100.0, -100.0]))
    expected = torch.tensor(
        [
            [0, 0, 1 - math.log(2), math.log(2), 0],
            [0, 0, 1, 0, 0],
            [0, 1, 0, 0, 0],
            [0, 0, 0, 0, 1],
            [1, 0, 0, 0, 0],
        ]
    )
    torch.testing.assert_close(shares, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(shares.sum(-1), torch.ones(5))


def test_the_loss_is_the_cross_entropy_with_the_shares():
    two_hot = TwoHot(7, low=-3.0, high=3.0)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 7, generator=generator)
    values = 5 * torch.randn(20, generator=generator)
    expected = -(two_hot(values) * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(two_hot.loss(logits, values), expected)
    by_hand = two_hot.loss(torch.zeros(7), torch.tensor(0.3))
    torch.testing.assert_close(by_hand, torch.tensor(math.log(7)))


def test_the_mean_of_the_shares_is_the_number():
    two_hot = TwoHot(255, low=-20.0, high=20.0)
    values = torch.tensor([0.0, 1.0, -0.1, 0.5, 37.0, -1e4])
    logits = two_hot(values).clamp(min=1e-12).log()
    torch.testing.assert_close(two_hot.mean(logits), values, rtol=1e-4, atol=1e-5)
    assert two_hot.mean(torch.zeros(3, 255)).abs().max() < 1e-4


def test_float32_under_autocast_and_bad_bins_refused():
    two_hot = TwoHot(5, low=-2.0, high=2.0)
    logits = torch.randn(3, 5, dtype=torch.bfloat16)
    assert two_hot.mean(logits).dtype == torch.float32
    assert two_hot.loss(logits, torch.zeros(3)).dtype == torch.float32
    with pytest.raises(ValueError, match=r"got 1 from -2.0 to 2.0"):
        TwoHot(1, low=-2.0, high=2.0)
    with pytest.raises(ValueError, match="from low to a higher one"):
        TwoHot(3, low=2.0, high=2.0)
