"""Slots as pictures of cameras: whole views, the slot that a pixel shows, what to compare with.

B batch, T frames, V views, W views that are seen, K slots, C H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ocrl.discovery import segment
from ocrl.interfaces import Decoder, RayDecoder, ViewChooser
from ocrl.model import SlotModel
from ocrl.nn.rays import camera_rays, check_cameras, check_scale
from ocrl.types import Camera, Clip, DecoderOutput, SlotOutput

_RAYS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class PosedViews:
    """What slots look like from cameras.

    Attributes:
        recon: (B,T,V,3,H,W) in [0,1].
        masks: (B,T,K,V,H,W), sums to 1 over K.
        background: (B,T,V,H,W), the share that no slot explains, of decoders that know one.
    """

    recon: Tensor
    masks: Tensor
    background: Tensor | None

    @property
    def shares(self) -> Tensor:
        """(B,T,K[+1],V,H,W) what each slot gives to a pixel, then the background, if any."""
        if self.background is None:
            return self.masks
        left = self.background.unsqueeze(2)
        return torch.cat([self.masks * (1.0 - left), left], dim=2)

    @property
    def segments(self) -> Tensor:
        """(B,T,V,H,W) ids: the slot that gives most, K for the background."""
        return self.shares.argmax(2)


def is_posed(model: SlotModel) -> bool:
    """Whether a model draws rays of posed views and not frames."""
    return model.decoder.space == "rays"


def chooser_of(model: SlotModel) -> ViewChooser:
    """The objective of a model that chose views and rays in training.

    Raises:
        ValueError: if none did.
    """
    for objective in model.objectives.values():
        if isinstance(objective, ViewChooser):
            return objective
    raise ValueError(
        f"expected a model of posed views, with the objective views, got {list(model.objectives)}"
    )


def check_posed(clip: Clip, decoder: Decoder, *, num_seen: int) -> None:
    """Refuse clips that are no posed views; warn where the decoder looks past the scene.

    Raises:
        ValueError: if there are no cameras, fewer than `num_seen` views, or poses that are none.
    """
    if clip.camera is None or clip.video.ndim != 6:
        raise ValueError(
            f"expected posed views, frames (B,T,V,C,H,W) with cameras, got frames "
            f"{tuple(clip.video.shape)} {'with' if clip.camera else 'without'} cameras: take "
            "episodes of several cameras, such as those of env=scenes_multiview"
        )
    if clip.num_views < num_seen:
        raise ValueError(f"expected at least num_seen={num_seen} views, got {clip.num_views}")
    intrinsics, extrinsics = clip.camera.intrinsics, clip.camera.extrinsics
    check_cameras(intrinsics, extrinsics, num_views=clip.num_views)
    if isinstance(decoder, RayDecoder) and decoder.bounds is not None:
        near, far = decoder.bounds
        check_scale(intrinsics, extrinsics, near=near, far=far, depth=clip.depth)


def seen_views(clip: Clip, num_seen: int) -> Clip:
    """The first views of each clip, as a measurement shows them to the encoder."""
    views = torch.arange(num_seen, device=clip.video.device)
    return clip.take_views(views.expand(clip.batch_size, -1))


def attended(model: SlotModel, encoded: SlotOutput, size: tuple[int, int]) -> Tensor:
    """Ids (B,T,W,H,W') of the slots that attend most to each pixel of the W seen views."""
    grid = model.encoder.backbone.grid
    num_seen = encoded.attn.shape[-1] // (grid[0] * grid[1])
    masks = encoded.attn.unflatten(-1, (num_seen, *grid)).transpose(2, 3).flatten(1, 2)
    return segment(masks, size).unflatten(1, (-1, num_seen))


def view_rays(camera: Camera, size: tuple[int, int]) -> Tensor:
    """Rays (B,T,V*H,W,6) of cameras, their pictures under each other."""
    rays = camera_rays(camera.intrinsics, camera.extrinsics, size=size)
    return torch.cat(rays, dim=-1).flatten(2, 3)


def render_views(
    decoder: Decoder, slots: Tensor, camera: Camera, *, size: tuple[int, int]
) -> PosedViews:
    """Draw slots (B,T,K,D) from cameras, a few frames at a time, or a few rows of one.

    Args:
        decoder: of rays.
        slots: (B,T,K,D).
        camera: of V views; any, not only those that were seen.
        size: (H, W).
    """
    num_views, height, width = camera.extrinsics.shape[2], *size
    rays_of_row = len(slots) * width
    rows_at_once = max(1, _RAYS_AT_ONCE // rays_of_row)
    frames_at_once = max(1, _RAYS_AT_ONCE // (rays_of_row * num_views * height))
    pieces = []
    for start in range(0, slots.shape[1], frames_at_once):
        time = slice(start, start + frames_at_once)
        rows = view_rays(camera[time], size).split(rows_at_once, dim=2)
        pieces.append(_drawn(decoder, slots[:, time], rows))
    made = {
        name: torch.cat([piece[name] for piece in pieces], 1).unflatten(-2, (num_views, height))
        for name in pieces[0]
    }
    recon = made["recon"].clamp(0.0, 1.0).movedim(2, 3)
    return PosedViews(recon, made["masks"], made.get("background"))


def _drawn(decoder: Decoder, slots: Tensor, rows: Sequence[Tensor]) -> dict[str, Tensor]:
    """What `PosedViews` holds, (B,T,...,h,w), of rows (B,T,h,w,6) of rays one after the other."""
    pieces: list[dict[str, Tensor]] = []
    for rays in rows:
        made: DecoderOutput = decoder(slots, rays)
        piece = {"recon": made.recon.float(), "masks": made.masks.float()}
        if "background" in made.aux:
            piece["background"] = made.aux["background"].float()
        pieces.append(piece)
    return {name: torch.cat([piece[name] for piece in pieces], dim=-2) for name in pieces[0]}


def nearest_views(camera: Camera, num_seen: int) -> Tensor:
    """The number (B,T,V) of the seen view that looks most like each view, itself left out.

    Nearest is the camera whose axis is turned the least against it; of one seen view, that.
    """
    axis = camera.extrinsics[..., :3, 2]
    likeness = axis @ axis[:, :, :num_seen].mT
    if num_seen > 1:
        own = torch.eye(*likeness.shape[-2:], dtype=torch.bool, device=axis.device)
        likeness = likeness.masked_fill(own, -torch.inf)
    return likeness.argmax(-1)
