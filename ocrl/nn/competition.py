"""Slots of a frame compete for the tokens of past frames, without a map over pairs of frames.

B batch, T query frames, S key frames (as many), G groups of keys, R rows (slots of the heads of a
group), H heads, N tokens, E features of a key, V features of a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from ocrl.nn.attention import competition

_MAX_ENTRIES = {True: 2**22, False: 2**27}
"""Entries of a map made at once, on the CPU and off it."""


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
        query: (B,G,T,R,E), scaled.
        keys: (B,G,T,N,E).
        values: (B,G,T,N,V); the keys where None.
        visible: (B,T,S) bool.
        window: frames a query looks back on, its own included; pairs beyond are never computed.
        bias: (T,S,H), added to the logits of a head; H heads share the G * R rows in order.
        recency: (T,S,H), log-weight of a key frame after the competition.

    Returns:
        (B,G,T,R,V), in float32 (float64 for float64 input).
    """
    result: Tensor = _Competition.apply(query, keys, values, bias, recency, visible, window)
    return result


def compete(logits: Tensor) -> Tensor:
    """Softmax (B,G,T,R,N) over the slots of all heads: sums to 1 over G and R."""
    if logits.shape[1] == 1:
        return competition(logits)
    weights = (logits - logits.amax((1, 3), keepdim=True)).exp_()
    return weights.div_(weights.sum((1, 3), keepdim=True))


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
        row_bias, weights = _row_terms(query, bias, recency, visible)
        rows, pooled = query.flatten(0, 1).flatten(1, 2), None
        frame_keys, frame_values = keys.flatten(0, 1), values.flatten(0, 1)
        pooled = rows.new_zeros(*rows.shape[:2], values.shape[-1], dtype=weights.dtype)
        with torch.autocast(query.device.type, enabled=False):
            for s, span, tokens in _blocks(query, keys, window):
                logits = rows[:, span] @ frame_keys[:, s, tokens].mT
                attn = _map(logits, query, row_bias, s, span)
                block = attn.to(values.dtype) @ frame_values[:, s, tokens]
                pooled[:, span].addcmul_(block, weights[:, s, span])
        return pooled.view(*query.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, own_values, bias, recency, visible = ctx.saved_tensors
        values = keys if own_values is None else own_values
        row_bias, weights = _row_terms(query, bias, recency, visible)
        rows, grad = query.flatten(0, 1).flatten(1, 2), grad.flatten(0, 1).flatten(1, 2)
        frame_keys, frame_values = keys.flatten(0, 1), values.flatten(0, 1)
        grad_rows = torch.zeros_like(rows, dtype=weights.dtype)
        grad_keys, grad_values, grad_bias, grad_recency = (
            None if tensor is None or not is_needed else torch.zeros_like(like)
            for tensor, is_needed, like in zip(
                (keys, own_values, bias, recency),
                ctx.needs_input_grad[1:5],
                (frame_keys, frame_values, row_bias, weights),
                strict=True,
            )
        )
        with torch.autocast(query.device.type, enabled=False):
            for s, span, tokens in _blocks(query, keys, ctx.window):
                key, value = frame_keys[:, s, tokens], frame_values[:, s, tokens]
                attn = _map(rows[:, span] @ key.mT, query, row_bias, s, span)
                weighted = (grad[:, span] * weights[:, s, span]).to(values.dtype)
                # The gradient of a softmax, a * (g - sum(a * g)), built up in place.
                grad_logits = (weighted @ value.mT).to(attn.dtype).mul_(attn)
                if grad_recency is not None:
                    grad_recency[:, s, span] += grad_logits.sum(-1, keepdim=True)
                unfolded = _unfold(grad_logits, query)
                unfolded.addcmul_(
                    _unfold(attn, query), unfolded.sum((1, 3), keepdim=True), value=-1
                )
                if grad_bias is not None:
                    grad_bias[:, s, span] += grad_logits.sum(-1, keepdim=True)
                grad_logits, attn = grad_logits.to(keys.dtype), attn.to(values.dtype)
                _add_product(grad_rows[:, span], grad_logits, key)
                if grad_keys is not None:
                    _add_product(grad_keys[:, s, tokens], grad_logits.mT, rows[:, span])
                    if own_values is None:
                        _add_product(grad_keys[:, s, tokens], attn.mT, weighted)
                if grad_values is not None:
                    _add_product(grad_values[:, s, tokens], attn.mT, weighted)
        return (
            grad_rows.view(query.shape).to(query.dtype),
            None if grad_keys is None else grad_keys.view(keys.shape),
            None if grad_values is None else grad_values.view(values.shape),
            _per_head(grad_bias, bias, query),
            _per_head(grad_recency, recency, query),
            None,
            None,
        )


def _blocks(query: Tensor, keys: Tensor, window: int) -> Iterator[tuple[int, slice, slice]]:
    """Cut the band into a key frame, the rows of the query frames that see it, and tokens."""
    batch_size, num_groups, num_frames, num_rows = query.shape[:4]
    budget = _MAX_ENTRIES[query.device.type == "cpu"]
    for s in range(num_frames):
        last = min(num_frames, s + window)
        entries = batch_size * num_groups * (last - s) * num_rows
        length = max(64, budget // entries)
        for token in range(0, keys.shape[3], length):
            yield s, slice(s * num_rows, last * num_rows), slice(token, token + length)


def _unfold(entries: Tensor, query: Tensor) -> Tensor:
    """View rows (B*G,T*R,N) as (B,G,T,R,N)."""
    num_groups, num_rows = query.shape[1], query.shape[3]
    return entries.view(len(query), num_groups, -1, num_rows, entries.shape[-1])


def _map(logits: Tensor, query: Tensor, row_bias: Tensor | None, s: int, span: slice) -> Tensor:
    """The competition (B*G,T*R,N) of one block, float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if row_bias is not None:
        logits += row_bias[:, s, span]
    return compete(_unfold(logits, query)).view(logits.shape)


def _row_terms(
    query: Tensor, bias: Tensor | None, recency: Tensor | None, visible: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Logit bias, and weight after the competition, of each row (B*G,S,T*R,1) for a key frame."""
    wide = torch.promote_types(query.dtype, torch.float32)
    weights = visible[..., None].to(wide)
    if recency is not None:
        weights = weights * recency.to(wide).exp()
    row_bias = None if bias is None else bias.to(wide).expand(len(query), -1, -1, -1)
    return None if row_bias is None else _spread(row_bias, query), _spread(weights, query)


def _spread(heads: Tensor, query: Tensor) -> Tensor:
    """Spread numbers per head (B,T,S,H) over the rows of the head: (B*G,S,T*R,1)."""
    num_groups, num_rows = query.shape[1], query.shape[3]
    slots = num_groups * num_rows // heads.shape[-1]
    rows = heads.repeat_interleave(slots, dim=-1)
    return rearrange(rows, "b t s (g r) -> (b g) s (t r) 1", g=num_groups)


def _per_head(rows: Tensor | None, heads: Tensor | None, query: Tensor) -> Tensor | None:
    """The reverse of `_spread`, summed over batch and slots: (T,S,H)."""
    if rows is None or heads is None:
        return None
    num_groups, num_rows = query.shape[1], query.shape[3]
    rows = rearrange(rows, "(b g) s (t r) 1 -> b t s (g r)", g=num_groups, r=num_rows)
    return rows.sum(0).unflatten(-1, (heads.shape[-1], -1)).sum(-1).to(heads.dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total += left @ right
