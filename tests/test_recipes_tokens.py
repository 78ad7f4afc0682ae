"""The recipes that decode tokens or features: a few steps of training, small, then evaluated."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import ocrl
from ocrl import checkpoint
from ocrl.discovery import evaluate_discovery
from ocrl.distributed import World
from ocrl.monitor import DiscoveryMonitor
from ocrl.train import Run
from ocrl.types import Clip

CONFIGS = Path(__file__).parents[1] / "configs"
TOKENS = (
    "decoder.dim=16",
    "decoder.mlp_dim=32",
    "decoder.num_layers=2",
    "decoder.target.vocabulary_size=16",
    "decoder.target.channels=8",
    "encoder.backbone.out_dim=16",
)
CONVOLUTIONS = ("encoder.backbone.channels=[8,8]", "encoder.backbone.strides=[2,2]")
WRAPPED = tuple(option.replace("decoder.", "decoder.decoder.") for option in TOKENS)
COUPLED = ("decoder.dim=16", "decoder.mlp_dim=32", "decoder.num_blocks=4", *WRAPPED)
SMALL = {
    "slate": ("image_size=[16,16]", "encoder.backbone.hidden_dims=[16]", *TOKENS),
    "steve": ("image_size=[16,16]", "encoder.predictor.mlp_dim=32", *CONVOLUTIONS, *TOKENS),
    "sysbinder": (
        "image_size=[16,16]",
        "encoder.memory.num_blocks=4",
        *CONVOLUTIONS,
        *COUPLED,
    ),
    "svq": (
        "image_size=[16,16]",
        "encoder.memory.quantizer.sizes=[4,4,4,4]",
        "encoder.memory.quantizer.code_dim=4",
        *CONVOLUTIONS,
        *COUPLED,
    ),
    "psb_autoregressive": ("image_size=[16,16]", *CONVOLUTIONS, *TOKENS),
    "dinosaur": ("image_size=[32,32]", "decoder.out_dim=16", "decoder.hidden_dims=[32]"),
    "dinosaur_autoregressive": (
        "image_size=[32,32]",
        "decoder.dim=16",
        "decoder.mlp_dim=32",
        "decoder.num_layers=2",
    ),
    "smooth_sa": (
        "image_size=[32,32]",
        "decoder.dim=16",
        "decoder.mlp_dim=32",
        "decoder.num_layers=2",
        "encoder.initializer.mlp_dim=32",
        "encoder.predictor.mlp_dim=32",
    ),
}
TRAINER = (
    "trainer.max_steps=4",
    "trainer.warmup_steps=0",
    "trainer.device=cpu",
    "trainer.log_every=1",
    "trainer.evaluate_every=4",
    "trainer.checkpoint_every=4",
    "num_slots=3",
    "slot_dim=16",
    "encoder.mlp_dim=32",
)


def clip_of(config, seed):
    generator = torch.Generator().manual_seed(seed)
    size, num_frames = config.image_size, config.data.clip_length
    ids = torch.zeros(2, num_frames, *size, dtype=torch.int32)
    ids[:, :, size[0] // 2 :, size[1] // 2 :] = 1
    video = torch.randint(256, (2, num_frames, 3, *size), generator=generator, dtype=torch.uint8)
    return Clip(video, torch.zeros(2, num_frames, dtype=torch.bool), segmentation={"scene": ids})


@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_trains_is_watched_saved_and_scored(name, tmp_path, small_vit):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        overrides = [f"experiment={name}", f"vit={small_vit}", *SMALL[name], *TRAINER]
        config = compose("pretrain", overrides=overrides)
    parts = ("encoder", "decoder", "objectives", "weights")
    settings = {
        "_target_": "ocrl.model.SlotModel",
        "is_conditioned": False,
        **{part: checkpoint.plain(config[part]) for part in parts},
    }
    torch.manual_seed(0)
    model = checkpoint.build(settings)
    before = {name: value.clone() for name, value in model.named_parameters()}

    @contextmanager
    def batches(step):
        yield (clip_of(config, seed) for seed in range(step, 100))

    said = []
    device = torch.device("cpu")
    figures = instantiate(config.trainer, _convert_="all").fit(
        model,
        optimizer=instantiate(config.optimizer, _convert_="all"),
        batches=batches,
        run=Run(tmp_path, settings, env="crafter"),
        world=World(0, 1, device),
        evaluate=DiscoveryMonitor(
            lambda: [clip_of(config, 200)],
            presets=["scene"],
            mask_source=config.evaluation.mask_source,
            device=device,
            say=said.append,
        ),
    )
    assert "scene/video_fg_ari" in figures and "psnr" not in figures
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    moved = {name for name, value in model.named_parameters() if not value.equal(before[name])}
    # The bias of keys shifts all logits of a softmax alike: it learns nothing, anywhere.
    assert moved >= {name for name in learning if not name.endswith("to_k.bias")}
    assert moved <= learning

    result = evaluate_discovery(ocrl.load(tmp_path), [clip_of(config, 300)], presets=["scene"])
    assert result.pictures == {} and result.table["model"]["scene"]
    is_drawn = result.examples[0].recon is not None
    assert is_drawn == (model.decoder.space == "tokens")
