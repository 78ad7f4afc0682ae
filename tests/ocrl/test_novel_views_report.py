import json
import runpy
from dataclasses import replace
from pathlib import Path

import av
import torch

from ocrl.log import TensorBoard
from ocrl.novel_views import evaluate_views
from ocrl.novel_views_report import orbit_movie, summary, views_movie, write_views
from ocrl.types import Camera
from ocrl.views_monitor import ViewsMonitor

WORLD = runpy.run_path(str(Path(__file__).with_name("posed_world.py")))
posed_clip, told_model, SIZE = WORLD["posed_clip"], WORLD["told_model"], WORLD["SIZE"]


def result_of(clip=None, **options):
    clip = posed_clip() if clip is None else clip
    return evaluate_views(told_model(**options), [clip], num_examples=1, num_orbit=6)


def test_everything_is_written_and_no_link_leads_out(tmp_path):
    result = result_of(has_background=True)
    details = {"data": "<here>"}
    written = write_views(tmp_path / "new", result, title="Balls & cameras", details=details)
    names = ["metrics.json", "report.html", "views.mp4", "orbit.mp4"]
    assert [path.name for path in written] == names and all(path.is_file() for path in written)
    record = json.loads(written[0].read_text())
    assert record["segments"]["model"]["fg_ari_both"] == 1.0
    assert record["details"] == details and "examples" not in record
    text = written[1].read_text()
    assert "http" not in text and "&lt;here&gt;" in text and "Balls &amp; cameras" in text
    for words in ("held out", "k-means", "nearest view", "objects are", "slot 4", "no slot"):
        assert words in text
    assert text.count("data:image/gif") == 2
    for path, num_frames in ((written[2], 3), (written[3], 6)):
        with av.open(str(path)) as movie:
            assert sum(1 for _ in movie.decode(video=0)) == num_frames


def test_the_movie_has_a_column_for_each_camera_and_a_row_for_each_thing():
    example = result_of().examples[0]
    names, movie = views_movie(example)
    assert names == ["camera 1, seen", "camera 2, seen", "camera 3, held out"]
    scale = 8
    height, width = SIZE[0] * scale, SIZE[1] * scale
    assert movie.shape == (3, 3, 4 * height + 6, 3 * width + 4)
    # The third camera's frame, and under truth what was drawn of it.
    frame = movie[1, :, :height, 2 * (width + 2) :][:, ::scale, ::scale]
    assert torch.equal(frame, example.video[1, 2])
    drawn = movie[1, :, 2 * (height + 2) :, 2 * (width + 2) :][:, :height:scale, ::scale]
    assert torch.equal(drawn, example.video[1, 2])


def test_a_ball_has_one_colour_of_truth_in_all_cameras_and_frames():
    example = result_of().examples[0]
    height, width = SIZE[0] * 8, SIZE[1] * 8
    truth = views_movie(example)[1][:, :, height + 2 : 2 * height + 2]
    for number in (1, 2, 3):
        colours = set()
        for view in range(3):
            picture = truth[..., view * (width + 2) :][..., ::8, :width:8]
            where = example.segmentation[:, view] == number
            colours |= {tuple(colour) for colour in picture.movedim(1, -1)[where].tolist()}
        assert len(colours) == 1


def test_an_orbit_shows_every_slot_alone():
    example = result_of(has_background=True).examples[0]
    names, movie = orbit_movie(example)
    assert names == ["all", "slots", "slot 1", "slot 2", "slot 3", "slot 4", "no slot"]
    assert movie.shape == (6, 3, SIZE[0] * 8, 7 * (SIZE[1] * 8) + 6 * 2)
    column = SIZE[1] * 8 + 2
    second = movie[..., 3 * column : 3 * column + SIZE[1] * 8][..., ::8, ::8]
    # The second slot holds the green ball and nothing else.
    assert second[:, 1].max() == 250 and second[:, 0].max() <= 24 and second[:, 2].max() <= 24


def test_cameras_that_look_nowhere_together_have_no_orbit(tmp_path):
    clip = posed_clip()
    extrinsics = clip.camera.extrinsics.clone()
    extrinsics[..., :3, :3] = extrinsics[:1, :1, :1, :3, :3]
    result = result_of(replace(clip, camera=Camera(clip.camera.intrinsics, extrinsics)))
    assert orbit_movie(result.examples[0]) is None
    written = write_views(tmp_path, result, title="Apart", details={})
    assert [path.name for path in written] == ["metrics.json", "report.html", "views.mp4"]


def test_a_summary_names_every_method():
    lines = summary(result_of(has_background=True))
    assert any("model: FG-ARI 1.000, over time 1.000" in line for line in lines)
    assert any("nearest view: PSNR, seen" in line for line in lines)
    assert any(line.startswith("      100.0% of the pixels of no object") for line in lines)


def test_clips_without_truth_have_a_report_too(tmp_path):
    result = result_of(replace(posed_clip(), segmentation={}))
    write_views(tmp_path, result, title="Unknown", details={})
    text = (tmp_path / "report.html").read_text()
    assert "Objects across cameras" not in text and "what was drawn, its slots" in text


def test_the_monitor_measures_baselines_once_and_draws(tmp_path):
    said = []
    monitor = ViewsMonitor(
        lambda: iter([posed_clip()]),
        preset="entities",
        device=torch.device("cpu"),
        say=said.append,
    )
    model = told_model()
    with TensorBoard(tmp_path) as board:
        first = monitor(model, step=1, board=board)
        again = monitor(model, step=2, board=board)
    assert first == again and first["k-means/fg_ari_both"] > 0.9 and first["fg_ari_both"] == 1.0
    assert len(said) == len(set(said))
