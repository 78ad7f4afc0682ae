"""Merged slots by hand, against a plain union-find, and what must stay."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ocrl.merging import find_holders, holders_of, merge_masks, merge_slots, soft_iou
from ocrl.types import SlotOutput


def output(num_slots: int = 5, *, seed: int = 0, num_frames: int = 2) -> SlotOutput:
    generator = torch.Generator().manual_seed(seed)
    attn = torch.randn(3, num_frames, num_slots, 12, generator=generator).softmax(2)
    slots = torch.randn(3, num_frames, num_slots, 4, generator=generator)
    return SlotOutput(slots, attn, queries=slots + 1, aux={"kept": slots.sum(-1)})


def test_soft_iou_by_hand() -> None:
    maps = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0], [0.5, 0.25, 0.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor(
        [
            [1.0, 0.5 / 2.5, 0.75 / 1.5, 0.0],
            [0.5 / 2.5, 1.0, 0.25 / 2.0, 0.0],
            [0.75 / 1.5, 0.25 / 2.0, 1.0, 0.0],
            [0.0, 0.0, 0.0, 0.0],
        ]
    )
    torch.testing.assert_close(soft_iou(maps), expected)
    hard = torch.tensor([[1.0, 1, 1, 0], [0.0, 1, 1, 1]])
    assert soft_iou(hard)[0, 1] == 0.5


def test_a_chain_is_one_thing_and_its_largest_slot_holds_it() -> None:
    likeness = torch.eye(5)
    for i, j in ((0, 3), (3, 4)):
        likeness[i, j] = likeness[j, i] = 0.7
    likeness[1, 2] = likeness[2, 1] = 0.69
    size = torch.tensor([1.0, 9.0, 9.0, 2.0, 2.0])
    assert find_holders(likeness, size, threshold=0.7).tolist() == [3, 1, 2, 3, 3]
    assert find_holders(likeness, size, threshold=0.6).tolist() == [3, 1, 1, 3, 3]
    assert find_holders(likeness, size, threshold=0.71).tolist() == [0, 1, 2, 3, 4]


def union_find(likeness: Tensor, size: Tensor, threshold: float) -> list[int]:
    group = list(range(len(size)))
    for i in range(len(size)):
        for j in range(i):
            if likeness[i, j] >= threshold:
                old, new = group[i], group[j]
                group = [new if g == old else g for g in group]
    return [
        max((k for k in range(len(size)) if group[k] == g), key=lambda k: (float(size[k]), -k))
        for g in group
    ]


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), num_slots=st.integers(1, 9))
def test_holders_are_those_of_a_union_find(seed: int, num_slots: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    likeness = torch.rand(2, num_slots, num_slots, generator=generator)
    likeness = torch.maximum(likeness, likeness.mT)
    size = torch.randint(3, (2, num_slots), generator=generator).float()
    found = find_holders(likeness, size, threshold=0.9)
    for row in range(2):
        assert found[row].tolist() == union_find(likeness[row], size[row], 0.9)


def test_merged_slots_by_hand() -> None:
    attn = torch.tensor([[0.5, 0.4, 0.0], [0.4, 0.5, 0.0], [0.1, 0.1, 1.0]])[None, None]
    slots = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])[None, None]
    attn = attn * torch.tensor([0.8, 1.2, 1.0]).view(1, 1, 3, 1)  # sizes 0.72, 1.08 and 1.2
    merged = merge_slots(SlotOutput(slots, attn), threshold=0.5, by="attn")
    assert merged.slot_mask is not None and merged.slot_mask.tolist() == [[[False, True, True]]]
    expected = torch.tensor([[0.0, 0.0], [0.4, 0.6], [5.0, 5.0]])[None, None]
    torch.testing.assert_close(merged.slots, expected)
    torch.testing.assert_close(merged.attn[0, 0, 1], attn[0, 0, 0] + attn[0, 0, 1])
    assert merged.attn[0, 0, 0].tolist() == [0.0, 0.0, 0.0]


def test_parts_side_by_side_are_merged_by_slots_alone() -> None:
    attn = torch.eye(3)[None, None]
    slots = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]])[None, None]
    parts = SlotOutput(slots, attn)
    assert holders_of(parts, threshold=0.7, by="slots").tolist() == [[[0, 0, 2]]]
    assert holders_of(parts, threshold=0.7, by="attn").tolist() == [[[0, 1, 2]]]


@pytest.mark.parametrize("by", ["attn", "slots"])
@pytest.mark.parametrize("threshold", [0.42, 0.5])
def test_what_stays(by: str, threshold: float) -> None:
    before = output()
    after = merge_slots(before, threshold=threshold, by=by)  # type: ignore[arg-type]
    mask = after.slot_mask
    assert mask is not None and mask.any(-1).all() and not mask.all()
    assert after.slots.shape == before.slots.shape and mask.dtype == torch.bool
    torch.testing.assert_close(after.attn.sum(2), before.attn.sum(2))
    assert (after.slots[~mask] == 0).all() and (after.attn[~mask] == 0).all()
    # A slot that nothing was merged into is the very same, where it was.
    holders = holders_of(before, threshold=threshold, by=by)  # type: ignore[arg-type]
    members = torch.nn.functional.one_hot(holders, 5).sum(2)
    alone = members == 1
    assert alone.any() and torch.equal(after.slots[alone], before.slots[alone])
    assert after.queries is before.queries and after.aux is before.aux
    # Each frame by itself: a stream and a clip agree.
    here = before.map(lambda value: value[:, 1:])
    streamed = merge_slots(here, threshold=threshold, by=by)  # type: ignore[arg-type]
    torch.testing.assert_close(streamed.slots, after.slots[:, 1:])
    assert streamed.slot_mask is not None and streamed.slot_mask.equal(mask[:, 1:])


def test_permuted_slots_are_merged_alike() -> None:
    before, order = output(seed=4), torch.tensor([3, 0, 4, 1, 2])
    moved = before.map(lambda value: value[:, :, order])
    ours = merge_slots(before, threshold=0.35, by="attn")
    theirs = merge_slots(moved, threshold=0.35, by="attn")
    assert ours.slot_mask is not None and theirs.slot_mask is not None
    assert theirs.slot_mask.equal(ours.slot_mask[:, :, order])
    torch.testing.assert_close(theirs.slots, ours.slots[:, :, order])


def test_masks_follow_their_holders() -> None:
    masks = torch.rand(1, 1, 3, 4, 5)
    merged = merge_masks(masks, torch.tensor([[[2, 1, 2]]]))
    torch.testing.assert_close(merged[:, :, 2], masks[:, :, 0] + masks[:, :, 2])
    assert torch.equal(merged[:, :, 1], masks[:, :, 1]) and (merged[:, :, 0] == 0).all()


def test_an_empty_slot_stays_alone_and_as_it_is() -> None:
    attn = torch.zeros(1, 1, 3, 6)
    attn[:, :, 2] = 1
    slots = torch.randn(1, 1, 3, 4)
    merged = merge_slots(SlotOutput(slots, attn), threshold=0.7, by="attn")
    assert merged.slot_mask is not None and merged.slot_mask.all()
    assert torch.equal(merged.slots, slots)


def test_half_precision_and_bad_arguments() -> None:
    low = output().map(lambda value: value.bfloat16())
    merged = merge_slots(low, threshold=0.3, by="attn")
    assert merged.slots.dtype == merged.attn.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"in \(0,1\] to merge at, got 1.5"):
        merge_slots(output(), threshold=1.5, by="attn")
    with pytest.raises(ValueError, match="'attn' or 'slots', got 'masks'"):
        merge_slots(output(), threshold=0.5, by="masks")  # type: ignore[arg-type]
