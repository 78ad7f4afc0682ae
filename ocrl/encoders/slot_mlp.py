"""Slots without competition: a perceptron over the whole map, for comparison.

B batch, K slots, D slot size, N = h * w tokens, F token features.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ocrl.interfaces import Backbone, FrameSlotEncoder
from ocrl.nn.mlp import MLP
from ocrl.types import Camera, SlotOutput


class SlotMLP(FrameSlotEncoder):
    """All slots of a frame in one output of a perceptron that reads all its tokens.

    After the "Slot MLP" that Slot Attention is compared with (Locatello et al. 2020, arXiv
    2006.15055): nothing is shared between slots, so each learns its objects by itself. Sizes of the
    hidden layers are arguments here. No slot looks anywhere: `attn` is 1/K everywhere.

    Args:
        backbone: frames to tokens, of one view.
        num_slots: K.
        slot_dim: D.
        hidden_dims: sizes of the hidden layers.
    """

    def __init__(
        self, backbone: Backbone, *, num_slots: int, slot_dim: int, hidden_dims: Sequence[int]
    ) -> None:
        super().__init__()
        self.num_slots = num_slots
        self.slot_dim = slot_dim
        self.backbone = backbone
        num_tokens = backbone.grid[0] * backbone.grid[1]
        self.to_slots = MLP(
            num_tokens * backbone.out_dim, hidden_dims=hidden_dims, out_dim=num_slots * slot_dim
        )

    def encode(
        self, frames: Tensor, *, condition: Tensor | None, camera: Camera | None = None
    ) -> SlotOutput:
        """Encode frames, see `FrameSlotEncoder.encode`.

        Raises:
            ValueError: if there are several views.
        """
        if frames.ndim != 4:
            raise ValueError(
                f"expected frames of one camera (B,C,H,W), got shape {tuple(frames.shape)}"
            )
        tokens = self.backbone(frames, camera=camera)
        slots = self.to_slots(tokens.flatten(1)).float()
        slots = slots.unflatten(-1, (1, self.num_slots, self.slot_dim))
        share = 1 / self.num_slots
        attn = slots.new_full((len(tokens), 1, self.num_slots, tokens.shape[1]), share)
        return SlotOutput(slots, attn)
