"""Attention: the competitive kind of slot attention, and the ordinary multi-head kind.

B batch, K slots, D slot size, N tokens, F token features, L queries, M context tokens.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

EpsPlacement = Literal["attn", "sum"]

EPS: dict[str, float] = {"attn": 1e-8, "sum": 1e-5}
"""The constants of the papers: added to every weight, or to each slot's sum of weights."""

NORM_EPS = 1e-5
"""Under the root of the norm of the tokens, torch's default."""


def compute_dtype(inputs: Tensor) -> torch.dtype:
    """The dtype that matrix products have here: autocast's where it is on, else the input's."""
    kind = inputs.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return inputs.dtype


def competition(logits: Tensor) -> Tensor:
    """Softmax over slots, the second-to-last axis of (...,K,N), in float32 at least."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.softmax(dim=-2, dtype=wide)


class _Standardize(torch.autograd.Function):
    """LayerNorm without weights that keeps its output, which attention keeps too, not its input."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, dtype: torch.dtype, padding: int) -> Tensor:
        wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        normal, _, scale = torch.native_layer_norm(wide, wide.shape[-1:], None, None, NORM_EPS)
        normal = _append_one(normal, dtype, padding)
        ctx.save_for_backward(normal, scale)
        ctx.dtype, ctx.padding = tokens.dtype, padding
        return normal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        normal, scale = ctx.saved_tensors
        size = normal.shape[-1] - ctx.padding
        # The kernel's own backward, told that its input had mean 0 and deviation 1.
        grad, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad[..., :size].to(scale.dtype),
            normal[..., :size].to(scale.dtype),
            (size,),
            torch.zeros_like(scale),
            torch.ones_like(scale),
            None,
            None,
            (True, False, False),
        )
        return grad.mul_(scale).to(ctx.dtype), None, None


def _append_one(features: Tensor, dtype: torch.dtype, padding: int) -> Tensor:
    if not padding:
        return features.to(dtype)
    padded = functional.pad(features.to(dtype), (0, padding))
    padded[..., features.shape[-1]] = 1
    return padded


def standardize(tokens: Tensor, *, padding: int = 0) -> Tensor:
    """Zero mean and unit deviation over the last axis: LayerNorm without weight and bias.

    Computed in float32; the result is in the autocast dtype where autocast is on.

    Args:
        tokens: (...,F).
        padding: columns to append: a one, then zeros.

    Returns:
        (...,F + padding).
    """
    dtype = compute_dtype(tokens)
    with torch.autocast(tokens.device.type, enabled=False):
        if torch.compiler.is_compiling():
            wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
            normal = functional.layer_norm(wide, wide.shape[-1:], eps=NORM_EPS)
            return _append_one(normal, dtype, padding)
        return _Standardize.apply(tokens, dtype, padding)


