"""The report is one page that needs nothing else, and says what the numbers say."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import av
import pytest
import torch

from ocrl.discovery import MODEL, DiscoveryResult, Example
from ocrl.metrics import get_protocol
from ocrl.report import (
    example_movie,
    example_picture,
    render_report,
    summary,
    write_report,
    write_results,
)

VALUES = {
    MODEL: {"video_fg_ari": 0.8, "video_mbo_i": 0.5, "fg_ari": 0.9, "mbo_i": 0.6},
    "grid": {"video_fg_ari": 0.6, "video_mbo_i": 0.2, "fg_ari": 0.7, "mbo_i": 0.3},
    "k-means": {"video_fg_ari": 0.4, "video_mbo_i": 0.3, "fg_ari": 0.5, "mbo_i": 0.4},
}


def make_result(**changes):
    video = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    ids = torch.randint(0, 3, (4, 16, 16))
    example = Example(
        video,
        torch.rand(4, 3, 8, 8).softmax(1),
        {method: ids for method in VALUES},
        {"scene": ids * 700},
        recon=torch.rand(4, 3, 16, 16),
    )
    table = {method: {"scene": dict(values)} for method, values in VALUES.items()}
    lists = {m: {"scene": {k: [v, math.nan, v] for k, v in s.items()}} for m, s in VALUES.items()}
    result = DiscoveryResult(
        get_protocol("ocrl"),
        "decoder",
        3,
        2,
        8,
        table,
        lists,
        lists,
        {"psnr": 25.0},
        {"slots_in_use": 2.5, "dead_slots": 0.0},
        [example],
        ["scene: 10% of the frames hold more <objects> than slots"],
    )
    return dataclasses.replace(result, **changes)


class Checker(HTMLParser):
    """Every tag that opens closes, and nothing points outside."""

    VOID = ("meta", "img", "br", "path", "line")

    def __init__(self):
        super().__init__()
        self.open, self.sources = [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert all(source.startswith("data:image/") for source in checker.sources)
    assert not re.search(r"https?:|<script|@import|url\(", page)
    return checker


def test_the_page_is_whole_and_self_contained(tmp_path):
    write_report(tmp_path / "r.html", make_result(), title="A <b>", details={"data": "x & y"})
    page = (tmp_path / "r.html").read_text()
    checker = check(page)
    # One GIF, and four frames of: frame, reconstruction, truth, three methods, three slots.
    assert len(checker.sources) == 1 + 4 * (6 + 3)
    assert "A &lt;b&gt;" in page
    assert "x &amp; y" in page
    assert "more &lt;objects&gt; than slots" in page
    assert "prefers-color-scheme: dark" in page
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_the_numbers_are_there_and_the_best_is_bold():
    page = render_report(make_result(), title="t", details={})
    for values in VALUES.values():
        for value in values.values():
            assert f">{value:.3f}</td>" in page
    bold = re.findall(r"<td class='best'>([0-9.]+)</td>", page)
    assert bold == ["0.800", "0.500", "0.900", "0.600"]
    assert "+0.200</span> against the better baseline, grid (0.600)" in page
    assert "25.0 dB" in page


@pytest.mark.parametrize(
    ("fg_ari", "mbo", "words"),
    [
        (0.8, 0.5, "beats both baselines in video FG-ARI and video mBO"),
        (0.8, 0.25, "beats both baselines in video FG-ARI only"),
        (0.5, 0.5, "beats both baselines in video mBO only"),
        (0.5, 0.25, "beats the baselines in neither"),
    ],
)
def test_the_verdict_needs_both(fg_ari, mbo, words):
    result = make_result()
    result.table[MODEL]["scene"].update(video_fg_ari=fg_ari, video_mbo_i=mbo)
    assert words in render_report(result, title="t", details={})


def test_without_ground_truth():
    result = make_result(table={}, per_clip={}, curves={})
    page = render_report(result, title="t", details={})
    check(page)
    assert "came without ground truth" in page
    assert "<h2>Scores" not in page
    assert summary(result)[0].strip() == "PSNR: 25.000"


def test_a_score_that_is_missing_is_a_dash():
    result = make_result()
    for presets in result.table.values():
        presets["scene"]["fg_ari"] = math.nan
    page = render_report(result, title="t", details={})
    assert ">nan" not in page
    assert page.count("<td>&ndash;</td>") == 3


def test_movie_has_a_column_for_each():
    names, movie = example_movie(make_result().examples[0])
    assert names == ["frame", "truth: scene", MODEL, "grid", "k-means"]
    assert movie.shape == (4, 3, 192, 5 * 192 + 4 * 4)


def test_example_picture_names_frames_truth_and_slots_of_each_clip():
    result = make_result()
    picture = example_picture(result, num_columns=3)
    num_clips = len(result.examples[:2])
    side = 128 + 4
    # Below is a line on colours.
    assert 0 < picture.shape[1] - num_clips * (26 + 3 * side) <= 3 * 16
    assert picture.shape[2] > 3 * side
    margin = picture.shape[2] - 3 * side
    for row in range(3):
        name = picture[:, 26 + row * side : 26 + row * side + 128, :margin].float()
        assert name.std() > 10


def test_examples_without_truth_have_a_picture_too():
    result = make_result()
    result.examples = [dataclasses.replace(example, segmentation={}) for example in result.examples]
    picture = example_picture(result, num_columns=3)
    assert picture.shape[1] < 2 * 26 + len(result.examples[:2]) * 2 * 132 + 3 * 16


def test_slots_have_the_colours_of_truth():
    result = make_result()
    example = result.examples[0]
    truth = example.segmentation["scene"]
    # Slots 2, 0 and 1 hold the background and the two objects.
    perfect = dataclasses.replace(
        example,
        video=torch.zeros_like(example.video),
        predictions={MODEL: (truth // 700 + 2) % 3},
    )
    names, movie = example_movie(perfect)
    where = [names.index(name) * (192 + 4) for name in ("truth: scene", MODEL)]
    there, own = (movie[0, :, :192, x : x + 192].float() for x in where)
    is_object = (there.amax(0) - there.amin(0) > 60) & (own.amin(0) < 255)
    assert is_object.any()
    # Three quarters of the colour over black.
    assert (there * 0.75 - own)[:, is_object].abs().max() <= 1


def test_all_results(tmp_path):
    written = write_results(tmp_path / "new", make_result(), title="t", details={"data": "d"})
    names = ["examples.png", "metrics.json", "overlay.mp4", "report.html"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    assert sorted(path.name for path in written) == names
    record = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert record["table"][MODEL]["scene"]["video_mbo_i"] == 0.5
    assert record["details"] == {"data": "d"}
    assert record["protocol"]["name"] == "ocrl"
    with av.open(str(tmp_path / "new" / "overlay.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 4


def test_without_examples_there_is_no_video(tmp_path):
    written = write_results(tmp_path, make_result(examples=[]), title="t", details={})
    assert [path.name for path in written] == ["metrics.json", "report.html"]


def test_summary_has_a_line_for_each_method():
    lines = summary(make_result())
    assert (
        lines[0].split(": ", 1)[1] == "video FG-ARI 0.800, video mBO 0.500, FG-ARI 0.900, mBO 0.600"
    )
    assert len(lines) == 3 + 1 + 1
