"""Pieces of pages: nothing of a name is taken for HTML, files are whole or not there."""

import json
import math
from xml.etree import ElementTree

import pytest
import torch

from ocrl import page


def test_names_and_values_are_escaped():
    text = page.page("<b>", details={"<k>": "<v>"}, warnings=["<w> & more"], body=["<p>kept</p>"])
    assert "<p>kept</p>" in text
    assert not any(piece in text for piece in ("<b>", "<k>", "<v>", "<w>"))
    assert "&lt;w&gt; &amp; more" in text
    assert "&lt;n&gt;" in page.hint("<n>", 'says "x"') and "&quot;x&quot;" in page.hint("n", '"x"')
    assert page.meanings([("<n>", "<m>")]) == "<dl><dt>&lt;n&gt;</dt><dd>&lt;m&gt;</dd></dl>"


def test_a_row_of_one_cell_is_a_heading_over_all_columns():
    text = page.table(["a", "b", "c"], [["group"], ["1", "2", "3"]])
    assert "<tr class='group'><td colspan='3'>group</td></tr>" in text
    assert "<tr><td>1</td><td>2</td><td>3</td></tr>" in text


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (0.12345, 3, "0.123"),
        (12.0, 1, "12.0"),
        (math.nan, 3, "&ndash;"),
        (-math.inf, 3, "&ndash;"),
    ],
)
def test_a_figure_that_is_none_is_a_dash(value, digits, expected):
    assert page.number(value, digits) == expected


def test_a_movie_holds_its_frames_and_a_name_for_each_column():
    video = torch.randint(0, 256, (3, 3, 8, 24), dtype=torch.uint8)
    text = page.movie(["a", "<b>"], video, alt="x", frames_per_second=4, column_width=50)
    assert "data:image/gif;base64," in text and "width:100px" in text
    assert text.count("<span>") == 2 and "&lt;b&gt;" in text


def test_a_sheet_has_its_charts_beside_and_below_each_other():
    chart = "<svg viewBox='0 0 4 2'><svg/></svg>"
    text = page.sheet(dict.fromkeys(("a", "b", "<c>"), chart), legend={"&": "red"}, style=".x{}")
    root = ElementTree.fromstring(text)
    places = [(own.get("x"), own.get("y")) for own in root.findall("{*}svg")]
    assert places == [("20", "30.0"), ("440", "30.0"), ("20", "272.0")]
    assert [own.text for own in root.findall("{*}text")] == ["a", "b", "<c>", "&"]
    assert root.get("viewBox") == "0 0 860 524" and ".x{}" in root.find("{*}style").text
    one = ElementTree.fromstring(page.sheet({"a": chart}, legend={}, style=""))
    assert one.get("viewBox") == "0 0 440 262"


def test_records_are_written_whole(tmp_path):
    paths = page.write_record(tmp_path / "new", {"a": [1, 2]}, "<p>")
    assert [path.name for path in paths] == ["metrics.json", "report.html"]
    assert json.loads(paths[0].read_text()) == {"a": [1, 2]} and paths[1].read_text() == "<p>"
    with pytest.raises(ValueError, match="JSON"):
        page.write_record(tmp_path / "new", {"a": math.nan}, "other")
    assert paths[1].read_text() == "<p>"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "metrics.json",
        "report.html",
    ]


def test_a_file_is_whole_or_not_there(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        page.write_bytes(tmp_path / "taken", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    page.write_bytes(tmp_path / "free", b"x")
    assert (tmp_path / "free").read_bytes() == b"x"
