import pytest
import torch
from torch.nn import functional

from ocrl.backbones.cnn import CNN


def make(
    strides: tuple[int, ...] = (2, 1), size: tuple[int, int] = (16, 12), position: str = "linear"
) -> CNN:
    torch.manual_seed(0)
    return CNN(
        [8] * len(strides),
        kernel_size=5,
        strides=strides,
        out_dim=10,
        image_size=size,
        position=position,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("strides", [(1,), (2, 2), (2, 1, 2)])
@pytest.mark.parametrize("size", [(16, 12), (15, 9)])
def test_the_grid_is_the_shape_of_the_tokens(
    strides: tuple[int, ...], size: tuple[int, int]
) -> None:
    backbone = make(strides, size)
    tokens = backbone(torch.rand(2, 3, *size))
    assert tokens.shape == (2, backbone.grid[0] * backbone.grid[1], backbone.out_dim)
    assert backbone.image_size == size


def test_tokens_by_hand() -> None:
    backbone = make()
    frames = torch.rand(2, 3, 16, 12)
    first, second = backbone.convolutions[0], backbone.convolutions[2]
    features = functional.conv2d(frames, first.weight, first.bias, 2, 2).relu()
    features = functional.conv2d(features, second.weight, second.bias, 1, 2).relu()
    tokens = features.flatten(2).transpose(1, 2) + backbone.position.embedding()
    torch.testing.assert_close(backbone(frames), backbone.head(tokens))


def test_without_position_tokens_move_with_the_frame() -> None:
    backbone = make((1,), position="none")
    frames = torch.rand(1, 3, 16, 12)
    tokens = backbone(frames).unflatten(1, backbone.grid)
    moved = backbone(frames.roll(3, dims=-1)).unflatten(1, backbone.grid)
    torch.testing.assert_close(tokens[:, :, 2:-5], moved[:, :, 5:-2])
    placed = make((1,)).train()
    tokens = placed(frames).unflatten(1, placed.grid)
    moved = placed(frames.roll(3, dims=-1)).unflatten(1, placed.grid)
    assert not torch.allclose(tokens[:, :, 2:-5], moved[:, :, 5:-2], atol=1e-3)


def test_views_are_more_tokens() -> None:
    backbone = make()
    frames = torch.rand(2, 3, 3, 16, 12)
    tokens = backbone(frames)
    assert tokens.shape == (2, 3 * 48, 10)
    torch.testing.assert_close(tokens[:, 48:96], backbone(frames[:, 1]))


def test_channels_last_all_the_way() -> None:
    backbone = make()
    weight = backbone.convolutions[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    strides = []
    backbone.convolutions.register_forward_hook(
        lambda module, inputs, output: strides.append(output.stride(1))
    )
    backbone(torch.rand(2, 3, 16, 12))
    assert strides == [1]


def test_other_frames_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected frames \(B,3,16,12\)"):
        make()(torch.rand(2, 3, 12, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": [1]}, "one stride per convolution"),
        ({"channels": [], "strides": []}, "one stride per convolution"),
        ({"kernel_size": 4}, "odd, got 4"),
        ({"position": "sine"}, "got 'sine'"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "channels": [8, 8],
        "kernel_size": 3,
        "strides": [1, 1],
        "out_dim": 4,
        "image_size": [8, 8],
        "position": "none",
    }
    with pytest.raises(ValueError, match=message):
        CNN(**{**arguments, **change})  # type: ignore[arg-type]
