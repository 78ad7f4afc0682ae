"""Observations as the rows that a world model foretells."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict

from ocrl.agents.rows import ObservedRows, in_order_of
from ocrl.nn.location import mask_geometry


def box(*shape):
    return Box(-np.inf, np.inf, shape, np.float32)


FRAME = Box(0, 255, (8, 8, 3), np.uint8)


def test_a_plain_set_is_scaled_feature_by_feature():
    rows = ObservedRows(box(3, 2), plain_key="slots")
    assert (rows.num_rows, rows.row_dim, rows.has_presence) == (3, 2, False)
    rng = np.random.default_rng(0)
    sets = [rng.normal([4.0, -1.0], [0.1, 20.0], (n, 3, 2)).astype(np.float32) for n in (30, 50)]
    rows.measure(sets)
    together = torch.from_numpy(np.concatenate(sets))
    scaled = rows({"slots": together})
    torch.testing.assert_close(scaled.mean((0, 1)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std((0, 1)), torch.ones(2), atol=1e-2, rtol=0)
    assert rows.is_present(scaled) is None
    # Any leading axes.
    stacked = rows({"slots": together.reshape(4, 20, 3, 2)})
    assert torch.equal(stacked.flatten(0, 1), scaled)


def test_slots_that_share_cells_in_turns_stay_where_they_are():
    # Two slots share the left half of a picture about evenly; the third has the right one.
    share = torch.tensor([0.51, 0.49])
    masks = torch.zeros(2, 3, 4, 4)
    masks[0, :2, :, :2] = share[:, None, None]
    masks[1, :2, :, :2] = share.flip(0)[:, None, None]
    masks[:, 2, :, 2:] = 1.0
    looks = torch.randn(3, 5).expand(2, 3, 5)
    slots = torch.cat([looks, mask_geometry(masks)], dim=-1)
    with_boxes = ObservedRows(box(3, 12), plain_key="slots")({"slots": slots})
    assert (with_boxes[1] - with_boxes[0]).abs().max() > 0.2
    rows = ObservedRows(box(3, 12), plain_key="slots", num_boxed=7)
    assert (rows.num_columns, rows.set_dim, rows.row_dim) == (12, 8, 8)
    found = rows({"slots": slots})
    torch.testing.assert_close(found, slots[..., :8])
    torch.testing.assert_close(found[1], found[0], atol=0.011, rtol=0)
    rows.measure([slots.numpy()])
    assert rows({"slots": slots}).shape == (2, 3, 8)


def test_boxes_of_each_view_are_left_out():
    rows = ObservedRows(box(2, 16), plain_key="slots", num_boxed=14)
    slots = torch.arange(32.0).view(1, 2, 16)
    kept = [0, 1, 2, 3, 4, 9, 10, 11]
    assert torch.equal(rows({"slots": slots}), slots[..., kept])


def test_empty_rows_of_objects_are_zero_and_do_not_count():
    rows = ObservedRows(box(4, 3), plain_key="objects")
    table = np.zeros((1, 4, 3), np.float32)
    table[0, :2] = [[1.0, 10.0, 5.0], [1.0, 30.0, 5.0]]
    rows.measure([table])
    found = rows({"objects": torch.from_numpy(table)})[0]
    assert found[:, 0].tolist() == [1, 1, 0, 0]
    assert found[:, 1].tolist() == [-1.0, 1.0, 0.0, 0.0] and (found[:, 2] == 0).all()
    assert rows.is_present(found).tolist() == [True, True, False, False]


@pytest.mark.parametrize("main", ["slots", "objects"])
def test_vectors_are_rows_in_columns_of_their_own(main):
    space = Dict({main: box(2, 3), "mission": box(4), "frame": FRAME, "inventory": box(1)})
    rows = ObservedRows(space, plain_key=main)
    assert (rows.num_rows, rows.row_dim) == (4, 8)
    assert set(rows.space.spaces) == {main, "mission", "inventory"}
    parts = {main: torch.ones(5, 2, 3), "mission": torch.arange(20.0).view(5, 4)}
    found = rows({**parts, "inventory": torch.full((5, 1), 7.0)})
    presence = torch.full((5,), float(main == "objects"))
    assert torch.equal(found[:, :2, :3], torch.ones(5, 2, 3)) and not found[:, :2, 3:].any()
    # The parts come in the order of the space, in which Gymnasium sorts names.
    assert torch.equal(found[:, 2, 3], torch.full((5,), 7.0))
    assert torch.equal(found[:, 3, 4:], parts["mission"])
    assert torch.equal(found[:, 2, 0], presence) and torch.equal(found[:, 3, 0], presence)
    assert not found[:, 3, 1:4].any()
    observation = {name: np.zeros(1) for name in (main, "mission", "inventory", "frame")}
    assert set(rows.parts(observation)) == {main, "mission", "inventory"}


def test_a_frame_beside_a_plain_set_leaves_the_set_alone():
    rows = ObservedRows(Dict({"slots": box(2, 3), "frame": FRAME}), plain_key="slots")
    assert rows.space == box(2, 3)
    array = np.zeros((1, 2, 3), np.float32)
    assert rows.parts(array).keys() == rows.parts({"slots": array, "frame": None}).keys()


@pytest.mark.parametrize("space", [FRAME, box(5), Dict({"a": box(2, 3), "b": box(2, 3)})])
def test_without_exactly_one_set_there_is_no_world(space):
    with pytest.raises(ValueError, match="expected an observation with one set"):
        ObservedRows(space, plain_key="frame")


def test_rows_follow_what_they_were():
    rng = np.random.default_rng(0)
    before = rng.normal(size=(6, 5, 3)).astype(np.float32)
    moved = before + 0.01 * rng.normal(size=before.shape).astype(np.float32)
    orders = np.stack([rng.permutation(5) for _ in range(6)])
    shuffled = np.take_along_axis(moved, orders[..., None], axis=1)
    np.testing.assert_array_equal(in_order_of(before, shuffled), moved)


def test_where_rows_are_and_how_much_they_hold_is_known_of_their_masks():
    space = Dict({"slots": box(2, 16), "mission": box(3)})
    rows = ObservedRows(space, plain_key="slots", num_boxed=14)
    slots = torch.rand(5, 2, 16)
    rows.measure([slots.numpy()])
    found = rows({"slots": slots, "mission": torch.rand(5, 3)})
    # Of two views; boxes are left out between them.
    assert rows.places == [2, 3, 5, 6]
    centres = slots[..., [2, 3, 9, 10]]
    scaled = found[:, :2, rows.places] / rows.scale.factor[rows.places]
    torch.testing.assert_close(scaled + rows.scale.shift[rows.places], centres)
    area = rows.area(found)
    torch.testing.assert_close(area[:, :2], torch.maximum(slots[..., 4], slots[..., 11]))
    assert (area[:, 2] == 1).all()
    plain = ObservedRows(box(2, 16), plain_key="slots")
    assert plain.places == [] and plain.area(found[..., :16]) is None
    objects = ObservedRows(box(2, 5), plain_key="objects", places=[2, 3])
    assert objects.places == [2, 3] and objects.area(torch.zeros(5, 2, 5)) is None
    with pytest.raises(ValueError, match=r"among the 5 features of objects, got \[5\]"):
        ObservedRows(box(2, 5), plain_key="objects", places=[5])
