"""What a dynamics says in the end: the next slots, or how the present ones change.

B batch, T frames, K slots, D slot size, E size of the dynamics.
"""

from __future__ import annotations

from torch import Tensor, nn


class SlotChange(nn.Module):
    """A norm and a linear map to slots, added to the present ones if `is_residual`.

    A residual one starts at zero: an untrained dynamics says that nothing changes.

    Args:
        dim: E.
        slot_dim: D.
        is_residual: whether the map gives the change (OCVP) or the slots (SlotFormer).
        normalizes: whether there is the norm.
    """

    def __init__(
        self, dim: int, *, slot_dim: int, is_residual: bool, normalizes: bool = True
    ) -> None:
        super().__init__()
        self.is_residual = is_residual
        self.norm = nn.LayerNorm(dim) if normalizes else nn.Identity()
        self.to_slots = nn.Linear(dim, slot_dim)
        if is_residual:
            nn.init.zeros_(self.to_slots.weight)
            nn.init.zeros_(self.to_slots.bias)

    def forward(self, hidden: Tensor, slots: Tensor) -> Tensor:
        """The next slots (B,T,K,D) from (B,T,K,E) and the present ones (B,T,K,D)."""
        change = self.to_slots(self.norm(hidden)).to(slots.dtype)
        return slots + change if self.is_residual else change
