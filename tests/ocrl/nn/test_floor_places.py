import math

import pytest
import torch
from torch import nn

from ocrl.nn.floor_places import NUM_COLUMNS, FloorPlaces, Standing
from ocrl.nn.triangulation import NUM_RAY


def make(**changes):
    arguments = {
        "num_grounds": 1,
        "center": [1.0, -1.0, 0.5],
        "radius": 2.0,
        "num_prior_tokens": 0.5,
        "min_scale": 0.1,
        **changes,
    }
    return FloorPlaces(4, **arguments)


def random_rays(num):
    """Rays (N,7) from all sides past the centre, some of them far away."""
    origins = torch.tensor([0.0, 0.0, 6.0]) + 4 * torch.randn(num, 3)
    directions = nn.functional.normalize(torch.randn(num, 3) - origins, dim=-1)
    return torch.cat([origins, directions, torch.ones(num, 1)], dim=-1)


def in_space(points):
    return torch.cat([points, torch.zeros_like(points[..., :1])], dim=-1)


def passing_by(points, rays):
    """Distances (K,N) of points (K,3) from rays, by the length of a cross product."""
    apart = points[:, None] - rays[:, :3]
    return torch.linalg.cross(apart, rays[:, 3:6].expand_as(apart)).norm(dim=-1)


def with_one(columns):
    return torch.cat([torch.ones_like(columns[..., :1]), columns], dim=-1)


def test_queries_and_columns_multiply_to_log_densities():
    places, rays = make(), random_rays(7)
    assert rays.shape[-1] == NUM_RAY
    columns = with_one(places.columns(rays))
    standing = Standing(torch.randn(4, 2), 0.3 * torch.randn(4, 1))
    query = places.query(standing)
    assert columns.shape == (7, NUM_COLUMNS) and query.shape == (4, NUM_COLUMNS)
    distance = passing_by(in_space(standing.places) + places.center, rays)
    scale = standing.log_scales.exp()
    # A round Gaussian across the ray, two standard normals, ...
    log_density = torch.distributions.Normal(0.0, scale).log_prob(distance)
    log_density = log_density + torch.distributions.Normal(0.0, scale).log_prob(torch.zeros(()))
    # ... beside the uniform density of the disc; three slots share half of the tokens.
    expected = log_density + math.log(math.pi * 2.0**2) - math.log(3)
    expected[0] = 0.0
    torch.testing.assert_close(query @ columns.mT, expected, atol=1e-3, rtol=1e-4)


def test_slots_move_to_what_is_nearest_to_the_rays_they_won_and_are_as_wide():
    places, rays = make(), random_rays(9)
    attn = torch.rand(4, 9)
    moved = places.move(attn @ with_one(places.columns(rays)))
    start, total = places.start(), attn.sum(-1, keepdim=True)

    def cost(points):
        squares = passing_by(in_space(points) + places.center, rays).square()
        held = 0.5 * (points - start.places).square().sum(-1)
        return (attn * squares).sum(-1) + held, squares

    least, squares = cost(moved.places)
    for step in 0.02 * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]):
        assert (cost(moved.places + step)[0] > least).all()
    spread = 0.5 * (attn * squares).sum(-1, keepdim=True) + 0.5 * (2 * start.log_scales).exp()
    variance = spread / (total + 0.5) + 0.1**2
    torch.testing.assert_close(moved.log_scales, 0.5 * variance.log(), atol=1e-4, rtol=1e-4)


def test_slots_move_to_where_rays_meet():
    places, targets = make(num_prior_tokens=1e-6), torch.randn(4, 2)
    rays = random_rays(12)
    points = (in_space(targets) + places.center).repeat_interleave(3, 0)
    directions = nn.functional.normalize(points - rays[:, :3], dim=-1)
    rays = torch.cat([rays[:, :3], directions, rays[:, 6:]], dim=-1)
    attn = torch.eye(4).repeat_interleave(3, 1)
    moved = places.move(attn @ with_one(places.columns(rays)))
    torch.testing.assert_close(moved.places, targets, atol=1e-3, rtol=1e-3)
    assert (moved.log_scales - math.log(0.1)).abs().max() < 1e-2


def test_slots_that_win_nothing_stand_where_they_began():
    places = make()
    start, moved = places.start(), places.move(torch.zeros(4, NUM_COLUMNS))
    torch.testing.assert_close(moved.places, start.places)
    assert start.places[0].tolist() == [0.0, 0.0] and start.places[1:].norm(dim=-1).max() <= 2.0


def test_places_in_the_world():
    where, is_placed = make().in_world(Standing(torch.zeros(2, 3, 4, 2), torch.zeros(2, 3, 4, 1)))
    assert where.shape == (2, 3, 4, 3) and where[1, 2, 3].tolist() == [1.0, -1.0, 0.5]
    assert is_placed[0, 0, :, 0].tolist() == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_grounds": 4}, r"num_grounds must be in \[0, num_slots=4\), got 4"),
        ({"radius": 0.0}, "radius must be positive, got 0.0"),
        ({"min_scale": -1.0}, "min_scale must be positive"),
        ({"num_prior_tokens": 0.0}, "num_prior_tokens must be positive"),
        ({"center": [0.0, 0.0]}, r"expected a center \(x, y, z\), got \[0.0, 0.0\]"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
