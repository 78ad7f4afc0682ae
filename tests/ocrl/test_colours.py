"""T frames, K slots, H W image: a thing has one colour in truth and slots."""

import torch

from ocrl.colours import GROUND, colour_objects, is_ground, palette, slot_colours
from ocrl.types import VOID_ID


def scene():
    """Truth (2,8,8): objects 7 and 9 over a background, a line of void; slots 2, 0 and 1 on it."""
    truth = torch.zeros(2, 8, 8, dtype=torch.int64)
    truth[:, 0:3, 0:3], truth[:, 4:7, 4:8], truth[:, 7] = 7, 9, VOID_ID
    ids = torch.full((2, 8, 8), 1)
    ids[:, 0:3, 0:2], ids[:, 4:8, 4:8] = 2, 0
    return truth, ids


def test_palette_is_stable_and_differs():
    many = palette(40)
    assert many.dtype == torch.uint8
    assert torch.equal(palette(7), many[:7])
    assert len({tuple(colour) for colour in many.tolist()}) == 40


def test_truth_keeps_colours_over_time():
    ids = torch.tensor([[[0, 9000], [VOID_ID, 7]], [[9000, 9000], [0, 0]]])
    colours = colour_objects(ids)
    assert torch.equal(colours[0, :, 0, 1], colours[1, :, 0, 0])
    assert torch.equal(colours[0, :, 0, 0], colours[1, :, 1, 0])
    seen = {tuple(c) for c in colours[0].flatten(1).T.tolist()}
    assert len(seen) == 4


def test_slots_have_the_colours_of_the_objects_that_they_cover():
    truth, ids = scene()
    drawn = colour_objects(truth)
    colours = slot_colours(ids, truth, num_slots=5)
    assert colours[2].tolist() == drawn[0, :, 0, 0].tolist()
    assert colours[0].tolist() == drawn[0, :, 5, 5].tolist()
    assert is_ground(colours).tolist() == [False, True, False, False, False]
    # Slots without an object have colours that stand for nothing else, of the readable ones.
    assert (colours[3:, None] == palette(8)[2:]).all(-1).any(1).all()
    assert len({tuple(colour) for colour in colours.tolist()}) == 5


def test_a_slot_that_hardly_touches_an_object_has_a_colour_of_its_own():
    truth = torch.zeros(1, 10, 10, dtype=torch.int64)
    truth[:, 0, 0] = 5
    ids = torch.zeros(1, 10, 10, dtype=torch.int64)
    ids[:, 0:4] = 1
    colours = slot_colours(ids, truth)
    assert is_ground(colours).tolist() == [True, False]
    assert colours[1].tolist() != colour_objects(truth)[0, :, 0, 0].tolist()


def test_void_is_no_reason_to_be_taken_for_an_object():
    truth, ids = scene()
    # Slot 3 covers the void and one pixel of object 9, of which slot 0 has the rest.
    ids[:, 7], ids[:, 6, 4] = 3, 3
    colours = slot_colours(ids, truth)
    assert colours[0].tolist() == colour_objects(truth)[0, :, 5, 5].tolist()
    assert not is_ground(colours)[3]


def test_without_truth_the_largest_slot_is_the_ground():
    ids = torch.zeros(1, 4, 4, dtype=torch.int64)
    ids[:, 1:] = 2
    colours = slot_colours(ids, num_slots=4)
    assert colours[2].tolist() == list(GROUND)
    assert torch.equal(colours[[0, 1, 3]], palette(4)[[0, 1, 3]])


def test_slots_without_an_object_differ_from_those_with_one():
    # Twelve objects take the best colours; slot 1 holds the third, slots 2 and 3 none.
    truth = torch.zeros(1, 20, 20, dtype=torch.int64)
    for number in range(12):
        truth[0, 0, number] = number + 1
    ids = torch.zeros(1, 20, 20, dtype=torch.int64)
    ids[0, 0, 2], ids[0, 10:12], ids[0, 12:14] = 1, 2, 3
    colours = slot_colours(ids, truth)
    assert colours[1].tolist() == palette(3)[2].tolist()
    assert is_ground(colours).tolist() == [True, False, False, False]
    others = torch.cdist(colours.double(), colours.double()) + 1000 * torch.eye(4)
    assert others.min() > 100
    assert not (colours[2:, None] == palette(12)).all(-1).any()
