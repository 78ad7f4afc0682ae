"""Solids: every slot is a small ellipsoid at its place in the world, before a ground.

B batch, T frames, K slots, D slot size, P rays of a frame, (h, w) their picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ocrl.interfaces import RayDecoder
from ocrl.nn.few_keys import PairMLP
from ocrl.nn.location import feature_dim, split_placed
from ocrl.nn.mlp import MLP
from ocrl.nn.octaves import RayEncoding
from ocrl.nn.triangulation import NUM_AXES
from ocrl.types import NUM_COLOURS, DecoderOutput

_SHAPE = (1, 3, 3)
"""How opaque, three half axes, how they are sheared."""
_HIDDEN = -20.0
"""The logit of a solid behind the camera."""
_EPS = 1e-4


class _Meeting(NamedTuple):
    """Where rays pass solids nearest, in the solids' own space, where they are unit spheres.

    Attributes:
        along: (B,T,P,K) how far along the ray that is.
        squares: (B,T,P,K) squared distances from the centre.
        normal: (B,T,P,K,3) where the ray enters the sphere; where it misses, its nearest point.
    """

    along: Tensor
    squares: Tensor
    normal: Tensor


class SolidsDecoder(RayDecoder):
    """Small ellipsoids of a colour, each at the place of its slot, before what the ground paints.

    The posed sibling of the glimpse decoder, for slots that end with a place (`PlacedSlots`). A
    slot is an ellipsoid of limited size, so it can hold one thing and no more, and its silhouette
    is known from every camera without being learned. A ray sees it with an opacity that falls with
    the distance between them; solids that are nearer hide those behind, and what all let through
    shows the ground: a perceptron on a few octaves of the ray and the slots without a place, too
    coarse to paint things. The colour of a solid changes linearly with its normal, which is
    shading. `masks` are the shares of this composition, and `parts` what each slot would show.

    It draws imagined slots as well, for their place is in them. Ours; scenes of soft primitives
    are those of Differentiable Blocks World (Monnier et al. 2023, arXiv 2307.05473), fitted there
    to one scene at a time.

    Args:
        slot_dim: D, with the place.
        min_radius: of a solid's half axes, in units of the world.
        max_radius: likewise.
        sharpness: how fast the logit of the opacity falls, in half axes.
        num_octaves: of the ground's rays, see `ocrl.nn.octaves.RayEncoding`.
        first_octave: of their origins.
        hidden_dims: hidden layers of the perceptron from slot to shape.
        ground_dims: hidden layers of the ground's perceptron.

    Raises:
        ValueError: unless 0 < `min_radius` < `max_radius` and `sharpness` is positive.
    """

    num_axes = NUM_AXES

    def __init__(
        self,
        slot_dim: int,
        *,
        min_radius: float,
        max_radius: float,
        sharpness: float,
        num_octaves: int,
        first_octave: int,
        hidden_dims: Sequence[int],
        ground_dims: Sequence[int],
    ) -> None:
        super().__init__()
        if not 0 < min_radius < max_radius:
            raise ValueError(
                f"expected 0 < min_radius < max_radius, got {min_radius} and {max_radius}"
            )
        if sharpness <= 0:
            raise ValueError(f"sharpness must be positive, got {sharpness}")
        self.min_radius, self.max_radius, self.sharpness = min_radius, max_radius, sharpness
        size = feature_dim(slot_dim, num_axes=NUM_AXES)
        self.shape = MLP(size, hidden_dims=hidden_dims, out_dim=sum(_SHAPE), norm_first=True)
        self.look = MLP(size, hidden_dims=[], out_dim=NUM_COLOURS * (1 + NUM_AXES), norm_first=True)
        self.encoding = RayEncoding(num_octaves, first_octave=first_octave)
        self.norm_ground = nn.LayerNorm(size)
        self.ground = PairMLP(
            size,
            ray_dim=self.encoding.out_dim,
            hidden_dims=ground_dims,
            out_dim=NUM_COLOURS,
            activation="leaky_relu",
        )
        last = self.shape.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        # All alike and hardly seen at first: a solid grows where it helps.
        with torch.no_grad():
            last.bias.zero_()[0] = -2.0

    def render(self, slots: Tensor, rays: Tensor) -> DecoderOutput:
        """Paint rays, see `RayDecoder.render`; parts are (B,T,K,3,h,w)."""
        features, places, is_placed = split_placed(slots, num_axes=NUM_AXES)
        is_ground = is_placed < 0.5
        shape, look = self.shape(features).float(), self.look(features).float()
        ground = self._ground(features, is_ground, rays)
        # Places and distances are not for the precision of an autocast.
        with torch.autocast(slots.device.type, enabled=False):
            masks, colours = self._seen(
                shape, look, ground, places.float(), is_ground, rays.float().flatten(2, 3)
            )
            mean = (masks[..., None] * colours).sum(dim=-2)
        picture = {"h": rays.shape[2]}
        return DecoderOutput(
            rearrange(mean, "b t (h w) c -> b t c h w", **picture),
            rearrange(masks, "b t (h w) k -> b t k h w", **picture),
            rearrange(colours, "b t (h w) k c -> b t k c h w", **picture),
        )

    def _seen(
        self,
        shape: Tensor,
        look: Tensor,
        ground: Tensor,
        places: Tensor,
        is_ground: Tensor,
        rays: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Shares (B,T,P,K) and colours (B,T,P,K,3) of slots in rays (B,T,P,6)."""
        opacity, axes, shear = shape.split(_SHAPE, dim=-1)
        meeting = _meet(self._inverses(axes, shear), places, rays)
        logits = self.sharpness * (1 - (meeting.squares + _EPS).sqrt())
        logits = logits + rearrange(opacity, "b t k 1 -> b t 1 k")
        logits = logits.masked_fill(meeting.along <= 0, _HIDDEN)
        in_rays = rearrange(is_ground, "b t k 1 -> b t 1 k")
        shaded = self._shaded(look, meeting.normal)
        colours = torch.where(in_rays[..., None], ground[..., None, :], shaded).sigmoid()
        return _composed(logits, meeting.along, in_rays), colours

    def _inverses(self, axes: Tensor, shear: Tensor) -> Tensor:
        """From the world to where the solids are unit spheres: triangles (B,T,K,3,3)."""
        radius = self.min_radius + (self.max_radius - self.min_radius) * axes.sigmoid()
        below = torch.tril_indices(NUM_AXES, NUM_AXES, offset=-1, device=axes.device)
        inverse = torch.diag_embed(1 / radius)
        inverse[..., below[0], below[1]] = shear.tanh() / self.max_radius
        return inverse

    def _ground(self, features: Tensor, is_ground: Tensor, rays: Tensor) -> Tensor:
        """Logits of colours (B,T,P,3): what the slots without a place paint together."""
        mean = (features * is_ground).sum(dim=2) / is_ground.sum(dim=2).clamp_min(1)
        mapped = self.ground.of_slots(self.norm_ground(mean))[:, :, None]
        return self.ground(mapped, self.encoding(rays).flatten(2, 3)).float()

    @staticmethod
    def _shaded(look: Tensor, normal: Tensor) -> Tensor:
        """Logits of colours (B,T,P,K,3) of looks (B,T,K,12) at normals (B,T,P,K,3)."""
        base, slope = look.split([NUM_COLOURS, NUM_COLOURS * NUM_AXES], dim=-1)
        slope = slope.unflatten(-1, (NUM_COLOURS, NUM_AXES))
        return base[:, :, None] + torch.einsum("btkci,btpki->btpkc", slope, normal.clamp(-1, 1))


