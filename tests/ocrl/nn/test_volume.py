"""Light through known densities, in closed form."""

import math

import torch

from ocrl.nn.volume import even_edges, finer_edges, points_within, transmitted

CPU = torch.device("cpu")


def test_constant_density_stops_exactly_what_beer_and_lambert_say():
    edges = even_edges(2.0, 7.0, num_intervals=9, device=CPU).double()
    weights, beyond = transmitted(torch.full((9,), 0.3, dtype=torch.float64), edges.diff())
    torch.testing.assert_close(beyond.item(), math.exp(-0.3 * 5.0))
    torch.testing.assert_close(weights.sum().item(), 1 - math.exp(-0.3 * 5.0))
    torch.testing.assert_close(weights[0].item(), 1 - math.exp(-0.3 * 5.0 / 9))


def test_a_sphere_of_constant_density_lets_through_what_its_chord_leaves():
    # Rays along x at heights y through a sphere of radius 1 around x = 5: the chord is
    # 2 sqrt(1 - y^2), and intervals of 0.002 find it to that precision.
    heights = torch.tensor([0.0, 0.3, 0.6, 0.9, 1.2], dtype=torch.float64)
    edges = even_edges(2.0, 8.0, num_intervals=3000, device=CPU).double().expand(5, -1)
    places = points_within(edges, is_random=False)
    density = 1.7 * ((places - 5.0) ** 2 + heights[:, None] ** 2 < 1.0).double()
    weights, beyond = transmitted(density, edges.diff(dim=-1))
    chord = 2 * (1 - heights**2).clamp(min=0).sqrt()
    torch.testing.assert_close(beyond, (-1.7 * chord).exp(), atol=5e-3, rtol=0)
    torch.testing.assert_close(weights.sum(-1) + beyond, torch.ones(5, dtype=torch.float64))


def test_weights_and_what_passes_sum_to_one_for_any_density():
    torch.manual_seed(0)
    density = torch.rand(4, 6, 20).pow(8) * 1e3
    density[0, 0] = 0.0
    density[0, 1] = 1e8
    weights, beyond = transmitted(density, torch.rand(4, 6, 20))
    assert (weights >= 0).all() and (beyond >= 0).all()
    torch.testing.assert_close(weights.sum(-1) + beyond, torch.ones(4, 6), atol=1e-5, rtol=0)
    assert (weights.sum(-1) <= 1 + 1e-5).all()


def test_what_stands_behind_something_opaque_is_not_seen():
    weights, beyond = transmitted(torch.tensor([0.0, 1e4, 1e4]), torch.ones(3))
    torch.testing.assert_close(weights, torch.tensor([0.0, 1.0, 0.0]))
    assert beyond == 0


def test_points_are_middles_or_anywhere_within():
    edges = torch.tensor([0.0, 1.0, 3.0, 3.0])
    assert points_within(edges, is_random=False).tolist() == [0.5, 2.0, 3.0]
    torch.manual_seed(0)
    drawn = points_within(edges.expand(2000, -1), is_random=True)
    assert (drawn >= edges[:-1]).all() and (drawn <= edges[1:]).all()
    torch.testing.assert_close(drawn.mean(0), torch.tensor([0.5, 2.0, 3.0]), atol=0.05, rtol=0)
    assert drawn[:, 1].std() > 0.5


def test_finer_edges_follow_the_weights():
    edges = even_edges(0.0, 4.0, num_intervals=4, device=CPU)
    weights = torch.tensor([0.1, 0.0, 0.6, 0.3]).expand(50, -1)
    for is_random in (False, True):
        torch.manual_seed(0)
        finer = finer_edges(edges, weights, num_finer=200, is_random=is_random, eps=0.0)
        assert finer.shape == (50, 205)
        assert (finer.diff(dim=-1) >= 0).all()
        counts = torch.stack([torch.histc(row, bins=4, min=0, max=4) for row in finer]).mean(0)
        # Beside the five edges that were there: 20, none, 120 and 60.
        added = counts - torch.tensor([1.0, 1.0, 1.0, 2.0])
        torch.testing.assert_close(added, torch.tensor([20.0, 0.0, 120.0, 60.0]), atol=1.1, rtol=0)
        # Within an interval they are even.
        within = finer[(finer > 2) & (finer < 3)] - 2
        torch.testing.assert_close(within.mean(), torch.tensor(0.5), atol=0.02, rtol=0)


def test_where_nothing_is_known_finer_edges_are_even():
    edges = even_edges(1.0, 3.0, num_intervals=5, device=CPU)
    finer = finer_edges(edges, torch.zeros(1, 5), num_finer=10, is_random=False)[0]
    new = finer[~torch.isin(finer, edges)]
    torch.testing.assert_close(new, 1.1 + 0.2 * torch.arange(10.0))


def test_finer_edges_carry_no_gradient_and_leave_no_interval_unseen():
    edges = even_edges(0.0, 1.0, num_intervals=3, device=CPU)
    weights = torch.tensor([[0.0, 1.0, 0.0]], requires_grad=True)
    assert not finer_edges(edges, weights, num_finer=4, is_random=True).requires_grad
    torch.manual_seed(0)
    finer = finer_edges(edges, weights, num_finer=4000, is_random=True, eps=0.1)
    assert ((finer > 0) & (finer < 0.33)).any() and ((finer > 0.67) & (finer < 1)).any()
