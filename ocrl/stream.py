"""Frames of several environments to slots, one frame of each at a time.

E environments, n of them whose episode ended, K slots, D slot size, G columns of geometry, N tokens
of the grid (h, w), H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ocrl.initializers import GaussianInitializer
from ocrl.interfaces import Decoder, SlotEncoder, State
from ocrl.nn.location import NUM_GEOMETRY, mask_geometry
from ocrl.types import SlotOutput

_Noise = tuple[Tensor, ...]
"""Noise (E,K,D), or nothing."""


class SlotStream:
    """A slot encoder in `eval()`, with a state for each of several environments.

    What it gives for an episode is what the encoder gives for that episode alone and offline: the
    last frame of an episode is encoded with the state of the episode, the first frame of the next
    one from a fresh start, and no environment touches another. A step is one batched call of the
    encoder, and one more of the episodes that start where the encoder has a memory.

    Attributes:
        num_envs: E.
        num_slots: K.
        num_columns: D, with geometry D + G.
        frame_shape: (H, W, 3).
        grid: (h, w) of `attn`.
    """

    def __init__(
        self,
        encoder: SlotEncoder,
        *,
        num_envs: int,
        decoder: Decoder | None = None,
        has_geometry: bool = False,
        is_noisy: bool = False,
        seed: int = 0,
    ) -> None:
        """Put the encoder (and decoder) into `eval()`; start with `reset`.

        Args:
            encoder: on the device where it is to run; it is not copied.
            num_envs: E.
            decoder: whose masks `has_geometry` measures, instead of the encoder's attention.
            has_geometry: append where each slot is, the columns of `mask_geometry`.
            is_noisy: start every episode from noise of its own, as in training, where a Gaussian
                initializer has one fixed noise in `eval()`.
            seed: of that noise; environment e has a generator of its own, seeded with seed + e.

        Raises:
            ValueError: if there is no environment, a decoder can not draw from slots alone or is
                given though nobody reads its masks, or the encoder starts from no noise.
        """
        if num_envs < 1:
            raise ValueError(f"expected num_envs of at least 1, got {num_envs}")
        if decoder is not None and not has_geometry:
            raise ValueError("expected has_geometry with a decoder, whose masks nothing else reads")
        if decoder is not None and decoder.needs_target:
            raise ValueError(
                f"expected a decoder that draws masks from slots alone, got "
                f"{type(decoder).__name__}, which needs the frames: leave it out, and geometry "
                "comes from the encoder's attention"
            )
        is_gaussian = any(isinstance(part, GaussianInitializer) for part in encoder.modules())
        if is_noisy and not is_gaussian:
            raise ValueError(
                f"is_noisy: expected an encoder with a GaussianInitializer, got "
                f"{type(encoder).__name__} without one"
            )
        self._encoder, self._decoder = encoder.eval(), None if decoder is None else decoder.eval()
        self._anchor = next(encoder.parameters())
        self._has_geometry, self._is_noisy = has_geometry, is_noisy
        self._has_memory = bool(tree_leaves(encoder.initial_state(1)))
        self._generators = [torch.Generator() for _ in range(num_envs)]
        self._state: State = None
        self._noise: _Noise = ()
        self._attn: Tensor | None = None
        self.num_envs, self.num_slots = num_envs, encoder.num_slots
        self.num_columns = encoder.slot_dim + NUM_GEOMETRY * has_geometry
        self.frame_shape = (*encoder.backbone.image_size, 3)
        self.grid = encoder.backbone.grid
        self.seed(seed)

    @property
    def attn(self) -> NDArray[np.float32]:
        """Attention (E,K,N) of the frames that `reset` or `step` encoded last, for drawing.

        Where an episode has just ended it is that of the new episode's first frame.

        Raises:
            ValueError: before the first `reset`.
        """
        if self._attn is None:
            raise ValueError("expected a call of reset(): nothing is encoded yet")
        return self._attn.float().cpu().numpy()

    def seed(self, seed: int | Sequence[int | None]) -> None:
        """Seed the noise of environment e with seed + e, or each with its own (None keeps it)."""
        seeds = [seed + e for e in range(self.num_envs)] if isinstance(seed, int) else seed
        for generator, number in zip(self._generators, seeds, strict=True):
            if number is not None:
                generator.manual_seed(number)

    @torch.no_grad()
    def reset(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Start an episode in every environment.

        Args:
            frames: (E,H,W,3) uint8, the first frames.

        Returns:
            (E,K,D[+G]).

        Raises:
            ValueError: if the frames have another shape or type than the encoder's, or someone put
                the encoder into training mode.
        """
        self._check(frames, self.num_envs)
        self._noise = self._draw_noise(np.arange(self.num_envs))
        output, self._state = self._start(frames, self._noise)
        self._attn = output.attn[:, 0]
        return self._columns(output)

    @torch.no_grad()
    def step(
        self,
        frames: NDArray[np.uint8],
        *,
        ended: NDArray[np.bool_] | None = None,
        final_frames: NDArray[np.uint8] | None = None,
        action: NDArray[Any] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Encode the next frame of every environment.

        Args:
            frames: (E,H,W,3) uint8; where an episode ended, the first frame of the next one.
            ended: (E,) bool, where an episode ended, by termination or truncation; nowhere if None.
            final_frames: (n,H,W,3) uint8, the last frames of those episodes, in the order of the
                environments.
            action: (E,) or (E,A), what led to the frames (the final ones, where an episode ended).

        Returns:
            Slots (E,K,D[+G]) of `frames`, and (n,K,D[+G]) of `final_frames`.

        Raises:
            ValueError: as `reset`, or if there is not one final frame for each episode that ended,
                or nothing was reset.
        """
        if self._attn is None:
            raise ValueError("expected a call of reset() before the first step()")
        rows = np.flatnonzero(ended) if ended is not None else np.empty(0, np.int64)
        self._check(frames, self.num_envs)
        if len(rows) == 0:
            output, self._state = self._follow(frames, action)
            self._attn = output.attn[:, 0]
            return self._columns(output), np.empty(
                (0, self.num_slots, self.num_columns), np.float32
            )
        if final_frames is None:
            raise ValueError(f"expected final_frames of the {len(rows)} ended episodes, got none")
        self._check(final_frames, len(rows))
        going_on = frames.copy()
        going_on[rows] = final_frames
        return self._step_over_ends(going_on, frames[rows], rows, action)

    def get_state(self) -> dict[str, Any]:
        """Everything that later steps depend on, for `set_state`; it does not change any more."""
        return {
            "state": self._state,
            "noise": self._noise,
            "attn": self._attn,
            "generators": [generator.get_state() for generator in self._generators],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_state` gave.

        Raises:
            ValueError: if it is of another number of environments.
        """
        if len(state["generators"]) != self.num_envs:
            raise ValueError(
                f"expected the state of {self.num_envs} environments, "
                f"got one of {len(state['generators'])}"
            )
        self._state, self._noise, self._attn = state["state"], state["noise"], state["attn"]
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            generator.set_state(saved)

    def _step_over_ends(
        self,
        going_on: NDArray[np.uint8],
        starting: NDArray[np.uint8],
        rows: NDArray[np.int64],
        action: NDArray[Any] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A step in which episodes end: their last frames are in `going_on`, in rows `rows`."""
        where = torch.from_numpy(rows).to(self._anchor.device)
        started = self._draw_noise(rows)
        if self._has_memory:
            output, state = self._follow(going_on, action)
            fresh, fresh_state = self._start(starting, started)
        else:
            frames = np.concatenate([going_on, starting])
            noise = tree_map(lambda old, new: torch.cat([old, new]), self._noise, started)
            both, state = self._start(frames, noise)
            output = both.map(lambda value: value[: self.num_envs])
            fresh, fresh_state = both.map(lambda value: value[self.num_envs :]), state
        self._state, self._noise, self._attn = tree_map(
            lambda old, new: old.index_copy(0, where, new),
            (state, self._noise, output.attn[:, 0]),
            (fresh_state, started, fresh.attn[:, 0]),
        )
        slots = self._columns(output)
        final_slots = slots[rows]
        slots[rows] = self._columns(fresh)
        return slots, final_slots

    def _start(self, frames: NDArray[np.uint8], noise: _Noise) -> tuple[SlotOutput, State]:
        """Encode frames with nothing before them."""
        state = self._encoder.initial_state(len(frames))
        is_first = torch.ones(len(frames), dtype=torch.bool, device=self._anchor.device)
        condition = noise[0] if noise else None
        return self._encoder.step(self._video(frames), state, is_first, condition=condition)

    def _follow(
        self, frames: NDArray[np.uint8], action: NDArray[Any] | None
    ) -> tuple[SlotOutput, State]:
        """Encode the next frames of the episodes that run."""
        is_first = torch.zeros(len(frames), dtype=torch.bool, device=self._anchor.device)
        taken = None if action is None else torch.as_tensor(action, device=self._anchor.device)
        condition = self._noise[0] if self._noise else None
        return self._encoder.step(
            self._video(frames), self._state, is_first, action=taken, condition=condition
        )

    def _video(self, frames: NDArray[np.uint8]) -> Tensor:
        """Frames (...,H,W,3) uint8 as (...,3,H,W) float in [0,1] on the encoder's device."""
        pixels = torch.from_numpy(frames.copy()).to(self._anchor.device)
        return rearrange(pixels, "e h w c -> e c h w").float().div_(255.0)

    def _columns(self, output: SlotOutput) -> NDArray[np.float32]:
        """What an agent sees of encoded frames: (E,K,D[+G])."""
        slots = output.slots[:, 0].float()
        if self._has_geometry:
            slots = torch.cat([slots, mask_geometry(self._masks(output))], dim=-1)
        return slots.cpu().numpy()

    def _masks(self, output: SlotOutput) -> Tensor:
        """Masks (E,K,h,w)."""
        if self._decoder is not None:
            return self._decoder(output.slots, attn=output.attn).masks[:, 0].float()
        return output.attn[:, 0].float().unflatten(-1, self.grid)

    def _draw_noise(self, rows: NDArray[np.int64]) -> _Noise:
        """Noise (n,K,D) for episodes that start in these environments, if there is to be any."""
        if not self._is_noisy:
            return ()
        shape = (self.num_slots, self._encoder.slot_dim)
        drawn = [torch.randn(shape, generator=self._generators[row]) for row in rows]
        return (torch.stack(drawn).to(self._anchor),)

    def _check(self, frames: NDArray[np.uint8], count: int) -> None:
        if self._encoder.training:
            raise ValueError(
                "expected an encoder in eval mode, got one in training mode: call encoder.eval() "
                "after training it, before the next step of the environments"
            )
        if frames.dtype != np.uint8 or frames.shape != (count, *self.frame_shape):
            raise ValueError(
                f"expected frames of shape {(count, *self.frame_shape)} in uint8, "
                f"got {frames.shape} in {frames.dtype}"
            )
