"""Recipes of papers train for a few steps on the CPU, lower their loss, and resume exactly."""

import itertools
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from ocrl import checkpoint
from ocrl.distributed import World
from ocrl.train import Run
from ocrl.types import Clip

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = ["image_size=[16,16]", "num_slots=3", "slot_dim=16", "optimizer.lr=3e-3"]
SMALL += ["trainer.warmup_steps=0", "trainer.checkpoint_every=4", "trainer.device=cpu"]
EMA = ["quantizer@encoder.quantizer=ema", "objective@objectives.quantization=commitment"]
EMA += ["weights.quantization=0.25"]
FSQ = ["quantizer@encoder.quantizer=fsq", "~objectives.quantization", "~weights.quantization"]
SVQ = ["encoder=svq", "encoder.memory.quantizer.sizes=[8,8,8,8]", "encoder.mlp_dim=32", *EMA[1:]]
RECIPES = {
    "mixture": ["experiment=slot_mixture"],
    "mixture of a video": ["experiment=slot_mixture", "encoder=slot_mixture_video"],
    "gumbel": ["experiment=vq_sa"],
    "ema": ["experiment=vq_sa", *EMA],
    "svq": ["experiment=vq_sa", *SVQ],
    "fsq": ["experiment=vq_sa", *FSQ, "encoder.coordinates=grid"],
}


def clip_of(step):
    """Squares of one colour each on a grey ground."""
    generator = torch.Generator().manual_seed(step)
    video = torch.full((8, 2, 3, 16, 16), 60, dtype=torch.uint8)
    for sample, _ in itertools.product(range(8), range(2)):
        top, left = torch.randint(0, 11, (2,), generator=generator).tolist()
        colour = torch.randint(0, 255, (3, 1, 1), generator=generator).to(torch.uint8)
        video[sample, :, :, top : top + 5, left : left + 5] = colour
    return Clip(video, torch.zeros(8, 2, dtype=torch.bool))


@contextmanager
def batches(start, *, end=None):
    def clips():
        for step in itertools.count(start):
            if step == end:
                raise RuntimeError("power cut")
            yield clip_of(step)

    yield clips()


def fit(directory, *overrides, clips=batches):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        config = compose("pretrain", overrides=[*SMALL, *overrides])
    settings = {
        name: checkpoint.plain(config[name])
        for name in ("encoder", "decoder", "objectives", "weights")
    } | {"is_conditioned": False}
    torch.manual_seed(0)
    model = checkpoint.build({"_target_": "ocrl.model.SlotModel", **settings})
    with torch.no_grad():
        before = model.eval()(clip_of(99)).losses["reconstruction"]
    instantiate(config.trainer, _convert_="all").fit(
        model,
        optimizer=instantiate(config.optimizer, _convert_="all"),
        batches=clips,
        run=Run(Path(directory), {"_target_": "ocrl.model.SlotModel", **settings}),
        world=World(0, 1, torch.device("cpu")),
    )
    with torch.no_grad():
        after = model.eval()(clip_of(99)).losses["reconstruction"]
    return model, float(before), float(after)


SLOW = ("mixture of a video", "ema")
"""Relatives of another recipe: its mixture, and the quantiser that svq has too."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in RECIPES],
)
def test_a_recipe_learns_and_goes_on_exactly_after_a_power_cut(tmp_path, name):
    overrides = [*RECIPES[name], "trainer.max_steps=12"]
    whole, before, after = fit(tmp_path / "whole", *overrides)
    assert after < before
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path / "killed", *overrides, clips=partial(batches, end=6))
    resumed, *_ = fit(tmp_path / "killed", *overrides)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_codes_start_from_the_slots_of_a_trained_encoder(tmp_path):
    trained, *_ = fit(tmp_path, "encoder=slot_attention", "trainer.max_steps=2")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        config = compose("pretrain", overrides=[*SMALL, "experiment=vq_sa"])
    encoder = checkpoint.build(config.encoder)
    checkpoint.load_encoder(encoder, tmp_path)
    clip = clip_of(0).to_float()
    expected = trained.eval().encoder(clip.video, clip.is_first)
    output = encoder.eval()(clip.video, clip.is_first)
    torch.testing.assert_close(output.attn, expected.attn)
