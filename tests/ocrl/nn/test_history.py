import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ocrl.nn.history import HistoryAttention, frame_ages, make_clock
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


@pytest.mark.parametrize("is_joint", [False, True])
def test_fused_kernels_take_the_tokens_of_several_frames_and_objects(is_joint):
    attention = HistoryAttention(8, num_heads=2, is_joint=is_joint)
    ages = torch.tensor([[4, 0, 1], [0, 1, 2]])
    clock = make_clock(ages, num_kept=2, window=3, head_dim=4)
    tokens, past = torch.randn(2, 3, 5, 8), torch.randn(2, 2, 2, 5, 2, 4)
    with sdpa_kernel(SDPBackend.MATH):
        expected, _ = attention(tokens, past, clock)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        found, _ = attention(tokens, past, clock)
    torch.testing.assert_close(found, expected)


def test_lines_of_tokens_see_their_own_past_only():
    attention = HistoryAttention(8, num_heads=2, is_joint=False)
    clock = make_clock(torch.tensor([[4, 0, 1], [0, 1, 2]]), num_kept=2, window=3, head_dim=4)
    tokens, past = torch.randn(2, 3, 5, 8), torch.randn(2, 2, 2, 5, 2, 4)
    together, _ = attention(tokens, past, clock)
    for line in range(5):
        alone, _ = attention(tokens[:, :, [line]], past[:, :, :, [line]], clock)
        torch.testing.assert_close(together[:, :, [line]], alone)
