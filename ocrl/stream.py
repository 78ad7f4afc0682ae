"""Frames of several environments to slots, one frame of each at a time.

E environments, n of them whose episode ended, V views, K slots, D slot size, G columns of geometry
of all views, N tokens of the grids (h, w) of all views, H W image.
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
from ocrl.nn.rays import check_cameras
from ocrl.types import Camera

_Bound = tuple[Tensor, Tensor]
"""Slots (E,K,D) and attention (E,K,N)."""
_Noise = tuple[Tensor, ...]
"""Noise (E,K,D), or nothing."""
_Seen = tuple[Tensor, ...]
"""Frames (E,[V,]H,W,3) in uint8; with cameras also what these are made of."""


def camera_now(intrinsics: NDArray[Any], extrinsics: NDArray[Any]) -> Camera:
    """The cameras of one moment as the library has them.

    Args:
        intrinsics: (E,V,3,3) in pixels.
        extrinsics: (E,V,4,4), camera to world.

    Returns:
        Matrices (E,T,V,...) in float32, with T = 1.
    """
    matrices = (torch.tensor(matrix[:, None]).float() for matrix in (intrinsics, extrinsics))
    return Camera(*matrices)


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
        frame_shape: ([V,] H, W, 3).
        grid: (h, w) of one view in `attn`, where views follow one another.
    """

    def __init__(
        self,
        encoder: SlotEncoder,
        *,
        num_envs: int,
        num_views: int | None = None,
        decoder: Decoder | None = None,
        has_geometry: bool = False,
        is_noisy: bool = False,
        seed: int = 0,
    ) -> None:
        """Put the encoder (and decoder) into `eval()`; start with `reset`.

        Args:
            encoder: on the device where it is to run; it is not copied.
            num_envs: E.
            num_views: V, for an encoder of posed views; None for frames without a V axis.
            decoder: whose masks `has_geometry` measures, instead of the encoder's attention.
            has_geometry: append where each slot is, the columns of `mask_geometry` for each view.
            is_noisy: start every episode from noise of its own, as in training, where a Gaussian
                initializer has one fixed noise in `eval()`.
            seed: of that noise; environment e has a generator of its own, seeded with seed + e.

        Raises:
            ValueError: if there is no environment, a decoder can not draw from slots alone or is
                given though nobody reads its masks, the encoder starts from no noise, or there are
                several views for an encoder of plain frames.
        """
        if num_envs < 1:
            raise ValueError(f"expected num_envs of at least 1, got {num_envs}")
        if num_views is not None and not encoder.backbone.needs_camera:
            raise ValueError(
                f"expected one view (H,W,3) for an encoder of plain frames, got {num_views}: make "
                "the environment with one camera, such as env.cameras=[[-90,40,7.5]], or take an "
                "encoder of posed views, such as experiment=placed3d trains"
            )
        if decoder is not None and not has_geometry:
            raise ValueError("expected has_geometry with a decoder, whose masks nothing else reads")
        if decoder is not None and decoder.needs_target:
            raise ValueError(
                f"expected a decoder that draws masks from slots alone, got "
                f"{type(decoder).__name__}, which needs the frames, or their rays: leave it out, "
                "and geometry comes from the encoder's attention"
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
        self._num_views = num_views or 1
        self.num_columns = encoder.slot_dim + NUM_GEOMETRY * self._num_views * has_geometry
        views = () if num_views is None else (num_views,)
        self.frame_shape = (*views, *encoder.backbone.image_size, 3)
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
    def reset(
        self, frames: NDArray[np.uint8], *, camera: Camera | None = None
    ) -> NDArray[np.float32]:
        """Start an episode in every environment.

        Args:
            frames: (E,[V,]H,W,3) uint8, the first frames.
            camera: their cameras, with T = 1, for an encoder of posed views.

        Returns:
            (E,K,D[+G]).

        Raises:
            ValueError: if the frames have another shape or type than the encoder's, it needs
                cameras and there are none, or poses that are none, or someone put the encoder into
                training mode.
        """
        seen = self._seen(frames, camera, self.num_envs)
        if camera is not None:
            check_cameras(camera.intrinsics, camera.extrinsics, num_views=self._num_views)
        self._noise = self._draw_noise(np.arange(self.num_envs))
        (slots, self._attn), self._state = self._start(seen, self._noise)
        return self._columns(slots, self._attn)

    @torch.no_grad()
    def step(
        self,
        frames: NDArray[np.uint8],
        *,
        camera: Camera | None = None,
        ended: NDArray[np.bool_] | None = None,
        final_frames: NDArray[np.uint8] | None = None,
        final_camera: Camera | None = None,
        action: NDArray[Any] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Encode the next frame of every environment.

        Args:
            frames: (E,[V,]H,W,3) uint8; where an episode ended, the first frame of the next one.
            camera: of `frames`, see `reset`.
            ended: (E,) bool, where an episode ended, by termination or truncation; nowhere if None.
            final_frames: (n,[V,]H,W,3) uint8, the last frames of those episodes, in the order of
                the environments.
            final_camera: of `final_frames`.
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
        seen = self._seen(frames, camera, self.num_envs)
        if len(rows) == 0:
            (slots, self._attn), self._state = self._follow(seen, action)
            columns = self._columns(slots, self._attn)
            return columns, columns[rows]
        if final_frames is None:
            raise ValueError(f"expected final_frames of the {len(rows)} ended episodes, got none")
        final = self._seen(final_frames, final_camera, len(rows))
        where = torch.from_numpy(rows)
        going_on = tree_map(lambda now, last: now.index_copy(0, where, last), seen, final)
        starting = tree_map(lambda now: now[where], seen)
        return self._step_over_ends(going_on, starting, rows, action)

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
        going_on: _Seen,
        starting: _Seen,
        rows: NDArray[np.int64],
        action: NDArray[Any] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A step in which episodes end: their last frames are in `going_on`, in rows `rows`."""
        where = torch.from_numpy(rows).to(self._anchor.device)
        started = self._draw_noise(rows)
        if self._has_memory:
            going, state = self._follow(going_on, action)
            fresh, fresh_state = self._start(starting, started)
            slots, attn = map(torch.cat, zip(going, fresh, strict=True))
        else:
            noise = tree_map(lambda old, new: torch.cat([old, new]), self._noise, started)
            seen = tree_map(lambda old, new: torch.cat([old, new]), going_on, starting)
            (slots, attn), state = self._start(seen, noise)
            fresh_state = state
        self._state, self._noise, self._attn = tree_map(
            lambda old, new: old.index_copy(0, where, new),
            (state, self._noise, attn[: self.num_envs]),
            (fresh_state, started, attn[self.num_envs :]),
        )
        columns = self._columns(slots, attn)
        final = columns[rows]
        columns[rows] = columns[self.num_envs :]
        return columns[: self.num_envs], final

    def _start(self, seen: _Seen, noise: _Noise) -> tuple[_Bound, State]:
        """Encode frames with nothing before them."""
        state = self._encoder.initial_state(len(seen[0]))
        return self._encode(seen, state, noise, is_first=True)

    def _follow(self, seen: _Seen, action: NDArray[Any] | None) -> tuple[_Bound, State]:
        """Encode the next frames of the episodes that run."""
        taken = None if action is None else torch.as_tensor(action, device=self._anchor.device)
        return self._encode(seen, self._state, self._noise, is_first=False, action=taken)

    def _encode(
        self,
        seen: _Seen,
        state: State,
        noise: _Noise,
        *,
        is_first: bool,
        action: Tensor | None = None,
    ) -> tuple[_Bound, State]:
        device = self._anchor.device
        pixels, *matrices = (part.to(device) for part in seen)
        output, state = self._encoder.step(
            rearrange(pixels, "e ... h w c -> e ... c h w") / 255.0,
            state,
            torch.full((len(pixels),), is_first, device=device),
            action=action,
            condition=noise[0] if noise else None,
            camera=Camera(*matrices) if matrices else None,
        )
        return (output.slots[:, 0], output.attn[:, 0]), state

    def _columns(self, slots: Tensor, attn: Tensor) -> NDArray[np.float32]:
        """What an agent sees, (E,K,D[+G]), of slots (E,K,D) and attention (E,K,N)."""
        columns = slots.float()
        if self._has_geometry:
            height, width = self.grid
            masks = rearrange(
                attn.float(), "e k (v h w) -> e v k h w", v=self._num_views, h=height, w=width
            )
            if self._decoder is not None:
                masks = self._decoder(slots[:, None], attn=attn[:, None]).masks.float()
            geometry = rearrange(mask_geometry(masks), "e v k g -> e k (v g)")
            columns = torch.cat([columns, geometry], dim=-1)
        return columns.cpu().numpy()

    def _draw_noise(self, rows: NDArray[np.int64]) -> _Noise:
        """Noise (n,K,D) for episodes that start in these environments, if there is to be any."""
        if not self._is_noisy:
            return ()
        shape = (self.num_slots, self._encoder.slot_dim)
        drawn = [torch.randn(shape, generator=self._generators[row]) for row in rows]
        return (torch.stack(drawn).to(self._anchor),)

    def _seen(self, frames: NDArray[np.uint8], camera: Camera | None, count: int) -> _Seen:
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
        pixels = torch.from_numpy(frames.copy())
        if camera is None:
            if self._encoder.backbone.needs_camera:
                raise ValueError("expected cameras for an encoder of posed views, got frames alone")
            return (pixels,)
        expected = (count, 1, self._num_views)
        for matrix in (camera.intrinsics, camera.extrinsics):
            if tuple(matrix.shape[:3]) != expected:
                raise ValueError(
                    f"expected cameras of shape {expected}, one for each view of each "
                    f"environment, got {tuple(matrix.shape[:3])}"
                )
        return pixels, camera.intrinsics, camera.extrinsics
