"""Cells and tables in Markdown; records of another kind are refused."""

import math

import pytest

from ocrl.tables import markdown_table, mean_and_spread, read_record


def test_a_table_has_a_line_for_each_row():
    text = markdown_table([["a", "b"], ["1", "2"], ["3", "4"]])
    assert text == "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |"


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        ([1.0], "1.00"),
        ([1.0, 2.0, 3.0], "2.00 +- 1.00"),
        ([1.0, None, math.nan], "1.00"),
        ([None, math.inf], "-"),
        ([], "-"),
    ],
)
def test_a_cell_has_the_mean_of_what_is_known(values, cell):
    assert mean_and_spread(values, digits=2) == cell


def test_a_record_is_read_or_refused_in_words(tmp_path):
    parts = {"parts": ("table", "details"), "what": "a thing"}
    with pytest.raises(FileNotFoundError, match="the script that trains a thing writes"):
        read_record(tmp_path, **parts)
    for text, said in (
        ("{", "expected JSON in"),
        ("[1]", "expected table, details of a thing in"),
        ('{"table": 1}', "expected table, details of a thing in"),
    ):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            read_record(tmp_path, **parts)
    (tmp_path / "metrics.json").write_text('{"table": 1, "details": {}, "more": 2}')
    assert read_record(tmp_path, **parts) == {"table": 1, "details": {}, "more": 2}
