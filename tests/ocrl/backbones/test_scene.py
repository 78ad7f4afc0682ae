import numpy as np
import pytest
import torch
from torch import nn

from ocrl.backbones.scene import SceneBackbone
from ocrl.envs.scenes_camera import look_at, pinhole
from ocrl.nn.rays import points_on_plane
from ocrl.nn.triangulation import token_rays
from ocrl.types import Camera


def make(**changes):
    arguments = dict(
        strides=[2, 2],
        kernel_size=3,
        num_residual=0,
        num_octaves=3,
        first_octave=-3,
        image_size=[16, 24],
        out_dim=12,
        num_layers=1,
        num_heads=2,
        mlp_dim=16,
    )
    torch.manual_seed(0)
    return SceneBackbone([8, 8], **(arguments | changes)).eval()


def cameras(batch_size=2, num_views=3):
    poses = [
        look_at(30.0 * index, 20.0 + 5.0 * index, 9.0 + index, np.zeros(3))
        for index in range(batch_size * num_views)
    ]
    extrinsics = torch.tensor(np.stack(poses), dtype=torch.float32)
    intrinsics = torch.tensor(pinhole(24, 40.0), dtype=torch.float32)
    shape = (batch_size, 1, num_views)
    return Camera(intrinsics.expand(*shape, 3, 3), extrinsics.view(*shape, 4, 4))


@pytest.mark.parametrize("num_residual", [0, 2])
def test_tokens_of_all_views(num_residual):
    backbone = make(num_residual=num_residual)
    assert backbone.grid == (4, 6) and backbone.needs_camera
    frames = torch.rand(2, 3, 3, 16, 24)
    tokens = backbone(frames, camera=cameras())
    assert tokens.shape == (2, 3 * 24, 12)
    one = backbone(frames[:, 0], camera=cameras().map(lambda value: value[:, :, :1]))
    assert one.shape == (2, 24, 12)


def test_the_order_of_views_does_not_matter():
    backbone, camera = make(), cameras()
    frames, order = torch.rand(2, 3, 3, 16, 24), torch.tensor([2, 0, 1])
    tokens = backbone(frames, camera=camera).unflatten(1, (3, 24))
    moved = backbone(frames[:, order], camera=camera.map(lambda value: value[:, :, order]))
    torch.testing.assert_close(tokens[:, order], moved.unflatten(1, (3, 24)), atol=1e-5, rtol=1e-4)


def test_views_hear_of_each_other_through_the_transformer_only():
    frames = torch.rand(1, 2, 3, 16, 24)
    changed = frames.clone()
    changed[:, 1] = 1 - changed[:, 1]
    camera = cameras(1, 2)
    for num_layers, is_touched in ((0, False), (1, True)):
        backbone = make(num_layers=num_layers)
        first, other = backbone(frames, camera=camera), backbone(changed, camera=camera)
        assert torch.equal(first[:, :24], other[:, :24]) != is_touched


@pytest.mark.parametrize("part", ["place", "direction", "focal"])
def test_tokens_know_the_pose(part):
    backbone, camera = make(num_layers=0), cameras(1, 1)
    frames = torch.rand(1, 1, 3, 16, 24)
    intrinsics, extrinsics = camera.intrinsics.clone(), camera.extrinsics.clone()
    if part == "place":
        extrinsics[..., 0, 3] += 0.5
    elif part == "direction":
        extrinsics[..., :3, :3] = extrinsics[..., :3, :3].flip(-1)
    else:
        intrinsics[..., 0, 0] *= 1.5
    moved = backbone(frames, camera=Camera(intrinsics, extrinsics))
    assert (moved - backbone(frames, camera=camera)).abs().max() > 1e-3


def test_the_origin_enters_as_if_its_code_stood_beside_every_pixel():
    # Away from the border the sum is the convolution of the joined code.
    backbone, camera = make(num_layers=0), cameras(1, 1)
    frames = torch.rand(1, 1, 3, 16, 24)
    convolution = backbone.stages[0].convolution
    code = backbone.encoding.origin(camera.extrinsics[0, 0, :, :3, 3])[..., None, None]
    kernel = backbone.origin.weight[:, :, None, None] / 9.0
    joined = torch.nn.functional.conv2d(
        code.expand(-1, -1, 16, 24), kernel.expand(-1, -1, 3, 3), stride=2, padding=1
    )
    caught = {}
    handle = convolution.register_forward_hook(lambda _, args, out: caught.update(made=out))
    backbone(frames, camera=camera)
    handle.remove()
    added = backbone.origin(code.flatten(1))[..., None, None]
    torch.testing.assert_close(
        (caught["made"] + joined)[..., 1:, 1:], (caught["made"] + added)[..., 1:, 1:]
    )


def test_bad_input_is_named():
    frames = torch.rand(2, 3, 3, 16, 24)
    with pytest.raises(ValueError, match="expected the cameras of the views, got none"):
        make()(frames)
    with pytest.raises(ValueError, match="a camera for each of the 3 views of 2 frames, got"):
        make()(frames, camera=cameras(2, 2))
    with pytest.raises(ValueError, match="one stride per convolution"):
        make(strides=[2])
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        make(kernel_size=4)
    with pytest.raises(ValueError, match="channels in multiples of 8, got 12"):
        SceneBackbone(
            [12],
            strides=[1],
            kernel_size=3,
            num_residual=1,
            num_octaves=2,
            first_octave=0,
            image_size=[8, 8],
            out_dim=8,
            num_layers=0,
            num_heads=1,
            mlp_dim=8,
        )


def test_colours_count_beside_rays_from_the_start():
    frames, camera = torch.rand(4, 1, 3, 16, 24), cameras(4, 1)
    shares = []
    for gain in (1.0, 20.0):
        backbone = make(num_layers=0, num_octaves=6, colour_gain=gain, plane=[0.3, 14.0])
        tokens = backbone(frames, camera=camera)
        grey = backbone(torch.full_like(frames, 0.5), camera=camera)
        normal, without = (nn.functional.layer_norm(x, (12,)) for x in (tokens, grey))
        shares.append(((normal - without).var((0, 1)).sum() / normal.var((0, 1)).sum()).item())
    assert shares[0] < 0.1 < 0.3 < shares[1]
    with pytest.raises(ValueError, match="colour_gain must be positive, got 0"):
        make(colour_gain=0)


def test_tokens_are_told_where_on_the_floor_they_look():
    # What the pictures say is left out, so that the code of places is all there is.
    backbone, camera = make(num_layers=0, plane=[0.0, 30.0]), cameras(1, 2)
    with torch.no_grad():
        backbone.to_tokens.weight.zero_()
    tokens = backbone(torch.rand(1, 2, 3, 16, 24), camera=camera)[0] - backbone.to_tokens.bias
    rays = token_rays(camera.intrinsics, camera.extrinsics, size=(16, 24), grid=(4, 6))
    rays = rays.flatten(0, 3)
    points = points_on_plane(rays[:, :3], rays[:, 3:6], plane=(0.0, 30.0))
    expected = backbone.to_places(backbone.encoding.origin(points))
    torch.testing.assert_close(tokens, expected)
