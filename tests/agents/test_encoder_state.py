"""An encoder with a memory inside a policy: exact slots, a gradient, and the right state."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from hydra import compose, initialize_config_dir
from stable_baselines3.common.preprocessing import preprocess_obs

from ocrl import checkpoint
from ocrl.agents import encoder_state, load
from ocrl.agents.encoder_state import STATE, EncoderState, find_state
from ocrl.agents.features import Features
from ocrl.agents.policy import PolicyAgent
from ocrl.agents.ppo import ModelFree
from ocrl.agents.run import AgentRun
from ocrl.agents.vector import StableBaselinesVecEnv
from ocrl.envs.vector import make_vec

CONFIGS = Path(__file__).parents[2] / "configs"
SIDE, TOLERANCE = 16, 1e-5
SIZES = (f"+image_size=[{SIDE},{SIDE}]", "+num_slots=3", "+slot_dim=8")
SMALL = ("encoder.backbone.channels=[4]", "encoder.backbone.strides=[4]")
MEMORIES = (
    *("savi", "savi_appearance", "smooth_sa", "located", "slot_mixture_video"),
    *("slot_ssm", "psb"),
)


def described(name="savi", *options):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        config = compose(overrides=[f"+encoder={name}", *SIZES, *SMALL, *options])
    return checkpoint.plain(config)["encoder"]


def sprites(num_envs=2):
    return make_vec("sprites-object_goal", num_envs, size=SIDE, max_steps=4, step_size=0.12)


class Held:
    """A policy with an encoder in its environments, as training builds it."""

    def __init__(self, settings, name="savi", seed=0):
        trainer = ModelFree(**settings | {"seed": seed})
        network = trainer.network(plain_key="frame", encoder=described(name))
        self.model = trainer.build(StableBaselinesVecEnv(sprites()), network)
        self.agent = PolicyAgent(self.model.policy, network=network)
        self.seen = []
        reader = self.agent.features.readers["frame"]
        reader.register_forward_pre_hook(lambda module, given: self.seen.append(given[0]))

    @property
    def encoder(self):
        return self.agent.features.encoder

    def features(self, observation):
        """What the policy makes of observations (B,...), and the slots (B,K,D) on the way."""
        tensors, _ = self.model.policy.obs_to_tensor(observation)
        inputs = preprocess_obs(tensors, self.model.policy.observation_space)
        return self.agent.features(inputs), self.seen[-1]

    def play(self, num_steps=12):
        """Episodes, as lists of observations, their last ones included."""
        env = self.model.env
        env.seed(1)
        observation = env.reset()
        running = [[{name: part[row] for name, part in observation.items()}] for row in range(2)]
        episodes = []
        for step in range(num_steps):
            observation, _, ended, infos = env.step(np.array([step % 4, (step // 3) % 4]))
            for row in range(2):
                if ended[row]:
                    running[row].append(infos[row]["terminal_observation"])
                    episodes.append(running[row])
                    running[row] = []
                running[row].append({name: part[row] for name, part in observation.items()})
        return episodes + running


def stacked(episode):
    return {name: np.stack([entry[name] for entry in episode]) for name in episode[0]}


def offline(encoder, frames):
    """Slots (T,K,D) of an episode's frames (T,C,H,W), encoded as a clip."""
    video = torch.from_numpy(frames)[None] / 255.0
    with torch.no_grad():
        return encoder(video, torch.arange(len(frames))[None] == 0).slots[0]


@pytest.fixture
def held(small_settings):
    return Held(small_settings("ppo"))


@pytest.mark.parametrize("name", MEMORIES)
def test_a_policy_binds_the_very_slots_that_streaming_yields(name, small_settings):
    held = Held(small_settings("ppo"), name)
    episodes = held.play()
    assert sum(len(episode) == 5 for episode in episodes) >= 4, "no last frame was seen"
    for episode in episodes:
        observation = stacked(episode)
        _, slots = held.features(observation)
        expected = offline(held.encoder, observation["frame"])
        torch.testing.assert_close(slots.detach(), expected, atol=TOLERANCE, rtol=TOLERANCE)
        # First frames stand beside others in a minibatch, and begin from nothing.
        assert list(observation[STATE][:, 0]) == [1.0] + [0.0] * (len(episode) - 1)


