"""A graph network over the slots of one frame.

B batch, T frames, K slots, D slot size, A action size, E size of the nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ocrl.interfaces import SlotDynamics, State
from ocrl.nn.action import SlotsAndAction
from ocrl.nn.message_passing import Displacements, MessagePassing
from ocrl.nn.slot_change import SlotChange
from ocrl.types import SlotPrediction


class GraphDynamics(SlotDynamics):
    """C-SWM's transition model (Kipf et al. 2020, arXiv 1911.12247), in a few rounds as ROCA's.

    Slots are nodes of a complete graph and the action is bound to each of them, as in C-SWM's
    copied actions and ROCA (Ugadiarov and Panov 2023, arXiv 2310.17178). It has no memory: what
    one frame does not show, such as a velocity, it can not know.

    Differs from C-SWM: slots are embedded first, so that messages know the action and rounds can
    follow each other; nodes may be normalised before each part; messages may know how far apart
    two slots are, in numbers of the slots or a few learned coordinates, without which who touches
    whom is learned late (ours). It is trained on distances of slots, not by contrast.

    Args:
        slot_dim: D.
        num_actions: of a discrete action space, 0 for none.
        action_dim: A of a continuous action space, 0 for none.
        dim: E.
        hidden_dim: of the messages and the MLPs.
        num_rounds: of messages.
        interacts: whether there are messages; without, each slot is by itself.
        is_residual: whether the change of the slots is predicted, as C-SWM does, or the slots.
        num_coordinates: in which messages know how far apart slots are, see `Displacements`; 0 for
            none, as C-SWM and as graphs were that were saved before there were any.
        places: numbers of a slot that tell where it is, in which messages know that, too; None or
            none where slots do not tell. Agents fill them in, see `ObservedRows.places`.
        normalizes: see `MessagePassing`; the output's norm as well.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        slot_dim: int,
        *,
        num_actions: int,
        action_dim: int,
        dim: int,
        hidden_dim: int,
        num_rounds: int,
        interacts: bool,
        is_residual: bool,
        num_coordinates: int = 0,
        places: Sequence[int] | None = None,
        normalizes: bool = True,
    ) -> None:
        super().__init__()
        if num_rounds < 1:
            raise ValueError(f"expected num_rounds of at least 1, got {num_rounds}")
        if num_coordinates and not interacts:
            raise ValueError(
                "expected num_coordinates 0 with interacts=false, where no slot hears of another, "
                f"got {num_coordinates}"
            )
        self.slot_dim, self.num_actions, self.action_dim = slot_dim, num_actions, action_dim
        self.inputs = SlotsAndAction(
            slot_dim, dim=dim, num_actions=num_actions, action_dim=action_dim, binding="slot"
        )
        self.displacements: Displacements | None = None
        if interacts and (num_coordinates or places):
            self.displacements = Displacements(
                slot_dim, num_learned=num_coordinates, places=places or ()
            )
        pair_dim = 0 if self.displacements is None else self.displacements.out_dim
        self.rounds = nn.ModuleList(
            MessagePassing(
                dim,
                hidden_dim=hidden_dim,
                interacts=interacts,
                pair_dim=pair_dim,
                normalizes=normalizes,
            )
            for _ in range(num_rounds)
        )
        self.output = SlotChange(
            dim, slot_dim=slot_dim, is_residual=is_residual, normalizes=normalizes
        )

    def initial_state(self, batch_size: int) -> State:
        """Nothing: no prediction depends on an earlier frame."""
        return {}

    def advance(
        self, carried: Tensor, action: Tensor | None, state: State, is_first: Tensor
    ) -> tuple[SlotPrediction, State]:
        """See `SlotDynamics.advance`."""
        hidden = self.inputs(carried, action)
        pairs = None if self.displacements is None else self.displacements(carried)
        for layer in self.rounds:
            hidden = layer(hidden, pairs)
        slots = self.output(hidden, carried)
        return SlotPrediction(slots, slots), state
