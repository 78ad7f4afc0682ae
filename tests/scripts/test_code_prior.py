"""Train a prior over the codes of a trained model, and draw new scenes: two commands."""

import io
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

import ocrl
from ocrl import checkpoint
from ocrl.data.store import EpisodeStore
from ocrl.envs.collect import collect
from ocrl.scene_prior import ScenePrior

ROOT = Path(__file__).parents[2]
SMALL = (
    "env=sprites",
    "env.size=16",
    "image_size=[16,16]",
    "num_slots=3",
    "slot_dim=16",
    "encoder.mlp_dim=16",
    "decoder=broadcast",
)
PRIOR = (
    "prior.dim=16",
    "prior.num_layers=1",
    "prior.num_heads=2",
    "prior.mlp_dim=16",
    "trainer.max_steps=6",
    "trainer.checkpoint_every=3",
    "trainer.evaluate_every=3",
    "data.batch_size=4",
    "evaluation.num_clips=8",
    "evaluation.num_scenes=8",
    "name=small",
)


def make_run(directory, *overrides):
    """An untrained model with its episodes, as a run of the main job leaves them."""
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
        config = compose("pretrain", overrides=[*SMALL, *overrides])
    names = ("encoder", "decoder", "objectives", "weights", "is_conditioned")
    settings = {"_target_": "ocrl.model.SlotModel"}
    for name in names:
        part = config[name]
        settings[name] = checkpoint.plain(part) if OmegaConf.is_config(part) else part
    torch.manual_seed(0)
    model = checkpoint.build(settings)
    checkpoint.save(directory / "checkpoint", model, config=settings, step=0, env="sprites")
    env = {name: value for name, value in checkpoint.plain(config.env).items() if name[0] != "_"}
    play = {"policy": "random", "num_steps": 60, "num_workers": 0, "episode_length": 10, "seed": 0}
    collect("sprites", env, path=directory / "episodes", segmentation=["scene"], **play)
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    sizes = "encoder.memory.quantizer.sizes=[4,4]"
    return make_run(tmp_path_factory.mktemp("run"), "encoder=svq", sizes)


@pytest.fixture
def run(run_script, tmp_path):
    def start(script, *arguments):
        done = run_script(script, *arguments, folder=tmp_path)
        return done.returncode, done.stderr

    return start


def test_two_commands_learn_what_scenes_there_are_and_draw_new_ones(run, tmp_path, trained):
    code, err = run("train_code_prior", f"checkpoint={trained}", *PRIOR)
    assert code == 0, err
    directory = tmp_path / "outputs" / "train_code_prior" / "small"
    assert {"checkpoint", "scenes.png", "tensorboard"} <= {p.name for p in directory.iterdir()}
    assert isinstance(ocrl.load(directory), ScenePrior)
    meta = checkpoint.read_meta(directory)
    assert meta["step"] == 6 and meta["env"] == "sprites"
    assert set(meta["metrics"]) >= {"code", "independent", "uniform"}
    assert "held-out nats per code: code" in err
    # The same command has nothing left to do but to draw.
    code, err = run("train_code_prior", f"checkpoint={trained}", *PRIOR)
    assert code == 0 and "held-out nats per code" in err and "training" not in err, err

    draws = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = [f"checkpoint={directory}", "num_scenes=8", f"seed={seed}", f"name={name}"]
        if name != "c":
            options.append(f"data.path={trained / 'episodes'}")
        code, err = run("sample_scenes", *options)
        assert code == 0 and "8 new scenes" in err, err
        draws.append((tmp_path / "outputs" / "sample_scenes" / name / "scenes.png").read_bytes())
    assert draws[0] == draws[1]
    heights = [Image.open(io.BytesIO(draw)).height for draw in draws]
    assert heights == [3 * 16 + 2 * 2] * 2 + [16]


def test_mistakes_end_in_one_sentence(run, tmp_path, trained):
    code, err = run("train_code_prior")
    assert code == 1 and err.count("\n") == 1 and "checkpoint=PATH" in err
    code, err = run("sample_scenes", f"checkpoint={trained}")
    assert code == 1 and err.count("\n") == 1 and "got that of a SlotModel" in err
    plain = make_run(tmp_path / "plain", "encoder=slot_attention")
    code, err = run("train_code_prior", f"checkpoint={plain}", *PRIOR)
    assert code == 1 and err.count("\n") == 1, err
    assert "expected a model whose slots are codes" in err and "got SlotAttention" in err
    assert len(EpisodeStore(plain / "episodes")) > 1
