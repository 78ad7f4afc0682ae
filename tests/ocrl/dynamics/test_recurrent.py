import pytest
import torch

from ocrl.dynamics.recurrent import RecurrentDynamics

B, T, K, D = 2, 6, 3, 4
SETTINGS = {
    "num_actions": 3,
    "action_dim": 0,
    "action_binding": "token",
    "dim": 8,
    "hidden_dim": 10,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_dim": 8,
    "recurrence": "gru",
    "interacts": True,
    "is_residual": True,
}


def make(**changes):
    torch.manual_seed(0)
    model = RecurrentDynamics(D, **SETTINGS | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def clip():
    generator = torch.Generator().manual_seed(1)
    slots = torch.randn(B, T, K, D, generator=generator)
    action = torch.randint(3, (B, T), generator=generator)
    return slots, action, torch.zeros(B, T, dtype=torch.bool)


@pytest.mark.parametrize("recurrence", ["gru", "scan"])
def test_the_first_frame_is_remembered_until_an_episode_begins(recurrence):
    slots, action, is_first = clip()
    is_first[1, 4] = True
    model = make(recurrence=recurrence)
    changed = slots.clone()
    changed[:, 0] += 1
    moved = (model(slots, action, is_first) - model(changed, action, is_first)).abs().amax((2, 3))
    assert (moved > 1e-7).tolist() == [[True] * T, [True] * 4 + [False] * 2]


@pytest.mark.parametrize("recurrence", ["gru", "scan"])
def test_slots_touch_only_if_they_interact(recurrence):
    slots, action, is_first = clip()
    changed = slots.clone()
    changed[:, :, 0] += 1
    for interacts in (True, False):
        binding = "token" if interacts else "slot"
        model = make(recurrence=recurrence, interacts=interacts, action_binding=binding)
        before, after = (model(value, action, is_first)[:, :, 1:] for value in (slots, changed))
        assert torch.allclose(before, after) is not interacts


def test_the_state_is_of_one_size_however_long_the_stream():
    slots, action, is_first = clip()
    model = make()
    _, state = model.observe(slots, action, model.initial_state(B), is_first)
    # The action is a line of its own, with a memory.
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "layer0": (B, K + 1, 10),
        "layer1": (B, K + 1, 10),
    }


def test_bad_arguments_are_refused():
    for changes, words in (
        ({"recurrence": "lstm"}, "recurrence 'gru' or 'scan', got 'lstm'"),
        ({"interacts": False}, "action_binding 'slot' with interacts false"),
        ({"num_heads": 3}, "got 3 heads and dim 8"),
    ):
        with pytest.raises(ValueError, match=words):
            make(**changes)
