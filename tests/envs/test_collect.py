import errno

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ocrl.envs
from ocrl.data.store import EpisodeStore, EpisodeWriter
from ocrl.envs.collect import collect
from ocrl.envs.collect_workers import Ledger
from ocrl.envs.record import episode_seeds

SETTINGS = {
    "env_kwargs": {"size": 16, "max_steps": 9},
    "num_steps": 40,
    "policy": "mixed",
    "num_workers": 0,
    "seed": 5,
    "episode_length": 7,
    "progress": False,
}


def gather(path, env_name="sprites-reach", **changes):
    return collect(env_name, path=path, **(SETTINGS | changes))


def content(store):
    """Number of each episode and a word for what is in it."""
    return {int(store.episode(i)["episode"]): store.checksums(i) for i in range(len(store))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return gather(tmp_path_factory.mktemp("whole") / "episodes")


@pytest.fixture
def agents(tmp_path, monkeypatch):
    """Policies that end badly once, and play at random after that."""
    (tmp_path / "bad_agents.py").write_text(
        """
import os, pathlib, signal
from ocrl.envs.policies import RandomPolicy

class Bad(RandomPolicy):
    def __init__(self, env, deed, mark):
        super().__init__(env)
        self.deed, self.mark, self.left = deed, pathlib.Path(mark), 16

    def __call__(self, observation):
        self.left -= 1
        if self.left < 0 and not self.mark.exists():
            self.mark.touch()
            self.deed()
        return super().__call__(observation)

def kill(env, mark):
    return Bad(env, lambda: os.kill(os.getpid(), signal.SIGKILL), mark)

def interrupt(env, mark):
    def deed():
        raise KeyboardInterrupt
    return Bad(env, deed, mark)

def fail(env, mark):
    def deed():
        raise ValueError("the agent does not know this frame")
    return Bad(env, deed, mark)
"""
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_rows_are_as_documented_and_can_be_played_again(whole):
    env = ocrl.envs.make("sprites-reach", **SETTINGS["env_kwargs"])
    for index in range(len(whole)):
        episode = whole.episode(index)
        rows = len(episode["frames"])
        assert 2 <= rows <= 8
        number = int(episode["episode"])
        assert int(episode["seed"]) == 5
        assert int(episode["env_seed"]) == episode_seeds(5, number)[0]
        assert episode["action"].dtype == np.float32
        assert not episode["action"][-1].any()
        ends = episode["terminated"] | episode["truncated"]
        assert ends.tolist() == [False] * (rows - 1) + [True]
        assert not (episode["terminated"] & episode["truncated"]).any()
        assert episode["is_first"].tolist() == [True] + [False] * (rows - 1)
        frame, _ = env.reset(seed=int(episode["env_seed"]))
        reward, terminated = 0.0, False
        for t in range(rows):
            np.testing.assert_array_equal(frame, episode["frames"][t])
            assert reward == episode["reward"][t]
            assert terminated == episode["terminated"][t]
            for preset in ("entities", "scene"):
                mask = episode[f"segmentation/{preset}"][t]
                np.testing.assert_array_equal(env.segmentation(preset), mask)
            table = env.objects()
            np.testing.assert_array_equal(episode["objects/id"][t, : len(table)], table["id"])
            assert not episode["objects/id"][t, len(table) :].any()
            np.testing.assert_array_equal(episode["objects/box"][t, : len(table)], table["box"])
            if t + 1 < rows:
                frame, reward, terminated, _, _ = env.step(episode["action"][t])


def test_discrete_actions_are_whole_numbers(tmp_path):
    episode = gather(tmp_path / "e", "sprites", num_steps=5).episode(0)
    assert episode["action"].dtype == np.int64
    assert episode["action"].shape == (8,)


def test_the_episodes_are_the_shortest_row_with_enough_steps(whole):
    lengths = {int(whole.episode(i)["episode"]): whole.lengths[i] - 1 for i in range(len(whole))}
    assert sorted(lengths) == list(range(len(lengths)))
    assert sum(lengths.values()) >= 40 > sum(lengths.values()) - lengths[len(lengths) - 1]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_number_of_workers_changes_nothing(tmp_path, whole, num_workers):
    store = gather(tmp_path / "episodes", num_workers=num_workers)
    assert content(store) == content(whole)
    shards = sorted(path.name for path in (tmp_path / "episodes").glob("shard-*"))
    assert len(shards) == num_workers


def test_an_own_end_needs_no_episode_length(tmp_path):
    store = gather(tmp_path / "e", "sprites", episode_length=None, num_workers=2)
    assert store.lengths.tolist() == [10] * 5


def test_another_seed_gives_other_episodes(tmp_path, whole):
    other = gather(tmp_path / "episodes", seed=6)
    assert not set(content(other).values()) & set(content(whole).values())


def test_more_steps_append_and_fewer_do_nothing(tmp_path, whole):
    path = tmp_path / "episodes"
    gather(path, num_steps=15)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    assert len(gather(path, num_steps=4)) == len(EpisodeStore(path))
    after = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    assert before == after
    assert content(gather(path)) == content(whole)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"policy": "random"}, "policy='mixed', not 'random'"),
        ({"seed": 6}, "seed=5, not 6"),
        ({"episode_length": 6}, "episode_length=7, not 6"),
        ({"env_kwargs": {"size": 24, "max_steps": 9}}, "env_arguments.size=16, not 24"),
        ({"segmentation": ["entities"]}, "segmentation="),
        ({"env_name": "sprites"}, "env='ocrl/Sprites-Reach-v0', not 'ocrl/Sprites-v0'"),
    ],
)
def test_a_store_of_another_origin_is_refused_with_the_difference(whole, changes, difference):
    before = content(whole)
    with pytest.raises(ValueError, match="were collected with") as caught:
        gather(whole.path, **changes)
    assert difference in str(caught.value)
    assert "data.path" in str(caught.value)
    assert content(EpisodeStore(whole.path)) == before


