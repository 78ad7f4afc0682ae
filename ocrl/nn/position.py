"""Where a token stands: coordinates of a grid and embeddings of them.

B batch, N = h * w tokens of a grid in row-major order, F features.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Coordinates = Literal["four", "two"]


def grid_like(num_tokens: int, *, shape: tuple[int, int], what: str) -> tuple[int, int]:
    """The grid (h, w) of tokens that has the proportions of a map.

    Args:
        num_tokens: N.
        shape: (H, W) of the map.
        what: of which the map is, for the error.

    Raises:
        ValueError: if no grid of N tokens has these proportions.
    """
    height, width = shape
    rows = max(1, round((num_tokens * height / width) ** 0.5))
    columns = num_tokens // rows
    if rows * columns != num_tokens or rows * width != columns * height:
        raise ValueError(
            f"expected tokens on a grid with the proportions of {what} of {height} x {width}, "
            f"got {num_tokens} tokens"
        )
    return rows, columns


def grid_coordinates(
    grid: tuple[int, int], *, coordinates: Coordinates, device: torch.device | None = None
) -> Tensor:
    """Coordinates of the cells of a grid, first and last cell on the borders.

    Args:
        grid: (h, w).
        coordinates: `two` is (y, x) in [-1,1] as in SAVi; `four` is (y, x, 1 - y, 1 - x) in [0,1]
            as in Slot Attention (Locatello et al. 2020, arXiv 2006.15055, appendix E.2).
        device: where they are made.

    Returns:
        (N,2) or (N,4) float32.

    Raises:
        ValueError: if `coordinates` is neither.
    """
    if coordinates not in ("four", "two"):
        raise ValueError(f"coordinates must be 'four' or 'two', got {coordinates!r}")
    axes = [torch.linspace(0, 1, size, device=device) for size in grid]
    unit = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
    if coordinates == "two":
        return 2 * unit - 1
    return torch.cat([unit, 1 - unit], dim=-1)


class LinearPosition(nn.Module):
    """Adds a learned linear map of the grid coordinates to the tokens.

    The soft position embedding of Locatello et al. (2020, arXiv 2006.15055, appendix E.2).

    Args:
        grid: (h, w).
        dim: F.
        coordinates: see `grid_coordinates`.
    """

    coordinates: Tensor

    def __init__(
        self, grid: tuple[int, int], *, dim: int, coordinates: Coordinates = "four"
    ) -> None:
        super().__init__()
        values = grid_coordinates(grid, coordinates=coordinates)
        self.register_buffer("coordinates", values, persistent=False)
        self.projection = nn.Linear(values.shape[-1], dim)

    def embedding(self) -> Tensor:
        """The embedding alone, (N,F)."""
        return self.projection(self.coordinates)

    def forward(self, tokens: Tensor) -> Tensor:
        """Add the embedding to (...,N,F)."""
        return tokens + self.embedding()


class LearnedPosition(nn.Module):
    """Adds one free vector per token.

    Args:
        grid: (h, w).
        dim: F.
        init_std: standard deviation of the initial vectors.
    """

    def __init__(self, grid: tuple[int, int], *, dim: int, init_std: float = 0.02) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(grid[0] * grid[1], dim) * init_std)

    def embedding(self) -> Tensor:
        """The embedding alone, (N,F)."""
        return self.table

    def forward(self, tokens: Tensor) -> Tensor:
        """Add the embedding to (...,N,F)."""
        return tokens + self.table
