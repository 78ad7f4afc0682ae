"""What many rays read of a few slots, without making a query or a drawing input for every ray.

B batch, P rays, K slots, D slot size, Q query size, R ray features, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn

from ocrl.nn.mlp import make_activation


class FewKeyAttention(nn.Module):
    """Multi-head attention of many queries to few slots, with the maps applied to the slots.

    q . k = x^T (Wq^T Wk s), and the output Wo sum_k a_k Wv s_k = sum_k a_k (Wo Wv s_k): all four
    maps act on the K slots once, and a query costs 2 H K Q multiplications instead of those of two
    Q x Q maps; nothing of the size of the heads is kept for it. Equal to the ordinary form. The
    maps have no bias.

    Args:
        dim: Q.
        slot_dim: D.
        num_heads: H.
        head_dim: of the queries and keys of a head, which need not be Q / H.
    """

    def __init__(self, dim: int, *, slot_dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads, self.head_dim = num_heads, head_dim
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(slot_dim, inner, bias=False)
        self.to_v = nn.Linear(slot_dim, inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, queries: Tensor, slots: Tensor) -> Tensor:
        """Read slots (B,K,D) with queries (B,P,Q): (B,P,Q)."""
        heads = "b k (h e) -> b k h e"
        keys = rearrange(self.to_k(slots), heads, h=self.num_heads) * self.head_dim**-0.5
        values = rearrange(self.to_v(slots), heads, h=self.num_heads)
        to_q = self.to_q.weight.to(keys.dtype).unflatten(0, (self.num_heads, self.head_dim))
        to_out = self.to_out.weight.to(values.dtype).unflatten(1, (self.num_heads, self.head_dim))
        seen = torch.einsum("bkhe,heq->bhkq", keys, to_q).flatten(1, 2)
        told = torch.einsum("bkhe,qhe->bhkq", values, to_out).flatten(1, 2)
        logits = torch.bmm(queries.to(seen.dtype), seen.mT).unflatten(-1, (self.num_heads, -1))
        weights = logits.float().softmax(dim=-1).to(told.dtype)
        return torch.bmm(weights.flatten(2), told)


class PairMLP(nn.Module):
    """A perceptron on a slot beside a ray, whose first layer maps slots and rays apart.

    W [s, r] = Ws s + Wr r: the slots' part is made K times and not once for every ray, and where
    slots are mixed linearly, after the map as well as before. Equal to the ordinary form.

    Args:
        slot_dim: D.
        ray_dim: R.
        hidden_dims: hidden layers; at least one.
        out_dim: size of the output.
        activation: see `ocrl.nn.mlp.make_activation`.

    Raises:
        ValueError: if there is no hidden layer.
    """

    def __init__(
        self,
        slot_dim: int,
        *,
        ray_dim: int,
        hidden_dims: Sequence[int],
        out_dim: int,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if not hidden_dims:
            raise ValueError("expected at least one hidden layer in hidden_dims, got none")
        self.of_slots = nn.Linear(slot_dim, hidden_dims[0])
        self.of_rays = nn.Linear(ray_dim, hidden_dims[0], bias=False)
        layers: list[nn.Module] = []
        sizes = [*hidden_dims, out_dim]
        for before, after in pairwise(sizes):
            layers += [make_activation(activation), nn.Linear(before, after)]
        self.layers = nn.Sequential(*layers)

    def forward(self, mapped_slots: Tensor, rays: Tensor) -> Tensor:
        """The rest of it, for what `of_slots` made (...,hidden) and rays (...,R)."""
        return self.layers(mapped_slots + self.of_rays(rays))
