"""Vision: any frame size, and the sizes of the published networks."""

from pathlib import Path

import pytest
import torch
import yaml

from ocrl import checkpoint
from ocrl.agents.vision import CNN, ImpalaResNet

FILES = sorted((Path(__file__).parents[2] / "configs/vision").glob("*.yaml"))


def built(path, frame_shape, **changes):
    torch.manual_seed(0)
    config = yaml.safe_load(path.read_text())
    del config["_partial_"]
    return checkpoint.build(config | {"frame_shape": frame_shape} | changes)


@pytest.mark.parametrize("size", [(7, 7), (36, 36), (40, 56), (64, 64), (128, 128)])
def test_a_cnn_fits_any_frame(size):
    module = built(FILES[0].with_stem("cnn"), (3, *size), channels=[4, 4, 4], out_dim=8)
    vector = module(torch.rand(2, 3, *size))
    assert vector.shape == (2, 8) == (2, module.out_dim)
    assert min(module.grid) >= 7
    # It sees every pixel, once no ReLU hides any.
    for parameter in module.parameters():
        parameter.data.abs_()
    frames = torch.rand(1, 3, *size, requires_grad=True)
    module(frames).sum().backward()
    assert (frames.grad > 0).all()


def test_at_64_pixels_it_has_the_kernels_and_strides_of_the_paper():
    module = built(FILES[0].with_stem("cnn"), (3, 64, 64))
    convolutions = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.kernel_size[0] for c in convolutions] == [8, 4, 3]
    assert [c.stride[0] for c in convolutions] == [4, 2, 1]
    assert module.grid == (8, 8)


def test_the_resnet_has_about_the_four_million_weights_of_the_strong_crafter_agent():
    module = built(FILES[0].with_stem("impala_resnet"), (3, 64, 64))
    assert module.out_dim == 1024
    assert 3.7e6 < sum(p.numel() for p in module.parameters()) < 4.3e6
    sizes = {"num_blocks": 1, "hidden_dim": 8, "out_dim": 8, "precision": 32}
    small = ImpalaResNet((3, 20, 24), channels=[4, 4, 4], **sizes)
    vector = small(torch.rand(2, 3, 20, 24))
    (vector * torch.randn(2, 8)).sum().backward()
    assert vector.shape == (2, 8)
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_mixed_precision_is_close_and_ends_in_float32(path):
    frames = torch.rand(2, 3, 32, 32)
    plain, mixed = (built(path, (3, 32, 32), precision=p)(frames) for p in (32, "bf16-mixed"))
    assert mixed.dtype == torch.float32
    assert 0 < (mixed - plain).abs().max() < 0.1 * plain.abs().max()


def test_impossible_frames_are_refused():
    sizes = {"num_blocks": 1, "hidden_dim": 8, "out_dim": 8, "precision": 32}
    with pytest.raises(ValueError, match="at least 8 pixels a side for 3 stages, got 7x7"):
        ImpalaResNet((3, 7, 7), channels=[4, 4, 4], **sizes)
    with pytest.raises(ValueError, match="one stride per convolution"):
        CNN((3, 64, 64), channels=[4, 4], strides=[2], min_grid=7, out_dim=8, precision=32)
    with pytest.raises(ValueError, match="32 or bf16-mixed, got 16"):
        built(FILES[0], (3, 64, 64), precision=16)
