"""SPOT's two stages as a user starts them, small."""

import shutil
from pathlib import Path

import pytest

import ocrl
from ocrl import checkpoint

ROOT = Path(__file__).parents[2]
SMALL = (
    "env=sprites",
    "env.size=32",
    "image_size=[32,32]",
    "num_slots=3",
    "slot_dim=16",
    "encoder.mlp_dim=32",
    "decoder.dim=12",
    "decoder.mlp_dim=24",
    "decoder.num_layers=1",
    "collect.num_steps=60",
    "collect.num_workers=0",
    "collect.episode_length=20",
    "collect.policy=random",
    "data.batch_size=4",
    "evaluation.num_clips=1",
    "evaluation.clip_length=2",
    "trainer.max_steps=2",
    "trainer.evaluate_every=0",
    "trainer.device=cpu",
)
FROZEN_CNN = ("backbone@encoder.backbone=cnn_small", "backbone@decoder.target=cnn_small")


@pytest.fixture
def run(run_script, tmp_path):
    def start(*options: str) -> tuple[int, str]:
        done = run_script("pretrain_slots", *SMALL, *options, folder=tmp_path)
        return done.returncode, done.stderr

    return start


def test_a_teacher_that_is_missing_or_not_wanted_ends_in_one_sentence(run) -> None:
    for options, words in (
        (("experiment=spot_student",), "expected teacher=PATH"),
        (("experiment=spot_student", "teacher=nowhere"), "expected a checkpoint folder"),
        (("experiment=spot", "teacher=nowhere"), "expected an objective that learns from teacher"),
    ):
        code, err = run(*FROZEN_CNN, *options)
        assert code == 1 and words in err and err.count("\n") == 1, err


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit", "cnn"])
def test_two_commands_are_the_two_stages(
    run, backbone: str, tmp_path: Path, small_vit: str
) -> None:
    options = FROZEN_CNN if backbone == "cnn" else (f"vit={small_vit}",)
    code, err = run("experiment=spot", "name=teacher", *options)
    assert code == 0, err
    runs = tmp_path / "outputs" / "pretrain_slots"
    student = ("experiment=spot_student", f"teacher={runs / 'teacher'}", *options)
    data = f"data.path={runs / 'teacher' / 'episodes'}"
    code, err = run(*student, "name=student", data)
    assert code == 0 and "model: video FG-ARI" in err, err
    # Every other architecture is refused before anything is trained.
    for change, words in (
        (("num_slots=5",), "num_slots 5, got 3"),
        (("image_size=[64,64]", "env.size=64"), "image_size (64, 64), got (32, 32)"),
        (("encoder.backbone.strides=[2,2,2,1]",), "grid (4, 4), got (8, 8)"),
    ):
        if backbone == "vit" and "grid" in words:
            continue
        code, err = run(*student, "name=refused", *change)
        # The ViT's own library counts the weights it loads on the lines before.
        last = err.rstrip().splitlines()[-1]
        assert code == 1 and last.startswith("pretrain_slots: expected") and words in last, err
        assert not (runs / "refused" / "checkpoint").exists()
    # The run that one teacher's student left off is not gone on with by another's.
    shutil.copytree(runs / "teacher", runs / "other")
    code, err = run(*student, f"teacher={runs / 'other'}", "name=student", data)
    assert code == 1 and "objectives.distillation.teacher" in err, err
    shutil.rmtree(runs / "other")
    shutil.rmtree(runs / "teacher")
    model = ocrl.load(runs / "student")
    assert model.encoder.num_slots == 3
    assert not any("teacher" in name for name in checkpoint.read_weights(runs / "student"))
