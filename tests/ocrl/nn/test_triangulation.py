import math

import pytest
import torch

from ocrl.nn.rays import project
from ocrl.nn.triangulation import (
    distances,
    log_density,
    meeting_points,
    token_rays,
)


def cameras(*places):
    """Pinhole cameras of 32 x 16 pixels that stand at places and look at (0, 0, 1)."""
    poses = []
    for place in torch.tensor(places, dtype=torch.float64):
        forward = torch.nn.functional.normalize(torch.tensor([0.0, 0.0, 1.0]) - place, dim=0)
        right = torch.nn.functional.normalize(
            torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0]).double()), dim=0
        )
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
        pose[:3, 3] = place
        poses.append(pose)
    extrinsics = torch.stack(poses)[None]
    matrix = torch.tensor([[40.0, 0.0, 16.0], [0.0, 40.0, 8.0], [0.0, 0.0, 1.0]]).double()
    return matrix.expand(1, len(places), 3, 3), extrinsics


def rays_of(*places, grid=(4, 8)):
    intrinsics, extrinsics = cameras(*places)
    return token_rays(intrinsics, extrinsics, size=(16, 32), grid=grid).flatten(1, 2)


def test_token_rays_go_through_the_centres_of_cells():
    intrinsics, extrinsics = cameras((6.0, 0.0, 3.0), (0.0, -5.0, 2.0))
    rays = token_rays(intrinsics, extrinsics, size=(16, 32), grid=(4, 8))
    assert rays.shape == (1, 2, 32, 7)
    points = rays[..., :3] + 3.7 * rays[..., 3:6]
    at, _ = project(points, intrinsics=intrinsics, extrinsics=extrinsics)
    column, row = torch.meshgrid(4 * torch.arange(8) + 2, 4 * torch.arange(4) + 2, indexing="xy")
    expected = torch.stack([column, row], dim=-1).flatten(0, 1).double()
    torch.testing.assert_close(at, expected.expand(1, 2, -1, -1))
    torch.testing.assert_close(rays[..., 6], torch.full((1, 2, 32), 16 * 32 / 1600).double())


def test_distances_are_those_to_the_line():
    torch.manual_seed(0)
    rays = rays_of((6.0, 1.0, 3.0), (-2.0, 5.0, 2.0))
    points = torch.randn(1, 5, 3).double()
    squares, along = distances(points, rays)
    apart = points[:, :, None] - rays[:, None, :, :3]
    direction = rays[:, None, :, 3:6].expand_as(apart)
    expected = torch.linalg.cross(apart, direction).square().sum(-1)
    torch.testing.assert_close(squares, expected)
    torch.testing.assert_close(along, (apart * direction).sum(-1))


def test_the_point_of_two_rays_is_where_they_meet():
    rays = rays_of((6.0, 0.0, 3.0), (0.0, -5.0, 2.0))
    target = torch.tensor([[[0.3, -0.4, 1.2], [-0.2, 0.1, 0.8]]]).double()
    # Each slot wins one token of each view: the one whose ray is nearest to its thing.
    squares, _ = distances(target, rays)
    attn = torch.zeros(1, 2, 64).double()
    for view in (slice(0, 32), slice(32, 64)):
        attn[..., view].scatter_(2, squares[..., view].argmin(-1, keepdim=True), 1.0)
    start = torch.zeros(1, 2, 3).double()
    found = meeting_points(attn, rays, places=start, num_prior_tokens=1e-9)
    best = (attn * distances(found, rays)[0]).sum(-1)
    for shift in torch.eye(3).double() * 0.01:
        for sign in (-1, 1):
            other = (attn * distances(found + sign * shift, rays)[0]).sum(-1)
            assert (other > best).all()
    assert (found - target).norm(dim=-1).max() < 0.35, "half a token at a distance of six"


def test_one_view_leaves_a_point_as_far_away_as_it_was():
    rays = rays_of((6.0, 0.0, 1.0), grid=(4, 4))
    attn = torch.zeros(1, 1, 16).double()
    attn[..., 5] = 1.0
    origin, direction = rays[0, 5, :3], rays[0, 5, 3:6]
    side = torch.linalg.cross(direction, torch.tensor([0.0, 0.0, 1.0]).double())
    place = origin + 4.0 * direction + 0.5 * side
    found = meeting_points(attn, rays, places=place.view(1, 1, 3), num_prior_tokens=0.1)
    apart = found[0, 0] - origin
    assert apart @ direction == pytest.approx(4.0)
    # Across, the token weighs ten times as much as the prior.
    assert torch.linalg.cross(apart, direction).norm() == pytest.approx(
        0.5 * side.norm().item() / 11
    )


def test_the_density_sums_to_the_number_of_tokens():
    """Relative to the uniform density, the mean over the picture is one."""
    rays = rays_of((8.0, 0.0, 1.0), grid=(64, 128))
    squares, along = distances(torch.tensor([[[0.0, 0.0, 1.0]]]).double(), rays)
    density = log_density(squares, along, torch.full((1, 1, 1), math.log(0.2)).double(), rays)
    assert density.exp().mean().item() == pytest.approx(1.0, abs=0.03)


def test_nobody_is_seen_behind_a_camera():
    rays = rays_of((8.0, 0.0, 1.0))
    squares, along = distances(torch.tensor([[[16.0, 0.0, 1.0]]]).double(), rays)
    assert (along < 0).all()
    scales = torch.zeros(1, 1, 1).double()
    assert (log_density(squares, along, scales, rays) < -10).all()
