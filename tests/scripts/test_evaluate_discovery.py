"""The script as a user starts it, on a tiny untrained model."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ocrl import checkpoint
from ocrl.data.store import EpisodeStore, EpisodeWriter
from ocrl.visualize import write_mp4

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate_discovery.py"
SMALL = (
    "env=sprites",
    "encoder=savi",
    "decoder=broadcast",
    "num_slots=3",
    "slot_dim=8",
    "image_size=[32,32]",
    "encoder.backbone.channels=[8]",
    "encoder.backbone.strides=[4]",
    "decoder.channels=[8]",
    "decoder.strides=[4]",
)


def model_config():
    configs = str(SCRIPT.parents[1] / "configs")
    with initialize_config_dir(version_base="1.3", config_dir=configs):
        config = compose("pretrain", overrides=list(SMALL))
    return {
        "_target_": "ocrl.model.SlotModel",
        **{name: checkpoint.plain(config[name]) for name in ("encoder", "decoder", "objectives")},
        "weights": checkpoint.plain(config.weights),
        "is_conditioned": False,
    }


def episode(seed, size=32, num_frames=9):
    """Four squares that drift over noise; the ids are large."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 60, (num_frames, size, size, 3), dtype=np.uint8)
    ids = np.zeros((num_frames, size, size), np.uint16)
    for index, (top, left) in enumerate(rng.integers(0, size - 16, (4, 2))):
        for t in range(num_frames):
            area = (t, slice(top, top + 6), slice(left + t, left + t + 6))
            frames[area], ids[area] = rng.integers(90, 256, 3), 1000 * (index + 1)
    rows = {
        name: np.zeros(num_frames, dtype)
        for name, dtype in (
            ("action", np.int64),
            ("reward", np.float32),
            ("terminated", bool),
            ("truncated", bool),
        )
    }
    return {"frames": frames, "segmentation/entities": ids, **rows}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    torch.manual_seed(0)
    config = model_config()
    checkpoint.save(
        folder / "run" / "checkpoint",
        checkpoint.build(config),
        config=config,
        step=1234,
        env="sprites",
    )
    with EpisodeWriter(folder / "episodes", metadata={"env": "sprites"}) as writer:
        for seed in range(4):
            writer.append(episode(seed))
    with EpisodeWriter(folder / "large", metadata={"env": "sprites"}) as writer:
        for seed in range(2):
            writer.append(episode(seed, size=48))
    assert len(EpisodeStore(folder / "episodes")) == 4
    return folder


@pytest.fixture
def run(run_script, workplace):
    return partial(run_script, "evaluate_discovery", folder=workplace)


def test_episodes(run, workplace):
    done = run(
        "checkpoint=run",
        "data.path=episodes",
        "data.clip_length=4",
        "data.num_clips=4",
        "data.split=all",
        "num_examples=2",
    )
    assert done.returncode == 0, done.stderr
    out = workplace / "outputs" / "evaluate_discovery" / "default"
    record = json.loads((out / "metrics.json").read_text())
    assert list(record["table"]) == ["model", "grid", "k-means"]
    assert list(record["table"]["grid"]) == ["entities"]
    assert record["num_clips"] == 4
    assert record["num_frames"] == 16
    assert record["num_slots"] == 3
    assert record["table"]["k-means"]["entities"]["video_mbo_i"] > 0.1
    assert "more objects than the model has slots" in record["warnings"][0]
    assert "num_slots=5" in done.stderr
    assert "step 1,234" in record["details"]["checkpoint"]
    page = (out / "report.html").read_text()
    assert "Object discovery: sprites" in page
    assert (out / "overlay.mp4").stat().st_size > 1000
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    logged = board.Scalars("entities/video_fg_ari")[0]
    assert logged.step == 1234
    assert logged.value == pytest.approx(record["table"]["model"]["entities"]["video_fg_ari"])
    assert board.Tags()["images"] == ["masks/0", "masks/1"]
    assert "k-means: video FG-ARI" in done.stderr


def test_merged_slots(run, workplace):
    options = ("checkpoint=run", "data.path=episodes", "data.clip_length=4", "data.num_clips=2")
    done = run(*options, "data.split=all", "merge=0.01", "name=merged")
    assert done.returncode == 0, done.stderr
    out = workplace / "outputs" / "evaluate_discovery" / "merged"
    record = json.loads((out / "metrics.json").read_text())
    # So low a threshold that one slot is left, which cannot tell anything from anything.
    assert record["health"]["slots_left"] == 1.0 and record["num_slots"] == 3
    assert record["table"]["model"]["entities"]["video_fg_ari"] == 0.0
    assert record["details"]["merged"] == "slots from a likeness of attn of 0.01 on"
    assert "slots of a frame that are left after merging" in (out / "report.html").read_text()


def test_a_video_without_ground_truth(run, workplace):
    video = torch.randint(0, 256, (6, 3, 40, 60), dtype=torch.uint8)
    write_mp4(workplace / "clip.mp4", video, frames_per_second=8)
    done = run("checkpoint=run", "data.path=clip.mp4", "data.max_frames=5", "name=mp4")
    assert done.returncode == 0, done.stderr
    out = workplace / "outputs" / "evaluate_discovery" / "mp4"
    record = json.loads((out / "metrics.json").read_text())
    assert record["table"] == {}
    assert record["num_frames"] == 5
    assert set(record["pictures"]) == {"psnr", "ssim"}
    assert "without ground truth" in (out / "report.html").read_text()


def test_pictures_with_masks(run, workplace):
    content = episode(7)
    for folder, rows in (("frames", "frames"), ("masks", "segmentation/entities")):
        (workplace / "davis" / folder / "walk").mkdir(parents=True)
        for number, picture in enumerate(content[rows]):
            picture = picture if folder == "frames" else (picture // 100).astype(np.uint8)
            file = workplace / "davis" / folder / "walk" / f"{number}.png"
            Image.fromarray(picture).save(file)
    done = run("checkpoint=run", "data.path=davis", "name=davis")
    assert done.returncode == 0, done.stderr
    out = workplace / "outputs" / "evaluate_discovery" / "davis"
    record = json.loads((out / "metrics.json").read_text())
    assert record["num_frames"] == 9
    assert list(record["table"]["model"]) == ["entities"]


@pytest.mark.parametrize("rate", [0, -1, None])
def test_a_rate_of_no_frames_is_refused_at_the_start(load_script, rate):
    config = OmegaConf.load(SCRIPT.parents[1] / "configs" / "evaluate.yaml")
    config.checkpoint = config.data.path = "nowhere"
    config.frames_per_second = rate
    del config["hydra"]
    with pytest.raises(ValueError, match=f"frames_per_second above 0, got {rate}"):
        load_script("measuring").subject_of(config)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["checkpoint=run", "data.path=nowhere"], "nowhere"),
        (["checkpoint=run", "data.path=large", "data.clip_length=4"], "image_size"),
        (["checkpoint=run", "data.path=episodes", "data.presets=[scne]"], "entities, got 'scne'"),
        (["checkpoint=run", "data.path=episodes", "protocol=slotcontrasts"], "'slotcontrast'"),
        (
            ["checkpoint=run", "data.path=episodes", "data.clip_length=4", "merge=1.5"],
            "(0,1] to merge at, got 1.5",
        ),
    ],
)
def test_mistakes_end_in_one_sentence(run, workplace, options, words):
    done = run(*options, "name=mistake")
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    left = {path.name for path in workplace.glob("outputs/*/mistake/*")}
    assert not left & {"metrics.json", "overlay.mp4", "report.html", "tensorboard"}
