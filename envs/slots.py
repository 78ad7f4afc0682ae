"""Slots as the observation of a vector environment.

E environments, n of them whose episode ended, K slots, D slot size, G columns of geometry,
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

from ocrl.envs.vector import ObjectVectorWrapper
from ocrl.interfaces import Decoder, SlotEncoder
from ocrl.stream import SlotStream

FRAME, SLOTS = "frame", "slots"
"""Keys of the frame and of the slots, where an observation has several parts."""


class SlotObservations:
    """Observations with frames to observations with slots, for vector environments of any library.

    Attributes:
        space: of the new observation in one environment: a `Box` (K,D[+G]); or a flat `Dict` of it
            as `slots`, beside it the frame if `has_frame`, and the vectors that stood beside the
            frame.
        stream: the encoder's state for every environment; `stream.attn` is for drawing.
        frames: (E,H,W,3) uint8, that the last observation was made of.
    """

    frames: NDArray[np.uint8]

    def __init__(
        self,
        space: gymnasium.Space[Any],
        encoder: SlotEncoder,
        *,
        num_envs: int,
        decoder: Decoder | None,
        has_geometry: bool,
        has_frame: bool,
        is_noisy: bool,
        seed: int,
    ) -> None:
        """Map a space; the encoder is put into `eval()`.

        Args:
            space: of the observation in one environment: frames (H,W,3) in uint8, or a flat `Dict`
                with them as `frame` and vectors (W,).
            encoder: see `SlotStream`.
            num_envs: E.
            decoder: see `SlotStream`.
            has_geometry: see `SlotStream`.
            has_frame: keep the frame beside the slots.
            is_noisy: see `SlotStream`.
            seed: see `SlotStream`.

        Raises:
            ValueError: if the space is not as above, the frames have another size than the
                encoder's, or as `SlotStream`.
        """
        self._is_dict = isinstance(space, Dict)
        parts = dict(space.spaces) if isinstance(space, Dict) else {FRAME: space}
        frame_space = _frame_space(parts, space)
        self.stream = SlotStream(
            encoder,
            num_envs=num_envs,
            decoder=decoder,
            has_geometry=has_geometry,
            is_noisy=is_noisy,
            seed=seed,
        )
        if frame_space.shape != self.stream.frame_shape:
            raise ValueError(
                f"expected frames of shape {self.stream.frame_shape}, which the encoder was "
                f"trained on, got an environment with {frame_space.shape}: make it with another "
                "size, or take another encoder"
            )
        shape = (self.stream.num_slots, self.stream.num_columns)
        beside = {key: part for key, part in parts.items() if key != FRAME or has_frame}
        kept = {SLOTS: Box(-np.inf, np.inf, shape, np.float32), **beside}
        self._keys = tuple(kept)
        self.space = Dict(kept) if beside else kept[SLOTS]

    def reset(self, observation: Any) -> Any:
        """The observation of the first frames of all environments."""
        parts = self._parts(observation)
        self.frames = parts[FRAME]
        return self._compose(parts, self.stream.reset(self.frames))

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
        self.frames = parts[FRAME]
        last = [self._parts(entry) for entry in final]
        final_frames = np.stack([entry[FRAME] for entry in last]) if last else None
        slots, final_slots = self.stream.step(
            self.frames, ended=ended, final_frames=final_frames, action=action
        )
        pairs = zip(last, final_slots, strict=True)
        return self._compose(parts, slots), [self._compose(*pair) for pair in pairs]

    def _parts(self, observation: Any) -> dict[str, Any]:
        return observation if self._is_dict else {FRAME: observation}

    def _compose(self, parts: dict[str, Any], slots: NDArray[np.float32]) -> Any:
        if not isinstance(self.space, Dict):
            return slots
        return {key: slots if key == SLOTS else parts[key] for key in self._keys}


def _frame_space(parts: dict[str, gymnasium.Space[Any]], space: gymnasium.Space[Any]) -> Box:
    """The space of the frame among the parts of an observation.

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
    if len(frame.shape) == 4:
        raise ValueError(
            f"expected one view (H,W,3), got {frame.shape[0]} of shape {frame.shape[1:]}: slots of "
            "several views are no observation yet, make the environment with one camera"
        )
    if len(frame.shape) != 3 or frame.shape[-1] != 3:
        raise ValueError(f"expected frames (H,W,3), colours last, got shape {frame.shape}")
    for key, part in parts.items():
        if key != FRAME and not (isinstance(part, Box) and len(part.shape or ()) in (1, 2)):
            raise ValueError(
                f"expected only vectors (W,) or sets (M,F) beside {FRAME!r}, got {part} as {key!r}"
            )
    return frame


class SlotVectorEnv(ObjectVectorWrapper):
    """A vector environment of frames as one of slots; encoding a step is one batched call.

    Episodes end as below: `observation[e]` is of the first frame of the next episode, and
    `info["final_obs"][e]`, in the form of an observation, has the slots of the last frame of the
    one that ended, encoded with its state. Masks, tables and methods are reached as before.

    Attributes:
        slots: what makes observations; `slots.stream.attn` is for drawing on `slots.frames`.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        encoder: SlotEncoder,
        *,
        decoder: Decoder | None = None,
        has_geometry: bool = False,
        has_frame: bool = False,
        is_noisy: bool = False,
        seed: int = 0,
    ) -> None:
        """Wrap an environment whose autoreset mode is `SAME_STEP`.

        Args:
            env: such as one of `make_vec`.
            encoder: see `SlotObservations`, as for all further arguments.
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
