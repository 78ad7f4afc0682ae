"""Edits of slots: move an object to another frame, remove it, or change one of its codes.

K slots, D slot size, N tokens, G code groups, P coordinates of a slot, C H W image, h w the size
of masks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ocrl.interfaces import Decoder, SlotCodes, SlotEncoder
from ocrl.types import SlotOutput
from ocrl.visualize import resize_masks

Operation = Literal["swap", "copy", "drop", "code"]
_PATTERNS: Mapping[Operation, re.Pattern[str]] = {
    "swap": re.compile(r"swap (\d+)@(\d+) (\d+)@(\d+)"),
    "copy": re.compile(r"copy (\d+)@(\d+) (\d+|new)@(\d+)"),
    "drop": re.compile(r"drop (\d+)@(\d+)"),
    "code": re.compile(r"code (\d+)@(\d+) (\d+):(\d+)"),
}
GRAMMAR = (
    "swap SLOT@FRAME SLOT@FRAME, copy SLOT@FRAME SLOT@FRAME (or new@FRAME), drop SLOT@FRAME, "
    "code SLOT@FRAME GROUP:CODE"
)


@dataclass(frozen=True)
class Scene:
    """The slots of one frame, with all that a decoder asks about them.

    Attributes:
        labels: K names, the numbers that the encoder gave the slots; they stay when others go.
        slots: (K,D).
        attn: (K,N), sums to 1 over K.
        codes: (K,G), if slots have codes.
        coordinates: (K,P), if slots have coordinates beside the codes.
    """

    labels: tuple[int, ...]
    slots: Tensor
    attn: Tensor
    codes: Tensor | None = None
    coordinates: Tensor | None = None

    def row(self, label: int, frame: int) -> int:
        """The row of a slot.

        Raises:
            ValueError: if there is no such slot; `frame` is where, for the sentence.
        """
        if label not in self.labels:
            known = ", ".join(map(str, self.labels))
            raise ValueError(f"expected a slot of frame {frame} among {known}, got {label}")
        return self.labels.index(label)


@dataclass(frozen=True)
class Edit:
    """One edit.

    Attributes:
        operation: what is done.
        slot: label of the slot, the source of a copy.
        frame: where it is.
        other_slot: the slot it is swapped with or copied over; -1 for a new one.
        other_frame: where that is.
        group: of the code that is set.
        code: its new value.
    """

    operation: Operation
    slot: int
    frame: int
    other_slot: int = -1
    other_frame: int = -1
    group: int = -1
    code: int = -1

    @property
    def frames(self) -> tuple[int, ...]:
        """The frames it reads or changes."""
        has_other = self.operation in ("swap", "copy")
        return (self.frame, self.other_frame) if has_other else (self.frame,)


def parse_edit(text: str) -> Edit:
    """Read an edit in words, see `GRAMMAR`.

    Raises:
        ValueError: if it is not one.
    """
    words = " ".join(text.split())
    for operation, pattern in _PATTERNS.items():
        found = pattern.fullmatch(words)
        if found is None:
            continue
        numbers = [-1 if word == "new" else int(word) for word in found.groups()]
        if operation == "code":
            return Edit(operation, numbers[0], numbers[1], group=numbers[2], code=numbers[3])
        return Edit(operation, *numbers)
    raise ValueError(f"expected an edit like {GRAMMAR}; got {text!r}")


def scenes_of(encoded: SlotOutput) -> list[Scene]:
    """The frames of an encoded clip with B = 1."""
    coordinates = encoded.aux.get("coordinates")
    labels = tuple(range(encoded.slots.shape[2]))
    return [
        Scene(
            labels,
            encoded.slots[0, t].float(),
            encoded.attn[0, t].float(),
            None if encoded.codes is None else encoded.codes[0, t],
            None if coordinates is None else coordinates[0, t],
        )
        for t in range(encoded.slots.shape[1])
    ]


def apply_edits(
    scenes: Sequence[Scene],
    edits: Sequence[Edit],
    *,
    encoder: SlotEncoder,
    moves_attention: bool = True,
) -> list[Scene]:
    """Make edits, one after the other.

    **Attention travels with the slot.** Some decoders draw a slot where the encoder saw it
    (`palette`, `glimpse`). A slot that is moved to another frame takes its attention map along,
    whole: it is drawn where it came from. The slots that were there share the rest of each token,
    in proportion to what they had, so attention still sums to 1. Where a slot is dropped, the
    others share all. With `moves_attention=False` the slot alone moves, and is drawn where the
    slot was seen whose place it takes. Other decoders know a place from the slot itself.

    Args:
        scenes: the frames; they are not changed.
        edits: in order; later ones see what earlier ones did.
        encoder: that made the slots, for edits of codes.
        moves_attention: whether attention travels.

    Raises:
        ValueError: if an edit names a frame, slot, group or code that does not exist, or a code
            where there are none, or drops the last slot of a frame.
    """
    edited = list(scenes)
    for edit in edits:
        for frame in edit.frames:
            if not 0 <= frame < len(scenes):
                raise ValueError(f"expected a frame in [0, {len(scenes)}), got {frame}")
        here = edited[edit.frame]
        row = here.row(edit.slot, edit.frame)
        if edit.operation == "drop":
            edited[edit.frame] = _drop(here, row, edit.frame)
        elif edit.operation == "code":
            edited[edit.frame] = _set_code(here, row, edit, encoder)
        else:
            there = edited[edit.other_frame]
            is_new = edit.other_slot < 0
            target = None if is_new else there.row(edit.other_slot, edit.other_frame)
            if edit.operation == "swap" and edit.frame == edit.other_frame:
                assert target is not None
                edited[edit.frame] = _exchange(here, row, target, moves_attention)
                continue
            edited[edit.other_frame] = _place(there, target, here, row, moves_attention)
            if edit.operation == "swap":
                assert target is not None
                edited[edit.frame] = _place(here, row, there, target, moves_attention)
    return edited


def _drop(scene: Scene, row: int, frame: int) -> Scene:
    if len(scene.labels) == 1:
        raise ValueError(f"expected frame {frame} to keep a slot, got a drop of its last one")
    kept = [k for k in range(len(scene.labels)) if k != row]
    attn = _share(scene.attn[kept], torch.ones_like(scene.attn[0]))
    return Scene(
        tuple(scene.labels[k] for k in kept),
        scene.slots[kept],
        attn,
        None if scene.codes is None else scene.codes[kept],
        None if scene.coordinates is None else scene.coordinates[kept],
    )


def _place(
    scene: Scene, target: int | None, source: Scene, row: int, moves_attention: bool
) -> Scene:
    """Put a source's slot over the one at row `target`, or behind the last."""
    if target is None:
        target = len(scene.labels)
        scene = _appended(scene)
    elif not moves_attention:
        return replace(
            scene,
            slots=_with(scene.slots, target, source.slots, row),
            codes=_with_optional(scene.codes, target, source.codes, row),
            coordinates=_with_optional(scene.coordinates, target, source.coordinates, row),
        )
    own = source.attn[row]
    others = [k for k in range(len(scene.labels)) if k != target]
    attn = scene.attn.clone()
    attn[others] = _share(scene.attn[others], 1 - own)
    attn[target] = own
    return replace(
        scene,
        slots=_with(scene.slots, target, source.slots, row),
        attn=attn,
        codes=_with_optional(scene.codes, target, source.codes, row),
        coordinates=_with_optional(scene.coordinates, target, source.coordinates, row),
    )


