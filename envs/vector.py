"""Several copies of an environment as one, in this process or each in its own.

E environments, H W image.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import BaseContext
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from ocrl.envs.interface import PRESETS
from ocrl.envs.observation import ObservedEnv
from ocrl.envs.registry import make

AUTORESET_MODE = AutoresetMode.SAME_STEP
"""The step that ends an episode gives the first frame of the next one, and the last in `info`."""


class ObjectVectorEnv(VectorEnv[Any, Any, Any]):
    """A Gymnasium vector environment over `ObjectEnv`s, or `ObservedEnv`s around them.

    The step that ends an episode in environment e returns the first frame of the next episode in
    `observation[e]`, and the last frame of the one that ended in `info["final_obs"][e]` (with
    `info["_final_obs"][e]` true, and its info in `info["final_info"]`). So every action is played,
    and the reward and the two flags of that step belong to the final frame.
    """

    def segmentation(self, preset: str = "entities") -> NDArray[np.uint16]:
        """Object ids (E,H,W) of the frames that `reset` or `step` returned last.

        Where an episode has just ended they are those of the new episode's first frame, as in
        the observation.

        Raises:
            ValueError: if `preset` is not one of `PRESETS`.
        """
        if preset not in PRESETS:
            raise ValueError(f"expected a preset of {PRESETS}, got {preset!r}")
        return np.stack(self.call("segmentation", preset))

    def objects(self) -> tuple[NDArray[np.void], ...]:
        """One object table per environment, see `ObjectEnv.objects`."""
        return tuple(self.call("objects"))

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment."""
        return super().call(name, *args, **kwargs)  # type: ignore[misc]


class ObjectVectorWrapper(VectorWrapper[Any, Any, Any, Any, Any]):
    """A wrapper through which masks, tables and methods of the environments are reached."""

    def segmentation(self, preset: str = "entities") -> NDArray[np.uint16]:
        """See `ObjectVectorEnv.segmentation`."""
        return self.env.segmentation(preset)  # type: ignore[attr-defined]

    def objects(self) -> tuple[NDArray[np.void], ...]:
        """See `ObjectVectorEnv.objects`."""
        return self.env.objects()  # type: ignore[attr-defined]

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment."""
        return self.env.call(name, *args, **kwargs)  # type: ignore[attr-defined]

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of every environment."""
        return self.env.get_attr(name)  # type: ignore[attr-defined]

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of every environment."""
        self.env.set_attr(name, values)  # type: ignore[attr-defined]


class SameProcessVectorEnv(ObjectVectorEnv, SyncVectorEnv[Any, Any]):
    """One environment after the other, in this process."""

    def __init__(self, env_fns: Sequence[Callable[[], gymnasium.Env[Any, Any]]]) -> None:
        """Build every environment."""
        SyncVectorEnv.__init__(self, env_fns, autoreset_mode=AUTORESET_MODE)


class SubProcessVectorEnv(ObjectVectorEnv, AsyncVectorEnv[Any, Any]):
    """Every environment in a process of its own; frames come through shared memory.

    Ctrl-C reaches this process alone, which decides when to close the others.

    A script that makes one needs Python's usual guard, `if __name__ == "__main__":`.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gymnasium.Env[Any, Any]]]) -> None:
        """Start the processes and build an environment in each."""
        method = worker_context().get_start_method()
        env_fns = [functools.partial(_without_ctrl_c, build, os.getpid()) for build in env_fns]
        AsyncVectorEnv.__init__(self, env_fns, context=method, autoreset_mode=AUTORESET_MODE)

    def reset_async(self, *args: Any, **kwargs: Any) -> None:
        """See Gymnasium; a process that has died is named."""
        with self._named_if_dead():
            super().reset_async(*args, **kwargs)

    def reset_wait(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """See Gymnasium; a process that has died is named."""
        with self._named_if_dead():
            return super().reset_wait(*args, **kwargs)

    def step_async(self, *args: Any, **kwargs: Any) -> None:
        """See Gymnasium; a process that has died is named."""
        with self._named_if_dead():
            super().step_async(*args, **kwargs)

    def step_wait(self, *args: Any, **kwargs: Any) -> Any:
        """See Gymnasium; a process that has died is named."""
        with self._named_if_dead():
            return super().step_wait(*args, **kwargs)

    def call_async(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """See Gymnasium; a process that has died is named."""
        with self._named_if_dead():
            super().call_async(name, *args, **kwargs)

    def call_wait(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """See Gymnasium; a process that has died is named."""
        with self._named_if_dead():
            return super().call_wait(*args, **kwargs)

    @contextlib.contextmanager
    def _named_if_dead(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError) as error:
            for process in self.processes:
                process.join(0.1)
            dead = [
                f"{index} (exit code {process.exitcode})"
                for index, process in enumerate(self.processes)
                if not process.is_alive()
            ]
            self.close(terminate=True)
            raise ChildProcessError(
                f"the process of environment {', '.join(dead) or '?'} has ended: all environments "
                "are closed now, make them again (was the machine short of memory?)"
            ) from error


def _without_ctrl_c(
    build: Callable[[], gymnasium.Env[Any, Any]], creator: int
) -> gymnasium.Env[Any, Any]:
    """Build an environment; a terminal sends Ctrl-C to workers as well, which would end them."""
    if os.getpid() != creator:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return build()


def worker_context() -> BaseContext:
    """How worker processes start: not by forking this one, which may have threads and a GPU.

    Where there is a fork server it has imported the environments before it forks.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ocrl.envs"])
    return context


def make_vec(
    name: str,
    num_envs: int,
    *,
    processes: bool = False,
    observe: Sequence[str] | None = None,
    is_shuffled: bool = False,
    is_stacked: bool = False,
    **kwargs: Any,
) -> ObjectVectorEnv:
    """Build several copies of an environment.

    Both kinds give the same results for the same seeds; `reset(seed=s)` seeds environment e with
    s + e.

    Args:
        name: as in `make`.
        num_envs: E.
        processes: one process per environment instead of all of them in this one.
        observe: parts of the observation, as `ObservedEnv` names them: `frame`, its cameras
            `intrinsics` and `extrinsics`, `objects`, and the environment's vectors, such as
            `inventory` and `mission`. They are made where the environment is, so that they cost no
            further message. None for the plain frame.
        is_shuffled: put the rows of `objects` into another random order in every frame.
        is_stacked: see `ObservedEnv`; read where `observe` is given.
        **kwargs: as in `make`.

    Raises:
        ValueError: if the environment, an argument or a part of the observation does not exist, or
            `num_envs` is below 1.
    """
    if num_envs < 1:
        raise ValueError(f"expected num_envs of at least 1, got {num_envs}")
    how = {"is_shuffled": is_shuffled, "is_stacked": is_stacked}
    build = functools.partial(_make_observed, name, observe, how, kwargs)
    env_fns = [build] * num_envs
    return SubProcessVectorEnv(env_fns) if processes else SameProcessVectorEnv(env_fns)


def _make_observed(
    name: str, keys: Sequence[str] | None, how: dict[str, bool], kwargs: dict[str, Any]
) -> gymnasium.Env[Any, Any]:
    env = make(name, **kwargs)
    return env if keys is None else ObservedEnv(env, keys, **how)
