"""A transformer over the slots of past frames.

B batch, T frames, K slots, D slot size, A action size, E size of the transformer.
"""

from __future__ import annotations

from torch import Tensor

from ocrl.interfaces import SlotDynamics, State
from ocrl.nn.action import Binding, SlotsAndAction
from ocrl.nn.history import History, Interaction
from ocrl.nn.slot_change import SlotChange
from ocrl.types import SlotPrediction


class TransformerDynamics(SlotDynamics):
    """SlotFormer and OCVP-Seq, causal, so that frames are read once.

    `joint` is the attention over all slots of all frames in a window of SlotFormer (Wu et al. 2023,
    arXiv 2210.05861, section 3.2); `object_then_time` is the sequence of attention within a
    frame and over each slot's own past of OCVP-Seq (Villar-Corrales et al. 2023, arXiv
    2302.11850), with an action as SOLD has it (Mosbach et al. 2025, arXiv 2410.08822); `none` is
    the second without its first half: slots that do not interact.

    Differs from all three: a frame sees those before it only, where they let the frames of a
    window see each other and use what is said of the last. So every frame of a clip is predicted
    in one pass, and a stream keeps keys and values instead of reading its window again at every
    step; a window is what a layer sees, and layers on top see further. Positions are rotations by
    the age of a frame, where theirs are sines added to the tokens; there is no dropout.

    Args:
        slot_dim: D.
        num_actions: of a discrete action space, 0 for none.
        action_dim: A of a continuous action space, 0 for none.
        action_binding: the action as one more `token` of its frame, or bound to each `slot`.
        dim: E.
        num_layers: of the transformer.
        num_heads: of each attention.
        mlp_dim: hidden size of the MLPs.
        window: frames that a layer sees, the present one included.
        interaction: `joint`, `object_then_time` or `none`.
        is_residual: whether the change of the slots is predicted (OCVP) or the slots (SlotFormer).

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
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        window: int,
        interaction: Interaction,
        is_residual: bool,
    ) -> None:
        super().__init__()
        if interaction == "none" and action_binding == "token":
            raise ValueError(
                "expected action_binding 'slot' with interaction 'none', where no slot reads a "
                "token of the action, got 'token'"
            )
        self.slot_dim, self.num_actions, self.action_dim = slot_dim, num_actions, action_dim
        self.inputs = SlotsAndAction(
            slot_dim,
            dim=dim,
            num_actions=num_actions,
            action_dim=action_dim,
            binding=action_binding,
        )
        self.history = History(
            dim,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            window=window,
            interaction=interaction,
        )
        self.output = SlotChange(dim, slot_dim=slot_dim, is_residual=is_residual)

    def initial_state(self, batch_size: int) -> State:
        """Keys and values of no frame, see `History.initial_state`."""
        return self.history.initial_state(batch_size)

    def advance(
        self, carried: Tensor, action: Tensor | None, state: State, is_first: Tensor
    ) -> tuple[SlotPrediction, State]:
        """See `SlotDynamics.advance`."""
        tokens = self.inputs(carried, action)
        hidden, state = self.history(tokens, state, is_first)
        slots = self.output(hidden[:, :, : carried.shape[2]], carried)
        return SlotPrediction(slots, slots), state
