"""Attention of slots over past frames: in parallel, or frame by frame from keys and values.

B batch, T new frames, P frames kept, S = P + T, K tokens of a frame (slots, and the action where
it is one), E size of the transformer, H heads, d = E / H.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ocrl.nn.mlp import MLP
from ocrl.nn.slot_transformer import TokenAttention
from ocrl.nn.temporal import INVISIBLE

Interaction = Literal["joint", "object_then_time", "none"]

_LONGEST_PERIOD = 100.0
"""Frames over 2 pi of the slowest rotation: distances in time are told apart up to about that."""


def frame_ages(is_first: Tensor, age: Tensor) -> Tensor:
    """Frames since the episode began (B,T), 0 on its first.

    Args:
        is_first: (B,T) bool.
        age: (B,) frames of the episode that were read before.
    """
    index = torch.arange(is_first.shape[1], device=is_first.device)
    start = torch.where(is_first, index, -1).cummax(1).values
    return torch.where(start < 0, age[:, None] + index, index - start)


@dataclass(frozen=True)
class Clock:
    """When the tokens of new frames stand, and what they may see; one serves every layer.

    Attributes:
        cosine: (B,T,1,1,d), each entry twice.
        sine: (B,T,1,1,d), the first half negative.
        mask: (B,T,S) to add to logits: 0, or `INVISIBLE`.
    """

    cosine: Tensor
    sine: Tensor
    mask: Tensor

    def rotate(self, heads: Tensor) -> Tensor:
        """Turn queries or keys (B,T,K,H,d) by their age."""
        lower, upper = heads.chunk(2, dim=-1)
        turned = heads * self.cosine + torch.cat([upper, lower], dim=-1) * self.sine
        return turned.to(heads.dtype)


def make_clock(ages: Tensor, *, num_kept: int, window: int, head_dim: int) -> Clock:
    """Tell the time of new frames.

    Rotary positions (Su et al. 2021, arXiv 2104.09864) of the age of a frame, the same for all
    its tokens: only distances in time count and nothing tells slots apart, keys stay valid when
    the window moves on, and any length goes.

    Args:
        ages: (B,T) of the new frames, see `frame_ages`.
        num_kept: P.
        window: frames seen, the present one included.
        head_dim: d, even.
    """
    num_frames = ages.shape[1]
    half = torch.arange(head_dim // 2, device=ages.device, dtype=torch.float32)
    frequency = _LONGEST_PERIOD ** (-half / max(1, head_dim // 2 - 1))
    angle = (ages[..., None].float() * frequency)[:, :, None, None]
    cosine, sine = angle.cos(), angle.sin()
    frame = torch.arange(num_kept, num_kept + num_frames, device=ages.device)
    distance = frame[:, None] - torch.arange(num_kept + num_frames, device=ages.device)
    reach = ages.clamp(max=window - 1)[..., None]
    is_visible = (distance >= 0) & (distance <= reach)
    mask = torch.where(is_visible, 0.0, INVISIBLE)
    return Clock(torch.cat([cosine, cosine], dim=-1), torch.cat([-sine, sine], dim=-1), mask)


class HistoryAttention(nn.Module):
    """Causal self-attention over the frames of a window, of each token line or of all together.

    The projections have no bias and are one product. Keys are kept turned by their age.

    Args:
        dim: E.
        num_heads: H.
        is_joint: attend to all tokens of all frames seen, in place of the token's own past.
    """

    def __init__(self, dim: int, *, num_heads: int, is_joint: bool) -> None:
        super().__init__()
        self.num_heads, self.is_joint = num_heads, is_joint
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: Tensor, past: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            tokens: (B,T,K,E), normalised.
            past: keys and values (B,2,P,K,H,d) of earlier frames, see `empty`.
            clock: of the new frames.

        Returns:
            Updates (B,T,K,E), and the keys and values (B,2,S,K,H,d) of all frames.
        """
        heads = rearrange(
            self.to_qkv(tokens), "b t k (three h d) -> three b t k h d", three=3, h=self.num_heads
        )
        query, key = clock.rotate(heads[0]), clock.rotate(heads[1])
        kept = torch.stack([key, heads[2]], dim=1)
        if past.shape[2]:
            kept = torch.cat([past.to(kept.dtype), kept], dim=2)
        mask = clock.mask.to(query.dtype)[:, None]
        if self.is_joint:
            mixed = self._mix_all(query, kept, mask)
        else:
            mixed = self._mix_lines(query, kept, mask)
        return self.to_out(mixed), kept

    def empty(self, batch_size: int) -> Tensor:
        """Keys and values (B,2,0,1,H,d) before any frame."""
        dim = self.to_out.weight.shape[0] // self.num_heads
        return self.to_out.weight.new_empty(batch_size, 2, 0, 1, self.num_heads, dim)

    def _mix_all(self, query: Tensor, kept: Tensor, mask: Tensor) -> Tensor:
        num_tokens = query.shape[2]
        mask = mask.repeat_interleave(num_tokens, 2).repeat_interleave(num_tokens, 3)
        query, key, value = (
            rearrange(part, "b t k h d -> b h (t k) d") for part in (query, *kept.unbind(1))
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return rearrange(mixed, "b h (t k) d -> b t k (h d)", k=num_tokens)

    def _mix_lines(self, query: Tensor, kept: Tensor, mask: Tensor) -> Tensor:
        if query.shape[1] == 1:
            return self._mix_step(query, kept, mask)
        # Lines are heads of one attention: of five dimensions there is no fused kernel.
        num_tokens = query.shape[2]
        query, key, value = (
            rearrange(part, "b t k h d -> b (k h) t d") for part in (query, *kept.unbind(1))
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return rearrange(mixed, "b (k h) t d -> b t k (h d)", k=num_tokens)

    def _mix_step(self, query: Tensor, kept: Tensor, mask: Tensor) -> Tensor:
        # One frame reads a few: nothing is moved, and no kernel is begun for each line.
        key, value = kept.unbind(1)
        logits = (query * key).sum(-1) * query.shape[-1] ** -0.5 + mask[:, 0, 0, :, None, None]
        weight = logits.softmax(dim=1).to(value.dtype)
        return (weight[..., None] * value).sum(1, keepdim=True).flatten(-2)


class HistoryLayer(nn.Module):
    """A transformer layer over slots in time; each part is residual with its norm in front.

    `joint` is self-attention over all tokens of the frames seen and an MLP, as SlotFormer's
    layers. `object_then_time` is that over the tokens of each frame and then over each token's own
    past, each with its MLP, as OCVP-Seq's. `none` is over each token's own past only.

    Args:
        dim: E.
        num_heads: H.
        mlp_dim: hidden size of the MLPs.
        interaction: `joint`, `object_then_time` or `none`.

    Raises:
        ValueError: if `interaction` is unknown, or `num_heads` does not divide `dim` into even
            parts.
    """

    def __init__(self, dim: int, *, num_heads: int, mlp_dim: int, interaction: Interaction) -> None:
        super().__init__()
        if interaction not in get_args(Interaction):
            raise ValueError(
                f"expected interaction in {get_args(Interaction)}, got {interaction!r}"
            )
        if dim % (2 * num_heads):
            raise ValueError(
                f"expected num_heads that divide dim into even parts, got {num_heads} heads and "
                f"dim {dim}"
            )
        self.among_objects: nn.ModuleDict | None = None
        if interaction == "object_then_time":
            self.among_objects = nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(dim),
                    "attention": TokenAttention(dim, num_heads=num_heads),
                    "mlp": _mlp(dim, mlp_dim),
                }
            )
        self.norm = nn.LayerNorm(dim)
        self.attention = HistoryAttention(dim, num_heads=num_heads, is_joint=interaction == "joint")
        self.mlp = _mlp(dim, mlp_dim)

    def forward(self, tokens: Tensor, past: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        """Mix (B,T,K,E), see `HistoryAttention.forward`."""
        if self.among_objects is not None:
            parts = self.among_objects
            frames = parts["norm"](tokens).flatten(0, 1)
            mixed = parts["attention"](frames, is_causal=False).view(tokens.shape)
            tokens = tokens + mixed
            tokens = tokens + parts["mlp"](tokens)
        update, kept = self.attention(self.norm(tokens), past, clock)
        tokens = tokens + update
        return tokens + self.mlp(tokens), kept


class History(nn.Module):
    """Layers that read a window of past frames, and what they keep of it.

    Args:
        dim: E.
        num_layers: how many layers.
        num_heads: H.
        mlp_dim: hidden size of the layers' MLPs.
        window: frames that a layer sees, the present one included; what the frame before knew of
            earlier ones reaches further, layer by layer.
        interaction: see `HistoryLayer`.

    Raises:
        ValueError: if `window` is not positive, and as `HistoryLayer`.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        window: int,
        interaction: Interaction,
    ) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"expected a window of at least 1 frame, got {window}")
        self.window, self.head_dim = window, dim // num_heads
        self.layers = nn.ModuleList(
            HistoryLayer(dim, num_heads=num_heads, mlp_dim=mlp_dim, interaction=interaction)
            for _ in range(num_layers)
        )

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """The age (B,) of the next frame, and empty keys and values of each layer."""
        state = {
            f"layer{index}": layer.attention.empty(batch_size)
            for index, layer in enumerate(self._layers())
        }
        state["age"] = state["layer0"].new_zeros(batch_size, dtype=torch.int64)
        return state

    def forward(
        self, tokens: Tensor, state: dict[str, Tensor], is_first: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mix the tokens (B,T,K,E) of new frames, all at once, with those kept.

        Args:
            tokens: (B,T,K,E).
            state: from `initial_state` or an earlier call.
            is_first: (B,T) bool.
        """
        ages = frame_ages(is_first, state["age"])
        past = state["layer0"].shape[2]
        clock = make_clock(ages, num_kept=past, window=self.window, head_dim=self.head_dim)
        after = {"age": ages[:, -1] + 1}
        for index, layer in enumerate(self._layers()):
            tokens, kept = layer(tokens, state[f"layer{index}"], clock)
            surplus = kept.shape[2] - (self.window - 1)
            after[f"layer{index}"] = kept[:, :, surplus:] if surplus > 0 else kept
        return tokens, after

    def _layers(self) -> Iterable[HistoryLayer]:
        return cast(Iterable[HistoryLayer], self.layers)


def _mlp(dim: int, hidden_dim: int) -> MLP:
    return MLP(dim, hidden_dims=[hidden_dim], out_dim=dim, activation="gelu", norm_first=True)
