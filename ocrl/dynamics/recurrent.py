"""A recurrence for each slot, and attention between the slots of a frame.

B batch, T frames, K slots, D slot size, A action size, E size of the layers, C size of the
recurrence.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, cast

from torch import Tensor, nn

from ocrl.interfaces import SlotDynamics, State
from ocrl.nn.action import Binding, SlotsAndAction
from ocrl.nn.mlp import MLP
from ocrl.nn.recurrence import SlotGRU
from ocrl.nn.scan import GatedScan
from ocrl.nn.slot_change import SlotChange
from ocrl.nn.slot_transformer import TokenAttention
from ocrl.types import SlotPrediction

Recurrence = Literal["gru", "scan"]


class RecurrentDynamics(SlotDynamics):
    """Memory in each slot and attention between slots, layer by layer, as in SlotSSMs.

    SlotSSM (Jiang et al. 2024, arXiv 2406.12272, section 3) alternates a state-space model per
    slot with self-attention between the slots of a frame. Here the recurrence is a `gru`, which
    reads frame after frame, or a gated linear `scan` (`ocrl.nn.scan.GatedScan`), which reads a
    clip at once; and slots come from an encoder, with actions. A stream costs the same at any
    length. With one slot and a categorical latent it is the recurrent state-space model of
    DreamerV3 (Hafner et al. 2023, arXiv 2301.04104), but for what that feeds back into its GRU.

    Args:
        slot_dim: D.
        num_actions: of a discrete action space, 0 for none.
        action_dim: A of a continuous action space, 0 for none.
        action_binding: the action as one more `token` of its frame, or bound to each `slot`.
        dim: E.
        hidden_dim: C.
        num_layers: how many layers.
        num_heads: of the attention between slots.
        mlp_dim: hidden size of the MLPs.
        recurrence: `gru` or `scan`.
        interacts: whether there is attention between slots.
        is_residual: whether the change of the slots is predicted, or the slots.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        slot_dim: int,
        *,
        num_actions: int,
        action_dim: int,
        action_binding: Binding,
        dim: int,
        hidden_dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        recurrence: Recurrence,
        interacts: bool,
        is_residual: bool,
    ) -> None:
        super().__init__()
        if not interacts and action_binding == "token":
            raise ValueError(
                "expected action_binding 'slot' with interacts false, where no slot reads a token "
                "of the action, got 'token'"
            )
        self.slot_dim, self.num_actions, self.action_dim = slot_dim, num_actions, action_dim
        self.inputs = SlotsAndAction(
            slot_dim,
            dim=dim,
            num_actions=num_actions,
            action_dim=action_dim,
            binding=action_binding,
        )
        self.layers = nn.ModuleList(
            _Layer(
                dim,
                hidden_dim=hidden_dim,
                num_heads=num_heads,
                mlp_dim=mlp_dim,
                recurrence=recurrence,
                interacts=interacts,
            )
            for _ in range(num_layers)
        )
        self.output = SlotChange(dim, slot_dim=slot_dim, is_residual=is_residual)

    def initial_state(self, batch_size: int) -> State:
        """What each layer remembers (B,1,C), the same for every slot."""
        weight = self.output.to_slots.weight
        return {
            f"layer{index}": weight.new_zeros(batch_size, 1, layer.hidden_dim)
            for index, layer in enumerate(self._layers())
        }

    def advance(
        self, carried: Tensor, action: Tensor | None, state: State, is_first: Tensor
    ) -> tuple[SlotPrediction, State]:
        """See `SlotDynamics.advance`."""
        hidden, after = self.inputs(carried, action), {}
        for index, layer in enumerate(self._layers()):
            hidden, after[f"layer{index}"] = layer(hidden, state[f"layer{index}"], ~is_first)
        slots = self.output(hidden[:, :, : carried.shape[2]], carried)
        return SlotPrediction(slots, slots), after

    def _layers(self) -> Iterable[_Layer]:
        return cast("Iterable[_Layer]", self.layers)


class _Layer(nn.Module):
    """Recurrence, attention between the tokens of a frame and an MLP, each residual."""

    def __init__(
        self,
        dim: int,
        *,
        hidden_dim: int,
        num_heads: int,
        mlp_dim: int,
        recurrence: Recurrence,
        interacts: bool,
    ) -> None:
        super().__init__()
        if recurrence not in ("gru", "scan"):
            raise ValueError(f"expected recurrence 'gru' or 'scan', got {recurrence!r}")
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim, got {num_heads} heads and dim {dim}")
        self.hidden_dim = hidden_dim
        self.norm_time = nn.LayerNorm(dim)
        self.recurrence: SlotGRU | GatedScan
        if recurrence == "gru":
            self.recurrence = SlotGRU(dim, hidden_dim=hidden_dim)
        else:
            self.recurrence = GatedScan(dim, hidden_dim=hidden_dim)
        self.attention: TokenAttention | None = None
        if interacts:
            self.norm_slots = nn.LayerNorm(dim)
            self.attention = TokenAttention(dim, num_heads=num_heads)
        self.mlp = MLP(dim, hidden_dims=[mlp_dim], out_dim=dim, activation="gelu", norm_first=True)

    def forward(self, tokens: Tensor, state: Tensor, goes_on: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the tokens (B,T,K,E) of frames after a state (B,K,C)."""
        update, state = self.recurrence.advance(self.norm_time(tokens), state, goes_on)
        tokens = tokens + update
        if self.attention is not None:
            frames = self.norm_slots(tokens).flatten(0, 1)
            tokens = tokens + self.attention(frames, is_causal=False).view(tokens.shape)
        return tokens + self.mlp(tokens), state
