"""A transformer over a sequence in which a token sees those before it, in parallel or one by one.

B batch, N tokens, E size of the transformer, H heads, E = H * d.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from ocrl.nn.mlp import MLP
from ocrl.nn.slot_transformer import TokenAttention


class CausalLayer(nn.Module):
    """Self-attention and an MLP, each residual with its norm in front.

    Args:
        dim: E.
        num_heads: H.
        mlp_dim: hidden size of the MLP.
        dropout: share of values dropped in training after each part.
    """

    def __init__(self, dim: int, *, num_heads: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(dim)
        self.attention = TokenAttention(dim, num_heads=num_heads)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = MLP(dim, hidden_dims=[mlp_dim], out_dim=dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, sequence: Tensor) -> Tensor:
        """Mix (B,N,E)."""
        inner = self.attention(self.norm_self(sequence), is_causal=True)
        return self._think(sequence + self.dropout(inner))

    def step(self, token: Tensor, cache: Tensor, *, position: int) -> Tensor:
        """Mix one token (B,1,E), see `TokenAttention.step`."""
        inner = self.attention.step(self.norm_self(token), cache, position=position)
        return self._think(token + self.dropout(inner))

    def _think(self, sequence: Tensor) -> Tensor:
        return sequence + self.dropout(self.mlp(self.norm_mlp(sequence)))


class CausalTransformer(nn.Module):
    """A decoder-only transformer (Radford et al. 2019, GPT-2): pre-norm layers, a norm at the end.

    It differs in that its attention has no biases and its MLP is a ReLU's.

    Args:
        dim: E.
        num_layers: how many layers.
        num_heads: H.
        mlp_dim: hidden size of the layers' MLP.
        dropout: share of values dropped in training, of the input and after each part.

    Raises:
        ValueError: if `num_heads` does not divide `dim`.
    """

    def __init__(
        self, dim: int, *, num_layers: int, num_heads: int, mlp_dim: int, dropout: float
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim, got {num_heads} heads and dim {dim}")
        self.cache_shape = (num_heads, dim // num_heads)
        self.layers = nn.ModuleList(
            CausalLayer(dim, num_heads=num_heads, mlp_dim=mlp_dim, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm_outputs = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, sequence: Tensor) -> Tensor:
        """Mix a whole sequence (B,N,E)."""
        sequence = self.dropout(sequence)
        for layer in self.layers:
            sequence = layer(sequence)
        return self.norm_outputs(sequence)

    def start(self, batch_size: int, *, num_tokens: int) -> list[Tensor]:
        """An empty cache for `num_tokens` tokens: keys and values of each layer (2,B,H,N,d)."""
        num_heads, head_dim = self.cache_shape
        shape = (2, batch_size, num_heads, num_tokens, head_dim)
        return [self.norm_outputs.weight.new_empty(shape) for _ in self.layers]

    def step(self, token: Tensor, cache: list[Tensor], *, position: int) -> Tensor:
        """Mix the token (B,1,E) at a position after all before it; the cache is changed in place.

        Returns:
            (B,1,E), as `forward` would give it at that position.
        """
        token = self.dropout(token)
        layers = cast(Iterable[CausalLayer], self.layers)
        for layer, kept in zip(layers, cache, strict=True):
            token = layer.step(token, kept, position=position)
        return self.norm_outputs(token)
