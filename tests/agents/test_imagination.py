"""Actor and critic learn from what is imagined, each by its own path and by no other."""

import copy
import math

import pytest
import torch
from torch import nn

from ocrl.agents.imagination import ActorCritic, frozen
from ocrl.agents.replay import Window
from ocrl.agents.set_world import SetWorld, Starts
from ocrl.dynamics.transformer import TransformerDynamics
from ocrl.interfaces import SlotDynamics
from ocrl.nn.outcome import OutcomeHead
from ocrl.types import SlotPrediction

POOLING = {
    "_target_": "ocrl.agents.pooling.SetTransformer",
    **{"dim": 8, "num_layers": 1, "num_heads": 2, "mlp_factor": 2, "is_relative": True},
    **{"slot_dim": 4, "num_slots": 3},
}
SETTINGS = {
    "pooling": POOLING,
    "hidden_dims": [8],
    "horizon": 4,
    "gamma": 0.9,
    "gae_lambda": 0.8,
    "entropy": 0.01,
    "learning_rate": 1e-2,
    "clip_norm": 10.0,
    "target_decay": 0.75,
    "bins": {"num_bins": 21, "low": -3.0, "high": 3.0},
    "scale": {"low": 0.05, "high": 0.95, "decay": 0.5, "floor": 1.0},
}
KINDS = pytest.mark.parametrize("action_dim", [0, 2], ids=["discrete", "box"])


def sizes(action_dim):
    return {"num_actions": 0 if action_dim else 3, "action_dim": action_dim}


def behaviour(action_dim=0, **changes):
    torch.manual_seed(0)
    made = ActorCritic(
        slot_dim=4, num_slots=3, has_presence=False, **sizes(action_dim), **SETTINGS | changes
    )
    return disturbed(made)


