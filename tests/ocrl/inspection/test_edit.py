"""Edits change the slots they name and nothing else, and attention goes with them."""

import pytest
import torch

from ocrl.inspection.edit import Edit, apply_edits, coded, draw, parse_edit, scenes_of
from ocrl.inspection.edit_strip import describe_scene, edit_picture
from ocrl.interfaces import Decoder, SlotCodes
from ocrl.types import DecoderOutput, SlotOutput


class Codes(SlotCodes):
    """Three groups of sizes 4, 3, 2; a slot is its codes and its coordinates."""

    code_sizes = (4, 3, 2)

    def slots_of(self, codes, coordinates=None):
        assert coordinates is not None
        return torch.cat([codes.float(), coordinates], -1)


class Tiles(Decoder):
    """Every slot is one colour, drawn where its attention is, as the palette does."""

    space = "pixels"

    def forward(self, slots, target=None, *, attn=None):
        shares = attn.unflatten(-1, (2, 2))
        recon = torch.einsum("btkhw,btkc->btchw", shares, slots[..., :3])
        return DecoderOutput(recon, shares)


class Blind(Tiles):
    space = "features"


class Sketch(Blind):
    def depict(self, slots, *, attn=None):
        return torch.full((1, 1, 3, 8, 8), 0.25)


def encode(num_frames=3, num_slots=3, seed=0, *, has_codes=True):
    generator = torch.Generator().manual_seed(seed)
    attn = torch.rand(1, num_frames, num_slots, 4, generator=generator).softmax(2)
    coordinates = torch.rand(1, num_frames, num_slots, 2, generator=generator)
    codes = torch.randint(0, 2, (1, num_frames, num_slots, 3), generator=generator)
    slots = Codes().slots_of(codes, coordinates)
    aux = {"coordinates": coordinates} if has_codes else {}
    return SlotOutput(slots, attn, codes=codes if has_codes else None, aux=aux)


def edited(*texts, scenes=None, **options):
    scenes = scenes or scenes_of(encode())
    edits = [parse_edit(text) for text in texts]
    return scenes, apply_edits(scenes, edits, encoder=Codes(), **options)


def assert_sums_to_one(scene):
    torch.testing.assert_close(scene.attn.sum(0), torch.ones(scene.attn.shape[1]))
    assert (scene.attn >= 0).all()


def test_edits_are_read_from_words():
    assert parse_edit("swap 2@0 5@3") == Edit("swap", 2, 0, 5, 3)
    assert parse_edit(" copy 2@0  new@3 ") == Edit("copy", 2, 0, -1, 3)
    assert parse_edit("drop 12@7") == Edit("drop", 12, 7)
    assert parse_edit("code 2@0 1:7") == Edit("code", 2, 0, group=1, code=7)
    for wrong in ("", "swap 2@0", "swap new@0 1@1", "drop -1@0", "code 2@0 1", "paint 1@1"):
        with pytest.raises(ValueError, match="expected an edit like swap"):
            parse_edit(wrong)


def test_a_copy_takes_its_attention_and_the_others_share_the_rest():
    before, after = edited("copy 1@0 2@2")
    own = before[0].attn[1]
    scene = after[2]
    torch.testing.assert_close(scene.slots[2], before[0].slots[1])
    torch.testing.assert_close(scene.attn[2], own)
    rest = before[2].attn[:2] / before[2].attn[:2].sum(0) * (1 - own)
    torch.testing.assert_close(scene.attn[:2], rest)
    assert torch.equal(scene.codes[2], before[0].codes[1])
    assert torch.equal(scene.coordinates[2], before[0].coordinates[1])
    assert torch.equal(scene.slots[:2], before[2].slots[:2])
    assert after[0] is before[0] and after[1] is before[1]
    assert_sums_to_one(scene)


def test_a_new_slot_gets_a_new_number():
    before, after = edited("copy 1@0 new@2", "drop 3@2")
    _, grown = edited("copy 1@0 new@2")
    assert grown[2].labels == (0, 1, 2, 3)
    assert torch.equal(grown[2].slots[3], before[0].slots[1])
    torch.testing.assert_close(grown[2].attn[3], before[0].attn[1])
    assert_sums_to_one(grown[2])
    # Dropping it again leaves the others as they were.
    torch.testing.assert_close(after[2].attn, before[2].attn)
    assert torch.equal(after[2].slots, before[2].slots)


def test_a_swap_between_frames_is_two_copies():
    before, after = edited("swap 0@0 2@1")
    torch.testing.assert_close(after[1].slots[2], before[0].slots[0])
    torch.testing.assert_close(after[0].slots[0], before[1].slots[2])
    torch.testing.assert_close(after[1].attn[2], before[0].attn[0])
    torch.testing.assert_close(after[0].attn[0], before[1].attn[2])
    assert_sums_to_one(after[0])
    assert_sums_to_one(after[1])
    assert after[2] is before[2]


