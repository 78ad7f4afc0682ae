"""VQ-SA: slots as tuples of discrete codes, around any slot encoder.

B batch, T frames, K slots, D slot size, G code groups, P coordinates of a slot.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ocrl.interfaces import Backbone, ScheduledModule, SlotCodes, SlotEncoder, State
from ocrl.nn.quantize import FSQQuantizer, Quantizer
from ocrl.types import Camera, SlotOutput

Coordinates = Literal["continuous", "grid", "none"]


class VQSA(SlotEncoder, ScheduledModule, SlotCodes):
    """Vector-quantised slots (Kirilenko, Korchemnyi, Smirnov, Kovalev and Panov 2023).

    What another encoder finds is said again in codes of a few groups, one for each factor an
    object has, and in coordinates; a linear map of both is the slot. Codes are hard and nothing is
    drawn in `eval()`. The wrapped encoder goes on from its own continuous slots, so a stream keeps
    what no code says. Start it from a trained encoder, as the authors do.

    Differs from the paper in what is an argument here (see `ocrl.nn.quantize`; the paper's is the
    Gumbel quantiser with a grid), in that codes are hard when it counts, and in the grid: there,
    logits are linear in the position of a lattice point, which one code for all axes names, so
    that a hard choice is always a corner of the lattice. Here every axis has its bins and its code.

    `codes` (B,T,K,G), with a grid (B,T,K,G+P). `aux` has that of the wrapped encoder, the
    quantiser's costs per slot as `code_divergence` or `code_commitment` (B,T,K), and if
    continuous `coordinates` (B,T,K,P) in [-1,1].

    Args:
        encoder: frames to continuous slots.
        backbone: for the encoder; it takes the place of that which the encoder was built with, so
            that a recipe chooses the backbone at the place where it does for every encoder.
        quantizer: a slot to codes.
        coordinates: `continuous` numbers beside the codes, a `grid` of bins with a code per axis,
            or `none`.
        coordinate_dim: P; read unless `none`.
        coordinate_bins: per axis; read if `grid`.

    Attributes:
        code_sizes: number of codes of each group, axes of the grid last.

    Raises:
        ValueError: if `coordinates` is unknown or the backbone does not fit the encoder.
    """

    def __init__(
        self,
        encoder: SlotEncoder,
        *,
        backbone: Backbone,
        quantizer: Quantizer,
        coordinates: Coordinates,
        coordinate_dim: int,
        coordinate_bins: int,
    ) -> None:
        super().__init__()
        if coordinates not in ("continuous", "grid", "none"):
            raise ValueError(
                f"coordinates must be 'continuous', 'grid' or 'none', got {coordinates!r}"
            )
        if backbone.out_dim != encoder.backbone.out_dim:
            raise ValueError(
                f"expected a backbone with out_dim {encoder.backbone.out_dim} for the encoder, "
                f"got {backbone.out_dim}"
            )
        encoder.backbone = backbone
        self.num_slots, self.slot_dim = encoder.num_slots, encoder.slot_dim
        self.encoder = encoder
        self.quantizer = quantizer
        self.code_sizes = quantizer.sizes
        self.to_coordinates: nn.Linear | None = None
        self.grid: FSQQuantizer | None = None
        if coordinates == "continuous":
            self.to_coordinates = nn.Linear(self.slot_dim, coordinate_dim)
        if coordinates == "grid":
            levels = [[coordinate_bins]] * coordinate_dim
            self.grid = FSQQuantizer(self.slot_dim, levels=levels, is_blockwise=False)
            self.code_sizes = (*quantizer.sizes, *self.grid.sizes)
        if coordinates == "none":
            coordinate_dim = 0
        self.to_slots = nn.Linear(quantizer.out_dim + coordinate_dim, self.slot_dim)
        self.register_buffer("progress", torch.zeros(()))

    @property
    def backbone(self) -> Backbone:  # type: ignore[override]
        """Of the wrapped encoder."""
        return self.encoder.backbone

    def initial_state(self, batch_size: int) -> State:
        """The wrapped encoder's."""
        return self.encoder.initial_state(batch_size)

    def forward(
        self,
        video: Tensor,
        is_first: Tensor,
        *,
        action: Tensor | None = None,
        condition: Tensor | None = None,
        camera: Camera | None = None,
    ) -> SlotOutput:
        """Encode a clip, see `SlotEncoder.forward`."""
        encoded = self.encoder(video, is_first, action=action, condition=condition, camera=camera)
        return self._quantize(encoded)

    def step(
        self,
        frame: Tensor,
        state: State,
        is_first: Tensor,
        *,
        action: Tensor | None = None,
        condition: Tensor | None = None,
        camera: Camera | None = None,
    ) -> tuple[SlotOutput, State]:
        """Encode one frame, see `SlotEncoder.step`."""
        encoded, state = self.encoder.step(
            frame, state, is_first, action=action, condition=condition, camera=camera
        )
        return self._quantize(encoded), state

    def slots_of(self, codes: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """See `SlotCodes.slots_of`.

        Args:
            codes: (...,K,G).
            coordinates: (...,K,P) as `aux["coordinates"]`, if they are continuous.

        Returns:
            (...,K,D).

        Raises:
            ValueError: if coordinates are missing, or given though they are not continuous.
        """
        if (coordinates is None) != (self.to_coordinates is None):
            kind = "no" if self.to_coordinates is None else "continuous"
            got = "none" if coordinates is None else f"shape {tuple(coordinates.shape)}"
            raise ValueError(f"expected {kind} coordinates beside the codes, got {got}")
        num_groups = len(self.quantizer.sizes)
        parts = [self.quantizer.embed(codes[..., :num_groups])]
        if self.grid is not None:
            parts.append(self.grid.embed(codes[..., num_groups:]))
        if coordinates is not None:
            parts.append(coordinates)
        return self._join(parts)

    def _quantize(self, encoded: SlotOutput) -> SlotOutput:
        values, codes, costs = self.quantizer(encoded.slots, progress=self.progress)
        parts, aux = [values], dict(encoded.aux)
        aux.update((f"code_{name}", cost) for name, cost in costs.items())
        with torch.autocast(values.device.type, enabled=False):
            if self.grid is not None:
                places = self.grid(encoded.slots, progress=self.progress)
                parts.append(places.values)
                codes = torch.cat([codes, places.codes], dim=-1)
            if self.to_coordinates is not None:
                aux["coordinates"] = self.to_coordinates(encoded.slots.to(values)).tanh()
                parts.append(aux["coordinates"])
        return SlotOutput(
            self._join(parts), encoded.attn, encoded.queries, codes, aux, encoded.slot_mask
        )

    def _join(self, parts: list[Tensor]) -> Tensor:
        joined = torch.cat(parts, dim=-1)
        with torch.autocast(joined.device.type, enabled=False):
            return self.to_slots(joined)
