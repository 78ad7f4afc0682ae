"""The state of an encoder with a memory, beside the frame that is encoded from it.

B batch, E environments, S numbers that hold a state, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from einops import rearrange
from gymnasium.spaces import Box, Dict, Space
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ocrl.agents import spaces
from ocrl.agents.interface import Observation
from ocrl.interfaces import SlotEncoder, State

STATE = "encoder_state"
"""Name of the part of an observation that holds a state (S,)."""
_MAX_SIZE = 2**16
"""Numbers of a state: 256 KiB for every step that an algorithm remembers."""
_PROBED = 3
"""Samples of the states that are looked at."""
_KEPT = (torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.int32, torch.int64)
"""Types whose values float32 keeps; whole numbers up to 2**24, more frames than an episode has."""


class EncoderState:
    """What an encoder remembers before a frame, as one vector beside the frame.

    A policy whose gradient trains such an encoder binds every frame again, when it acts and when
    it learns. So it is given the state that the frame is bound from, as the encoder left it one
    frame before in the same episode; the gradient ends there. The vector also says whether the
    frame is the first one of its episode, which is bound from nothing. Encoders are told no
    actions, here and there.

    Attributes:
        encoder: in `eval()`, where the same state and frame give the same slots.
        part: of an observation, a `Box` (S,).
        start: (S,) float32, beside the first frame of an episode.
    """

    def __init__(self, encoder: SlotEncoder, *, plain_key: str) -> None:
        """Look at an encoder, which is put into `eval()` and not copied.

        Args:
            encoder: with a memory, see `find_state`.
            plain_key: name of the only part of an observation that is no `Dict`.

        Raises:
            ValueError: if its state is no tree of tensors (B,...) whose shapes stay the same, or is
                too large to be remembered with every step.
        """
        self.encoder, self._plain_key = encoder.eval(), plain_key
        seen = _probe(encoder)
        (tree, kinds), *others = [_describe(state) for state in seen]
        if None in kinds or any(other != (tree, kinds) for other in others):
            raise ValueError(
                "expected an encoder for encoder.mode=gradient whose state is tensors (B,...) of "
                f"the same shapes before and after every frame, got {type(encoder).__name__}; use "
                "encoder.mode=replay or frozen"
            )
        self._tree, self._kinds = tree, [kind for kind in kinds if kind is not None]
        self._sizes = [math.prod(shape) for shape, _ in self._kinds]
        size = 1 + sum(self._sizes)
        if size > _MAX_SIZE:
            raise ValueError(
                f"expected an encoder for encoder.mode=gradient whose state is at most {_MAX_SIZE} "
                f"numbers, which are kept with every step, got {type(encoder).__name__} with "
                f"{size}; use one with a shorter window, or encoder.mode=replay or frozen"
            )
        self.part = Box(-np.inf, np.inf, (size,), np.float32)
        is_first = torch.ones(_PROBED, dtype=torch.bool, device=self._device)
        self.start: NDArray[np.float32] = self._pack(seen[0], is_first)[0].cpu().numpy()

    @property
    def _device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def space(self, space: Space[Any]) -> Dict:
        """The space of an observation with the state beside its parts.

        Raises:
            ValueError: if not exactly one part is a frame.
        """
        parts = spaces.parts(space, plain_key=self._plain_key)
        frames = [name for name, part in parts.items() if spaces.kind(name, part) == spaces.FRAME]
        if len(frames) != 1:
            raise ValueError(
                f"expected one frame for an encoder with a memory, got {frames} of {list(parts)}"
            )
        return Dict({**parts, STATE: self.part})

    def beside(self, observation: Observation, states: NDArray[np.float32]) -> dict[str, Any]:
        """An observation, of one environment or of several, with its states ([E,]S)."""
        return {**self._named(observation), STATE: states}

    @torch.no_grad()
    def after(self, observation: Observation, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the encoder, as it is now, remembers after the frames that it sees.

        Args:
            observation: of E environments; its frame is (E,H,W,3) uint8.
            states: (E,S) before these frames.

        Returns:
            (E,S), before the next frames of the same episodes.
        """
        (frame,) = (value for value in self._named(observation).values() if value.ndim == 4)
        pixels = torch.from_numpy(frame.copy()).to(self._device)
        state, is_first = self.unpack(torch.from_numpy(states).to(self._device))
        pixels = rearrange(pixels, "e h w c -> e c h w") / 255.0
        _, state = self.encoder.step(pixels, state, is_first)
        return self._pack(state, torch.zeros_like(is_first)).cpu().numpy()

    def unpack(self, states: Tensor) -> tuple[State, Tensor]:
        """The encoder's own state, and which samples (B,) start afresh, of vectors (B,S)."""
        is_first, *flat = states.split([1, *self._sizes], dim=1)
        leaves = [
            leaf.reshape(len(states), *shape).to(dtype)
            for leaf, (shape, dtype) in zip(flat, self._kinds, strict=True)
        ]
        return tree_unflatten(leaves, self._tree), is_first[:, 0] > 0.5

    def _pack(self, state: State, is_first: Tensor) -> Tensor:
        leaves = zip(tree_leaves(state), self._sizes, strict=True)
        flat = [leaf.reshape(len(is_first), size).float() for leaf, size in leaves]
        return torch.cat([is_first[:, None].float(), *flat], dim=1)

    def _named(self, observation: Observation) -> Mapping[str, NDArray[Any]]:
        is_plain = isinstance(observation, np.ndarray)
        return {self._plain_key: observation} if is_plain else observation


def find_state(encoder: SlotEncoder, *, plain_key: str) -> EncoderState | None:
    """How an encoder's state stands beside a frame; None for one without a memory.

    Raises:
        ValueError: as `EncoderState`.
    """
    if not tree_leaves(encoder.initial_state(1)):
        return None
    return EncoderState(encoder, plain_key=plain_key)


@torch.no_grad()
def _probe(encoder: SlotEncoder) -> list[State]:
    """The states before a frame, after it and after another one."""
    states = [encoder.initial_state(_PROBED)]
    anchor = next(encoder.parameters())
    frame = anchor.new_zeros(_PROBED, 3, *encoder.backbone.image_size)
    for is_first in (True, False):
        first = torch.full((_PROBED,), is_first, device=anchor.device)
        states.append(encoder.step(frame, states[-1], first)[1])
    return states


def _describe(state: State) -> tuple[Any, list[tuple[torch.Size, torch.dtype] | None]]:
    """The tree of a state, and shape and type of each leaf; None for one that no vector holds."""
    leaves, tree = tree_flatten(state)
    are_kept = [
        isinstance(leaf, Tensor) and leaf.shape[:1] == (_PROBED,) and leaf.dtype in _KEPT
        for leaf in leaves
    ]
    pairs = zip(leaves, are_kept, strict=True)
    return tree, [(leaf.shape[1:], leaf.dtype) if is_kept else None for leaf, is_kept in pairs]