def compete(queries: Tensor, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """The softmax over slots (B,K,N) of queries (B,K,F) and tokens (B,N,F), plus a bias."""
    # bmm and not @, here and below: with few slots the bookkeeping around a product counts.
    logits = torch.bmm(queries, tokens.mT)
    if bias is not None:
        logits = logits + bias
    return competition(logits)


def gather(
    attn: Tensor, tokens: Tensor, eps: float, placement: str, modulation: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of tokens (B,K,F), sum of its weights (B,K,1) and its denominator, as `attn`'s dtype."""
    raised = attn + eps if placement == "attn" else attn
    weights = raised.to(tokens.dtype)
    total = weights.sum(dim=-1, keepdim=True, dtype=attn.dtype)
    below = total + eps if placement == "sum" else total
    if modulation:
        # One power of the product: that of the softmax alone has an infinite slope at 0.
        weights = raised.pow(1.0 + modulation).to(tokens.dtype)
        total = weights.sum(dim=-1, keepdim=True, dtype=attn.dtype)
    return torch.bmm(weights, tokens).to(attn.dtype) / below, total / below, below


def gather_backward(
    queries: Tensor,
    tokens: Tensor,
    bias: Tensor | None,
    read: Tensor,
    share: Tensor,
    below: Tensor,
    *,
    grad_read: Tensor | None,
    grad_share: Tensor | None,
    grad_attn: Tensor | None,
    eps: float,
    needs_tokens: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of queries, tokens and bias through `compete` and `gather`.

    The map (B,K,N) is made again.

    Args:
        queries: (B,K,F).
        tokens: (B,N,F).
        bias: (B,K,N) or (B,K,1).
        read: what `gather` gave first.
        share: what it gave second.
        below: what it gave third.
        grad_read: the gradient of `read`.
        grad_share: the gradient of `share`.
        grad_attn: the gradient of the map itself.
        eps: what `gather` added to every weight.
        needs_tokens: whether the gradient of the tokens is asked for.
    """
    num_slots = queries.shape[1]
    if grad_read is None:
        grad_read = torch.zeros_like(read)
    grad_sum = (grad_read / below).to(tokens.dtype)
    # One product over the tokens gives the logits and the gradient of the weights at once,
    # and one more the two terms of the gradient of the tokens.
    both = torch.cat([queries, grad_sum], dim=1)
    logits, grad_weights = torch.bmm(both, tokens.mT).split(num_slots, dim=1)
    attn = competition(logits if bias is None else logits + bias)
    level = (grad_read * read).sum(-1, keepdim=True)
    if grad_share is not None:
        level = level - grad_share * (1 - share)
    grad_weights = grad_weights - level / below
    if grad_attn is not None:
        grad_weights = grad_weights + grad_attn
    grad_logits = attn * grad_weights
    grad_logits = torch.addcmul(grad_logits, attn, grad_logits.sum(1, keepdim=True), value=-1)
    grad_bias = None
    if bias is not None:
        grad_bias = grad_logits.sum(-1, keepdim=True) if bias.shape[-1] == 1 else grad_logits
    grad_logits = grad_logits.to(tokens.dtype)
    grad_tokens = None
    if needs_tokens:
        weights = (attn + eps if eps else attn).to(tokens.dtype)
        grad_tokens = torch.bmm(torch.cat([grad_logits, weights], dim=1).mT, both)
    return torch.bmm(grad_logits, tokens), grad_tokens, grad_bias


class _CompetitiveRead(torch.autograd.Function):
    """`_read` that keeps no (B,K,N) map: the backward makes it again."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, tokens: Tensor, bias: Tensor | None, eps: float, placement: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        attn = compete(queries, tokens, bias)
        read, share, below = gather(attn, tokens, eps, placement)
        ctx.save_for_backward(queries, tokens, bias, read, share, below)
        ctx.eps = eps if placement == "attn" else 0.0
        ctx.set_materialize_grads(False)
        return read, share, attn

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_read: Tensor | None, grad_share: Tensor | None, grad_attn: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        gradients = gather_backward(
            *ctx.saved_tensors,
            grad_read=grad_read,
            grad_share=grad_share,
            grad_attn=grad_attn,
            eps=ctx.eps,
            needs_tokens=ctx.needs_input_grad[1],
        )
        return *gradients, None, None


def _read(
    queries: Tensor,
    tokens: Tensor,
    bias: Tensor | None,
    eps_placement: str,
    eps: float | None,
    modulation: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """`competitive_read`, and the sum of each slot's weights after renormalisation (B,K,1).

    With `modulation` (see `CompetitiveAttention`) the map is kept for the backward pass.
    """
    check_eps_placement(eps_placement)
    if eps is None:
        eps = EPS[eps_placement]
    dtype = compute_dtype(tokens)
    queries, tokens = queries.to(dtype), tokens.to(dtype)
    with torch.autocast(tokens.device.type, enabled=False):
        if not modulation and not torch.compiler.is_compiling():
            return _CompetitiveRead.apply(queries, tokens, bias, eps, eps_placement)
        attn = compete(queries, tokens, bias)
        read, share, _ = gather(attn, tokens, eps, eps_placement, modulation)
        return read, share, attn


def check_eps_placement(eps_placement: str) -> None:
    """Refuse an unknown place for eps.

    Raises:
        ValueError: if `eps_placement` is not in `EPS`.
    """
    if eps_placement not in EPS:
        raise ValueError(f"eps_placement must be one of {sorted(EPS)}, got {eps_placement!r}")


def competitive_read(
    queries: Tensor,
    tokens: Tensor,
    *,
    eps_placement: EpsPlacement,
    eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Let slots compete for tokens and give each the weighted mean of what it won.

    Softmax over slots, then a mean over tokens (Locatello et al. 2020, arXiv 2006.15055,
    equations 1 and 2), on tokens that no key and no value map has been applied to. The map and
    both sums of weights are float32 whatever the autocast; the products over tokens are in the
    autocast dtype. Outside `torch.compile`, which plans its own recomputation, the map is made
    again in the backward pass instead of being kept.

    Args:
        queries: (B,K,F), with the key map and the temperature already in them.
        tokens: (B,N,F).
        eps_placement: `attn` adds `eps` to every weight, as the paper: a slot that wins nothing
            reads the mean token. `sum` adds it to the sum of a slot's weights: such a slot reads
            zero.
        eps: the constant; the paper's for each placement (`EPS`) if None.

    Returns:
        The reading (B,K,F), and the softmax (B,K,N) before renormalisation, both float32 (float64
        for float64 input).

    Raises:
        ValueError: if `eps_placement` is unknown.
    """
    read, _, attn = _read(queries, tokens, None, eps_placement, eps)
    return read, attn


class CompetitiveAttention(nn.Module):
    """The norm and the query, key and value maps of slot attention around `competitive_read`.

    Differs from Locatello et al. (2020, arXiv 2006.15055) in the order of the products only: the
    key map and the norm's weight and bias are applied to the queries and to what was read, not to
    the tokens, so the (B,N,D) keys and values are never made. The result is the same. The maps
    have no bias, as in the paper.

    Args:
        token_dim: F.
        slot_dim: D.
        eps_placement: see `competitive_read`.
        eps: see `competitive_read`.
        modulation: renormalised weights are multiplied by the softmax over slots to this power,
            and stay so, as competition-modulated aggregation (Tran et al. 2026, DSSA, arXiv
            2606.12601, equation 5, where it is 0.5): a slot that wins little anywhere is updated
            little, instead of as much as any other. 0 is slot attention.

    Raises:
        ValueError: if `eps_placement` is unknown, or `modulation` negative.
    """

    def __init__(
        self,
        token_dim: int,
        *,
        slot_dim: int,
        eps_placement: EpsPlacement,
        eps: float | None = None,
        modulation: float = 0.0,
    ) -> None:
        super().__init__()
        check_eps_placement(eps_placement)
        if modulation < 0:
            raise ValueError(f"modulation must be at least 0, got {modulation}")
        self.modulation = modulation
        self.eps_placement = eps_placement
        self.eps = eps
        self.norm_inputs = nn.LayerNorm(token_dim, eps=NORM_EPS)
        self.to_q = nn.Linear(slot_dim, slot_dim, bias=False)
        self.to_k = nn.Linear(token_dim, slot_dim, bias=False)
        self.to_v = nn.Linear(token_dim, slot_dim, bias=False)
        for layer in (self.to_q, self.to_k, self.to_v):
            nn.init.xavier_uniform_(layer.weight)

    def forward(
        self, slots: Tensor, tokens: Tensor, *, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Read tokens (B,N,F), standardized already, with normalised slots (B,K,D).

        Args:
            slots: (B,K,D).
            tokens: (B,N,F).
            bias: (B,K,N), added to the logits of the competition.

        Returns:
            Updates (B,K,D), and the softmax over slots (B,K,N).
        """
        queries = self.to_q(slots) * slots.shape[-1] ** -0.5
        queries = functional.linear(queries, self.to_k.weight.mT).to(slots.dtype)
        weight, shift = self.norm_inputs.weight, self.norm_inputs.bias
        level = (queries * shift).sum(-1, keepdim=True)
        if bias is not None:
            level = level + bias
        read, share, attn = _read(
            queries * weight, tokens, level, self.eps_placement, self.eps, self.modulation
        )
        # With eps on the weights their sum is exactly 1, unless they are modulated.
        is_mean = self.eps_placement == "attn" and not self.modulation
        offset = shift if is_mean else share * shift
        return self.to_v(torch.addcmul(offset, read, weight)), attn


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with several heads (Vaswani et al. 2017, arXiv 1706.03762).

    Args:
        dim: size of the queries and of the output.
        num_heads: number of heads; divides `dim`.
        context_dim: size of what is attended to; `dim` if None.
        bias: whether the four maps have a bias.
        dropout: share of attention weights dropped in training.

    Raises:
        ValueError: if `num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        context_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim, got {num_heads} heads and dim {dim}")
        context_dim = dim if context_dim is None else context_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.to_k = nn.Linear(context_dim, dim, bias=bias)
        self.to_v = nn.Linear(context_dim, dim, bias=bias)
        self.to_out = nn.Linear(dim, dim, bias=bias)

    def forward(
        self,
        queries: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Attend.

        Args:
            queries: (B,L,dim).
            context: (B,M,context_dim); the queries themselves if None.
            mask: broadcastable to (B,heads,L,M): bool, true where attention is allowed, or a
                float that is added to the logits.
            is_causal: allow query l to see context up to l only.

        Returns:
            (B,L,dim).
        """
        context = queries if context is None else context
        query, key, value = (
            rearrange(projected, "b l (h d) -> b h l d", h=self.num_heads)
            for projected in (self.to_q(queries), self.to_k(context), self.to_v(context))
        )
        mixed = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
        )
        return self.to_out(rearrange(mixed, "b h l d -> b l (h d)"))
