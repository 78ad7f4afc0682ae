"""What is drawn from memory is of the encoder as it is."""

import numpy as np

from ocrl.agents.memory import Memory
from ocrl.agents.replay import EpisodeReplay


def add(replay, number, *, version):
    zeros = np.zeros(6, np.float32)
    outcomes = {"action": np.zeros(6, np.int64), "reward": zeros}
    ends = np.arange(6) == 5
    outcomes |= {"terminated": ends, "truncated": ends & False}
    slots = np.full((6, 2, 3), number, np.float32)
    replay.add({"slots": slots}, outcomes, version=version)


def test_steps_of_an_earlier_encoder_are_left_out():
    replay = EpisodeReplay(capacity=100, seed=0)
    memory = Memory(None, replay, num_envs=1, encoder=None, has_frames=False)
    replay.version = 1
    for number, version in enumerate([0, 1, 0, 1]):
        add(replay, number, version=version)
    window = memory.steps(3, batch_size=60)
    assert set(window.observation["slots"].unique().tolist()) == {1.0, 3.0}
    assert 10 < len(window.reward) < 50
    replay.version = 2
    assert memory.steps(3, batch_size=60) is None
