"""Returns of imagined rewards against cases worked by hand, and their scale."""

import numpy as np
import pytest
import torch

from ocrl.agents.returns import PercentileScale, lambda_returns


def test_a_case_worked_by_hand():
    reward = torch.tensor([[1.0, 0.0, 2.0]])
    discount = torch.tensor([[0.5, 0.8, 1.0]])
    value = torch.tensor([[4.0, 10.0, 3.0]])
    # R_2 = 2 + 1 * 3 = 5; R_1 = 0 + 0.8 (0.25 * 10 + 0.75 * 5) = 5; R_0 = 1 + 0.5 (1 + 3.75).
    expected = torch.tensor([[3.375, 5.0, 5.0]])
    torch.testing.assert_close(lambda_returns(reward, discount, value, 0.75), expected)


def test_without_lambda_only_the_next_value_counts_and_with_it_only_the_last():
    torch.manual_seed(0)
    reward, value = torch.randn(5, 7), torch.randn(5, 7)
    discount = torch.rand(5, 7)
    one = lambda_returns(reward, discount, value, 0.0)
    torch.testing.assert_close(one, reward + discount * value)
    every = lambda_returns(reward, discount, value, 1.0)
    sums = torch.zeros(5)
    for h in reversed(range(7)):
        sums = reward[:, h] + discount[:, h] * (value[:, -1] if h == 6 else sums)
        torch.testing.assert_close(every[:, h], sums)


def test_nothing_is_seen_beyond_the_end_of_an_episode():
    reward, value = torch.ones(1, 4), torch.full((1, 4), 100.0)
    discount = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    assert lambda_returns(reward, discount, value, 1.0)[0, :2].tolist() == [2.0, 1.0]


def test_a_gradient_reaches_rewards_discounts_and_values():
    inputs = [torch.rand(2, 3, requires_grad=True) for _ in range(3)]
    lambda_returns(*inputs, 0.9)[:, 0].sum().backward()
    assert all((tensor.grad.abs() > 0).all() for tensor in inputs)


def scale(**changes):
    return PercentileScale(**{"low": 0.05, "high": 0.95, "decay": 0.9, "floor": 1.0} | changes)


def test_the_scale_is_the_distance_of_percentiles_that_move_slowly():
    one = scale()
    assert float(one()) == 1.0
    first = torch.arange(101.0)
    one.update(first)
    torch.testing.assert_close(one.ends, torch.tensor([5.0, 95.0]))
    second = 10 * torch.arange(101.0).reshape(1, 101)
    one.update(second)
    low, high = np.quantile(second.numpy(), [0.05, 0.95])
    expected = torch.tensor([0.9 * 5 + 0.1 * low, 0.9 * 95 + 0.1 * high], dtype=torch.float32)
    torch.testing.assert_close(one.ends, expected)
    torch.testing.assert_close(one(), expected[1] - expected[0])


def test_small_returns_are_not_blown_up():
    one = scale()
    one.update(torch.linspace(0.0, 1e-3, 50))
    assert float(one()) == 1.0


def test_one_wild_return_changes_little():
    one = scale()
    returns = torch.rand(1000) * 4
    one.update(returns)
    calm = float(one())
    other = scale()
    other.update(torch.cat([returns, torch.tensor([1e6])]))
    assert float(other()) == pytest.approx(calm, rel=0.01)


def test_the_scale_is_saved():
    one, other = scale(), scale()
    one.update(torch.randn(100) * 30)
    other.load_state_dict(one.state_dict())
    one.update(torch.ones(3))
    other.update(torch.ones(3))
    assert torch.equal(one(), other()) and float(one()) > 1


@pytest.mark.parametrize(
    "changes", [{"low": 0.95, "high": 0.05}, {"decay": 1.0}, {"floor": 0.0}, {"high": 1.5}]
)
def test_arguments_out_of_range(changes):
    with pytest.raises(ValueError, match="expected percentiles 0 <= low < high <= 1"):
        scale(**changes)
