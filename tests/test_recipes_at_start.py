"""Recipes of papers: what decides their updates, and their losses before any learning."""

import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from ocrl import checkpoint
from ocrl.types import Clip

CONFIGS = Path(__file__).parent.parent / "configs"
INFINITY = math.inf
PUBLISHED = {
    # clips, frames, rate, warm-up, norm of the clipped gradient, which norm, steps
    "slate": (50, 1, 1e-4, 30_000, 1.0, INFINITY, 200_000),
    "steve": (24, 3, 1e-4, 30_000, 0.05, INFINITY, 200_000),
    "psb_autoregressive": (24, 6, 3e-4, 30_000, 0.05, INFINITY, 300_000),
    "sysbinder": (40, 1, 1e-4, 30_000, 0.05, INFINITY, 200_000),
    "svq": (40, 1, 1e-4, 30_000, 0.05, INFINITY, 200_000),
    "dinosaur": (64, 1, 4e-4, 10_000, 1.0, 2.0, 500_000),
    "spot": (64, 1, 4e-4, 9_240, 0.3, INFINITY, 92_400),
    "spot_student": (64, 1, 4e-4, 9_240, 0.3, INFINITY, 92_400),
    "smooth_sa": (8, 6, 5e-5, 2_500, 0.05, 2.0, 50_000),
}


def composed(*overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return compose("pretrain", overrides=list(overrides))


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_those_of_the_papers(name):
    config = composed(f"experiment={name}")
    trainer = config.trainer
    assert (
        config.data.batch_size,
        config.data.clip_length,
        config.optimizer.lr,
        trainer.warmup_steps,
        trainer.clip_norm,
        float(trainer.clip_kind),
        trainer.max_steps,
    ) == PUBLISHED[name]


def losses_at_start(name):
    config = composed(f"experiment=small/{name}", "num_slots=4")
    settings = {"_target_": "ocrl.model.SlotModel", "is_conditioned": False}
    for part in ("encoder", "decoder", "objectives", "weights"):
        settings[part] = checkpoint.plain(config[part])
    torch.manual_seed(0)
    model = checkpoint.build(settings)
    video = torch.randint(256, (2, 3, 3, 36, 36), dtype=torch.uint8)
    with torch.no_grad():
        return model(Clip(video, torch.zeros(2, 3, dtype=torch.bool))), config


@pytest.mark.parametrize("name", ["slate", "steve", "psb_autoregressive", "sysbinder", "svq"])
def test_tokens_are_all_as_likely_summed_over_the_frame(name):
    output, config = losses_at_start(name)
    target = config.decoder.get("decoder", config.decoder).target
    num_tokens = (config.image_size[0] // 4) ** 2
    expected = num_tokens * math.log(target.vocabulary_size)
    assert output.losses["reconstruction"].item() == pytest.approx(expected, rel=1e-6)
    assert output.total > output.losses["reconstruction"]


@pytest.mark.parametrize("name", ["dinosaur_autoregressive", "spot"])
def test_features_cost_their_mean_square(name):
    output, _ = losses_at_start(name)
    # Every token has unit variance, but for what keeps the division finite.
    assert output.losses["reconstruction"].item() == pytest.approx(1.0, abs=0.02)
    assert not output.decoded.recon.any()
