"""A small world model, untrained, and clips for it."""

from dataclasses import replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from ocrl import checkpoint
from ocrl.types import Clip

CONFIGS = Path(__file__).parents[2] / "configs"
B, T, K, D = 2, 6, 3, 8
SLOTS = (
    *("image_size=[16,16]", "num_slots=3", "slot_dim=8"),
    *("encoder.backbone.channels=[8]", "encoder.backbone.strides=[4]"),
)
SAVI = (*SLOTS, "encoder=savi", "decoder=broadcast")
SMALL = ("decoder.channels=[8]", "decoder.strides=[4]")
WEIGHTS = {"slots": 1.0, "image": 1.0, "reward": 1.0, "continue": 1.0, "model": 0.0}


def slot_model(*options):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("pretrain", overrides=[*(options or (*SAVI, *SMALL))])
    names = ("encoder", "decoder", "objectives", "weights")
    parts = {name: checkpoint.plain(config[name]) for name in names}
    return {"_target_": "ocrl.model.SlotModel", **parts, "is_conditioned": False}


def settings(*options, model=None, dynamics="transformer", **changes):
    """The configuration of a small world model."""
    sizes = [f"+slot_dim={D}", "+num_actions=3", "+action_dim=0", "+code_sizes=[4,3]"]
    overrides = [f"+dynamics={dynamics}", "+outcome=transformer", *sizes, *options]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = checkpoint.plain(compose(overrides=overrides))
    return {
        "_target_": "ocrl.world_model.WorldModel",
        "model": model or slot_model(),
        "dynamics": config["dynamics"],
        "outcome": config["outcome"],
        "weights": WEIGHTS,
        "num_context": 2,
        "horizon": T - 2,
        "num_decoded": 2,
        "rollout": "whole",
    } | changes


def make(*options, **changes):
    torch.manual_seed(0)
    return checkpoint.build(settings(*options, **changes))


def draw(**changes):
    generator = torch.Generator().manual_seed(1)
    clip = Clip(
        torch.randint(256, (B, T, 3, 16, 16), generator=generator, dtype=torch.uint8),
        torch.zeros(B, T, dtype=torch.bool),
        action=torch.randint(3, (B, T), generator=generator),
        reward=torch.randn(B, T, generator=generator),
        terminated=torch.zeros(B, T, dtype=torch.bool),
        truncated=torch.zeros(B, T, dtype=torch.bool),
    )
    return replace(clip, **changes)
