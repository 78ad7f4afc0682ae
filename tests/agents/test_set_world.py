"""World models of given rows: what counts over the ends of episodes, and where imagining starts."""

from dataclasses import replace

import pytest
import torch

from ocrl.agents.replay import Window
from ocrl.agents.set_world import SetWorld
from ocrl.dynamics.graph import GraphDynamics
from ocrl.dynamics.recurrent import RecurrentDynamics
from ocrl.dynamics.transformer import TransformerDynamics
from ocrl.nn.outcome import OutcomeHead

KINDS = {
    "graph": (GraphDynamics, {"hidden_dim": 8, "num_rounds": 1, "interacts": True}),
    "transformer": (
        TransformerDynamics,
        {"num_layers": 2, "num_heads": 2, "mlp_dim": 8, "window": 3, "action_binding": "token"}
        | {"interaction": "object_then_time"},
    ),
    "recurrent": (
        RecurrentDynamics,
        {"hidden_dim": 8, "num_layers": 1, "num_heads": 2, "mlp_dim": 8, "action_binding": "token"}
        | {"recurrence": "gru", "interacts": True},
    ),
}


def world(kind="transformer", *, action_dim=0, num_context=2, horizon=4, **weights):
    torch.manual_seed(0)
    sizes = {"slot_dim": 4, "num_actions": 0 if action_dim else 3, "action_dim": action_dim}
    cls, arguments = KINDS[kind]
    dynamics = cls(**sizes, dim=8, is_residual=True, **arguments)
    with torch.no_grad():
        for parameter in dynamics.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    outcome = OutcomeHead(
        **sizes,
        **{"has_comparison": True, "dim": 8, "num_layers": 1, "num_heads": 2, "mlp_dim": 8},
        **{"num_bins": 11, "low": -2.0, "high": 2.0},
    )
    weights = {"slots": 1.0, "reward": 1.0, "continue": 1.0} | weights
    return SetWorld(
        dynamics, outcome=outcome, weights=weights, num_context=num_context, horizon=horizon
    )


def windows(*, starts=(), action_dim=0, batch_size=2, length=6):
    generator = torch.Generator().manual_seed(1)
    shape = (batch_size, length)
    action = torch.randint(3, shape, generator=generator)
    if action_dim:
        action = torch.rand(*shape, action_dim, generator=generator) * 2 - 1
    is_first = torch.zeros(shape, dtype=torch.bool)
    is_first[:, 0] = True
    terminated = torch.zeros(shape, dtype=torch.bool)
    for row, t in starts:
        is_first[row, t] = True
        terminated[row, t - 1] = True
    reward = torch.rand(shape, generator=generator)
    rows = torch.randn(*shape, 3, 4, generator=generator)
    return rows, Window({}, action, reward, terminated, torch.zeros_like(terminated), is_first)


@pytest.mark.parametrize("action_dim", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_rollout_goes_on_from_the_true_rows_of_a_new_episode(kind, action_dim):
    model = world(kind, action_dim=action_dim).eval()
    rows, window = windows(starts=[(0, 3)], action_dim=action_dim)
    found = model(rows, window).prediction.slots
    # The first row of the batch is two pieces, each foretold alone; the second is one rollout.
    pieces = [(slice(0, 1), slice(0, 3)), (slice(1, 2), slice(0, 6))]
    for row, time in pieces:
        names = ("action", "reward", "terminated", "truncated", "is_first")
        cut = replace(window, **{name: getattr(window, name)[row, time] for name in names})
        alone = model(rows[row, time], cut).prediction.slots
        torch.testing.assert_close(found[row, : alone.shape[1]], alone)
    state = model.dynamics.initial_state(1)
    alone = model.dynamics.imagine(rows[:1, 3], state, window.action[:1, 3:5], 2).slots
    torch.testing.assert_close(found[:1, 3:], alone)


def test_what_leads_into_another_episode_does_not_count():
    model = world()
    rows, window = windows(starts=[(0, 3), (1, 2)])
    losses = model(rows, window).losses
    assert set(losses) == {"slots", "event", "reward", "continue"}
    changed = rows.clone()
    # The error of a prediction across the boundary would change, nothing else sees the row ...
    prediction = model(rows, window).prediction.slots
    error = (prediction - rows[:, 1:]).square().mean((-2, -1))
    is_counted = ~window.is_first[:, 1:]
    torch.testing.assert_close(losses["slots"], error[is_counted].mean())
    assert is_counted.sum() == 8
    # ... and a reward that came with a first frame is nobody's.
    other = replace(window, reward=window.reward + 5 * window.is_first)
    assert torch.equal(model(changed, other).losses["reward"], losses["reward"])


def test_outcomes_are_read_from_true_rows_where_the_dynamics_was_given_them():
    model = world()
    rows, window = windows(starts=[(0, 3)])
    output = model(rows, window)
    # Two frames are context; the first episode of the batch is followed by another.
    is_given = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)[..., None, None]
    said = output.prediction.slots
    before = torch.where(is_given, rows[:, :-1], torch.cat([rows[:, :1], said[:, :-1]], dim=1))
    outcome = model.outcome(before, window.action[:, :-1], said)
    taught = {"reward": window.reward[:, 1:], "terminated": window.terminated[:, 1:]}
    expected = model.outcome.losses(outcome, **taught)["event"][~window.is_first[:, 1:]].mean()
    torch.testing.assert_close(output.losses["event"], expected)


