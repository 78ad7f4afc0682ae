"""What a slot attends to has one colour.

B batch, T frames, K slots, C H W image, N = h * w tokens.
"""

from __future__ import annotations

import torch
from einops import reduce
from torch import Tensor

from ocrl.interfaces import Objective
from ocrl.types import Clip, DecoderOutput, SlotOutput


class Coherence(Objective):
    """Variance of the colours that share a slot, a guide for the first steps of training.

    A decoder that must learn to draw before it can tell slots apart leaves the attention flat for
    thousands of steps. This objective reads no decoder: it is the within-slot variance of colour
    under the encoder's attention, the distortion of soft k-means. It does not part two objects
    of one colour; reconstruction does that once slots mean something.
    """

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Mean over (B,T,N,C), with frames averaged to the grid of the tokens.

        Raises:
            ValueError: if the tokens are no square patches of the frame.
        """
        height, width = clip.video.shape[-2:]
        attn = encoded.attn.float()
        num_tokens = attn.shape[-1]
        size = round((height * width / num_tokens) ** 0.5)
        if height % size or width % size or height * width != num_tokens * size**2:
            raise ValueError(
                f"expected tokens of square patches of a {height} x {width} frame, "
                f"got {num_tokens} tokens"
            )
        colours = reduce(
            clip.video.float(), "b t c (h p) (w q) -> b t (h w) c", "mean", p=size, q=size
        )
        share = attn.sum(dim=-1)
        mean = torch.einsum("btkn,btnc->btkc", attn, colours) / share[..., None].clamp_min(1e-6)
        between = (share * mean.square().sum(dim=-1)).sum(dim=-1) / num_tokens
        total = colours.square().sum(dim=-1).mean(dim=-1)
        return (total - between).mean() / colours.shape[-1]
