"""Pictures of frames, masks and slots, and the files they travel in: PNG, GIF, mp4.

T frames, K slots, C H W image, h w the size of masks. Pictures are uint8 (C,H,W), videos uint8
(T,C,H,W), on the CPU.
"""

from __future__ import annotations

import io
import math
import os
from fractions import Fraction
from pathlib import Path

import av
import torch
import torch.nn.functional as F
from torch import Tensor

from ocrl.colours import colour_objects, is_ground, slot_colours
from ocrl.lettering import Table, labelled, to_image

_LEAST_HEIGHT = 48
"""Pixels of a row, so that its name fits beside it."""
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


def spread(num_frames: int, num_shown: int) -> list[int]:
    """Indices of at most `num_shown` frames, evenly spread, with the first and the last."""
    return sorted(
        set(torch.linspace(0, num_frames - 1, min(num_shown, num_frames)).long().tolist())
    )


def to_png(picture: Tensor) -> bytes:
    """A picture (3,H,W) uint8 as the bytes of a PNG file."""
    buffer = io.BytesIO()
    to_image(picture).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def to_gif(video: Tensor, *, frames_per_second: float) -> bytes:
    """A video (T,3,H,W) uint8 as the bytes of a GIF that repeats for ever."""
    first, *rest = [to_image(frame) for frame in video]
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
