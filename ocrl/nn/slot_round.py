"""A round of slot attention as one node of the graph, with its backward pass written out.

B batch, K slots, D slot size, N tokens, F token features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ocrl.nn.attention import EPS, CompetitiveAttention, compete, gather, gather_backward


def slot_round(
    slots: Tensor,
    tokens: Tensor,
    *,
    norm: nn.LayerNorm,
    attention: CompetitiveAttention,
    gru: nn.GRUCell,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What `attention(norm(slots), tokens, bias=bias)` and `gru` after it give, in less time.

    With the few slots of a frame a round is many small kernels, and recording each of them for
    the backward pass costs more than running it. The products over tokens are in the dtype of
    the tokens, everything else is float32 whatever the autocast. Differentiable once.

    Args:
        slots: (B,K,D).
        tokens: (B,N,F), standardized.
        norm: of the slots, before the queries.
        attention: the maps, and where eps stands.
        gru: takes the updates; its state is the slots.
        bias: (B,K,N), added to the logits of the competition.

    Returns:
        Slots (B,K,D), and the softmax over slots (B,K,N).
    """
    eps = EPS[attention.eps_placement] if attention.eps is None else attention.eps
    weights = _Weights(
        norm.weight,
        norm.bias,
        attention.to_q.weight,
        attention.to_k.weight,
        attention.to_v.weight,
        attention.norm_inputs.weight,
        attention.norm_inputs.bias,
        gru.weight_ih,
        gru.weight_hh,
        gru.bias_ih,
        gru.bias_hh,
    )
    with torch.autocast(slots.device.type, enabled=False):
        result: tuple[Tensor, Tensor] = _Round.apply(
            slots, tokens, bias, norm.eps, eps, attention.eps_placement, *weights
        )
    return result


class _Weights(NamedTuple):
    norm_weight: Tensor
    norm_bias: Tensor
    to_q: Tensor
    to_k: Tensor
    to_v: Tensor
    token_weight: Tensor
    token_bias: Tensor
    update: Tensor
    state: Tensor
    update_bias: Tensor
    state_bias: Tensor


