"""Slots to the properties of objects.

B batch, T frames, K slots, D slot size, N tokens, P coordinates, C classes of a factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ocrl.interfaces import Decoder, Space
from ocrl.nn.mlp import MLP
from ocrl.properties import COORDINATES, FACTORS, PRESENCE, PropertySpec
from ocrl.types import DecoderOutput

Heads = Literal["shared", "separate"]


class PropertyDecoder(Decoder):
    """Heads for set prediction (Locatello et al. 2020, arXiv 2006.15055).

    Every slot is mapped by itself to coordinates in [0,1], logits of each factor's classes and a
    logit of presence, which `aux` has by the names of `ocrl.properties`; `recon` (B,T,K,...) are
    the same in that order as coordinates and probabilities. Masks are the encoder's attention.

    Differs from the paper in that the last layer starts at zero: at first every class is as likely
    as another, and coordinates are in the middle. `separate` heads, one for coordinates and one for
    the rest, are those of the Slot Mixture Module (Kirilenko et al. 2024, arXiv 2311.04640), whose
    coordinates are in [-1,1] instead.

    Args:
        slot_dim: D.
        spec: what is predicted.
        heads: one perceptron for everything, or `separate` ones for coordinates and the rest.
        hidden_dims: sizes of the hidden layers of each.
        image_size: (H, W), for the shape of masks.

    Raises:
        ValueError: if there is no such kind of heads.
    """

    space: Space = "set"

    def __init__(
        self,
        slot_dim: int,
        *,
        spec: PropertySpec,
        heads: Heads,
        hidden_dims: Sequence[int],
        image_size: Sequence[int],
    ) -> None:
        super().__init__()
        if heads not in ("shared", "separate"):
            raise ValueError(f"heads must be 'shared' or 'separate', got {heads!r}")
        self.spec = spec
        self.image_size = (image_size[0], image_size[1])
        sizes = list(spec.sizes.values())
        parts = [sum(sizes)] if heads == "shared" else [sizes[0], sum(sizes[1:])]
        self.heads = nn.ModuleList(
            MLP(slot_dim, hidden_dims=hidden_dims, out_dim=size) for size in parts
        )
        for head in self.heads:
            for parameter in list(head.parameters())[-2:]:
                nn.init.zeros_(parameter)

    def forward(
        self, slots: Tensor, target: Tensor | None = None, *, attn: Tensor | None = None
    ) -> DecoderOutput:
        """Predict the set of every frame; `recon` is (B,T,K,P + all C + 1), in float32.

        Without `attn`, and where it is over tokens of several views, masks have one cell: the share
        of the tokens that a slot holds.
        """
        outputs = torch.cat([head(slots) for head in self.heads], dim=-1).float()
        parts = self.spec.split(outputs)
        parts[COORDINATES] = parts[COORDINATES].sigmoid()
        shown = [
            part.softmax(-1) if name.startswith(FACTORS) else part for name, part in parts.items()
        ]
        shown[-1] = shown[-1].sigmoid()
        parts[PRESENCE] = parts[PRESENCE].squeeze(-1)
        return DecoderOutput(torch.cat(shown, dim=-1), self._masks(slots, attn), aux=parts)

    def _masks(self, slots: Tensor, attn: Tensor | None) -> Tensor:
        """Attention (B,T,K,N) as (B,T,K,h,w)."""
        if attn is None:
            return slots.new_full((*slots.shape[:3], 1, 1), 1 / slots.shape[2])
        height, width = self.image_size
        rows = round(math.sqrt(attn.shape[-1] * height / width))
        if rows * rows * width == attn.shape[-1] * height:
            return attn.unflatten(-1, (rows, attn.shape[-1] // rows))
        return attn.mean(-1)[..., None, None]
