"""Each dynamics learns what can be foretold of moving points, far below the floor of no change."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from ocrl.checkpoint import build

CONFIGS = Path(__file__).parents[3] / "configs"
K, D, CONTEXT, HORIZON = 3, 12, 3, 6
SIZES = ["+slot_dim=12", "+num_actions=0", "+action_dim=2", "+code_sizes=[4]"]


def points(batch_size, generator):
    """Points with a constant velocity that all are pushed by actions; slots do not show it."""
    num_frames = CONTEXT + HORIZON
    place = torch.rand(batch_size, K, 2, generator=generator) - 0.5
    velocity = 0.2 * torch.randn(batch_size, K, 2, generator=generator)
    action = 0.2 * torch.randn(batch_size, num_frames, 2, generator=generator)
    pushed = action.cumsum(1).roll(1, 1)
    pushed[:, 0] = 0
    time = torch.arange(num_frames)[:, None, None]
    places = place[:, None] + time * velocity[:, None] + pushed[:, :, None]
    names = torch.randn(batch_size, 1, K, D - 2, generator=generator).expand(-1, num_frames, -1, -1)
    return torch.cat([places, 0.3 * names], dim=-1), action


def errors(dynamics, slots, action):
    """What is learned from, and errors of places: of the rollout, and if nothing changed."""
    is_first = torch.zeros(len(slots), CONTEXT - 1, dtype=torch.bool)
    state = dynamics.initial_state(len(slots))
    _, state = dynamics.observe(slots[:, : CONTEXT - 1], action[:, : CONTEXT - 1], state, is_first)
    last, truth = slots[:, CONTEXT - 1], slots[:, CONTEXT:]
    rest = action[:, CONTEXT - 1 : -1]
    imagined = dynamics.imagine(last, state, rest, HORIZON)
    costs = [cost.mean() for cost in dynamics.costs(imagined.prediction, truth).values()]
    error, floor = (imagined.slots - truth).square(), (last[:, None] - truth).square()
    return error.mean() + sum(costs), error[..., :2].mean(), floor[..., :2].mean()


def learn(name, num_steps, *options, rate=2e-3):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose(overrides=[f"+dynamics={name}", *SIZES, *options])
    torch.manual_seed(0)
    dynamics = build(config)["dynamics"]
    optimizer = torch.optim.Adam(dynamics.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        loss, _, _ = errors(dynamics, *points(32, generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(dynamics.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        _, error, floor = errors(dynamics.eval(), *points(256, generator))
    return (error / floor).item()


SMALL = ("dynamics.dim=32", "dynamics.num_layers=2", "dynamics.num_heads=2")


def test_a_velocity_that_no_frame_shows_is_learned_from_the_past():
    assert learn("transformer", 60, *SMALL) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share", "options"),
    [
        ("slotformer", 0.5, ("dynamics.num_layers=2",)),
        ("independent", 0.6, ()),
        ("recurrent", 0.2, ()),
        ("recurrent_scan", 0.3, ()),
        # One frame tells what the action does, but no velocity.
        ("graph", 0.7, ()),
    ],
)
def test_every_dynamics_learns(name, share, options):
    assert learn(name, 120, *options) < share


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer_categorical", "recurrent_categorical"])
def test_categoricals_learn_to_go_round_a_ring(name):
    # Each slot is at one of 6 places of a ring; action 1 moves all of them on, action 0 none.
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(6, D, generator=generator)
    sizes = ["+slot_dim=12", "+num_actions=2", "+action_dim=0"]
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose(overrides=[f"+dynamics={name}", *sizes, "dynamics.dynamics.num_layers=1"])
    torch.manual_seed(0)
    dynamics = build(config)["dynamics"]
    optimizer = torch.optim.Adam(dynamics.parameters(), lr=2e-3)

    def rollout(batch_size):
        action = torch.randint(2, (batch_size, 6), generator=generator)
        start = torch.randint(6, (batch_size, 1, K), generator=generator)
        places = (start + torch.nn.functional.pad(action.cumsum(1), (1, 0))[..., None]) % 6
        slots = table[places]
        imagined = dynamics.imagine(
            slots[:, 0], dynamics.initial_state(batch_size), action, action.shape[1]
        )
        return imagined, slots[:, 1:], places[:, 1:]

    for _ in range(350):
        imagined, truth, _ = rollout(32)
        costs = dynamics.costs(imagined.prediction, truth).values()
        loss = (imagined.slots - truth).square().mean() + sum(cost.mean() for cost in costs)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(dynamics.parameters(), 1.0)
        optimizer.step()
    dynamics.eval()
    with torch.no_grad():
        imagined, _, places = rollout(64)
    found = torch.cdist(imagined.slots, table.expand(64, 6, -1, -1)).argmin(-1)
    assert (found == places)[:, -1].double().mean() > 0.9
