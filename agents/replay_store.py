"""The replay buffer of an off-policy algorithm on disk: arrays only, nothing is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer

_PARTED = ("observations", "next_observations")
_ARRAYS = ("actions", "rewards", "dones", "timeouts")


def save(buffer: ReplayBuffer | None, folder: Path) -> None:
    """Write what a buffer holds, one file per array."""
    assert buffer is not None
    np.save(folder / "replay_place.npy", np.array([buffer.pos, int(buffer.full)]))
    for name, array in _arrays(buffer).items():
        np.save(folder / f"replay_{name}.npy", array[: buffer.size()])


def load(buffer: ReplayBuffer | None, folder: Path) -> None:
    """Fill a buffer of the same size with what `save` wrote.

    Raises:
        ValueError: if a file is damaged, or of a buffer of another size.
    """
    assert buffer is not None
    place = _read(folder / "replay_place.npy")
    buffer.pos, buffer.full = int(place[0]), bool(place[1])
    for name, array in _arrays(buffer).items():
        saved = _read(folder / f"replay_{name}.npy")
        if saved.shape != array[: buffer.size()].shape:
            raise ValueError(
                f"{folder}: expected {name} of shape {array[: buffer.size()].shape} in the replay "
                f"buffer, got {saved.shape}"
            )
        array[: buffer.size()] = saved


def _arrays(buffer: ReplayBuffer) -> dict[str, NDArray[Any]]:
    arrays = {name: getattr(buffer, name) for name in _ARRAYS}
    for name in _PARTED:
        value = getattr(buffer, name)
        named = value if isinstance(value, dict) else {"": value}
        arrays |= {f"{name}_{key}": array for key, array in named.items()}
    return arrays


def _read(file: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(file, allow_pickle=False)
    except (EOFError, FileNotFoundError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {' '.join(str(error).split())}") from error
    return array
