import pytest
import torch

from ocrl.objectives.likelihood import Likelihood
from ocrl.types import Clip, DecoderOutput, SlotOutput

SLOTS = SlotOutput(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4))


def clip() -> Clip:
    return Clip(torch.zeros(2, 1, 3, 4, 8), torch.zeros(2, 1, dtype=torch.bool))


def test_mean_over_frames_pixels_and_colours_in_the_region() -> None:
    log_prob = torch.arange(64.0).view(2, 1, 4, 8)
    decoded = DecoderOutput(clip().video, torch.ones(2, 1, 3, 4, 8) / 3, aux={"log_prob": log_prob})
    whole = Likelihood(None)(clip(), SLOTS, decoded)
    assert whole.item() == pytest.approx(-31.5 / 3)
    upper = Likelihood([0.0, 0.0, 0.5, 1.0])(clip(), SLOTS, decoded)
    assert upper.item() == pytest.approx(-(7.5 + 39.5) / 2 / 3)


def test_a_decoder_without_a_density_is_named() -> None:
    decoded = DecoderOutput(clip().video, torch.ones(2, 1, 3, 4, 8) / 3)
    with pytest.raises(ValueError, match="expected the log density of the frames, got none"):
        Likelihood(None)(clip(), SLOTS, decoded)
