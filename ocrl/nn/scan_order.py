"""Orders in which the cells of a grid are read.

N = h * w cells in row-major order.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_ORDERS = 9


def scan_order(grid: tuple[int, int], *, index: int) -> Tensor:
    """The cells of a grid in one of SPOT's nine orders.

    Kakogeorgiou et al. (2024, arXiv 2312.00648, section 3.2):

    0. rows from the left, from the top; the raster;
    1. columns from the top, from the left;
    2. columns from the top, from the right;
    3. rows from the right, from the top;
    4. columns from the bottom, from the right;
    5. rows from the right, from the bottom;
    6. columns from the bottom, from the left;
    7. rows from the left, from the bottom;
    8. a spiral outwards from the centre, the reverse of the one that goes down the right column
       and turns clockwise.

    Args:
        grid: (h, w).
        index: which.

    Returns:
        (N,) int64, the cell that is read at each place of the sequence.

    Raises:
        ValueError: if there is no such order.
    """
    if not 0 <= index < NUM_ORDERS:
        raise ValueError(f"expected an order from 0 to {NUM_ORDERS - 1}, got {index}")
    cells = torch.arange(grid[0] * grid[1]).view(grid)
    if index == 8:
        inwards = []
        while cells.numel():
            cells = cells.rot90()
            inwards.append(cells[0])
            cells = cells[1:]
        return torch.cat(inwards).flip(0)
    is_by_column, from_right, from_bottom = (
        index in (1, 2, 4, 6),
        index in (2, 3, 4, 5),
        index in (4, 5, 6, 7),
    )
    flips = [axis for axis, flipped in ((0, from_bottom), (1, from_right)) if flipped]
    cells = cells.flip(flips)
    return (cells.T if is_by_column else cells).flatten()
