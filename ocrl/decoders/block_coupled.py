"""A decoder of slots that reads their blocks one by one.

B batch, T frames, K slots, D slot size, M blocks of a slot, E size of a coupled block, C H W image,
h w the size of masks.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ocrl.interfaces import Decoder
from ocrl.nn.block import BlockLinear, split_blocks
from ocrl.nn.transformer import TransformerBlock
from ocrl.types import DecoderOutput


class BlockCoupledDecoder(Decoder):
    """Gives another decoder the blocks of all slots, coupled, in the place of slots.

    The block coupler of SysBinder (Singh, Kim and Ahn 2023, arXiv 2211.01177), which SVQ (Wu, Lee
    and Ahn 2024, arXiv 2402.01203) takes over: every block is mapped by itself, is told which block
    of a slot it is, and a transformer block mixes those of one slot. The wrapped decoder reads a
    set of K * M vectors; the masks of the blocks of a slot are summed.

    Differs from the published code in that a free vector says which block it is, where that code
    maps one by a perceptron; and in the last norm, which is left to what the wrapped decoder does
    with the slots it reads.

    Args:
        decoder: of K * M vectors of size `dim`; one that needs no `attn`.
        slot_dim: D.
        num_blocks: M.
        dim: E.
        num_heads: of the transformer block.
        mlp_dim: hidden size of its perceptron.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        slot_dim: int,
        num_blocks: int,
        dim: int,
        num_heads: int,
        mlp_dim: int,
    ) -> None:
        super().__init__()
        self.space = decoder.space
        self.grid: tuple[int, int] = decoder.grid  # type: ignore[assignment]
        self.num_blocks = num_blocks
        self.decoder = decoder
        self.to_coupled = BlockLinear(slot_dim, num_blocks * dim, num_blocks=num_blocks, bias=False)
        self.place = nn.Parameter(torch.zeros(num_blocks, dim))
        self.coupler = TransformerBlock(dim, num_heads=num_heads, mlp_dim=mlp_dim, norm_first=True)

    def forward(
        self, slots: Tensor, target: Tensor | None = None, *, attn: Tensor | None = None
    ) -> DecoderOutput:
        """Decode slots (B,T,K,D), see `Decoder.forward`; `attn` is not read.

        Returns:
            What the wrapped decoder gives, with masks (B,T,K,h,w) and no `parts`.
        """
        decoded: DecoderOutput = self.decoder(self.couple(slots), target)
        masks = rearrange(decoded.masks, "b t (k m) h w -> b t k m h w", m=self.num_blocks).sum(3)
        return DecoderOutput(decoded.recon, masks, aux=decoded.aux)

    def depict(self, slots: Tensor, *, attn: Tensor | None = None) -> Tensor | None:
        """See `Decoder.depict`."""
        return self.decoder.depict(self.couple(slots))

    def couple(self, slots: Tensor) -> Tensor:
        """The blocks (B,T,K*M,E) of slots (B,T,K,D), each of which knows the others of its slot."""
        blocks = split_blocks(self.to_coupled(slots), self.num_blocks) + self.place
        coupled = self.coupler(blocks.flatten(0, 2))
        return rearrange(coupled, "(b t k) m e -> b t (k m) e", b=len(slots), t=slots.shape[1])
