"""Where a ray starts and goes, and where a point is, as sines and cosines of doubling frequencies.

... any leading axes, E size of an encoding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


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

    Args:
        num_octaves: of both.
        first_octave: of the origin.
    """

    def __init__(self, num_octaves: int, *, first_octave: int) -> None:
        super().__init__()
        self.origin = OctaveEncoding(num_octaves, first_octave=first_octave)
        self.direction = OctaveEncoding(num_octaves, first_octave=0)
        self.part_dim = 3 * self.origin.dim_of_number
        self.out_dim = 2 * self.part_dim

    def forward(self, rays: Tensor) -> Tensor:
        """Encode rays (...,6), origins and unit directions, as (...,E) with E = `out_dim`."""
        origins, directions = rays.split(3, dim=-1)
        return torch.cat([self.origin(origins), self.direction(directions)], dim=-1)
