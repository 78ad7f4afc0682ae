"""Autoregressive decoder: every token of a frame is foretold from slots and from other tokens.

B batch, T frames, K slots, D slot size, N = h * w tokens, V vocabulary, F features, C H W image,
M = B * T frames, E size of the transformer, O = V or F numbers that are foretold of a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ocrl.interfaces import Backbone, Decoder, Tokenizer
from ocrl.nn.position import LearnedPosition
from ocrl.nn.scan_order import scan_order
from ocrl.nn.slot_transformer import SlotTransformer
from ocrl.types import DecoderOutput

VISIBLE_SHARE = 0.1
"""Random-mask decoding: the share of tokens that every second frame sees."""


def draw_visible(num_frames: int, *, num_tokens: int, device: torch.device) -> Tensor:
    """Which tokens (M,N) random-mask decoding shows in training, as SmoothSA's published recipe.

    Half of the frames show a number drawn uniformly from 0 to N - 2, the others N / 10 - 1 rounded
    down, at least 0.
    """
    few = max(0, int(VISIBLE_SHARE * num_tokens) - 1)
    number = torch.randint(max(1, num_tokens - 1), (num_frames, 1), device=device)
    is_any = torch.rand(num_frames, 1, device=device) < 0.5
    place = torch.rand(num_frames, num_tokens, device=device).argsort(1).argsort(1)
    return place < torch.where(is_any, number, few)


class AutoregressiveDecoder(Decoder):
    """A transformer that reads the frame's own tokens, and the slots.

    What it foretells is told by `target`: the tokens of a tokenizer that learns with it, as SLATE
    (Singh et al. 2022, arXiv 2110.11405, section 2.3) and STEVE (arXiv 2205.14065); or the
    features of a frozen backbone, as DINOSAUR (Seitzer et al. 2022, arXiv 2209.14860).

    With `orders`, token by token behind a causal mask, in one order or in several, each with a
    start token of its own: one is drawn per call in training and the first is read in `eval()`
    (SPOT, Kakogeorgiou et al. 2024, arXiv 2312.00648, section 3.2). Without, random-mask decoding
    as SmoothSA's (Zhao et al. 2025, arXiv 2508.05417) published recipe: all tokens see each other;
    in training all but a random few (`draw_visible`) are hidden behind one learned vector; in
    `eval()` none is, so that there only the masks mean something.

    Masks are the last layer's cross-attention, its mean over heads. SLATE and STEVE are scored by
    their encoder's attention instead, see `mask_source` of the evaluation.

    What differs: the head starts at zero, so that the first loss is N ln V, or the mean square of
    the features; the slots are normalised after their projection for tokens too; the size of the
    transformer is free of F; position embeddings belong to a token's cell; in random-mask decoding
    the tokens need not be permuted as well, for nothing but their position tells them apart.

    Args:
        slot_dim: D.
        target: what is foretold. A backbone is frozen and stays in `eval`.
        orders: of the cells, see `ocrl.nn.scan_order`; None for random-mask decoding.
        has_position: add a learned vector for its cell to every token that is read.
        dim: E.
        num_layers: layers of the transformer.
        num_heads: their heads.
        mlp_dim: hidden size of their MLP.
        dropout: share of values dropped in training.

    Raises:
        ValueError: if there is no order, or random-mask decoding has no positions.
    """

    order_table: Tensor

    def __init__(
        self,
        slot_dim: int,
        *,
        target: Tokenizer | Backbone,
        orders: Sequence[int] | None,
        has_position: bool,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if orders is not None and not orders:
            raise ValueError("orders must name at least one order, or be null, got none")
        if orders is None and not has_position:
            raise ValueError("random-mask decoding must have positions, got has_position=False")
        self.target = target
        self.grid = target.grid
        if isinstance(target, Tokenizer):
            self.space = "tokens"
            out_dim = target.vocabulary_size
            self.embed: nn.Module = nn.Embedding(out_dim, dim)
        else:
            self.space = "features"
            out_dim = target.out_dim
            self.embed = nn.Sequential(nn.Linear(out_dim, dim, bias=False), nn.LayerNorm(dim))
            target.requires_grad_(False).eval()
        self.position = (
            LearnedPosition(self.grid, dim=dim, init_std=dim**-0.5) if has_position else None
        )
        self.is_causal = orders is not None
        kinds = [0] if orders is None else orders
        table = torch.stack([scan_order(self.grid, index=index) for index in kinds])
        self.register_buffer("order_table", table, persistent=False)
        # The start token of each order, or the one that stands for hidden tokens.
        self.special = nn.Parameter(torch.randn(len(kinds), dim) * dim**-0.5)
        self.to_context = nn.Linear(slot_dim, dim, bias=False)
        self.norm_context = nn.LayerNorm(dim)
        self.transformer = SlotTransformer(
            dim, num_layers=num_layers, num_heads=num_heads, mlp_dim=mlp_dim, dropout=dropout
        )
        self.head = nn.Linear(dim, out_dim, bias=False)
        nn.init.zeros_(self.head.weight)

    def train(self, mode: bool = True) -> AutoregressiveDecoder:
        """Set the mode; a frozen backbone stays in `eval`."""
        super().train(mode)
        if self.space == "features":
            self.target.eval()
        return self

    def forward(
        self, slots: Tensor, target: Tensor | None = None, *, attn: Tensor | None = None
    ) -> DecoderOutput:
        """Foretell the tokens (B,T,N,O) of the frames `target` (B,T,C,H,W).

        Every token is foretold from the true ones that it may see. Without `target` it is foretold
        from those generated before, which are constants to the gradient.

        Returns:
            `recon`; masks (B,T,K,h,w) on the grid of the target; and in `aux`, if there is a
            target, see `DecoderOutput`, the `target` and a tokenizer's `tokenized`.
        """
        shape = slots.shape[:2]
        context = self._context(slots)
        aux: dict[str, Tensor] = {}
        wanted: Tensor | None
        if target is not None:
            wanted, aux = self._read(target)
        else:
            wanted = self._generate(context) if self.is_causal else None
        hidden, masks = self._mix(wanted, context)
        return DecoderOutput(
            self.head(hidden).unflatten(0, shape),
            masks.unflatten(-1, self.grid).unflatten(0, shape),
            aux={name: value.unflatten(0, shape) for name, value in aux.items()},
        )

    @torch.no_grad()
    def generate(self, slots: Tensor) -> Tensor:
        """Make the tokens (B,T,N), or features (B,T,N,F), of slots (B,T,K,D) alone.

        Greedily, token after token in the first order; with random-mask decoding all at once.
        """
        context = self._context(slots)
        if self.is_causal:
            made = self._generate(context)
        else:
            made = self._choose(self.head(self._mix(None, context)[0]))
        return made.unflatten(0, slots.shape[:2])

    def depict(self, slots: Tensor, *, attn: Tensor | None = None) -> Tensor | None:
        """Pictures (B,T,C,H,W) of generated tokens; None if features are what is foretold."""
        if not isinstance(self.target, Tokenizer):
            return None
        tokens = self.generate(slots)
        return self.target.decode(tokens.flatten(0, 1)).unflatten(0, slots.shape[:2])

    def _context(self, slots: Tensor) -> Tensor:
        """The slots (M,K,E) as the transformer reads them."""
        return self.norm_context(self.to_context(slots)).flatten(0, 1)

    def _read(self, frames: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The true tokens (M,N) or features (M,N,F), and what objectives read."""
        if isinstance(self.target, Tokenizer):
            tokens, tokenized = self.target(frames.flatten(0, 1))
            return tokens, {"target": tokens, "tokenized": tokenized}
        with torch.no_grad():
            features = self.target(frames.flatten(0, 1))
            features = features.to(torch.promote_types(features.dtype, torch.float32))
        return features, {"target": features}

    def _embedded(self, wanted: Tensor) -> Tensor:
        """Tokens (M,N) or features (M,N,F) as the transformer reads them, (M,N,E)."""
        embedded: Tensor = self.embed(wanted)
        return embedded if self.position is None else self.position(embedded)

    def _choose(self, foretold: Tensor) -> Tensor:
        return foretold.argmax(-1) if self.space == "tokens" else foretold

    def _mix(self, wanted: Tensor | None, context: Tensor) -> tuple[Tensor, Tensor]:
        """The transformer's output (M,N,E) and masks (M,K,N), both in row-major order."""
        if not self.is_causal:
            sequence = self._hide(wanted, len(context))
            return self.transformer(sequence, context, is_causal=False)
        assert wanted is not None
        index = torch.zeros(1, dtype=torch.long, device=context.device)
        if self.training and len(self.order_table) > 1:
            index = torch.randint(len(self.order_table), (1,), device=context.device)
        order = self.order_table.index_select(0, index)[0]
        start = self.special.index_select(0, index).expand(len(context), 1, -1)
        before = self._embedded(wanted).index_select(1, order[:-1])
        hidden, masks = self.transformer(
            torch.cat([start.to(before.dtype), before], dim=1), context, is_causal=True
        )
        inverse = order.argsort()
        return hidden.index_select(1, inverse), masks.index_select(2, inverse)

    def _hide(self, wanted: Tensor | None, num_frames: int) -> Tensor:
        """The sequence (M,N,E) of random-mask decoding; all tokens are hidden if `wanted` is None.

        Which ones are visible is drawn in training; in `eval()` all are.
        """
        assert self.position is not None
        hidden = self.position(self.special.expand(num_frames, self.order_table.shape[1], -1))
        if wanted is None:
            return hidden
        embedded = self._embedded(wanted)
        if not self.training:
            return embedded
        is_visible = draw_visible(num_frames, num_tokens=wanted.shape[1], device=wanted.device)
        return torch.where(is_visible[..., None], embedded, hidden.to(embedded.dtype))

    @torch.no_grad()
    def _generate(self, context: Tensor) -> Tensor:
        """Greedy tokens (M,N) or features (M,N,F) of the context (M,K,E), in row-major order."""
        order = self.order_table[0]
        cache = self.transformer.start(context, num_tokens=len(order))
        token = self.special[:1].expand(len(context), 1, -1)
        made = []
        for position, cell in enumerate(order.tolist()):
            hidden = self.transformer.step(token, cache, position=position)
            made.append(self._choose(self.head(hidden)))
            token = self.embed(made[-1])
            if self.position is not None:
                token = token + self.position.embedding()[cell]
        return torch.cat(made, dim=1).index_select(1, order.argsort())
