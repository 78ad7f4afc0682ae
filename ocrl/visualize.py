"""Pictures of frames, masks and slots, and the files they travel in: PNG, GIF, mp4.

T frames, K slots, C H W image, h w the size of masks. Pictures are uint8 (C,H,W), videos uint8
(T,C,H,W), on the CPU.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ocrl.colours import colour_objects, is_ground, slot_colours

_LEAST_HEIGHT = 48
"""Pixels of a row, so that its name fits beside it."""
_PAPER, _INK = (16, 18, 22), (232, 234, 240)
_CAPTION_HEIGHT, _CAPTION_SIZE = 18, 11
_LABEL_LINE, _LABEL_SIZE, _LABEL_SPACE, _LABEL_GAP = 26, 13, 10, 4
_NOTE_LINE, _NOTE_SIZE = 16, 12
_NUMBER_SIZE = 14
_LEAST_SHARE = 0.001
"""Of the picture, below which a region has no number."""
_LUMINANCE = torch.tensor([0.299, 0.587, 0.114])
_GROUND_BRIGHTNESS = 0.6
_BRIGHT = 150.0
"""Mean luminance from which on outlines are black instead of white."""


def to_uint8(video: Tensor) -> Tensor:
    """Pictures in [0,1] as uint8 on the CPU; uint8 passes through."""
    video = video.detach().cpu()
    if video.dtype == torch.uint8:
        return video
    return (video.float().clamp(0.0, 1.0) * 255).round().to(torch.uint8)


def overlay(
    video: Tensor,
    ids: Tensor,
    *,
    colours: Tensor | None = None,
    opacity: float = 0.75,
    scale: int = 1,
) -> Tensor:
    """Lay segments over frames without hues, so that a hue is a segment's; outline them.

    The ground keeps no hue and is darker.

    Args:
        video: (T,3,H,W) uint8 or float in [0,1].
        ids: (T,H,W) segment ids from 0.
        colours: (K,3) of the segments, see `slot_colours`, which gives them if None.
        opacity: of the colours inside a segment.
        scale: whole factor by which frames grow, so that outlines stay thin.

    Returns:
        (T,3,H*scale,W*scale) uint8.
    """
    ids = ids.detach().cpu().long()
    colours = slot_colours(ids) if colours is None else colours
    grey = (to_uint8(video).float() * _LUMINANCE.view(3, 1, 1)).sum(1, keepdim=True)
    tinted = grey * (1 - opacity) + colours[ids].movedim(-1, 1).float() * opacity
    mixed = torch.where(is_ground(colours)[ids][:, None], grey * _GROUND_BRIGHTNESS, tinted)
    outline = 0.0 if grey.mean() > _BRIGHT else 255.0
    mixed, ids = enlarge(mixed, scale), enlarge(ids, scale)
    return mixed.masked_fill(borders(ids)[:, None], outline).round().to(torch.uint8)


def borders(ids: Tensor) -> Tensor:
    """Pixels (T,H,W) bool whose right or lower neighbour has another id."""
    right = F.pad(ids[..., 1:] != ids[..., :-1], (0, 1))
    below = F.pad(ids[:, 1:] != ids[:, :-1], (0, 0, 0, 1))
    return right | below


def enlarge(video: Tensor, scale: int) -> Tensor:
    """Repeat each pixel of (...,H,W) `scale` times in both directions."""
    return video.repeat_interleave(scale, -2).repeat_interleave(scale, -1)


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear masks (...,K,h,w) at another size (H, W), as every protocol makes them."""
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    flat = masks.flatten(0, -4).float() if masks.ndim > 3 else masks[None].float()
    grown = F.interpolate(flat, size=tuple(size), mode="bilinear", align_corners=False)
    return grown.view(*masks.shape[:-2], *size)


def slot_pictures(video: Tensor, masks: Tensor, parts: Tensor | None = None) -> Tensor:
    """What each slot holds: its part, or else the frame, where its mask is, over a dark ground.

    Args:
        video: (T,3,H,W) uint8 or float in [0,1].
        masks: (T,K,h,w), sums to 1 over K.
        parts: (T,K,3,H,W) pictures of the slots; parts of another shape are not drawn.

    Returns:
        (K,T,3,H,W) uint8.
    """
    frames = to_uint8(video).float()[:, None]
    size = (frames.shape[-2], frames.shape[-1])
    if parts is not None and tuple(parts.shape[2:]) == (3, *size):
        frames = to_uint8(parts.float()).float()
    weight = resize_masks(masks.detach().cpu().float(), size)[:, :, None].clamp(0, 1)
    pictures = frames * weight + 24.0 * (1 - weight)
    return pictures.round().to(torch.uint8).transpose(0, 1)


def strip(pictures: Tensor, *, gap: int = 2) -> Tensor:
    """Pictures (N,C,H,W) side by side with white gaps: (C,H,N*W+(N-1)*gap)."""
    framed = F.pad(pictures, (0, gap), value=255)
    joined = framed.permute(1, 2, 0, 3).flatten(2)
    return joined[..., : joined.shape[-1] - gap] if gap else joined


