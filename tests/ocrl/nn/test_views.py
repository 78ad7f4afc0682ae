import pytest
import torch

from ocrl.nn.views import fold_views, unfold_views


def test_views_become_images_and_come_back_in_order() -> None:
    frames = torch.rand(2, 3, 3, 4, 5)
    images, num_views = fold_views(frames, image_size=(4, 5))
    assert images.shape == (6, 3, 4, 5) and num_views == 3
    assert torch.equal(images[4], frames[1, 1])
    tokens = torch.arange(6 * 2).view(6, 2, 1)
    folded = unfold_views(tokens, num_views=3)
    assert folded.shape == (2, 6, 1)
    assert folded[1, :, 0].tolist() == [6, 7, 8, 9, 10, 11]


def test_a_single_view_is_left_alone() -> None:
    frames = torch.rand(2, 3, 4, 5)
    images, num_views = fold_views(frames, image_size=(4, 5))
    assert images is frames and num_views == 1


@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 4), (3, 4, 5), (1, 1, 1, 3, 4, 5), (2, 1, 4, 5), (2, 3, 4, 4, 5)]
)
def test_other_sizes_and_colours_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected frames \(B,3,4,5\)"):
        fold_views(torch.rand(shape), image_size=(4, 5))


def test_integer_frames_are_refused() -> None:
    with pytest.raises(ValueError, match=r"float frames in \[0,1\], got torch.uint8"):
        fold_views(torch.zeros(2, 3, 4, 5, dtype=torch.uint8), image_size=(4, 5))
