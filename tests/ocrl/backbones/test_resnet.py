import pytest
import torch
from torch import nn

from ocrl.backbones.resnet import ResNet


def make(depth: int = 18, strides: tuple[int, ...] = (1, 2, 2, 1)) -> ResNet:
    torch.manual_seed(0)
    return ResNet(
        depth,
        widths=[8, 8, 16, 16],
        strides=strides,
        out_dim=12,
        image_size=[15, 16],
        position="linear",
    )


@pytest.mark.parametrize("strides", [(1, 2, 2, 1), (1, 2, 2, 2), (2, 1, 1, 1)])
def test_the_grid_is_the_shape_of_the_tokens(strides: tuple[int, ...]) -> None:
    backbone = make(strides=strides)
    tokens = backbone(torch.rand(2, 3, 15, 16))
    assert tokens.shape == (2, backbone.grid[0] * backbone.grid[1], 12)


@pytest.mark.parametrize(("depth", "num_layers"), [(18, 17), (34, 33)])
def test_depth_counts_convolutions(depth: int, num_layers: int) -> None:
    backbone = make(depth)
    kernels = [m.kernel_size for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    # The published count has a linear classifier more, and leaves the shortcuts out.
    assert kernels.count((3, 3)) == num_layers
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())


def test_parameters_of_the_published_widths() -> None:
    backbone = ResNet(
        34,
        widths=[64, 128, 256, 512],
        strides=[1, 2, 2, 2],
        out_dim=64,
        image_size=[32, 32],
        position="none",
    )
    assert backbone.grid == (4, 4)
    count = sum(p.numel() for p in (*backbone.stem.parameters(), *backbone.blocks.parameters()))
    # torchvision's resnet34 without classifier has 21,284,672, of which 9,408 in its 7x7 stem.
    assert count == 21_284_672 - 9_408 + 3 * 3 * 3 * 64


def test_a_sample_does_not_touch_another() -> None:
    backbone = make().train()
    frames = torch.rand(2, 3, 15, 16)
    changed = frames.clone()
    changed[0] = 0
    torch.testing.assert_close(backbone(frames)[1], backbone(changed)[1])


def test_views_are_more_tokens() -> None:
    backbone = make()
    frames = torch.rand(2, 2, 3, 15, 16)
    tokens = backbone(frames)
    torch.testing.assert_close(tokens[:, :16], backbone(frames[:, 0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 50}, r"one of \[18, 34\], got 50"),
        ({"widths": [8]}, "four widths and four strides"),
        ({"position": "sine"}, "got 'sine'"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "depth": 18,
        "widths": [8] * 4,
        "strides": [1] * 4,
        "out_dim": 4,
        "image_size": [8, 8],
        "position": "none",
    }
    with pytest.raises(ValueError, match=message):
        ResNet(**{**arguments, **change})  # type: ignore[arg-type]
