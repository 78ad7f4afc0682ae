"""R rows, S columns."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ocrl import matching
from ocrl.matching import align_over_time, hungarian, matched_scores, slot_distances


def best_sum(score):
    """By trying every assignment of the shorter side."""
    if score.shape[0] > score.shape[1]:
        return best_sum(score.T)
    rows = range(len(score))
    columns = itertools.permutations(range(score.shape[1]), len(score))
    return min(sum(score[r, c].item() for r, c in zip(rows, p, strict=True)) for p in columns)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_no_assignment_is_better(seed, rows, columns):
    score = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(seed)).double()
    found = hungarian(score)
    for matrix, chosen in zip(score, found, strict=True):
        taken = chosen[chosen >= 0].tolist()
        assert len(taken) == len(set(taken)) == min(rows, columns)
        assert matched_scores(matrix, chosen).sum().item() == pytest.approx(best_sum(matrix))
    assert torch.equal(hungarian(-score, maximize=True), found)


def test_hand_worked():
    gain = torch.tensor([[[0.9, 0.8], [0.8, 0.1], [0.0, 0.2]]])
    assert hungarian(gain, maximize=True).tolist() == [[1, 0, -1]]
    assert hungarian(gain).tolist() == [[-1, 1, 0]]


def test_leading_dimensions_and_gradient():
    score = torch.randn(2, 3, 4, 5, requires_grad=True)
    columns = hungarian(score)
    assert columns.shape == (2, 3, 4)
    assert columns.dtype == torch.int64
    matched_scores(score, columns).sum().backward()
    assert score.grad.sum().item() == 2 * 3 * 4
    assert hungarian(score[0, 0]).tolist() == columns[0, 0].tolist()


def test_half_precision_goes_in():
    assert hungarian(torch.eye(3, dtype=torch.bfloat16), maximize=True).tolist() == [0, 1, 2]


def test_what_cannot_be_matched():
    with pytest.raises(ValueError, match="finite"):
        hungarian(torch.tensor([[float("nan"), 1.0]]))
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        hungarian(torch.zeros(3))


def test_slots_are_followed_over_time() -> None:
    generator = torch.Generator().manual_seed(0)
    start = 3 * torch.randn(2, 1, 5, 6, generator=generator)
    slots = start + 0.1 * torch.randn(2, 7, 5, 6, generator=generator).cumsum(1)
    orders = torch.stack([torch.randperm(5, generator=generator) for _ in range(14)]).view(2, 7, 5)
    orders[:, 0] = torch.arange(5)
    shuffled = slots.gather(2, orders[..., None].expand_as(slots))
    found = align_over_time(shuffled)
    torch.testing.assert_close(shuffled.gather(2, found[..., None].expand_as(slots)), slots)
    with pytest.raises(ValueError, match="finite"):
        align_over_time(torch.full((1, 2, 2, 3), torch.nan))


def test_following_slots_is_matching_frame_by_frame_in_one_round(monkeypatch) -> None:
    slots = torch.randn(3, 6, 5, 4)
    orders, before = [torch.arange(5).expand(3, -1)], slots[:, 0]
    for frame in slots[:, 1:].unbind(1):
        orders.append(hungarian(slot_distances(before.double(), frame.double())))
        before = frame.gather(1, orders[-1][..., None].expand_as(frame))
    rounds = []
    monkeypatch.setattr(matching, "hungarian", lambda cost: rounds.append(cost) or hungarian(cost))
    assert torch.equal(align_over_time(slots), torch.stack(orders, dim=1))
    assert len(rounds) == 1
    assert torch.equal(align_over_time(slots[:, :1]), orders[0][:, None])


def test_distances_of_slots_are_mean_squared_differences() -> None:
    slots, others = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 3, 4, 5).double()
    expected = (slots[..., :, None, :] - others[..., None, :, :]).square().mean(-1)
    torch.testing.assert_close(slot_distances(slots, others), expected)
