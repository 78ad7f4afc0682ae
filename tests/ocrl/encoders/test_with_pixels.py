import pytest
import torch

from ocrl.backbones.cnn import CNN
from ocrl.encoders.with_pixels import WithPixels


def make(image_size=(16, 24)) -> WithPixels:
    torch.manual_seed(0)
    return WithPixels(
        CNN([4], kernel_size=3, strides=[4], out_dim=5, image_size=image_size, position="linear")
    )


def test_tokens_stay_and_their_ends_are_the_frame() -> None:
    backbone, frames = make(), torch.rand(2, 3, 16, 24)
    tokens = backbone(frames)
    assert tokens.shape == (2, 24, 5 + 48) and backbone.out_dim == 53
    assert torch.equal(tokens[..., :5], backbone.backbone(frames))
    assert torch.equal(backbone.frames(tokens[..., 5:]), frames)
    # The second token of the second row of cells.
    assert torch.equal(tokens[0, 7, 5:].view(3, 4, 4), frames[0, :, 4:8, 4:8])


def test_a_grid_that_does_not_divide_the_frame_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grid divides them, got frames \(18, 24\) .* CNN"):
        make(image_size=(18, 24))
