"""Which slots pay, and how much, against a plain loop in float64."""

import math

import pytest
import torch
from torch import Tensor, nn

from ocrl.objectives.slot_regularization import SlotRegularization, doubles, specialisation
from ocrl.types import Clip, DecoderOutput, SlotOutput


def run(slots: Tensor, attn: Tensor, *, progress: float = 0.0, until: float = 0.1) -> Tensor:
    objective = SlotRegularization(until)
    objective.set_progress(progress)
    batch_size, num_frames = slots.shape[:2]
    clip = Clip(
        torch.zeros(batch_size, num_frames, 3, 2, 2), torch.zeros(batch_size, num_frames).bool()
    )
    decoded = DecoderOutput(clip.video, torch.ones(batch_size, num_frames, 1, 1, 1))
    return objective(clip, SlotOutput(slots, attn), decoded)


def test_specialisation_is_the_divergence_from_uniform() -> None:
    attn = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.0, 0.7, 0.0, 0.0], [0.1, 0.1, 0.0, 0.0]])
    expected = torch.tensor([0.0, math.log(4), math.log(2)])
    torch.testing.assert_close(specialisation(attn), expected, atol=1e-5, rtol=0)


def test_doubles_by_hand() -> None:
    # 0 and 1 are nearest; 1 is less special. Then 0 and 2, of which 0 is.
    angles = torch.tensor([0.0, 0.1, 0.4, 1.5, 3.0])
    slots = torch.stack([angles.cos(), angles.sin()], dim=1)[None] * torch.tensor(
        [1.0, 9.0, 2.0, 0.1, 5.0]
    ).view(1, 5, 1)
    special = torch.tensor([[0.5, 0.4, 0.9, 0.1, 0.0]])
    assert doubles(slots, special, number=1).tolist() == [[False, True, False, False, False]]
    assert doubles(slots, special, number=2).tolist() == [[True, True, False, False, False]]
    # Of 2, 3 and 4 the first two are 1.1 apart, the last two 1.5.
    assert doubles(slots, special, number=3).tolist() == [[True, True, False, True, False]]


def reference(slots: Tensor, attn: Tensor) -> Tensor:
    """The published procedure, in loops and float64."""
    slots, attn = slots.double(), attn.double()
    num_slots, num_tokens = attn.shape[2:]
    total = torch.zeros((), dtype=torch.float64)
    for sample in range(len(slots)):
        looks = attn[sample] / attn[sample].sum(-1, keepdim=True)
        divergence = (looks * (looks * num_tokens).log()).sum(-1)
        left, paying = list(range(num_slots)), []
        for _ in range(num_slots // 2):
            pairs = [(i, j) for i in left for j in left if i < j]
            last = slots[sample, -1]
            i, j = max(
                pairs,
                key=lambda pair: float(
                    nn.functional.cosine_similarity(last[pair[0]], last[pair[1]], dim=0)
                ),
            )
            paying.append(i if divergence[:, i].mean() <= divergence[:, j].mean() else j)
            left.remove(paying[-1])
        total = total + divergence[:, paying].mean()
    return total / len(slots)


@pytest.mark.parametrize("num_slots", [2, 5, 8])
def test_the_loss_and_its_gradient_are_those_of_the_loop(num_slots: int) -> None:
    generator = torch.Generator().manual_seed(num_slots)
    slots = torch.randn(4, 3, num_slots, 6, generator=generator)
    logits = torch.randn(4, 3, num_slots, 10, generator=generator, requires_grad=True)
    loss, expected = run(slots, logits.softmax(2)), reference(slots, logits.softmax(2))
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_it_ends_with_its_share_of_training() -> None:
    slots, attn = torch.randn(2, 1, 4, 5), torch.rand(2, 1, 4, 9)
    early = run(slots, attn, progress=0.09)
    assert early > 0 and early == run(slots, attn)
    assert run(slots, attn, progress=0.1) == run(slots, attn, progress=1.0) == 0
    assert run(slots, attn, progress=0.1, until=0.5) == early
    with pytest.raises(ValueError, match=r"in \(0,1\], got 0"):
        SlotRegularization(0)


def test_a_slot_that_pays_comes_to_look_everywhere() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 4, 12, requires_grad=True)
    slots = torch.randn(1, 1, 4, 5)
    before = specialisation(logits.softmax(2).detach())
    optimizer = torch.optim.SGD([logits], lr=5.0)
    for _ in range(50):
        optimizer.zero_grad()
        run(slots, logits.softmax(2)).backward()
        optimizer.step()
    after = specialisation(logits.softmax(2).detach())
    pays = doubles(slots[:, -1], before.mean(1), number=2)
    assert (after[:, 0][pays] < 0.1 * before[:, 0][pays]).all()


def test_one_slot_and_hard_attention_are_finite() -> None:
    assert run(torch.randn(1, 1, 1, 5), torch.ones(1, 1, 1, 9)) == 0
    attn = torch.eye(3)[None, None].requires_grad_()
    run(torch.randn(1, 1, 3, 5), attn).backward()
    assert attn.grad is not None and attn.grad.isfinite().all()
