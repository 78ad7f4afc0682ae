"""Learn a world model on a slot model, and measure it: two commands."""

import json
import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import ocrl
from ocrl import checkpoint
from ocrl.data.clips import ClipLoader, split_episodes
from ocrl.data.store import EpisodeStore, EpisodeWriter
from ocrl.distributed import join_world
from ocrl.world_model import WorldModel

ROOT = Path(__file__).parents[2]
ENV = ("env=sprites", "env.size=32")
SMALL = (
    *ENV,
    *("dynamics.dim=16", "dynamics.num_heads=2", "dynamics.mlp_dim=16", "dynamics.num_layers=1"),
    *("outcome.dim=16", "outcome.num_heads=2", "outcome.mlp_dim=16", "outcome.num_layers=1"),
    *("num_context=2", "horizon=3", "num_decoded=1", "data.batch_size=4", "trainer.max_steps=4"),
    *("trainer.checkpoint_every=2", "trainer.evaluate_every=2", "trainer.warmup_steps=1"),
    *("evaluation.horizons=[1,3]", "evaluation.num_clips=4", "evaluation.num_clips_in_training=2"),
)


@pytest.fixture(scope="module")
def trained(workplace):
    done = workplace.run(
        "train_world_model", "checkpoint=run", "data.path=episodes", *SMALL, "name=small"
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_world_model_is_trained_saved_and_measured(workplace, trained):
    output = workplace.output("train_world_model", "small")
    left = {path.name for path in output.iterdir()}
    assert {"checkpoint", "metrics.json", "report.html", "rollout.mp4", "tensorboard"} <= left
    assert "rollout.png" in left
    world = ocrl.load(output)
    assert isinstance(world, WorldModel)
    assert (world.dynamics.num_actions, world.num_context, world.horizon) == (4, 2, 3)
    # No step of these episodes is an event.
    store = EpisodeStore(workplace.folder / "episodes")
    steps = store.num_frames - len(store)
    assert float(world.outcome.log_odds) == pytest.approx(-math.log(steps + 1))
    record = json.loads((output / "metrics.json").read_text())
    assert record["details"]["environment"] == "sprites"
    meta = checkpoint.read_meta(output)
    assert meta["step"] == 4 and meta["env"] == "sprites"
    assert {"slot_error/prediction/3", "psnr/copy/1", "video_fg_ari/encoder/3"} <= set(
        meta["metrics"]
    )
    assert "steps ahead" in trained.stderr and "hits@1" in trained.stderr


def test_it_is_measured_between_a_floor_and_a_ceiling(workplace, trained):
    source = "outputs/train_world_model/small"
    options = ("horizons=[1,2,4]", "data.num_clips=5", "judge=features", "name=far")
    done = workplace.run(
        "evaluate_world_model", f"checkpoint={source}", "data.path=episodes", *options
    )
    assert done.returncode == 0, done.stderr
    assert "trained on rollouts of 3 steps, and is asked for 4" in done.stderr
    output = workplace.output("evaluate_world_model", "far")
    record = json.loads((output / "metrics.json").read_text())
    assert record["horizons"] == [1, 2, 4] and record["num_clips"] == 5
    for metric in ("slot_error", "psnr", "ssim", "perceptual", "video_fg_ari", "hits@1", "mrr"):
        assert set(record["table"][metric]) == {"prediction", "copy", "encoder"}
        assert all(len(values) == 3 for values in record["table"][metric].values())
    with av.open(str(output / "rollout.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 2 * 4
    page = (output / "report.html").read_text()
    assert "Steps ahead" in page and "http" not in page.replace("http-equiv", "")
    assert list((output / "tensorboard").iterdir())


def test_mistakes_end_in_one_sentence(workplace, trained):
    workplace.assert_mistake(
        "train_world_model",
        *("checkpoint=features", "data.path=episodes", "weights.image=1", *SMALL),
        words="got MLPDecoder; set weights.image=0",
    )
    workplace.assert_mistake(
        *("evaluate_world_model", "checkpoint=run", "data.path=episodes"),
        words="got that of a SlotModel",
    )
    workplace.assert_mistake(
        "evaluate_world_model",
        *("checkpoint=outputs/train_world_model/small", "data.path=episodes", "horizons=[1,40]"),
        words="clip_length=42",
    )
    workplace.assert_mistake(
        *("train_world_model", "checkpoint=run", "data.path=episodes"),
        *(option for option in SMALL if "horizons" not in option),
        "evaluation.horizons=[1,900]",
        words="expected evaluation.horizons up to ",
    )


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("horizons=[]", r"horizons that rise from 1 on, got \[\]"),
        ("data.preset=scne", "one of entities, got 'scne'"),
    ],
)
def test_what_can_not_be_measured_is_refused(workplace, trained, load_script, option, words):
    config = OmegaConf.merge(
        OmegaConf.load(ROOT / "configs" / "evaluate_world_model.yaml"),
        {"checkpoint": str(workplace.output("train_world_model", "small")), "horizons": [1]},
        {"data": {"path": str(workplace.folder / "episodes")}},
        OmegaConf.from_dotlist([option]),
    )
    del config["hydra"]
    with pytest.raises(ValueError, match=words):
        load_script("evaluate_world_model").main.__wrapped__(config)


def test_the_actions_of_episodes_are_known(workplace, load_script, tmp_path):
    action_sizes = load_script("worlds").action_sizes
    found = action_sizes(EpisodeStore(workplace.folder / "episodes"))
    assert found == {"num_actions": 4, "action_dim": 0}
    with pytest.raises(ValueError, match=r"action_space Discrete\(n\) in the metadata .* got None"):
        action_sizes(EpisodeStore(workplace.folder / "bare"))
    rows = {
        "frames": np.zeros((3, 8, 8, 3), np.uint8),
        "reward": np.zeros(3, np.float32),
        "terminated": np.zeros(3, bool),
        "truncated": np.zeros(3, bool),
    }
    for name, more, expected in (
        ("box", {"action": np.zeros((3, 2), np.float32)}, {"num_actions": 0, "action_dim": 2}),
        ("none", {}, {"num_actions": 0, "action_dim": 0}),
    ):
        with EpisodeWriter(tmp_path / name, metadata={}) as writer:
            writer.append(rows | more)
        assert action_sizes(EpisodeStore(tmp_path / name)) == expected


def test_events_are_rewards_and_terminations(load_script, tmp_path):
    count_events = load_script("worlds").count_events
    frames = np.zeros((5, 8, 8, 3), np.uint8)
    reward = np.array([7, 0, -1, 0, 0], np.float32)  # the first came before the episode
    ends = np.array([False, False, False, False, True])
    with EpisodeWriter(tmp_path / "told", metadata={}) as writer:
        for terminated in (ends, np.zeros(5, bool)):
            outcomes = {"reward": reward, "terminated": terminated, "truncated": np.zeros(5, bool)}
            writer.append({"frames": frames, **outcomes})
    assert count_events(EpisodeStore(tmp_path / "told")) == (3, 8)
    shard = tmp_path / "told" / "shard-000-00000"
    (shard / "frames.bin").write_bytes(bytes([1]) * 2 * frames.size)  # which nothing looks at
    assert count_events(EpisodeStore(tmp_path / "told")) == (3, 8)
    (shard / "terminated.bin").write_bytes(bytes(10))  # of the first, the end is gone
    assert count_events(EpisodeStore(tmp_path / "told")) == (1, 4)
    with EpisodeWriter(tmp_path / "rewards", metadata={}) as writer:
        writer.append({"frames": frames, "reward": reward})
    assert count_events(EpisodeStore(tmp_path / "rewards")) == (1, 4)
    with EpisodeWriter(tmp_path / "bare", metadata={}) as writer:
        writer.append({"frames": frames})
    assert count_events(EpisodeStore(tmp_path / "bare")) == (0, 4)


def test_horizons_have_to_fit_into_an_episode_that_is_held_out(load_script, tmp_path):
    check_lengths = load_script("worlds").check_lengths
    with EpisodeWriter(tmp_path / "some", metadata={}) as writer:
        for length in (7, 9, 12, 15):
            rows = np.random.default_rng(length).integers(256, size=(length, 8, 8, 3))
            writer.append({"frames": rows.astype(np.uint8)})
    store = EpisodeStore(tmp_path / "some")
    held_out = store.lengths[split_episodes(store, split="holdout", holdout=0.25)]
    assert len(held_out) == 1 and held_out[0] < store.lengths.max()
    longest = int(held_out[0])
    check_lengths(store, [1, longest - 2], num_context=2, holdout=0.25)
    words = f"up to {longest - 2}, as the longest held-out episode of .* has {longest} frames"
    with pytest.raises(ValueError, match=words):
        check_lengths(store, [1, longest - 1], num_context=2, holdout=0.25)


def test_a_frozen_encoder_reads_a_clip_once(workplace, trained, load_script, tmp_path):
    training_clips = load_script("worlds").training_clips
    finished = workplace.output("train_world_model", "small")
    model, store = ocrl.load(finished), EpisodeStore(workplace.folder / "episodes")
    loader = ClipLoader(store, clip_length=5, batch_size=4, seed=0, holdout=0.25)

    def clips(run=tmp_path, max_minutes=None, **data):
        config = {"data": {"batch_size": 4, "repeats": 4} | data}
        config["trainer"] = {"max_steps": 4, "max_minutes": max_minutes, "seed": 0}
        with join_world("cpu") as world:
            return training_clips(OmegaConf.create(config), model, loader, run=run, world=world)

    pool = clips()
    assert len(pool) == min(4, loader.num_clips)
    clip = pool.batch(0)
    torch.testing.assert_close(clip.slots, model.slots_of(clip))
    assert clips(repeats=1) is loader and clips(run=finished) is loader
    assert clips(max_minutes=1) is loader
    with pytest.raises(ValueError, match=r"data\.repeats to be a whole number from 1 on, got 0"):
        clips(repeats=0)
    model.is_frozen = False
    assert clips() is loader


def test_evaluations_share_the_store_that_is_open(workplace, trained, load_script, monkeypatch):
    model = ocrl.load(workplace.folder / "outputs" / "train_world_model" / "small")
    store = EpisodeStore(workplace.folder / "episodes")
    config = OmegaConf.create(
        {"evaluation": {"preset": "entities", "horizons": [1, 2]}, "data": {"holdout": 0.25}}
    )
    clips = load_script("worlds").held_out_clips(config, model, store)
    monkeypatch.setattr(EpisodeStore, "_open_shards", None)  # to open another one is an error
    first, second = ([*clips(2)] for _ in range(2))
    assert first[0].video.shape[:2] == (2, 4) and "entities" in first[0].segmentation
    assert (first[0].video == second[0].video).all() and first[0].boxes is not None


@pytest.mark.slow
def test_without_a_slot_model_one_is_trained_first(workplace):
    options = (
        *("env.size=32", "image_size=[32,32]", "slot_dim=8"),
        *("encoder.backbone.channels=[8]", "encoder.backbone.strides=[4]"),
        *("decoder=broadcast", "decoder.channels=[8]", "decoder.strides=[4]"),
        *("collect.num_steps=60", "collect.episode_length=10", "collect.num_workers=0"),
        *("trainer.max_steps=2", "evaluation.num_clips=2", "evaluation.clip_length=4"),
    )
    pretrain = "pretrain=[" + ",".join(f"'{option}'" for option in options) + "]"
    done = workplace.run("train_world_model", pretrain, *SMALL, "name=whole")
    assert done.returncode == 0, done.stderr
    output = workplace.output("train_world_model", "whole")
    left = {path.name for path in (output / "slots").iterdir()}
    assert {"checkpoint", "episodes", "metrics.json"} <= left
    assert isinstance(ocrl.load(output), WorldModel)