def grid(rows: list[Tensor], *, gap: int = 2) -> Tensor:
    """Strips of the same width under each other: rows of (N,C,H,W) to one (C,H',W')."""
    strips = [strip(row, gap=gap) for row in rows]
    framed = [F.pad(row, (0, 0, 0, gap), value=255) for row in strips[:-1]]
    return torch.cat([*framed, strips[-1]], dim=1)


def clip_picture(
    video: Tensor,
    masks: Tensor,
    *,
    recon: Tensor | None = None,
    parts: Tensor | None = None,
    segmentation: Tensor | None = None,
    num_frames: int = 8,
) -> Tensor:
    """One picture of one clip: frames, truth, reconstruction, masks, then a row for each slot.

    Args:
        video: (T,3,H,W).
        masks: (T,K,h,w).
        recon: (T,3,H',W') pixels, if the decoder makes pixels.
        parts: as in `slot_pictures`.
        segmentation: (T,H,W) ground truth.
        num_frames: how many of the T frames are shown, evenly spread.

    Returns:
        (3,H'',W'') uint8.
    """
    shown = spread(video.shape[0], num_frames)
    size = (video.shape[-2], video.shape[-1])
    ids = resize_masks(masks.detach().cpu(), size).argmax(1)
    colours = slot_colours(ids, segmentation, num_slots=masks.shape[1])
    scale = max(1, math.ceil(_LEAST_HEIGHT / size[0]))
    video, masks = to_uint8(video)[shown], masks.detach().cpu()[shown]
    rows = {"frame": enlarge(video, scale)}
    if segmentation is not None:
        rows["truth"] = enlarge(colour_objects(segmentation)[shown], scale)
    if recon is not None:
        drawn = to_uint8(resize_masks(recon.detach().cpu()[shown].float(), size))
        rows["reconstruction"] = enlarge(drawn, scale)
    rows["slots"] = overlay(video, ids[shown], colours=colours, scale=scale)
    shown_parts = None if parts is None else parts.detach().cpu()[shown]
    for slot, pictures in enumerate(slot_pictures(video, masks, shown_parts)):
        rows[f"slot {slot}"] = enlarge(pictures, scale)
    return labelled([Table("", [f"frame {t}" for t in shown], rows)])


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
    image = _image(picture)
    pen = ImageDraw.Draw(image)
    is_free = np.ones((image.height // scale, image.width // scale), dtype=bool)
    for label, region in regions:
        y, x = _place(region, is_free)
        _write_number(pen, ((x + 0.5) * scale, (y + 0.5) * scale), str(label))
        high, wide = (_NUMBER_SIZE * share / scale for share in (1.0, 0.3 + 0.6 * len(str(label))))
        rows = slice(max(0, round(y - high)), round(y + high) + 1)
        columns = slice(max(0, round(x - wide)), round(x + wide) + 1)
        is_free[rows, columns] = False
    return _tensor(image)


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
    return torch.cat([_tensor(line).expand(len(video), -1, -1, -1), video], dim=2)


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
    return _tensor(image)


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
            image.paste(_image(picture), (margin + column * wide, top))
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


def spread(num_frames: int, num_shown: int) -> list[int]:
    """Indices of at most `num_shown` frames, evenly spread, with the first and the last."""
    return sorted(
        set(torch.linspace(0, num_frames - 1, min(num_shown, num_frames)).long().tolist())
    )


def _image(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_png(picture: Tensor) -> bytes:
    """A picture (3,H,W) uint8 as the bytes of a PNG file."""
    buffer = io.BytesIO()
    _image(picture).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def to_gif(video: Tensor, *, frames_per_second: float) -> bytes:
    """A video (T,3,H,W) uint8 as the bytes of a GIF that repeats for ever."""
    first, *rest = [_image(frame) for frame in video]
    buffer = io.BytesIO()
    first.save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=rest,
        duration=max(20, round(1000 / frames_per_second)),
        loop=0,
    )
    return buffer.getvalue()


def write_mp4(path: Path | str, video: Tensor, *, frames_per_second: float) -> None:
    """Write a video (T,3,H,W) uint8 as H.264; the file appears when it is whole.

    A side of odd length loses its last line of pixels, as the format asks for even ones.

    Raises:
        ValueError: if `video` has another shape or dtype, or no frame.
        OSError: if it cannot be written; nothing is left behind.
    """
    if video.ndim != 4 or video.shape[1] != 3 or video.dtype != torch.uint8 or not len(video):
        raise ValueError(
            f"expected video (T,3,H,W) in uint8, got {tuple(video.shape)} in {video.dtype}"
        )
    path = Path(path)
    height, width = (side - side % 2 for side in video.shape[-2:])
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with av.open(str(temporary), mode="w", format="mp4") as container:
            rate = Fraction(frames_per_second).limit_denominator(1000)
            stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for picture in video[..., :height, :width].permute(0, 2, 3, 1).contiguous().numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
