import pytest
import torch
from torch import nn

from ocrl.nn.recurrence import SlotGRU
from ocrl.nn.scan import GatedScan

B, T, K, D, C = 2, 5, 3, 4, 6


def draw():
    generator = torch.Generator().manual_seed(0)
    slots = torch.randn(B, T, K, D, generator=generator, dtype=torch.float64)
    goes_on = torch.ones(B, T, dtype=torch.bool)
    goes_on[1, 3] = False
    return slots, goes_on


def test_the_gru_is_torchs_for_every_slot():
    torch.manual_seed(0)
    module, cell = SlotGRU(D, hidden_dim=C).double(), nn.GRUCell(D, C).double()
    names = {"weight_ih": "from_input.weight", "bias_ih": "from_input.bias"}
    names |= {"weight_hh": "from_state.weight", "bias_hh": "from_state.bias"}
    weights = module.state_dict()
    cell.load_state_dict({ours: weights[theirs] for ours, theirs in names.items()})
    slots, goes_on = draw()
    hidden, expected = torch.zeros(B * K, C, dtype=torch.float64), []
    for t in range(T):
        hidden = hidden * goes_on[:, t].repeat_interleave(K)[:, None]
        hidden = cell(slots[:, t].flatten(0, 1), hidden)
        expected.append(module.to_out(hidden).view(B, K, D))
    got, state = module.advance(slots, slots.new_zeros(B, 1, C), goes_on)
    torch.testing.assert_close(got, torch.stack(expected, dim=1))
    torch.testing.assert_close(state, hidden.view(B, K, C))


@pytest.mark.parametrize("kind", [SlotGRU, GatedScan])
def test_a_clip_in_two_parts_is_the_clip(kind):
    torch.manual_seed(0)
    module = kind(D, hidden_dim=C).double()
    slots, goes_on = draw()
    start = slots.new_zeros(B, 1, C)
    whole, last = module.advance(slots, start, goes_on)
    first, state = module.advance(slots[:, :2], start, goes_on[:, :2])
    second, state = module.advance(slots[:, 2:], state, goes_on[:, 2:])
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(state, last)


def test_a_scan_that_goes_on_is_the_scan_over_episodes():
    torch.manual_seed(0)
    module = GatedScan(D, hidden_dim=C).double()
    slots, goes_on = draw()
    expected = module(slots, (~goes_on).long().cumsum(1))
    got, _ = module.advance(slots, slots.new_zeros(B, 1, C), goes_on)
    torch.testing.assert_close(got, expected)


def test_the_gru_is_float32_under_autocast():
    module = SlotGRU(D, hidden_dim=C)
    slots, goes_on = draw()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        update, state = module.advance(slots.bfloat16(), torch.zeros(B, 1, C), goes_on)
    assert update.dtype == state.dtype == torch.float32
