"""Slots of a frame compete for the tokens of past frames, without a map over pairs of frames.

B batch, T query frames, S key frames (as many), G groups of keys, R rows (slots of the heads of a
group), H heads, N tokens, E features of a key, V features of a value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from ocrl.nn.attention import competition

_MAX_ENTRIES = {True: 2**18, False: 2**27}
"""Entries of a map made at once, on the CPU, where they should fit its cache, and off it."""
_MAX_KEPT = 2**22
"""Entries of the map that are kept for the backward pass, and no more than the keys have."""
_MAX_WASTE = 1 / 8
"""Share of a block that may lie outside the band of frames that see each other."""
_LOG2_E = math.log2(math.e)


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
    (Singh et al. 2024, arXiv 2402.17077, appendix D.1.2). Only pairs of frames in the band, and few
    beyond it, are computed, some key frames after the other; the backward pass computes the maps
    again beyond a small budget. Exact; the sum is not divided by its mass (give the values a
    column of ones to have that).

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


def compete(logits: Tensor, *, is_binary: bool) -> Tensor:
    """Softmax (B,G,T,R,N) over the slots of all heads: sums to 1 over G and R.

    It may overwrite the logits. With `is_binary` they are times log2(e): a CPU raises 2 to a power
    in half the time that it takes for e.
    """
    if logits.shape[1] == 1 and not is_binary:
        return competition(logits)
    logits = logits.sub_(logits.amax((1, 3), keepdim=True))
    weights = logits.exp2_() if is_binary else logits.exp_()
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
        row_bias, weights = _row_terms(query, bias, recency, visible, window)
        rows = query.flatten(0, 1).flatten(1, 2)
        frame_keys = keys.flatten(0, 1)
        frame_values = frame_keys if values is None else values.flatten(0, 1)
        pooled = rows.new_zeros(*rows.shape[:2], frame_values.shape[-1], dtype=weights.dtype)
        kept: list[Tensor] = []
        room = min(keys.numel(), _MAX_KEPT) if any(ctx.needs_input_grad) else 0
        with torch.autocast(query.device.type, enabled=False):
            for block in _blocks(query, keys, window):
                attn = _map(rows[:, block.rows], block.of(frame_keys), query, row_bias, block)
                room -= attn.numel()
                weighted = torch.mul(attn, block.weigh(weights), out=None if room >= 0 else attn)
                if room >= 0:
                    kept.append(attn)
                weighted = weighted.flatten(2).to(frame_values.dtype)
                _add_product(pooled[:, block.rows], weighted, block.of(frame_values))
        ctx.save_for_backward(query, keys, values, bias, recency, visible, *kept)
        ctx.window = window
        return pooled.view(*query.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, values, bias, recency, visible, *kept = ctx.saved_tensors
        row_bias, weights = _row_terms(query, bias, recency, visible, ctx.window)
        rows, frame_keys = query.flatten(0, 1).flatten(1, 2), keys.flatten(0, 1)
        frame_values = frame_keys if values is None else values.flatten(0, 1)
        grad = grad.flatten(0, 1).flatten(1, 2).to(frame_values.dtype)
        grad_rows = torch.zeros_like(rows, dtype=weights.dtype)
        # Each token is in one block, and its gradient whole with it.
        own_values = None if values is None else frame_values
        grad_keys, grad_values = (
            torch.empty_like(like) if like is not None and is_needed else None
            for like, is_needed in zip(
                (frame_keys, own_values), ctx.needs_input_grad[1:3], strict=True
            )
        )
        grad_bias, grad_recency = (
            torch.zeros_like(like) if like is not None and is_needed else None
            for like, is_needed in zip((row_bias, weights), ctx.needs_input_grad[3:5], strict=True)
        )
        with torch.autocast(query.device.type, enabled=False):
            for number, block in enumerate(_blocks(query, keys, ctx.window)):
                key, value = block.of(frame_keys), block.of(frame_values)
                if number < len(kept):
                    attn = kept[number]
                else:
                    attn = _map(rows[:, block.rows], key, query, row_bias, block)
                weighted = attn * block.weigh(weights)
                # The gradient of a softmax, a * (g - sum(a * g)), built up in place.
                grad_logits = (grad[:, block.rows] @ value.mT).to(attn.dtype).view(attn.shape)
                grad_logits.mul_(weighted)
                if grad_recency is not None:
                    block.weigh(grad_recency).add_(grad_logits.sum(-1, keepdim=True))
                unfolded = _unfold(grad_logits, query)
                unfolded.addcmul_(
                    _unfold(attn, query), unfolded.sum((1, 3), keepdim=True), value=-1
                )
                if grad_bias is not None:
                    block.weigh(grad_bias).add_(grad_logits.sum(-1, keepdim=True))
                grad_logits = grad_logits.flatten(2).to(keys.dtype)
                _add_product(grad_rows[:, block.rows], grad_logits, key)
                weighted = weighted.flatten(2).to(grad.dtype)
                if grad_keys is not None:
                    target = block.of(grad_keys)
                    _put_product(target, grad_logits.mT, rows[:, block.rows])
                    if values is None:
                        _add_product(target, weighted.mT, grad[:, block.rows])
                if grad_values is not None:
                    _put_product(block.of(grad_values), weighted.mT, grad[:, block.rows])
        return (
            grad_rows.view(query.shape).to(query.dtype),
            None if grad_keys is None else grad_keys.view(keys.shape),
            None if grad_values is None else grad_values.view(values.shape),
            _per_head(grad_bias, bias, query),
            _per_head(grad_recency, recency, query),
            None,
            None,
        )


class _Block(NamedTuple):
    """A piece of the map: some key frames, of one perhaps some tokens only, and who sees them."""

    frames: slice
    tokens: slice
    rows: slice

    def of(self, features: Tensor) -> Tensor:
        """Keys or values (B*G,S,N,E) of the block as (B*G,S'*N',E), a view."""
        return features[:, self.frames, self.tokens].flatten(1, 2)

    def weigh(self, numbers: Tensor) -> Tensor:
        """Numbers per row and key frame (B*G,T*R,S) of the block as (B*G,T'*R,S',1), a view."""
        return numbers[:, self.rows, self.frames, None]


def _blocks(query: Tensor, keys: Tensor, window: int) -> Iterator[_Block]:
    """Cut the band into blocks."""
    batch_size, num_groups, num_frames, num_rows = query.shape[:4]
    num_tokens = keys.shape[3]
    budget = _MAX_ENTRIES[query.device.type == "cpu"]
    most = 1 + int(_MAX_WASTE * min(num_frames, window))
    first = 0
    while first < num_frames:
        seen_by = min(num_frames - first, window)
        entries = batch_size * num_groups * num_rows * seen_by
        count = max(1, min(most, num_frames - first, budget // (entries * num_tokens)))
        rows = slice(first * num_rows, min(num_frames, first + count - 1 + window) * num_rows)
        length = num_tokens if count > 1 else max(64, budget // entries)
        for token in range(0, num_tokens, length):
            tokens = slice(token, token + length)
            yield _Block(slice(first, first + count), tokens, rows)
        first += count


def _unfold(entries: Tensor, query: Tensor) -> Tensor:
    """View rows (B*G,T*R,S,N) as (B,G,T,R,S*N)."""
    num_groups, num_rows = query.shape[1], query.shape[3]
    return entries.view(len(query), num_groups, -1, num_rows, entries.shape[2:].numel())


def _map(
    rows: Tensor, keys: Tensor, query: Tensor, row_bias: Tensor | None, block: _Block
) -> Tensor:
    """The competition (B*G,T*R,S,N) of one block, float32 at least."""
    is_binary = rows.device.type == "cpu"
    unit = _LOG2_E if is_binary else 1.0
    logits = torch.baddbmm(rows.new_empty(1), rows, keys.mT, beta=0, alpha=unit)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits.unflatten(2, (block.frames.stop - block.frames.start, -1))
    if row_bias is not None:
        logits.add_(block.weigh(row_bias), alpha=unit)
    return compete(_unfold(logits, query), is_binary=is_binary).view(logits.shape)


def _row_terms(
    query: Tensor, bias: Tensor | None, recency: Tensor | None, visible: Tensor, window: int
) -> tuple[Tensor | None, Tensor]:
    """Logit bias, and weight after the competition, of each row (B*G,T*R,S) for a key frame."""
    wide = torch.promote_types(query.dtype, torch.float32)
    weights = visible.to(wide).tril().triu(1 - window)[..., None]
    if recency is not None:
        weights = weights * recency.to(wide).exp()
    row_bias = None if bias is None else bias.to(wide).expand(len(query), -1, -1, -1)
    return None if row_bias is None else _spread(row_bias, query), _spread(weights, query)


def _spread(heads: Tensor, query: Tensor) -> Tensor:
    """Spread numbers per head (B,T,S,H) over the rows of the head: (B*G,T*R,S)."""
    num_groups, num_rows = query.shape[1], query.shape[3]
    slots = num_groups * num_rows // heads.shape[-1]
    rows = heads.repeat_interleave(slots, dim=-1)
    return rearrange(rows, "b t s (g r) -> (b g) (t r) s", g=num_groups)


def _per_head(rows: Tensor | None, heads: Tensor | None, query: Tensor) -> Tensor | None:
    """The reverse of `_spread`, summed over batch and slots: (T,S,H)."""
    if rows is None or heads is None:
        return None
    num_groups, num_rows = query.shape[1], query.shape[3]
    rows = rearrange(rows, "(b g) (t r) s -> b t s (g r)", g=num_groups, r=num_rows)
    return rows.sum(0).unflatten(-1, (heads.shape[-1], -1)).sum(-1).to(heads.dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total += left @ right


def _put_product(target: Tensor, left: Tensor, right: Tensor) -> None:
    if target.dtype == left.dtype:
        target.baddbmm_(left, right, beta=0)
    else:
        target.copy_(left @ right)
