"""A transformer that foretells the codes of a scene one after the other.

B scenes, K slots, G code groups, N = K * G tokens, C codes of the largest group, E size of the
transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ocrl.interfaces import CodePrior
from ocrl.nn.causal_transformer import CausalTransformer
from ocrl.nn.position import LearnedPosition

SlotOrder = Literal["encoder", "random", "sorted"]


class AutoregressivePrior(CodePrior):
    """The prior of the neural language of thought (Wu, Lee and Ahn 2024, arXiv 2402.01203).

    A decoder-only transformer reads the codes slot after slot, group after group. Slots are a set,
    a sequence has an order: that of the `encoder`, as in the paper; one drawn at `random` each time
    in training, so that no order is learned, while `eval()` reads the encoder's; or `sorted` by
    the codes, so that a set is one sequence only: then the likelihood is that of the set, and
    smaller by up to ln K! nats that the others spend on the order.

    Differs from the paper in that a token is foretold among the codes of its group, where the
    paper's has the codes of all groups to choose from; that norms stand before each part; that
    embeddings are not scaled; and that the head starts at zero, so that the first loss is
    K sum_g ln C_g.

    Args:
        num_slots: K.
        code_sizes: number of codes of each group.
        slot_order: `encoder`, `random` or `sorted`.
        dim: E.
        num_layers: layers of the transformer.
        num_heads: their heads.
        mlp_dim: hidden size of their MLP.
        dropout: share of values dropped in training.

    Raises:
        ValueError: if `slot_order` is unknown, there is no group, or `num_heads` does not divide
            `dim`.
    """

    first_code: Tensor
    is_code: Tensor

    def __init__(
        self,
        num_slots: int,
        *,
        code_sizes: Sequence[int],
        slot_order: SlotOrder,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if slot_order not in ("encoder", "random", "sorted"):
            raise ValueError(
                f"slot_order must be 'encoder', 'random' or 'sorted', got {slot_order!r}"
            )
        if not code_sizes:
            raise ValueError("expected at least one group of codes, got none")
        self.num_slots, self.code_sizes = num_slots, tuple(code_sizes)
        self.slot_order = slot_order
        num_groups = len(self.code_sizes)
        sizes = torch.tensor(self.code_sizes)
        self.register_buffer("first_code", sizes.cumsum(0) - sizes, persistent=False)
        is_code = torch.arange(max(self.code_sizes)) < sizes[:, None]
        self.register_buffer("is_code", is_code, persistent=False)
        self.embed = nn.Embedding(sum(self.code_sizes), dim)
        nn.init.normal_(self.embed.weight, std=dim**-0.5)
        self.start = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.position = LearnedPosition((num_slots, num_groups), dim=dim, init_std=dim**-0.5)
        self.transformer = CausalTransformer(
            dim, num_layers=num_layers, num_heads=num_heads, mlp_dim=mlp_dim, dropout=dropout
        )
        self.head = nn.Parameter(torch.zeros(num_groups, dim, max(self.code_sizes)))

    def log_prob(self, codes: Tensor) -> Tensor:
        """See `CodePrior.log_prob`; in training with the slots in the order that is wanted.

        Raises:
            ValueError: if `codes` are not (B,K,G).
        """
        expected = (self.num_slots, len(self.code_sizes))
        if codes.ndim != 3 or tuple(codes.shape[1:]) != expected:
            raise ValueError(
                f"expected codes (B,K,G) = (B, {expected[0]}, {expected[1]}), "
                f"got {tuple(codes.shape)}"
            )
        codes = self._ordered(codes)
        before = self.embed(codes + self.first_code).flatten(1, 2)[:, :-1]
        start = self.start.expand(len(codes), 1, -1).to(before.dtype)
        hidden = self.transformer(self.position(torch.cat([start, before], dim=1)))
        hidden = hidden.unflatten(1, expected)
        logits = self._logits(torch.einsum("bkge,gec->bkgc", hidden, self.head), slice(None))
        return logits.log_softmax(-1).gather(-1, codes[..., None]).sum((1, 2, 3))

    @torch.no_grad()
    def sample(
        self,
        num_scenes: int,
        *,
        temperature: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `CodePrior.sample`: token after token, from a cache of keys and values."""
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        num_groups = len(self.code_sizes)
        cache = self.transformer.start(num_scenes, num_tokens=self.num_slots * num_groups)
        token = self.start.expand(num_scenes, -1)
        drawn: list[Tensor] = []
        for place, embedding in enumerate(self.position.embedding()):
            group = place % num_groups
            hidden = self.transformer.step((token + embedding)[:, None], cache, position=place)
            logits = self._logits(hidden[:, 0] @ self.head[group], group) / temperature
            drawn.append(torch.multinomial(logits.softmax(-1), 1, generator=generator))
            token = self.embed(drawn[-1][:, 0] + self.first_code[group])
        return torch.cat(drawn, dim=1).unflatten(1, (self.num_slots, num_groups))

    def _logits(self, logits: Tensor, groups: int | slice) -> Tensor:
        """Logits (...,C) in float32, impossible where a group has no such code."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.masked_fill(~self.is_code[groups], -torch.inf)

    def _ordered(self, codes: Tensor) -> Tensor:
        """The slots of codes (B,K,G) in the order in which they are read."""
        if self.slot_order == "sorted":
            return sort_slots(codes)
        if self.slot_order == "random" and self.training:
            order = torch.rand(codes.shape[:2], device=codes.device).argsort(1)
            return codes.gather(1, order[..., None].expand_as(codes))
        return codes


def sort_slots(codes: Tensor) -> Tensor:
    """Put the slots of codes (B,K,G) in the order of their first code, then their second, ..."""
    for group in reversed(range(codes.shape[-1])):
        order = codes[..., group].argsort(dim=1, stable=True)
        codes = codes.gather(1, order[..., None].expand_as(codes))
    return codes