def _exchange(scene: Scene, row: int, other: int, moves_attention: bool) -> Scene:
    """Two slots of one frame trade rows; with their attention the picture stays as it is."""
    order = list(range(len(scene.labels)))
    order[row], order[other] = order[other], order[row]
    return replace(
        scene,
        slots=scene.slots[order],
        attn=scene.attn[order] if moves_attention else scene.attn,
        codes=None if scene.codes is None else scene.codes[order],
        coordinates=None if scene.coordinates is None else scene.coordinates[order],
    )


def _appended(scene: Scene) -> Scene:
    """One slot more, whose content is still that of the last one and which sees nothing."""

    def repeat(rows: Tensor | None) -> Tensor | None:
        return None if rows is None else torch.cat([rows, rows[-1:]])

    return Scene(
        (*scene.labels, max(scene.labels) + 1),
        torch.cat([scene.slots, scene.slots[-1:]]),
        torch.cat([scene.attn, torch.zeros_like(scene.attn[-1:])]),
        repeat(scene.codes),
        repeat(scene.coordinates),
    )


def _with(rows: Tensor, target: int, source: Tensor, row: int) -> Tensor:
    rows = rows.clone()
    rows[target] = source[row]
    return rows


def _with_optional(
    rows: Tensor | None, target: int, source: Tensor | None, row: int
) -> Tensor | None:
    return None if rows is None or source is None else _with(rows, target, source, row)


