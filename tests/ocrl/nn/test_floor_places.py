import math

import pytest
import torch
from torch import nn

from ocrl.nn.floor_places import NUM_COLUMNS, FloorPlaces, Standing
from ocrl.nn.triangulation import NUM_RAY


def make(**changes):
    arguments = {
        "num_grounds": 1,
        "plane": [0.5, 20.0],
        "center": [1.0, -1.0],
        "radius": 2.0,
        "num_prior_tokens": 0.5,
        "min_scale": 0.1,
        **changes,
    }
    return FloorPlaces(4, **arguments)


def rays_to(points):
    """Rays (N,7) from one camera through points (N,2) of the plane."""
    origin = torch.tensor([4.0, 3.0, 6.0])
    targets = torch.cat([points, torch.full_like(points[:, :1], 0.5)], dim=-1)
    directions = nn.functional.normalize(targets - origin, dim=-1)
    return torch.cat([origin.expand_as(directions), directions, torch.ones(len(points), 1)], dim=-1)


def with_one(columns):
    return torch.cat([torch.ones_like(columns[..., :1]), columns], dim=-1)


def test_queries_and_columns_multiply_to_log_densities():
    places, points = make(), torch.randn(7, 2)
    rays = rays_to(points)
    assert rays.shape[-1] == NUM_RAY
    columns = with_one(places.columns(rays))
    standing = Standing(torch.randn(4, 2), 0.3 * torch.randn(4, 1))
    query = places.query(standing)
    assert columns.shape == (7, NUM_COLUMNS) and query.shape == (4, NUM_COLUMNS)
    gaussian = torch.distributions.Normal(
        standing.places[:, None] + places.center, standing.log_scales.exp()[:, None]
    )
    log_density = gaussian.log_prob(points).sum(-1)
    # Beside the uniform density of the disc; three slots share half of the tokens.
    expected = log_density + math.log(math.pi * 2.0**2) - math.log(3)
    expected[0] = 0.0
    torch.testing.assert_close(query @ columns.mT, expected, atol=1e-3, rtol=1e-4)


def test_slots_move_to_the_mean_of_what_they_won_and_are_as_wide():
    places, points = make(), torch.randn(9, 2)
    attn = torch.rand(4, 9)
    moved = places.move(attn @ with_one(places.columns(rays_to(points))))
    start, total = places.start(), attn.sum(-1, keepdim=True)
    relative = points - places.center
    mean = (attn @ relative + 0.5 * start.places) / (total + 0.5)
    torch.testing.assert_close(moved.places, mean, atol=1e-4, rtol=1e-4)
    squares = (attn[..., None] * (relative - mean[:, None]).square()).sum((1, 2))[:, None]
    variance = (0.5 * squares + 0.5 * (2 * start.log_scales).exp()) / (total + 0.5) + 0.1**2
    torch.testing.assert_close(moved.log_scales, 0.5 * variance.log(), atol=1e-4, rtol=1e-4)


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
        ({"plane": None}, r"a plane where slots stand.* got none"),
        ({"plane": [0.0, -1.0]}, "plane must be its height and a positive reach"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