def disturbed(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def small_world(action_dim=0):
    torch.manual_seed(1)
    common = {"slot_dim": 4, **sizes(action_dim), "dim": 8, "num_heads": 2, "mlp_dim": 8}
    dynamics = TransformerDynamics(
        **common,
        **{"num_layers": 1, "window": 3, "action_binding": "token", "is_residual": True},
        interaction="object_then_time",
    )
    outcome = OutcomeHead(
        **common, has_comparison=True, num_layers=1, num_bins=11, low=-2.0, high=2.0
    )
    weights = {"slots": 1.0, "reward": 1.0, "continue": 1.0}
    world = SetWorld(dynamics, outcome=outcome, weights=weights, num_context=2, horizon=6)
    return disturbed(world)


def played(action_dim=0):
    generator = torch.Generator().manual_seed(2)
    shape = (3, 5)
    action = torch.randint(3, shape, generator=generator)
    if action_dim:
        action = torch.rand(*shape, action_dim, generator=generator) * 2 - 1
    nothing = torch.zeros(shape, dtype=torch.bool)
    is_first = nothing.clone()
    is_first[:, 0] = True
    window = Window({}, action, torch.zeros(shape), nothing, nothing, is_first)
    return torch.randn(*shape, 3, 4, generator=generator), window


def started(action_dim=0):
    world = small_world(action_dim)
    with torch.no_grad():
        return world, world.starts(*played(action_dim))


def has_gradient(module):
    return any(p.grad is not None and bool((p.grad != 0).any()) for p in module.parameters())


@KINDS
def test_a_loss_reaches_its_own_weights_and_no_other(action_dim):
    world, starts = started(action_dim)
    agent = behaviour(action_dim)
    losses, _ = agent.losses(world, starts)
    losses["actor"].backward(retain_graph=True)
    assert has_gradient(agent.actor)
    for other in (world, agent.critic, agent.slow_critic):
        assert not has_gradient(other)
    agent.actor.zero_grad(set_to_none=True)
    losses["critic"].backward()
    assert has_gradient(agent.critic)
    for other in (world, agent.actor, agent.slow_critic):
        assert not has_gradient(other)
    assert all(parameter.requires_grad for parameter in world.parameters())


def test_what_is_imagined_has_a_gradient_for_boxes_alone():
    for action_dim in (0, 2):
        world, starts = started(action_dim)
        future = behaviour(action_dim).imagine(world, starts)
        assert future.reward.requires_grad == future.rows.requires_grad == bool(action_dim)
        assert future.action.requires_grad == bool(action_dim)
        assert (future.entropy is not None) == bool(action_dim)


class Counter(SlotDynamics):
    """Every feature of every slot grows by the first action; what it reads of the past is none."""

    def __init__(self, action_dim):
        super().__init__()
        self.slot_dim, (self.num_actions, self.action_dim) = 4, sizes(action_dim).values()
        self.gain = nn.Parameter(torch.ones(()))

    def initial_state(self, batch_size):
        return {}

    def advance(self, carried, action, state, is_first):
        pushed = action[..., 0] if self.action_dim else action.float()
        slots = carried + self.gain * pushed[:, :, None, None]
        return SlotPrediction(slots, slots), state


class Told(nn.Module):
    """Rewards are a function of what slots become; nothing ends but by chance `goes_on`."""

    def __init__(self, reward, goes_on=1.0):
        super().__init__()
        self.tell, self.chance = reward, goes_on

    def outcomes(self, before, action, after):
        reward = self.tell(after[..., 0, 0])
        return reward, torch.full_like(reward, self.chance)


def counting(action_dim, reward, *, goes_on=1.0):
    world = small_world(action_dim)
    world.dynamics = Counter(action_dim)
    told = Told(reward, goes_on)
    world.outcomes = told.outcomes
    rows = torch.zeros(64, 3, 4)
    starts = Starts(rows, {}, torch.zeros(64, dtype=torch.bool), torch.ones(64))
    return world, starts


@KINDS
def test_the_actor_learns_what_is_rewarded(action_dim):
    """The more slots grow the better; the actor's own gradient has to find that."""
    world, starts = counting(action_dim, lambda value: value)
    agent = behaviour(action_dim, entropy=1e-4)
    first = agent.losses(world, starts)[1]["imagined_reward"]
    for _ in range(60):
        losses, figures = agent.losses(world, starts)
        for name, optimizer in agent.optimizers().items():
            optimizer.zero_grad()
            losses[name].backward()
            optimizer.step()
        agent.follow()
    # At best 2 (or 1) a step: 5 (or 2.5) a step on average over four steps.
    assert figures["imagined_reward"] > (4.5 if not action_dim else 2.0) > first
    assert agent.actor(starts.rows[:1]).mode().flatten()[0] > 0.5


def test_a_future_that_ends_weighs_less():
    world, starts = counting(0, torch.zeros_like, goes_on=0.5)
    starts = Starts(starts.rows, {}, starts.is_first, torch.arange(64.0) % 2)
    future = behaviour().imagine(world, starts)
    assert future.weight[1].tolist() == [1.0, 0.5, 0.25, 0.125]
    assert future.weight[0].tolist() == [0.0] * 4
    assert future.rows.shape == (64, 5, 3, 4)
    torch.testing.assert_close(future.rows[:, 0], starts.rows)


def test_figures_are_those_of_the_imagined():
    world, starts = counting(0, torch.ones_like, goes_on=0.5)
    agent = behaviour(gae_lambda=1.0)
    agent.slow_critic.network.start_at_zero()
    _, figures = agent.losses(world, starts)
    # 1 + 0.45 (1 + 0.45 (1 + 0.45 (1 + 0.45 * 0))).
    expected = sum(0.45**k for k in range(4))
    assert float(figures["imagined_return"]) == pytest.approx(expected, rel=1e-4)
    assert float(figures["goes_on"]) == 0.5 and float(figures["imagined_reward"]) == 1.0


def test_the_slow_critic_follows_the_fast_one():
    agent = behaviour()
    slow = copy.deepcopy(agent.slow_critic)
    agent.follow()
    for before, after, fast in zip(
        slow.parameters(), agent.slow_critic.parameters(), agent.critic.parameters(), strict=True
    ):
        torch.testing.assert_close(after, 0.75 * before + 0.25 * fast)
        assert not after.requires_grad
    learned = {
        id(p) for o in agent.optimizers().values() for g in o.param_groups for p in g["params"]
    }
    assert not learned & {id(parameter) for parameter in agent.slow_critic.parameters()}


@KINDS
def test_an_update_changes_actor_and_critic_and_leaves_the_world(action_dim):
    world, agent = small_world(action_dim), behaviour(action_dim)
    before = {name: copy.deepcopy(m.state_dict()) for name, m in (("w", world), ("a", agent))}
    figures = agent.learn(world, *played(action_dim))
    assert all(torch.equal(v, world.state_dict()[n]) for n, v in before["w"].items())
    changed = {
        n.split(".")[0] for n, v in before["a"].items() if (v != agent.state_dict()[n]).any()
    }
    assert changed == {"actor", "critic", "slow_critic", "scale"}
    assert all(isinstance(figure, float) for figure in figures.values())
    assert {"imagined_return", "entropy", "actor_gradient_norm"} <= set(figures)


def test_an_update_imagines_from_as_many_frames_as_it_is_told(monkeypatch):
    world, agent = small_world(), behaviour(num_starts=5)
    counts, imagine = [], agent.imagine
    monkeypatch.setattr(agent, "imagine", lambda w, s: counts.append(len(s.rows)) or imagine(w, s))
    agent.learn(world, *played())
    agent.num_starts = None
    agent.learn(world, *played())
    assert counts == [5, 12]


@KINDS
def test_one_vector_is_a_set_of_one_row(action_dim):
    world, agent = small_world(action_dim), behaviour(action_dim)
    rows, window = played(action_dim)
    figures = agent.learn(world, rows[:, :, :1], window)
    assert all(math.isfinite(figure) for figure in figures.values())
    assert world(rows[:, :, :1], window).prediction.slots.shape == (3, 4, 1, 4)


@KINDS
def test_a_loss_that_is_not_finite_changes_nothing(action_dim):
    world, agent = small_world(action_dim), behaviour(action_dim)
    with torch.no_grad():
        agent.actor.network.head.layers[-1].bias.fill_(torch.nan)
    before = copy.deepcopy(agent.critic.state_dict())
    with pytest.raises(FloatingPointError, match="is not finite"):
        agent.learn(world, *played(action_dim))
    assert all(torch.equal(v, agent.critic.state_dict()[n]) for n, v in before.items())


@KINDS
def test_it_acts_by_its_actor(action_dim):
    world, agent = small_world(action_dim), behaviour(action_dim)
    rows = torch.randn(5, 3, 4)
    options = {"state": agent.initial_state(5), "is_first": torch.ones(5, dtype=torch.bool)}
    likeliest = [agent.act(world, rows, **options, is_deterministic=True)[0] for _ in range(2)]
    assert torch.equal(*likeliest)
    torch.manual_seed(0)
    drawn = torch.stack(
        [agent.act(world, rows, **options, is_deterministic=False)[0] for _ in range(50)]
    )
    assert drawn.shape == ((50, 5, 2) if action_dim else (50, 5)) and (drawn != drawn[0]).any()
    torch.testing.assert_close(agent.attention(rows).sum(-1), torch.ones(5))


def test_frozen_weights_let_gradients_through():
    layer = nn.Linear(2, 1)
    layer.bias.requires_grad_(False)
    inputs = torch.ones(1, 2, requires_grad=True)
    with frozen(layer):
        made = layer(inputs)
    made.sum().backward()
    assert inputs.grad is not None and layer.weight.grad is None
    assert layer.weight.requires_grad and not layer.bias.requires_grad


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gamma": 0.0}, "gamma in"),
        ({"horizon": 0}, "expected horizon >= 1"),
        ({"gae_lambda": 1.5}, "gae_lambda in"),
        ({"target_decay": 1.0}, "expected target_decay in"),
        ({"num_starts": 0}, "expected num_starts of at least 1, or null for all, got 0"),
    ],
)
def test_arguments_out_of_range(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        behaviour(**changes)
