"""Names, numbers and lines of text on pictures.

T frames, K slots, N pictures, C H W image. Pictures are uint8 (C,H,W), videos uint8 (T,C,H,W), on
the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt
from torch import Tensor

_PAPER, _INK = (16, 18, 22), (232, 234, 240)
_CAPTION_HEIGHT, _CAPTION_SIZE = 18, 11
_LABEL_LINE, _LABEL_SIZE, _LABEL_SPACE, _LABEL_GAP = 26, 13, 10, 4
_NOTE_LINE, _NOTE_SIZE = 16, 12
_NUMBER_SIZE = 14
_LEAST_SHARE = 0.001
"""Of the picture, below which a region has no number."""


def to_image(picture: Tensor) -> Image.Image:
    """A picture (3,H,W) uint8 as an image of Pillow."""
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())


def from_image(image: Image.Image) -> Tensor:
    """The picture (3,H,W) uint8 of an image of Pillow."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def numbered(picture: Tensor, ids: Tensor, labels: Sequence[int | str], *, scale: int) -> Tensor:
    """Write the number of each slot that owns pixels into its region, away from other numbers.

    A number stands where its region is widest, small regions first; one that would lie on another
    moves on, beside its region if it must. Regions of less than a thousandth of the picture are
    left out.

    Args:
        picture: (3,H*scale,W*scale) uint8.
        ids: (H,W) slots from 0.
        labels: K names.
        scale: whole factor between both.

    Returns:
        (3,H*scale,W*scale) uint8.
    """
    ids = ids.detach().cpu()
    sizes = ids.flatten().bincount(minlength=len(labels))
    shown = [row for row in sizes.argsort().tolist() if sizes[row] >= _LEAST_SHARE * ids.numel()]
    regions = ((labels[row], (ids == row).numpy()) for row in shown)
    return _with_numbers(picture, regions, scale=scale)


