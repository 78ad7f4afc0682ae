import pytest
import torch
from torch import nn

from ocrl.diagnose import find_non_finite


class Bad(nn.Module):
    """Fails on purpose, in the forward or the backward pass."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        if self.kind == "forward":
            return x * self.weight / 0.0
        if self.kind == "backward":
            return (x * 0.0 * self.weight).sqrt()
        return x * self.weight


def model_with(kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), Bad(kind), nn.Linear(3, 1))


def test_names_the_first_module_whose_output_is_not_finite():
    model = model_with("forward")
    where = find_non_finite(model, lambda: model(torch.ones(2, 3)).sum())
    assert "output" in where and "1 (Bad)" in where


def test_names_the_module_that_a_bad_gradient_reaches_first():
    model = model_with("backward")
    where = find_non_finite(model, lambda: model(torch.ones(2, 3)).sum())
    assert ("gradient" in where and "0 (Linear)" in where) or "1.weight" in where


def test_names_weights_that_are_already_broken():
    model = model_with("none")
    with torch.no_grad():
        model[2].weight[0, 0] = torch.inf
    assert find_non_finite(model, lambda: model(torch.ones(2, 3)).sum()) == (
        "the weights 2.weight are not finite"
    )


def test_names_the_loss_where_every_module_is_finite():
    model = model_with("none")
    where = find_non_finite(model, lambda: model(torch.ones(2, 3)).sum() * torch.nan)
    assert "the loss itself" in where


def test_says_so_where_nothing_is_found_and_leaves_no_hooks():
    model = model_with("none")
    assert "was finite" in find_non_finite(model, lambda: model(torch.ones(2, 3)).sum())
    assert not any(module._forward_hooks for module in model.modules())


def test_leaves_no_hooks_behind_an_error():
    model = model_with("none")
    with pytest.raises(RuntimeError):
        find_non_finite(model, lambda: model(torch.ones(2, 5)).sum())
    assert not any(module._forward_hooks for module in model.modules())
