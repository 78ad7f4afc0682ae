import pytest
import torch

from ocrl.dynamics.graph import GraphDynamics

B, T, K, D = 2, 3, 4, 5
SETTINGS = {
    "num_actions": 0,
    "action_dim": 2,
    "dim": 8,
    "hidden_dim": 12,
    "num_rounds": 2,
    "interacts": True,
    "is_residual": True,
}


def make(**changes):
    torch.manual_seed(0)
    model = GraphDynamics(D, **SETTINGS | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def clip():
    generator = torch.Generator().manual_seed(1)
    slots = torch.randn(B, T, K, D, generator=generator)
    action = torch.randn(B, T, 2, generator=generator)
    return slots, action, torch.zeros(B, T, dtype=torch.bool)


def test_nothing_but_the_present_frame_counts():
    slots, action, is_first = clip()
    model = make()
    for t in range(T):
        alone = model(slots[:, t : t + 1], action[:, t : t + 1], ~is_first[:, :1])
        torch.testing.assert_close(model(slots, action, is_first)[:, t], alone[:, 0])
    assert model.initial_state(B) == {}


def test_slots_touch_only_if_they_interact():
    slots, action, is_first = clip()
    changed = slots.clone()
    changed[:, :, 0] += 1
    for interacts in (True, False):
        model = make(interacts=interacts)
        before, after = (model(value, action, is_first)[:, :, 1:] for value in (slots, changed))
        assert torch.allclose(before, after) is not interacts


def test_it_learns_a_rule_of_two_slots():
    # The first two numbers of a slot move with the action away from the mean of all others.
    torch.manual_seed(0)
    model = make(num_rounds=1, dim=16, hidden_dim=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        slots, action = torch.randn(64, 1, K, D), torch.randn(64, 1, 2)
        others = (slots.sum(2, keepdim=True) - slots) / (K - 1)
        target = slots + 0.5 * (slots - others)
        target[..., :2] += action[:, :, None]
        loss = (model(slots, action, torch.ones(64, 1).bool()) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.15 * (0.5**2 * K / (K - 1) + 2 / D), losses[-1]


def contact_error(**coordinates):
    """Of its variance, after learning that a slot moves if another is near in the first number."""
    torch.manual_seed(0)
    model = GraphDynamics(
        D,
        **SETTINGS | {"num_rounds": 1, "dim": 16, "hidden_dim": 32},
        **coordinates,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses, variances = [], []
    for _ in range(300):
        slots = 2 * torch.rand(64, 1, K, D) - 1
        apart = (slots[..., :, None, 0] - slots[..., None, :, 0]).abs() + 9 * torch.eye(K)
        touches = (apart.amin(-1) < 0.1).float()
        target = slots.clone()
        target[..., 1] += touches
        predicted = model(slots, torch.zeros(64, 1, 2), torch.ones(64, 1).bool())
        loss = (predicted - target)[..., 1].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        variances.append(touches.var().item())
    return sum(losses[-50:]) / sum(variances[-50:])


def test_coordinates_tell_who_touches_whom():
    given, learned, without = (
        contact_error(places=[0]),
        contact_error(num_coordinates=4),
        contact_error(),
    )
    assert given < learned < 0.7 * without, (given, learned, without)


def test_places_are_of_no_use_to_slots_that_do_not_interact():
    assert make(interacts=False, places=[0, 1]).displacements is None


def test_without_norms_there_are_none():
    def norms(model):
        return [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]

    assert norms(make()) and not norms(make(normalizes=False))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_coordinates 0 with interacts=false"):
        make(interacts=False, num_coordinates=2)
    with pytest.raises(ValueError, match="num_rounds of at least 1, got 0"):
        make(num_rounds=0)
    with pytest.raises(ValueError, match=r"continuous actions \(B,T,2\), got none"):
        make()(clip()[0], None, clip()[2])
