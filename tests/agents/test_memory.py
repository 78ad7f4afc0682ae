"""What is drawn from memory is of the encoder as it is."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ocrl.agents.memory import Memory
from ocrl.agents.replay import EpisodeReplay


def add(replay, number, *, version):
    zeros = np.zeros(6, np.float32)
    outcomes = {"action": np.zeros(6, np.int64), "reward": zeros}
    ends = np.arange(6) == 5
    outcomes |= {"terminated": ends, "truncated": ends & False}
    slots = np.full((6, 2, 3), number, np.float32)
    replay.add({"slots": slots}, outcomes, version=version)


def remembered():
    """Of four episodes, of which the second and the last are of the encoder as it is."""
    replay = EpisodeReplay(capacity=100, seed=0)
    memory = Memory(None, replay, num_envs=1, encoder=None, has_frames=False)
    replay.version = 1
    for number, version in enumerate([0, 1, 0, 1]):
        add(replay, number, version=version)
    return memory, replay


def test_steps_of_an_earlier_encoder_are_left_out():
    memory, replay = remembered()
    window = memory.steps(3, batch_size=60)
    assert set(window.observation["slots"].unique().tolist()) == {1.0, 3.0}
    assert 10 < len(window.reward) < 50
    replay.version = 2
    assert memory.steps(3, batch_size=60) is None


def test_motions_are_steps_of_the_encoder_as_it_is():
    memory, replay = remembered()

    def drawn(number, part, num_surprising=0):
        return memory.motions(
            number, part=part, batch_size=60, length=2, num_surprising=num_surprising
        )

    window = drawn(3, 0)
    assert set(window.observation["slots"].unique().tolist()) == {1.0, 3.0}
    assert window.shape[1] == 2 and 10 < window.shape[0] < 50
    assert not window.is_first[:, 1].any()
    # Surprise is of these steps: one of them is all that is drawn by it from then on.
    memory.note_surprise(torch.zeros(len(window.reward), 1))
    frames = np.arange(24)
    replay.note_surprise(frames, (frames == 8).astype(np.float32))
    surprising = drawn(4, 0, num_surprising=60)
    assert len(surprising.reward) == 60
    assert torch.equal(surprising.observation["slots"], torch.full((60, 2, 2, 3), 1.0))
    replay.version = 2
    assert drawn(3, 0) is None


@pytest.mark.parametrize("has_frames", [False, True])
def test_episodes_stay_whole_where_slots_are_made_again_of_frames(has_frames):
    """Slots of a frame are those of all frames before it in its episode."""
    agent = SimpleNamespace(
        rows=SimpleNamespace(name="slots", parts=lambda seen: {"slots": seen["slots"]}),
        actions=SimpleNamespace(empty=lambda: np.zeros((), np.int64), from_env=lambda a: a),
        ordered=lambda parts, before: parts,
    )
    replay = EpisodeReplay(capacity=100, seed=0)
    memory = Memory(agent, replay, num_envs=1, encoder=None, has_frames=has_frames, piece=3)
    seen = {"slots": np.zeros((1, 2, 3), np.float32), "frame": np.zeros((1, 4, 4, 3), np.uint8)}
    memory.begin(seen)
    for number in range(5):
        infos = [{"TimeLimit.truncated": False, "terminal_observation": seen}]
        ended = np.array([number == 4])
        memory.step(np.ones(1, np.int64), np.ones(1, np.float32), ended, infos, seen)
    lengths = [len(replay.episode(place)[1]["reward"]) for place in range(len(replay))]
    assert lengths == ([6] if has_frames else [3, 3, 2])
