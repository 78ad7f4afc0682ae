"""Per-slot radiance fields that share one space, beside what is always there.

B batch, T frames, M = B * T, K slots, D slot size, P rays of a frame, (h, w) their picture,
S intervals along a ray, F finer ones, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ocrl.interfaces import RayDecoder, ScheduledModule
from ocrl.nn.field import Field, ResidualMLP
from ocrl.nn.location import Precision, feature_dim, split_placed
from ocrl.nn.octaves import OctaveEncoding
from ocrl.nn.rays import check_bounds
from ocrl.nn.triangulation import NUM_AXES
from ocrl.nn.volume import even_edges, finer_edges, points_within, transmitted
from ocrl.types import NUM_COLOURS, DecoderOutput

EPS = 1e-6
"""Shares of light and densities below count as none."""
_FIRST_WIDTH = 0.6
"""Of the Gaussians around places, in units of the world."""


class _Slots(NamedTuple):
    """What fields are told of slots.

    Attributes:
        mapped: (M,K,H) what the features of slots add to points.
        places: (M,K,3), and None where slots have none.
        precision: (M,K,1) of the Gaussians around places, 0 for slots without one.
    """

    mapped: Tensor
    places: Tensor | None = None
    precision: Tensor | None = None

    def faded(self, logits: Tensor, points: Tensor) -> Tensor:
        """Logits of densities (M,P,K,S) at points (M,P,S,3), the lower the farther from places."""
        if self.places is None or self.precision is None:
            return logits
        flat = points.flatten(1, 2)
        # Places and distances are not for the precision of an autocast.
        with torch.autocast(points.device.type, enabled=False):
            apart = flat.square().sum(-1)[:, None] - 2 * self.places @ flat.mT
            squares = (apart + self.places.square().sum(-1, keepdim=True)).clamp_min(0.0)
            fading = (0.5 * self.precision * squares).unflatten(-1, points.shape[1:3])
        return logits - fading.transpose(1, 2)


@dataclass(frozen=True)
class _Along:
    """What fields say along rays; the static field comes after the slots.

    Attributes:
        density: (M,P,K[+1],S), in units of an even interval.
        lengths: (M,P,S) in the same units.
        features: of slots (M,P,K,S,H).
        static_features: (M,P,S,H).
    """

    density: Tensor
    lengths: Tensor
    features: Tensor
    static_features: Tensor | None


class NeRFDecoder(RayDecoder, ScheduledModule):
    """Slots as neural fields, composed by density, with a static field, a sky and shadows.

    PSB (Singh et al. 2024, arXiv 2402.17077, section 3.2 and appendix D.4.3) and, without the
    extras, uORF (Yu et al. 2022, arXiv 2107.07905). At each point densities add up and colours mix
    by their share of the density; then light is gathered along the ray. The static field has no
    slot: it learns what all scenes have in common and leaves the rest to slots (EmerNeRF, Yang et
    al. 2023, arXiv 2311.02077); the sky is the colour, by direction, of what passes everything.
    Without a sky that is black. With shadows the colour at a point is multiplied by a factor that
    each field has there.

    The masks are the slots' shares of the light that any slot gives; `aux["background"]` is what
    the static field, the sky and empty space give, and `aux["depth"]` the mean length to what is
    seen, (B,T,h,w) both.

    What differs: densities are a softplus and measured per even interval, so that a field can be
    opaque whatever the unit of the world. Where to look closer (hierarchical sampling, Mildenhall
    et al. 2020) is found by the same fields at the middles of even intervals, without gradient and
    without colours; there is no second loss. Points are drawn within intervals in training and are
    their middles in `eval()`. Density noise, which uORF's authors advise against dead slots, ends
    after a share of training. Rays are rendered in chunks whose activations the backward pass makes
    again: memory does not grow with the number of rays.

    With `reads_places`, which is ours, slots end with a place in the world, and the logit of a
    slot's density falls with the square of the distance from there, in widths that the slot says:
    which field is where need not be learned from pictures.

    Args:
        slot_dim: D.
        hidden_dim: H.
        num_octaves: of points and directions, see `ocrl.nn.octaves.OctaveEncoding`.
        first_octave: of points.
        near: where rays begin to be looked at, in units of the world.
        far: where they end.
        num_intervals: S.
        num_finer: F; 0 for even intervals only.
        has_static: whether there is a static field.
        has_sky: whether there is a sky.
        has_shadow: whether fields cast shadows.
        initial_opacity: share of a ray's light that one field stops before anything is learned.
        density_noise: deviation of the noise on densities before the softplus, in training.
        noise_until: share of training after which there is none.
        chunk_size: rays that are rendered at a time, over all frames; at least one of each.
        reads_places: whether slots end with their places, as those of `PlacedSlots` and of a
            `PSB` with places.

    Raises:
        ValueError: if near and far are no range, or a number is out of range.
    """

    def __init__(
        self,
        slot_dim: int,
        *,
        hidden_dim: int,
        num_octaves: int,
        first_octave: int,
        near: float,
        far: float,
        num_intervals: int,
        num_finer: int,
        has_static: bool,
        has_sky: bool,
        has_shadow: bool,
        initial_opacity: float,
        density_noise: float,
        noise_until: float,
        chunk_size: int,
        reads_places: bool = False,
    ) -> None:
        super().__init__()
        check_bounds(near, far)
        if num_intervals < 1 or num_finer < 0 or chunk_size < 1:
            raise ValueError(
                "expected num_intervals and chunk_size of at least 1 and num_finer of at least 0, "
                f"got {num_intervals}, {chunk_size} and {num_finer}"
            )
        if not 0.0 < initial_opacity < 1.0 or density_noise < 0.0:
            raise ValueError(
                "expected initial_opacity between 0 and 1 and density_noise of at least 0, got "
                f"{initial_opacity} and {density_noise}"
            )
        self.near, self.far = self.bounds = (near, far)
        self.num_intervals, self.num_finer, self.chunk_size = num_intervals, num_finer, chunk_size
        self.density_noise, self.noise_until = density_noise, noise_until
        self.register_buffer("progress", torch.zeros(()))
        settings = {
            "num_octaves": num_octaves,
            "first_octave": first_octave,
            "has_shadow": has_shadow,
            "opacity": 1.0 - (1.0 - initial_opacity) ** (1.0 / num_intervals),
        }
        self.num_axes = NUM_AXES if reads_places else 0
        self.precision: Precision | None = None
        if reads_places:
            slot_dim = feature_dim(slot_dim, num_axes=NUM_AXES)
            self.precision = Precision(slot_dim, first_width=_FIRST_WIDTH)
        self.norm_slots = nn.LayerNorm(slot_dim)
        self.field = Field(hidden_dim, slot_dim=slot_dim, **settings)
        self.static = Field(hidden_dim, slot_dim=None, **settings) if has_static else None
        self.direction = OctaveEncoding(num_octaves, first_octave=0)
        self.sky: nn.Module | None = None
        if has_sky:
            self.sky = nn.Sequential(
                nn.Linear(3 * self.direction.dim_of_number, hidden_dim),
                ResidualMLP(hidden_dim, num_blocks=2),
                nn.Linear(hidden_dim, NUM_COLOURS),
            )

    def render(self, slots: Tensor, rays: Tensor) -> DecoderOutput:
        """Paint rays chunk by chunk, see `RayDecoder.render`."""
        frames, picture = slots.shape[:2], rays.shape[2:4]
        told = self._told(slots.flatten(0, 1))
        flat = rays.flatten(0, 1).flatten(1, 2)
        at_once = max(1, self.chunk_size // len(flat))
        chunks = [self._chunk(told, part) for part in flat.split(at_once, dim=1)]
        colours, shares, depth = (torch.cat(parts, 1) for parts in zip(*chunks, strict=True))

        def laid_out(values: Tensor) -> Tensor:
            return values.movedim(1, -1).unflatten(-1, picture).unflatten(0, frames)

        # A ray that passes all slots shows none of them: any share of nothing will do.
        of_any = shares.sum(-1, keepdim=True)
        masks = (shares + EPS) / (of_any + shares.shape[-1] * EPS)
        background = (1.0 - of_any.squeeze(-1)).clamp(0.0, 1.0)
        aux = {"background": laid_out(background), "depth": laid_out(depth)}
        return DecoderOutput(laid_out(colours), laid_out(masks), aux=aux)

    def _told(self, slots: Tensor) -> _Slots:
        """What fields are told of slots (M,K,D)."""
        assert self.field.of_slots is not None
        if self.precision is None:
            return _Slots(self.field.of_slots(self.norm_slots(slots)))
        features, places, is_placed = split_placed(slots, num_axes=NUM_AXES)
        each = self.norm_slots(features)
        precision = self.precision(each) * is_placed.float()
        return _Slots(self.field.of_slots(each), places.float(), precision)

    def _chunk(self, slots: _Slots, rays: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Found outside of what the backward pass makes again: no gradient flows through it.
        edges = self._edges(slots, rays)
        if not torch.is_grad_enabled():
            return self._render(slots, rays, edges)
        made: tuple[Tensor, Tensor, Tensor] = checkpoint(
            self._render, slots, rays, edges, use_reentrant=False
        )
        return made

    def _edges(self, slots: _Slots, rays: Tensor) -> Tensor:
        """Edges (M,P,S+F+1) of the intervals of rays (M,P,6)."""
        edges = even_edges(
            self.near, self.far, num_intervals=self.num_intervals, device=rays.device
        )
        edges = edges.expand(*rays.shape[:2], -1)
        if not self.num_finer:
            return edges
        with torch.no_grad():
            along = self._look(slots, rays, edges, is_random=False)
            weights, _ = transmitted(along.density.sum(2), along.lengths)
            return finer_edges(edges, weights, num_finer=self.num_finer, is_random=self.training)

    def _render(self, slots: _Slots, rays: Tensor, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Colours (M,P,3), shares of the slots (M,P,K) and depth (M,P) of rays (M,P,6)."""
        along = self._look(slots, rays, edges, is_random=self.training)
        weights, beyond = transmitted(along.density.sum(2), along.lengths)
        total = along.density.sum(2, keepdim=True)
        share = along.density / total.clamp(min=EPS)
        colours = self._colours(along, share, rays[..., 3:])
        seen = (weights[..., None] * colours).sum(2)
        if self.sky is not None:
            sky = self.sky(self.direction(rays[..., 3:])).float().sigmoid()
            seen = seen + beyond[..., None] * sky
        middles = (edges[..., 1:] + edges[..., :-1]) / 2
        depth = (weights * middles).sum(-1) + beyond * self.far
        of_slots = (weights[:, :, None] * share[:, :, : slots.mapped.shape[1]]).sum(-1)
        return seen, of_slots, depth

    def _look(self, slots: _Slots, rays: Tensor, edges: Tensor, *, is_random: bool) -> _Along:
        """Ask the fields for their densities along rays (M,P,6) cut at edges (M,P,S+1)."""
        origins, directions = rays.split(3, dim=-1)
        places = points_within(edges, is_random=is_random)
        points = origins[:, :, None] + places[..., None] * directions[:, :, None]
        features = self.field.features(points[:, :, None], slots.mapped[:, None, :, None])
        raw = [slots.faded(self.field.density(features).squeeze(-1).float(), points)]
        static_features = None
        if self.static is not None:
            static_features = self.static.features(points, None)
            raw.append(self.static.density(static_features).float().mT)
        logits = torch.cat(raw, dim=2)
        if self.training and self.density_noise:
            deviation = self.density_noise * (self.progress < self.noise_until)
            logits = logits + deviation * torch.randn_like(logits)
        unit = (self.far - self.near) / self.num_intervals
        return _Along(F.softplus(logits), edges.diff(dim=-1) / unit, features, static_features)

    def _colours(self, along: _Along, share: Tensor, directions: Tensor) -> Tensor:
        """Mixed colours (M,P,S,3) at the points, by each field's share (M,P,K[+1],S)."""
        code = self.direction(directions)
        num_slots = along.features.shape[2]
        toward = self.field.of_directions(code)[:, :, None, None]
        made = self.field.colours(along.features, toward)
        mixed = (share[:, :, :num_slots, :, None] * made).sum(2)
        light = _light(self.field.shadow, along.features)
        if self.static is not None and along.static_features is not None:
            toward = self.static.of_directions(code)[:, :, None]
            made = self.static.colours(along.static_features, toward)
            mixed = mixed + share[:, :, num_slots, :, None] * made
            light = [*light, *_light(self.static.shadow, along.static_features[:, :, None])]
        for factor in light:
            mixed = mixed * factor.exp()
        return mixed


def _light(shadow: nn.Linear | None, features: Tensor) -> list[Tensor]:
    """Log of the share of light (M,P,S,1) that fields (M,P,K,S,H) leave at points, all together."""
    if shadow is None:
        return []
    return [F.logsigmoid(shadow(features).float()).sum(2)]