def test_imported_episodes_are_not_added_to(tmp_path):
    with EpisodeWriter(tmp_path / "e", metadata={"origin": "a film"}) as writer:
        writer.append({"frames": np.zeros((2, 16, 16, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"env='\(not noted\)', not 'ocrl/Sprites-Reach-v0'"):
        gather(tmp_path / "e")


def test_provenance_is_on_record(whole):
    assert whole.metadata["env"] == "ocrl/Sprites-Reach-v0"
    assert whole.metadata["env_arguments"]["task"] == "reach"
    assert whole.metadata["env_arguments"]["size"] == 16
    assert whole.metadata["versions"]["numpy"] == np.__version__
    assert whole.metadata["categories"] and whole.metadata["attribute_names"]


@pytest.mark.usefixtures("agents")
@pytest.mark.parametrize(
    ("deed", "num_workers"), [("kill", 2), ("fail", 0), ("fail", 2), ("interrupt", 0)]
)
def test_what_stops_a_run_tears_nothing_and_it_goes_on(tmp_path, deed, num_workers):
    path = tmp_path / "stopped"
    changes = {"policy": f"bad_agents:{deed}:{tmp_path / 'done'}", "num_workers": num_workers}
    error, message = {
        "kill": (ChildProcessError, r"worker \d was killed by signal 9 during episode \d+; \d+ "),
        "fail": (ValueError, "the agent does not know this frame"),
        "interrupt": (KeyboardInterrupt, r"stopped: \d+ steps of 40 are safe in .* to go on"),
    }[deed]
    with pytest.raises(error, match=message):
        gather(path, "sprites", **changes)
    assert EpisodeStore(path, verify="full").verify() == []
    assert 0 < len(EpisodeStore(path)) < 6
    resumed = gather(path, "sprites", **changes)
    straight = gather(tmp_path / "straight", "sprites", **changes)
    assert content(resumed) == content(straight)
    assert len(resumed) == len(straight) == 6


def test_a_full_disk_leaves_whole_episodes(tmp_path, whole, monkeypatch):
    append = EpisodeWriter.append

    def full(self, episode):
        if self.num_episodes == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(self, episode)

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeWriter, "append", full)
        with pytest.raises(OSError, match="No space left"):
            gather(tmp_path / "e")
    assert len(EpisodeStore(tmp_path / "e")) == 2
    assert content(gather(tmp_path / "e")) == content(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps of at least 1, got 0"),
        ({"num_workers": -1}, "num_workers of at least 0"),
        ({"episode_length": 0}, "episode_length of at least 1"),
        ({"seed": -1}, "seed of at least 0"),
        ({"segmentation": ["scenes"]}, "did you mean 'scene'"),
        ({"policy": "scriptd"}, "did you mean 'scripted'"),
        ({"env_name": "sprits"}, "did you mean 'sprites'"),
        ({"env_kwargs": {"sise": 3}}, "did you mean 'size'"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        gather(tmp_path / "e", **changes)
    assert not (tmp_path / "e").exists()


@given(
    lengths=st.lists(st.integers(1, 9), min_size=60, max_size=60),
    num_steps=st.integers(1, 60),
    num_workers=st.integers(1, 5),
    on_disk=st.sets(st.integers(0, 12)),
    is_bounded=st.booleans(),
    data=st.data(),
)
def test_the_ledger_keeps_the_shortest_row_whoever_is_first(
    lengths, num_steps, num_workers, on_disk, is_bounded, data
):
    """Workers that finish in any order; what is written is what one worker would write."""
    count = next(n for n in range(61) if sum(lengths[:n]) >= num_steps)
    ledger = Ledger(num_steps, 9 if is_bounded else None)
    for number in on_disk:
        ledger.add(number, lengths[number])
    written, held, running = set(on_disk), set(), {}
    while not ledger.is_complete:
        while len(running) < num_workers and (number := ledger.next_number()) is not None:
            assert number not in written | held
            running[number] = 0
        if running:
            number = data.draw(st.sampled_from(sorted(running)))
            running[number] += 1
            if running[number] == lengths[number]:
                del running[number]
                held.add(number)
                ledger.finish(number, lengths[number])
            else:
                ledger.note(number, running[number])
        decided = {number for number in held if ledger.is_needed(number) is not None}
        assert running or decided
        for number in decided:
            held.remove(number)
            if ledger.is_needed(number):
                written.add(number)
                ledger.add(number, lengths[number])
    assert written == set(range(count)) | on_disk


def test_workers_play_ahead_as_long_as_steps_may_be_missing():
    ledger = Ledger(10, None)
    assert [ledger.next_number() for _ in range(3)] == [0, 1, 2]
    ledger.note(1, 6)
    ledger.finish(2, 9)
    assert ledger.is_needed(1) is None and ledger.is_needed(2) is None
    assert ledger.next_number() is None  # 1 + 6 + 9 steps are there or will be
    ledger.finish(0, 4)
    assert ledger.is_needed(1) is True
    assert ledger.is_needed(2) is False  # 4 + 6
