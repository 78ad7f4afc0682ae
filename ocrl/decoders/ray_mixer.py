"""Slot mixer on rays: every ray asks the slots whose it is, and is drawn from the mixed slot.

B batch, T frames, K slots, D slot size, P rays of a frame, (h, w) their picture, Q query size,
E size of an encoded ray.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ocrl.interfaces import RayDecoder
from ocrl.nn.few_keys import FewKeyAttention, PairMLP
from ocrl.nn.location import Precision, feature_dim, split_placed
from ocrl.nn.mlp import MLP
from ocrl.nn.octaves import RayEncoding
from ocrl.nn.triangulation import NUM_AXES, distances
from ocrl.types import NUM_COLOURS, DecoderOutput

_FIRST_WIDTH = 0.4
"""Of the Gaussians around places, in units of the world."""
_FIRST_GROUND = -1.0
"""Logit of a slot without a place: what a Gaussian has at 1.4 widths."""
_BEHIND = -20.0
"""Logit of a slot that is behind the camera, or far away."""


class RayAllocation(nn.Module):
    """Pre-norm attention from rays to slots, then a perceptron.

    Args:
        query_dim: Q.
        slot_dim: D.
        num_heads: heads of the attention.
        head_dim: size of each.
        mlp_dim: hidden size of the perceptron.
    """

    def __init__(
        self, query_dim: int, *, slot_dim: int, num_heads: int, head_dim: int, mlp_dim: int
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(query_dim)
        self.attention = FewKeyAttention(
            query_dim, slot_dim=slot_dim, num_heads=num_heads, head_dim=head_dim
        )
        self.mlp = MLP(query_dim, hidden_dims=[mlp_dim], out_dim=query_dim, norm_first=True)

    def forward(self, queries: Tensor, slots: Tensor) -> Tensor:
        """Update queries (B,P,Q) with what they find in slots (B,K,D)."""
        queries = queries + self.attention(self.norm(queries), slots)
        return queries + self.mlp(queries)


class _Nearness(nn.Module):
    """How near rays pass by the places of slots: logarithms of Gaussians, up to a constant.

    Args:
        slot_dim: D, without the place.
    """

    def __init__(self, slot_dim: int) -> None:
        super().__init__()
        self.precision = Precision(slot_dim, first_width=_FIRST_WIDTH)
        self.ground = nn.Parameter(torch.tensor(_FIRST_GROUND))

    def forward(self, slots: Tensor, places: Tensor, is_placed: Tensor, rays: Tensor) -> Tensor:
        """Logits (B,K,P) of slots (B,K,D) at places (B,K,3) in rays (B,P,6)."""
        precision = self.precision(slots)
        with torch.autocast(slots.device.type, enabled=False):
            squares, along = distances(places.float(), rays.float())
            logits = -0.5 * squares * precision
            logits = torch.where(along > 0, logits, _BEHIND).clamp_min(_BEHIND)
            return torch.where(is_placed > 0.5, logits, self.ground.float())


class RayMixerDecoder(RayDecoder):
    """The slot mixer of OSRT (Sajjadi et al. 2022, arXiv 2206.06922, section 3.3 and A.4).

    A ray attends to the slots, softmax weights over slots mix them, and a perceptron draws the
    ray's colour from the mixed slot and the ray. The weights are the segmentation. PSB (Singh et
    al. 2024, arXiv 2402.17077, appendix D.4.4) has the same decoder with three narrower layers.
    Its cost hardly grows with K.

    What differs: the maps of the attention, and the first layer of the drawing, are applied to the
    slots instead of to each ray (`ocrl.nn.few_keys`), which is exact and cheaper. Slots are
    normalised first, as in `ocrl.decoders.mixer`, of which this is the posed sibling. PSB draws
    with residual blocks. With `reads_places`, which is ours, slots end with a place in the world: a
    ray belongs to a slot the rather the nearer it passes by, a Gaussian whose width the slot says,
    so which slot is where need not be learned from pictures.

    Args:
        slot_dim: D.
        num_octaves: of the rays' code, see `ocrl.nn.octaves.RayEncoding`.
        first_octave: of the rays' origins.
        query_dim: Q.
        num_layers: attention layers before the mixing.
        num_heads: their heads.
        head_dim: size of a head.
        mlp_dim: hidden size of their perceptrons.
        hidden_dims: hidden layers of the drawing.
        plane: see `ocrl.nn.octaves.RayEncoding`.
        reads_places: whether slots end with their places, as those of `PlacedSlots` and of a
            `PSB` with places.
    """

    def __init__(
        self,
        slot_dim: int,
        *,
        num_octaves: int,
        first_octave: int,
        query_dim: int,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        mlp_dim: int,
        hidden_dims: Sequence[int],
        plane: Sequence[float] | None = None,
        reads_places: bool = False,
    ) -> None:
        super().__init__()
        self.encoding = RayEncoding(num_octaves, first_octave=first_octave, plane=plane)
        code_dim = self.encoding.out_dim
        self.num_axes = NUM_AXES if reads_places else 0
        self.nearness: _Nearness | None = None
        if reads_places:
            slot_dim = feature_dim(slot_dim, num_axes=NUM_AXES)
            self.nearness = _Nearness(slot_dim)
        self.to_queries = MLP(code_dim, hidden_dims=[2 * query_dim], out_dim=query_dim)
        self.norm_slots = nn.LayerNorm(slot_dim)
        self.layers = nn.ModuleList(
            RayAllocation(
                query_dim,
                slot_dim=slot_dim,
                num_heads=num_heads,
                head_dim=head_dim,
                mlp_dim=mlp_dim,
            )
            for _ in range(num_layers)
        )
        self.norm_queries = nn.LayerNorm(query_dim)
        self.to_k = nn.Linear(slot_dim, query_dim, bias=False)
        self.draw = PairMLP(
            slot_dim,
            ray_dim=code_dim,
            hidden_dims=hidden_dims,
            out_dim=NUM_COLOURS,
            activation="leaky_relu",
        )

    def _each(self, slots: Tensor, rays: Tensor) -> tuple[Tensor, Tensor | float]:
        """Normalised slots (B,K,D) without their places, and how near these are to rays."""
        if self.nearness is None:
            return self.norm_slots(slots), 0.0
        features, places, is_placed = split_placed(slots, num_axes=NUM_AXES)
        each = self.norm_slots(features)
        return each, self.nearness(each, places, is_placed, rays)

    def render(self, slots: Tensor, rays: Tensor) -> DecoderOutput:
        """Paint rays, see `RayDecoder.render`."""
        shape = rays.shape[2:4]
        flat = rays.flatten(2, 3).flatten(0, 1)
        code = self.encoding(flat)
        each, near = self._each(slots.flatten(0, 1), flat)
        queries = self.to_queries(code)
        for layer in self.layers:
            queries = layer(queries, each)
        keys = self.to_k(each) * queries.shape[-1] ** -0.5
        logits = torch.bmm(keys, self.norm_queries(queries).to(keys.dtype).mT)
        masks = (logits.float() + near).softmax(dim=1)
        mapped = self.draw.of_slots(each)
        mixed = torch.bmm(masks.mT.to(mapped.dtype), mapped)
        colours = self.draw(mixed, code).float().sigmoid().mT
        return DecoderOutput(
            colours.unflatten(-1, shape).unflatten(0, slots.shape[:2]),
            masks.unflatten(-1, shape).unflatten(0, slots.shape[:2]),
        )
