"""Reconstruct rays of cameras that the encoder saw, and of cameras that it did not.

B batch, T frames, V views, W views that are seen, P rays, C H W image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocrl.interfaces import Objective, ViewChooser
from ocrl.nn.rays import check_num_cameras, rays_through
from ocrl.objectives.rarity import rarity
from ocrl.types import Clip, DecoderOutput, SlotOutput

PLACE = "place"
"""Of the colours asked for (B,T,P,3): which of the seen views shows them, -1 if none does; y; x."""
_LEAST_RARITY = 1e-3


class Views(Objective, ViewChooser):
    """Mean squared error of the colours of sampled rays (OSRT, Sajjadi et al. 2022, 2206.06922).

    The encoder sees some of the cameras, drawn for each clip; the decoder is asked for pixels of
    these and of the others, in all frames. Predicting what was not seen is what makes slots hold
    things and not pictures. OSRT asks for the others only, PSB (Singh et al. 2024, 2402.17077)
    for all.

    Args:
        num_seen: W.
        num_rays: P, rays of each frame.
        held_out_share: of the rays that are of cameras that were not seen; 0 where all are seen.
        rare_share: of the rays whose pixels are drawn the more often the farther their colour is
            from the mean of the picture; the others are drawn evenly. Small things before a large
            ground are learned sooner so. Ours; 0 in OSRT and PSB.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self, num_seen: int, *, num_rays: int, held_out_share: float, rare_share: float = 0.0
    ) -> None:
        super().__init__()
        if num_seen < 1 or num_rays < 1:
            raise ValueError(
                f"expected num_seen and num_rays of at least 1, got {num_seen} and {num_rays}"
            )
        for name, share in (("held_out_share", held_out_share), ("rare_share", rare_share)):
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"expected {name} in [0,1], got {share}")
        self.num_seen, self.num_rays = num_seen, num_rays
        self.rare_share = rare_share
        self.num_held_out_rays = round(held_out_share * num_rays)

    @torch.compiler.disable
    def choose(self, clip: Clip) -> tuple[Clip, Clip, Tensor]:
        """Draw cameras and rays, see `ViewChooser.choose`; the rays are a picture of one row."""
        num_views = self._check(clip)
        batch_size, device = clip.batch_size, clip.video.device
        order = torch.rand(batch_size, num_views, device=device).argsort(dim=1)
        place = torch.cat(
            [
                self._draw(clip, self.num_held_out_rays, self.num_seen, num_views),
                self._draw(clip, self.num_rays - self.num_held_out_rays, 0, self.num_seen),
            ],
            dim=-1,
        )
        view = order[:, None].expand(-1, clip.num_frames, -1).gather(2, place)
        colours, rays, at = self._look(clip, view)
        # The encoder sees the views in the order drawn: of those, `place` is the number.
        seen = torch.where(place < self.num_seen, place, -1).to(at.dtype)
        properties = {PLACE: torch.cat([seen[..., None], at], dim=-1)}
        asked = Clip(colours.mT[..., None, :], clip.is_first, properties=properties)
        return clip.take_views(order[:, : self.num_seen]), asked, rays[:, :, None]

    def _check(self, clip: Clip) -> int:
        if clip.camera is None or clip.video.ndim != 6:
            raise ValueError(
                f"expected posed views, frames (B,T,V,C,H,W) with cameras, got frames "
                f"{tuple(clip.video.shape)} {'with' if clip.camera else 'without'} cameras: take "
                "episodes of several cameras, such as those of env=scenes_multiview"
            )
        least = self.num_seen + int(self.num_held_out_rays > 0)
        if clip.num_views < least:
            raise ValueError(
                f"expected at least {least} views, num_seen={self.num_seen} and what is held out, "
                f"got {clip.num_views}; lower num_seen, or set held_out_share=0"
            )
        cameras = clip.camera
        # That these are poses is checked where episodes are written, and before training.
        check_num_cameras(cameras.intrinsics, cameras.extrinsics, num_views=clip.num_views)
        return clip.num_views

    @staticmethod
    def _draw(clip: Clip, num_rays: int, first: int, end: int) -> Tensor:
        """Numbers (B,T,P) from `first` to `end`, which it leaves out."""
        shape = (clip.batch_size, clip.num_frames, num_rays)
        if not num_rays:
            return torch.empty(shape, dtype=torch.int64, device=clip.video.device)
        return torch.randint(first, end, shape, device=clip.video.device)

    def _pixels(self, clip: Clip, view: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns (B,T,P) of pixels to look at in views (B,T,P)."""
        height, width = clip.video.shape[-2:]
        pixel = torch.randint_like(view, height * width)
        num_rare = round(self.rare_share * view.shape[-1])
        if num_rare:
            is_rare = torch.rand(view.shape, device=view.device).argsort(-1) < num_rare
            pixel = torch.where(is_rare, _rare_pixels(clip.video, view), pixel)
        return pixel // width, pixel % width

    def _look(self, clip: Clip, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Colours (B,T,P,C), rays (B,T,P,6) and (y, x) of pixels drawn from views (B,T,P)."""
        assert clip.camera is not None
        height, width = clip.video.shape[-2:]
        row, column = self._pixels(clip, view)
        sample = torch.arange(clip.batch_size, device=view.device)[:, None, None]
        frame = torch.arange(clip.num_frames, device=view.device)[None, :, None]
        colours = clip.video[sample, frame, view, :, row, column]
        cameras = clip.camera.map(lambda value: value[sample, frame, view])
        pixels = torch.stack([column, row], dim=-1)[..., None, :] + 0.5
        rays = rays_through(pixels, intrinsics=cameras.intrinsics, extrinsics=cameras.extrinsics)
        at = torch.stack([(row + 0.5) / height, (column + 0.5) / width], dim=-1)
        return colours, torch.cat(rays, dim=-1).squeeze(-2), at

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Mean over (B,T,C,h,w).

        Raises:
            ValueError: if the decoder painted other rays than these.
        """
        if decoded.recon.shape != clip.video.shape:
            raise ValueError(
                f"expected colours of the rays {tuple(clip.video.shape)}, "
                f"got {tuple(decoded.recon.shape)}: this objective needs a decoder of rays"
            )
        return (decoded.recon.float() - clip.video.float()).square().mean()


def _rare_pixels(video: Tensor, view: Tensor) -> Tensor:
    """Pixels (B,T,P) drawn from views (B,T,P) of a video (B,T,V,C,H,W), the rarer the likelier.

    How rare is the square of how far its colour is from the mean of the picture, beside the mean
    of those squares: colours may be in [0,1] or in [0,255]. One colour alone is drawn evenly.
    """
    rare = rarity(video.float().flatten(-2).mT) + _LEAST_RARITY
    drawn = torch.multinomial(rare.flatten(0, 2), view.shape[-1], replacement=True)
    return drawn.unflatten(0, rare.shape[:3]).gather(2, view[:, :, None]).squeeze(2)
