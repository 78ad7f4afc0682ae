import math

import pytest
import torch

from ocrl.objectives.mask_entropy import MaskEntropy
from ocrl.types import Clip, DecoderOutput, SlotOutput


def run(masks: torch.Tensor, *, progress: float = 1.0, region=None) -> torch.Tensor:
    objective = MaskEntropy(region)
    objective.set_progress(progress)
    clip = Clip(torch.zeros(1, 1, 3, *masks.shape[-2:]), torch.zeros(1, 1, dtype=torch.bool))
    slots = torch.zeros(1, 1, masks.shape[2], 4)
    return objective(clip, SlotOutput(slots, slots), DecoderOutput(clip.video, masks))


def test_by_hand_in_the_region_and_as_training_goes_on() -> None:
    masks = torch.tensor([[[1.0, 1.0], [0.5, 0.25]], [[0.0, 0.0], [0.5, 0.75]]])[None, None]
    lower = math.log(2) + 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    assert run(masks).item() == pytest.approx(lower / 4, rel=1e-5)
    assert run(masks, progress=0.5).item() == pytest.approx(lower / 8, rel=1e-5)
    assert run(masks, region=[0.5, 0, 1, 1]).item() == pytest.approx(lower / 2, rel=1e-5)


def test_sharpens_masks_that_are_almost_hard_and_stays_finite() -> None:
    logits = torch.tensor([200.0, 0.1, 0.0]).view(1, 1, 3, 1, 1).requires_grad_()
    run(logits.softmax(2)).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    logits = torch.tensor([0.1, 0.0, -3.0]).view(1, 1, 3, 1, 1).requires_grad_()
    run(logits.softmax(2)).backward()
    assert logits.grad is not None
    assert logits.grad.flatten()[0] < 0 < logits.grad.flatten()[2]
