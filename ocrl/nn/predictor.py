"""What carries slots from one frame to the queries of the next.

B batch, K slots, D slot size, N tokens, F token features, W frames of history.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ocrl.nn.transformer import TransformerBlock


class Predictor(nn.Module, ABC):
    """The slots of past frames to the queries of the current one.

    Attributes:
        window: W, frames of history that training reads. In `eval()` only the last is read.
    """

    window: int

    @abstractmethod
    def forward(self, slots: Sequence[Tensor], tokens: Sequence[Tensor], age: Tensor) -> Tensor:
        """Predict.

        Args:
            slots: (B,K,D) of each past frame, the last frame first; at most W.
            tokens: (B,N,F) of each frame, the current one first; at most W.
            age: (B,) int64, how many of the frames in `slots` belong to the sample's episode.

        Returns:
            (B,K,D).
        """


class IdentityPredictor(Predictor):
    """The slots as they are."""

    window = 1

    def forward(self, slots: Sequence[Tensor], tokens: Sequence[Tensor], age: Tensor) -> Tensor:
        """See `Predictor.forward`."""
        return slots[0]


class TransformerPredictor(Predictor):
    """Transformer blocks over the slots of the last frame, as SAVi's predictor.

    Kipf et al. (2022, arXiv 2111.12594): one block with the norm after the sum.

    Args:
        slot_dim: D.
        num_layers: number of blocks.
        num_heads: heads of the self-attention.
        mlp_dim: hidden size of the blocks' MLP.
        norm_first: whether the blocks normalise before each part; SAVi's does not.
    """

    window = 1

    def __init__(
        self, slot_dim: int, *, num_layers: int, num_heads: int, mlp_dim: int, norm_first: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            TransformerBlock(slot_dim, num_heads=num_heads, mlp_dim=mlp_dim, norm_first=norm_first)
            for _ in range(num_layers)
        )

    def forward(self, slots: Sequence[Tensor], tokens: Sequence[Tensor], age: Tensor) -> Tensor:
        """See `Predictor.forward`."""
        predicted = slots[0]
        for block in self.blocks:
            predicted = block(predicted)
        return predicted


class RandomPairPredictor(Predictor):
    """Slots of a random past frame that read the tokens of another random frame.

    The transitioner of RandSF.Q (Zhao et al. 2025), which SmoothSA (arXiv 2508.05417) uses: a
    transformer decoder block, norm after the sum. In training the two frames are drawn
    independently and uniformly per sample, from the sample's episode only; in `eval()` they are
    the last frame's slots and the current tokens. All that enters is detached, so no gradient
    crosses a frame. Differs from the published one in that times are told as distances to the
    current frame, so that streams may be longer than training clips.

    Args:
        token_dim: F.
        slot_dim: D.
        window: W.
        num_heads: heads of the block.
        mlp_dim: hidden size of the block's MLP.
        dropout: of the block.

    Raises:
        ValueError: if `window` is not positive.
    """

    def __init__(
        self,
        token_dim: int,
        *,
        slot_dim: int,
        window: int,
        num_heads: int,
        mlp_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.window = window
        self.to_memory = nn.Linear(token_dim, slot_dim)
        self.age_embedding = nn.Parameter(torch.randn(window + 1, slot_dim) * slot_dim**-0.5)
        self.block = TransformerBlock(
            slot_dim,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            norm_first=False,
            context_dim=slot_dim,
            activation="gelu",
            dropout=dropout,
        )

    def forward(self, slots: Sequence[Tensor], tokens: Sequence[Tensor], age: Tensor) -> Tensor:
        """See `Predictor.forward`."""
        if self.training:
            choices = age.clamp(1, len(slots))
            slot_frame, token_frame = self._draw(choices), self._draw(choices)
            past, seen = _pick(slots, slot_frame), _pick(tokens, token_frame)
        else:
            slot_frame = token_frame = torch.zeros_like(age)
            past, seen = slots[0], tokens[0]
        queries = past.detach() + self.age_embedding[slot_frame + 1, None]
        memory = self.to_memory(seen.detach()) + self.age_embedding[token_frame, None]
        return self.block(queries, memory)

    def _draw(self, choices: Tensor) -> Tensor:
        uniform = torch.rand(choices.shape, device=choices.device)
        return (uniform * choices).long().clamp(max=choices - 1)


def _pick(frames: Sequence[Tensor], index: Tensor) -> Tensor:
    """Take frame `index[b]` of sample b, out of equally shaped (B,...)."""
    samples = torch.arange(len(index), device=index.device)
    return torch.stack(list(frames), dim=1)[samples, index]
