"""From a set of slots to one vector. What a policy can say about relations is decided here.

B batch, K slots or objects, F features of one of them, L read-out token and slots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ocrl.nn.attention import MultiHeadAttention
from ocrl.nn.comparison import PairComparison, mean_of_present
from ocrl.nn.mlp import MLP
from ocrl.nn.multiplicative import RowProducts


class Pooling(nn.Module, ABC):
    """A set (B,K,F) to one vector (B,out_dim).

    All but `Concatenation` give the same vector whatever the order of the slots: a slot carries no
    position in its set. Rows that are not present change nothing.

    Attributes:
        out_dim: size of the vector.
        has_fixed_size: whether every set must have as many rows as the first one.
    """

    out_dim: int
    has_fixed_size = False

    def forward(self, slots: Tensor, is_present: Tensor | None = None) -> Tensor:
        """Pool.

        On a CPU sets are first packed to the size of the batch's largest one: a table of forty
        rows of which four are there costs what four cost.

        Args:
            slots: (B,K,F).
            is_present: (B,K) bool, false for rows that hold nothing; None if all count.

        Returns:
            (B,out_dim).
        """
        if is_present is not None and not self.has_fixed_size and slots.device.type == "cpu":
            slots, is_present = _packed(slots, is_present)
        return self.pool(slots, is_present)

    @abstractmethod
    def pool(self, slots: Tensor, is_present: Tensor | None) -> Tensor:
        """What `forward` gives, of the rows that are left."""

    def attention(self, slots: Tensor, is_present: Tensor | None = None) -> Tensor | None:
        """The share (B,K) of each slot in the vector, sums to 1; None where there is no such."""
        return None


class _Block(nn.Module):
    """Pre-norm self-attention and MLP; only the first `num_read` tokens are worth computing."""

    def __init__(self, dim: int, *, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm_inputs = nn.LayerNorm(dim)
        self.attention = MultiHeadAttention(dim, num_heads=num_heads)
        self.mlp = MLP(dim, hidden_dims=[mlp_dim], out_dim=dim, norm_first=True)

    def forward(self, tokens: Tensor, mask: Tensor | None, *, num_read: int | None) -> Tensor:
        normal = self.norm_inputs(tokens)
        read = tokens[:, :num_read] + self.attention(normal[:, :num_read], normal, mask=mask)
        return read + self.mlp(read)

    def weights(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Mean over heads of the attention weights (B,L,L)."""
        normal = self.norm_inputs(tokens)
        query, key = (
            rearrange(to(normal), "b l (h d) -> b h l d", h=self.attention.num_heads).float()
            for to in (self.attention.to_q, self.attention.to_k)
        )
        logits = query @ key.mT / query.shape[-1] ** 0.5
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        return logits.softmax(dim=-1).mean(dim=1)


