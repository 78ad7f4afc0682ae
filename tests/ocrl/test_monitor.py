import copy
import io
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from ocrl import checkpoint
from ocrl.discovery import evaluate_discovery
from ocrl.log import TensorBoard
from ocrl.monitor import DiscoveryMonitor
from ocrl.types import Clip

CPU = torch.device("cpu")
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def model():
    return make("slot_attention")


def make(encoder):
    overrides = ["image_size=[16,16]", "num_slots=3", "slot_dim=16"]
    overrides += [f"encoder={encoder}", "decoder=broadcast"]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        config = compose("pretrain", overrides=overrides)
    parts = {name: checkpoint.plain(config[name]) for name in ("encoder", "decoder", "objectives")}
    torch.manual_seed(0)
    return checkpoint.build(
        {
            "_target_": "ocrl.model.SlotModel",
            "weights": {"reconstruction": 1.0},
            "is_conditioned": False,
            **parts,
        }
    )


def clips():
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        video = torch.randint(0, 255, (1, 4, 3, 16, 16), generator=generator).to(torch.uint8)
        truth = torch.zeros(1, 4, 16, 16, dtype=torch.int32)
        truth[..., 2:8, 2:8], truth[..., 9:14, 9:14] = 1, 2
        is_first = torch.zeros(1, 4, dtype=torch.bool)
        yield Clip(video, is_first, segmentation={"entities": truth})


def watch(model, directory, *, times=1):
    said = []
    monitor = DiscoveryMonitor(
        clips, presets=["entities"], mask_source="decoder", device=CPU, say=said.append
    )
    with TensorBoard(directory) as board:
        figures = [monitor(model, step=step, board=board) for step in range(1, times + 1)]
    return figures, said, EventAccumulator(str(directory)).Reload()


def test_gives_figures_and_logs_pictures_that_move(model, tmp_path):
    (figures,), _, found = watch(model, tmp_path)
    assert {"entities/video_fg_ari", "entities/video_mbo_i", "health/slots_in_use"} <= set(figures)
    assert {"slots/0", "slots/1", "masks/0", "masks/1"} <= set(found.Tags()["images"])
    (event,) = found.Images("masks/0")
    with Image.open(io.BytesIO(event.encoded_image_string)) as opened:
        assert opened.n_frames == 4
    with Image.open(io.BytesIO(found.Images("slots/0")[0].encoded_image_string)) as opened:
        # Names of frames over frames, truth, reconstruction, masks and three slots.
        assert opened.height == 26 + 7 * 52
    with Image.open(io.BytesIO(found.Images("attention/0")[0].encoded_image_string)) as opened:
        # Frames, attention and what each of three slots attends to.
        assert opened.height == 26 + 5 * 52


def test_tells_how_codes_are_used_where_there_are_some(model, tmp_path):
    (without,), *_ = watch(model, tmp_path / "without")
    assert not any(name.startswith("codes/") for name in without)
    quantised = make("vq_sa").eval()
    (figures,), said, _ = watch(quantised, tmp_path / "with")
    assert sum(sentence.startswith("Held-out frames use") for sentence in said) == 1
    assert sum(name.startswith("codes/") for name in figures) == 8
    codes = torch.cat([quantised.encode(clip).codes for clip in clips()]).flatten(0, 2)
    assert figures["codes/2/used"] == len(codes[:, 2].unique())
    assert 1.0 <= figures["codes/2/perplexity"] <= figures["codes/2/used"]


def test_baselines_are_measured_once_and_reported_always(model, tmp_path, monkeypatch):
    asked = []

    def counting(*args, baselines, **kwargs):
        asked.append(baselines)
        return evaluate_discovery(*args, baselines=baselines, **kwargs)

    monkeypatch.setattr("ocrl.monitor.evaluate_discovery", counting)
    figures, _, _ = watch(model, tmp_path, times=3)
    assert asked == [True, False, False]
    assert figures[0] == figures[1] == figures[2]
    assert "entities/grid/video_fg_ari" in figures[2]


def test_a_collapse_is_said_once_and_logged_each_time(model, tmp_path):
    collapsed = copy.deepcopy(model)
    # All slots start as one, so that they stay one.
    torch.nn.init.constant_(collapsed.encoder.initializer.log_std, -40.0)
    _, said, found = watch(collapsed, tmp_path, times=2)
    assert len(said) == len(set(said)) >= 1
    assert len(found.Tensors("health")) == 2


def test_only_slot_models_are_monitored(tmp_path):
    monitor = DiscoveryMonitor(
        clips, presets=[], mask_source="decoder", device=CPU, say=lambda sentence: None
    )
    with TensorBoard(tmp_path) as board, pytest.raises(TypeError, match="SlotModel, got Linear"):
        monitor(nn.Linear(1, 1), step=1, board=board)