def test_a_swap_within_a_frame_draws_the_same_unless_attention_stays():
    before, after = edited("swap 0@0 2@0")
    frame = torch.zeros(3, 2, 2)
    same, different = (draw(Tiles(), x[0], frame=frame)[0] for x in (after, before))
    torch.testing.assert_close(same, different)
    assert torch.equal(after[0].slots, before[0].slots[[2, 1, 0]])
    _, stayed = edited("swap 0@0 2@0", moves_attention=False)
    assert torch.equal(stayed[0].attn, before[0].attn)
    assert torch.equal(stayed[0].slots, before[0].slots[[2, 1, 0]])


def test_attention_can_stay():
    before, after = edited("copy 1@0 2@2", moves_attention=False)
    assert torch.equal(after[2].attn, before[2].attn)
    assert torch.equal(after[2].slots[2], before[0].slots[1])


def test_a_dropped_slot_leaves_its_place_to_the_others():
    before, after = edited("drop 1@1")
    assert after[1].labels == (0, 2)
    expected = before[1].attn[[0, 2]] / before[1].attn[[0, 2]].sum(0)
    torch.testing.assert_close(after[1].attn, expected)
    assert torch.equal(after[1].codes, before[1].codes[[0, 2]])
    # Numbers stay: the slot that was 2 still is.
    _, twice = edited("drop 1@1", "drop 2@1")
    assert twice[1].labels == (0,)
    torch.testing.assert_close(twice[1].attn, torch.ones(1, 4))


def test_where_nobody_else_saw_anything_all_share():
    encoded = encode()
    encoded.attn[0, 0] = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    _, after = edited("drop 0@0", scenes=scenes_of(encoded))
    torch.testing.assert_close(after[0].attn, torch.full((2, 4), 0.5))


def test_a_code_changes_one_slot():
    before, after = edited("code 1@2 0:3")
    assert after[2].codes[1, 0] == 3 and after[2].slots[1, 0] == 3
    changed = (after[2].slots != before[2].slots).nonzero().tolist()
    assert changed == [[1, 0]]
    assert torch.equal(after[2].attn, before[2].attn)
    assert before[2].codes[1, 0] != 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("drop 9@0", r"slot of frame 0 among 0, 1, 2, got 9"),
        ("drop 0@7", r"a frame in \[0, 3\), got 7"),
        ("copy 0@0 1@5", r"a frame in \[0, 3\), got 5"),
        ("swap 0@0 8@1", r"slot of frame 1 among 0, 1, 2, got 8"),
        ("code 0@0 3:0", r"a code group in \[0, 3\), got 3"),
        ("code 0@0 1:3", r"a code of group 1 in \[0, 3\), got 3"),
    ],
)
def test_what_does_not_exist_is_named(text, words):
    with pytest.raises(ValueError, match=words):
        edited(text)


def test_more_mistakes():
    with pytest.raises(ValueError, match="keep a slot"):
        edited("drop 0@0", "drop 1@0", "drop 2@0")
    with pytest.raises(ValueError, match="slots have codes, such as encoder=vq_sa, got Identity"):
        coded(torch.nn.Identity())
    with pytest.raises(ValueError, match="got Blind, which makes features"):
        draw(Blind(), scenes_of(encode())[0], frame=torch.zeros(3, 2, 2))


def test_drawing_fits_the_frame():
    scene = scenes_of(encode())[0]
    picture, masks = draw(Tiles(), scene, frame=torch.zeros(3, 6, 6))
    assert picture.shape == (3, 6, 6) and masks.shape == (3, 2, 2)
    picture, _ = draw(Sketch(), scene, frame=torch.zeros(3, 6, 6))
    torch.testing.assert_close(picture, torch.full((3, 6, 6), 0.25))


def test_the_strip_has_a_row_for_each_stage():
    video = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    before, after = edited("drop 1@1")
    looked = edit_picture(Tiles(), video, before, before, frames=[0, 1, 2])
    shown = edit_picture(Tiles(), video, before, after, frames=[1])
    tile = 160 + 4
    # Below the rows is what colours and numbers mean.
    assert 0 < looked.shape[1] - (26 + 3 * tile) < 80
    assert shown.shape[1] > 26 + 5 * tile
    margin = shown.shape[2] - tile

    def row(picture, index):
        top = 26 + index * tile
        return picture[:, top : top + 160, margin : margin + 160]

    assert (row(shown, 0) == 0).all()
    drawn = draw(Tiles(), after[1], frame=torch.zeros(3, 8, 8))[0]
    expected = (drawn * 255).round().to(torch.uint8).repeat_interleave(20, 1)
    assert torch.equal(row(shown, 3), expected.repeat_interleave(20, 2))
    assert not torch.equal(row(shown, 1), row(shown, 3))


def test_a_scene_in_words():
    assert describe_scene(scenes_of(encode(has_codes=False))[0], frame=4) == (
        "frame 4: slots 0, 1, 2"
    )
    assert "codes 0 (" in describe_scene(scenes_of(encode())[0], frame=4)
