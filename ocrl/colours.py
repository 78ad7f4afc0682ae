"""Colours of objects and slots: one that stands for a thing stands for it in truth and slots.

T frames, K slots, R true objects, H W image. Colours are uint8 on the CPU.
"""

from __future__ import annotations

import colorsys

import torch
from torch import Tensor

from ocrl.matching import hungarian
from ocrl.types import BACKGROUND_ID, VOID_ID

GROUND = (24, 26, 32)
"""Of the background in truth, and of the slot that holds it, which pictures leave untinted."""
_VOID = (110, 110, 110)
_LEAST_OVERLAP = 0.1
"""IoU below which a slot is not taken for an object."""
_NUM_READABLE = 8
"""First colours that differ with colour-blindness; as long as they last, none else is used."""
_NUM_SPARE = 12
"""Colours more than are needed beyond those, to choose the ones that differ most."""
_GOLDEN_RATIO = 0.618033988749895
_FIRST_COLOURS = (
    (0.90, 0.62, 0.00),
    (0.34, 0.71, 0.91),
    (0.00, 0.62, 0.45),
    (0.94, 0.89, 0.26),
    (0.00, 0.45, 0.70),
    (0.84, 0.37, 0.00),
    (0.80, 0.47, 0.65),
    (0.55, 0.34, 0.80),
    (0.60, 0.85, 0.35),
    (0.85, 0.15, 0.25),
    (0.20, 0.85, 0.80),
    (0.60, 0.40, 0.22),
)


def palette(num_colours: int) -> Tensor:
    """Colours (num_colours,3) uint8 that differ well; the first never change with the number.

    The first eight are readable with colour-blindness (Okabe and Ito 2008).
    """
    colours = list(_FIRST_COLOURS[:num_colours])
    for index in range(len(colours), num_colours):
        hue = index * _GOLDEN_RATIO % 1.0
        lightness, saturation = 0.45 + 0.2 * (index % 2), 0.55 + 0.2 * (index // 2 % 3)
        colours.append(colorsys.hls_to_rgb(hue, lightness, saturation))
    return (torch.tensor(colours).reshape(-1, 3) * 255).round().to(torch.uint8)


def colour_objects(segmentation: Tensor) -> Tensor:
    """Colours (T,3,H,W) of ground truth (T,H,W): objects over a dark background, void grey.

    An object keeps its colour as long as it keeps its id.
    """
    values, dense = segmentation.detach().cpu().long().unique(return_inverse=True)
    return _object_colours(values)[dense].permute(0, 3, 1, 2)


def slot_colours(
    ids: Tensor, segmentation: Tensor | None = None, *, num_slots: int | None = None
) -> Tensor:
    """Colours (K,3) of slots; that of the ground is `GROUND`.

    With a truth a slot has the colour that `colour_objects` gives to the object it is matched with,
    one to one, so that the sum of overlaps (IoU, whole clip) is largest; the slot that is matched
    with the background is the ground. Other slots have colours that no object has and that differ
    most from those of the slots before. Without a truth the slot that owns most is the ground.

    Args:
        ids: (T,H,W) slots from 0.
        segmentation: (T,H,W) ground truth.
        num_slots: K, if some slots may own no pixel; None for the largest id and 1.
    """
    ids = ids.detach().cpu().long()
    num_slots = int(ids.max()) + 1 if num_slots is None else num_slots
    ground = torch.tensor(GROUND, dtype=torch.uint8)
    if segmentation is None:
        colours = palette(num_slots)
        colours[ids.flatten().bincount(minlength=num_slots).argmax()] = ground
        return colours
    values, dense = segmentation.detach().cpu().long().unique(return_inverse=True)
    overlap = _overlap(dense, ids, num_slots=num_slots, is_counted=values != VOID_ID)
    matched = hungarian(overlap, maximize=True)
    truth = _object_colours(values)
    colours = torch.zeros(num_slots, 3, dtype=torch.uint8)
    is_known = torch.zeros(num_slots, dtype=torch.bool)
    for row, column in enumerate(matched.tolist()):
        if column >= 0 and overlap[row, column] >= _LEAST_OVERLAP:
            colours[column], is_known[column] = truth[row], True
    num_objects, others = int(_is_object(values).sum()), int((~is_known).sum())
    needed = num_objects + others
    spare = palette(_NUM_READABLE if needed <= _NUM_READABLE else needed + _NUM_SPARE)[num_objects:]
    colours[~is_known] = _furthest(spare, torch.cat([colours[is_known], ground[None]]), others)
    return colours


def _furthest(spare: Tensor, taken: Tensor, number: int) -> Tensor:
    """So many of spare colours, each the one that differs most from those taken before it."""
    nearest = torch.cdist(spare.double(), taken.double()).amin(1)
    chosen = []
    for _ in range(number):
        chosen.append(int(nearest.argmax()))
        distance = torch.cdist(spare.double(), spare[chosen[-1:]].double())[:, 0]
        nearest = torch.minimum(nearest, distance)
    return spare[chosen]


def is_ground(colours: Tensor) -> Tensor:
    """Which of colours (...,3) are that of the ground: (...) bool."""
    return (colours == torch.tensor(GROUND, dtype=torch.uint8)).all(-1)


def _overlap(objects: Tensor, ids: Tensor, *, num_slots: int, is_counted: Tensor) -> Tensor:
    """IoU (R,K) of objects and slots that count from 0, over the objects (R,) that are counted."""
    cells = (objects * num_slots + ids).flatten()
    shared = cells.bincount(minlength=len(is_counted) * num_slots).view(-1, num_slots).double()
    shared = shared * is_counted[:, None]
    return shared / (shared.sum(0) + shared.sum(1, keepdim=True) - shared).clamp(min=1)


def _is_object(values: Tensor) -> Tensor:
    return (values != BACKGROUND_ID) & (values != VOID_ID)


def _object_colours(values: Tensor) -> Tensor:
    """Colours (R,3) of ids (R,) in ascending order."""
    colours = palette(len(values) + 2)
    table = colours[_is_object(values).long().cumsum(0).clamp(min=1) - 1].clone()
    table[values == BACKGROUND_ID] = torch.tensor(GROUND, dtype=torch.uint8)
    table[values == VOID_ID] = torch.tensor(_VOID, dtype=torch.uint8)
    return table
