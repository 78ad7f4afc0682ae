import pytest
import torch
from torch import nn
from torch.nn import functional

from ocrl.nn.mlp import MLP, make_activation


def test_layers_in_order() -> None:
    mlp = MLP(3, hidden_dims=[5, 4], out_dim=2, activation="gelu", norm_first=True)
    kinds = [type(layer) for layer in mlp.layers]
    assert kinds == [nn.LayerNorm, nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    assert mlp(torch.randn(2, 7, 3)).shape == (2, 7, 2)


def test_values() -> None:
    mlp = MLP(3, hidden_dims=[5], out_dim=2)
    inputs = torch.randn(4, 3)
    first, last = mlp.layers[0], mlp.layers[2]
    torch.testing.assert_close(mlp(inputs), last(functional.relu(first(inputs))))


def test_no_hidden_layer_is_linear() -> None:
    mlp = MLP(3, hidden_dims=[], out_dim=2)
    assert [type(layer) for layer in mlp.layers] == [nn.Linear]


def test_without_bias_zero_stays_zero() -> None:
    mlp = MLP(3, hidden_dims=[5], out_dim=2, norm_first=True, bias=False)
    assert not any("bias" in name for name, _ in mlp.named_parameters())
    assert mlp(torch.zeros(1, 3)).abs().max() == 0


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match="got 'swish'"):
        make_activation("swish")