@pytest.mark.parametrize(
    "order",
    [[1, 2, 3, 4, 4], [0, 0, 1, 2, 3], [0, 0, 0, 0, 0], [0, 1, 2, 3, 0]],
    ids=["after", "stale", "never carried", "reset before the last frame"],
)
def test_a_wrong_state_is_another_frame_of_slots(held, order):
    observation = stacked(next(e for e in held.play() if len(e) == 5))
    wrong = {**observation, STATE: observation[STATE][order]}
    (_, right), (_, slots) = held.features(observation), held.features(wrong)
    difference = (right - slots).abs().amax(dim=(1, 2)).detach().numpy()
    moved = np.array(order) != np.arange(5)
    assert (difference[moved] > 100 * TOLERANCE).all() and (difference[~moved] == 0).all()


@pytest.mark.parametrize("name", MEMORIES)
def test_the_gradient_reaches_the_encoder_and_ends_at_the_state(name, small_settings):
    held = Held(small_settings("ppo"), name)
    observation = stacked([entry for episode in held.play() for entry in episode])
    features, _ = held.features(observation)
    torch.manual_seed(0)
    (features * torch.randn_like(features)).sum().backward()
    gradients = {key: value.grad for key, value in held.encoder.named_parameters()}
    known = {key: value for key, value in gradients.items() if value is not None}
    assert all(value.isfinite().all() for value in known.values())
    reached = {key.split(".")[0] for key, value in known.items() if value.abs().max() > 0}
    # What SmoothSA starts from learns by its own objective, preheating, alone.
    apart = {"initializer"} if name == "smooth_sa" else set()
    assert reached == {key.split(".")[0] for key in gradients} - apart


def test_the_stream_goes_on_with_the_weights_that_were_learned(held):
    env, encoder = held.model.env, held.encoder
    env.seed(0)
    before = env.reset()
    untouched = copy.deepcopy(encoder)
    features, _ = held.features(before)
    held.model.policy.optimizer.zero_grad()
    features.pow(2).sum().backward()
    for group in held.model.policy.optimizer.param_groups:
        group["lr"] = 0.1
    held.model.policy.optimizer.step()
    after, *_ = env.step(np.zeros(2, int))
    pixels, is_first = torch.from_numpy(before["frame"]) / 255.0, torch.ones(2).bool()
    states = held.agent.features.states
    given, goes_on = states.unpack(torch.from_numpy(after[STATE]))
    assert not goes_on.any()
    with torch.no_grad():
        (_, new), (_, old) = (
            module.step(pixels, module.initial_state(2), is_first)
            for module in (encoder, untouched)
        )
    assert torch.equal(given["slots"], new["slots"]) and given["is_fresh"].dtype == torch.bool
    assert (new["slots"] - old["slots"]).abs().max() > 1e-3


def test_an_agent_acts_on_frames_as_its_policy_does_on_frames_and_states(held):
    """Alone it carries the state itself, over ends of episodes too."""
    env, envs, agent = held.model.env, sprites(), held.agent
    env.seed(5)
    observation, (frames, _) = env.reset(), envs.reset(seed=[5, 6])
    state, is_first = agent.initial_state(2), np.ones(2, bool)
    shares = []
    for _ in range(10):
        shares.append(agent.attention(frames, state, is_first))
        fresh = agent.attention(frames, state, np.ones(2, bool))
        assert np.allclose(fresh, shares[-1]) == bool(is_first.all())
        action, _ = held.model.policy.predict(observation, deterministic=True)
        expected = held.seen[-1]
        chosen, state = agent.act(frames, state, is_first, is_deterministic=True)
        np.testing.assert_array_equal(chosen, action)
        assert torch.equal(held.seen[-1], expected)
        observation = env.step(action)[0]
        frames, _, terminated, truncated, _ = envs.step(chosen)
        is_first = terminated | truncated
    np.testing.assert_allclose(np.sum(shares, axis=-1), 1.0, rtol=1e-5)
    assert agent.reading(envs.single_observation_space) is agent


