"""Agents on slots of several cameras: one command, its evaluation, and what is said of mistakes."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

import ocrl
from ocrl import checkpoint
from ocrl.agents import load, saving

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mujoco") is None, reason="MuJoCo is not installed"
)
TABLE = (
    *("env=tabletop-reach", "env.size=16", "env.max_steps=4", "env.renderer=rays"),
    "env.supersampling=1",
)
MODEL = (
    *(
        "num_slots=3",
        "slot_dim=16",
        "encoder.backbone.channels=[8]",
        "encoder.backbone.strides=[4]",
    ),
    *("encoder.backbone.out_dim=16", "decoder.hidden_dims=[8]", "decoder.ground_dims=[8]"),
    "objectives.reconstruction.num_rays=8",
)
AGENT = (
    *("agent.num_envs=2", "agent.arguments.n_steps=8", "agent.arguments.batch_size=8"),
    *("agent.total_steps=16", "agent.log_every=8", "agent.checkpoint_every=16"),
    *("agent.evaluate_every=0", "evaluation.num_episodes=2", "pooling.dim=8"),
    "pooling.num_heads=2",
)


@pytest.fixture(scope="module")
def posed(workplace):
    """An untrained model of posed views, as a run leaves it."""
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
        options = ["experiment=tabletop", "rollouts=tabletop", "image_size=[16,16]"]
        config = compose("pretrain", overrides=[*TABLE, *options, *MODEL])
    model = {"_target_": "ocrl.model.SlotModel", "is_conditioned": False}
    for part in ("encoder", "decoder", "objectives", "weights"):
        model[part] = checkpoint.plain(config[part])
    torch.manual_seed(0)
    folder = workplace.folder / "posed"
    built = checkpoint.build(model)
    checkpoint.save(folder / "checkpoint", built, config=model, step=1, env="tabletop-reach")
    return folder


def test_without_an_encoder_one_of_posed_views_is_pretrained(workplace):
    options = [
        *MODEL,
        *("trainer.max_steps=2", "collect.num_steps=20", "collect.num_workers=0"),
        *("data.batch_size=2", "data.clip_length=2", "evaluation.num_clips=1"),
        *("evaluation.clip_length=2", "evaluation.num_clips_in_training=1", "data.holdout=0.3"),
    ]
    pretrain = ",".join(f'"{option}"' for option in options)
    command = [*TABLE, *AGENT, "obs=slots", f"encoder.pretrain=[{pretrain}]", "name=posed"]
    done = workplace.run("train_agent", *command)
    assert done.returncode == 0, done.stderr
    assert "no encoder.path given: pretraining slots of tabletop-reach" in done.stderr
    directory = workplace.output("train_agent", "posed")
    assert ocrl.load(directory / "encoder").encoder.backbone.needs_camera
    space = saving.read_meta(directory)["observation_space"]
    assert space["kind"] == "box" and space["shape"] == [3, 16 + 2 * 7]
    load(directory)
    done = workplace.run("evaluate_agent", f"checkpoint={directory}", "episodes=2", "seeds=[0]")
    assert done.returncode == 0, done.stderr
    record = json.loads((directory / "evaluation.json").read_text())
    assert record["obs"] == "slots (placed)" and record["floor"]["num_episodes"] == 2
    # Both cameras side by side, and beside them again with slots and with attention.
    with Image.open(directory / "video.gif") as picture:
        assert picture.width > 3 * 2 * 256


@pytest.mark.slow
def test_the_true_objects_and_pixels_of_both_cameras(workplace):
    for name, space in (("objects", None), ("pixels", [16, 16, 6])):
        options = [*TABLE, *AGENT, f"obs={name}", "vision.out_dim=8", f"name=table-{name}"]
        done = workplace.run("train_agent", *options)
        assert done.returncode == 0, done.stderr
        directory = workplace.output("train_agent", f"table-{name}")
        found = saving.read_meta(directory)["observation_space"]["shape"]
        assert space is None or found == space
        load(directory)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("env=sprites-object_goal", "env.size=16", "encoder.any_env=true"),
            "with cameras, whose poses an encoder of posed views reads, got SpritesEnv",
        ),
        ((*TABLE, "encoder.mode=replay"), "encoder.mode=frozen for an encoder of posed views"),
        ((*TABLE, "env.cameras=[[-90,40,7.5]]"), "at least 2 cameras, as many as the encoder saw"),
        (
            (*TABLE, "env.size=32", "encoder.path=run", "encoder.any_env=true"),
            "expected one view (H,W,3) for an encoder of plain frames, got 2",
        ),
    ],
    ids=["no cameras", "replay", "too few", "plain"],
)
def test_a_mistake_is_one_sentence(workplace, posed, options, words):
    path = [] if "encoder.path=run" in options else [f"encoder.path={posed}"]
    workplace.assert_mistake("train_agent", *AGENT, *options, "obs=slots", *path, words=words)


class _Slots:
    """In place of an environment of slots: two views, and two slots that have one each."""

    class slots:
        frames = np.stack([np.full((1, 4, 4, 3), view, np.uint8) for view in (10, 200)], axis=1)

        class stream:
            grid = (2, 2)
            attn = np.array([[[1.0] * 4 + [0.0] * 4, [0.0] * 4 + [1.0] * 4]], np.float32)


def test_a_film_has_the_views_side_by_side(load_script):
    frame, masks = load_script("agent_evaluation")._look_at(_Slots, has_slots=True)()
    assert frame.shape == (4, 8, 3) and masks.shape == (2, 2, 4)
    assert (frame[:, :4] == 10).all() and (frame[:, 4:] == 200).all()
    np.testing.assert_array_equal(masks[0], [[1, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(masks[1], [[0, 0, 1, 1]] * 2)
