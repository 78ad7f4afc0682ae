import itertools
import math
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ocrl import checkpoint
from ocrl.distributed import World
from ocrl.log import TensorBoard
from ocrl.scene_prior import PriorMonitor, ScenePrior, code_sizes_of, scene_picture
from ocrl.train import Run
from ocrl.types import Clip

CONFIGS = Path(__file__).parents[2] / "configs"
CPU = torch.device("cpu")
SVQ = ("encoder=svq", "encoder.memory.quantizer.sizes=[4,4]", "encoder.mlp_dim=32")
SLATE = ("decoder=slate", "decoder.dim=16", "decoder.mlp_dim=16", "decoder.num_layers=1")
SMALL = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "dropout": 0.1}


def config_of(*overrides):
    small = ["image_size=[16,16]", "num_slots=3", "slot_dim=16", "decoder=broadcast"]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        config = compose("pretrain", overrides=[*small, *overrides])
    parts = {name: checkpoint.plain(config[name]) for name in ("encoder", "decoder", "objectives")}
    rest = {"weights": {"reconstruction": 1.0}, "is_conditioned": False}
    return {"_target_": "ocrl.model.SlotModel", **rest, **parts}


def prior_config(num_slots=3, code_sizes=(4, 4)):
    return {
        "_target_": "ocrl.priors.autoregressive.AutoregressivePrior",
        "num_slots": num_slots,
        "code_sizes": list(code_sizes),
        "slot_order": "encoder",
        **SMALL,
    }


def settings(*overrides):
    model = config_of(*(overrides or SVQ))
    return {"_target_": "ocrl.scene_prior.ScenePrior", "model": model, "prior": prior_config()}


def make(*overrides):
    torch.manual_seed(0)
    return checkpoint.build(settings(*overrides))


def clip_of(step, num_clips=4):
    generator = torch.Generator().manual_seed(step)
    video = torch.randint(0, 255, (num_clips, 2, 3, 16, 16), generator=generator)
    return Clip(video.to(torch.uint8), torch.zeros(num_clips, 2, dtype=torch.bool))


@contextmanager
def batches(start, *, end=None):
    def clips():
        for step in itertools.count(start):
            if step == end:
                raise RuntimeError("power cut")
            yield clip_of(step)

    yield clips()


def fit(directory, *, clips=batches):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        config = compose(
            "code_prior", overrides=["trainer.max_steps=8", "trainer.checkpoint_every=3"]
        )
    scenes = make()
    instantiate(config.trainer, _convert_="all").fit(
        scenes,
        optimizer=instantiate(config.optimizer, _convert_="all"),
        batches=clips,
        run=Run(Path(directory), settings()),
        world=World(0, 1, CPU),
    )
    return scenes


