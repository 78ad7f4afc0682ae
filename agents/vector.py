"""Vector environments as Stable-Baselines3 knows them.

E environments, K slots, D slot size, G columns of geometry.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from ocrl.agents.encoder_state import EncoderState
from ocrl.envs.slots import SlotObservations
from ocrl.interfaces import Decoder, SlotEncoder


class StableBaselinesVecEnv(VecEnv):
    """A Gymnasium vector environment whose autoreset mode is `SAME_STEP`, as a `VecEnv`.

    `infos[e]` is the info of environment e alone, with `TimeLimit.truncated`. In the step that ends
    an episode it is that of the last frame, and has `terminal_observation` and `episode`: return
    `r`, length `l` and seconds `t` since this object was made, as `Monitor` counts them. The info
    of the reset that follows is in `reset_infos[e]`. What the environment raises passes through.
    """

    def __init__(self, vector_env: VectorEnv[Any, Any, Any]) -> None:
        """Adapt an environment.

        Raises:
            ValueError: if it resets itself in another way.
        """
        mode = vector_env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"expected an environment with autoreset_mode {AutoresetMode.SAME_STEP}, got "
                f"{mode}: the last frame of an episode has to come with the step that ends it"
            )
        self.vector_env = vector_env
        self._start_time = time.perf_counter()
        super().__init__(
            vector_env.num_envs,
            vector_env.single_observation_space,
            vector_env.single_action_space,
        )
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._actions: Any = None

    def reset(self) -> Any:
        """Start an episode in every environment, with the seeds of `seed` if it was called."""
        is_seeded = any(seed is not None for seed in self._seeds)
        observation, info = self.vector_env.reset(
            seed=list(self._seeds) if is_seeded else None,  # type: ignore[arg-type]
            options=self._common_options(),
        )
        self.reset_infos = split_info(info, self.num_envs)
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self._reset_seeds()
        self._reset_options()
        return observation

    def _common_options(self) -> dict[str, Any] | None:
        first = self._options[0]
        if any(options != first for options in self._options):
            raise ValueError(
                "expected the same options for all environments, as a Gymnasium vector environment "
                f"takes them, got {self._options}"
            )
        return first or None

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep actions (E,[A]) for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Play the actions in all environments."""
        observation, reward, terminated, truncated, info = self.vector_env.step(self._actions)
        ended = terminated | truncated
        self._returns += reward
        self._lengths += 1
        infos = split_info(info, self.num_envs)
        for row in np.flatnonzero(ended):
            started = infos[row]
            infos[row] = {
                **started.pop("final_info", {}),
                "terminal_observation": started.pop("final_obs"),
                "episode": self._finish(int(row)),
            }
            self.reset_infos[row] = started
        for info, is_truncated in zip(infos, truncated & ~terminated, strict=True):
            info["TimeLimit.truncated"] = bool(is_truncated)
        return observation, reward.astype(np.float32), ended, infos

    def _finish(self, row: int) -> dict[str, Any]:
        """The statistics of the episode that ended in an environment; the next one's start at 0."""
        seconds = time.perf_counter() - self._start_time
        episode = {
            "r": round(float(self._returns[row]), 6),
            "l": int(self._lengths[row]),
            "t": round(seconds, 6),
        }
        self._returns[row], self._lengths[row] = 0.0, 0
        return episode

    def close(self) -> None:
        """Close the environments."""
        self.vector_env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of some environments."""
        values = self.vector_env.get_attr(attr_name)  # type: ignore[attr-defined]
        return [values[index] for index in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of all environments.

        Raises:
            ValueError: if only some are named.
        """
        self._check_all(indices)
        self.vector_env.set_attr(attr_name, [value] * self.num_envs)  # type: ignore[attr-defined]

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Call a method of all environments.

        Raises:
            ValueError: if only some are named.
        """
        self._check_all(indices)
        return list(self.vector_env.call(method_name, *method_args, **method_kwargs))  # type: ignore[attr-defined]

    def _check_all(self, indices: VecEnvIndices) -> None:
        chosen = list(self._get_indices(indices))
        if sorted(chosen) != list(range(self.num_envs)):
            raise ValueError(
                f"expected all {self.num_envs} environments, which a Gymnasium vector environment "
                f"calls at once, got {chosen}"
            )

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """True for `Monitor`, whose statistics there are; other wrappers can not be seen here."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """The current frames."""
        return list(self.vector_env.call("render"))  # type: ignore[attr-defined]


def split_info(info: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """The infos of a Gymnasium vector environment, one per environment.

    Args:
        info: arrays over environments (or dicts of such), and under `_<key>` where they hold.
        num_envs: E.
    """
    infos: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, value in info.items():
        is_there = info.get(f"_{key}")
        if is_there is None:
            continue
        values = split_info(value, num_envs) if isinstance(value, dict) else value
        for row in np.flatnonzero(is_there):
            entry = values[row]
            infos[row][key] = entry.item() if isinstance(entry, np.generic) else entry
    return infos


class SlotVecEnv(VecEnvWrapper):
    """Stable-Baselines3's own environments of frames as ones of slots.

    What `ocrl.envs.slots.SlotVectorEnv` is for Gymnasium's, `terminal_observation` included. Frames
    are (E,[V,]H,W,3), colours last: put it before `VecTransposeImage`.

    Attributes:
        slots: what makes observations; `slots.stream.attn` is for drawing on `slots.frames`.
    """

    def __init__(
        self,
        venv: VecEnv,
        encoder: SlotEncoder,
        *,
        num_views: int | None = None,
        decoder: Decoder | None = None,
        has_geometry: bool = False,
        has_frame: bool = False,
        is_noisy: bool = False,
        seed: int = 0,
    ) -> None:
        """Wrap environments.

        Args:
            venv: observes frames, or a flat `Dict` with them as `frame`, and with their cameras for
                an encoder of posed views.
            encoder: see `SlotObservations`, as for all further arguments.
            num_views: see there.
            decoder: see there.
            has_geometry: see there.
            has_frame: see there.
            is_noisy: see there.
            seed: see there; a call of `seed(s)` seeds with s instead.

        Raises:
            ValueError: as `SlotObservations`.
        """
        self.slots = SlotObservations(
            venv.observation_space,
            encoder,
            num_envs=venv.num_envs,
            num_views=num_views,
            decoder=decoder,
            has_geometry=has_geometry,
            has_frame=has_frame,
            is_noisy=is_noisy,
            seed=seed,
        )
        super().__init__(venv, observation_space=self.slots.space)
        self._taken: Any = None

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the environments and the noise of slots."""
        seeds = self.venv.seed(seed)
        self.slots.stream.seed(seeds)
        return seeds

    def reset(self) -> Any:
        """Start an episode in every environment."""
        return self.slots.reset(self.venv.reset())

    def step_async(self, actions: NDArray[Any]) -> None:
        """See `VecEnv`."""
        self._taken = actions
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """See `VecEnv`."""
        observation, reward, ended, infos = self.venv.step_wait()
        rows = np.flatnonzero(ended)
        observation, final = self.slots.step(
            observation,
            ended=ended,
            final=[infos[row]["terminal_observation"] for row in rows],
            action=self._taken,
        )
        for row, entry in zip(rows, final, strict=True):
            infos[row]["terminal_observation"] = entry
        return observation, reward, ended, infos


