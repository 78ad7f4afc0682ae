"""Slot Attention, frame by frame without memory.

B batch, K slots, D slot size, N tokens, F token features.
"""

from __future__ import annotations

from torch import Tensor

from ocrl.initializers import preheat_aux, start_queries
from ocrl.interfaces import Backbone, FrameSlotEncoder, Initializer
from ocrl.nn.attention import EpsPlacement
from ocrl.nn.slot_attention import Corrector, Gradient
from ocrl.types import Camera, SlotOutput


class SlotAttention(FrameSlotEncoder):
    """The image encoder of Locatello et al. (2020, arXiv 2006.15055), applied to every frame.

    Differs from the paper in what is an argument here; the paper's choice is a learned Gaussian
    initializer, 3 iterations, an MLP of twice the slot size, the full gradient and eps on the
    weights. Slots of different frames do not correspond.

    Args:
        backbone: frames to tokens.
        initializer: the queries of every frame.
        num_slots: K.
        slot_dim: D.
        num_iterations: rounds of competition per frame.
        mlp_dim: hidden size of the residual MLP; no MLP if None.
        gradient: see `Corrector`.
        eps_placement: see `Corrector`.
        modulation: see `Corrector`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        initializer: Initializer,
        num_slots: int,
        slot_dim: int,
        num_iterations: int,
        mlp_dim: int | None,
        gradient: Gradient,
        eps_placement: EpsPlacement,
        modulation: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_slots = num_slots
        self.slot_dim = slot_dim
        self.num_iterations = num_iterations
        self.backbone = backbone
        self.initializer = initializer
        self.corrector = Corrector(
            backbone.out_dim,
            slot_dim=slot_dim,
            mlp_dim=mlp_dim,
            gradient=gradient,
            eps_placement=eps_placement,
            modulation=modulation,
        )

    def encode(
        self, frames: Tensor, *, condition: Tensor | None, camera: Camera | None = None
    ) -> SlotOutput:
        """Encode frames, see `FrameSlotEncoder.encode`."""
        tokens = self.backbone(frames, camera=camera)
        queries, preheated = start_queries(self.initializer, tokens, condition=condition)
        slots, attn = self.corrector(queries, tokens, num_iterations=self.num_iterations)
        aux = preheat_aux(self.initializer, preheated, slots, True)
        return SlotOutput(slots[:, None], attn[:, None], queries[:, None], aux=aux)
