"""The script as a user starts it, on tiny untrained models."""

import json

import pytest

DATA = ("data.clip_length=4", "data.num_train_clips=6", "data.num_test_clips=2")
QUICK = (*DATA, "data.path=episodes", "num_steps=20", "hidden_dim=8", "window=8")


def test_codes_are_measured_and_written(workplace):
    done = workplace.run("measure_codes", "checkpoint=coded", *QUICK)
    assert done.returncode == 0, done.stderr
    record = json.loads((workplace.output("measure_codes") / "metrics.json").read_text())
    assert record["sizes"] == [4, 3]
    assert "shape" in record["values"] and "step 7" in record["details"]["checkpoint"]
    assert "modularity" in done.stderr
    page = (workplace.output("measure_codes") / "report.html").read_text()
    assert "Codes and factors: sprites" in page


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("checkpoint=run",), "got SAVi, whose slots have none"),
        (("checkpoint=coded", "data.path=bare"), "object tables"),
        (("checkpoint=coded", "mask_source=nose"), "mask_source"),
    ],
)
def test_mistakes_end_in_one_sentence(workplace, options, words):
    workplace.assert_mistake("measure_codes", *QUICK, *options, words=words)
