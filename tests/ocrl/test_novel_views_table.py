"""Models of posed views side by side: what each row shows, and from which seeds."""

import pytest

from ocrl.novel_views_table import markdown, read_record


def record(fg_ari, *, psnr=20.0, static=None, minutes=30.0):
    both = {"fg_ari": fg_ari, "fg_ari_both": fg_ari / 2, "mbo_both": 0.1}
    return {
        "details": {"encoder": "psb"},
        "training": {"steps": 1000, "minutes": minutes},
        **{"num_clips": 4, "num_frames": 32, "num_views": 5, "num_seen": 3},
        "segments": {
            "model": both,
            "attention": {"fg_ari": fg_ari + 0.1},
            "k-means": {"fg_ari": 0.6, "fg_ari_both": 0.5, "mbo_both": 0.4},
        },
        "pictures": {
            "model": {"psnr": psnr, "held_out_psnr": psnr - 1},
            "mean colour": {"psnr": 18.0, "held_out_psnr": 17.0},
            "nearest view": {"psnr": 16.0, "held_out_psnr": 15.0},
        },
        "separation": {} if static is None else {"static_explained": static},
    }


def rows_of(part):
    head, _, *rows = [line.strip("| ").split(" | ") for line in part.splitlines()]
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_means_over_seeds_stand_beside_the_baselines():
    models = {
        "psb": [record(0.4, static=0.5), record(0.6, psnr=22.0, static=0.7)],
        "savi": [record(0.2, minutes=29.6)],
    }
    said, segments, pictures, training = markdown(models).strip().split("\n\n")
    assert said == "4 clips, 32 moments of 5 cameras, of which the encoder saw 3:"
    found = {(row["model"], row["cut"]): row for row in rows_of(segments)}
    assert list(found) == [
        *(("psb", "decoder"), ("psb", "attention"), ("savi", "decoder"), ("savi", "attention")),
        ("k-means", "pixels"),
    ]
    decoder = found["psb", "decoder"]
    assert decoder["seeds"] == "2" and decoder["FG-ARI"] == "0.500 +- 0.141"
    assert decoder["over both"] == "0.250 +- 0.071" and decoder["over time"] == "-"
    assert found["psb", "attention"]["FG-ARI"] == "0.600 +- 0.141"
    assert found["savi", "attention"]["mBO"] == "-" and found["savi", "decoder"]["mBO"] == "0.100"
    assert found["k-means", "pixels"]["mBO"] == "0.400"
    drawn = {row["model"]: row for row in rows_of(pictures)}
    assert list(drawn) == ["psb", "savi", "mean colour", "nearest view"]
    assert drawn["psb"]["PSNR, held out"] == "20.00 +- 1.41"
    assert drawn["psb"]["background without a slot"] == "0.600 +- 0.141"
    assert drawn["savi"]["background without a slot"] == "-"
    assert drawn["nearest view"]["PSNR, seen"] == "16.00"
    cost = {row["model"]: row for row in rows_of(training)}
    assert cost["psb"]["steps"] == "1000 +- 0" and cost["savi"]["minutes"] == "30"
    assert cost["savi"]["MB"] == "-"


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(ValueError, match="expected models of posed views to set side by side, got"):
        markdown({})
    (tmp_path / "metrics.json").write_text('{"details": {}, "table": {}}')
    with pytest.raises(ValueError, match=r"expected details, segments, .* of slots of posed views"):
        read_record(tmp_path)
