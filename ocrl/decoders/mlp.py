"""Patch decoder: a perceptron reads slot and position and gives one token's target.

B batch, T frames, K slots, D slot size, N = h * w tokens, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ocrl.interfaces import Decoder, Space
from ocrl.nn.position import LearnedPosition
from ocrl.types import DecoderOutput


class MLPDecoder(Decoder):
    """The MLP decoder of DINOSAUR (Seitzer et al. 2022, arXiv 2209.14860, section 3).

    Every slot is broadcast to N positions with a learned embedding, mapped to F features and an
    alpha logit, and mixed by a softmax over slots.

    What differs: the first layer is linear in slot + position, so it is applied to the K slots
    and to the N positions apart and their sum is taken (exact, and never a K x N product).

    Args:
        slot_dim: D.
        image_size: (H, W).
        patch_size: pixels between the target's tokens; the grid is `image_size` divided by it.
        out_dim: F.
        hidden_dims: sizes of the hidden layers, at least one.

    Raises:
        ValueError: if there is no hidden layer, or the patches do not tile the image.
    """

    space: Space = "features"

    def __init__(
        self,
        slot_dim: int,
        *,
        image_size: Sequence[int],
        patch_size: int,
        out_dim: int,
        hidden_dims: Sequence[int],
    ) -> None:
        super().__init__()
        if not hidden_dims:
            raise ValueError("hidden_dims must name at least one layer, got none")
        if image_size[0] % patch_size or image_size[1] % patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size={patch_size}, got {list(image_size)}"
            )
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.out_dim = out_dim
        self.norm = nn.LayerNorm(slot_dim)
        self.position = LearnedPosition(self.grid, dim=slot_dim, init_std=1.0)
        self.first = nn.Linear(slot_dim, hidden_dims[0])
        layers: list[nn.Module] = []
        for i in range(1, len(hidden_dims)):
            layers += [nn.Linear(hidden_dims[i - 1], hidden_dims[i]), nn.ReLU()]
        self.rest = nn.Sequential(*layers, nn.Linear(hidden_dims[-1], out_dim + 1))

    def forward(
        self, slots: Tensor, target: Tensor | None = None, *, attn: Tensor | None = None
    ) -> DecoderOutput:
        """Decode features (B,T,N,F); masks (B,T,K,h,w), parts (B,T,K,N,F)."""
        from_slot = self.first(self.norm(slots))
        from_position = nn.functional.linear(self.position.embedding(), self.first.weight)
        hidden = torch.relu(from_slot[:, :, :, None] + from_position)
        parts, alpha = self.rest(hidden).split([self.out_dim, 1], dim=-1)
        masks = alpha.squeeze(-1).float().softmax(dim=2)
        recon = torch.einsum("btkn,btknf->btnf", masks, parts.float())
        return DecoderOutput(recon, masks.unflatten(-1, self.grid), parts)
