import math
import warnings

import numpy as np
import pytest
import torch

from ocrl.envs.scenes_camera import look_at, pinhole, points_of
from ocrl.nn.rays import (
    camera_rays,
    check_bounds,
    check_cameras,
    check_plane,
    check_scale,
    distance_of,
    pixel_centers,
    points_on_plane,
    project,
    rays_through,
)

SIZE = (6, 8)


def ring(num_views=4, distance=10.0, target=(0.0, 0.0, 0.0)):
    poses = [look_at(90.0 * view, 25.0, distance, np.array(target)) for view in range(num_views)]
    intrinsics = torch.tensor(pinhole(8, 40.0), dtype=torch.float32)
    intrinsics[1, 2] = 3.0
    return intrinsics.expand(num_views, 3, 3), torch.tensor(np.stack(poses), dtype=torch.float32)


def test_where_rays_meet_a_plane():
    origins = torch.tensor([1.0, 2.0, 3.0]).expand(5, 3)
    directions = torch.tensor(
        [
            [0.6, 0.0, -0.8],  # down
            [0.0, -0.6, 0.8],  # up: never
            [1.0, 0.0, 0.0],  # along the plane: never
            [0.0, 0.9999, -0.01],  # too far away
            [0.0, 0.0, -1.0],
        ]
    )
    points = points_on_plane(origins, directions, plane=(1.0, 10.0))
    expected = [[2.5, 2.0], [1.0, -4.0], [11.0, 2.0], [1.0, 11.999], [1.0, 2.0]]
    torch.testing.assert_close(points, torch.tensor(expected))
    inside = points_on_plane(origins[2], directions[2], plane=(3.0, 10.0))
    torch.testing.assert_close(inside, torch.tensor([11.0, 2.0]))


@pytest.mark.parametrize("plane", [[0.3], [0.3, 0.0], [0.3, float("nan")], [0.0, 1.0, 2.0]])
def test_what_is_no_plane_is_refused(plane):
    with pytest.raises(ValueError, match=r"height and a positive reach, such as .* got \["):
        check_plane(plane)
    assert check_plane(None) is None and check_plane([0.3, 16]) == (0.3, 16)


def test_centres_of_pixels():
    centers = pixel_centers((2, 3))
    assert centers.tolist() == [
        [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5]],
        [[0.5, 1.5], [1.5, 1.5], [2.5, 1.5]],
    ]


def test_a_camera_that_is_not_turned_looks_along_z_with_y_down():
    intrinsics = torch.tensor([[2.0, 0.0, 4.0], [0.0, 4.0, 3.0], [0.0, 0.0, 1.0]])
    extrinsics = torch.eye(4)
    extrinsics[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    pixels = torch.tensor([[4.0, 3.0], [6.0, 3.0], [4.0, 7.0]])
    origins, directions = rays_through(pixels, intrinsics=intrinsics, extrinsics=extrinsics)
    half = math.sqrt(0.5)
    expected = [[0.0, 0.0, 1.0], [half, 0.0, half], [0.0, half, half]]
    torch.testing.assert_close(directions, torch.tensor(expected))
    assert origins.tolist() == [[1.0, 2.0, 3.0]] * 3


def test_rays_of_every_pixel_are_units_from_the_camera_to_what_it_sees():
    intrinsics, extrinsics = ring()
    origins, directions = camera_rays(intrinsics[None], extrinsics[None], size=SIZE)
    assert origins.shape == directions.shape == (1, 4, *SIZE, 3)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(1, 4, *SIZE))
    depth = torch.rand(1, 4, *SIZE) * 5 + 5
    points = origins + distance_of(depth, intrinsics=intrinsics)[..., None] * directions
    expected = points_of(
        depth.double().numpy(), intrinsics[None].double().numpy(), extrinsics[None].double().numpy()
    )
    np.testing.assert_allclose(points, expected, atol=2e-5)
    pixels, found = project(points.flatten(2, 3), intrinsics=intrinsics, extrinsics=extrinsics)
    torch.testing.assert_close(found, depth.flatten(2))
    centers = pixel_centers(SIZE).flatten(0, 1)
    torch.testing.assert_close(pixels, centers.expand_as(pixels), atol=1e-3, rtol=0)


