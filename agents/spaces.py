"""Spaces of observations and actions: by part, and as JSON.

K slots or objects, F features of one, H W image, W numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Space

SET, FRAME, VECTOR = "set", "frame", "vector"
_KINDS = {1: VECTOR, 2: SET, 3: FRAME}


def parts(space: Space[Any], *, plain_key: str) -> dict[str, Box]:
    """The named parts of an observation.

    Args:
        space: a `Box`, or a flat `Dict` of them.
        plain_key: name of the only part of an observation that is no `Dict`.

    Raises:
        ValueError: if the space, or a part of it, is of a kind that no policy here reads.
    """
    named = dict(space.spaces) if isinstance(space, Dict) else {plain_key: space}
    for name, part in named.items():
        kind(name, part)
    return named  # type: ignore[return-value]


def kind(name: str, space: Space[Any]) -> str:
    """What a part is: a set (K,F), a frame (H,W,3) in uint8 or a vector (W,).

    Raises:
        ValueError: if it is none of them.
    """
    found = _KINDS.get(len(space.shape or ())) if isinstance(space, Box) else None
    if found is None or (found == FRAME) != (space.dtype == np.uint8):
        raise ValueError(
            f"expected observation {name!r} to be a set (K,F) or a vector (W,) of floats or a "
            f"frame (H,W,3) of uint8, got {space}; map it to such parts in a flat Dict"
        )
    return found


def to_json(space: Space[Any]) -> dict[str, Any]:
    """Describe a space of boxes and discrete numbers by plain values.

    Raises:
        ValueError: if it is of another kind.
    """
    if isinstance(space, Dict):
        return {"kind": "dict", "spaces": {name: to_json(part) for name, part in space.items()}}
    if isinstance(space, Discrete):
        return {"kind": "discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, Box):
        return {
            "kind": "box",
            "shape": list(space.shape),
            "dtype": str(space.dtype),
            "low": _bound(space.low),
            "high": _bound(space.high),
        }
    raise ValueError(f"expected a space of Box and Discrete, flat or in a Dict, got {space}")


def from_json(description: Mapping[str, Any]) -> Space[Any]:
    """The space that `to_json` described.

    Raises:
        ValueError: if it is no such description.
    """
    found = description.get("kind")
    if found == "dict":
        return Dict({name: from_json(part) for name, part in description["spaces"].items()})
    if found == "discrete":
        return Discrete(description["n"], start=description["start"])
    if found == "box":
        dtype: Any = np.dtype(description["dtype"])
        low, high = (np.array(description[end], dtype=float) for end in ("low", "high"))
        shape = tuple(description["shape"])
        return Box(
            np.broadcast_to(low, shape).astype(dtype),
            np.broadcast_to(high, shape).astype(dtype),
            dtype=dtype.type,
        )
    raise ValueError(f"expected the description of a space, got {dict(description)}")


def _bound(values: Any) -> Any:
    """One number where all are equal; JSON has no infinity, so numbers are strings there."""
    first = values.flat[0]
    is_one = bool((values == first).all())
    numbers = np.array(first) if is_one else values
    return numbers.astype(str).tolist() if not np.isfinite(numbers).all() else numbers.tolist()


def channels_first(space: Space[Any]) -> Space[Any]:
    """The space as networks see it: frames (C,H,W) instead of (H,W,C)."""
    if isinstance(space, Dict):
        return Dict({name: channels_first(part) for name, part in space.spaces.items()})
    if not isinstance(space, Box) or len(space.shape) != 3:
        return space
    height, width, channels = space.shape
    return Box(0, 255, (channels, height, width), np.uint8)