def marked(picture: Tensor, places: Tensor, *, scale: int) -> Tensor:
    """Write 0, 1, 2, ... where things are, or beside that place if another number stands there.

    Args:
        picture: (3,H*scale,W*scale) uint8.
        places: (K,2) x and y in [0,1]; not a number for what is nowhere.
        scale: whole factor; numbers stand in the middle of the pixels of (H,W).

    Returns:
        (3,H*scale,W*scale) uint8.
    """
    height, width = (side // scale for side in picture.shape[-2:])
    regions = []
    for number, (x, y) in enumerate(places.tolist()):
        if math.isfinite(x) and math.isfinite(y):
            region = np.zeros((height, width), dtype=bool)
            row, column = int(y * height), int(x * width)
            region[min(max(row, 0), height - 1), min(max(column, 0), width - 1)] = True
            regions.append((number, region))
    return _with_numbers(picture, regions, scale=scale)


def _with_numbers(
    picture: Tensor, regions: Iterable[tuple[int | str, NDArray[np.bool_]]], *, scale: int
) -> Tensor:
    """Numbers in their regions (H,W), none on another."""
    image = to_image(picture)
    pen = ImageDraw.Draw(image)
    is_free = np.ones((image.height // scale, image.width // scale), dtype=bool)
    for label, region in regions:
        y, x = _place(region, is_free)
        _write_number(pen, ((x + 0.5) * scale, (y + 0.5) * scale), str(label))
        high, wide = (_NUMBER_SIZE * share / scale for share in (1.0, 0.3 + 0.6 * len(str(label))))
        rows = slice(max(0, round(y - high)), round(y + high) + 1)
        columns = slice(max(0, round(x - wide)), round(x + wide) + 1)
        is_free[rows, columns] = False
    return from_image(image)


def _place(region: NDArray[np.bool_], is_free: NDArray[np.bool_]) -> tuple[int, int]:
    """Row and column of the free pixel that is deepest in a region, else of the nearest to it."""
    depth = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    if not (region & is_free).any():
        depth = -distance_transform_edt(~region)
    if is_free.any():
        depth = np.where(is_free, depth, -np.inf)
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(y), int(x)


def _write_number(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str) -> None:
    """Light letters with a dark edge, readable on everything, within the picture."""
    width, height = pen.im.size
    room = 0.6 * _NUMBER_SIZE
    x, y = (
        min(max(at, room), side - room) for at, side in zip(place, (width, height), strict=True)
    )
    pen.text(
        (x, y),
        text,
        fill=(255, 255, 255),
        anchor="mm",
        font_size=_NUMBER_SIZE,
        stroke_width=2,
        stroke_fill=(0, 0, 0),
    )


def captioned(video: Tensor, names: Sequence[str]) -> Tensor:
    """Put a line with one name over each of the equally wide columns of a video (T,3,H,W).

    Names that are wider than their columns have smaller letters.
    """
    width = video.shape[-1]
    line = Image.new("RGB", (width, _CAPTION_HEIGHT), _PAPER)
    pen = ImageDraw.Draw(line)
    for index, name in enumerate(names):
        middle = ((index + 0.5) * width / len(names), _CAPTION_HEIGHT / 2)
        size = _fitting(name, width / len(names) - 4, _CAPTION_SIZE)
        pen.text(middle, name, fill=_INK, anchor="mm", font_size=size)
    return torch.cat([from_image(line).expand(len(video), -1, -1, -1), video], dim=2)


@dataclass(frozen=True)
class Table:
    """Pictures of one example.

    Attributes:
        title: what stands above the names of its rows.
        columns: a name for each of N pictures of a row.
        rows: names to pictures (N,3,H,W), all of one size.
    """

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Tensor]


def labelled(tables: Sequence[Table], *, note: str = "") -> Tensor:
    """Examples under each other with space between them, all rows and columns named.

    Args:
        tables: one or more.
        note: what the colours mean, in a line below.

    Returns:
        (3,H',W') uint8.
    """
    names = [name for table in tables for name in (table.title, *table.rows)]
    margin = max(math.ceil(_length(name, _LABEL_SIZE)) for name in names) + 2 * _LABEL_SPACE
    parts = [_table_picture(table, margin) for table in tables]
    width = max(part.width for part in parts)
    lines = wrapped(note.split(), width - 2 * _LABEL_SPACE, size=_NOTE_SIZE)
    height = sum(part.height for part in parts) + (len(lines) + 1) * _NOTE_LINE * bool(note)
    image = Image.new("RGB", (width, height), _PAPER)
    top = 0
    for part in parts:
        image.paste(part, (0, top))
        top += part.height
    pen = ImageDraw.Draw(image)
    for index, line in enumerate(lines):
        middle = top + (index + 1) * _NOTE_LINE
        pen.text((_LABEL_SPACE, middle), line, fill=_INK, anchor="lm", font_size=_NOTE_SIZE)
    return from_image(image)


def _table_picture(table: Table, margin: int) -> Image.Image:
    """One example, with `margin` pixels for the names of rows."""
    height, width = next(iter(table.rows.values())).shape[-2:]
    wide, high = width + _LABEL_GAP, height + _LABEL_GAP
    size = (margin + len(table.columns) * wide, _LABEL_LINE + len(table.rows) * high)
    image = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(image)
    right, middle = margin - _LABEL_SPACE, _LABEL_LINE / 2
    pen.text((right, middle), table.title, fill=_INK, anchor="rm", font_size=_LABEL_SIZE)
    for index, name in enumerate(table.columns):
        where = (margin + index * wide + width / 2, middle)
        pen.text(
            where, name, fill=_INK, anchor="mm", font_size=_fitting(name, width - 4, _LABEL_SIZE)
        )
    for index, (name, pictures) in enumerate(table.rows.items()):
        top = _LABEL_LINE + index * high
        where = (right, top + height / 2)
        pen.text(where, name, fill=_INK, anchor="rm", font_size=_LABEL_SIZE)
        for column, picture in enumerate(pictures):
            image.paste(to_image(picture), (margin + column * wide, top))
    return image


def _length(text: str, size: int) -> float:
    """Pixels of a line of text."""
    return ImageFont.load_default(size).getlength(text)


def _fitting(text: str, width: float, size: int) -> int:
    """The largest size of letters, up to `size`, in which a text is no wider than `width`."""
    return next((s for s in range(size, 1, -1) if _length(text, s) <= width), 1)


def wrapped(words: Sequence[str], width: float, *, size: int, space: str = " ") -> list[str]:
    """Words in lines of at most `width` pixels; those that are wider are parted at their spaces."""
    lines: list[str] = []
    parts = ([word] if _length(word, size) <= width else word.split() for word in words)
    for word in chain.from_iterable(parts):
        longer = f"{lines[-1]}{space}{word}" if lines else word
        if lines and _length(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
