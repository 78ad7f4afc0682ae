"""A page to look inside slots: one HTML file, in which a click on an object shows its slot.

B batch, T frames, K slots, D slot size, C H W image, h w the grid of tokens.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ocrl.colours import palette
from ocrl.discovery import DiscoveryModel, attention_masks, segment
from ocrl.inspection.object_slots import OBJECTS, overlaps, slot_masks
from ocrl.interfaces import Decoder
from ocrl.types import BACKGROUND_ID, VOID_ID, Clip, SlotOutput
from ocrl.visualize import resize_masks, to_png, to_uint8

_TEMPLATE = Path(__file__).with_name("explorer.html")
_LONGEST_SIDE = 16384
"""Pixels of a side of a picture that browsers still draw."""
_LEAST_MASS = 0.5
"""Pixels of mask below which a slot has no place."""
_LEAST_OVERLAP = 0.1
"""IoU below which a slot holds no object."""


def explore(
    model: DiscoveryModel,
    clip: Clip,
    *,
    name: str,
    categories: Sequence[str] = (),
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """All that the page shows of one clip, in plain values.

    Args:
        model: in `eval()`.
        clip: with B = 1 and one camera.
        name: in the list of clips.
        categories: names of the categories in the object tables.
        device: where the model is.

    Raises:
        ValueError: if the clip has several samples or cameras, or is too long for a browser.
    """
    if clip.video.ndim != 5 or clip.batch_size != 1:
        raise ValueError(
            f"expected one clip of one camera, (1,T,C,H,W), got shape {tuple(clip.video.shape)}"
        )
    height, width = clip.video.shape[-2:]
    with torch.inference_mode():
        clip = clip.to(device)
        encoded = model.encode(clip)
        masks = slot_masks(model, clip, encoded, source="decoder")
        ids = segment(masks, (height, width))[0].cpu()
        recon, parts = _pictures(model.decoder, encoded, clip.to_float().video[0])
        attn = attention_masks(encoded, model.encoder)[0].float().cpu()
    num_frames, num_slots = encoded.slots.shape[1:3]
    if max(num_frames * height, num_slots * width) > _LONGEST_SIDE:
        raise ValueError(
            f"expected at most {_LONGEST_SIDE // height} frames of {height} pixels and "
            f"{_LONGEST_SIDE // width} slots, which a browser can draw, got {num_frames} frames "
            f"and {num_slots} slots: take a shorter clip"
        )
    fine = resize_masks(masks[0].float().cpu(), (height, width))
    slots = encoded.slots[0].double().cpu()
    return {
        "name": name,
        "num_frames": num_frames,
        "num_slots": num_slots,
        "width": width,
        "height": height,
        "frames": sheet(to_uint8(clip.video[0])[:, None]),
        "ids": sheet(_grey(ids[:, None])),
        "masks": sheet(_grey(to_uint8(fine))),
        "recon": None if recon is None else sheet(to_uint8(recon)[:, None]),
        "parts": None if parts is None else sheet(to_uint8(parts)),
        "attn": sheet(_grey(to_uint8(attn / attn.amax((-2, -1), keepdim=True).clamp_min(1e-6)))),
        "share": _rounded(F.one_hot(ids.flatten(1), num_slots).double().mean(1), 4),
        "centre": _centres(fine),
        "alike": _rounded(_cosines(slots), 3),
        "drift": _drift(slots),
        "touching": [touching(frame, num_slots=num_slots) for frame in ids],
        "codes": None if encoded.codes is None else encoded.codes[0].tolist(),
        "objects": _objects(clip, ids, num_slots, categories),
    }


def _pictures(
    decoder: Decoder, encoded: SlotOutput, video: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """What a decoder draws (T,3,H,W), and of each slot (T,K,3,H,W), frame by frame; or nothing."""
    recons, parts = [], []
    size = (video.shape[-2], video.shape[-1])
    for slots, attn, frame in zip(encoded.slots[0], encoded.attn[0], video, strict=True):
        slots, attn = slots[None, None], attn[None, None]
        if decoder.space != "pixels":
            drawn = decoder.depict(slots, attn=attn)
        else:
            decoded = decoder(slots, frame[None, None], attn=attn)
            drawn = decoded.recon
            if decoded.parts is not None and tuple(decoded.parts.shape[-3:]) == (3, *size):
                parts.append(decoded.parts[0].cpu())
        if drawn is None:
            return None, None
        recons.append(resize_masks(drawn[0].float().cpu(), size))
    return torch.cat(recons), torch.cat(parts) if parts else None


def sheet(tiles: Tensor) -> dict[str, Any]:
    """Tiles (T,K,3,H,W) uint8 as one PNG, T downwards and K to the right."""
    height, width = tiles.shape[-2:]
    picture = tiles.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    text = base64.b64encode(to_png(picture)).decode("ascii")
    return {"width": width, "height": height, "src": f"data:image/png;base64,{text}"}


def _grey(tiles: Tensor) -> Tensor:
    return tiles.to(torch.uint8)[:, :, None].expand(-1, -1, 3, -1, -1)


def _rounded(values: Tensor, digits: int) -> Any:
    rounded: Any = values.double().round(decimals=digits).tolist()
    return rounded


def _cosines(slots: Tensor) -> Tensor:
    """Cosine (T,K,K) of any two slots of a frame."""
    unit = F.normalize(slots, dim=-1)
    return unit @ unit.mT


def _drift(slots: Tensor) -> list[list[float | None]]:
    """1 - cosine of each slot with itself one frame earlier; nothing in the first frame."""
    unit = F.normalize(slots, dim=-1)
    change = 1 - (unit[1:] * unit[:-1]).sum(-1)
    first: list[float | None] = [None] * slots.shape[1]
    return [first, *_rounded(change.clamp(min=0), 5)]


def _centres(masks: Tensor) -> list[list[list[float] | None]]:
    """The mean place (x, y) in [0,1] of each mask (T,K,H,W), None where there is next to none."""
    height, width = masks.shape[-2:]
    total = masks.sum((-2, -1))
    x = (masks.sum(-2) @ (torch.arange(width) + 0.5)) / total.clamp_min(1e-9) / width
    y = (masks.sum(-1) @ (torch.arange(height) + 0.5)) / total.clamp_min(1e-9) / height
    places = _rounded(torch.stack([x, y], -1), 4)
    return [
        [place if mass >= _LEAST_MASS else None for place, mass in zip(row, masses, strict=True)]
        for row, masses in zip(places, total.tolist(), strict=True)
    ]


def touching(ids: Tensor, *, num_slots: int) -> list[list[int]]:
    """For each slot those whose segment has a pixel beside one of its own, from ids (H,W)."""
    touches = torch.zeros(num_slots, num_slots, dtype=torch.bool)
    touches[ids[:, 1:], ids[:, :-1]] = True
    touches[ids[1:], ids[:-1]] = True
    touches = (touches | touches.mT) & ~torch.eye(num_slots, dtype=torch.bool)
    return [torch.nonzero(row).flatten().tolist() for row in touches]


def _objects(
    clip: Clip, ids: Tensor, num_slots: int, categories: Sequence[str]
) -> list[list[tuple[str, float] | None]] | None:
    """For each frame and slot the object of the best IoU, and that; None without ground truth."""
    if OBJECTS not in clip.segmentation:
        return None
    truth = clip.segmentation[OBJECTS][0].cpu()
    objects = truth.unique()
    objects = objects[(objects != BACKGROUND_ID) & (objects != VOID_ID)]
    if not len(objects):
        return [[None] * num_slots for _ in ids]
    _, overlap = overlaps(truth, ids, ids=objects, num_slots=num_slots)
    best, which = overlap.max(1)
    names = [_object_name(clip, int(number), categories) for number in objects]
    return [
        [
            (names[row], round(value, 3)) if value >= _LEAST_OVERLAP else None
            for row, value in zip(rows, values, strict=True)
        ]
        for rows, values in zip(which.tolist(), best.tolist(), strict=True)
    ]


def _object_name(clip: Clip, number: int, categories: Sequence[str]) -> str:
    if not {"id", "category"} <= set(clip.properties):
        return f"object {number}"
    found = clip.properties["category"][0][clip.properties["id"][0] == number]
    if not len(found) or int(found[0]) >= len(categories):
        return f"object {number}"
    return f"{categories[int(found[0])]} {number}"


def render_explorer(
    clips: Sequence[Mapping[str, Any]],
    *,
    title: str,
    details: Mapping[str, str],
    frames_per_second: float,
) -> str:
    """The page as text; it asks nothing of a network.

    Args:
        clips: as from `explore`.
        title: the heading.
        details: what is shown, beside the heading.
        frames_per_second: at which clips are played.

    Raises:
        ValueError: if there is no clip, or the rate is not positive.
    """
    if not clips:
        raise ValueError("expected at least one clip to explore, got none")
    if not (math.isfinite(frames_per_second) and frames_per_second > 0):
        raise ValueError(f"expected a positive frames_per_second, got {frames_per_second}")
    content = {
        "clips": list(clips),
        "colours": palette(max(clip["num_slots"] for clip in clips)).tolist(),
        "frames_per_second": frames_per_second,
    }
    # A "</script>" in a name would end the element that holds the data.
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    lines = ", ".join(f"{escape(name)}: {escape(value)}" for name, value in details.items())
    page = Template(_TEMPLATE.read_text(encoding="utf-8"))
    return page.substitute(title=escape(title), details=lines, data=text)
