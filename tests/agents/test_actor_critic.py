"""Choices and their densities, and networks over sets."""

import math

import pytest
import torch

from ocrl.agents.actor_critic import Actor, BoundedChoice, Critic, DiscreteChoice

POOLING = {
    "_target_": "ocrl.agents.pooling.SetTransformer",
    **{"dim": 8, "num_layers": 2, "num_heads": 2, "mlp_factor": 2, "is_relative": True},
    **{"slot_dim": 5, "num_slots": 4},
}
NETWORK = {"pooling": POOLING, "hidden_dims": [8]}


def disturbed(module):
    """Layers that start at zero would hide those before them."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def actor(*, num_actions=0, action_dim=0, has_presence=False):
    network = {**NETWORK, "has_presence": has_presence}
    return Actor(network, num_actions=num_actions, action_dim=action_dim)


def test_drawn_actions_have_the_frequencies_of_their_probabilities():
    torch.manual_seed(0)
    probability = torch.tensor([0.7, 0.2, 0.1])
    choice = DiscreteChoice(probability.log().expand(20_000, -1))
    drawn = choice.sample()
    found = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(found, probability, atol=0.015, rtol=0)
    torch.testing.assert_close(choice.log_prob(drawn).exp(), probability[drawn])
    expected = -(probability * probability.log()).sum()
    torch.testing.assert_close(choice.entropy()[0], expected)
    assert (choice.mode() == 0).all()


def test_the_entropy_of_a_bounded_choice_is_that_of_what_comes_out():
    torch.manual_seed(0)
    mean, std = torch.tensor([0.4]), torch.tensor([0.7])
    choice = BoundedChoice(mean.expand(200_000, 1), std.expand(200_000, 1))
    action, entropy = choice.sample_with_entropy()
    assert action.abs().max() <= 1
    # By numbers: the density of tanh(x) on a fine grid.
    inner = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    normal = torch.distributions.Normal(0.4, 0.7)
    log_density = normal.log_prob(inner) - torch.log1p(-inner.tanh().square())
    weight = normal.log_prob(inner).exp() * (inner[1] - inner[0])
    expected = -float((weight * log_density).sum())
    assert float(entropy.mean()) == pytest.approx(expected, abs=0.01)
    torch.testing.assert_close(choice.mode()[0], mean.tanh())


def test_far_from_zero_nothing_is_infinite():
    choice = BoundedChoice(torch.tensor([[40.0, -40.0]]).requires_grad_(), torch.ones(1, 2))
    action, entropy = choice.sample_with_entropy()
    entropy.sum().backward()
    assert action.abs().max() <= 1 and entropy.isfinite().all()
    assert choice.mean.grad.isfinite().all()


@pytest.mark.parametrize("kind", [{"num_actions": 3}, {"action_dim": 2}])
def test_an_actor_begins_without_a_preference(kind):
    choice = actor(**kind)(torch.randn(6, 4, 5))
    if "num_actions" in kind:
        torch.testing.assert_close(choice.entropy(), torch.full((6,), math.log(3)))
    else:
        assert (choice.mode() == 0).all() and (choice.std > 0.8).all()
        assert choice.sample().shape == (6, 2)


def test_no_action_becomes_impossible():
    one = actor(num_actions=4)
    with torch.no_grad():
        one.network.head.layers[-1].bias.copy_(torch.tensor([0.0, 0.0, 0.0, 90.0]))
    choice = one.discrete(torch.randn(2, 4, 5))
    torch.testing.assert_close(choice.log_probability[:, 0].exp(), torch.full((2,), 0.0025))


@pytest.mark.parametrize("make", [lambda: actor(num_actions=3), lambda: critic()])
def test_the_order_of_rows_does_not_matter(make):
    one = disturbed(make())
    rows = torch.randn(6, 4, 5)
    network = one.network
    torch.testing.assert_close(network(rows), network(rows[:, [2, 0, 3, 1]]))
    assert not torch.allclose(network(rows), network(rows.flip(-1)))


def test_rows_without_an_object_are_not_read():
    one = disturbed(actor(num_actions=3, has_presence=True))
    rows = torch.randn(6, 4, 5)
    rows[..., 0] = torch.tensor([1.0, 0.0, 1.0, 0.0])
    other = rows.clone()
    other[:, [1, 3], 1:] = 9.0
    torch.testing.assert_close(one.network(rows), one.network(other))
    share = one.network.attention(rows)
    assert (share[:, [1, 3]] == 0).all()
    torch.testing.assert_close(share.sum(-1), torch.ones(6))


def critic():
    network = {**NETWORK, "has_presence": False}
    return Critic(network, num_bins=41, low=-3.0, high=3.0)


def test_a_critic_begins_at_zero_and_learns_returns():
    one = critic()
    rows, returns = torch.randn(16, 4, 5), torch.linspace(-4.0, 9.0, 16)
    assert one(rows).abs().max() < 1e-5
    optimizer = torch.optim.Adam(one.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        one.loss(rows, returns).mean().backward()
        optimizer.step()
    torch.testing.assert_close(one(rows), returns, atol=0.3, rtol=0.05)
