"""SPOT's two stages, small: a teacher, then a student that is saved without it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import ocrl
from ocrl import checkpoint
from ocrl.distributed import World
from ocrl.model import SlotModel
from ocrl.step import parameter_groups
from ocrl.train import Run
from ocrl.types import Clip

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = (
    "image_size=[32,32]",
    "num_slots=3",
    "slot_dim=16",
    "encoder.mlp_dim=32",
    "decoder.dim=12",
    "decoder.mlp_dim=24",
    "decoder.num_layers=1",
    "optimizer.lr=3e-3",
    "trainer.max_steps=4",
    "trainer.warmup_steps=0",
    "trainer.device=cpu",
    "trainer.checkpoint_every=2",
    "trainer.evaluate_every=0",
    "trainer.average_decay=0.5",
)
FROZEN_CNN = (
    "backbone@encoder.backbone=cnn_small",
    "backbone@decoder.target=cnn_small",
    "encoder.backbone.strides=[4,2,1,1]",
    "decoder.target.strides=[4,2,1,1]",
)
Clips = Callable[[int], AbstractContextManager[Iterator[Clip]]]


@contextmanager
def batches(start: int, *, end: int | None = None) -> Iterator[Iterator[Clip]]:
    def clips() -> Iterator[Clip]:
        for step in range(start, 100):
            if step == end:
                raise RuntimeError("power cut")
            video = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(step))
            yield Clip(video, torch.zeros(2, 1, dtype=torch.bool))

    yield clips()


def build(*overrides: str) -> tuple[SlotModel, Any, dict[str, Any]]:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        config = compose("pretrain", overrides=[*SMALL, *overrides])
    settings = {
        "_target_": "ocrl.model.SlotModel",
        "is_conditioned": False,
        **{
            name: checkpoint.plain(config[name])
            for name in ("encoder", "decoder", "objectives", "weights")
        },
    }
    torch.manual_seed(0)
    return checkpoint.build(settings), config, settings


def fit(directory: Path, *overrides: str, clips: Clips = batches) -> SlotModel:
    model, config, settings = build(*overrides)
    checkpoint.load_teachers(model)
    instantiate(config.trainer, _convert_="all").fit(
        model,
        optimizer=instantiate(config.optimizer, _convert_="all"),
        batches=clips,
        run=Run(directory, settings),
        world=World(0, 1, torch.device("cpu")),
    )
    return model


@pytest.mark.parametrize("backbone", ["vit", "cnn"])
def test_a_student_learns_from_a_teacher_and_is_whole_without_it(
    backbone: str, tmp_path: Path, small_vit: str
) -> None:
    options = FROZEN_CNN if backbone == "cnn" else (f"vit={small_vit}",)
    fit(tmp_path / "teacher", "experiment=spot", *options)
    teacher = checkpoint.read_weights(tmp_path / "teacher")
    student = ("experiment=spot_student", f"teacher={tmp_path / 'teacher'}", *options)
    start, *_ = build(*student)
    model = fit(tmp_path / "student", *student)
    weights = checkpoint.read_weights(tmp_path / "student")
    assert set(weights) == set(start.state_dict())
    assert not any("teacher" in name for name in weights)
    targets = [name for name in weights if name.startswith("decoder.target.")]
    assert targets and all(weights[name].equal(teacher[name]) for name in targets)
    trained = {id(p) for group in parameter_groups(model) for p in group["params"]}
    assert trained <= {id(p) for p in model.parameters()}
    moved = {name for name, p in model.named_parameters() if not p.equal(start.state_dict()[name])}
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved >= learning
    if backbone == "vit":
        tuned = {name for name in learning if name.startswith("encoder.backbone.network.")}
        assert tuned and all(".0." in name for name in tuned)

    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path / "killed", *student, clips=partial(batches, end=2))
    resumed = fit(tmp_path / "killed", *student)
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name

    shutil.rmtree(tmp_path / "teacher")
    loaded = ocrl.load(tmp_path / "student")
    clip = Clip(torch.rand(1, 1, 3, 32, 32), torch.ones(1, 1, dtype=torch.bool))
    encoded = loaded.encode(clip)
    masks = loaded.decoder(encoded.slots, clip.video, attn=encoded.attn).masks
    assert masks.shape[2] == 3 and encoded.slots.isfinite().all()
    with pytest.raises(ValueError, match="expected a teacher"):
        loaded(clip)


def test_the_settings_of_the_paper(small_vit: str) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        stages = [
            compose("pretrain", overrides=[f"experiment={name}", f"vit={small_vit}"])
            for name in ("spot", "spot_student")
        ]
    for config in stages:
        trainer, decoder = config.trainer, config.decoder
        assert (config.num_slots, config.slot_dim, config.data.batch_size) == (7, 256, 64)
        assert (trainer.clip_norm, float(trainer.clip_kind)) == (0.3, float("inf"))
        assert (trainer.schedule, trainer.max_steps // 1848) == ("cosine", 50)
        assert config.optimizer.lr == 4e-4 and trainer.final_fraction * 4e-4 == pytest.approx(4e-7)
        assert (decoder.dim, decoder.num_heads, decoder.mlp_dim) == (768, 6, 3072)
        assert len(decoder.orders) == 9 and decoder.num_layers == 4
        assert (config.encoder.mlp_dim, config.encoder.backbone.out_dim) == (1024, 768)
    first, second = (config.encoder for config in stages)
    assert first.gradient == "full" and second.gradient == "bilevel"
    assert "Gaussian" in first.initializer._target_ and "Learned" in second.initializer._target_
    assert first.backbone.is_frozen and not second.backbone.is_frozen
    assert second.backbone.num_tuned_blocks == 4
    assert stages[1].weights == {"reconstruction": 1.0, "distillation": 0.005}


def test_a_teacher_must_be_named_and_be_there(tmp_path: Path, small_vit: str) -> None:
    model, *_ = build("experiment=spot_student", f"vit={small_vit}")
    with pytest.raises(ValueError, match=r"teacher=PATH.* objectives.distillation"):
        checkpoint.load_teachers(model)
    options = ("experiment=spot_student", f"vit={small_vit}", f"teacher={tmp_path / 'none'}")
    with pytest.raises(FileNotFoundError, match="none"):
        checkpoint.load_teachers(build(*options)[0])
