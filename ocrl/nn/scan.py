"""Gated linear recurrences: a parallel form over time and a step.

B batch, T frames, K slots, D slot size, C channels of the recurrence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ocrl.nn.time_mixer import TimeMixer

_DECAY_SHARPNESS = 8.0
"""The constant c of the real-gated linear recurrent unit."""
_MIN_DECAY, _MAX_DECAY = 0.5, 0.99
"""Range of decays per frame at the start: memories of 1 to 100 frames."""


def linear_scan(decay: Tensor, inputs: Tensor) -> Tensor:
    """Solve h_t = decay_t * h_{t-1} + inputs_t from h = 0, for all t at once.

    Doubling (Hillis and Steele 1986): log2(T) passes. The backward pass is one more scan, in
    reverse, so only `decay` and the result are kept.

    Args:
        decay: (B,T,...).
        inputs: (B,T,...).

    Returns:
        (B,T,...).

    Raises:
        ValueError: if the shapes differ.
    """
    if decay.shape != inputs.shape:
        raise ValueError(
            f"expected decay and inputs of one shape, got {tuple(decay.shape)} and "
            f"{tuple(inputs.shape)}"
        )
    result: Tensor = _LinearScan.apply(decay, inputs)
    return result


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, inputs: Tensor) -> Tensor:
        hidden = _doubling(decay, inputs)
        ctx.save_for_backward(decay, hidden)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        decay, hidden = ctx.saved_tensors
        following = torch.cat([decay[:, 1:], torch.zeros_like(decay[:, :1])], dim=1)
        grad_inputs = _doubling(following.flip(1), grad.flip(1)).flip(1)
        before = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1)
        return grad_inputs * before, grad_inputs


def _doubling(decay: Tensor, inputs: Tensor) -> Tensor:
    reach = 1
    while reach < inputs.shape[1]:
        carried = decay[:, reach:] * inputs[:, :-reach]
        inputs = torch.cat([inputs[:, :reach], inputs[:, reach:] + carried], dim=1)
        decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], dim=1)
        reach *= 2
    return inputs


class GatedScan(TimeMixer):
    """A gated linear recurrence per slot, in the place of SlotSSM's Mamba.

    SlotSSM (Jiang et al. 2024, arXiv 2406.12272) runs a selective state-space model per slot,
    whose kernels need CUDA. This is the recurrence of Griffin (De et al. 2024, arXiv 2402.19427,
    equations 1 to 4) instead: diagonal, real, with a gate on the decay and one on the input,
    multiplied by a GELU branch. Differs from both: no convolution over time before it.

    Args:
        dim: D.
        hidden_dim: C.
    """

    mixes_slots = False

    def __init__(self, dim: int, *, hidden_dim: int) -> None:
        super().__init__()
        self.to_in = nn.Linear(dim, hidden_dim)
        self.to_gate = nn.Linear(dim, hidden_dim)
        self.to_decay = nn.Linear(hidden_dim, hidden_dim)
        self.to_write = nn.Linear(hidden_dim, hidden_dim)
        self.to_out = nn.Linear(hidden_dim, dim)
        self.log_rate = nn.Parameter(torch.empty(hidden_dim))
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float) -> None:
        """Draw new weights, see `TimeMixer`."""
        for layer in (self.to_in, self.to_gate, self.to_decay, self.to_write, self.to_out):
            nn.init.xavier_uniform_(layer.weight, gain=gain if layer is self.to_out else 1.0)
            nn.init.zeros_(layer.bias)
        # softplus(log_rate) = -log(decay) / c for decays spread evenly over the range.
        decay = torch.linspace(_MIN_DECAY, _MAX_DECAY, len(self.log_rate))
        with torch.no_grad():
            self.log_rate.copy_(torch.expm1(-decay.log() / _DECAY_SHARPNESS).log())

    def initial_state(self, batch_size: int, *, num_slots: int) -> Any:
        """The hidden state (B,K,C)."""
        return self.log_rate.new_zeros(batch_size, num_slots, len(self.log_rate))

    def forward(self, slots: Tensor, segments: Tensor) -> Tensor:
        """Mix in parallel, see `TimeMixer`."""
        decay, write = self._gates(slots)
        goes_on = segments[:, 1:] == segments[:, :-1]
        goes_on = functional.pad(goes_on, (1, 0))
        hidden = linear_scan(decay * goes_on[:, :, None, None], write)
        return self._output(slots, hidden)

    def step(self, slots: Tensor, state: Any, age: Tensor) -> tuple[Tensor, Any]:
        """Mix one frame, see `TimeMixer`."""
        decay, write = self._gates(slots)
        hidden = decay * (age > 0)[:, None, None] * state + write
        return self._output(slots, hidden), hidden

    def advance(self, slots: Tensor, state: Tensor, goes_on: Tensor) -> tuple[Tensor, Tensor]:
        """Mix several frames into a state, all at once.

        Args:
            slots: (B,T,K,D), normalised.
            state: (B,K,C), or (B,1,C) for every slot.
            goes_on: (B,T), false on the first frame of an episode.

        Returns:
            Updates (B,T,K,D), and the next state (B,K,C).
        """
        decay, write = self._gates(slots)
        decay = decay * goes_on[:, :, None, None]
        brought = decay[:, :1] * state[:, None]
        write = write + functional.pad(brought, (0, 0, 0, 0, 0, slots.shape[1] - 1))
        hidden = linear_scan(decay, write)
        return self._output(slots, hidden), hidden[:, -1]

    def _gates(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Decay in (0,1) and what is written, in float32 at least."""
        inputs = self.to_in(slots)
        wide = torch.promote_types(inputs.dtype, torch.float32)
        rate = _DECAY_SHARPNESS * functional.softplus(self.log_rate.to(wide))
        log_decay = -rate * self.to_decay(inputs).to(wide).sigmoid()
        # The floor keeps the slope of the root finite where the gate is shut.
        room = (-torch.expm1(2 * log_decay)).clamp_min(1e-6).sqrt()
        return log_decay.exp(), room * self.to_write(inputs).to(wide).sigmoid() * inputs.to(wide)

    def _output(self, slots: Tensor, hidden: Tensor) -> Tensor:
        update: Tensor = self.to_out(functional.gelu(self.to_gate(slots)) * hidden)
        return update
