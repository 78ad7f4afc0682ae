import math

import pytest
import torch

from ocrl.objectives.agreement import Agreement
from ocrl.types import Clip, DecoderOutput, SlotOutput


def run(attn: torch.Tensor, masks: torch.Tensor, progress: float = 1.0) -> torch.Tensor:
    objective = Agreement()
    objective.set_progress(progress)
    batch_size, num_frames, num_slots = attn.shape[:3]
    clip = Clip(
        torch.zeros(batch_size, num_frames, 3, *masks.shape[-2:]),
        torch.zeros(batch_size, num_frames, dtype=torch.bool),
    )
    slots = torch.zeros(batch_size, num_frames, num_slots, 4)
    return objective(clip, SlotOutput(slots, attn), DecoderOutput(clip.video, masks))


def test_equal_to_the_formula_by_hand() -> None:
    # One frame of 2 x 4 pixels, two tokens of 2 x 2: the first drawn 3/4 by slot 0.
    masks = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    masks = torch.stack([masks, 1 - masks])[None, None]
    attn = torch.tensor([[0.5, 0.2], [0.5, 0.8]])[None, None]
    expected = -(0.75 * math.log(0.5) + 0.25 * math.log(0.5) + math.log(0.8)) / 2
    assert run(attn, masks).item() == pytest.approx(expected, rel=1e-5)
    assert run(attn, masks, progress=0.25).item() == pytest.approx(expected / 4, rel=1e-5)


def test_coarse_masks_count_for_all_tokens_of_a_cell() -> None:
    left_half = torch.tensor([[1.0, 0.0]])
    masks = torch.stack([left_half, 1 - left_half])[None, None]
    attn = torch.rand(1, 1, 2, 8).softmax(2)  # 2 x 4 tokens
    left, right = attn[0, 0, 0].view(2, 4)[:, :2], attn[0, 0, 1].view(2, 4)[:, 2:]
    expected = -(left.log().sum() + right.log().sum()) / 8
    torch.testing.assert_close(run(attn, masks), expected)


def test_teaches_the_attention_and_not_the_masks() -> None:
    masks = torch.rand(2, 3, 4, 8, 8, requires_grad=True)
    logits = torch.randn(2, 3, 4, 16, requires_grad=True)
    run(logits.softmax(2), masks.softmax(2)).backward()
    assert masks.grad is None
    assert logits.grad is not None and logits.grad.abs().sum() > 0


def test_attention_on_another_grid_is_named() -> None:
    with pytest.raises(ValueError, match="proportions of masks of 8 x 8, got 15 tokens"):
        run(torch.rand(1, 1, 2, 15), torch.rand(1, 1, 2, 8, 8))
