import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ocrl.nn.scan import GatedScan, linear_scan


def sequential(decay: Tensor, inputs: Tensor) -> Tensor:
    hidden, outputs = torch.zeros_like(inputs[:, 0]), []
    for a, b in zip(decay.unbind(1), inputs.unbind(1), strict=True):
        hidden = a * hidden + b
        outputs.append(hidden)
    return torch.stack(outputs, 1)


def draw(num_frames: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, num_frames, 3)
    decay = torch.rand(shape, generator=generator, dtype=torch.float64)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    return decay.requires_grad_(), inputs.requires_grad_()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 33), st.integers(0, 99))
def test_equals_the_loop_with_gradients(num_frames: int, seed: int) -> None:
    decay, inputs = draw(num_frames, seed)
    ours, theirs = linear_scan(decay, inputs), sequential(decay, inputs)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), (decay, inputs)),
        torch.autograd.grad(theirs.square().sum(), (decay, inputs), materialize_grads=True),
    )


def test_golden() -> None:
    hidden = linear_scan(torch.full((1, 4, 1), 0.5), torch.tensor([8.0, 0, 4, 1]).view(1, 4, 1))
    assert hidden.flatten().tolist() == [8.0, 4.0, 6.0, 4.0]


def test_gradients_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(linear_scan, draw(6))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(1, 2\) and \(1, 3\)"):
        linear_scan(torch.ones(1, 2), torch.ones(1, 3))


def test_backward_keeps_two_tensors() -> None:
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        linear_scan(*draw(32))
    assert len(kept) == 2


@pytest.mark.parametrize("value", [-200.0, 0.0, 200.0])
def test_gates_stay_finite_when_shut_or_open(value: float) -> None:
    mixer = GatedScan(4, hidden_dim=6)
    torch.nn.init.constant_(mixer.to_decay.bias, value)
    slots = torch.randn(2, 5, 3, 4, requires_grad=True)
    update = mixer(slots, torch.zeros(2, 5, dtype=torch.int64))
    update.sum().backward()
    assert update.isfinite().all() and slots.grad is not None and slots.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


def test_decays_start_in_their_range() -> None:
    mixer = GatedScan(4, hidden_dim=5)
    torch.nn.init.constant_(mixer.to_decay.bias, 80.0)
    decay, _ = mixer._gates(torch.randn(1, 1, 1, 4))
    assert decay.flatten()[[0, -1]].tolist() == pytest.approx([0.5, 0.99], abs=1e-5)


def test_an_open_gate_writes_the_rest_of_the_decay() -> None:
    mixer = GatedScan(4, hidden_dim=5)
    torch.nn.init.constant_(mixer.to_write.bias, 80.0)
    slots = torch.randn(1, 1, 1, 4)
    decay, written = mixer._gates(slots)
    expected = (1 - decay.square()).sqrt() * mixer.to_in(slots)
    torch.testing.assert_close(written, expected)
    assert decay.min().item() > 0 and decay.max().item() < 1


def test_memory_fades_and_ends_with_the_episode() -> None:
    torch.manual_seed(0)
    mixer = GatedScan(4, hidden_dim=6).eval()
    slots = torch.randn(1, 9, 2, 4)
    other = slots.clone()
    other[:, 0] += 1.0
    segments = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, 1]])
    with torch.no_grad():
        change = (mixer(slots, segments) - mixer(other, segments)).abs().amax((0, 2, 3))
    assert change[1] > change[5] > 0
    assert change[6:].tolist() == [0.0, 0.0, 0.0]
    assert math.isfinite(change[0].item())


def test_reset_parameters_scales_the_output_only() -> None:
    mixers = []
    for gain in (1.0, 0.25):
        mixer = GatedScan(4, hidden_dim=6)
        torch.manual_seed(0)
        mixer.reset_parameters(gain)
        mixers.append(mixer)
    full, scaled = mixers
    torch.testing.assert_close(scaled.to_out.weight, full.to_out.weight * 0.25)
    torch.testing.assert_close(scaled.to_in.weight, full.to_in.weight)
