"""SysBinder and SVQ: slots made of blocks, each bound to a memory of concepts.

B batch, T frames, K slots, D slot size, N tokens, F token features, M blocks of a slot.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ocrl.initializers import preheat_aux, start_queries
from ocrl.interfaces import Backbone, FrameSlotEncoder, Initializer, ScheduledModule, SlotCodes
from ocrl.nn.attention import CompetitiveAttention, EpsPlacement, standardize
from ocrl.nn.block import BlockGRUCell, BlockMLP
from ocrl.nn.factor_binding import Bound, FactorMemory
from ocrl.nn.slot_attention import Gradient, check_gradient, unroll
from ocrl.types import Camera, SlotOutput


class SysBinder(FrameSlotEncoder, ScheduledModule, SlotCodes):
    """Neural Systematic Binder (Singh, Kim and Ahn 2023, arXiv 2211.01177, algorithm 1).

    Slots compete for tokens as in slot attention; then each of their blocks is updated by a GRU and
    a perceptron of its own, and replaced by what a memory of concepts has for it, in every
    iteration. With `PrototypeMemory` that is a mixture of prototypes: SysBinder. With `CodeMemory`
    it is one code: the semantic vector quantiser (SVQ) of Wu, Lee and Ahn (2024, arXiv 2402.01203),
    and `codes` (B,T,K,M) are those of the last iteration. In `eval()` codes are hard and nothing is
    drawn.

    The memory's costs are in `aux` per slot, such as `code_commitment` (B,T,K); as in SVQ's code
    those of the last iteration only. Differs from both papers in `eval()`, where a Gaussian start
    has fixed noise; in what is an argument here (the papers: 3 iterations, the full gradient, eps
    on the weights); and from SVQ as `CodeMemory` and its quantiser say.

    Args:
        backbone: frames to tokens.
        initializer: the queries of every frame.
        memory: what a block may be; it says how many blocks there are.
        num_slots: K.
        slot_dim: D.
        num_iterations: rounds of competition per frame.
        mlp_dim: hidden size of the residual perceptron, of all blocks together.
        gradient: see `ocrl.nn.slot_attention.Corrector`.
        eps_placement: see `ocrl.nn.attention.competitive_read`.

    Raises:
        ValueError: if the blocks do not divide `slot_dim` and `mlp_dim`, or `gradient` is unknown.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        initializer: Initializer,
        memory: FactorMemory,
        num_slots: int,
        slot_dim: int,
        num_iterations: int,
        mlp_dim: int,
        gradient: Gradient,
        eps_placement: EpsPlacement,
    ) -> None:
        super().__init__()
        num_blocks = memory.num_blocks
        self.num_slots, self.slot_dim = num_slots, slot_dim
        self.num_iterations, self.gradient = num_iterations, check_gradient(gradient)
        self.code_sizes = memory.code_sizes
        self.backbone = backbone
        self.initializer = initializer
        self.norm_slots = nn.LayerNorm(slot_dim)
        self.attention = CompetitiveAttention(
            backbone.out_dim, slot_dim=slot_dim, eps_placement=eps_placement
        )
        self.gru = BlockGRUCell(slot_dim, num_blocks=num_blocks)
        self.mlp = BlockMLP(slot_dim, hidden_dim=mlp_dim, num_blocks=num_blocks)
        self.memory = memory
        self.register_buffer("progress", torch.zeros(()))

    def encode(
        self, frames: Tensor, *, condition: Tensor | None, camera: Camera | None = None
    ) -> SlotOutput:
        """Encode frames, see `FrameSlotEncoder.encode`."""
        tokens = self.backbone(frames, camera=camera)
        queries, preheated = start_queries(self.initializer, tokens, condition=condition)
        queries = queries.to(torch.promote_types(queries.dtype, torch.float32))
        tokens = standardize(tokens)
        slots, (attn, bound) = unroll(
            lambda slots: self._iterate(slots, tokens),
            queries,
            num_iterations=self.num_iterations,
            gradient=self.gradient,
        )
        aux = dict(preheat_aux(self.initializer, preheated, slots, True))
        aux.update((f"code_{name}", cost[:, None]) for name, cost in bound.costs.items())
        codes = None if bound.codes is None else bound.codes[:, None]
        return SlotOutput(slots[:, None], attn[:, None], queries[:, None], codes, aux)

    def slots_of(self, codes: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """See `SlotCodes.slots_of`; there are no coordinates."""
        if coordinates is not None:
            raise ValueError(
                f"expected no coordinates beside the codes, got shape {tuple(coordinates.shape)}"
            )
        return self.memory.embed(codes)

    def _iterate(self, slots: Tensor, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, Bound]]:
        """Slots (B,K,D) after one round, the softmax over slots (B,K,N) and what was bound."""
        updates, attn = self.attention(self.norm_slots(slots), tokens)
        slots = self.gru(updates, slots)
        bound = self.memory(slots + self.mlp(slots), progress=self.progress)
        return bound.slots, (attn, bound)
