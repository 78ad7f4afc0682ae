"""Objects get the slot that covers them, frame by frame, and keep their properties."""

import pytest
import torch

from ocrl.inspection.object_slots import (
    LabelledClip,
    gather,
    label_clips,
    match_by_masks,
    object_factors,
    overlaps,
)
from ocrl.interfaces import Decoder
from ocrl.types import Clip, DecoderOutput, SlotOutput

# Two frames of 2 x 4 pixels; object 7 is on the left, object 9 on the right and gone at the end.
SEGMENTATION = torch.tensor(
    [
        [[7, 7, 0, 9], [7, 7, 0, 9]],
        [[0, 7, 7, 0], [0, 7, 7, 0]],
    ]
)
SEGMENTS = torch.tensor(
    [
        [[2, 2, 0, 1], [2, 0, 0, 1]],
        [[0, 1, 1, 0], [0, 1, 1, 0]],
    ]
)


class Painter(Decoder):
    """Masks that are the segments above, whatever the slots."""

    space = "pixels"

    def forward(self, slots, target=None, *, attn=None):
        masks = torch.nn.functional.one_hot(SEGMENTS[None], 3).permute(0, 1, 4, 2, 3).float()
        assert target is not None and target.dtype == torch.float32
        return DecoderOutput(target, masks.expand(len(slots), -1, -1, -1, -1))


class Model(torch.nn.Module):
    def __init__(self, *, codes=False):
        super().__init__()
        self.encoder = torch.nn.Module()
        self.encoder.backbone = torch.nn.Module()
        self.encoder.backbone.grid = (2, 4)
        self.decoder = Painter()
        self.codes = codes

    def encode(self, clip):
        shape = (clip.batch_size, 2, 3)
        slots = torch.arange(clip.batch_size * 6).float().view(*shape, 1) * torch.ones(5)
        attn = torch.nn.functional.one_hot(SEGMENTS.flatten(1), 3).mT[None].float()
        codes = slots[..., :1].long() if self.codes else None
        return SlotOutput(slots, attn.expand(clip.batch_size, -1, -1, -1), codes=codes)


def make_clip():
    ids = torch.tensor([[[9, 7, 0], [7, 0, 0]]]).int()
    return Clip(
        torch.zeros(1, 2, 3, 2, 4, dtype=torch.uint8),
        torch.tensor([[True, False]]),
        segmentation={"entities": SEGMENTATION[None].int()},
        properties={
            "id": ids,
            "category": torch.tensor([[[1, 4, 0], [4, 0, 0]]]).int(),
            "position": torch.tensor(
                [[[[0.9, 0.5], [0.2, 0.5], [0, 0]], [[0.5, 0.5], [0, 0], [0, 0]]]]
            ),
            "attributes": torch.tensor(
                [[[[5.0, 1], [6, 0.25], [0, 0]], [[6, 0.25], [0, 0], [0, 0]]]]
            ),
        },
    )


def test_overlaps_are_intersection_over_union():
    area, iou = overlaps(SEGMENTATION, SEGMENTS, ids=torch.tensor([7, 9]), num_slots=3)
    assert area.tolist() == [[4, 2], [4, 0]]
    expected = torch.tensor([[[1 / 6, 0, 3 / 4], [0, 1, 0]], [[0, 1, 0], [0, 0, 0]]])
    torch.testing.assert_close(iou, expected)


@pytest.mark.parametrize("source", ["decoder", "attn"])
def test_objects_find_their_slots(source):
    (clip,) = label_clips(
        Model(codes=True), [make_clip()], attribute_names=["colour", "size"], mask_source=source
    )
    assert clip.is_seen.tolist() == [[True, True], [True, False]]
    match = match_by_masks(clip)
    assert match.tolist() == [[2, 1], [1, -1]]
    rows = gather([clip], [match])
    assert rows.slots[:, 0].tolist() == [2, 1, 4]
    assert rows.codes is not None and rows.codes.tolist() == [[2], [1], [4]]
    assert rows.factors["colour"].tolist() == [[6], [5], [6]]
    assert rows.factors["size"].tolist() == [[0.25], [1], [0.25]]
    assert rows.factors["category"].tolist() == [[4], [1], [4]]
    torch.testing.assert_close(rows.factors["position"][1], torch.tensor([0.9, 0.5]))
    torch.testing.assert_close(rows.overlap, torch.tensor([0.75, 1, 1]))


def test_an_object_without_a_slot_is_a_row_that_says_so():
    overlap = torch.tensor([[[0.5, 0.4], [0.6, 0.0], [0.0, 0.3]]])
    clip = LabelledClip(
        torch.ones(1, 2, 4), overlap, torch.ones(1, 3, dtype=torch.bool), {"x": torch.rand(1, 3, 1)}
    )
    # 0.4 + 0.6 beats 0.6 + 0.3; the third object is one too many.
    assert match_by_masks(clip).tolist() == [[1, 0, -1]]
    rows = gather([clip], [match_by_masks(clip)])
    assert rows.is_matched.tolist() == [True, True, False]
    assert rows.slots[2].tolist() == [0, 0, 0, 0] and rows.overlap[2] == 0
    assert len(rows.factors["x"]) == 3 and len(rows.matched().slots) == 2
    assert rows.matched().is_matched.all() and rows.codes is None


def test_what_is_missing_is_named():
    clip = make_clip()
    with pytest.raises(ValueError, match="one per column"):
        object_factors(clip, ["colour"])
    bare = Clip(clip.video, clip.is_first)
    with pytest.raises(ValueError, match=r"object tables and the segmentation 'entities'"):
        object_factors(bare, [])
    with pytest.raises(ValueError, match="mask_source"):
        label_clips(Model(), [clip], attribute_names=["a", "b"], mask_source="nose")
    with pytest.raises(ValueError, match="at least one object"):
        label_clips(Model(), [], attribute_names=[])
