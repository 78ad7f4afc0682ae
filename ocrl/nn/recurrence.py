"""A gated recurrent unit for each slot.

B batch, T frames, K slots, D slot size, C size of the recurrence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SlotGRU(nn.Module):
    """The same GRU for every slot over its own past (Cho et al. 2014, arXiv 1406.1078).

    `nn.GRUCell` with the maps of the inputs of all frames as one product, and a linear map of
    what it remembers; float32 whatever the autocast.

    Args:
        dim: D.
        hidden_dim: C.
    """

    def __init__(self, dim: int, *, hidden_dim: int) -> None:
        super().__init__()
        self.from_input = nn.Linear(dim, 3 * hidden_dim)
        self.from_state = nn.Linear(hidden_dim, 3 * hidden_dim)
        self.to_out = nn.Linear(hidden_dim, dim)
        for layer in (self.from_input, self.from_state):
            nn.init.uniform_(layer.weight, -(hidden_dim**-0.5), hidden_dim**-0.5)

    def advance(self, slots: Tensor, state: Tensor, goes_on: Tensor) -> tuple[Tensor, Tensor]:
        """Read several frames after a state.

        Args:
            slots: (B,T,K,D), normalised.
            state: (B,K,C), or (B,1,C) for every slot.
            goes_on: (B,T), false on the first frame of an episode.

        Returns:
            Updates (B,T,K,D), and the next state (B,K,C).
        """
        with torch.autocast(slots.device.type, enabled=False):
            inputs = self.from_input(slots.to(state.dtype))
            hidden = state.expand(-1, slots.shape[2], -1)
            kept = []
            for read, old in zip(inputs.unbind(1), goes_on.unbind(1), strict=True):
                hidden = self._remember(read, hidden * old[:, None, None])
                kept.append(hidden)
            return self.to_out(torch.stack(kept, dim=1)), hidden

    def _remember(self, read: Tensor, hidden: Tensor) -> Tensor:
        """The next state from the mapped inputs (B,K,3C): reset, update and new, as torch's."""
        size = hidden.shape[-1]
        mapped = self.from_state(hidden)
        gates = torch.sigmoid(read[..., : 2 * size] + mapped[..., : 2 * size])
        reset, update = gates.chunk(2, dim=-1)
        new = torch.tanh(torch.addcmul(read[..., 2 * size :], reset, mapped[..., 2 * size :]))
        return torch.lerp(new, hidden, update)
