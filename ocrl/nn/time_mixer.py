"""What carries slots over time inside a block: the interface, and attention.

B batch, T query frames, S key frames, K slots, D slot size, H heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ocrl.nn.attention import MultiHeadAttention
from ocrl.nn.temporal import (
    INVISIBLE,
    RelativeTimeBias,
    frame_distances,
    visible_cache,
    visible_frames,
)


class TimeMixer(nn.Module, ABC):
    """What carries slots over time inside a block, in parallel or step by step.

    A scan of `step` gives what `forward` gives. A mixer handed to an encoder is a pattern: the
    encoder copies it into each block and draws new weights for each copy.

    Attributes:
        mixes_slots: whether slots of different index meet here, so that a block needs no
            interaction of its own between the slots of a frame.
    """

    mixes_slots: bool

    @abstractmethod
    def reset_parameters(self, gain: float) -> None:
        """Draw new weights, those of the residual branch's output scaled by `gain`."""

    @abstractmethod
    def initial_state(self, batch_size: int, *, num_slots: int) -> Any:
        """The state before any frame: a pytree of tensors with leading B."""

    @abstractmethod
    def forward(self, slots: Tensor, segments: Tensor) -> Tensor:
        """Mix normalised slots (B,T,K,D) within the episodes (B,T); returns updates."""

    @abstractmethod
    def step(self, slots: Tensor, state: Any, age: Tensor) -> tuple[Tensor, Any]:
        """Mix the slots (B,K,D) of one frame into the state.

        Args:
            slots: (B,K,D), normalised.
            state: from `initial_state` or the step before.
            age: (B,) frames since the episode began; 0 starts afresh.

        Returns:
            Updates (B,K,D), and the next state.
        """


class TimeAttention(TimeMixer):
    """Causal self-attention of each slot over its own past, or of all slots over all pasts.

    Singh et al. 2024 (arXiv 2402.17077, appendix D.1.3): learned bias per head and distance, no
    biases in the projections. Differs from the paper: a frame sees `window` frames, not all.

    Args:
        dim: D.
        num_heads: H.
        window: frames seen, the present one included.
        max_distance: see `ocrl.nn.temporal.RelativeTimeBias`.
        across_slots: the paper's joint slot interaction: attend to all slots of all frames seen,
            at K times the memory, in place of attention over time and then over slots.

    Raises:
        ValueError: if `window` is not positive.
    """

    def __init__(
        self, dim: int, *, num_heads: int, window: int, max_distance: int, across_slots: bool
    ) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"expected a time window >= 1, got {window}")
        self.mixes_slots = across_slots
        self.window = window
        self.attention = MultiHeadAttention(dim, num_heads=num_heads, bias=False)
        self.time_bias = RelativeTimeBias(num_heads, max_distance=max_distance)
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float) -> None:
        """Draw new weights, see `TimeMixer`."""
        reset_attention(self.attention, gain)
        self.time_bias.reset_parameters()

    def initial_state(self, batch_size: int, *, num_slots: int) -> Any:
        """Keys and values (B,window-1,K,2D) of the frames seen last, the latest last."""
        weight = self.attention.to_k.weight
        return weight.new_zeros(batch_size, self.window - 1, num_slots, 2 * weight.shape[0])

    def forward(self, slots: Tensor, segments: Tensor) -> Tensor:
        """Mix in parallel, see `TimeMixer`."""
        visible = visible_frames(segments, self.window)
        return self._attend(slots, self._keys_and_values(slots), visible)

    def step(self, slots: Tensor, state: Any, age: Tensor) -> tuple[Tensor, Any]:
        """Mix one frame, see `TimeMixer`."""
        slots = slots[:, None]
        present = self._keys_and_values(slots)
        cache = torch.cat([state.to(present.dtype), present], dim=1)
        update = self._attend(slots, cache, visible_cache(age, self.window))
        return update[:, 0], cache[:, 1:]

    def _keys_and_values(self, slots: Tensor) -> Tensor:
        return torch.cat([self.attention.to_k(slots), self.attention.to_v(slots)], dim=-1)

    def _attend(self, slots: Tensor, cache: Tensor, visible: Tensor) -> Tensor:
        num_queries, num_keys, num_slots = slots.shape[1], cache.shape[1], slots.shape[2]
        distance = frame_distances(num_queries, num_keys, device=slots.device).clamp(min=0)
        bias = rearrange(self.time_bias(num_keys)[distance], "t s h -> h t s")
        mask = torch.where(visible[:, None], bias, INVISIBLE)
        if self.mixes_slots:
            mask = mask.repeat_interleave(num_slots, 2).repeat_interleave(num_slots, 3)
            lines = "b t k (h d) -> b h (t k) d"
        else:
            mask = mask.repeat_interleave(num_slots, 0)
            lines = "b t k (h d) -> (b k) h t d"
        query = self.attention.to_q(slots)
        heads = self.attention.num_heads
        keys, values = cache.chunk(2, dim=-1)
        query, keys, values = (rearrange(part, lines, h=heads) for part in (query, keys, values))
        mixed = functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask.to(query.dtype)
        )
        left, right = lines.split(" -> ")
        update: Tensor = self.attention.to_out(
            rearrange(mixed, f"{right} -> {left}", k=num_slots, t=num_queries)
        )
        return update


def reset_attention(attention: MultiHeadAttention, gain: float) -> None:
    """Draw new weights as PSB does: Xavier-uniform, the output map scaled by `gain`."""
    for layer in (attention.to_q, attention.to_k, attention.to_v):
        nn.init.xavier_uniform_(layer.weight)
    nn.init.xavier_uniform_(attention.to_out.weight, gain=gain)
