"""Actions as vectors, and how they meet the slots.

B batch, T frames, K slots, D slot size, A action size, E size of the vectors.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Binding = Literal["token", "slot"]


class ActionEmbedding(nn.Module):
    """Discrete or continuous actions to vectors.

    Args:
        dim: E.
        num_actions: of a discrete space; 0 if it is none.
        action_dim: A of a continuous space; 0 if it is none.

    Raises:
        ValueError: if both or neither are given.
    """

    def __init__(self, dim: int, *, num_actions: int, action_dim: int) -> None:
        super().__init__()
        if bool(num_actions) == bool(action_dim):
            raise ValueError(
                "expected num_actions of a discrete or action_dim of a continuous action space, "
                f"got {num_actions} and {action_dim}"
            )
        self.num_actions, self.action_dim = num_actions, action_dim
        self.embed: nn.Embedding | nn.Linear
        if num_actions:
            self.embed = nn.Embedding(num_actions, dim)
            nn.init.normal_(self.embed.weight, std=dim**-0.5)
        else:
            self.embed = nn.Linear(action_dim, dim)

    def forward(self, action: Tensor) -> Tensor:
        """Embed (B,T) int64 or (B,T,A) as (B,T,E)."""
        return self.embed(action)


def check_action(action: Tensor | None, *, num_actions: int, action_dim: int) -> None:
    """Refuse actions of another space.

    Args:
        action: (B,T) integers or (B,T,A) floats; None if there are none.
        num_actions: of a discrete space; 0 if it is none.
        action_dim: A of a continuous space; 0 if it is none.

    Raises:
        ValueError: if the action does not fit. Integers that are too large are noticed on the
            CPU only: a look at another device would wait for it.
    """
    expected = "no actions"
    if num_actions:
        expected = f"discrete actions (B,T) below {num_actions}"
    elif action_dim:
        expected = f"continuous actions (B,T,{action_dim})"
    if action is None:
        if num_actions or action_dim:
            raise ValueError(f"the dynamics expected {expected}, got none")
        return
    got = f"{action.dtype} of shape {tuple(action.shape)}".removeprefix("torch.")
    if num_actions:
        fits = action.ndim == 2 and not action.is_floating_point()
        if fits and action.device.type == "cpu" and action.numel():
            largest = int(action.max())
            fits = int(action.min()) >= 0 and largest < num_actions
            got = f"actions up to {largest}"
    else:
        fits = action.ndim == 3 and action.shape[-1] == action_dim and action.is_floating_point()
    if not fits:
        raise ValueError(f"the dynamics expected {expected}, got {got}")


class SlotsAndAction(nn.Module):
    """Slots and the action of each frame to the tokens that a dynamics mixes.

    With `token` the action is one more token of its frame, as in SOLD (Mosbach et al. 2025, arXiv
    2410.08822) and C-JEPA; with `slot` it is bound to each slot: the sum of two linear maps, which
    is one of the slot and the action put together.

    Args:
        slot_dim: D.
        dim: E.
        num_actions: of a discrete space; 0 if it is none.
        action_dim: A of a continuous space; 0 if it is none. Without actions both are 0.
        binding: `token` or `slot`.

    Raises:
        ValueError: if `binding` is unknown, or both kinds of actions are given.
    """

    def __init__(
        self, slot_dim: int, *, dim: int, num_actions: int, action_dim: int, binding: Binding
    ) -> None:
        super().__init__()
        if binding not in ("token", "slot"):
            raise ValueError(f"expected action_binding 'token' or 'slot', got {binding!r}")
        self.num_actions, self.action_dim, self.binding = num_actions, action_dim, binding
        self.embed_slots = nn.Linear(slot_dim, dim)
        self.embed_action: ActionEmbedding | None = None
        if num_actions or action_dim:
            self.embed_action = ActionEmbedding(dim, num_actions=num_actions, action_dim=action_dim)

    def forward(self, slots: Tensor, action: Tensor | None) -> Tensor:
        """Tokens (B,T,K,E), or (B,T,K+1,E) with the action last.

        Args:
            slots: (B,T,K,D).
            action: (B,T) or (B,T,A), None without actions.

        Raises:
            ValueError: if the action is of another space.
        """
        check_action(action, num_actions=self.num_actions, action_dim=self.action_dim)
        tokens = self.embed_slots(slots)
        if self.embed_action is None:
            return tokens
        token = self.embed_action(action)[:, :, None].to(tokens.dtype)
        return torch.cat([tokens, token], dim=2) if self.binding == "token" else tokens + token
