"""Edited slots as one picture: frames, what was drawn before, masks, what is drawn after.

T frames that are shown, K slots, C H W image, h w the size of masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ocrl.colours import slot_colours
from ocrl.inspection.edit import Scene, draw
from ocrl.interfaces import Decoder
from ocrl.lettering import Table, labelled, numbered
from ocrl.visualize import enlarge, overlay, resize_masks, to_uint8

_LEAST_TILE = 160
_NOTE = (
    "slots: a number and a colour for each; the slot that owns most before the edits is left "
    "without colour; slots that own hardly a pixel have no number."
)


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
        (3,H',W') uint8, with slot numbers on the masks of slots that own pixels.

    Raises:
        ValueError: if the decoder makes no pictures.
    """
    scale = max(1, -(-_LEAST_TILE // video.shape[-2]))
    rows = {"frame": enlarge(to_uint8(video[list(frames)]), scale)}
    is_edited = any(new is not old for new, old in zip(after, before, strict=True))
    stages = {"before": before, "after": after} if is_edited else {"decoded": before}
    drawn = {
        name: [_drawn(decoder, scenes[t], video[t]) for t in frames]
        for name, scenes in stages.items()
    }
    first = torch.stack([ids for _, ids in next(iter(drawn.values()))])
    num_labels = 1 + max(max(scene.labels) for scene in (*before, *after))
    colours = slot_colours(first, num_slots=num_labels)
    for name, pairs in drawn.items():
        pictures, ids = (torch.stack(column) for column in zip(*pairs, strict=True))
        rows[name] = enlarge(pictures, scale)
        masks = overlay(pictures, ids, colours=colours, scale=scale)
        rows["slots" if name == "decoded" else f"slots {name}"] = torch.stack(
            [
                numbered(picture, own, range(num_labels), scale=scale)
                for picture, own in zip(masks, ids, strict=True)
            ]
        )
    return labelled([Table("", [f"frame {t}" for t in frames], rows)], note=_NOTE)


def _drawn(decoder: Decoder, scene: Scene, frame: Tensor) -> tuple[Tensor, Tensor]:
    """The picture (3,H,W) uint8 of a scene and the label (H,W) of the slot that owns each pixel."""
    frame = to_uint8(frame).to(scene.slots.device) / 255
    picture, masks = draw(decoder, scene, frame=frame)
    size = (frame.shape[-2], frame.shape[-1])
    winner = resize_masks(masks[None], size)[0].argmax(0).cpu()
    return to_uint8(picture), torch.tensor(scene.labels)[winner]


def describe_scene(scene: Scene, *, frame: int) -> str:
    """The slots of a frame in a line, with their codes if they have some."""
    if scene.codes is None:
        return f"frame {frame}: slots {', '.join(map(str, scene.labels))}"
    codes = (
        f"{label} ({' '.join(map(str, own))})"
        for label, own in zip(scene.labels, scene.codes.tolist(), strict=True)
    )
    return f"frame {frame}: slots and their codes {', '.join(codes)}"