class _Kept(NamedTuple):
    """What the backward pass reads: rows (B*K,...) of the slots, and the tokens."""

    slots: Tensor
    normal: Tensor
    mean: Tensor
    scale: Tensor
    query: Tensor
    key: Tensor
    queries: Tensor
    tokens: Tensor
    level: Tensor
    read: Tensor
    share: Tensor
    below: Tensor
    inputs: Tensor
    update: Tensor
    gates: Tensor
    proposal: Tensor
    hidden: Tensor


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        slots: Tensor,
        tokens: Tensor,
        bias: Tensor | None,
        norm_eps: float,
        eps: float,
        placement: str,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        maps, shape = _Weights(*weights), slots.shape[:2]
        rows, size = slots.reshape(-1, slots.shape[-1]), slots.shape[-1]
        normal, mean, scale = torch.native_layer_norm(
            rows, (size,), maps.norm_weight, maps.norm_bias, norm_eps
        )
        query = (normal @ maps.to_q.mT).mul_(size**-0.5)
        key = query @ maps.to_k
        queries = (key * maps.token_weight).to(tokens.dtype).unflatten(0, shape)
        level = (key @ maps.token_bias).view(*shape, 1)
        if bias is not None:
            level = level + bias
        attn = compete(queries, tokens, level)
        read, share, below = gather(attn, tokens, eps, placement)
        # With eps on the weights their sum is exactly 1.
        offset = maps.token_bias if placement == "attn" else share * maps.token_bias
        inputs = torch.addcmul(offset, read, maps.token_weight).flatten(0, 1)
        update = inputs @ maps.to_v.mT
        entering = torch.addmm(maps.update_bias, update, maps.update.mT)
        staying = torch.addmm(maps.state_bias, rows, maps.state.mT)
        gates = (entering[:, : 2 * size] + staying[:, : 2 * size]).sigmoid_()
        reset, gate = gates.split(size, dim=1)
        hidden = staying[:, 2 * size :]
        proposal = torch.addcmul(entering[:, 2 * size :], reset, hidden).tanh_()
        kept = _Kept(
            rows, normal, mean, scale, query, key, queries, tokens, level, read, share, below,
            inputs, update, gates, proposal, hidden,
        )  # fmt: skip
        ctx.save_for_backward(*weights, *kept)
        ctx.eps = eps if placement == "attn" else 0.0
        ctx.has_level = placement != "attn"
        ctx.has_bias = bias is not None
        ctx.set_materialize_grads(False)
        return proposal.lerp(rows, gate).view_as(slots), attn

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, grad_attn: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        count = len(_Weights._fields)
        maps = _Weights(*ctx.saved_tensors[:count])
        kept = _Kept(*ctx.saved_tensors[count:])
        shape = kept.queries.shape[:2]
        if grad is None:
            grad = torch.zeros_like(kept.slots)
        grad_rows, grad_entering, grad_staying = _gru_backward(grad.reshape(kept.slots.shape), kept)
        grad_rows = grad_rows.addmm_(grad_staying, maps.state)
        grad_update = grad_entering @ maps.update
        grad_inputs = grad_update @ maps.to_v
        read = kept.read.flatten(0, 1)
        grad_share, offset = None, grad_inputs
        if ctx.has_level:
            grad_share = (grad_inputs @ maps.token_bias).view(*shape, 1)
            offset = grad_inputs * kept.share.flatten(0, 1)
        grad_queries, grad_tokens, grad_level = gather_backward(
            kept.queries,
            kept.tokens,
            kept.level,
            kept.read,
            kept.share,
            kept.below,
            grad_read=(grad_inputs * maps.token_weight).unflatten(0, shape),
            grad_share=grad_share,
            grad_attn=grad_attn,
            eps=ctx.eps,
            needs_tokens=ctx.needs_input_grad[1],
        )
        assert grad_level is not None
        grad_bias = grad_level if ctx.needs_input_grad[2] else None
        if grad_level.shape[-1] > 1:
            grad_level = grad_level.sum(-1, keepdim=True)
        level = grad_level.view(-1, 1)
        grad_wide = grad_queries.flatten(0, 1).to(level.dtype)
        grad_key = torch.addcmul(level * maps.token_bias, grad_wide, maps.token_weight)
        grad_query = (grad_key @ maps.to_k.mT).mul_(kept.slots.shape[1] ** -0.5)
        grad_normed, *grad_norm = torch.ops.aten.native_layer_norm_backward(
            grad_query @ maps.to_q,
            kept.slots,
            (kept.slots.shape[1],),
            kept.mean,
            kept.scale,
            maps.norm_weight,
            maps.norm_bias,
            (True, True, True),
        )
        gradients = _Weights(
            norm_weight=grad_norm[0],
            norm_bias=grad_norm[1],
            to_q=grad_query.mT @ kept.normal,
            to_k=kept.query.mT @ grad_key,
            to_v=grad_update.mT @ kept.inputs,
            token_weight=torch.addcmul(grad_inputs * read, grad_wide, kept.key).sum(0),
            token_bias=torch.addcmul(offset, level, kept.key).sum(0),
            update=grad_entering.mT @ kept.update,
            state=grad_staying.mT @ kept.slots,
            update_bias=grad_entering.sum(0),
            state_bias=grad_staying.sum(0),
        )
        grad_slots = grad_rows.add_(grad_normed).unflatten(0, shape)
        return grad_slots, grad_tokens, grad_bias, None, None, None, *gradients


def _gru_backward(grad: Tensor, kept: _Kept) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the state, directly, and of the two sums of inputs to the gates (B*K,3D)."""
    size = grad.shape[1]
    reset, gate = kept.gates.split(size, dim=1)
    kept_share = grad * gate
    grad_new = torch.ops.aten.tanh_backward(grad - kept_share, kept.proposal)
    grad_gates = torch.cat([grad_new * kept.hidden, grad * (kept.slots - kept.proposal)], dim=1)
    grad_gates = torch.ops.aten.sigmoid_backward(grad_gates, kept.gates)
    entering = torch.cat([grad_gates, grad_new], dim=1)
    return kept_share, entering, torch.cat([grad_gates, grad_new * reset], dim=1)
