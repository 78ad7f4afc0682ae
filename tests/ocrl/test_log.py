import io
import math

import pytest
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ocrl.log import ProgressBar, SayOnce, TensorBoard


def read(directory):
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def gif(num_frames):
    frames = [Image.new("RGB", (6, 4), (40 * i, 0, 0)) for i in range(num_frames)]
    buffer = io.BytesIO()
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def test_scalars_come_back_and_those_that_are_not_finite_are_left_out(tmp_path):
    with TensorBoard(tmp_path) as board:
        board.scalars({"loss": 2.0, "broken": math.nan}, step=3)
    found = read(tmp_path)
    assert found.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(3, 2.0)]


def test_a_gif_comes_back_with_all_its_frames(tmp_path):
    with TensorBoard(tmp_path) as board:
        board.picture("masks", gif(5), step=7)
    (event,) = read(tmp_path).Images("masks")
    assert (event.step, event.width, event.height) == (7, 6, 4)
    with Image.open(io.BytesIO(event.encoded_image_string)) as opened:
        assert opened.n_frames == 5


def test_text_comes_back(tmp_path):
    with TensorBoard(tmp_path) as board:
        board.text("health", "- collapse", step=1)
    (event,) = read(tmp_path).Tensors("health")
    assert list(event.tensor_proto.string_val) == [b"- collapse"]


def test_a_resumed_run_hides_what_its_killed_part_had_logged_beyond(tmp_path):
    with TensorBoard(tmp_path) as board:
        for step in range(1, 7):
            board.scalars({"loss": 1.0}, step=step)
    with TensorBoard(tmp_path, start_step=4) as board:
        for step in range(4, 9):
            board.scalars({"loss": 2.0}, step=step)
    events = read(tmp_path).Scalars("loss")
    assert [event.step for event in events] == list(range(1, 9))
    assert [event.value for event in events] == [1.0] * 3 + [2.0] * 5


def test_a_silent_board_writes_no_file(tmp_path):
    with TensorBoard(tmp_path / "board", start_step=3, is_silent=True) as board:
        board.scalars({"loss": 1.0}, step=3)
        board.flush()
    assert not (tmp_path / "board").exists()


def bar_text(monkeypatch, clock, **arguments):
    monkeypatch.setattr("ocrl.log.time.monotonic", lambda: clock[0])
    out = io.StringIO()
    return out, ProgressBar("training", console=Console(file=out, width=200), **arguments)


def test_progress_in_a_pipe_is_a_line_now_and_then_with_the_time_left(monkeypatch):
    clock = [0.0]
    out, bar = bar_text(monkeypatch, clock, total=110, start=10)
    with bar:
        for step in range(11, 61):
            clock[0] += 1.0
            bar.update(step, note="loss 0.5")
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    # 40 steps took 40 s, so 60 more take 60 s.
    assert lines[1] == "training: 50/110, 60 s left, loss 0.5"


def test_progress_follows_the_clock_where_that_ends_a_job(monkeypatch):
    clock = [0.0]
    out, bar = bar_text(monkeypatch, clock, total=1000)
    with bar:
        clock[0] = 30.0
        bar.update(20, fraction=0.5)
    assert out.getvalue().startswith("training: 20/40, 30 s left")


def test_nothing_is_left_beyond_the_total(monkeypatch):
    clock = [0.0]
    out, bar = bar_text(monkeypatch, clock, total=100)
    with bar:
        clock[0] = 30.0
        bar.update(120)
    assert out.getvalue().startswith("training: 120/100, 0 s left")


@pytest.mark.parametrize("is_silent", [True, False])
def test_only_the_first_process_speaks(capsys, is_silent):
    with ProgressBar("training", total=1, is_silent=is_silent) as bar:
        bar.say("hello")
    assert ("hello" in capsys.readouterr().err) is not is_silent


def test_a_finding_is_said_once_whatever_its_numbers():
    told = []
    say = SayOnce(told.append)
    first = ["Only 1.6 of 7 slots are in use. Try fewer slots.", "codes: 3 unused"]
    say(first)
    say(["Only 1.2 of 7 slots are in use. Try a decoder.", "codes: 4 unused", "another"])
    assert told == [*first, "another"]
