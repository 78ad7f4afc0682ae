"""Slots as the observation of a vector environment.

E environments, n of them whose episode ended, V views, K slots, D slot size, G columns of geometry,
W numbers of a vector, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ocrl.envs.interface import EXTRINSICS, INTRINSICS
from ocrl.envs.vector import ObjectVectorWrapper
from ocrl.interfaces import Decoder, SlotEncoder
from ocrl.stream import SlotStream, camera_now
from ocrl.types import Camera

FRAME, SLOTS = "frame", "slots"
"""Keys of the frame and of the slots, where an observation has several parts."""
_OF_FRAME = (FRAME, INTRINSICS, EXTRINSICS)
"""Keys of what slots are made of."""


class SlotObservations:
    """Observations with frames to observations with slots, for vector environments of any library.

    An encoder of posed views is given the views of all cameras, and the cameras beside them, which
    may move.

    Attributes:
        space: of the new observation in one environment: a `Box` (K,D[+G]); or a flat `Dict` of it
            as `slots`, beside it the frame and its cameras if `has_frame`, and the vectors that
            stood beside the frame.
        stream: the encoder's state for every environment; `stream.attn` is for drawing.
        frames: (E,[V,]H,W,3) uint8, that the last observation was made of.
    """

    frames: NDArray[np.uint8]

    def __init__(
        self,
        space: gymnasium.Space[Any],
        encoder: SlotEncoder,
        *,
        num_envs: int,
        num_views: int | None,
        decoder: Decoder | None,
        has_geometry: bool,
        has_frame: bool,
        is_noisy: bool,
        seed: int,
    ) -> None:
        """Map a space; the encoder is put into `eval()`.

        Args:
            space: of the observation in one environment: frames (H,W,3) in uint8, or a flat `Dict`
                with them as `frame` and vectors (W,). For an encoder of posed views a `Dict` with
                frames ([V,]H,W,3), and their cameras as `intrinsics` (V,3,3) and `extrinsics`
                (V,4,4).
            encoder: see `SlotStream`.
            num_envs: E.
            num_views: how many of the cameras the encoder sees, the first ones; None for all.
            decoder: see `SlotStream`.
            has_geometry: see `SlotStream`.
            has_frame: keep the frame, and its cameras, beside the slots.
            is_noisy: see `SlotStream`.
            seed: see `SlotStream`.

        Raises:
            ValueError: if the space is not as above, the frames have another size than the
                encoder's, there are fewer cameras than `num_views`, or as `SlotStream`.
        """
        self._is_dict = isinstance(space, Dict)
        parts = dict(space.spaces) if isinstance(space, Dict) else {FRAME: space}
        frame_shape = _frame_shape(parts, space)
        self._has_camera = encoder.backbone.needs_camera
        if self._has_camera:
            _check_cameras(parts, num_views=frame_shape[:-3] or (1,))
        self._views = _seen_views(frame_shape, num_views)
        self.stream = SlotStream(
            encoder,
            num_envs=num_envs,
            num_views=None if len(frame_shape) == 3 else self._views.stop,
            decoder=decoder,
            has_geometry=has_geometry,
            is_noisy=is_noisy,
            seed=seed,
        )
        if frame_shape[-3:] != self.stream.frame_shape[-3:]:
            raise ValueError(
                f"expected frames of shape {self.stream.frame_shape[-3:]}, which the encoder was "
                f"trained on, got an environment with {frame_shape[-3:]}: make it with another "
                "size, or take another encoder"
            )
        shape = (self.stream.num_slots, self.stream.num_columns)
        beside = {key: part for key, part in parts.items() if key not in _OF_FRAME or has_frame}
        kept = {SLOTS: Box(-np.inf, np.inf, shape, np.float32), **beside}
        self._keys = tuple(kept)
        self.space = Dict(kept) if beside else kept[SLOTS]

    def reset(self, observation: Any) -> Any:
        """The observation of the first frames of all environments."""
        parts = self._parts(observation)
        self.frames, camera = self._seen(parts)
        return self._compose(parts, self.stream.reset(self.frames, camera=camera))

    def step(
        self,
        observation: Any,
        *,
        ended: NDArray[np.bool_],
        final: Sequence[Any],
        action: NDArray[Any] | None,
    ) -> tuple[Any, list[Any]]:
        """The observation after a step.

        Args:
            observation: of all environments; where an episode ended, of the next one's first frame.
            ended: (E,) bool.
            final: the last observations of the n episodes that ended, in the order of environments.
            action: (E,) or (E,A), what was done.

        Returns:
            The observation, and n last observations in the same form.
        """
        parts = self._parts(observation)
        self.frames, camera = self._seen(parts)
        last = [self._parts(entry) for entry in final]
        final_frames, final_camera = self._seen(_stacked(last)) if last else (None, None)
        slots, final_slots = self.stream.step(
            self.frames,
            camera=camera,
            ended=ended,
            final_frames=final_frames,
            final_camera=final_camera,
            action=action,
        )
        pairs = zip(last, final_slots, strict=True)
        return self._compose(parts, slots), [self._compose(*pair) for pair in pairs]

    def _parts(self, observation: Any) -> dict[str, Any]:
        return observation if self._is_dict else {FRAME: observation}

    def _seen(self, parts: dict[str, Any]) -> tuple[NDArray[np.uint8], Camera | None]:
        """The frames that the encoder sees, and their cameras if it reads them."""
        frames = parts[FRAME]
        if not self._has_camera:
            return frames, None
        camera = camera_now(parts[INTRINSICS][:, self._views], parts[EXTRINSICS][:, self._views])
        return (frames if frames.ndim == 4 else frames[:, self._views]), camera

    def _compose(self, parts: dict[str, Any], slots: NDArray[np.float32]) -> Any:
        if not isinstance(self.space, Dict):
            return slots
        return {key: slots if key == SLOTS else parts[key] for key in self._keys}


def _stacked(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """What slots are made of in n observations, as one of n environments."""
    keys = [key for key in _OF_FRAME if key in entries[0]]
    return {key: np.stack([entry[key] for entry in entries]) for key in keys}


def _frame_shape(
    parts: dict[str, gymnasium.Space[Any]], space: gymnasium.Space[Any]
) -> tuple[int, ...]:
    """The shape ([V,]H,W,3) of the frame among the parts of an observation.

    Raises:
        ValueError: if there is no single frame, or a part that no agent can read.
    """
    frame = parts.get(FRAME)
    if SLOTS in parts or not isinstance(frame, Box) or frame.dtype != np.uint8:
        raise ValueError(
            f"expected an observation of frames (H,W,3) in uint8, or a Dict with them as "
            f"{FRAME!r}, got {space}: map it to that first, as gymnasium.wrappers.vector."
            "TransformObservation can"
        )
    if len(frame.shape) not in (3, 4) or frame.shape[-1] != 3:
        raise ValueError(f"expected frames ([V,]H,W,3), colours last, got shape {frame.shape}")
    for key, part in parts.items():
        if key not in _OF_FRAME and not (isinstance(part, Box) and len(part.shape or ()) in (1, 2)):
            raise ValueError(
                f"expected only vectors (W,) or sets (M,F) beside {FRAME!r}, got {part} as {key!r}"
            )
    return frame.shape


def _check_cameras(parts: dict[str, gymnasium.Space[Any]], *, num_views: tuple[int, ...]) -> None:
    for key, matrix in ((INTRINSICS, (3, 3)), (EXTRINSICS, (4, 4))):
        found = parts[key].shape if key in parts else None
        if found != (*num_views, *matrix):
            raise ValueError(
                f"expected the cameras of the frames as {key!r} {(*num_views, *matrix)}, which an "
                f"encoder of posed views reads, got {'none' if found is None else found}: make the "
                f"environment with observe={list(_OF_FRAME)}"
            )


def _seen_views(frame_shape: tuple[int, ...], num_views: int | None) -> slice:
    """The views that the encoder sees."""
    has = frame_shape[0] if len(frame_shape) == 4 else 1
    if num_views is not None and not 1 <= num_views <= has:
        raise ValueError(
            f"expected an environment of at least {num_views} cameras, as many as the encoder saw "
            f"in training, got {has}: give it more, or take another encoder"
        )
    return slice(has if num_views is None else num_views)


class SlotVectorEnv(ObjectVectorWrapper):
    """A vector environment of frames as one of slots; encoding a step is one batched call.

    Episodes end as below: `observation[e]` is of the first frame of the next episode, and
    `info["final_obs"][e]`, in the form of an observation, has the slots of the last frame of the
    one that ended, encoded with its state and seen by its cameras. Masks, tables and methods are
    reached as before.

    Attributes:
        slots: what makes observations; `slots.stream.attn` is for drawing on `slots.frames`.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        encoder: SlotEncoder,
        *,
        num_views: int | None = None,
        decoder: Decoder | None = None,
        has_geometry: bool = False,
        has_frame: bool = False,
        is_noisy: bool = False,
        seed: int = 0,
    ) -> None:
        """Wrap an environment whose autoreset mode is `SAME_STEP`.

        Args:
            env: such as one of `make_vec`; for an encoder of posed views made with
                `observe=["frame", "intrinsics", "extrinsics"]`.
            encoder: see `SlotObservations`, as for all further arguments.
            num_views: see there.
            decoder: see there.
            has_geometry: see there.
            has_frame: see there.
            is_noisy: see there.
            seed: see there; `reset(seed=s)` seeds with s instead.

        Raises:
            ValueError: if the environment resets itself in another way, or as `SlotObservations`.
        """
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"expected an environment with autoreset_mode {AutoresetMode.SAME_STEP}, got "
                f"{mode}: the last frame of an episode has to come with the step that ends it"
            )
        self.slots = SlotObservations(
            env.single_observation_space,
            encoder,
            num_envs=env.num_envs,
            num_views=num_views,
            decoder=decoder,
            has_geometry=has_geometry,
            has_frame=has_frame,
            is_noisy=is_noisy,
            seed=seed,
        )
        self.single_observation_space = self.slots.space
        self.observation_space = batch_space(self.slots.space, env.num_envs)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every environment.

        Raises:
            ValueError: if only some are to be reset: the others would start afresh as well.
        """
        if options is not None and "reset_mask" in options:
            raise ValueError("expected a reset of all environments, got a reset_mask")
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self.slots.stream.seed(seed)
        return self.slots.reset(observation), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See Gymnasium."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        ended = terminated | truncated
        rows = np.flatnonzero(ended)
        final = [info["final_obs"][row] for row in rows]
        observation, final = self.slots.step(
            observation, ended=ended, final=final, action=_array(actions)
        )
        if len(rows):
            info["final_obs"] = np.full(self.num_envs, None, dtype=object)
            for row, entry in zip(rows, final, strict=True):
                info["final_obs"][row] = entry
        return observation, reward, terminated, truncated, info


def _array(actions: Any) -> NDArray[Any] | None:
    """Actions (E,) or (E,A) that an encoder can read; None for actions of several parts."""
    is_array = isinstance(actions, np.ndarray) and actions.dtype != object
    return actions if is_array and actions.ndim in (1, 2) else None
