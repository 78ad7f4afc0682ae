"""World models side by side: what stands in a cell, and which rows there are."""

import json

import pytest

from ocrl.horizon_table import markdown, read_record


def record(*, prediction, copy=(9.0, 9.0), slots="encoders/first", environment="reach", psnr=None):
    table = {
        "psnr": {"prediction": psnr or [20.04, 10.0], "copy": [5.0, 4.0], "encoder": [30.0, None]},
        "slot_error": {"prediction": list(prediction), "copy": list(copy), "encoder": [0.0, 0.0]},
    }
    details = {"environment": environment, "slots": slots, "dynamics": "graph"}
    return {"details": details, "horizons": [1, 10], "num_clips": 32, "table": table}


def rows_of(text):
    return {line.split(" | ")[0][2:]: line for line in text.splitlines() if line.startswith("| ")}


def test_means_over_seeds_and_the_largest_spread():
    seeds = [record(prediction=(1.0, 2.0)), record(prediction=(1.0, 4.0))]
    text = markdown({"graph": seeds, "other": [record(prediction=(3.0, None))]})
    assert text.startswith(
        "reach, 1, 10 steps ahead, 32 clips:\n\n| world model | seeds | slot error"
    )
    rows = rows_of(text)
    assert rows["graph"] == "| graph | 2 | 1.000 3.000 (+- 1.414) | 20.0 10.0 (+- 0.0) |"
    assert rows["other"] == "| other | 1 | 3.000 - | 20.0 10.0 |"
    assert rows["encoder (first)"] == "| encoder (first) |  | 0.000 0.000 | 30.0 - |"
    assert rows["copy (first)"] == "| copy (first) |  | 9.000 9.000 | 5.0 4.0 |"


def test_floor_and_ceiling_stand_once_for_each_choice_of_slots():
    one, same = record(prediction=(1.0, 1.0)), record(prediction=(2.0, 2.0))
    more = record(prediction=(3.0, 3.0), copy=(8.0, 8.0), slots="encoders/second")
    names = list(rows_of(markdown({"a": [one], "b": [same], "c": [more]})))
    floor = ["encoder (first)", "copy (first)", "a", "b", "encoder (second)", "copy (second)", "c"]
    assert names == ["world model", *floor]


def test_every_environment_has_a_table_of_its_own():
    apart = {"a": [record(prediction=(1.0, 1.0))]}
    apart["b"] = [record(prediction=(1.0, 1.0), environment="crafter")]
    text = markdown(apart)
    assert text.count("steps ahead") == 2 and text.index("reach,") < text.index("crafter,")


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(ValueError, match="expected world models to set side by side, got none"):
        markdown({})
    other = record(prediction=(1.0, 1.0)) | {"horizons": [1, 5]}
    with pytest.raises(ValueError, match=r"same horizons of reach, got \[1, 10\] and \[1, 5\]"):
        markdown({"a": [record(prediction=(1.0, 1.0)), other]})
    with pytest.raises(FileNotFoundError, match="that trains a world model writes"):
        read_record(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON in"):
        read_record(tmp_path)
    (tmp_path / "metrics.json").write_text('{"table": {}}')
    with pytest.raises(ValueError, match="expected details, horizons, table of a world model"):
        read_record(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps(record(prediction=(1.0, 1.0))))
    assert read_record(tmp_path)["horizons"] == [1, 10]