def test_only_the_prior_learns_and_goes_on_exactly_after_a_power_cut(tmp_path):
    before = make().state_dict()
    whole = fit(tmp_path / "whole").state_dict()
    moved = {name for name, value in whole.items() if not value.equal(before[name])}
    # How far training is done is told to every part; in `eval()` none of them reads it.
    assert {name for name in moved if not name.startswith("prior.")} <= {"model.encoder.progress"}
    assert {name for name in before if name.startswith("prior.")} <= moved
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path / "killed", clips=partial(batches, end=5))
    resumed = fit(tmp_path / "killed").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_the_checkpoint_draws_without_the_model_s_own(tmp_path):
    scenes = fit(tmp_path).eval()
    loaded = checkpoint.load(tmp_path)
    assert isinstance(loaded, ScenePrior)
    codes = loaded.prior.sample(5, temperature=1.0, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(loaded.draw(codes), scenes.draw(codes))


def test_every_frame_is_a_scene_and_the_model_stays_in_evaluation():
    scenes = make().train()
    assert scenes.prior.training and not any(part.training for part in scenes.model.modules())
    clip = clip_of(0)
    codes = scenes.codes(clip)
    assert codes.shape == (8, 3, 2) and torch.equal(codes, scenes.codes(clip))
    assert torch.equal(codes[3], scenes.model.encode(clip).codes[1, 1])
    output = scenes(clip)
    # The head starts at zero, so nothing is known of 6 codes out of 4 each.
    torch.testing.assert_close(output.total, torch.tensor(6 * math.log(4)))
    torch.testing.assert_close(output.losses["code"], torch.tensor(math.log(4)))
    assert torch.equal(output.losses["scene"], output.total)


@pytest.mark.parametrize("decoder", [(), SLATE])
def test_codes_of_a_frame_are_drawn_as_the_model_draws_its_slots(decoder):
    tokens = ["objective@objectives.reconstruction=tokens"] if decoder else []
    scenes = make(*SVQ, *decoder, *tokens).eval()
    clip = clip_of(0)
    slots, model = scenes.model.encode(clip).slots, scenes.model
    with torch.no_grad():
        expected = model.decoder.depict(slots) if decoder else model.decoder(slots).recon
        drawn = scenes.draw(scenes.codes(clip))
    torch.testing.assert_close(drawn, expected.flatten(0, 1).clamp(0, 1))


def test_new_scenes_stand_below_real_ones_and_what_their_codes_say():
    scenes = make().eval()
    new = scenes.prior.sample(17, temperature=1.0)
    assert scene_picture(scenes, new).shape == (3, 2 * 16 + 2, 8 * 16 + 7 * 2)
    picture = scene_picture(scenes, new, [clip_of(0, num_clips=1) for _ in range(9)])
    assert picture.shape == (3, 4 * 16 + 3 * 2, 8 * 16 + 7 * 2)
    assert torch.equal(picture[:, :16, :16], clip_of(0).video[0, 0])
    assert scene_picture(scenes, new[:3]).shape == (3, 16, 3 * 16 + 2 * 2)
    # Where there are fewer real ones than stand in a row, rows are shorter.
    picture = scene_picture(scenes, new, [clip_of(0)])
    assert picture.shape == (3, 6 * 16 + 5 * 2, 4 * 16 + 3 * 2)


def watch(scenes, codes, directory):
    """Figures, and what is said, of two evaluations on frames with these codes."""
    said = []
    scenes.codes = lambda clip: codes[: clip.batch_size * clip.num_frames]
    monitor = PriorMonitor(
        lambda: [clip_of(50)], num_scenes=8, temperature=1.0, device=CPU, say=said.append
    )
    with TensorBoard(directory) as board:
        figures = [monitor(scenes.eval(), step=step, board=board) for step in (1, 2)]
    return figures, said


def test_the_monitor_measures_on_held_out_frames_and_draws(tmp_path):
    codes = torch.randint(4, (8, 3, 2), generator=torch.Generator().manual_seed(0))
    figures, said = watch(make(), codes, tmp_path)
    assert figures[0] == figures[1] and not said
    assert figures[0]["code"] == pytest.approx(math.log(4), abs=1e-5)
    assert figures[0]["uniform"] == pytest.approx(math.log(4))
    shares = torch.stack([(codes.flatten(1) == code).double().mean(0) for code in range(4)])
    expected = torch.special.entr(shares).sum(0).mean()
    assert figures[0]["independent"] == pytest.approx(float(expected))
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["images"] == ["scenes"]


def test_a_codebook_larger_than_the_data_can_use_is_told_once(tmp_path):
    codes = torch.randint(4, (8, 3, 2), generator=torch.Generator().manual_seed(0))
    codes[..., 1] = 2
    _, said = watch(make(), codes, tmp_path)
    assert len(said) == 1 and said[0].startswith(
        "Held-out frames use 1 of the 4 codes of group 1: the codebook is larger than the data"
    )


def test_models_without_codes_of_their_own_are_refused():
    def model(*overrides):
        return checkpoint.build(config_of(*overrides))

    with pytest.raises(ValueError, match=r"slots are codes .* got SlotAttention, which gives none"):
        code_sizes_of(model("encoder=slot_attention"))
    with pytest.raises(ValueError, match=r"slots are codes .* got SysBinder, which gives none"):
        code_sizes_of(model("encoder=sysbinder", "encoder.mlp_dim=32"))
    with pytest.raises(ValueError, match="codes alone: expected continuous coordinates"):
        code_sizes_of(model("encoder=vq_sa"))
    grid = model("encoder=vq_sa", "encoder.coordinates=grid")
    assert code_sizes_of(grid) == (8, 8, 8, 8, 16, 16)
    with pytest.raises(ValueError, match=r"over 3 slots .* \[4, 4\], got 2 with \[4, 4\]"):
        ScenePrior(model(*SVQ), prior=checkpoint.build(prior_config(num_slots=2)))


def test_decoders_that_draw_nothing_are_refused():
    features = ("decoder=mlp", "objective@objectives.reconstruction=features")
    scenes = make(*SVQ, *features).eval()
    with pytest.raises(ValueError, match=r"decoder that draws slots, .* got MLPDecoder"):
        scenes.draw(torch.zeros(1, 3, 2, dtype=torch.long))
