import pytest

from ocrl.nn.scan_order import NUM_ORDERS, scan_order

# A grid of 2 x 3: cells 0 1 2 over 3 4 5.
EXPECTED = {
    0: [0, 1, 2, 3, 4, 5],
    1: [0, 3, 1, 4, 2, 5],
    2: [2, 5, 1, 4, 0, 3],
    3: [2, 1, 0, 5, 4, 3],
    4: [5, 2, 4, 1, 3, 0],
    5: [5, 4, 3, 2, 1, 0],
    6: [3, 0, 4, 1, 5, 2],
    7: [3, 4, 5, 0, 1, 2],
    8: [1, 0, 3, 4, 5, 2],
}
SPIRAL = "12 7 6 11 16 17 18 13 8 3 2 1 0 5 10 15 20 21 22 23 24 19 14 9 4"


@pytest.mark.parametrize("index", EXPECTED)
def test_orders_of_a_small_grid(index):
    assert scan_order((2, 3), index=index).tolist() == EXPECTED[index]


def test_the_spiral_of_the_published_code():
    assert " ".join(map(str, scan_order((5, 5), index=8).tolist())) == SPIRAL


def test_all_orders_read_every_cell_once_and_differ():
    orders = [tuple(scan_order((4, 4), index=index).tolist()) for index in range(NUM_ORDERS)]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert len(set(orders)) == NUM_ORDERS


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="from 0 to 8, got 9"):
        scan_order((2, 2), index=9)
