"""T frames, K slots, H W image: pictures are read back pixel by pixel."""

import io

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ocrl import visualize
from ocrl.colours import slot_colours


def test_bytes_and_floats():
    assert visualize.to_uint8(torch.tensor([-1.0, 0.5, 2.0])).tolist() == [0, 128, 255]
    assert visualize.to_uint8(torch.tensor([7], dtype=torch.uint8)).tolist() == [7]


def test_overlay_paints_slots_leaves_the_ground_grey_and_outlines():
    ids = torch.zeros(1, 1, 6, dtype=torch.long)
    ids[..., 4:] = 1
    red = torch.tensor([200, 0, 0], dtype=torch.uint8)
    got = visualize.overlay(red.view(1, 3, 1, 1).expand(1, 3, 1, 6), ids, opacity=0.5)
    grey = 200 * 0.299
    # What was red has no hue: it is the slot's colour over grey.
    assert got[0, :, 0, 0].unique().tolist() == [round(grey * 0.6)]
    assert got[0, :, 0, 3].tolist() == [255, 255, 255]
    expected = slot_colours(ids)[1].float() * 0.5 + grey * 0.5
    assert (got[0, :, 0, 5].float() - expected).abs().max() <= 1
    assert visualize.overlay(torch.zeros(1, 3, 1, 6), ids, scale=3).shape == (1, 3, 3, 18)
    bright = visualize.overlay(torch.ones(1, 3, 1, 6), ids)
    assert bright[0, :, 0, 3].tolist() == [0, 0, 0]


def test_overlay_takes_colours():
    ids = torch.arange(2).view(1, 1, 2)
    colours = torch.tensor([[10, 20, 30], [40, 50, 60]], dtype=torch.uint8)
    got = visualize.overlay(torch.zeros(1, 3, 1, 2), ids, colours=colours, opacity=1.0)
    assert got[0, :, 0, 1].tolist() == [40, 50, 60]


def test_slots_show_what_their_mask_lets_through():
    video = torch.full((2, 3, 4, 4), 200, dtype=torch.uint8)
    masks = torch.zeros(2, 3, 2, 2)
    masks[:, 1] = 1.0
    pictures = visualize.slot_pictures(video, masks)
    assert pictures.shape == (3, 2, 3, 4, 4)
    assert pictures[1].unique().tolist() == [200]
    assert pictures[0].unique().tolist() == [24]
    parts = torch.full((2, 3, 3, 4, 4), 0.2)
    assert visualize.slot_pictures(video, masks, parts)[1].unique().tolist() == [51]
    textures = torch.full((2, 3, 3, 2, 2), 0.2)
    assert visualize.slot_pictures(video, masks, textures)[1].unique().tolist() == [200]


def test_strips_and_grids():
    pictures = torch.arange(3)[:, None, None, None].expand(3, 3, 2, 2).to(torch.uint8)
    row = visualize.strip(pictures, gap=1)
    assert row[0, 0].tolist() == [0, 0, 255, 1, 1, 255, 2, 2]
    assert visualize.strip(pictures, gap=0)[0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert visualize.grid([pictures, pictures], gap=1)[0, :, 0].tolist() == [0, 0, 255, 0, 0]


def test_clip_picture_has_a_row_for_everything():
    video, masks = torch.rand(5, 3, 8, 8), torch.rand(5, 4, 4, 4).softmax(1)
    ids = torch.zeros(5, 8, 8, dtype=torch.int32)
    plain = visualize.clip_picture(video, masks, num_frames=3)
    full = visualize.clip_picture(video, masks, recon=video, segmentation=ids, num_frames=3)
    # Rows are 48 pixels high, a gap of 4 below each and a line of 26 above.
    assert plain.shape[:2] == (3, 26 + 6 * 52) and full.shape[:2] == (3, 26 + 8 * 52)
    # The name "reconstruction" is the longest.
    assert full.shape[2] > plain.shape[2] > 3 * 52


@pytest.mark.parametrize(
    ("frames", "shown", "expected"),
    [(9, 3, [0, 4, 8]), (2, 8, [0, 1]), (1, 8, [0]), (100, 2, [0, 99])],
)
def test_spread(frames, shown, expected):
    assert visualize.spread(frames, shown) == expected


def test_png_and_gif_come_back():
    video = torch.randint(0, 256, (3, 3, 6, 5), dtype=torch.uint8)
    png = np.array(Image.open(io.BytesIO(visualize.to_png(video[0]))))
    assert np.array_equal(png, video[0].permute(1, 2, 0).numpy())
    with Image.open(io.BytesIO(visualize.to_gif(video, frames_per_second=10))) as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"], gif.info["loop"]) == (
            3,
            (5, 6),
            100,
            0,
        )


class TestMp4:
    def test_comes_back(self, tmp_path):
        video = torch.zeros(7, 3, 33, 48, dtype=torch.uint8)
        video[3:, 0] = 200
        visualize.write_mp4(tmp_path / "x.mp4", video, frames_per_second=12.5)
        with av.open(str(tmp_path / "x.mp4")) as container:
            assert container.streams.video[0].average_rate == 12.5
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert np.array(frames).shape == (7, 32, 48, 3)
        assert np.abs(frames[5][16, 24].astype(int) - [200, 0, 0]).max() < 12
        assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]

    def test_nothing_is_left_of_what_fails(self, tmp_path):
        with pytest.raises(ValueError, match="uint8"):
            visualize.write_mp4(tmp_path / "x.mp4", torch.zeros(2, 3, 4, 4), frames_per_second=8)
        with pytest.raises(OSError, match="No such file"):
            visualize.write_mp4(
                tmp_path / "no" / "x.mp4",
                torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
                frames_per_second=8,
            )
        assert list(tmp_path.iterdir()) == []
