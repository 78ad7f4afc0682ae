"""A transformer over the tokens of a frame that reads slots, in parallel or token by token.

B batch, K slots, N tokens, E size of the transformer, L layers, H heads, E = H * d.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ocrl.nn.mlp import MLP


@dataclass(frozen=True)
class TokenCache:
    """What later tokens read of earlier ones, and of the slots; `SlotTransformer.step` fills it.

    Attributes:
        tokens: keys and values of each layer (2,B,H,N,d); those of tokens to come are unset.
        slots: keys and values of each layer (2,B,H,K,d).
    """

    tokens: list[Tensor]
    slots: list[Tensor]


class TokenAttention(nn.Module):
    """Self-attention whose query, key and value maps are one product, without biases.

    Args:
        dim: E.
        num_heads: H.
    """

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def _heads(self, sequence: Tensor) -> Tensor:
        pattern = "b n (three h d) -> three b h n d"
        return rearrange(self.to_qkv(sequence), pattern, three=3, h=self.num_heads)

    def forward(self, sequence: Tensor, *, is_causal: bool) -> Tensor:
        """Mix (B,N,E)."""
        query, key, value = self._heads(sequence).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
        return self.to_out(rearrange(mixed, "b h n d -> b n (h d)"))

    def step(self, token: Tensor, cache: Tensor, *, position: int) -> Tensor:
        """Mix the token (B,1,E) at a position with those before it, and put it into the cache."""
        projected = self._heads(token)
        cache[..., position, :] = projected[1:, ..., 0, :]
        key, value = cache[..., : position + 1, :].unbind(0)
        mixed = functional.scaled_dot_product_attention(projected[0], key, value)
        return self.to_out(rearrange(mixed, "b h n d -> b n (h d)"))


class SlotReading(nn.Module):
    """Cross-attention of tokens to slots that also says how much of which slot was read.

    Args:
        dim: E.
        num_heads: H.
    """

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def keys_and_values(self, slots: Tensor) -> Tensor:
        """Of the slots (B,K,E): (2,B,H,K,d)."""
        return rearrange(self.to_kv(slots), "b k (two h d) -> two b h k d", two=2, h=self.num_heads)

    def forward(self, sequence: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Read keys and values (2,B,H,K,d) with (B,N,E).

        Returns:
            (B,N,E), and the attention of each head (B,H,N,K) in float32, sums to 1 over K.
        """
        query = rearrange(self.to_q(sequence), "b n (h d) -> b h n d", h=self.num_heads)
        key, value = slots.unbind(0)
        logits = query @ key.mT * key.shape[-1] ** -0.5
        attn = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        mixed = attn.to(value.dtype) @ value
        return self.to_out(rearrange(mixed, "b h n d -> b n (h d)")), attn


class SlotTransformerLayer(nn.Module):
    """Self-attention, cross-attention to slots and an MLP, each residual with its norm in front.

    Args:
        dim: E.
        num_heads: H.
        mlp_dim: hidden size of the MLP.
        dropout: share of values dropped in training after each part.
        is_first: leave out the norm before the self-attention.
        output_gain: of the initial weights of the last map of each part.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        mlp_dim: int,
        dropout: float,
        is_first: bool,
        output_gain: float,
    ) -> None:
        super().__init__()
        self.norm_self = nn.Identity() if is_first else nn.LayerNorm(dim)
        self.attention = TokenAttention(dim, num_heads=num_heads)
        self.norm_slots = nn.LayerNorm(dim)
        self.reading = SlotReading(dim, num_heads=num_heads)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = MLP(dim, hidden_dims=[mlp_dim], out_dim=dim)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.attention.to_qkv, self.reading.to_q, self.reading.to_kv):
            for weight in linear.weight.split(dim):
                nn.init.xavier_uniform_(weight)
        last = cast(nn.Linear, self.mlp.layers[-1])
        for linear in (self.attention.to_out, self.reading.to_out, last):
            nn.init.xavier_uniform_(linear.weight, gain=output_gain)

    def forward(self, sequence: Tensor, slots: Tensor, *, is_causal: bool) -> tuple[Tensor, Tensor]:
        """Mix (B,N,E), reading the layer's keys and values of slots (2,B,H,K,d).

        Returns:
            (B,N,E), and the attention to slots (B,H,N,K).
        """
        inner = self.attention(self.norm_self(sequence), is_causal=is_causal)
        return self._read(sequence + self.dropout(inner), slots)

    def step(self, token: Tensor, cache: Tensor, slots: Tensor, *, position: int) -> Tensor:
        """Mix one token (B,1,E), see `TokenAttention.step`."""
        inner = self.attention.step(self.norm_self(token), cache, position=position)
        return self._read(token + self.dropout(inner), slots)[0]

    def _read(self, sequence: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        read, attn = self.reading(self.norm_slots(sequence), slots)
        sequence = sequence + self.dropout(read)
        return sequence + self.dropout(self.mlp(self.norm_mlp(sequence))), attn


class SlotTransformer(nn.Module):
    """The decoder transformer of SLATE (Singh et al. 2022, arXiv 2110.11405, section 2.3).

    Pre-norm layers, a norm at the end. As in SLATE's code, which SPOT and DIAS took over, the norm
    before the first self-attention is on the residual stream itself. What differs: dropout is
    after each part and not on the weights of the attention, which lets attention run as one
    fused kernel.

    Args:
        dim: E.
        num_layers: L.
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
        self.norm_inputs = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(
            SlotTransformerLayer(
                dim,
                num_heads=num_heads,
                mlp_dim=mlp_dim,
                dropout=dropout,
                is_first=index == 0,
                output_gain=(3 * num_layers) ** -0.5,
            )
            for index in range(num_layers)
        )
        self.norm_outputs = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, sequence: Tensor, slots: Tensor, *, is_causal: bool) -> tuple[Tensor, Tensor]:
        """Mix a whole sequence.

        Args:
            sequence: (B,N,E).
            slots: (B,K,E).
            is_causal: let a token see those up to itself only.

        Returns:
            (B,N,E), and how much the last layer reads each slot (B,K,N): the mean over heads, in
            float32, sums to 1 over K.
        """
        sequence = self.norm_inputs(self.dropout(sequence))
        for layer in self._layers():
            keys_and_values = layer.reading.keys_and_values(slots)
            sequence, attn = layer(sequence, keys_and_values, is_causal=is_causal)
        return self.norm_outputs(sequence), attn.mean(1).mT

    def start(self, slots: Tensor, *, num_tokens: int) -> TokenCache:
        """The cache for `num_tokens` tokens that will read the slots (B,K,E)."""
        read = [layer.reading.keys_and_values(slots) for layer in self._layers()]
        shape = (*read[0].shape[:3], num_tokens, read[0].shape[-1])
        return TokenCache([read[0].new_empty(shape) for _ in read], read)

    def step(self, token: Tensor, cache: TokenCache, *, position: int) -> Tensor:
        """Mix the token (B,1,E) at a position after all before it; the cache is changed in place.

        Returns:
            (B,1,E), as `forward` would give it at that position of a causal sequence.
        """
        token = self.norm_inputs(self.dropout(token))
        for layer, tokens, slots in zip(self._layers(), cache.tokens, cache.slots, strict=True):
            token = layer.step(token, tokens, slots, position=position)
        return self.norm_outputs(token)

    def _layers(self) -> Iterable[SlotTransformerLayer]:
        return cast(Iterable[SlotTransformerLayer], self.layers)
