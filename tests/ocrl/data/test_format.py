from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocrl.data.format import (
    Header,
    decode_line,
    encode_line,
    flatten_objects,
    normalize_episode,
    to_json,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
FRAMES = np.zeros((3, 4, 5, 3), np.uint8)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text().filter(lambda key: key != "check"), JSON))
def test_lines_come_back(record):
    assert decode_line(encode_line(record)[:-1]) == record


@settings(deadline=None)
@given(st.integers(0, 10**9), st.data())
def test_an_altered_line_is_noticed(number, data):
    line = bytearray(encode_line({"start": number, "rows": 4})[:-1])
    line[data.draw(st.integers(0, len(line) - 1))] ^= data.draw(st.integers(1, 255))
    assert decode_line(bytes(line)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": None}, "expected an episode with 'frames'"),
        ({"frames": FRAMES.astype(np.float32)}, r"in uint8 .*, got float32 \(3, 4, 5, 3\)"),
        ({"frames": FRAMES[0]}, r"\(L\+1,\[V,\]H,W,C\).*got uint8 \(4, 5, 3\)"),
        ({"frames": FRAMES[:0]}, "at least one row"),
        ({"action": np.zeros(2)}, "expected 3 rows in 'action' as in 'frames', got 2"),
        ({"segmentation/scene": np.zeros((3, 4, 5), np.int32)}, "as uint16 .*got int32"),
        ({"segmentation/scene": np.zeros((3, 4, 4), np.uint16)}, r"got uint16 \(3, 4, 4\)"),
        ({"is_first": np.array([True, False, True])}, "only there"),
        ({"is_first": np.zeros(3, bool)}, "true in the first row"),
        ({"words": np.array(["a", "b", "c"])}, "expected numbers in 'words', got dtype <U1"),
        ({"../frames": FRAMES}, "expected an array name"),
        ({"index": FRAMES}, "expected an array name"),
    ],
)
def test_what_breaks_a_convention_is_named(changes: dict[str, Any], message: str):
    episode = {"frames": FRAMES} | changes
    with pytest.raises(ValueError, match=message):
        normalize_episode({name: value for name, value in episode.items() if value is not None})


def test_normalizing_splits_and_orders():
    big_endian = np.arange(3, dtype=">f4")
    arrays, values = normalize_episode(
        {"reward": big_endian, "frames": FRAMES, "seed": 5, "name": np.array("x")}
    )
    assert list(arrays) == ["frames", "is_first", "reward"] and values == {"seed": 5, "name": "x"}
    assert arrays["reward"].dtype.str == "<f4" and arrays["reward"].tolist() == [0, 1, 2]
    assert arrays["is_first"].tolist() == [True, False, False]


def test_object_tables_are_padded():
    table = np.ones((2, 3), [("id", "u2"), ("box", "f4", (4,))])
    flat = flatten_objects(table, max_objects=5)
    assert flat["objects/id"].tolist() == [[1, 1, 1, 0, 0]] * 2
    assert flat["objects/box"].shape == (2, 5, 4)
    with pytest.raises(ValueError, match="at most 2 objects in a frame, got 3"):
        flatten_objects(table, max_objects=2)
    with pytest.raises(ValueError, match="structured object table"):
        flatten_objects(np.zeros((2, 3)))  # type: ignore[arg-type]


def test_metadata_becomes_plain_json():
    given_values = {"a": np.float32(0.5), "b": (1, np.arange(2)), "c": Path("x/y")}
    assert to_json(given_values) == {"a": 0.5, "b": [1, [0, 1]], "c": "x/y"}
    with pytest.raises(ValueError, match="got object"):
        to_json({"a": object()})


def test_another_version_is_refused():
    record = Header({}, {}).to_record() | {"version": 99}
    with pytest.raises(ValueError, match="version 1, got 'ocrl-episodes' version 99"):
        Header.from_record(record, source=Path("here"))


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("depth", np.zeros((3, 8, 7), np.float16), r"expected 'depth' as floats \(8, 8\)"),
        ("depth", np.zeros((3, 8, 8), np.int32), "got int32"),
        ("intrinsics", np.zeros((3, 2, 3, 3)), r"expected 'intrinsics' as floats \(1, 3, 3\)"),
        ("extrinsics", np.zeros((3, 4, 4)), r"expected 'extrinsics' as floats \(1, 4, 4\)"),
    ],
)
def test_cameras_and_depth_fit_the_frames(random_episode, name, array, expected):
    with pytest.raises(ValueError, match=expected):
        normalize_episode(random_episode(3) | {name: array})


def test_boxes_of_views_have_the_view_before_the_object():
    table = np.zeros((3, 2), [("id", "u2"), ("box", "f4", (5, 4)), ("position", "f4", (5, 2))])
    table["box"] = np.arange(3 * 2 * 5 * 4).reshape(3, 2, 5, 4)
    arrays = flatten_objects(table)
    assert arrays["objects/box"].shape == (3, 5, 2, 4)
    assert arrays["objects/position"].shape == (3, 5, 2, 2)
    assert (arrays["objects/box"][2, 4, 1] == table["box"][2, 1, 4]).all()
