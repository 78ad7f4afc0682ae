"""A slot dynamics that imagines in discrete latents.

B batch, T frames, K slots, D slot size, A action size, G code groups, C codes of the largest
group, L size of a latent.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ocrl.interfaces import CodeReader, SlotCodes, SlotDynamics, SlotEncoder, State
from ocrl.nn.latent import FactorCodeLatent, SlotLatent
from ocrl.types import SlotPrediction

_NUM_TRIED = 256


class LatentDynamics(SlotDynamics, CodeReader):
    """Any slot dynamics around a latent: slots are said in it, foretold in it, and made of it.

    What is imagined goes on from the latent that was foretold, drawn in training and the likeliest
    in `eval()`, not from slots encoded again; from outside it takes and gives slots as any other.
    Without this class slots are continuous and deterministic.

    Args:
        dynamics: reads and writes what the latent is for it.
        latent: slots to classes, and back.

    Raises:
        ValueError: if the dynamics is of another size than the latent.
    """

    def __init__(self, dynamics: SlotDynamics, *, latent: SlotLatent) -> None:
        super().__init__()
        if dynamics.slot_dim != latent.dim:
            raise ValueError(
                f"expected a dynamics of slot_dim {latent.dim}, the size of its latent, got "
                f"{dynamics.slot_dim}"
            )
        self.slot_dim = latent.slot_dim
        self.num_actions, self.action_dim = dynamics.num_actions, dynamics.action_dim
        self.dynamics = dynamics
        self.latent = latent

    def initial_state(self, batch_size: int) -> State:
        """That of the dynamics inside."""
        return self.dynamics.initial_state(batch_size)

    def carry(self, slots: Tensor) -> Tensor:
        """The latents (B,T,K,L) of slots (B,T,K,D)."""
        return self.latent.encode(slots)

    def advance(
        self, carried: Tensor, action: Tensor | None, state: State, is_first: Tensor
    ) -> tuple[SlotPrediction, State]:
        """See `SlotDynamics.advance`."""
        inputs = self.latent.embed(carried)
        said, state = self.dynamics.advance(inputs, action, state, is_first)
        latents, logits = self.latent.predict(said.slots)
        return SlotPrediction(self.latent.decode(latents), latents, logits), state

    def costs(self, prediction: SlotPrediction, target: Tensor) -> Mapping[str, Tensor]:
        """See `SlotDynamics.costs`: those of the latent."""
        assert prediction.logits is not None
        return self.latent.costs(prediction.logits, target)

    @torch.no_grad()
    def take_codes(self, encoder: SlotEncoder) -> None:
        """See `CodeReader.take_codes`; a latent that is no encoder's codes stays as it is."""
        latent = self.latent
        if not isinstance(latent, FactorCodeLatent):
            return
        if not isinstance(encoder, SlotCodes):
            raise ValueError(
                "expected an encoder whose slots are codes (encoder=svq, or vq_sa without "
                f"continuous coordinates), got {type(encoder).__name__}"
            )
        if tuple(encoder.code_sizes) != latent.code_sizes:
            raise ValueError(
                f"expected an encoder with codes of sizes {list(latent.code_sizes)}, got "
                f"{list(encoder.code_sizes)}"
            )
        num_groups, largest = latent.is_code.shape
        codes = torch.zeros(num_groups, largest, 1, num_groups, dtype=torch.int64)
        for group, size in enumerate(latent.code_sizes):
            codes[group, :size, 0, group] = torch.arange(size)
        codes = codes.to(latent.base.device)
        slots = _slots_of(encoder, codes)[:, :, 0]
        base = slots[0, 0]
        latent.set_codes(slots - base, base)
        sizes = torch.tensor(latent.code_sizes)
        generator = torch.Generator().manual_seed(0)
        tried = (torch.rand(_NUM_TRIED, 1, num_groups, generator=generator) * sizes).long()
        tried = tried.to(latent.base.device)
        found = latent.codes_of(_slots_of(encoder, tried))
        if not torch.equal(found, tried):
            share = float((found == tried).all(-1).double().mean())
            raise ValueError(
                "expected an encoder whose slots tell their codes, so that a dynamics can read "
                f"them; only {share:.0%} of random codes can be read back: use fewer or smaller "
                "groups of codes, or larger slots"
            )


def _slots_of(encoder: SlotCodes, codes: Tensor) -> Tensor:
    try:
        return encoder.slots_of(codes)
    except ValueError as error:
        raise ValueError(f"expected an encoder whose slots are codes alone: {error}") from error
