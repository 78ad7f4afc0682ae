"""K slots, H W image: what is written is found by its pixels."""

import torch

from ocrl import lettering


class TestLabelled:
    def tables(self, *, num_columns=3):
        rows = {
            "frame": torch.full((num_columns, 3, 40, 50), 200, dtype=torch.uint8),
            "what was foretold": torch.full((num_columns, 3, 40, 50), 90, dtype=torch.uint8),
        }
        return lettering.Table("clip 1", [f"+{n}" for n in range(num_columns)], rows)

    def test_rows_stand_beside_their_names_and_examples_apart(self):
        table = self.tables()
        one, two = lettering.labelled([table]), lettering.labelled([table, table])
        height = 26 + 2 * 44
        assert one.shape[1] == height and two.shape[1] == 2 * height
        margin = one.shape[2] - 3 * 54
        assert torch.equal(two[:, height:], one)
        for row, value in enumerate((200, 90)):
            top = 26 + row * 44
            assert one[:, top : top + 40, margin : margin + 50].unique().tolist() == [value]
            assert one[:, top : top + 40, 10 : margin - 10].float().std() > 10
        # Names keep off the edge of the picture.
        assert len(one[:, :, :9].flatten(1).unique(dim=1).T) == 1

    def test_examples_may_have_other_numbers_of_columns(self):
        wide = lettering.labelled([self.tables(num_columns=1), self.tables()])
        assert wide.shape[2] == lettering.labelled([self.tables()]).shape[2]

    def test_a_note_stands_below_and_is_not_cut_off(self):
        table = self.tables()
        plain = lettering.labelled([table])
        noted = lettering.labelled([table], note="what the colours of all the slots mean " * 4)
        below = noted[:, plain.shape[1] :].float()
        assert torch.equal(noted[:, : plain.shape[1]], plain)
        assert below.std() > 10
        assert below[..., -10:].std((1, 2)).max() == 0


def test_captions_stand_over_their_columns():
    video = torch.full((2, 3, 10, 100), 9, dtype=torch.uint8)
    got = lettering.captioned(video, ["a", ""])
    line = got[:, :, :-10].float().mean((0, 1, 2))
    assert torch.equal(got[:, :, -10:], video)
    assert line[:50].max() > line[50:].max()


class TestNumbered:
    def marks(self, ids, labels, *, scale=4):
        """The middles of what is written on grey, by the colour of the slots below."""
        height, width = ids.shape
        grey = torch.full((3, height * scale, width * scale), 128, dtype=torch.uint8)
        return (lettering.numbered(grey, ids, labels, scale=scale) != 128).any(0)

    def test_a_number_stands_in_its_region(self):
        ids = torch.zeros(32, 32, dtype=torch.int64)
        ids[2:12, 20:30] = 1
        marks = self.marks(ids, [0, 1])
        inside = marks[8:48, 80:120]
        assert inside.any() and marks.any()
        marks[8:48, 80:120] = False
        ys, xs = torch.nonzero(marks, as_tuple=True)
        # The ground's own number stands where there is most room for it.
        assert ys.min() > 50 and xs.max() - xs.min() < 20

    def test_slots_that_own_nothing_have_no_number(self):
        ids = torch.zeros(64, 64, dtype=torch.int64)
        alone = self.marks(ids, ["0"])
        assert torch.equal(self.marks(ids, ["0", "1", "2"]), alone)
        ids[10, 10] = 1
        assert torch.equal(self.marks(ids, ["0", "1"])[:100, :100], alone[:100, :100])

    def test_numbers_lie_beside_each_other(self):
        # Four small regions meet in one place.
        ids = torch.zeros(32, 32, dtype=torch.int64)
        for row, (y, x) in enumerate([(14, 14), (14, 17), (17, 14), (17, 17)], start=1):
            ids[y : y + 3, x : x + 3] = row
        together = int(self.marks(ids, ["", "8", "8", "8", "8"]).sum())
        ids[ids > 1] = 0
        alone = int(self.marks(ids, ["", "8"]).sum())
        assert together == 4 * alone


def test_marks_stand_where_things_are():
    grey = torch.full((3, 128, 128), 128, dtype=torch.uint8)
    places = torch.tensor([[0.25, 0.75], [torch.nan, torch.nan], [0.75, 0.25], [0.75, 0.25]])
    marks = (lettering.marked(grey, places, scale=2) != 128).any(0)
    assert marks[88:104, 24:40].any() and marks[24:40, 88:104].any()
    # The third and the last are in one place, and both are read.
    assert marks[:64].sum() > 1.5 * marks[64:].sum()
    assert not marks[:64, :64].any() and not marks[64:, 64:].any()
    assert torch.equal(lettering.marked(grey, places[1:2], scale=2), grey)


def test_captions_are_never_cut_off():
    video = torch.zeros(1, 3, 10, 90, dtype=torch.uint8)
    line = lettering.captioned(video, ["camera 3, held out", ""])[0, :, :-10].float()
    ink = (line - line[:, :1, -1:]).abs().sum((0, 1)) > 0
    assert ink[:45].any() and not ink[46:].any() and not ink[0]


def test_lines_are_no_wider_than_there_is_room():
    words = ["step 12", "action: move right", "reward +0.00", "return 10.00"]
    assert lettering.wrapped(words, 1000, size=12) == [" ".join(words)]
    assert lettering.wrapped(words, 120, size=12) == words
    assert lettering.wrapped([], 120, size=12) == []
    assert lettering.wrapped(["action: +0.50 -1.00"], 60, size=12) == ["action:", "+0.50", "-1.00"]
