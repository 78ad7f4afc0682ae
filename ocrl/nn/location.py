"""Where slots are: places and scales, and how they weigh in the competition.

B batch, K slots, N tokens of a grid (h, w) in row-major order.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

NUM_AXES = 2
"""Numbers of a place on a picture."""
NUM_GEOMETRY = 7
"""Columns of `mask_geometry`."""


def cell_centres(grid: tuple[int, int], *, device: torch.device | None = None) -> Tensor:
    """The centres (N,2), as (y, x) in [0,1], of the cells of a grid (h, w), in float32."""
    axes = [(torch.arange(size, device=device) + 0.5) / size for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)


def log_density(places: Tensor, log_scales: Tensor, coordinates: Tensor) -> Tensor:
    """Logarithm of round Gaussians, relative to the uniform density on the unit square.

    Args:
        places: (B,K,2) means.
        log_scales: (B,K,1) logarithms of the standard deviation.
        coordinates: (N,2).

    Returns:
        (B,K,N).
    """
    squares = coordinates.square().sum(-1) + places.square().sum(-1, keepdim=True)
    distances = squares - 2 * places @ coordinates.mT
    return -0.5 * distances * (-2 * log_scales).exp() - 2 * log_scales - math.log(2 * math.pi)


def moments(attn: Tensor, coordinates: Tensor, *, eps: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Mean and variance of where each slot's attention stands.

    Args:
        attn: (...,K,N), not negative.
        coordinates: (N,2).
        eps: the least attention, in tokens, that a slot's sum is taken for.

    Returns:
        Means (...,K,2), and variances (...,K,1), the mean of both axes.
    """
    total = attn.sum(dim=-1, keepdim=True).clamp_min(eps)
    mean = attn @ coordinates / total
    squares = attn @ coordinates.square() / total
    return mean, (squares - mean.square()).clamp_min(0.0).mean(dim=-1, keepdim=True)


def follow(
    attn: Tensor,
    coordinates: Tensor,
    *,
    places: Tensor,
    prior_scales: Tensor,
    num_prior_tokens: float,
) -> tuple[Tensor, Tensor]:
    """Move Gaussians to what their slots won, held back by a prior worth some tokens.

    The maximum a posteriori step of expectation maximisation: a slot that wins little stays where
    it was, and widens, so that it finds something again.

    Args:
        attn: (B,K,N).
        coordinates: (N,2).
        places: (B,K,2), where they were.
        prior_scales: (B,K,1), the standard deviation that a slot without tokens returns to.
        num_prior_tokens: what the prior counts for.

    Returns:
        Places (B,K,2) and variances (B,K,1).
    """
    mean, variance = moments(attn, coordinates)
    total = attn.sum(dim=-1, keepdim=True)
    share = total / (total + num_prior_tokens)
    return torch.lerp(places, mean, share), torch.lerp(prior_scales.square(), variance, share)


def cut_around(
    frames: Tensor, places: Tensor, offsets: Tensor, *, cell: tuple[int, int] = (1, 1)
) -> Tensor:
    """Squares of frames around places, bilinear between pixels and zero beyond the frame.

    Shifts do not rotate, so that two small matrix products read a whole square.

    Args:
        frames: (B,C,H,W).
        places: (B,K,2), as (y, x) in [0,1].
        offsets: (S,) along either axis, in pixels.
        cell: rows and columns of pixels that one cell of `frames` stands for.

    Returns:
        (B,K,C,S,S).
    """
    rows, columns = (
        _tents(places[..., axis], offsets / cell[axis], frames.shape[2 + axis]) for axis in (0, 1)
    )
    batch, num_channels, height, width = frames.shape
    # (B,K*S,C*W), and of each place all its rows and channels at once.
    across = rows.flatten(1, 2) @ frames.transpose(1, 2).reshape(batch, height, -1)
    squares = across.view(batch, places.shape[1], -1, width) @ columns.mT
    return squares.unflatten(2, (len(offsets), num_channels)).transpose(2, 3)


def _tents(centres: Tensor, offsets: Tensor, num_cells: int) -> Tensor:
    """Bilinear weights (B,K,S,num_cells) of cells at centres (B,K) in [0,1] plus offsets (S,)."""
    cells = torch.arange(num_cells, device=centres.device) + 0.5
    points = centres[..., None] * num_cells + offsets
    return (1 - (points[..., None] - cells).abs()).clamp_min(0.0)


def feature_dim(slot_dim: int, *, num_axes: int) -> int:
    """How many numbers of a slot (D,) are features, where it ends with a place of A numbers.

    Raises:
        ValueError: if there is no room for features.
    """
    size = slot_dim - num_axes - 1
    if size < 1:
        raise ValueError(
            f"expected slot_dim above {num_axes + 1}, for slots that end with a place, got "
            f"{slot_dim}"
        )
    return size


