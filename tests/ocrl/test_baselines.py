"""K cells or clusters."""

import pytest
import torch

from ocrl.baselines import grid_rows, grid_segmentation, kmeans, kmeans_segmentation


class TestGrid:
    @pytest.mark.parametrize(
        ("num_slots", "rows"),
        [
            (1, [1]),
            (2, [2]),
            (4, [2, 2]),
            (6, [3, 3]),
            (7, [2, 2, 3]),
            (8, [4, 4]),
            (10, [5, 5]),
            (11, [3, 4, 4]),
            (12, [4, 4, 4]),
            (16, [4, 4, 4, 4]),
        ],
    )
    def test_rows(self, num_slots, rows):
        assert grid_rows(num_slots) == rows

    @pytest.mark.parametrize("num_slots", range(1, 25))
    def test_as_many_cells_of_about_the_same_area(self, num_slots):
        for size in ((64, 64), (48, 96), (96, 48)):
            cells = grid_segmentation(num_slots, size)
            area = torch.bincount(cells.flatten())
            assert cells.shape == size
            assert len(area) == num_slots
            assert area.max() < 1.35 * area.min()

    def test_eight_cells(self):
        cells = grid_segmentation(8, (4, 8))
        assert cells.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6, 7, 7]] * 2
        assert grid_segmentation(8, (8, 4)).T.tolist() == cells.tolist()

    def test_no_cell(self):
        with pytest.raises(ValueError, match="num_slots=0"):
            grid_segmentation(0, (4, 4))


def coloured_clip():
    """Four vertical bars of plain colours, which stay where they are."""
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]])
    bars = torch.arange(32) // 8
    frame = colours[bars].T[:, None].expand(3, 32, 32).to(torch.uint8)
    return frame.expand(2, 5, 3, 32, 32), bars.expand(2, 5, 32, 32)


class TestKMeans:
    def test_finds_colours_and_keeps_ids_over_time(self):
        video, bars = coloured_clip()
        found = kmeans_segmentation(video, 4, position_weight=0.1)
        assert found.shape == bars.shape
        for sample, truth in zip(found, bars, strict=True):
            pairs = set(zip(sample.flatten().tolist(), truth.flatten().tolist(), strict=True))
            assert len(pairs) == 4

    def test_position_alone_where_there_is_no_colour(self):
        found = kmeans_segmentation(torch.zeros(1, 2, 3, 16, 16), 4)
        assert len(found.unique()) == 4
        assert torch.equal(found[:, 0], found[:, 1])

    def test_same_seed_same_clusters_and_floats_as_bytes(self):
        video = torch.randint(0, 256, (2, 3, 3, 16, 16), dtype=torch.uint8)
        found = kmeans_segmentation(video, 5)
        assert torch.equal(found, kmeans_segmentation(video, 5))
        assert torch.equal(found, kmeans_segmentation(video / 255.0, 5))

    def test_clips_do_not_touch(self):
        video = torch.rand(3, 2, 3, 8, 8)
        together = kmeans(video.flatten(2).transpose(1, 2), 4)
        other = video.clone()
        other[0] = 0.5
        assert torch.equal(together[1:], kmeans(other.flatten(2).transpose(1, 2), 4)[1:])

    def test_centres_are_means_of_what_is_nearest(self):
        torch.manual_seed(0)
        points = torch.cat([torch.randn(1, 50, 2) * 0.1 + centre for centre in (-3.0, 0.0, 3.0)], 1)
        centres = kmeans(points, 3)[0]
        expected = points.view(3, 50, 2).mean(1)
        torch.testing.assert_close(centres[centres[:, 0].argsort()], expected)

    def test_more_clusters_than_colours_is_no_error(self):
        assert kmeans(torch.zeros(1, 6, 2), 4).shape == (1, 4, 2)

    def test_needs_colour(self):
        with pytest.raises(ValueError, match=r"expected video \(B,T,3,H,W\)"):
            kmeans_segmentation(torch.zeros(1, 2, 1, 8, 8), 3)
