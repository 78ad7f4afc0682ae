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
        target: the backbone whose tokens are the target; it is frozen and stays in `eval`. None
            takes the features that an autoregressive decoder has read (`DecoderOutput.aux`).
        is_normalised: normalise every target token to zero mean and unit variance over F, so that
            loud features do not rule. The paper does not.
    """

    def __init__(self, target: Backbone | None, *, is_normalised: bool) -> None:
        super().__init__()
        self.target = None if target is None else target.requires_grad_(False).eval()
        self.is_normalised = is_normalised

    def train(self, mode: bool = True) -> FeatureReconstruction:
        """Set the mode of the objective; the target stays in `eval`."""
        super().train(mode)
        if self.target is not None:
            self.target.eval()
        return self

    def features(self, clip: Clip, decoded: DecoderOutput) -> Tensor:
        """The target (B,T,N,F)."""
        if self.target is None:
            features = decoded.aux.get("target")
            if features is None or not features.is_floating_point():
                raise ValueError(
                    "expected a target backbone, or a decoder that reads features "
                    "(decoder=autoregressive), got neither"
                )
        else:
            with torch.no_grad():
                features = self.target(clip.video.flatten(0, 1)).float()
            features = features.unflatten(0, clip.video.shape[:2])
        if self.is_normalised:
            features = nn.functional.layer_norm(features, features.shape[-1:])
        return features

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Mean over (B,T,N,F).

        Raises:
            ValueError: if there is no target, or the decoder gives another number of tokens or
                features.
        """
        target = self.features(clip, decoded)
        if decoded.recon.shape != target.shape:
            raise ValueError(
                f"expected a reconstruction of the features (B,T,N,F) = {tuple(target.shape)}, "
                f"got {tuple(decoded.recon.shape)}: set the decoder's patch_size and out_dim"
            )
        return (decoded.recon.float() - target).square().mean()
