"""Pictures of what a world model foretold."""

import pytest
import torch

from ocrl.horizon import HorizonResult, Rollout
from ocrl.horizon_report import rollout_movie, rollout_picture, write_results

H, SIZE, SCALE = 5, 8, 24


def result(*, has_recon=True):
    generator = torch.Generator().manual_seed(0)
    video, recon = torch.rand(2, H, 3, SIZE, SIZE, generator=generator)
    ids = torch.randint(3, (H, SIZE, SIZE), generator=generator)
    example = Rollout(video, recon if has_recon else None, ids)
    table = {"slot_error": {name: [0.1, 0.2] for name in ("prediction", "copy", "encoder")}}
    return HorizonResult((1, 5), 2, 4, table, [example, example])


@pytest.mark.parametrize("has_recon", [True, False])
def test_a_row_for_what_came_what_was_foretold_and_its_masks(has_recon):
    found = result(has_recon=has_recon)
    picture = rollout_picture(found)
    num_rows = 3 if has_recon else 2
    side = SIZE * SCALE
    high, wide = 26 + num_rows * (side + 4), 2 * (side + 4)
    assert picture.dtype == torch.uint8
    # Two clips, and below what the colours mean.
    assert 0 < picture.shape[1] - 2 * high <= 4 * 16
    margin = picture.shape[2] - wide
    for row in range(num_rows):
        top = 26 + row * (side + 4)
        assert picture[:, top : top + side, :margin].float().std() > 5
    video = found.examples[0].video
    # The horizons are steps 1 and 5: frames 0 and 4.
    for column, frame in ((margin, 0), (margin + side + 4, 4)):
        shown = picture[:, 26 : 26 + side, column : column + side]
        expected = (video[frame] * 255).round().to(torch.uint8)
        assert (shown[:, ::SCALE, ::SCALE].int() - expected.int()).abs().max() <= 1
    names, movie = rollout_movie(found.examples[0])
    assert len(names) == (3 if has_recon else 2) and movie.shape[0] == H


def test_files_are_written_with_examples_and_without(tmp_path):
    written = write_results(tmp_path / "some", result(), title="t", details={})
    names = {"metrics.json", "report.html", "rollout.mp4", "rollout.png"}
    assert {path.name for path in written} == names
    assert (tmp_path / "some/rollout.png").read_bytes()[:4] == b"\x89PNG"
    bare = result()
    bare.examples.clear()
    written = write_results(tmp_path / "none", bare, title="t", details={})
    assert {path.name for path in written} == {"metrics.json", "report.html"}
