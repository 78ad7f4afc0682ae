"""Reconstruct the features of a frozen backbone.

B batch, T frames, N tokens, F token features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ocrl.interfaces import Backbone, Objective
from ocrl.types import Clip, DecoderOutput, SlotOutput


class FeatureReconstruction(Objective):
    """Mean squared error on frozen features (DINOSAUR, Seitzer et al. 2022, arXiv 2209.14860).

    Args:
        target: the backbone whose tokens are the target; it is frozen and stays in `eval`.
        is_normalised: normalise every target token to zero mean and unit variance over F, so that
            loud features do not rule. The paper does not.
    """

    def __init__(self, target: Backbone, *, is_normalised: bool) -> None:
        super().__init__()
        self.target = target.requires_grad_(False).eval()
        self.is_normalised = is_normalised

    def train(self, mode: bool = True) -> FeatureReconstruction:
        """Set the mode of the objective; the target stays in `eval`."""
        super().train(mode)
        self.target.eval()
        return self

    def features(self, clip: Clip) -> Tensor:
        """The target (B,T,N,F)."""
        with torch.no_grad():
            tokens = self.target(clip.video.flatten(0, 1)).float()
        if self.is_normalised:
            tokens = nn.functional.layer_norm(tokens, tokens.shape[-1:])
        return tokens.unflatten(0, clip.video.shape[:2])

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Mean over (B,T,N,F).

        Raises:
            ValueError: if the decoder gives another number of tokens or features.
        """
        target = self.features(clip)
        if decoded.recon.shape != target.shape:
            raise ValueError(
                f"expected a reconstruction of the features (B,T,N,F) = {tuple(target.shape)}, "
                f"got {tuple(decoded.recon.shape)}: set the decoder's patch_size and out_dim"
            )
        return (decoded.recon.float() - target).square().mean()