def _meet(inverses: Tensor, places: Tensor, rays: Tensor) -> _Meeting:
    """Rays (B,T,P,6) and solids of inverses (B,T,K,3,3) at places (B,T,K,3)."""
    origins, directions = rays.split(3, dim=-1)
    to_unit = "btkij,btpj->btpki"
    centre = torch.einsum("btkij,btkj->btki", inverses, places)
    start = torch.einsum(to_unit, inverses, origins) - centre[:, :, None]
    direction = torch.einsum(to_unit, inverses, directions)
    length = direction.square().sum(-1)
    along = -(start * direction).sum(-1) / length
    nearest = start + along[..., None] * direction
    squares = nearest.square().sum(-1)
    inside = ((1 - squares).clamp_min(0) / length + _EPS).sqrt()
    return _Meeting(along, squares, nearest - inside[..., None] * direction)


def _composed(logits: Tensor, along: Tensor, is_ground: Tensor) -> Tensor:
    """Shares (B,T,P,K) of slots in rays, from the nearest to the farthest, then the ground.

    Args:
        logits: (B,T,P,K) of opacities.
        along: (B,T,P,K) how far away.
        is_ground: (B,T,1,K).
    """
    passed = nn.functional.logsigmoid(-logits).masked_fill(is_ground, 0.0)
    is_before = (along[..., None, :] < along[..., None]).to(passed.dtype)
    through = (is_before @ passed[..., None]).squeeze(-1)
    left = passed.sum(-1, keepdim=True) - is_ground.sum(-1, keepdim=True).clamp_min(1).log()
    shares = torch.where(is_ground, left, nn.functional.logsigmoid(logits) + through)
    # The shares sum to one but for slots of which none is a ground.
    return shares.softmax(dim=-1)
