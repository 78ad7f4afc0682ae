"""Located slots: slot attention whose slots have a place and a size in the picture.

B batch, K slots, D slot size, N tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ocrl.encoders.gaussian_slots import GaussianSlots
from ocrl.encoders.with_pixels import WithPixels
from ocrl.interfaces import Backbone, Initializer, State
from ocrl.nn.attention import EpsPlacement
from ocrl.nn.location import (
    NUM_AXES,
    cell_centres,
    check_placed,
    cut_around,
    feature_dim,
    follow,
    join_placed,
    log_density,
    spread_offsets,
)
from ocrl.nn.mlp import MLP
from ocrl.types import NUM_COLOURS, SlotOutput


class LocatedSlots(GaussianSlots):
    """Slots that are round Gaussians on the picture, see `GaussianSlots`.

    Ours. Places and scales of slots that follow the attention are those of Invariant Slot
    Attention (Biza et al. 2023, arXiv 2302.04973, section 3.2), which gives keys and values
    coordinates relative to them instead; competition by a Gaussian is that of the Slot Mixture
    Module (Kirilenko et al. 2024, arXiv 2311.04640), there over features.

    `aux` holds `places` (B,T,K,2), as (y, x) in [0,1], and `scales` (B,T,K,1); those of a ground
    slot are the mean and spread of what it won, too.

    Args:
        backbone: frames to tokens.
        initializer: the queries of a first frame.
        num_slots: K.
        slot_dim: D.
        num_grounds: see `GaussianSlots`, as for all further arguments.
        num_iterations_first: see there.
        num_iterations_rest: see there.
        num_prior_tokens: see there.
        min_scale: the least standard deviation of a Gaussian, in sides of the picture.
        mlp_dim: see `GaussianSlots`.
        eps_placement: see `Corrector`.
        modulation: see `Corrector`.
        keeps_looks: see `GaussianSlots`.
        glimpse_size: S; a slot is also given what convolutions make of the S x S pixels around
            its place, and of its attention there, which says what of them is its own: the mean
            over what it won forgets what was where, its shape. 0 for none.
        has_places: a slot ends with its place, (y, x) from -1 to 1, and with 1, or with 0 if it is
            a ground; so dynamics and policies know where it is, and a decoder that reads places
            draws it, imagined or not.

    Raises:
        ValueError: if not at least one slot has a place, `num_prior_tokens` or `min_scale` is not
            positive, `glimpse_size` is negative or larger than the frame, or slots are too small
            to hold a place.
    """

    coordinates: Tensor
    offsets: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        initializer: Initializer,
        num_slots: int,
        slot_dim: int,
        num_grounds: int,
        num_iterations_first: int,
        num_iterations_rest: int,
        num_prior_tokens: float,
        min_scale: float,
        mlp_dim: int | None,
        eps_placement: EpsPlacement,
        modulation: float = 0.0,
        keeps_looks: bool = True,
        glimpse_size: int = 0,
        has_places: bool = False,
    ) -> None:
        check_placed(num_slots, num_grounds=num_grounds, min_scale=min_scale)
        if not 0 <= glimpse_size <= min(backbone.image_size):
            raise ValueError(
                f"glimpse_size must be in [0, {min(backbone.image_size)}] for frames "
                f"{backbone.image_size}, got {glimpse_size}"
            )
        num_places = num_slots - num_grounds
        seen = WithPixels(backbone) if glimpse_size else None
        look_dim = slot_dim
        if has_places:
            look_dim = feature_dim(slot_dim, num_axes=NUM_AXES)
        super().__init__(
            seen or backbone,
            initializer=initializer,
            num_slots=num_slots,
            slot_dim=slot_dim,
            look_dim=look_dim,
            num_position_features=seen.num_pixel_features if seen else 0,
            num_grounds=num_grounds,
            num_iterations_first=num_iterations_first,
            num_iterations_rest=num_iterations_rest,
            num_prior_tokens=num_prior_tokens,
            mlp_dim=mlp_dim,
            eps_placement=eps_placement,
            modulation=modulation,
            keeps_looks=keeps_looks,
            places=0.5 + spread_offsets(num_places, radius=0.42),
            ground_place=torch.full((2,), 0.5),
            scale=(4 * num_places) ** -0.5,
        )
        self.min_scale = min_scale
        self.glimpse_size = glimpse_size
        self.num_axes = NUM_AXES if has_places else 0
        if glimpse_size:
            self.look_closely = _glimpse_network(glimpse_size, out_dim=look_dim)
            offsets = torch.arange(glimpse_size) - (glimpse_size - 1) / 2
            self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("coordinates", cell_centres(backbone.grid), persistent=False)

    def density(self, places: Tensor, log_scales: Tensor, seen: Tensor) -> Tensor:
        """On the picture, see `GaussianSlots.density`."""
        return log_density(places, log_scales, self.coordinates)

    def move(
        self, attn: Tensor, seen: Tensor, *, places: Tensor, prior_scales: Tensor
    ) -> tuple[Tensor, Tensor]:
        """To the mean of the tokens, see `GaussianSlots.move`."""
        places, variances = follow(
            attn,
            self.coordinates,
            places=places,
            prior_scales=prior_scales,
            num_prior_tokens=self.num_prior_tokens,
        )
        return places, 0.5 * (variances + self.min_scale**2).log()

    def output(self, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Slots; beside them their places (B,K,2) and scales (B,K,1)."""
        told = {"places": state["places"], "scales": state["log_scales"].exp()}
        if not self.num_axes:
            return state["slots"], told
        return join_placed(state["slots"], 2 * state["places"] - 1, state["is_placed"]), told

    def bind(
        self,
        tokens: Tensor,
        state: State,
        is_first: Tensor | bool,
        *,
        action: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> tuple[SlotOutput, State]:
        """Bind one frame, see `RecurrentSlotEncoder.bind`.

        Raises:
            ValueError: if there are the tokens of several views: a place is one on one picture.
        """
        if tokens.shape[1] != len(self.coordinates):
            raise ValueError(
                f"expected the {len(self.coordinates)} tokens of one view, got {tokens.shape[1]}: "
                "located slots stand on one picture; placed slots stand in the world"
            )
        output, new = super().bind(tokens, state, is_first, action=action, condition=condition)
        if self.glimpse_size:
            closely = self._closely(tokens, output.attn[:, 0], new)
            slots = output.slots.clone()
            slots[..., : self.look_dim] += closely[:, None]
            output = replace(output, slots=slots)
        return output, new

    def _closely(self, tokens: Tensor, attn: Tensor, state: State) -> Tensor:
        """What is seen around the places of slots (B,K,D), nothing for the grounds."""
        assert isinstance(self.backbone, WithPixels)
        frames = self.backbone.frames(tokens[..., -self.num_position_features :])
        maps = attn.unflatten(2, self.backbone.grid).flatten(0, 1)[:, None]
        cell = self.backbone.cell
        with torch.autocast(tokens.device.type, enabled=False):
            places = state["places"]
            colours = cut_around(frames.to(places.dtype), places, self.offsets)
            single = places.flatten(0, 1)[:, None]
            shares = cut_around(maps.to(places.dtype), single, self.offsets, cell=cell)
            glimpses = torch.cat([colours.flatten(0, 1), shares[:, 0]], dim=1)
        seen = self.look_closely(glimpses.to(tokens.dtype))
        return state["is_placed"] * seen.view(*places.shape[:2], -1)


def _glimpse_network(size: int, *, out_dim: int) -> nn.Sequential:
    """From (...,4,S,S), colours and a share of attention, to (...,out_dim)."""
    cells = -(-size // 4)
    return nn.Sequential(
        nn.Conv2d(NUM_COLOURS + 1, 32, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, out_dim, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        MLP(out_dim * cells**2, hidden_dims=[2 * out_dim], out_dim=out_dim),
    )
