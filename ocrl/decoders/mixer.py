"""Slot mixer: every patch asks the slots whose it is, and is drawn from the mixed slot.

B batch, T frames, K slots, D slot size, C H W image, N = h * w patches, Q query size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from ocrl.interfaces import Decoder, Space
from ocrl.nn.attention import MultiHeadAttention
from ocrl.nn.mlp import MLP
from ocrl.nn.position import LinearPosition
from ocrl.types import NUM_COLOURS, DecoderOutput

Query = Literal["position", "content", "both"]


class AllocationLayer(nn.Module):
    """Pre-norm cross-attention from patches to slots, then a perceptron.

    Args:
        query_dim: Q.
        slot_dim: D.
        num_heads: heads of the attention.
    """

    def __init__(self, query_dim: int, *, slot_dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(query_dim)
        self.attention = MultiHeadAttention(query_dim, num_heads=num_heads, context_dim=slot_dim)
        self.mlp = MLP(query_dim, hidden_dims=[2 * query_dim], out_dim=query_dim, norm_first=True)

    def forward(self, queries: Tensor, slots: Tensor) -> Tensor:
        """Update queries (M,N,Q) with what they find in slots (M,K,D)."""
        queries = queries + self.attention(self.norm(queries), slots)
        return queries + self.mlp(queries)


class SlotMixerDecoder(Decoder):
    """The slot mixer of OSRT (Sajjadi et al. 2022, arXiv 2206.06922, section 3.3) in 2-D.

    Queries attend to the slots, softmax weights over slots mix them, and a perceptron draws the
    patch from the mixed slot: its cost does not grow with K.

    What differs: a query is an image patch instead of a ray, and it may be made of the patch's
    **content** (`query="content"`). The drawing never sees the content, so what is drawn still
    comes from a slot; the content only chooses which. A decoder that knows the position cuts
    static tile worlds by place; with content queries and no position in the drawing
    (`is_position_drawn=False`) appearance decides. Such a decoder reads the frame (`target`) and
    can not draw slots of a frame that was never seen.

    Args:
        slot_dim: D.
        image_size: (H, W).
        patch_size: pixels of a patch's side.
        query: what a query is made of.
        query_dim: Q.
        num_layers: allocation layers before the mixing.
        num_heads: their heads.
        hidden_dims: hidden layers of the drawing perceptron.
        is_position_drawn: let the drawing know where the patch is.

    Raises:
        ValueError: if the patches do not tile the image, or `query` is unknown.
    """

    space: Space = "pixels"

    def __init__(
        self,
        slot_dim: int,
        *,
        image_size: Sequence[int],
        patch_size: int,
        query: Query,
        query_dim: int,
        num_layers: int,
        num_heads: int,
        hidden_dims: Sequence[int],
        is_position_drawn: bool,
    ) -> None:
        super().__init__()
        if query not in ("position", "content", "both"):
            raise ValueError(f"query must be 'position', 'content' or 'both', got {query!r}")
        if image_size[0] % patch_size or image_size[1] % patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size={patch_size}, got {list(image_size)}"
            )
        self.patch_size = patch_size
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.needs_target = query != "position"
        patch_dim = NUM_COLOURS * patch_size**2
        self.position = LinearPosition(self.grid, dim=query_dim) if query != "content" else None
        self.content = (
            MLP(patch_dim, hidden_dims=[2 * query_dim], out_dim=query_dim)
            if query != "position"
            else None
        )
        self.norm_slots = nn.LayerNorm(slot_dim)
        self.layers = nn.ModuleList(
            AllocationLayer(query_dim, slot_dim=slot_dim, num_heads=num_heads)
            for _ in range(num_layers)
        )
        self.norm_queries = nn.LayerNorm(query_dim)
        self.to_k = nn.Linear(slot_dim, query_dim)
        self.drawn_position = LinearPosition(self.grid, dim=slot_dim) if is_position_drawn else None
        self.draw = MLP(slot_dim, hidden_dims=hidden_dims, out_dim=patch_dim, norm_first=True)

    def _queries(self, target: Tensor | None, num_frames: int) -> Tensor:
        """Queries (M,N,Q) of M frames."""
        parts = []
        if self.position is not None:
            parts.append(self.position.embedding().expand(num_frames, -1, -1))
        if self.content is not None:
            if target is None:
                raise ValueError("a mixer with content queries expected the frames as target")
            patches = rearrange(
                target,
                "b t c (h p) (w q) -> (b t) (h w) (c p q)",
                p=self.patch_size,
                q=self.patch_size,
            )
            parts.append(self.content(patches))
        return torch.stack(parts).sum(0)

    def forward(
        self, slots: Tensor, target: Tensor | None = None, *, attn: Tensor | None = None
    ) -> DecoderOutput:
        """Draw (B,T,3,H,W); masks (B,T,K,h,w) on the grid of patches.

        Raises:
            ValueError: if the queries are made of content and there is no `target` (B,T,C,H,W).
        """
        batch_size = len(slots)
        slots = self.norm_slots(slots).flatten(0, 1)
        queries = self._queries(target, len(slots))
        for layer in self.layers:
            queries = layer(queries, slots)
        keys = self.to_k(slots) * queries.shape[-1] ** -0.5
        logits = torch.einsum("mkq,mnq->mkn", keys, self.norm_queries(queries))
        masks = logits.float().softmax(dim=1)
        mixed = torch.einsum("mkn,mkd->mnd", masks, slots.float())
        if self.drawn_position is not None:
            mixed = self.drawn_position(mixed)
        height, width = self.grid
        recon = rearrange(
            self.draw(mixed).float(),
            "(b t) (h w) (c p q) -> b t c (h p) (w q)",
            b=batch_size,
            h=height,
            w=width,
            p=self.patch_size,
            q=self.patch_size,
        )
        return DecoderOutput(
            recon, rearrange(masks, "(b t) k (h w) -> b t k h w", b=batch_size, h=height)
        )
