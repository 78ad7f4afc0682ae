"""Spaces by part, and there and back through JSON."""

import json

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple

from ocrl.agents import spaces

FRAME = Box(0, 255, (7, 9, 3), np.uint8)
SLOTS = Box(-np.inf, np.inf, (4, 6), np.float32)
BOUNDS = Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, np.inf], np.float32))


@pytest.mark.parametrize(
    "space", [FRAME, SLOTS, BOUNDS, Discrete(5), Discrete(3, start=1), Dict(a=FRAME, b=SLOTS)]
)
def test_a_space_is_the_same_after_a_file(space):
    again = spaces.from_json(json.loads(json.dumps(spaces.to_json(space), allow_nan=False)))
    assert again == space and again.dtype == space.dtype


def test_parts_have_a_name_and_a_kind():
    assert spaces.parts(SLOTS, plain_key="slots") == {"slots": SLOTS}
    named = Dict(slots=SLOTS, frame=FRAME, inventory=BOUNDS)
    kinds = {k: spaces.kind(k, v) for k, v in spaces.parts(named, plain_key="x").items()}
    assert kinds == {"slots": "set", "frame": "frame", "inventory": "vector"}


@pytest.mark.parametrize(
    "space",
    [
        Discrete(3),
        Tuple([SLOTS, FRAME]),
        Dict(image=FRAME, inner=Dict(a=SLOTS)),
        Box(0.0, 1.0, (7, 9, 3), np.float32),
        Box(0, 255, (4, 6), np.uint8),
    ],
)
def test_what_nobody_mapped_is_refused(space):
    with pytest.raises(ValueError, match=r"a set .* a vector .* or a frame"):
        spaces.parts(space, plain_key="observation")


def test_networks_see_channels_first():
    space = spaces.channels_first(Dict(frame=FRAME, slots=SLOTS))
    assert space["frame"].shape == (3, 7, 9) and space["slots"] == SLOTS


def test_other_spaces_have_no_description():
    with pytest.raises(ValueError, match="Box and Discrete"):
        spaces.to_json(MultiDiscrete([2, 2]))
    with pytest.raises(ValueError, match="the description of a space"):
        spaces.from_json({"kind": "tuple"})
