import pytest
import torch

from ocrl.nn.temporal import segments_of
from ocrl.nn.time_mixer import TimeAttention


@pytest.mark.parametrize("across_slots", [False, True])
def test_time_attention_streams(across_slots: bool) -> None:
    mixer = TimeAttention(8, num_heads=2, window=3, max_distance=3, across_slots=across_slots)
    slots = torch.randn(2, 7, 3, 8)
    is_first = torch.zeros(2, 7, dtype=torch.bool)
    is_first[:, 0] = is_first[1, 3] = True
    whole = mixer(slots, segments_of(is_first))
    state, age = mixer.initial_state(2, num_slots=3), torch.full((2,), -1)
    for t in range(7):
        age = torch.where(is_first[:, t], 0, age + 1)
        update, state = mixer.step(slots[:, t], state, age)
        torch.testing.assert_close(update, whole[:, t])


def test_time_attention_keeps_slots_apart_unless_joint() -> None:
    slots, segments = torch.randn(1, 4, 3, 8), torch.zeros(1, 4, dtype=torch.int64)
    changed = slots.clone()
    changed[:, :, 0] += 1.0
    for across_slots in (False, True):
        mixer = TimeAttention(8, num_heads=2, window=4, max_distance=4, across_slots=across_slots)
        same = torch.equal(mixer(slots, segments)[:, :, 1:], mixer(changed, segments)[:, :, 1:])
        assert same != across_slots
        assert mixer.mixes_slots == across_slots


def test_golden_average_of_the_window() -> None:
    # No query and no bias: the plain mean of the values of the frames seen.
    mixer = TimeAttention(2, num_heads=1, window=2, max_distance=2, across_slots=False)
    with torch.no_grad():
        for layer in (mixer.attention.to_v, mixer.attention.to_out):
            layer.weight.copy_(torch.eye(2))
        mixer.attention.to_q.weight.zero_()
        mixer.time_bias.network[2].weight.zero_()
        slots = torch.tensor([2.0, 4.0, 8.0])[None, :, None, None].expand(1, 3, 1, 2)
        update = mixer(slots, torch.tensor([[0, 0, 0]]))
        apart = mixer(slots, torch.tensor([[0, 0, 1]]))
    assert update[0, :, 0, 0].tolist() == [2.0, 3.0, 6.0]
    assert apart[0, :, 0, 0].tolist() == [2.0, 3.0, 8.0]


def test_window_must_be_positive() -> None:
    with pytest.raises(ValueError, match="time window >= 1, got 0"):
        TimeAttention(8, num_heads=2, window=0, max_distance=3, across_slots=False)
