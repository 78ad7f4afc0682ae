"""Edited slots as one picture: frames, what was drawn before, masks, what is drawn after.

T frames that are shown, K slots, C H W image, h w the size of masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ocrl.inspection.edit import Scene, draw
from ocrl.interfaces import Decoder
from ocrl.visualize import enlarge, overlay, resize_masks, to_uint8

_LEAST_TILE = 160
_MARGIN = 104
_LINE = 24
_PAPER, _INK = (16, 18, 22), (232, 234, 240)


def edit_picture(
    decoder: Decoder,
    video: Tensor,
    before: Sequence[Scene],
    after: Sequence[Scene],
    *,
    frames: Sequence[int],
) -> Tensor:
    """A row each for frames, drawn slots and their masks, and both again after the edits.

    Args:
        decoder: see `ocrl.inspection.edit.draw`.
        video: (T,3,H,W) all frames of the clip.
        before: their slots.
        after: their edited slots; the rows are left out if they are the same.
        frames: those that are shown.

    Returns:
        (3,H',W') uint8, with slot numbers on the masks.

    Raises:
        ValueError: if the decoder makes no pictures.
    """
    size = (video.shape[-2], video.shape[-1])
    scale = max(1, -(-_LEAST_TILE // size[0]))
    rows = {"frame": enlarge(to_uint8(video[list(frames)]), scale)}
    is_edited = any(new is not old for new, old in zip(after, before, strict=True))
    stages = (("before", before), ("after", after)) if is_edited else (("decoded", before),)
    for name, scenes in stages:
        drawn = [_drawn(decoder, scenes[t], video[t], scale) for t in frames]
        rows[name] = torch.stack([picture for picture, _ in drawn])
        rows["slots" if name == "decoded" else f"slots {name}"] = torch.stack(
            [masks for _, masks in drawn]
        )
    return _titled(rows, [f"frame {t}" for t in frames])


def _drawn(decoder: Decoder, scene: Scene, frame: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """The picture of a scene and the same with its slots' masks, colours and numbers."""
    size = (frame.shape[-2], frame.shape[-1])
    frame = to_uint8(frame).to(scene.slots.device) / 255
    picture, masks = draw(decoder, scene, frame=frame)
    picture = picture.cpu()
    labels = torch.tensor(scene.labels)
    winner = resize_masks(masks[None], size)[0].argmax(0).cpu()
    shown = overlay(picture[None], labels[winner][None], scale=scale)[0]
    return enlarge(to_uint8(picture), scale), _numbered(shown, winner, scene.labels, scale)


def _numbered(picture: Tensor, winner: Tensor, labels: Sequence[int], scale: int) -> Tensor:
    """Write each slot's number onto its region, at the pixel that is nearest to its middle."""
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    pen = ImageDraw.Draw(image)
    for row, label in enumerate(labels):
        places = torch.nonzero(winner == row).float()
        if not len(places):
            continue
        nearest = (places - places.mean(0)).square().sum(1).argmin()
        y, x = ((places[nearest] + 0.5) * scale).tolist()
        x = min(max(x, 10), image.width - 10)
        y = min(max(y, 8), image.height - 8)
        pen.rounded_rectangle((x - 9, y - 8, x + 9, y + 8), radius=4, fill=_PAPER)
        pen.text((x, y), str(label), fill=_INK, anchor="mm", font_size=12)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _titled(rows: dict[str, Tensor], columns: Sequence[str], *, gap: int = 4) -> Tensor:
    """Rows of pictures (T,3,H,W) under captions of columns and beside their own names."""
    height, width = next(iter(rows.values())).shape[-2:]
    wide = _MARGIN + len(columns) * (width + gap)
    image = Image.new("RGB", (wide, _LINE + len(rows) * (height + gap)), _PAPER)
    pen = ImageDraw.Draw(image)
    for index, name in enumerate(columns):
        middle = _MARGIN + index * (width + gap) + width / 2
        pen.text((middle, _LINE / 2), name, fill=_INK, anchor="mm", font_size=13)
    for index, (name, pictures) in enumerate(rows.items()):
        top = _LINE + index * (height + gap)
        pen.text((_MARGIN - 10, top + height / 2), name, fill=_INK, anchor="rm", font_size=13)
        for column, tile in enumerate(pictures.permute(0, 2, 3, 1).contiguous().numpy()):
            image.paste(Image.fromarray(tile), (_MARGIN + column * (width + gap), top))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def describe_scene(scene: Scene, *, frame: int) -> str:
    """The slots of a frame in a line, with their codes if they have some."""
    if scene.codes is None:
        return f"frame {frame}: slots {', '.join(map(str, scene.labels))}"
    codes = (
        f"{label} ({' '.join(map(str, own))})"
        for label, own in zip(scene.labels, scene.codes.tolist(), strict=True)
    )
    return f"frame {frame}: slots and their codes {', '.join(codes)}"