class SetTransformer(Pooling):
    """A read-out token that attends to the slots, which attend to each other.

    The pooling of Yoon et al. (2023, arXiv 2302.04419), and the default: whether a policy solves a
    relational task depends on it. Differs from them: LayerNorm before each part instead of after
    it (Xiong et al. 2020, arXiv 2002.04745); two layers instead of one; and, with `is_relative`, a
    slot comes with its difference from the mean of all, as in the equivariant layers of deep sets
    (Zaheer et al. 2017, arXiv 1703.06114): what sets a slot apart from the others is plain then.

    Args:
        slot_dim: F.
        num_slots: K; not used, the set may have any size.
        dim: of the tokens and of the result.
        num_layers: blocks.
        num_heads: of the attention; divides `dim`.
        mlp_factor: hidden size of the blocks' MLPs in units of `dim`.
        is_relative: append to each slot its difference from the mean of those that are present.

    Raises:
        ValueError: if there is no layer, or `num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        slot_dim: int,
        *,
        num_slots: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_factor: int,
        is_relative: bool,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"expected num_layers of at least 1, got {num_layers}")
        self.out_dim = dim
        self.is_relative = is_relative
        self.to_tokens = nn.Linear(slot_dim * (1 + is_relative), dim)
        self.readout = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.blocks = nn.ModuleList(
            _Block(dim, num_heads=num_heads, mlp_dim=mlp_factor * dim) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(dim)

    def _tokens(self, slots: Tensor, is_present: Tensor | None) -> tuple[Tensor, Tensor | None]:
        readout = self.readout.expand(len(slots), 1, -1)
        if self.is_relative:
            center = rearrange(mean_of_present(slots, is_present), "b f -> b 1 f")
            slots = torch.cat([slots, slots - center], dim=-1)
        tokens = torch.cat([readout, self.to_tokens(slots)], dim=1)
        if is_present is None:
            return tokens, None
        mask = nn.functional.pad(is_present, (1, 0), value=True)
        return tokens, rearrange(mask, "b l -> b 1 1 l")

    def pool(self, slots: Tensor, is_present: Tensor | None) -> Tensor:
        """See `Pooling.pool`."""
        tokens, mask = self._tokens(slots, is_present)
        for block in self.blocks:
            is_last = block is self.blocks[-1]
            tokens = block(tokens, mask, num_read=1 if is_last else None)
        return self.norm_out(tokens[:, 0])

    def attention(self, slots: Tensor, is_present: Tensor | None = None) -> Tensor:
        """Share of each slot by attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928).

        The layers' weights, mean over heads, are mixed half and half with what the residual path
        keeps and multiplied; the read-out token's row is renormalised over the slots. Zero for
        rows that are not present, and for all of them where none is.
        """
        tokens, mask = self._tokens(slots, is_present)
        paths = torch.eye(tokens.shape[1], device=tokens.device)
        block: Any
        for block in self.blocks:
            weights = block.weights(tokens, mask)
            paths = (weights @ paths + paths) / 2
            tokens = block(tokens, mask, num_read=None)
        share = paths[:, 0, 1:]
        return share / share.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)


class ComparingTransformer(SetTransformer):
    """A set transformer whose slots come with how they differ from each of the others.

    See `PairComparison`. Slots that are not present are not compared with.

    Args:
        slot_dim: F.
        num_slots: K; not used, the set may have any size.
        dim: see `SetTransformer`, as for all further arguments.
        num_layers: see there.
        num_heads: see there.
        mlp_factor: see there.

    Raises:
        ValueError: as `SetTransformer`.
    """

    def __init__(
        self,
        slot_dim: int,
        *,
        num_slots: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_factor: int,
    ) -> None:
        super().__init__(
            slot_dim + dim,
            num_slots=num_slots,
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_factor=mlp_factor,
            is_relative=False,
        )
        self.comparison = PairComparison(slot_dim, dim=dim)

    def _tokens(self, slots: Tensor, is_present: Tensor | None) -> tuple[Tensor, Tensor | None]:
        compared = self.comparison(slots, is_present)
        return super()._tokens(torch.cat([slots, compared], dim=-1), is_present)


class MeanPooling(Pooling):
    """The mean of what an MLP makes of each slot, and an MLP on that.

    Deep sets (Zaheer et al. 2017, arXiv 1703.06114, theorem 2), with the mean instead of the sum,
    so that the scale does not grow with the number of slots. It sees each slot alone.

    Args:
        slot_dim: F.
        num_slots: K; not used, the set may have any size.
        dim: of the hidden layers and of the result.
    """

    def __init__(self, slot_dim: int, *, num_slots: int, dim: int) -> None:
        super().__init__()
        self.out_dim = dim
        self.inner = MLP(slot_dim, hidden_dims=[dim], out_dim=dim)
        self.outer = MLP(dim, hidden_dims=[dim], out_dim=dim, norm_first=True)

    def pool(self, slots: Tensor, is_present: Tensor | None) -> Tensor:
        """See `Pooling.pool`."""
        return self.outer(mean_of_present(self.inner(slots), is_present))


class RelationNetwork(Pooling):
    """The mean of what an MLP makes of each pair of slots, and an MLP on that.

    Santoro et al. (2017, arXiv 1706.01427, equation 1), with the mean over pairs instead of the
    sum. A slot makes a pair with itself too.

    Args:
        slot_dim: F.
        num_slots: K; not used, the set may have any size.
        dim: of the hidden layers and of the result.
        num_layers: of the MLP over pairs.

    Raises:
        ValueError: if there are fewer than two layers.
    """

    def __init__(self, slot_dim: int, *, num_slots: int, dim: int, num_layers: int) -> None:
        super().__init__()
        if num_layers < 2:
            raise ValueError(f"expected num_layers of at least 2, got {num_layers}")
        self.out_dim = dim
        # The first layer of the MLP over pairs, in two halves: one product per slot, not per pair.
        self.to_first = nn.Linear(slot_dim, dim)
        self.to_second = nn.Linear(slot_dim, dim, bias=False)
        self.inner = MLP(dim, hidden_dims=[dim] * (num_layers - 2), out_dim=dim)
        self.outer = MLP(dim, hidden_dims=[dim], out_dim=dim, norm_first=True)

    def pool(self, slots: Tensor, is_present: Tensor | None) -> Tensor:
        """See `Pooling.pool`."""
        first = rearrange(self.to_first(slots), "b i d -> b i 1 d")
        second = rearrange(self.to_second(slots), "b j d -> b 1 j d")
        pairs = rearrange((first + second).relu(), "b i j d -> b (i j) d")
        are_present = None
        if is_present is not None:
            both = rearrange(is_present, "b i -> b i 1") & rearrange(is_present, "b j -> b 1 j")
            are_present = rearrange(both, "b i j -> b (i j)")
        return self.outer(mean_of_present(self.inner(pairs), are_present))


class Concatenation(Pooling):
    """All slots side by side, and an MLP: the baseline that the order of slots matters to.

    Args:
        slot_dim: F.
        num_slots: K, every set has that size.
        hidden_dims: of the MLP.
        dim: of the result.
    """

    has_fixed_size = True

    def __init__(
        self, slot_dim: int, *, num_slots: int, hidden_dims: Sequence[int], dim: int
    ) -> None:
        super().__init__()
        self.out_dim = dim
        self.mlp = MLP(num_slots * slot_dim, hidden_dims=hidden_dims, out_dim=dim)

    def pool(self, slots: Tensor, is_present: Tensor | None) -> Tensor:
        """See `Pooling.pool`; absent rows are zero."""
        if is_present is not None:
            slots = slots.masked_fill(~is_present[..., None], 0.0)
        return self.mlp(rearrange(slots, "b k f -> b (k f)"))


class Matching(Pooling):
    """A pooling of rows that come with products of them and of vectors among them.

    See `RowProducts`. It is made where vectors stand among the rows, around any other pooling.

    Args:
        slot_dim: F.
        num_beside: the last columns of F, which hold vectors in rows of their own.
        match_dim: products of a row with them.
        inner: the pooling, of rows with F + `match_dim` features.
    """

    def __init__(self, slot_dim: int, *, num_beside: int, match_dim: int, inner: Pooling) -> None:
        super().__init__()
        self.products = RowProducts(slot_dim, num_beside=num_beside, out_dim=match_dim)
        self.inner = inner
        self.out_dim, self.has_fixed_size = self.inner.out_dim, self.inner.has_fixed_size

    def pool(self, slots: Tensor, is_present: Tensor | None) -> Tensor:
        """See `Pooling.pool`."""
        return self.inner.pool(self._with_products(slots), is_present)

    def attention(self, slots: Tensor, is_present: Tensor | None = None) -> Tensor | None:
        """See `Pooling.attention`."""
        return self.inner.attention(self._with_products(slots), is_present)

    def _with_products(self, slots: Tensor) -> Tensor:
        return torch.cat([slots, self.products(slots)], dim=-1)


def has_fixed_size(network: nn.Module) -> bool:
    """Whether a pooling in a network takes sets of one size only."""
    return any(isinstance(part, Pooling) and part.has_fixed_size for part in network.modules())


def _packed(slots: Tensor, is_present: Tensor) -> tuple[Tensor, Tensor]:
    """Sets with the rows that are there in front, and no more rows than the largest one needs."""
    largest = int(is_present.sum(dim=1).max()) if len(slots) else 0
    if largest == slots.shape[1]:
        return slots, is_present
    order = is_present.byte().argsort(dim=1, descending=True, stable=True)[:, :largest]
    return slots.take_along_dim(order[..., None], dim=1), is_present.gather(1, order)