def test_the_total_is_weighted_and_what_has_no_weight_is_not_computed():
    rows, window = windows()
    model = world(reward=0.0, slots=2.0)
    output = model(rows, window)
    losses = output.losses
    assert set(losses) == {"slots", "event", "continue"} and not model.learns_outcomes
    torch.testing.assert_close(
        output.total, 2 * losses["slots"] + losses["event"] + losses["continue"]
    )


def test_surprise_is_of_what_was_said_from_true_rows():
    made = world(num_context=2)
    rows, window = windows()
    said = made(rows, window).prediction
    expected = (said.slots[:, :2] - rows[:, 1:3]).square().mean((-2, -1))
    torch.testing.assert_close(made.surprise(rows, said), expected)


def test_how_common_events_are_is_learned_from_typical_windows_alone():
    made = world()
    torch.nn.init.normal_(made.outcome.to_reward.weight)
    rows, window = windows(batch_size=3)
    first = Window(
        {},
        *(
            getattr(window, name)[:2]
            for name in ("action", "reward", "terminated", "truncated", "is_first")
        ),
    )
    losses, alone = made(rows, window, num_typical=2).losses, made(rows[:2], first).losses
    whole = made(rows, window).losses
    for name in ("event", "reward", "continue"):
        torch.testing.assert_close(losses[name], alone[name])
    torch.testing.assert_close(losses["slots"], whole["slots"])
    assert (losses["event"] - whole["event"]).abs() > 1e-5


