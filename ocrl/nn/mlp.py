"""Multi-layer perceptrons.

... any leading axes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


def make_activation(name: str) -> nn.Module:
    """Build an activation by its name.

    Raises:
        ValueError: if there is no such activation.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]()


class MLP(nn.Module):
    """Linear layers with an activation between them, and optionally a LayerNorm in front.

    Args:
        in_dim: size of the last axis of the input.
        hidden_dims: sizes of the hidden layers; empty gives one linear layer.
        out_dim: size of the last axis of the output.
        activation: one of `ACTIVATIONS`.
        norm_first: normalise the input.
        bias: whether the layers have a bias.
    """

    def __init__(
        self,
        in_dim: int,
        *,
        hidden_dims: Sequence[int],
        out_dim: int,
        activation: str = "relu",
        norm_first: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        sizes = [in_dim, *hidden_dims, out_dim]
        layers: list[nn.Module] = [nn.LayerNorm(in_dim, bias=bias)] if norm_first else []
        for i in range(len(sizes) - 1):
            if i > 0:
                layers.append(make_activation(activation))
            layers.append(nn.Linear(sizes[i], sizes[i + 1], bias=bias))
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (...,in_dim) to (...,out_dim)."""
        return self.layers(inputs)
