"""The script as a user starts it, on a tiny untrained model of sprites."""

import json

import pytest

DATA = ("data.clip_length=4", "data.num_train_clips=6", "data.num_test_clips=2")
QUICK = (*DATA, "num_steps=20", "hidden_dim=8")


def test_probes_are_measured_and_written(workplace):
    options = ("checkpoint=run", "data.path=episodes", "matchings=[masks]", *QUICK)
    done = workplace.run("probe_slots", *options)
    assert done.returncode == 0, done.stderr
    out = workplace.output("probe_slots")
    record = json.loads((out / "metrics.json").read_text())
    assert set(record["table"]["masks"]) == {"trained", "random 1"}
    assert record["kinds"]["position"] == "number" and record["kinds"]["shape"] == "class"
    assert "step 7" in record["details"]["checkpoint"]
    assert "Probes of slots: sprites" in (out / "report.html").read_text()
    assert "color accuracy" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["checkpoint=run", "data.path=bare"], "object tables"),
        (["checkpoint=run", "data.path=episodes", "matchings=[luck]"], "luck"),
        (["checkpoint=run", "data.path=episodes", "+kinds.colour=class"], "colour"),
        (["data.path=episodes"], "expected checkpoint=PATH"),
    ],
)
def test_mistakes_end_in_one_sentence(workplace, options, words):
    workplace.assert_mistake("probe_slots", *QUICK, *options, words=words)
