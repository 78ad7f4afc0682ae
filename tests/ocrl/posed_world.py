"""Posed clips of known content, and models that are told the truth.

B batch, T frames, V views, K slots.
"""

import numpy as np
import torch
from torch import nn

from ocrl.envs.scenes_camera import look_at, pinhole
from ocrl.interfaces import Backbone, RayDecoder
from ocrl.model import SlotModel
from ocrl.nn.rays import camera_rays
from ocrl.objectives.views import Views
from ocrl.types import Camera, Clip, DecoderOutput, SlotOutput

SIZE = (12, 16)
CENTERS = torch.tensor([[1.0, 0.0, 0.3], [-1.0, 0.5, 0.3], [0.0, -1.2, 0.3]])
"""Of three balls of radius 0.6, which move apart by 0.05 a frame."""
RADIUS = 0.6


def ring(batch_size, num_frames, num_views, *, distance=8.0):
    """Cameras around the origin, a little different in every clip, still in time."""
    poses = [
        [
            look_at(360.0 * view / num_views + 7.0 * sample, 30.0, distance, np.zeros(3))
            for view in range(num_views)
        ]
        for sample in range(batch_size)
    ]
    extrinsics = torch.tensor(np.array(poses), dtype=torch.float32)[:, None]
    intrinsics = torch.tensor(pinhole(SIZE[1], 40.0), dtype=torch.float32)
    intrinsics[1, 2] = SIZE[0] / 2
    shape = (batch_size, num_frames, num_views)
    return Camera(intrinsics.expand(*shape, 3, 3), extrinsics.expand(*shape, 4, 4))


def balls_seen(rays, frame):
    """Ids (...) of the nearest ball on rays (...,6) at a frame, 0 for none."""
    centers = CENTERS * (1 + 0.05 * frame)
    away = rays[..., None, :3] - centers
    along = (away * rays[..., None, 3:]).sum(-1)
    inside = along.square() - away.square().sum(-1) + RADIUS**2
    length = (-along - inside.clamp(min=0).sqrt()).where(inside > 0, torch.inf)
    return (length.argmin(-1) + 1).where(length.isfinite().any(-1), 0)


def posed_clip(batch_size=2, num_frames=3, num_views=3):
    """Three balls of one colour each on black, from around: uint8."""
    camera = ring(batch_size, num_frames, num_views)
    rays = torch.cat(camera_rays(camera.intrinsics, camera.extrinsics, size=SIZE), dim=-1)
    ids = torch.stack([balls_seen(rays[:, t], t) for t in range(num_frames)], dim=1)
    colours = torch.tensor([[0, 0, 0], [250, 0, 0], [0, 250, 0], [0, 0, 250]], dtype=torch.uint8)
    first = torch.zeros(batch_size, num_frames, dtype=torch.bool)
    first[:, 0] = True
    return Clip(
        colours[ids].movedim(-1, -3),
        first,
        segmentation={"entities": ids.int()},
        camera=camera,
    )


class Told(nn.Module):
    """In place of an encoder: the slots of a frame are its number; it attends to the balls."""

    num_slots, slot_dim, num_axes = 4, 4, 0

    def __init__(self):
        super().__init__()
        self.backbone = _Pixels()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, video, is_first, *, action=None, condition=None, camera=None):
        self.seen.append((video, camera))
        batch_size, num_frames = video.shape[:2]
        slots = torch.eye(4).expand(batch_size, num_frames, 4, 4).clone()
        slots = slots + torch.arange(num_frames)[None, :, None, None] + self.weight
        if camera is None:
            return SlotOutput(slots, slots.new_full((*slots.shape[:3], 1), 0.25))
        rays = torch.cat(camera_rays(camera.intrinsics, camera.extrinsics, size=SIZE), dim=-1)
        ids = torch.stack([balls_seen(rays[:, t], t) for t in range(num_frames)], dim=1)
        attn = nn.functional.one_hot((ids.flatten(2) - 1) % 4, 4).mT.float()
        return SlotOutput(slots, attn)


class _Pixels(Backbone):
    out_dim, image_size, grid, needs_camera = 3, SIZE, SIZE, True

    def forward(self, frames, *, camera=None):
        raise NotImplementedError


class Oracle(RayDecoder):
    """Sees the balls where they are; slot k is ball k, the last one nothing, or no slot at all.

    Args:
        has_background: give what shows no ball to no slot.
        fault: "time" or "view" gives balls other slots in every other frame or beyond every ray
            that comes from the left.
    """

    def __init__(self, has_background=False, fault=""):
        super().__init__()
        self.has_background, self.fault = has_background, fault
        self.factor = nn.Parameter(torch.ones(()))

    def render(self, slots, rays):
        frame = slots[:, :, 0, 1].round().detach()
        ids = torch.stack(
            [
                torch.stack([balls_seen(part, t) for part, t in zip(row, times, strict=True)])
                for row, times in zip(rays, frame, strict=True)
            ]
        )
        winner = (ids - 1) % 4
        if self.fault == "time":
            winner = torch.where(frame[..., None, None] % 2 == 1, (winner + 1) % 4, winner)
        if self.fault == "view":
            winner = torch.where(rays[..., 0] < 0, (winner + 1) % 4, winner)
        masks = nn.functional.one_hot(winner.long(), 4).movedim(-1, 2).float()
        colours = torch.tensor([[0, 0, 0], [250, 0, 0], [0, 250, 0], [0, 0, 250]]) / 255.0
        recon = self.factor * colours[ids].movedim(-1, 2)
        aux = {"background": (ids == 0).float()} if self.has_background else {}
        return DecoderOutput(recon, masks, aux=aux)


def told_model(num_seen=2, **options):
    """A model that is right about everything, but for a fault it is given."""
    views = Views(num_seen, num_rays=20, held_out_share=0.5, rare_share=0.0)
    return SlotModel(
        Told(),
        decoder=Oracle(**options),
        objectives={"views": views},
        weights={"views": 1.0},
        is_conditioned=False,
    )
