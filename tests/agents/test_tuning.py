"""Encoders that go on learning: what they are trained on, how far they went, what is saved."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from ocrl import checkpoint
from ocrl.agents import saving
from ocrl.agents.ppo import ModelFree
from ocrl.agents.run import AgentRun
from ocrl.agents.tuning import Drift, DriftReport, EncoderTuning, TuningSettings
from ocrl.envs.recent_frames import RecentFrames
from ocrl.envs.slots import SlotVectorEnv
from ocrl.envs.vector import make_vec
from ocrl.log import TensorBoard

CONFIGS = str(Path(__file__).parents[2] / "configs")
SMALL = (
    *("decoder=broadcast", "num_slots=3", "slot_dim=8", "image_size=[16,16]"),
    *("encoder.backbone.channels=[4]", "encoder.backbone.strides=[4]"),
    *("decoder.channels=[4]", "decoder.strides=[4]"),
)
TUNING = {"every": 2, "num_steps": 2, "batch_size": 4, "clip_length": 3, "seed": 0}


def small_model(name="savi"):
    """A slot model and what it is built from."""
    with initialize_config_dir(version_base="1.3", config_dir=CONFIGS):
        settings = compose("pretrain", overrides=[f"encoder={name}", *SMALL])
    config = {"_target_": "ocrl.model.SlotModel", "is_conditioned": False}
    for part in ("encoder", "decoder", "objectives", "weights"):
        config[part] = checkpoint.plain(settings[part])
    torch.manual_seed(0)
    return checkpoint.build(config).eval(), config


def sprites(num_envs=2):
    return make_vec("sprites-object_comparison", num_envs, size=16, max_steps=7, num_objects=3)


def probe(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, 3, 16, 16), generator=generator, dtype=torch.uint8)


def test_recent_frames_are_those_that_were_played():
    envs = RecentFrames(sprites(), num_steps=12)
    first, _ = envs.reset(seed=0)
    frames, starts, actions = [first], [np.ones(2, bool)], []
    for step in range(20):
        action = np.array([step % 4, 3 - step % 4])
        frame, _, terminated, truncated, _ = envs.step(action)
        frames.append(frame.copy())
        starts.append(terminated | truncated)
        actions.append(action)
    assert len(envs) == 12
    clip = envs.clips(50, clip_length=4, seed=(0, 1))
    assert clip.video.shape == (50, 4, 3, 16, 16) and clip.video.dtype == torch.uint8
    assert clip.is_first[:, 0].all() and clip.is_first[:, 1:].any()
    frames, starts, actions = np.stack(frames), np.stack(starts), np.stack(actions)
    for index in range(50):
        video = clip.video[index].permute(0, 2, 3, 1).numpy()
        found = [
            (start, row)
            for start in range(9, 17)
            for row in range(2)
            if (frames[start : start + 4, row] == video).all()
            and (actions[start : start + 4, row] == clip.action[index].numpy()).all()
            and (starts[start + 1 : start + 4, row] == clip.is_first[index, 1:].numpy()).all()
        ]
        assert found, index
    again = envs.clips(50, clip_length=4, seed=(0, 1))
    assert torch.equal(again.video, clip.video)
    envs.reset(seed=1)
    with pytest.raises(ValueError, match="expected more than 4 steps to draw from, got 1"):
        envs.clips(1, clip_length=4, seed=(0,))
    with pytest.raises(ValueError, match="num_steps of at least 1, got 0"):
        RecentFrames(sprites(), num_steps=0)


def test_drift_is_zero_until_weights_change_and_tells_slots_that_changed_places():
    model, _ = small_model()
    drift = Drift(model.encoder, probe())
    figures = drift.measure(model.encoder)
    assert figures == pytest.approx(dict.fromkeys(figures, 0.0), abs=1e-6)
    exchanged = copy.deepcopy(model.encoder)
    with torch.no_grad():
        slots = (
            exchanged.initializer.slots
            if "slots" in dict(exchanged.initializer.named_parameters())
            else next(exchanged.initializer.parameters())
        )
        slots.copy_(slots.flip(-2))
    figures = drift.measure(exchanged)
    assert figures["matched_cosine"] < 1e-5 < 1e-3 < figures["cosine"]
    with torch.no_grad():
        for parameter in exchanged.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    figures = drift.measure(exchanged)
    assert figures["matched_cosine"] > 1e-3 and figures["distance"] > 1e-2
    assert exchanged.training is False


class Toy:
    """Trains an agent on slots of a model that is tuned meanwhile."""

    def __init__(self, folder, settings):
        self.folder = folder
        self.settings = settings

    def train(self, *, interrupt_at=None, learning_rate=1e-2):
        model, config = small_model()
        recent = RecentFrames(sprites(), num_steps=64)
        envs = SlotVectorEnv(recent, model.encoder)
        drift = Drift(model.encoder, probe())
        before = copy.deepcopy(model.state_dict())

        def part(agent, board):
            return EncoderTuning(
                model,
                recent,
                loader=None,
                settings=TuningSettings(**TUNING, learning_rate=learning_rate, clip_norm=1.0),
                drift=drift,
                board=board,
                origin={"path": "elsewhere", "hash": "0"},
                config=config,
                env="sprites",
            )

        def evaluate(agent, step, board):
            if interrupt_at is not None and step >= interrupt_at:
                raise KeyError("killed")
            return {}

        agent = ModelFree(**self.settings | {"evaluate_every": 30})
        trained = agent.train(
            envs,
            run=AgentRun(self.folder, {"env": "x", "encoder": {"path": "elsewhere", "hash": "0"}}),
            network=agent.network(plain_key="slots"),
            evaluate=evaluate,
            extra=part,
        )
        return trained, model, before


def test_replay_tunes_the_encoder_that_observes_and_resumes_exactly(tmp_path, small_settings):
    settings = small_settings("ppo")
    trained, model, before = Toy(tmp_path / "whole", settings).train()
    changed = [not torch.equal(v, before[k]) for k, v in model.state_dict().items()]
    assert any(changed) and not model.training
    with pytest.raises(KeyError):
        Toy(tmp_path / "killed", settings).train(interrupt_at=100)
    again, other, _ = Toy(tmp_path / "killed", settings).train()
    ours, theirs = model.state_dict(), other.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = trained.policy.state_dict(), again.policy.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # The agent's folder holds the tuned model, and names it.
    path = saving.encoder_path(tmp_path / "whole")
    assert path == tmp_path / "whole/agent/encoder"
    loaded = checkpoint.load(path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    meta = saving.read_meta(tmp_path / "whole")
    assert meta["encoder"]["origin"] == {"path": "elsewhere", "hash": "0"}


@pytest.mark.parametrize("name", ["slot_attention", "savi"])
def test_an_encoder_in_the_policy_learns_from_its_gradient(name, tmp_path, small_settings):
    model, config = small_model(name)
    agent = ModelFree(**small_settings("ppo") | {"total_steps": 64})
    drift = Drift(model.encoder, probe())
    reports = []

    def part(agent, board):
        report = DriftReport(agent.features.encoder, drift=drift, board=board, every=1)
        inner = report._drift.measure
        report._drift.measure = lambda encoder: reports.append(inner(encoder)) or reports[-1]
        return report

    before = copy.deepcopy(model.encoder.state_dict())
    trained = agent.train(
        sprites(),
        run=AgentRun(tmp_path, {"env": "x", "encoder": None}),
        network=agent.network(plain_key="frame", encoder=config["encoder"]),
        encoder=model.encoder,
        extra=part,
    )
    # It began with the trained weights, whatever the policy does to its own at the start.
    assert reports[0]["distance"] == pytest.approx(0.0, abs=1e-6)
    assert reports[-1]["distance"] > 1e-4
    after = trained.features.encoder.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(before[k], v) for k, v in model.encoder.state_dict().items())
    frames, _ = sprites().reset(seed=0)
    share = trained.attention(frames, trained.initial_state(len(frames)), np.ones(len(frames)))
    np.testing.assert_allclose(share.sum(-1), 1.0, rtol=1e-5)
    assert trained.features.train().encoder.training is False


def test_what_can_not_be_tuned_is_refused(tmp_path, small_settings):
    _, config = small_model("psb")
    agent = ModelFree(**small_settings("ppo"))
    config["encoder"]["bottom_up_window"] = 999
    with pytest.raises(ValueError, match=r"numbers, .* got PSB with \d+; use one with a shorter"):
        agent.train(
            sprites(),
            run=AgentRun(tmp_path, {"env": "x", "encoder": None}),
            network=agent.network(plain_key="frame", encoder=config["encoder"]),
        )
    changed = small_settings("ppo") | {"policy": {"net_arch": [8], "ortho_init": True}}
    with pytest.raises(ValueError, match=r"expected agent.policy.ortho_init=false"):
        ModelFree(**changed).network(plain_key="frame", encoder=config["encoder"])
    with pytest.raises(ValueError, match=r"encoder.replay.num_steps to be from 1 on, got 0"):
        TuningSettings(**TUNING | {"num_steps": 0}, learning_rate=1e-3, clip_norm=1.0)
    model, config = small_model()
    model.is_conditioned = True
    with TensorBoard(tmp_path) as board, pytest.raises(ValueError, match="needs no boxes"):
        EncoderTuning(
            model,
            RecentFrames(sprites(), num_steps=4),
            loader=None,
            settings=TuningSettings(**TUNING, learning_rate=1e-3, clip_norm=1.0),
            drift=Drift(model.encoder, probe()),
            board=board,
            origin={},
            config=config,
            env="sprites",
        )


def test_a_loss_of_the_encoder_that_is_nan_keeps_the_agent(tmp_path, small_settings):
    with pytest.raises(ValueError, match=r"the loss of the encoder .* no checkpoint had been"):
        Toy(tmp_path, small_settings("ppo")).train(learning_rate=float("inf"))
