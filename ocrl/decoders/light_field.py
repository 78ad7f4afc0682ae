"""Per-slot light fields: every slot says what colour a ray has, and how sure it is of it.

B batch, T frames, K slots, D slot size, P rays of a frame, (h, w) their picture.
"""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from ocrl.interfaces import RayDecoder
from ocrl.nn.few_keys import PairMLP
from ocrl.nn.octaves import RayEncoding
from ocrl.types import NUM_COLOURS, DecoderOutput


class LightFieldDecoder(RayDecoder):
    """The spatial broadcast decoder of OSRT (Sajjadi et al. 2022, arXiv 2206.06922, section 3.3).

    A perceptron makes a colour and a logit of each slot and ray; softmax of the logits over slots
    is the segmentation and mixes the colours. Its cost grows with K.

    What differs: the first layer is applied to slots and to rays apart (`ocrl.nn.few_keys`),
    which is exact; slots are normalised first.

    Args:
        slot_dim: D.
        num_octaves: of the rays' code, see `ocrl.nn.octaves.RayEncoding`.
        first_octave: of the rays' origins.
        hidden_dims: hidden layers of the perceptron.
    """

    def __init__(
        self,
        slot_dim: int,
        *,
        num_octaves: int,
        first_octave: int,
        hidden_dims: Sequence[int],
    ) -> None:
        super().__init__()
        self.encoding = RayEncoding(num_octaves, first_octave=first_octave)
        self.norm_slots = nn.LayerNorm(slot_dim)
        self.field = PairMLP(
            slot_dim,
            ray_dim=self.encoding.out_dim,
            hidden_dims=hidden_dims,
            out_dim=NUM_COLOURS + 1,
            activation="leaky_relu",
        )

    def render(self, slots: Tensor, rays: Tensor) -> DecoderOutput:
        """Paint rays, see `RayDecoder.render`; parts are (B,T,K,3,h,w)."""
        code = self.encoding(rays).flatten(2, 3)[:, :, None]
        mapped = self.field.of_slots(self.norm_slots(slots))[:, :, :, None]
        made = self.field(mapped, code).float()
        made = rearrange(made, "b t k (h w) c -> b t k c h w", h=rays.shape[2])
        parts, logits = made[:, :, :, :NUM_COLOURS].sigmoid(), made[:, :, :, NUM_COLOURS]
        masks = logits.softmax(dim=2)
        return DecoderOutput((masks[:, :, :, None] * parts).sum(dim=2), masks, parts)