class StateVecEnv(VecEnvWrapper):
    """Environments of frames whose observation also has the state that a frame is encoded from.

    The next state is made of the very observation that was given, when the next step is taken: by
    the weights that the policy chose with. `terminal_observation` has the state before the last
    frame of the episode, and the first frame of the next one has that of a start.

    Attributes:
        states: with the encoder that makes them; put that of the policy here before a reset.
    """

    def __init__(self, venv: VecEnv, states: EncoderState) -> None:
        """Wrap environments.

        Raises:
            ValueError: if their observation has not exactly one frame.
        """
        super().__init__(venv, observation_space=states.space(venv.observation_space))
        self.states = states
        self._observation: Any = None
        self._before: NDArray[np.float32] = np.empty(0, np.float32)

    def reset(self) -> dict[str, Any]:
        """Start an episode in every environment."""
        self._observation = self.venv.reset()
        self._before = np.tile(self.states.start, (self.num_envs, 1))
        return self.states.beside(self._observation, self._before)

    def step_async(self, actions: NDArray[Any]) -> None:
        """See `VecEnv`; the frames that were acted on are encoded before they are gone."""
        self._before = self.states.after(self._observation, self._before)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """See `VecEnv`."""
        self._observation, reward, ended, infos = self.venv.step_wait()
        for row in np.flatnonzero(ended):
            final = infos[row]["terminal_observation"]
            infos[row]["terminal_observation"] = self.states.beside(final, self._before[row])
        self._before = np.where(ended[:, None], self.states.start, self._before)
        return self.states.beside(self._observation, self._before), reward, ended, infos
