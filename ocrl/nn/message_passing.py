"""Message passing over the complete graph of the slots of a frame.

... leading axes, K slots, D slot size, C coordinates, E size of the nodes, M size of the messages,
P size of what is known of a pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ocrl.nn.mlp import MLP
from ocrl.nn.octaves import OctaveEncoding

_NUM_OCTAVES = 4
_FIRST_OCTAVE = -1
"""Of displacements: from half a turn for two units on, as slots are some units apart."""


class Displacements(nn.Module):
    """How far apart slots are in C coordinates, as sines and cosines over octaves.

    Whether slots touch hangs on a difference within a range much narrower than they lie apart.
    Networks find functions that steep late; of sines and cosines of the difference this one is
    nearly linear (Tancik et al. 2020, arXiv 2006.10739, for coordinates of a picture). What
    trembles in a slot is made much of, too: learned coordinates are for slots that are exact. Ours.

    Args:
        slot_dim: D.
        num_learned: coordinates that are linear maps of a slot.
        places: numbers of a slot that are coordinates as they are: where it is, if slots tell.

    Raises:
        ValueError: if there are no coordinates, or no such numbers.
    """

    def __init__(self, slot_dim: int, *, num_learned: int, places: Sequence[int] = ()) -> None:
        super().__init__()
        num_coordinates = num_learned + len(places)
        if num_learned < 0 or not num_coordinates:
            raise ValueError(
                f"expected num_learned from 1 on, or places, got {num_learned} and {list(places)}"
            )
        if not all(0 <= place < slot_dim for place in places):
            raise ValueError(
                f"expected places among the numbers 0 to {slot_dim - 1} of a slot, got "
                f"{list(places)}"
            )
        self.places = list(places)
        self.to_coordinates: nn.Linear | None = None
        if num_learned:
            self.to_coordinates = nn.Linear(slot_dim, num_learned, bias=False)
        self.encoding = OctaveEncoding(_NUM_OCTAVES, first_octave=_FIRST_OCTAVE)
        self.out_dim = num_coordinates * self.encoding.dim_of_number

    def forward(self, slots: Tensor) -> Tensor:
        """Of slots (...,K,D) every pair (...,K,K,P) with P = `out_dim`, the receiver first."""
        places = slots[..., self.places]
        if self.to_coordinates is not None:
            places = torch.cat([self.to_coordinates(slots), places], dim=-1)
        apart = rearrange(places, "... k c -> ... k 1 c") - rearrange(
            places, "... k c -> ... 1 k c"
        )
        return self.encoding(apart).to(slots.dtype)


class MessagePassing(nn.Module):
    """One round: every slot sums what the others tell it, and changes.

    The graph network of C-SWM (Kipf et al. 2020, arXiv 1911.12247, equations 5 and 6): an MLP of
    three layers for each ordered pair of slots, whose outputs are summed over the senders, and an
    MLP for each slot. A pair costs its middle layer only: the first is a sum of a map of the
    receiver and one of the sender, and the last, being linear, is applied to the sum.

    Differs from C-SWM: rounds can be stacked, so a slot's change is added to it; what is known of
    a pair besides its slots goes into its network too; and nodes are normalised as well as pairs,
    or neither are.

    Args:
        dim: E.
        hidden_dim: M.
        interacts: whether slots send messages.
        pair_dim: P of what is known of a pair besides its slots, 0 for nothing.
        normalizes: whether nodes and pairs are normalised. A small network learns a rule of few
            slots sooner without.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden_dim: int,
        interacts: bool,
        pair_dim: int = 0,
        normalizes: bool = True,
    ) -> None:
        super().__init__()
        self.interacts = interacts
        if interacts:
            self.from_receiver = nn.Linear(dim, hidden_dim)
            self.from_sender = nn.Linear(dim, hidden_dim, bias=False)
            self.from_pair = nn.Linear(pair_dim, hidden_dim, bias=False) if pair_dim else None
            self.to_pair = nn.Linear(hidden_dim, hidden_dim)
            self.norm_pair = nn.LayerNorm(hidden_dim) if normalizes else nn.Identity()
            self.to_message = nn.Linear(hidden_dim, hidden_dim, bias=False)
        in_dim = dim + hidden_dim if interacts else dim
        self.norm = nn.LayerNorm(dim) if normalizes else nn.Identity()
        self.mlp = MLP(in_dim, hidden_dims=[hidden_dim, hidden_dim], out_dim=dim)

    def forward(self, nodes: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Change (...,K,E), with (...,K,K,P) of pairs where P is not 0."""
        inputs = normal = self.norm(nodes)
        if self.interacts:
            inputs = torch.cat([normal, self._messages(normal, pairs)], dim=-1)
        return nodes + self.mlp(inputs)

    def _messages(self, nodes: Tensor, pairs: Tensor | None) -> Tensor:
        """What each slot (...,K,E) is told by all others, (...,K,M)."""
        receiver = rearrange(self.from_receiver(nodes), "... k m -> ... k 1 m")
        sender = rearrange(self.from_sender(nodes), "... k m -> ... 1 k m")
        hidden = receiver + sender
        if self.from_pair is not None:
            hidden = hidden + self.from_pair(pairs)
        told = functional.relu(self.norm_pair(self.to_pair(functional.relu(hidden))))
        to_itself = told.diagonal(dim1=-3, dim2=-2).movedim(-1, -2)
        return self.to_message(told.sum(-2) - to_itself)
