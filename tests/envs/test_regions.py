from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from ocrl.envs.regions import Regions

MAP = """
..aa..b
a.a...b
aaa.bbb
......b
"""


def kinds_of(picture: str) -> NDArray[np.int64]:
    """One letter per kind; the first axis is x."""
    rows = picture.split()
    return np.array([[0 if c == "." else ord(c) - 96 for c in row] for row in rows]).T


def partition(labels: NDArray[np.integer]) -> set[frozenset[tuple[int, int]]]:
    cells = {}
    for x, y in np.argwhere(labels > 0).tolist():
        cells.setdefault(int(labels[x, y]), set()).add((x, y))
    return {frozenset(group) for group in cells.values()}


def components(kinds: NDArray[np.integer]) -> set[frozenset[tuple[int, int]]]:
    """The regions from scratch, by scipy."""
    found = set()
    for kind in np.unique(kinds[kinds > 0]):
        labels, count = ndimage.label(kinds == kind)
        for label in range(1, count + 1):
            found.add(frozenset(map(tuple, np.argwhere(labels == label).tolist())))
    return found


def touching(x: int, y: int, labels: NDArray[np.integer]) -> set[int]:
    cells = ((x, y), (x, y - 1), (x - 1, y), (x + 1, y), (x, y + 1))
    width, height = labels.shape
    return {int(labels[u, v]) for u, v in cells if 0 <= u < width and 0 <= v < height} - {0}


def test_first_labels_are_the_components_numbered_from_first_id() -> None:
    kinds = kinds_of(MAP)
    regions = Regions(kinds, first_id=100, last_id=200)
    assert partition(regions.labels) == components(kinds)
    assert set(np.unique(regions.labels)) == {0, 100, 101}
    assert regions.labels.dtype == np.uint16
    assert kinds[0, 1] == 1, "the map is not the region's own"


def test_a_split_leaves_the_id_with_the_largest_part() -> None:
    regions = Regions(kinds_of("aaaaa ....."), first_id=1, last_id=9)
    regions.change(1, 0, 0)
    assert regions.labels[:, 0].tolist() == [2, 0, 1, 1, 1]
    regions.change(3, 0, 0)
    # Two parts of one cell each: the left one is met first.
    assert regions.labels[:, 0].tolist() == [2, 0, 1, 0, 3]


def test_a_merge_takes_the_id_of_the_largest_and_retires_the_others() -> None:
    regions = Regions(kinds_of("a.aa.a"), first_id=1, last_id=9)
    regions.change(1, 0, 1)
    assert regions.labels[:, 0].tolist() == [2, 2, 2, 2, 0, 3]
    regions.change(1, 0, 0)
    # The retired id 1 does not come back.
    assert regions.labels[:, 0].tolist() == [4, 0, 2, 2, 0, 3]


def test_equal_merges_keep_the_older_id() -> None:
    regions = Regions(kinds_of("a.a"), first_id=5, last_id=9)
    regions.change(1, 0, 1)
    assert regions.labels[:, 0].tolist() == [5, 5, 5]


def test_a_vanished_region_does_not_lend_its_id() -> None:
    regions = Regions(kinds_of("a.."), first_id=1, last_id=9)
    regions.change(0, 0, 0)
    regions.change(0, 0, 1)
    assert regions.labels[:, 0].tolist() == [2, 0, 0]


def test_replacing_one_kind_by_another_splits_the_old_and_starts_the_new() -> None:
    regions = Regions(kinds_of("aaa"), first_id=1, last_id=9)
    regions.change(1, 0, 2)
    assert regions.labels[:, 0].tolist() == [1, 3, 2]


def test_the_same_kind_again_changes_nothing() -> None:
    regions = Regions(kinds_of(MAP), first_id=1, last_id=2)
    before = regions.labels.copy()
    for x, y in np.ndindex(before.shape):
        regions.change(x, y, int(kinds_of(MAP)[x, y]))
    assert np.array_equal(regions.labels, before)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_regions_are_components_and_ids_stay(data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 7))
    height = data.draw(st.integers(1, 7))
    cells = st.lists(st.integers(0, 2), min_size=width * height, max_size=width * height)
    kinds = np.array(data.draw(cells)).reshape(width, height)
    regions = Regions(kinds, first_id=10, last_id=1000)
    retired: set[int] = set()
    change = st.tuples(st.integers(0, width - 1), st.integers(0, height - 1), st.integers(0, 2))
    for x, y, kind in data.draw(st.lists(change, max_size=15)):
        before = regions.labels.copy()
        near = touching(x, y, before)
        kinds[x, y] = kind
        regions.change(x, y, kind)
        after = regions.labels
        assert partition(after) == components(kinds)
        assert np.array_equal(after > 0, kinds > 0)
        for label in set(np.unique(before).tolist()) - near - {0}:
            assert np.array_equal(before == label, after == label), "a bystander changed"
        alive = set(np.unique(after).tolist())
        assert not alive & retired, "an id was used again"
        retired |= set(np.unique(before).tolist()) - alive - {0}
        if before[x, y] and len(near) == 1 and (before == before[x, y]).sum() > 1:
            assert before[x, y] in alive, "a region that lost a cell lost its id"


def test_ids_follow_from_the_order_of_changes_only() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, (12, 9))
    one, other = (Regions(kinds, first_id=1, last_id=2000) for _ in range(2))
    changes = [(rng.integers(12), rng.integers(9), rng.integers(3)) for _ in range(300)]
    for x, y, kind in changes:
        one.change(x, y, kind)
        one.labels.copy()
    for x, y, kind in changes:
        other.change(x, y, kind)
    assert np.array_equal(one.labels, other.labels)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"expected kinds of shape \(X,Y\), got \(3,\)"):
        Regions(np.zeros(3, int), first_id=1, last_id=2)
    for first, last in ((0, 5), (6, 5), (1, 65535)):
        with pytest.raises(ValueError, match="expected ids with"):
            Regions(np.zeros((2, 2), int), first_id=first, last_id=last)
    with pytest.raises(OverflowError, match="at most 1 regions"):
        Regions(kinds_of("a.a"), first_id=1, last_id=1)
    regions = Regions(kinds_of("a.."), first_id=1, last_id=1)
    with pytest.raises(OverflowError, match="reset the environment"):
        regions.change(2, 0, 1)
    for x, y in ((-1, 0), (3, 0), (0, 1)):
        with pytest.raises(IndexError, match="inside the 3 x 1 map"):
            regions.change(x, y, 1)
