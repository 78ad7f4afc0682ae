"""Slot dynamics as their authors run them: every step reads the whole history again.

B batch, T frames, K slots, D slot size, A action size, E size of the transformer, H steps.
"""

import math

import torch
from torch import Tensor, nn


def time_table(num_frames: int, dim: int) -> Tensor:
    """Sines and cosines (T,E) of the place in the history."""
    rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    angle = torch.arange(num_frames)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class Sold(nn.Module):
    """OCVP-Seq with an action token, as SOLD imagines: its growing history at each step."""

    def __init__(
        self, slot_dim: int, *, action_dim: int, dim: int, num_layers: int, num_heads: int
    ) -> None:
        super().__init__()
        layers = [
            nn.TransformerEncoderLayer(
                dim, num_heads, 2 * dim, 0.0, batch_first=True, norm_first=True
            )
            for _ in range(2 * num_layers)
        ]
        self.layers = nn.ModuleList(layers)
        self.from_slots, self.to_slots = nn.Linear(slot_dim, dim), nn.Linear(dim, slot_dim)
        self.from_action = nn.Linear(action_dim, dim)

    def forward(self, slots: Tensor, action: Tensor) -> Tensor:
        """The slots (B,K,D) after a history (B,T,K,D) and its actions (B,T,A)."""
        tokens = torch.cat([self.from_slots(slots), self.from_action(action)[:, :, None]], dim=2)
        batch_size, num_frames, num_tokens, dim = tokens.shape
        tokens = tokens + time_table(num_frames, dim)[:, None].to(tokens)
        for among_objects, over_time in zip(self.layers[::2], self.layers[1::2], strict=True):
            tokens = among_objects(tokens.flatten(0, 1)).view(tokens.shape)
            lines = tokens.transpose(1, 2).flatten(0, 1)
            tokens = over_time(lines).view(batch_size, num_tokens, num_frames, dim).transpose(1, 2)
        return slots[:, -1] + self.to_slots(tokens[:, -1, :-1])

    def imagine(self, slots: Tensor, action: Tensor, horizon: int) -> Tensor:
        """The slots (B,H,K,D) after a context (B,T,K,D), with all actions (B,T+H-1,A)."""
        num_context = slots.shape[1]
        for _ in range(horizon):
            following = self(slots, action[:, : slots.shape[1]])
            slots = torch.cat([slots, following[:, None]], dim=1)
        return slots[:, num_context:]


class SlotFormer(nn.Module):
    """SlotFormer's rollout: joint attention over the last frames, read again at each step."""

    def __init__(
        self, slot_dim: int, *, dim: int, num_layers: int, num_heads: int, window: int
    ) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            dim, num_heads, 4 * dim, 0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.from_slots, self.to_slots = nn.Linear(slot_dim, dim), nn.Linear(dim, slot_dim)
        self.window = window

    def imagine(self, slots: Tensor, horizon: int) -> Tensor:
        """The slots (B,H,K,D) after a context (B,W,K,D)."""
        num_slots, predicted = slots.shape[2], []
        for _ in range(horizon):
            tokens = self.from_slots(slots)
            tokens = tokens + time_table(self.window, tokens.shape[-1])[:, None].to(tokens)
            tokens = self.layers(tokens.flatten(1, 2))
            predicted.append(self.to_slots(tokens[:, -num_slots:]))
            slots = torch.cat([slots[:, 1:], predicted[-1][:, None]], dim=1)
        return torch.stack(predicted, dim=1)


# --- the library's own forms, written out: the whole history again, no cache ---------------------


def turn(heads: Tensor, ages: Tensor) -> Tensor:
    """Heads (B,T,K,H,d) as complex numbers times a phase of the age (B,T)."""
    half = heads.shape[-1] // 2
    frequency = 100.0 ** (-torch.arange(half, dtype=torch.float64) / max(1, half - 1))
    angle = ages[..., None].double() * frequency
    turned = torch.complex(heads[..., :half].double(), heads[..., half:].double())
    turned = turned * torch.polar(torch.ones_like(angle), angle)[:, :, None, None]
    return torch.cat([turned.real, turned.imag], dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Softmax attention of (B,L,H,d) to (B,M,H,d), with visible (B,L,M)."""
    logits = torch.einsum("blhd,bmhd->bhlm", query, key) / query.shape[-1] ** 0.5
    attn = logits.masked_fill(~visible[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bhlm,bmhd->blhd", attn, value).flatten(2)


def history_layer(layer: nn.Module, tokens: Tensor, ages: Tensor, window: int) -> Tensor:
    """One `HistoryLayer` over all frames (B,T,K,E), with whole maps over pairs of tokens."""
    batch_size, num_frames, num_tokens, _ = tokens.shape
    num_heads = layer.attention.num_heads
    if layer.among_objects is not None:
        parts = layer.among_objects
        for t in range(num_frames):
            projected = parts["attention"].to_qkv(parts["norm"](tokens[:, t]))
            query, key, value = projected.unflatten(-1, (3, num_heads, -1)).unbind(2)
            everything = torch.ones(batch_size, num_tokens, num_tokens, dtype=torch.bool)
            update = parts["attention"].to_out(attend(query, key, value, everything))
            tokens = torch.cat(
                [tokens[:, :t], (tokens[:, t] + update)[:, None], tokens[:, t + 1 :]], dim=1
            )
        tokens = tokens + parts["mlp"](tokens)
    projected = layer.attention.to_qkv(layer.norm(tokens))
    query, key, value = projected.unflatten(-1, (3, num_heads, -1)).unbind(3)
    query, key = turn(query, ages), turn(key, ages)
    frame = torch.arange(num_frames).repeat_interleave(num_tokens)
    slot = torch.arange(num_tokens).repeat(num_frames)
    distance = frame[:, None] - frame
    reach = ages.clamp(max=window - 1)[:, frame, None]
    visible = (distance >= 0) & (distance <= reach)
    if not layer.attention.is_joint:
        visible = visible & (slot[:, None] == slot)
    mixed = attend(query.flatten(1, 2), key.flatten(1, 2), value.flatten(1, 2), visible)
    tokens = tokens + layer.attention.to_out(mixed).view(tokens.shape)
    return tokens + layer.mlp(tokens)


def ages_of(is_first: Tensor) -> Tensor:
    """Frames (B,T) since the last first one, frame by frame."""
    ages = torch.zeros(is_first.shape, dtype=torch.int64)
    for t in range(1, is_first.shape[1]):
        ages[:, t] = torch.where(is_first[:, t], 0, ages[:, t - 1] + 1)
    return ages


def read_history(model: nn.Module, slots: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
    """The slots (B,K,D) after a whole history (B,T,K,D), by a `TransformerDynamics`."""
    tokens = model.inputs(slots, action)
    for layer in model.history.layers:
        tokens = history_layer(layer, tokens, ages_of(is_first), model.history.window)
    change = model.output.to_slots(model.output.norm(tokens[:, -1, : slots.shape[2]]))
    return slots[:, -1] + change if model.output.is_residual else change


def imagine_again(model: nn.Module, slots: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
    """Go on from a context (B,T,K,D) with all actions (B,T+H-1,...), reading it all each step."""
    num_context = slots.shape[1]
    for _ in range(action.shape[1] - num_context + 1):
        following = read_history(model, slots, action[:, : slots.shape[1]], is_first)
        slots = torch.cat([slots, following[:, None]], dim=1)
        is_first = nn.functional.pad(is_first, (0, 1))
    return slots[:, num_context:]
