"""Glimpse decoder: every slot is a small shape, drawn where the slot is.

B batch, T frames, K slots, D slot size, C H W image, N tokens, S cells of a glimpse's side,
M = B * T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ocrl.interfaces import Decoder, Space
from ocrl.nn.location import NUM_AXES, cell_centres, feature_dim, moments, split_placed
from ocrl.nn.mlp import MLP
from ocrl.nn.position import grid_like
from ocrl.types import NUM_COLOURS, DecoderOutput

OUTSIDE = -20.0
"""The logit of a slot outside its glimpse; that of the ground is 0 everywhere."""


class GlimpseDecoder(Decoder):
    """A mixture of small shapes on a ground, one Gaussian of colour per slot.

    A slot is a colour and a glimpse of S x S logits. The glimpse is drawn, with bilinear weights,
    around the mean place of the slot's attention, so that the error moves the attention too;
    outside it a slot is not seen. The slot with the largest share of a frame's attention is the
    ground: it is seen wherever no other is. A slot can thus hold one thing of limited size and no
    more, and that alone parts things of one look.

    Softmax of the logits over slots is the prior share m_k(x) of slot k at pixel x, and a pixel is
    drawn from N(colour_k, deviation^2) with that share. `recon` is the mean, the sum of m_k times
    colour_k. Given the frame (`target`), `aux["log_prob"]` is its log density, and `masks` are the
    posterior shares: who painted this pixel, given its colour (the responsibilities of IODINE,
    Greff et al. 2019, arXiv 1903.00450, equation 1). A rough shape thereby has sharp masks. The
    mean of a mixture can be right with every pixel half of two slots; its density can not.

    The mean place of the attention is known to a fraction of a token only, and things of one shape
    have many sizes. With `max_shift` and `max_zoom` the slot itself corrects both: then shapes need
    to be known at one place and in one size.

    Ours; drawing small pictures at places is that of Attend, Infer, Repeat (Eslami et al. 2016,
    arXiv 1603.08575, with spatial transformers), there with places that a network guesses. As
    shifts do not rotate, drawing is two small matrix products per slot, and colours meet masks and
    frames in one, so that no (K,3,H,W) pictures exist.

    Of imagined slots no attention is known. With `reads_places` slots say themselves where they
    are and which are the ground, and it draws those as well.

    Args:
        slot_dim: D.
        image_size: (H, W).
        glimpse_size: pixels of a glimpse's side; things that are larger take several slots.
        num_cells: S.
        hidden_dims: hidden layers of the perceptron from slot to glimpse.
        deviation: standard deviation of a pixel's colour, which is in [0,1].
        max_shift: pixels that a slot may move its glimpse along either axis; 0 for none.
        max_zoom: times that a slot may stretch or shrink its glimpse; 1 for neither.
        reads_places: slots end with their place, as those of `LocatedSlots` with `has_places`; the
            attention is not read.

    Raises:
        ValueError: if a glimpse is larger than the image, `deviation` is not positive, `max_shift`
            is negative or `max_zoom` below 1, or slots are too small to hold a place.
    """

    space: Space = "pixels"
    offsets: Tensor

    def __init__(
        self,
        slot_dim: int,
        *,
        image_size: Sequence[int],
        glimpse_size: int,
        num_cells: int,
        hidden_dims: Sequence[int],
        deviation: float,
        max_shift: float = 0.0,
        max_zoom: float = 1.0,
        reads_places: bool = False,
    ) -> None:
        super().__init__()
        height, width = image_size
        if not 0 < glimpse_size <= min(height, width):
            raise ValueError(
                f"glimpse_size must be in [1, {min(height, width)}] for image_size "
                f"{list(image_size)}, got {glimpse_size}"
            )
        if deviation <= 0:
            raise ValueError(f"deviation must be positive, got {deviation}")
        if max_shift < 0 or max_zoom < 1:
            raise ValueError(
                "expected max_shift of at least 0 and max_zoom of at least 1, got "
                f"{max_shift} and {max_zoom}"
            )
        self.grid = (height, width)
        self.num_cells = num_cells
        self.cell_size = glimpse_size / num_cells
        self.deviation = deviation
        self.needs_attn = not reads_places
        self.num_axes = NUM_AXES if reads_places else 0
        if reads_places:
            slot_dim = feature_dim(slot_dim, num_axes=NUM_AXES)
        self.draw = MLP(slot_dim, hidden_dims=hidden_dims, out_dim=num_cells**2, norm_first=True)
        self.colour = MLP(slot_dim, hidden_dims=[], out_dim=NUM_COLOURS, norm_first=True)
        last = self.draw.layers[-1]
        assert isinstance(last, nn.Linear)
        # Hardly seen at first: a slot grows where it helps.
        nn.init.constant_(last.bias, -2.0)
        self.max_shift = max_shift
        self.max_zoom = max_zoom
        self.has_pose = max_shift > 0 or max_zoom > 1
        if self.has_pose:
            self.pose = MLP(slot_dim, hidden_dims=[], out_dim=3, norm_first=True)
            pose = self.pose.layers[-1]
            assert isinstance(pose, nn.Linear)
            nn.init.zeros_(pose.weight)
            nn.init.zeros_(pose.bias)
        offsets = (torch.arange(num_cells) + 0.5 - num_cells / 2) * self.cell_size
        self.register_buffer("offsets", offsets, persistent=False)

    def _poses(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """How slots (B,T,K,D) move and stretch their glimpses: pixels (M,K,2), times (M,K,1)."""
        if self.has_pose:
            pose = self.pose(slots).flatten(0, 1).tanh()
        else:
            pose = slots.new_zeros(len(slots) * slots.shape[1], slots.shape[2], 3)
        return self.max_shift * pose[..., :2], (math.log(self.max_zoom) * pose[..., 2:]).exp()

    def _weights(self, centres: Tensor, zooms: Tensor, size: int) -> Tensor:
        """Bilinear weights (M,K,size,S) of a glimpse's cells along one axis.

        Args:
            centres: (M,K) in pixels.
            zooms: (M,K,1).
            size: pixels of the image along this axis.
        """
        pixels = torch.arange(size, device=centres.device) + 0.5
        inside = (pixels - centres[..., None]) / zooms
        return (1 - (inside[..., None] - self.offsets).abs() / self.cell_size).clamp_min(0.0)

    def _seen(self, attn: Tensor) -> tuple[Tensor, Tensor]:
        """Where attn (M,K,N) puts slots (M,K,2), in [0,1], and which is the ground (M,)."""
        tokens = grid_like(attn.shape[-1], shape=self.grid, what="a frame")
        centres, _ = moments(attn, cell_centres(tokens, device=attn.device).to(attn.dtype))
        return centres, attn.sum(dim=-1).argmax(dim=-1)

    def _prior(
        self, glimpses: Tensor, places: Tensor, ground: Tensor, shifts: Tensor, zooms: Tensor
    ) -> Tensor:
        """Logarithm of the prior shares (M,K,H*W) of glimpses (M,K,S,S) at places (M,K,2)."""
        rows, columns = (
            self._weights(places[..., axis] * size + shifts[..., axis], zooms, size)
            for axis, size in enumerate(self.grid)
        )
        logits = rows @ (glimpses - OUTSIDE) @ columns.mT + OUTSIDE
        index = torch.arange(places.shape[1], device=places.device)
        is_ground = (index == ground[:, None])[..., None, None]
        return logits.masked_fill(is_ground, 0.0).flatten(2).log_softmax(dim=1)

    def _joint(self, prior: Tensor, colours: Tensor, frames: Tensor) -> Tensor:
        """Log density (M,K,H*W) of slot and colour of every pixel of frames (M,3,H*W)."""
        squares = frames.square().sum(1, keepdim=True) + colours.square().sum(-1, keepdim=True)
        precision = 0.5 / self.deviation**2
        constant = 0.5 * NUM_COLOURS * math.log(2 * math.pi * self.deviation**2)
        return prior + precision * (2 * colours @ frames - squares) - constant

    def forward(
        self, slots: Tensor, target: Tensor | None = None, *, attn: Tensor | None = None
    ) -> DecoderOutput:
        """Draw (B,T,3,H,W); masks are at full resolution, and prior shares without `target`.

        Raises:
            ValueError: if `attn` is read and there is none, or its tokens are on no grid like the
                frame's.
        """
        lead = slots.shape[:2]
        if self.num_axes:
            slots, places, is_placed = split_placed(slots, num_axes=NUM_AXES)
            dtype = torch.promote_types(slots.dtype, torch.float32)
            centres = 0.5 * (places.to(dtype).flatten(0, 1) + 1)
            ground = is_placed[..., 0].flatten(0, 1).argmin(dim=-1)
        elif attn is None:
            raise ValueError(
                "a glimpse decoder expected the encoder's attention, got none: it draws a slot "
                "where the encoder saw it, unless slots end with their places (has_places of the "
                "encoder, reads_places of the decoder)"
            )
        else:
            dtype = torch.promote_types(attn.dtype, torch.float32)
            centres, ground = self._seen(attn.to(dtype).flatten(0, 1))
        cells = (slots.shape[2], self.num_cells, self.num_cells)
        glimpses = self.draw(slots).to(dtype).reshape(-1, *cells)
        colours = self.colour(slots).to(dtype).sigmoid().flatten(0, 1)
        shifts, zooms = (pose.to(dtype) for pose in self._poses(slots))
        aux = {}
        with torch.autocast(slots.device.type, enabled=False):
            prior = self._prior(glimpses, centres, ground, shifts, zooms)
            shares = prior.exp()
            recon = (colours.mT @ shares).view(*lead, NUM_COLOURS, *self.grid)
            if target is not None:
                frames = target.to(dtype).flatten(0, 1).flatten(2)
                joint = self._joint(prior, colours, frames)
                aux["log_prob"] = joint.logsumexp(dim=1).view(*lead, *self.grid)
                shares = joint.softmax(dim=1)
            masks = shares.view(*lead, -1, *self.grid)
        return DecoderOutput(recon, masks, aux=aux)
