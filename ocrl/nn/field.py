"""A neural field: density and colour at points of the world, of a slot or of none.

... any leading axes, D slot size, E size of an encoded point or direction, H hidden size.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from ocrl.nn.octaves import OctaveEncoding


class ResidualMLP(nn.Module):
    """LayerNorm, then residual blocks of LayerNorm, linear, ReLU, linear.

    Args:
        dim: H.
        num_blocks: how many.
    """

    def __init__(self, dim: int, *, num_blocks: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU(inplace=True), nn.Linear(dim, dim)
            )
            for _ in range(num_blocks)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (...,H) to (...,H)."""
        hidden = self.norm(hidden)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden


class Field(nn.Module):
    """Density at points, and colour and shadow at points that are seen from somewhere.

    The object field of PSB (Singh et al. 2024, arXiv 2402.17077, appendix D.4.3, tables 10 and 11):
    two residual blocks on a point and a slot make features, a linear map of which is the density;
    with a direction added, one more block makes the colour. Point, slot and direction are each
    mapped to H and summed, which the paper leaves open; so the map of a point is shared by all
    slots.

    Args:
        hidden_dim: H.
        slot_dim: D; None for a field that has no slot, which learns one scene.
        num_octaves: of points and directions, see `ocrl.nn.octaves.OctaveEncoding`.
        first_octave: of points.
        has_shadow: whether it says how much light falls.
        opacity: of 1 unit of length with no knowledge: what the density starts from.
    """

    def __init__(
        self,
        hidden_dim: int,
        *,
        slot_dim: int | None,
        num_octaves: int,
        first_octave: int,
        has_shadow: bool,
        opacity: float,
    ) -> None:
        super().__init__()
        self.point = OctaveEncoding(num_octaves, first_octave=first_octave)
        self.of_points = nn.Linear(3 * self.point.dim_of_number, hidden_dim)
        self.of_slots = None if slot_dim is None else nn.Linear(slot_dim, hidden_dim, bias=False)
        self.of_directions = nn.Linear(3 * self.point.dim_of_number, hidden_dim, bias=False)
        self.trunk = ResidualMLP(hidden_dim, num_blocks=2)
        self.head = ResidualMLP(hidden_dim, num_blocks=1)
        self.density = nn.Linear(hidden_dim, 1)
        self.colour = nn.Linear(hidden_dim, 3)
        self.shadow = nn.Linear(hidden_dim, 1) if has_shadow else None
        # softplus(bias) units of density stop that much of the light.
        nn.init.constant_(self.density.bias, math.log(math.expm1(-math.log1p(-opacity))))
        if self.shadow is not None:
            nn.init.constant_(self.shadow.bias, 3.0)

    def features(self, points: Tensor, mapped_slots: Tensor | None) -> Tensor:
        """Features (...,H) at points (...,3), of slots (...,H) that `of_slots` mapped."""
        hidden = self.of_points(self.point(points))
        return self.trunk(hidden if mapped_slots is None else hidden + mapped_slots)

    def colours(self, features: Tensor, mapped_directions: Tensor) -> Tensor:
        """Colours (...,3) in [0,1], seen along directions (...,H) that `of_directions` mapped."""
        return self.colour(self.head(features + mapped_directions)).float().sigmoid()