def test_skew_is_undone():
    intrinsics, extrinsics = ring(1)
    intrinsics = intrinsics.clone()
    intrinsics[0, 0, 1] = 1.5
    _, directions = camera_rays(intrinsics, extrinsics, size=SIZE)
    points = extrinsics[:, :3, 3] + 7.0 * directions[0].flatten(0, 1)
    pixels, _ = project(points[None], intrinsics=intrinsics, extrinsics=extrinsics)
    torch.testing.assert_close(pixels[0], pixel_centers(SIZE).flatten(0, 1), atol=1e-3, rtol=0)


def test_rays_carry_gradients_to_the_pose():
    intrinsics, extrinsics = ring(2)
    extrinsics.requires_grad_()
    camera_rays(intrinsics, extrinsics, size=SIZE)[1].square().sum().backward()
    assert extrinsics.grad is not None and extrinsics.grad.isfinite().all()


def test_good_cameras_pass():
    intrinsics, extrinsics = ring()
    check_cameras(intrinsics, extrinsics, num_views=4)
    check_cameras(intrinsics.expand(2, 3, 4, 3, 3), extrinsics.expand(2, 3, 4, 4, 4), num_views=4)


def scaled(extrinsics):
    extrinsics[1, :3, :3] *= 1.01


def mirrored(extrinsics):
    extrinsics[1, :3, 1] *= -1.0


def broken(extrinsics):
    extrinsics[0, 0, 3] = math.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scaled, r"orthonormal columns in extrinsics, got one that is off by 0\.02"),
        (mirrored, r"got one that mirrors \(determinant -1\)"),
        (broken, "expected finite extrinsics"),
    ],
)
def test_what_is_no_pose_is_refused(change, message):
    intrinsics, extrinsics = ring()
    change(extrinsics)
    with pytest.raises(ValueError, match=message):
        check_cameras(intrinsics, extrinsics, num_views=4)


def test_other_numbers_of_views_and_focal_lengths_are_refused():
    intrinsics, extrinsics = ring()
    with pytest.raises(ValueError, match=r"each of the 3 views of the frames, got \(4, 3, 3\)"):
        check_cameras(intrinsics, extrinsics, num_views=3)
    with pytest.raises(ValueError, match=r"extrinsics .* the 4 views .* got \(2, 4, 4\)"):
        check_cameras(intrinsics, extrinsics[:2], num_views=4)
    with pytest.raises(ValueError, match="positive focal lengths in pixels, got -"):
        check_cameras(-intrinsics, extrinsics, num_views=4)


@pytest.mark.parametrize(("near", "far"), [(2.0, 2.0), (3.0, 1.0), (-1.0, 1.0), (0.0, math.nan)])
def test_an_empty_range_is_refused(near, far):
    with pytest.raises(ValueError, match="expected 0 <= near < far along the rays, got near="):
        check_bounds(near, far)
    with pytest.raises(ValueError, match="expected 0 <= near < far"):
        check_scale(*ring(), near=near, far=far)


def test_a_scene_of_another_scale_is_noticed():
    intrinsics, extrinsics = ring(target=(3.0, 1.0, 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_scale(intrinsics, extrinsics, near=6.0, far=20.0)
    with pytest.warns(
        UserWarning, match="measured cameras that look at a point from 10 to 10 units"
    ):
        check_scale(intrinsics, extrinsics, near=0.1, far=2.0)
    depth = torch.full((4, *SIZE), 0.5)
    with pytest.warns(UserWarning, match=r"measured surfaces from 0\.\d+ to 0\.\d+ units away"):
        check_scale(intrinsics, extrinsics, near=6.0, far=20.0, depth=depth)


def test_cameras_that_look_at_no_common_point_have_no_scale_to_check():
    intrinsics, extrinsics = ring()
    apart = extrinsics.clone()
    apart[:, :3, :3] = extrinsics[0, :3, :3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_scale(intrinsics, apart, near=0.1, far=2.0)
        check_scale(intrinsics[:1], extrinsics[:1], near=0.1, far=2.0)
