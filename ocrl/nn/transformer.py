"""Transformer blocks.

B batch, L sequence, M context tokens.
"""

from __future__ import annotations

from torch import Tensor, nn

from ocrl.nn.attention import MultiHeadAttention
from ocrl.nn.mlp import MLP


class TransformerBlock(nn.Module):
    """Self-attention, optional cross-attention and a two-layer MLP, each residual.

    Vaswani et al. (2017, arXiv 1706.03762); with `norm_first` the LayerNorm stands before each
    part and not after the sum.

    Args:
        dim: size of the sequence's vectors.
        num_heads: heads of both attentions.
        mlp_dim: hidden size of the MLP.
        norm_first: normalise before each part.
        context_dim: size of the context tokens; no cross-attention if None.
        activation: of the MLP.
        dropout: share of values dropped in training, in the attention weights and after each part.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        mlp_dim: int,
        norm_first: bool,
        context_dim: int | None = None,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.self_attention = MultiHeadAttention(dim, num_heads=num_heads, dropout=dropout)
        self.norm_self = nn.LayerNorm(dim)
        self.cross_attention: MultiHeadAttention | None = None
        if context_dim is not None:
            self.cross_attention = MultiHeadAttention(
                dim, num_heads=num_heads, context_dim=context_dim, dropout=dropout
            )
            self.norm_cross = nn.LayerNorm(dim)
        self.mlp = MLP(dim, hidden_dims=[mlp_dim], out_dim=dim, activation=activation)
        self.norm_mlp = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        sequence: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Mix (B,L,dim), reading (B,M,context_dim) where the block has a cross-attention.

        Args:
            sequence: (B,L,dim).
            context: (B,M,context_dim).
            mask: of the self-attention, see `MultiHeadAttention.forward`.
            is_causal: see `MultiHeadAttention.forward`.

        Returns:
            (B,L,dim).

        Raises:
            ValueError: if a context is given and not expected, or the other way round.
        """
        if (context is None) != (self.cross_attention is None):
            raise ValueError(
                "expected a context if and only if context_dim was given, "
                f"got {'none' if context is None else tuple(context.shape)}"
            )
        if self.norm_first:
            inner = self.self_attention(self.norm_self(sequence), mask=mask, is_causal=is_causal)
            sequence = sequence + self.dropout(inner)
            if self.cross_attention is not None:
                inner = self.cross_attention(self.norm_cross(sequence), context)
                sequence = sequence + self.dropout(inner)
            return sequence + self.dropout(self.mlp(self.norm_mlp(sequence)))
        inner = self.self_attention(sequence, mask=mask, is_causal=is_causal)
        sequence = self.norm_self(sequence + self.dropout(inner))
        if self.cross_attention is not None:
            inner = self.cross_attention(sequence, context)
            sequence = self.norm_cross(sequence + self.dropout(inner))
        return self.norm_mlp(sequence + self.dropout(self.mlp(sequence)))