def test_steps_besides_teach_outcomes_from_true_rows():
    model = world()
    (rows, window), (more, steps) = windows(), windows(batch_size=5, length=2, starts=[(3, 1)])
    steps = replace(steps, reward=steps.reward * (torch.arange(5) % 2)[:, None])
    plain, output = model(rows, window), model(rows, window, (more, steps))
    assert set(output.losses) - set(plain.losses) == {"balanced"}
    outcome = model.outcome(more[:, :1], steps.action[:, :1], more[:, 1:])
    expected = model.outcome.balanced_loss(
        outcome, reward=steps.reward[:, 1:], terminated=steps.terminated[:, 1:]
    )
    torch.testing.assert_close(output.losses["balanced"], expected)
    torch.testing.assert_close(output.total, plain.total + expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_context", [1, 2, 4])
def test_starts_have_read_their_context_and_no_earlier_episode(kind, num_context):
    model = world(kind, num_context=num_context).eval()
    rows, window = windows(starts=[(0, 3)])
    starts = model.starts(rows, window)
    frames = range(num_context - 1, 6)
    assert len(starts.rows) == 2 * len(frames)
    policy = torch.ones(1, 3, dtype=torch.int64)
    for place, (row, t) in enumerate((row, t) for row in range(2) for t in frames):
        torch.testing.assert_close(starts.rows[place], rows[row, t])
        assert float(starts.weight[place]) == (0 if (row, t) == (0, 2) else 1)
        begin = max(0, t - num_context + 1, 3 if row == 0 and t >= 3 else 0)
        context = slice(begin, t + 1)
        is_first = torch.zeros(1, t + 1 - begin, dtype=torch.bool)
        state = model.read(
            rows[row : row + 1, context], window.action[row : row + 1, context], is_first
        )
        alone = model.imagine(rows[row : row + 1, t], state, policy, 3)
        together = model.imagine(
            starts.rows, starts.state, policy.expand(len(starts.rows), -1), 3,
            is_first=starts.is_first,
        )  # fmt: skip
        torch.testing.assert_close(together.slots[place], alone.slots[0])
        torch.testing.assert_close(together.reward[place], alone.reward[0])


@pytest.mark.parametrize("num_starts", [1, 4, 10, 99])
def test_starts_that_are_drawn_are_some_of_all(num_starts):
    model = world(num_context=2).eval()
    rows, window = windows(starts=[(0, 3)])
    every, policy = model.starts(rows, window), torch.ones(10, 3, dtype=torch.int64)
    torch.manual_seed(0)
    starts = model.starts(rows, window, num_starts=num_starts)
    count = len(starts.rows)
    assert count == min(num_starts, 10) == len(every.rows[:num_starts])
    same = (starts.rows[:, None] == every.rows).all(dim=(-1, -2)).nonzero()
    assert len(same) == count and len(set(same[:, 1].tolist())) == count
    drawn = same[:, 1]
    torch.testing.assert_close(starts.weight, every.weight[drawn])
    assert torch.equal(starts.is_first, every.is_first[drawn])
    whole = model.imagine(every.rows, every.state, policy, 3, is_first=every.is_first)
    some = model.imagine(starts.rows, starts.state, policy[drawn], 3, is_first=starts.is_first)
    torch.testing.assert_close(some.slots, whole.slots[drawn])
    if 1 < num_starts < 10:
        again = model.starts(rows, window, num_starts=num_starts)
        assert not torch.equal(again.rows, starts.rows)


def test_a_horizon_beyond_that_of_training_is_said():
    model = world()
    rows, window = windows()
    starts = model.starts(rows, window)
    policy = torch.zeros(len(starts.rows), 5, dtype=torch.int64)
    with pytest.warns(UserWarning, match="trained on rollouts of 4 steps, and is asked for 5"):
        model.imagine(starts.rows, starts.state, policy, 5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image": 1.0}, "expected weights of .'continue', 'reward', 'slots'."),
        ({"num_context": 0}, "num_context and horizon of at least 1, got 0 and 4"),
    ],
)
def test_bad_settings(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        world(**changes)


@pytest.mark.parametrize("kind", KINDS)
def test_moves_are_foretold_from_true_rows_alone(kind):
    model = world(kind).eval()
    assert model.motion_length == (2 if kind == "graph" else 3)
    rows, window = windows(starts=[(0, 3)])
    output = model.move(rows, window)
    said = model.dynamics(rows[:, :-1], window.action[:, :-1], window.is_first[:, :-1])
    torch.testing.assert_close(output.prediction.slots, said)
    is_counted = ~window.is_first[:, 1:]
    expected = (said - rows[:, 1:]).square().mean((-2, -1))[is_counted].mean()
    torch.testing.assert_close(output.losses["slots"], expected)
    torch.testing.assert_close(output.total, expected)
    # Outcomes learn nothing from it, the dynamics does.
    output.total.backward()
    assert all(weight.grad is None for weight in model.outcome.parameters())
    assert any(weight.grad is not None for weight in model.dynamics.parameters())


def test_what_is_wrong_is_measured_as_was_asked_for():
    rows, window = windows()
    made = world()
    measured = SetWorld(
        made.dynamics,
        outcome=made.outcome,
        weights=made.weights,
        num_context=2,
        horizon=4,
        error=lambda predicted, target: (predicted - target).abs().sum((-2, -1)),
    )
    for foretold in (measured(rows, window), measured.move(rows, window)):
        sizes = (foretold.prediction.slots - rows[:, 1:]).abs().sum((-2, -1))
        torch.testing.assert_close(foretold.losses["slots"], sizes.mean())
        torch.testing.assert_close(measured.surprise(rows, foretold.prediction), sizes[:, :2])