def split_placed(slots: Tensor, *, num_axes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Slots (...,D) that end with where they are: features, places and whether they have one.

    Args:
        slots: what `join_placed` joined.
        num_axes: A, numbers of a place.

    Returns:
        Features (...,D-A-1), places (...,A), and (...,1): 1 for a slot with a place, 0 for one of
        the ground.

    Raises:
        ValueError: if there is no room for features.
    """
    size = feature_dim(slots.shape[-1], num_axes=num_axes)
    features, places, is_placed = slots.split([size, num_axes, 1], dim=-1)
    return features, places, is_placed


def join_placed(features: Tensor, places: Tensor, is_placed: Tensor) -> Tensor:
    """The slots (...,D) that `split_placed` takes apart."""
    return torch.cat([features, places, is_placed], dim=-1)


class Precision(nn.Module):
    """How narrow round Gaussians around places are: one over the variance, as slots say.

    Args:
        slot_dim: D, without the place.
        first_width: standard deviation before anything is learned, in units of the world.
    """

    def __init__(self, slot_dim: int, *, first_width: float) -> None:
        super().__init__()
        self.log_width = nn.Linear(slot_dim, 1)
        nn.init.zeros_(self.log_width.weight)
        nn.init.constant_(self.log_width.bias, math.log(first_width))

    def forward(self, slots: Tensor) -> Tensor:
        """(...,K,1) of slots (...,K,D), in float32 whatever the autocast."""
        log_width: Tensor = self.log_width(slots)
        return (-2 * log_width.float()).exp()


def check_placed(num_slots: int, *, num_grounds: int, **positive: float) -> None:
    """Refuse slots of which none has a place, and lengths that are none.

    Raises:
        ValueError: if there are as many grounds as slots, or one of `positive` is not.
    """
    if not 0 <= num_grounds < num_slots:
        raise ValueError(f"num_grounds must be in [0, num_slots={num_slots}), got {num_grounds}")
    for name, value in positive.items():
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")


def spread_offsets(num_places: int, *, radius: float) -> Tensor:
    """Places (K,2) that cover a disc around (0, 0) evenly: a sunflower's seeds."""
    index = torch.arange(num_places) + 0.5
    length = radius * (index / max(num_places, 1)).sqrt()
    angle = index * math.pi * (3 - math.sqrt(5))
    return torch.stack([length * angle.sin(), length * angle.cos()], dim=-1)


def mask_geometry(masks: Tensor, *, eps: float = 1e-3) -> Tensor:
    """Where each slot is and how large, in sides of the picture.

    Args:
        masks: (...,K,h,w), sums to 1 over K.
        eps: the least mass, in cells, that a slot's is taken for.

    Returns:
        (...,K,7): x and y of the mask's centre of mass, its area (the share of the picture), and
        left, top, right, bottom of the cells in which no other slot has more. A slot without such
        a cell has the empty box at its centre.
    """
    weights, sides, signs = _grid_tables(*masks.shape[-2:], masks.dtype, masks.device)
    flat = masks.flatten(-2)
    sums = flat @ weights
    centres = sums[..., :6] / sums[..., 6:].clamp_min(eps)
    # 4 puts the sides of other cells beyond all that are in [-1,1]: one minimum finds the box.
    behind = (flat.amax(dim=-2, keepdim=True) - flat).sign()
    box = torch.add(sides, behind[..., None, :], alpha=4).amin(dim=-1)
    box = torch.where(box > 1, centres[..., 2:], box) * signs
    return torch.cat([centres[..., :2], sums[..., 6:] / flat.shape[-1], box], dim=-1)


def is_centre_column(num_columns: int) -> Tensor:
    """Which columns (V*7,) of `mask_geometry` for each of V views are x or y of a centre."""
    return torch.arange(num_columns) % NUM_GEOMETRY < NUM_AXES


def is_area_column(num_columns: int) -> Tensor:
    """Which columns (V*7,) of `mask_geometry` for each of V views are areas."""
    return torch.arange(num_columns) % NUM_GEOMETRY == NUM_AXES


def is_box_column(num_columns: int) -> Tensor:
    """Which columns (V*7,) of `mask_geometry` for each of V views are sides of boxes."""
    return torch.arange(num_columns) % NUM_GEOMETRY >= NUM_GEOMETRY - 4


def wins_a_cell(geometry: Tensor) -> Tensor:
    """Whether a slot has more than every other one anywhere.

    Args:
        geometry: (...,V*7), columns of `mask_geometry` for each of V views.

    Returns:
        (...,) bool; true where the box of a view is not empty.
    """
    _, _, _, left, top, right, bottom = geometry.unflatten(-1, (-1, NUM_GEOMETRY)).unbind(-1)
    return ((right > left) & (bottom > top)).any(dim=-1)


@functools.cache
def _grid_tables(
    height: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """What `mask_geometry` needs to know of the cells of a grid.

    Returns:
        (N,7) x and y of the centres; x, y, -x, -y; 1. (4,N) left, top, -right, -bottom of the
        cells. (4,) the signs of those.
    """
    with torch.inference_mode(False):
        centres = cell_centres((height, width)).to(device, dtype).flip(-1)
        half = centres.new_tensor([0.5 / width, 0.5 / height])
        weights = torch.cat([centres, centres, -centres, torch.ones_like(centres[:, :1])], dim=-1)
        sides = torch.cat([centres - half, -centres - half], dim=-1).mT.contiguous()
        return weights, sides, centres.new_tensor([1.0, 1.0, -1.0, -1.0])