class Killed(Exception):
    """As if the machine had lost power."""


def train(folder, settings, *, kill_at=None):
    torch.manual_seed(3)
    encoder = checkpoint.build(described()).eval()

    def evaluate(agent, step, board):
        if kill_at is not None and step >= kill_at:
            raise Killed
        return {}

    agent = ModelFree(**settings | {"evaluate_every": 30, "total_steps": 150})
    return agent.train(
        sprites(),
        run=AgentRun(folder, {"env": "x", "encoder": None}),
        network=agent.network(plain_key="frame", encoder=described()),
        encoder=encoder,
        evaluate=evaluate,
    ), encoder


@pytest.mark.parametrize(
    "algorithm",
    ["ppo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dqn", "recurrent_ppo"))],
)
def test_killed_and_resumed_equals_uninterrupted(algorithm, tmp_path, small_settings):
    if algorithm == "recurrent_ppo":
        pytest.importorskip("sb3_contrib")
    settings = small_settings(algorithm)
    settings["policy"]["ortho_init"] = False
    if algorithm == "dqn":
        del settings["policy"]["ortho_init"]
    whole, began = train(tmp_path / "whole", settings)
    with pytest.raises(Killed):
        train(tmp_path / "killed", settings, kill_at=100)
    resumed, _ = train(tmp_path / "killed", settings)
    ours, theirs = whole.policy.state_dict(), resumed.policy.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    after = whole.features.encoder.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in began.state_dict().items())
    # A saved one needs frames alone.
    envs = sprites()
    loaded = load(tmp_path / "whole", env=envs)
    frames, _ = envs.reset(seed=0)
    state, is_first = loaded.initial_state(2), np.ones(2, bool)
    for _ in range(3):
        mine, _ = whole.act(frames, state, is_first, is_deterministic=True)
        action, state = loaded.act(frames, state, is_first, is_deterministic=True)
        np.testing.assert_array_equal(action, mine)
        frames, *_ = envs.step(action)
        is_first = np.zeros(2, bool)


class Growing(torch.nn.Module):
    """Remembers all slots there were."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.backbone = encoder, encoder.backbone

    def initial_state(self, batch_size):
        return self.encoder.initial_state(batch_size), ()

    def step(self, frame, state, is_first):
        output, inner = self.encoder.step(frame, state[0], is_first)
        return output, (inner, (*state[1], output.slots))


def test_what_no_policy_can_carry_is_refused(monkeypatch):
    savi = checkpoint.build(described())
    with pytest.raises(ValueError, match=r"of the same shapes .* got Growing; use encoder.mode=re"):
        EncoderState(Growing(savi), plain_key="frame")
    monkeypatch.setattr(encoder_state, "_MAX_SIZE", 25)
    with pytest.raises(ValueError, match=r"at most 25 numbers, .* got SAVi with 26; use one with"):
        EncoderState(savi, plain_key="frame")
    monkeypatch.setattr(encoder_state, "_MAX_SIZE", 26)
    states = EncoderState(savi, plain_key="frame")
    frame = Box(0, 255, (SIDE, SIDE, 3), np.uint8)
    assert states.space(frame).spaces == {"frame": frame, STATE: states.part}
    with pytest.raises(ValueError, match=r"expected one frame for an encoder with a memory, got"):
        states.space(Dict({"frame": frame, "second": frame}))
    with pytest.raises(ValueError, match=r"expected Box.* as 'encoder_state' beside the frame"):
        Features(
            frame,
            plain_key="frame",
            pooling={},
            vision={},
            match_dim=0,
            whitening=None,
            hides_empty=False,
            num_geometry=0,
            encoder=described(),
        )


def test_an_encoder_without_a_memory_has_no_state_in_the_observation():
    assert find_state(checkpoint.build(described("slot_attention")), plain_key="frame") is None
