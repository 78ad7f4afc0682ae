"""The cached transformer equals one that reads its whole history again at every step."""

import runpy
from pathlib import Path

import pytest
import torch

from ocrl.check import check_dynamics
from ocrl.dynamics.transformer import TransformerDynamics

TEXTBOOK = runpy.run_path(str(Path(__file__).with_name("textbook_dynamics.py")))
B, K, D, T, H = 2, 3, 6, 4, 5
SETTINGS = {
    "num_actions": 4,
    "action_dim": 0,
    "action_binding": "token",
    "dim": 8,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_dim": 16,
    "window": 3,
    "interaction": "joint",
    "is_residual": True,
}


def make(**changes):
    torch.manual_seed(0)
    model = TransformerDynamics(D, **SETTINGS | changes).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def history(num_frames=T):
    generator = torch.Generator().manual_seed(1)
    slots = torch.randn(B, num_frames, K, D, generator=generator, dtype=torch.float64)
    action = torch.randint(4, (B, num_frames), generator=generator)
    is_first = torch.zeros(B, num_frames, dtype=torch.bool)
    is_first[1, 2] = True
    return slots, action, is_first


INTERACTIONS = pytest.mark.parametrize(
    ("interaction", "binding"),
    [("joint", "token"), ("object_then_time", "token"), ("none", "slot"), ("joint", "slot")],
)


@INTERACTIONS
def test_imagination_equals_reading_the_whole_history_at_every_step(interaction, binding):
    model = make(interaction=interaction, action_binding=binding)
    slots, action, is_first = history(T + H - 1)
    expected = TEXTBOOK["imagine_again"](model, slots[:, :T], action, is_first[:, :T])
    state = model.initial_state(B)
    past = slice(0, T - 1)
    _, state = model.observe(slots[:, past], action[:, past], state, is_first[:, past])
    imagined = model.imagine(slots[:, T - 1], state, action[:, T - 1 :], H)
    # Rotations are float32.
    torch.testing.assert_close(imagined.slots, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(imagined.action, action[:, T - 1 :])


@INTERACTIONS
def test_a_clip_in_parallel_equals_reading_every_history(interaction, binding):
    model = make(interaction=interaction, action_binding=binding, is_residual=False)
    slots, action, is_first = history()
    every = [
        TEXTBOOK["read_history"](model, slots[:, :end], action[:, :end], is_first[:, :end])
        for end in range(1, T + 1)
    ]
    torch.testing.assert_close(
        model(slots, action, is_first), torch.stack(every, dim=1), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("interaction", ["joint", "object_then_time"])
@pytest.mark.parametrize("window", [1, 2])
def test_the_contract_holds_where_the_window_is_shorter_than_the_clip(interaction, window):
    check_dynamics(make(interaction=interaction, window=window).float(), num_slots=K)


def test_one_layer_sees_its_window_and_no_more():
    model = make(num_layers=1, window=3)
    slots, action, _ = history()
    is_first = torch.zeros(B, T, dtype=torch.bool)
    moved = slots.clone()
    moved[:, 0] += 1
    change = (model(slots, action, is_first) - model(moved, action, is_first)).abs().amax((0, 2, 3))
    assert (change > 1e-6).tolist() == [True, True, True, False]


def test_what_is_kept_does_not_grow_beyond_the_window():
    model = make()
    slots, action, is_first = history()
    _, state = model.observe(slots, action, model.initial_state(B), is_first)
    assert state["layer0"].shape[2] == 2 and state["age"].tolist() == [4, 2]


def test_an_untrained_residual_dynamics_says_that_nothing_changes():
    slots, action, is_first = history()
    model = TransformerDynamics(D, **SETTINGS).double()
    assert torch.equal(model(slots, action, is_first), slots)


def test_slots_interact_only_if_they_are_to():
    slots, action, is_first = history()
    changed = slots.clone()
    changed[:, :, 0] += 1
    for interaction, touches in (("joint", True), ("object_then_time", True), ("none", False)):
        model = make(interaction=interaction, action_binding="slot")
        before, after = model(slots, action, is_first), model(changed, action, is_first)
        assert torch.allclose(before[:, :, 1:], after[:, :, 1:]) is not touches


@pytest.mark.parametrize("binding", ["token", "slot"])
def test_the_action_counts(binding):
    slots, action, is_first = history()
    model = make(action_binding=binding)
    other = (action + 1) % 4
    assert not torch.allclose(model(slots, action, is_first), model(slots, other, is_first))


def test_bad_arguments_are_refused():
    for changes, words in (
        ({"interaction": "some"}, "interaction in"),
        ({"action_binding": "both"}, "action_binding 'token' or 'slot', got 'both'"),
        ({"interaction": "none"}, "action_binding 'slot' with interaction 'none'"),
        ({"num_heads": 3}, "got 3 heads and dim 8"),
        ({"window": 0}, "window of at least 1"),
        ({"action_dim": 2}, "got 4 and 2"),
    ):
        with pytest.raises(ValueError, match=words):
            make(**changes)


def test_horizons_and_actions_that_do_not_fit_are_refused():
    model = make()
    slots, action, is_first = history()
    state = model.initial_state(B)
    with pytest.raises(ValueError, match="horizon of at least 1, got 0"):
        model.imagine(slots[:, 0], state, action, 0)
    with pytest.raises(ValueError, match=r"expected actions \(B,3,...\), got \(2, 4\)"):
        model.imagine(slots[:, 0], state, action, 3)
    with pytest.raises(ValueError, match="below 4, got none"):
        model(slots, None, is_first)