def _share(attn: Tensor, total: Tensor, *, eps: float = 1e-12) -> Tensor:
    """Scale attention (K,N) so that it sums to `total` (N,); slots that had nothing get equals."""
    sums = attn.sum(0, keepdim=True)
    shares = torch.where(sums > eps, attn / sums.clamp_min(eps), 1.0 / max(len(attn), 1))
    return shares * total


def _set_code(scene: Scene, row: int, edit: Edit, encoder: SlotEncoder) -> Scene:
    sizes = coded(encoder).code_sizes
    assert scene.codes is not None
    if not 0 <= edit.group < len(sizes):
        raise ValueError(f"expected a code group in [0, {len(sizes)}), got {edit.group}")
    if not 0 <= edit.code < sizes[edit.group]:
        raise ValueError(
            f"expected a code of group {edit.group} in [0, {sizes[edit.group]}), got {edit.code}"
        )
    codes = scene.codes.clone()
    codes[row, edit.group] = edit.code
    made = with_codes(encoder, codes, scene.coordinates)
    return replace(scene, slots=_with(scene.slots, row, made, row), codes=codes)


def with_codes(encoder: SlotEncoder, codes: Tensor, coordinates: Tensor | None) -> Tensor:
    """The slots (...,K,D) of codes (...,K,G).

    Raises:
        ValueError: if the encoder has no codes.
    """
    return coded(encoder).slots_of(codes, coordinates).float()


def coded(encoder: SlotEncoder) -> SlotCodes:
    """The same encoder, once it is known to have codes.

    Raises:
        ValueError: if it has none.
    """
    if not isinstance(encoder, SlotCodes) or not encoder.code_sizes:
        raise ValueError(
            f"expected a model whose slots have codes, such as encoder=vq_sa, got "
            f"{type(encoder).__name__}, whose slots have none"
        )
    return encoder


def draw(decoder: Decoder, scene: Scene, *, frame: Tensor) -> tuple[Tensor, Tensor]:
    """What a decoder makes of the slots of one frame.

    Args:
        decoder: of pixels, or one that can depict slots.
        scene: K may be any number.
        frame: (3,H,W) float, for the size of the picture; only decoders that draw nothing without
            the frame get to see it.

    Returns:
        The picture (3,H,W) in [0,1] and masks (K,h,w).

    Raises:
        ValueError: if the decoder makes no pictures.
    """
    pictures, masks = draw_slots(
        decoder, scene.slots[None, None], attn=scene.attn[None, None], frames=frame[None, None]
    )
    return pictures[0, 0], masks[0, 0]


def draw_slots(
    decoder: Decoder, slots: Tensor, *, attn: Tensor, frames: Tensor
) -> tuple[Tensor, Tensor]:
    """As `draw`, of slots (B,T,K,D), attn (B,T,K,N), frames (B,T,3,H,W); leading axes B and T."""
    pictures = None
    if decoder.space != "rays":  # these ask where the camera is
        decoded = decoder(slots, frames if decoder.needs_target else None, attn=attn)
        is_drawn = decoder.space == "pixels"
        pictures = decoded.recon if is_drawn else decoder.depict(slots, attn=attn)
    if pictures is None:
        raise ValueError(
            f"expected a decoder that makes pictures, got {type(decoder).__name__}, which makes "
            f"{decoder.space}"
        )
    size = (frames.shape[-2], frames.shape[-1])
    return resize_masks(pictures.float(), size).clamp(0, 1), decoded.masks.float()
