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
    whole = Likelihood(0.1, region=None)(clip(), SLOTS, decoded)
    assert whole.item() == pytest.approx(-31.5 / 3)
    upper = Likelihood(0.1, region=[0.0, 0.0, 0.5, 1.0])(clip(), SLOTS, decoded)
    assert upper.item() == pytest.approx(-(7.5 + 39.5) / 2 / 3)


def test_a_mean_alone_is_a_gaussian_around_it() -> None:
    recon = torch.rand(2, 1, 3, 4, 8)
    decoded = DecoderOutput(recon, torch.ones(2, 1, 3, 4, 8) / 3)
    expected = torch.distributions.Normal(recon, 0.3).log_prob(clip().video).mean()
    loss = Likelihood(0.3, region=None)(clip(), SLOTS, decoded)
    torch.testing.assert_close(loss, -expected)


def test_bad_input_is_named() -> None:
    features = DecoderOutput(torch.zeros(2, 1, 32, 5), torch.ones(2, 1, 3, 4, 8) / 3)
    with pytest.raises(ValueError, match="this objective needs a decoder of pixels"):
        Likelihood(0.1, region=None)(clip(), SLOTS, features)
    with pytest.raises(ValueError, match="deviation must be positive, got 0"):
        Likelihood(0, region=None)
