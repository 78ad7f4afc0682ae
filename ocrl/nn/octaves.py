"""Where a ray starts and goes, and where a point is, as sines and cosines of doubling frequencies.

... any leading axes, E size of an encoding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ocrl.nn.rays import check_plane, points_on_plane


class OctaveEncoding(nn.Module):
    """Sines and cosines of pi 2^i x for each number x, over a range of octaves i.

    The code of NeRF (Mildenhall et al. 2020, arXiv 2003.08934, equation 4), of OSRT's rays
    (Sajjadi et al. 2022, arXiv 2206.06922, appendix A.4: 15 octaves from -5 on for positions, from
    0 on for directions) and of PSB's decoders (Singh et al. 2024, arXiv 2402.17077, appendix
    D.4.3), whose frequencies pi 2^i / m are those from -log2 m on. The first octave says how far a
    position may lie before its code repeats: 2^(1 - first), in units of the world.

    Args:
        num_octaves: how many frequencies.
        first_octave: the exponent of the lowest.

    Raises:
        ValueError: if there is no octave.
    """

    frequencies: Tensor

    def __init__(self, num_octaves: int, *, first_octave: int) -> None:
        super().__init__()
        if num_octaves < 1:
            raise ValueError(f"expected at least 1 octave, got {num_octaves}")
        exponents = torch.arange(first_octave, first_octave + num_octaves)
        self.register_buffer("frequencies", math.pi * 2.0**exponents, persistent=False)
        self.dim_of_number = 2 * num_octaves

    def forward(self, values: Tensor) -> Tensor:
        """Encode (...,C) as (...,C * 2 * num_octaves), in float32: the sines, then the cosines."""
        angles = values.float()[..., None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class RayEncoding(nn.Module):
    """Encodes rays: an `OctaveEncoding` of the origin, and one of the direction from octave 0 on.

    Where there is a plane, also one of the point where the ray meets it, from the octave of the
    origin on. Rays of all cameras that meet in a point of the plane have that part in common: what
    stands near it is found again in another view by likeness, where from origin and direction alone
    the geometry has to be learned. Ours.

    Args:
        num_octaves: of each.
        first_octave: of origins, and of points of the plane.
        plane: see `ocrl.nn.rays.check_plane`; none if None.

    Raises:
        ValueError: if the plane is none.
    """

    def __init__(
        self, num_octaves: int, *, first_octave: int, plane: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.origin = OctaveEncoding(num_octaves, first_octave=first_octave)
        self.direction = OctaveEncoding(num_octaves, first_octave=0)
        self.plane = check_plane(plane)
        self.origin_dim = 3 * self.origin.dim_of_number
        self.plane_dim = 0 if plane is None else 2 * self.origin.dim_of_number
        self.pixel_dim = 3 * self.direction.dim_of_number + self.plane_dim
        self.out_dim = self.origin_dim + self.pixel_dim

    def forward(self, rays: Tensor) -> Tensor:
        """Encode rays (...,6), origins and unit directions, as (...,E) with E = `out_dim`."""
        origins, directions = rays.split(3, dim=-1)
        return torch.cat([self.origin(origins), self.of_pixels(origins, directions)], dim=-1)

    def of_pixels(self, origins: Tensor, directions: Tensor) -> Tensor:
        """What differs between the pixels of a camera (...,`pixel_dim`), of origins (...,3)."""
        code = self.direction(directions)
        if self.plane is None:
            return code
        return torch.cat([code, self.of_plane(origins, directions)], dim=-1)

    def of_plane(self, origins: Tensor, directions: Tensor) -> Tensor:
        """Where on the plane (...,`plane_dim`), for rays of origins and directions (...,3)."""
        assert self.plane is not None
        return self.origin(points_on_plane(origins, directions, plane=self.plane))
