import torch

from ocrl.nn.history import frame_ages, make_clock
from ocrl.nn.slot_change import SlotChange
from ocrl.nn.temporal import INVISIBLE


def test_ages_count_from_the_last_first_frame_or_from_what_was_read_before():
    is_first = torch.tensor([[0, 0, 1, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    ages = frame_ages(is_first, torch.tensor([3, 7, 9]))
    assert ages.tolist() == [[3, 4, 0, 1, 0], [7, 8, 9, 10, 11], [0, 1, 2, 3, 4]]


def test_a_frame_sees_its_episode_within_the_window():
    clock = make_clock(torch.tensor([[5, 0, 1]]), num_kept=2, window=3, head_dim=4)
    assert (clock.mask[0] == 0).int().tolist() == [
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert set(clock.mask.unique().tolist()) == {0.0, INVISIBLE}


def test_products_of_rotated_heads_tell_distances_only():
    query, key = torch.randn(1, 1, 1, 1, 8).double(), torch.randn(1, 1, 1, 1, 8).double()

    def product(age, other):
        at = make_clock(torch.tensor([[age]]), num_kept=0, window=9, head_dim=8)
        then = make_clock(torch.tensor([[other]]), num_kept=0, window=9, head_dim=8)
        return (at.rotate(query) * then.rotate(key)).sum()

    torch.testing.assert_close(product(5, 3), product(42, 40), rtol=1e-4, atol=1e-4)
    assert (product(5, 3) - product(5, 4)).abs() > 1e-3
    torch.testing.assert_close(product(6, 6), (query * key).sum(), rtol=1e-6, atol=1e-6)


def test_a_change_is_added_and_starts_at_zero():
    slots, hidden = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 6)
    residual = SlotChange(6, slot_dim=4, is_residual=True)
    assert torch.equal(residual(hidden, slots), slots)
    direct = SlotChange(6, slot_dim=4, is_residual=False)
    assert torch.equal(direct(hidden, slots), direct.to_slots(direct.norm(hidden)))
