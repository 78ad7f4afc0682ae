import numpy as np
import torch

from ocrl.envs.scenes_camera import look_at
from ocrl.nn.orbit import orbit
from ocrl.nn.rays import check_cameras, focus_of, project


def cameras(target, num_views=3, elevation=25.0):
    poses = [look_at(40.0 + 90.0 * v, elevation, 10.0, np.array(target)) for v in range(num_views)]
    return torch.tensor(np.stack(poses), dtype=torch.float32)


def test_an_orbit_looks_at_what_the_cameras_look_at_from_as_far():
    target = (1.0, -2.0, 0.5)
    poses = orbit(cameras(target), num_cameras=8)
    intrinsics = torch.tensor([[30.0, 0.0, 16.0], [0.0, 30.0, 16.0], [0.0, 0.0, 1.0]])
    check_cameras(intrinsics.expand(8, 3, 3), poses, num_views=8)
    places, depth = project(torch.tensor([target]), intrinsics=intrinsics, extrinsics=poses)
    torch.testing.assert_close(places, torch.full((8, 1, 2), 16.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(depth, torch.full((8, 1), 10.0), atol=1e-3, rtol=0)
    above = torch.tensor([(1.0, -2.0, 1.5)])
    higher, _ = project(above, intrinsics=intrinsics, extrinsics=poses)
    assert (higher[..., 1] < 16.0).all(), "up is up"


def test_an_orbit_starts_at_the_first_camera():
    given = cameras((0.0, 0.0, 0.4))
    torch.testing.assert_close(orbit(given, num_cameras=5)[0], given[0], atol=1e-4, rtol=1e-4)


def test_cameras_without_a_common_point_have_no_orbit():
    given = cameras((0.0, 0.0, 0.0))
    given[:, :3, :3] = given[0, :3, :3]
    assert orbit(given, num_cameras=4) is None and focus_of(given) is None


def test_the_focus_is_found_whatever_the_leading_axes():
    given = cameras((3.0, 1.0, 0.2), num_views=4)
    expected = torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64)
    torch.testing.assert_close(focus_of(given), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(focus_of(given.view(2, 2, 4, 4)), expected, atol=1e-4, rtol=0)
