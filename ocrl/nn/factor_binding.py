"""Concept memories: what a block of a slot may be, and the binding of blocks to it.

M blocks of a slot, d size of a block, D = M * d, P prototypes of a block, E size of a code; ... any
leading axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ocrl.nn.attention import standardize
from ocrl.nn.block import BlockLinear, split_blocks
from ocrl.nn.mlp import MLP
from ocrl.nn.quantize import Quantizer


class Bound(NamedTuple):
    """Slots after binding.

    Attributes:
        slots: (...,D).
        codes: (...,M) int64, which concept each block is; None if blocks are mixtures.
        costs: named numbers (...,) per slot that an objective may lower.
    """

    slots: Tensor
    codes: Tensor | None
    costs: Mapping[str, Tensor]


class FactorMemory(nn.Module, ABC):
    """Concepts of each block: a bottleneck that gives blocks a meaning of their own.

    Attributes:
        num_blocks: M.
        code_sizes: number of codes of each block; empty if blocks are mixtures.
    """

    num_blocks: int
    code_sizes: tuple[int, ...]

    @abstractmethod
    def forward(self, slots: Tensor, *, progress: Tensor) -> Bound:
        """Replace every block of slots (...,D) by what the memory has for it.

        Args:
            slots: (...,D).
            progress: scalar in [0,1], the share of training that is done.
        """

    @abstractmethod
    def embed(self, codes: Tensor) -> Tensor:
        """The slots (...,D) that codes (...,M) stand for.

        Raises:
            ValueError: if blocks are mixtures.
        """


class PrototypeMemory(FactorMemory):
    """Each block becomes a mixture of the prototypes of its own, by attention.

    Factor binding of SysBinder (Singh, Kim and Ahn 2023, arXiv 2211.01177, section 3.1.2): with q
    the block and C its prototypes, both standardized, softmax(q C^T / sqrt(d)) C. Prototypes are
    learned vectors that a perceptron of four layers, the same for all blocks, has mapped. The
    softmax is float32 whatever the autocast.

    Args:
        slot_dim: D.
        num_blocks: M.
        num_prototypes: P.

    Raises:
        ValueError: if `num_blocks` does not divide `slot_dim`, or blocks have one number only.
    """

    def __init__(self, slot_dim: int, *, num_blocks: int, num_prototypes: int) -> None:
        super().__init__()
        if slot_dim % num_blocks or slot_dim == num_blocks:
            raise ValueError(
                "expected num_blocks to cut slot_dim into blocks of at least 2 numbers, got "
                f"{num_blocks} blocks for slot_dim {slot_dim}"
            )
        self.num_blocks = num_blocks
        self.code_sizes = ()
        size = slot_dim // num_blocks
        self.seeds = nn.Parameter(torch.empty(num_blocks, num_prototypes, size))
        nn.init.trunc_normal_(self.seeds)
        self.to_prototypes = MLP(size, hidden_dims=[4 * size] * 3, out_dim=size)
        for layer in self.to_prototypes.layers:
            if isinstance(layer, nn.Linear):
                # Biases would outweigh what differs between prototypes: all slots would be alike.
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, slots: Tensor, *, progress: Tensor) -> Bound:
        """See `FactorMemory.forward`."""
        prototypes = standardize(self.to_prototypes(self.seeds))
        blocks = standardize(split_blocks(slots, self.num_blocks))
        logits = torch.einsum("...md,mpd->...mp", blocks, prototypes) * blocks.shape[-1] ** -0.5
        attn = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        read = torch.einsum("...mp,mpd->...md", attn.to(prototypes.dtype), prototypes)
        return Bound(read.flatten(-2).to(slots.dtype), None, {})

    def embed(self, codes: Tensor) -> Tensor:
        """See `FactorMemory.embed`."""
        raise ValueError("expected a memory of codes, got one whose blocks are mixtures")


class CodeMemory(FactorMemory):
    """Each block becomes one of the codes of its own codebook.

    The semantic vector quantiser of Wu, Lee and Ahn (2024, arXiv 2402.01203, section 3.1). Differs
    from it in that codes stand on the unit sphere (see `ocrl.nn.quantize.EMAQuantizer`), between a
    linear map of each block and one back, so that their size is free; and in that other
    quantisers may take its place.

    Args:
        slot_dim: D.
        quantizer: of as many groups as there are blocks, each reading one block.

    Raises:
        ValueError: if the groups read all blocks, or have not the size of equal blocks.
    """

    def __init__(self, slot_dim: int, *, quantizer: Quantizer) -> None:
        super().__init__()
        if not quantizer.is_blockwise:
            raise ValueError(
                "expected a quantizer with is_blockwise=True, got one whose groups read all blocks"
            )
        self.code_sizes = quantizer.sizes
        self.num_blocks = len(quantizer.sizes)
        self.quantizer = quantizer
        self.to_slots = BlockLinear(
            quantizer.out_dim, slot_dim, num_blocks=self.num_blocks, bias=False
        )
        # Codes of length 1 make blocks of unit variance, as slots start with.
        nn.init.normal_(self.to_slots.weight)

    def forward(self, slots: Tensor, *, progress: Tensor) -> Bound:
        """See `FactorMemory.forward`; in `eval()` codes are hard and nothing is drawn."""
        values, codes, costs = self.quantizer(slots, progress=progress)
        return Bound(self._back(values), codes, costs)

    def embed(self, codes: Tensor) -> Tensor:
        """See `FactorMemory.embed`."""
        return self._back(self.quantizer.embed(codes))

    def _back(self, values: Tensor) -> Tensor:
        with torch.autocast(values.device.type, enabled=False):
            return self.to_slots(values.to(self.to_slots.weight.dtype))
