"""Message passing over the complete graph of the slots of a frame.

... leading axes, K slots, E size of the nodes, M size of the messages.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ocrl.nn.mlp import MLP


class MessagePassing(nn.Module):
    """One round: every slot sums what the others tell it, and changes.

    The graph network of C-SWM (Kipf et al. 2020, arXiv 1911.12247, equations 5 and 6): an MLP of
    three layers for each ordered pair of slots, whose outputs are summed over the senders, and an
    MLP for each slot. A pair costs its middle layer only: the first is a sum of a map of the
    receiver and one of the sender, and the last, being linear, is applied to the sum.

    Differs from C-SWM: rounds can be stacked, so a slot's change is added to it.

    Args:
        dim: E.
        hidden_dim: M.
        interacts: whether slots send messages.
    """

    def __init__(self, dim: int, *, hidden_dim: int, interacts: bool) -> None:
        super().__init__()
        self.interacts = interacts
        if interacts:
            self.from_receiver = nn.Linear(dim, hidden_dim)
            self.from_sender = nn.Linear(dim, hidden_dim, bias=False)
            self.to_pair = nn.Linear(hidden_dim, hidden_dim)
            self.norm_pair = nn.LayerNorm(hidden_dim)
            self.to_message = nn.Linear(hidden_dim, hidden_dim, bias=False)
        in_dim = dim + hidden_dim if interacts else dim
        self.norm = nn.LayerNorm(dim)
        self.mlp = MLP(in_dim, hidden_dims=[hidden_dim, hidden_dim], out_dim=dim)

    def forward(self, nodes: Tensor) -> Tensor:
        """Change (...,K,E)."""
        inputs = normal = self.norm(nodes)
        if self.interacts:
            inputs = torch.cat([normal, self._messages(normal)], dim=-1)
        return nodes + self.mlp(inputs)

    def _messages(self, nodes: Tensor) -> Tensor:
        """What each slot (...,K,E) is told by all others, (...,K,M)."""
        receiver = rearrange(self.from_receiver(nodes), "... k m -> ... k 1 m")
        sender = rearrange(self.from_sender(nodes), "... k m -> ... 1 k m")
        pairs = self.to_pair(functional.relu(receiver + sender))
        pairs = functional.relu(self.norm_pair(pairs))
        to_itself = pairs.diagonal(dim1=-3, dim2=-2).movedim(-1, -2)
        return self.to_message(pairs.sum(-2) - to_itself)
