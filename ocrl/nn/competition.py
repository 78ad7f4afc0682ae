"""Slots of a frame compete for the tokens of past frames, without a map over pairs of frames.

B batch, T query frames, S key frames, G groups of keys, R rows (slots of the heads of a group),
H heads, N tokens, E features of a key, V features of a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from ocrl.nn.attention import competition


def competition_over_time(
    query: Tensor,
    keys: Tensor,
    values: Tensor | None = None,
    *,
    visible: Tensor,
    window: int,
    bias: Tensor | None = None,
    recency: Tensor | None = None,
) -> Tensor:
    """Sum values over all visible frames, weighted by a softmax over the slots of one frame.

    The softmax runs over all rows of all groups of one query frame, separately for each token
    (Singh et al. 2024, arXiv 2402.17077, appendix D.1.2). Only pairs of frames in the band are
    computed, one key frame after the other, and the backward pass computes the maps again. Exact;
    the sum is not divided by its mass (give the values a column of ones to have that).

    Args:
        query: (B,T,G,R,E), scaled. Its last frame is the last key frame.
        keys: (B,S,G,N,E), S >= T.
        values: (B,S,G,N,V); the keys where None.
        visible: (B,T,S) bool.
        window: frames a query looks back on, its own included; pairs beyond are never computed.
        bias: (T,S,H), added to the logits of a head; H heads share the G * R rows in order.
        recency: (T,S,H), log-weight of a key frame after the competition.

    Returns:
        (B,T,G,R,V), in float32 (float64 for float64 input).
    """
    result: Tensor = _Competition.apply(query, keys, values, bias, recency, visible, window)
    return result


def compete(logits: Tensor) -> Tensor:
    """Softmax (...,G,T,R,N) over the slots of all heads: sums to 1 over G and R."""
    if logits.shape[-4] == 1:
        return competition(logits)
    weights = (logits - logits.amax((-4, -2), keepdim=True)).exp_()
    return weights.div_(weights.sum((-4, -2), keepdim=True))


class _Competition(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        keys: Tensor,
        values: Tensor | None,
        bias: Tensor | None,
        recency: Tensor | None,
        visible: Tensor,
        window: int,
    ) -> Tensor:
        ctx.save_for_backward(query, keys, values, bias, recency, visible)
        ctx.window = window
        values = keys if values is None else values
        weights = _row_weights(visible, recency, query)
        shape = (*query.shape[:-1], values.shape[-1])
        pooled = query.new_zeros(shape, dtype=_wide(query))
        with torch.autocast(query.device.type, enabled=False):
            for frames, queries, tokens in _blocks(query, keys, window):
                attn = _block_map(query, keys, bias, frames, queries, tokens)
                block = attn.flatten(3, 4).to(values.dtype) @ values[:, frames, :, tokens]
                block = block.unflatten(3, attn.shape[3:5]) * weights[:, frames, :, queries]
                pooled[:, queries] += rearrange(block.sum(1), "b g t r v -> b t g r v")
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, own_values, bias, recency, visible = ctx.saved_tensors
        values = keys if own_values is None else own_values
        weights = _row_weights(visible, recency, query)
        grad_query = torch.zeros_like(query, dtype=_wide(query))
        grad_keys, grad_values, grad_bias, grad_recency = (
            None if tensor is None or not is_needed else torch.zeros_like(tensor)
            for tensor, is_needed in zip(
                (keys, own_values, bias, recency), ctx.needs_input_grad[1:5], strict=True
            )
        )
        with torch.autocast(query.device.type, enabled=False):
            for frames, queries, tokens in _blocks(query, keys, ctx.window):
                attn = _block_map(query, keys, bias, frames, queries, tokens)
                grad_rows = rearrange(grad[:, queries], "b t g r v -> b 1 g t r v")
                grad_rows = (grad_rows * weights[:, frames, :, queries]).flatten(3, 4)
                grad_rows = grad_rows.to(values.dtype)
                # The gradient of a softmax, a * (g - sum(a * g)), built up in place.
                grad_logits = (grad_rows @ values[:, frames, :, tokens].mT).to(attn.dtype)
                grad_logits = grad_logits.view_as(attn).mul_(attn)
                if grad_recency is not None:
                    grad_recency[queries, frames] += _sum_per_head(grad_logits, recency)
                total = grad_logits.sum((2, 4), keepdim=True)
                grad_logits = grad_logits.addcmul_(attn, total, value=-1)
                if grad_bias is not None:
                    grad_bias[queries, frames] += _sum_per_head(grad_logits, bias)

                grad_logits = grad_logits.flatten(3, 4).to(keys.dtype)
                block = grad_logits @ keys[:, frames, :, tokens]
                block = block.unflatten(3, attn.shape[3:5]).sum(1, dtype=grad_query.dtype)
                grad_query[:, queries] += rearrange(block, "b g t r e -> b t g r e")
                if grad_keys is None and grad_values is None:
                    continue
                # Each (frame, token) is met in one block only, so these are written, not added.
                key_block = grad_logits.mT @ _rows(query, queries)
                value_block = attn.flatten(3, 4).to(values.dtype).mT @ grad_rows
                if own_values is None:
                    key_block += value_block
                elif grad_values is not None:
                    grad_values[:, frames, :, tokens] = value_block
                if grad_keys is not None:
                    grad_keys[:, frames, :, tokens] = key_block
        grad_query = grad_query.to(query.dtype)
        return grad_query, grad_keys, grad_values, grad_bias, grad_recency, None, None


def _blocks(query: Tensor, keys: Tensor, window: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cut the band into key frames, the query frames that see them, and runs of tokens."""
    num_queries, num_keys, num_tokens = query.shape[1], keys.shape[1], keys.shape[3]
    offset = num_keys - num_queries
    # A single query frame (streaming, or frames folded into the batch) takes all keys at once.
    num_frames = num_keys if num_queries == 1 else 1
    for start in range(0, num_keys, num_frames):
        stop = start + num_frames
        first, last = max(0, start - offset), min(num_queries, stop - 1 - offset + window)
        if first >= last:
            continue
        entries = query[:, first:last, ..., 0].numel() * num_frames
        length = max(64, _MAX_ENTRIES[query.device.type == "cpu"] // entries)
        for token in range(0, num_tokens, length):
            yield slice(start, stop), slice(first, last), slice(token, token + length)


_MAX_ENTRIES = (2**27, 2**22)
"""Entries of a map made at once, off and on the CPU."""


def _wide(tensor: Tensor) -> torch.dtype:
    """The dtype of softmax and sums: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _rows(query: Tensor, queries: slice) -> Tensor:
    return rearrange(query[:, queries], "b t g r e -> b 1 g (t r) e")


def _block_map(
    query: Tensor, keys: Tensor, bias: Tensor | None, frames: slice, queries: slice, tokens: slice
) -> Tensor:
    """The competition (B,S,G,T,R,N) of one block."""
    logits = _rows(query, queries) @ keys[:, frames, :, tokens].mT
    logits = logits.to(_wide(query)).unflatten(3, (-1, query.shape[3]))
    if bias is not None:
        logits += _per_row(bias[None, queries, frames], query)
    return compete(logits)


def _row_weights(visible: Tensor, recency: Tensor | None, query: Tensor) -> Tensor:
    """Weights (B,S,G,T,R,1) of key frames after the competition, zero for invisible ones."""
    weights = visible[..., None].to(_wide(query))
    if recency is not None:
        weights = weights * recency.exp()
    return _per_row(weights, query)


def _per_row(heads: Tensor, query: Tensor) -> Tensor:
    """Spread numbers per head (B,T,S,H) over the rows: (B,S,G,T,R,1)."""
    num_groups, num_rows = query.shape[2:4]
    if heads.shape[-1] == 1:
        return rearrange(heads, "b t s 1 -> b s 1 t 1 1")
    slots = num_groups * num_rows // heads.shape[-1]
    heads = heads[..., None].expand(*heads.shape, slots)
    return rearrange(heads.flatten(-2), "b t s (g r) -> b s g t r 1", g=num_groups)


def _sum_per_head(entries: Tensor, heads: Tensor) -> Tensor:
    """Sum a block (B,S,G,T,R,N) to (T,S,H)."""
    rows = rearrange(entries.sum((0, -1)), "s g t r -> t s (g r)")
    return rows.unflatten(-1, (heads.shape[-1], -1)).sum(-1)
