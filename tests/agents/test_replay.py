"""Windows of a replay are what was played, wherever they are cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ocrl.agents.replay import EpisodeReplay, OpenEpisodes

LENGTHS = st.lists(st.integers(2, 9), min_size=1, max_size=12)


def episode(number, length):
    """Frames that name their episode and place."""
    names = np.stack([np.full(length, number), np.arange(length)], axis=1).astype(np.float32)
    ends = np.arange(length) == length - 1
    outcomes = {
        "action": np.arange(length, dtype=np.int64) * (~ends),
        "reward": np.arange(length, dtype=np.float32),
        "terminated": ends & (number % 2 == 0),
        "truncated": ends & (number % 2 == 1),
    }
    return {"slots": names[:, None]}, outcomes


def filled(lengths, capacity=10_000, seed=0):
    replay = EpisodeReplay(capacity=capacity, seed=seed)
    for number, length in enumerate(lengths):
        replay.add(*episode(number, length))
    return replay


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(2, 7), st.integers(0, 5))
def test_windows_are_pieces_of_episodes_one_after_the_other(lengths, length, number):
    replay = filled(lengths)
    if replay.num_frames < length:
        with pytest.raises(ValueError, match=f"expected windows of 2 to {replay.num_frames}"):
            replay.windows(number, batch_size=8, length=length)
        return
    window = replay.cut(replay.windows(number, batch_size=8, length=length))
    assert window.shape == (8, length) and window.is_first[:, 0].all()
    names = window.observation["slots"][:, :, 0].long()
    for row in range(8):
        # A window begins at a frame that a step was made from.
        assert names[row, 0, 1] < lengths[names[row, 0, 0]] - 1
        for t in range(length):
            which, place = names[row, t].tolist()
            is_last = place == lengths[which] - 1
            assert window.reward[row, t] == place
            assert window.action[row, t] == (0 if is_last else place)
            assert window.terminated[row, t] == (is_last and which % 2 == 0)
            assert window.truncated[row, t] == (is_last and which % 2 == 1)
            if t == length - 1:
                continue
            after = [(which + 1) % len(lengths), 0] if is_last else [which, place + 1]
            assert names[row, t + 1].tolist() == after
            assert window.is_first[row, t + 1] == is_last


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(2, 30))
def test_the_oldest_episodes_go_and_the_capacity_is_kept(lengths, capacity):
    replay = filled(lengths, capacity)
    held = [int(frames[0, 0, 0]) for frames in replay.frames_of("slots")]
    assert held == list(range(len(lengths)))[-len(held) :]
    sizes = [lengths[number] for number in held]
    assert replay.num_frames == sum(sizes) and replay.num_steps == sum(sizes) - len(held)
    assert sum(sizes) >= min(capacity, sum(lengths)) and sum(sizes[1:]) < capacity


def test_every_step_is_drawn_alike():
    lengths = [2, 9, 4]
    replay = filled(lengths)
    counts = np.zeros((3, 9))
    for number in range(40):
        window = replay.cut(replay.windows(number, batch_size=100, length=2))
        which, place = window.observation["slots"][:, 0, 0].long().T.numpy()
        np.add.at(counts, (which, place), 1)
    expected = np.zeros((3, 9))
    for number, length in enumerate(lengths):
        expected[number, : length - 1] = 4000 / 12
    assert (counts[expected == 0] == 0).all()
    assert np.abs(counts - expected).max() < 5 * np.sqrt(4000 / 12)


def test_steps_are_drawn_by_surprise_and_stand_at_the_beginning():
    replay = filled([5, 9, 4])
    surprise = np.zeros(18)
    surprise[[3, 7, 8]] = 1.0, 2.0, 5.0
    # What leads to the first frame of an episode is no step.
    surprise[[0, 5, 14]] = 9.0
    replay.note_surprise(np.arange(18), surprise)
    counts = np.zeros(18)
    for number in range(100):
        frames = replay.windows(number, batch_size=50, length=6, num_surprising=40, num_given=2)
        # The first ten are drawn alike.
        steps = frames[10:, 1:3]
        is_hit = np.isin(steps, [3, 7, 8])
        assert is_hit.any(1).all()
        # 7 and 8 may both be there; which of the two was drawn is told by the first frame.
        np.add.at(counts, steps[is_hit], 1)
        assert frames.shape == (50, 6)
    # 6 | 7 8 and 7 | 8 9 and 5 | 6 7: frame 3 is drawn once in eight times, 8 in five.
    assert abs(counts[3] - 500) < 5 * np.sqrt(500)
    assert abs(counts[8] - (2500 + 500)) < 5 * np.sqrt(3000)
    one = replay.windows(3, batch_size=300, length=3, num_surprising=300, num_given=3)
    # A window does not begin before the episode: 5 is the first frame of that of 7 and 8.
    assert set(one[:, 0]) == {0, 1, 2, 5, 6, 7}
    replay.note_surprise(np.arange(18), np.zeros(18))
    drawn = replay.windows(4, batch_size=600, length=2, num_surprising=600)[:, 1]
    assert set(drawn) == set(range(1, 18)) - {5, 14}


def test_windows_may_hold_an_event():
    replay = EpisodeReplay(capacity=100, seed=0)
    for number, length in enumerate([6, 8, 5]):
        parts, outcomes = episode(1, length)
        outcomes["reward"] = np.zeros(length, np.float32)
        outcomes["reward"][[1, 5] if number == 1 else []] = 2.0
        replay.add(parts, outcomes)
    begins = np.zeros(19)
    for number in range(50):
        frames = replay.windows(number, batch_size=40, length=4, num_surprising=8, num_eventful=30)
        assert np.isin(frames[10:, 1:], [7, 11]).any(1).all()
        np.add.at(begins, frames[10:, 0], 1)
    # Each event is at any place of a window, unless its episode begins later.
    expected = np.zeros(19)
    expected[[6, 8, 9, 10]] = 750, 250, 250, 250
    assert np.abs(begins - expected).max() < 5 * np.sqrt(750)
    none = EpisodeReplay(capacity=100, seed=0)
    parts, outcomes = episode(1, 6)
    none.add(parts, outcomes | {"reward": np.zeros(6, np.float32)})
    drawn = none.windows(0, batch_size=200, length=2, num_eventful=200)
    assert set(drawn[:, 0]) == {0, 1, 2, 3, 4}


def test_what_was_not_foretold_is_as_surprising_as_the_mean_of_what_was():
    replay = filled([4, 4])
    replay.note_surprise(np.array([1, 2]), np.array([0.5, 1.5]))
    drawn = np.concatenate(
        [replay.windows(n, batch_size=600, length=2, num_surprising=600)[:, 1] for n in range(10)]
    )
    counts = np.bincount(drawn, minlength=8)
    expected = 1000 * np.array([0, 0.5, 1.5, 1, 0, 1, 1, 1])
    assert counts[[0, 4]].sum() == 0
    assert np.abs(counts - expected).max() < 5 * np.sqrt(1500)
    with pytest.raises(ValueError, match="expected surprise of at least 0 that is finite"):
        replay.note_surprise(np.array([1]), np.array([np.nan]))


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(2, 30))
def test_surprise_stays_with_its_frames_as_episodes_come_and_go(lengths, capacity):
    replay, told = EpisodeReplay(capacity=capacity, seed=0), set()
    for number, length in enumerate(lengths):
        replay.add(*episode(number, length))
        names = np.concatenate(list(replay.frames_of("slots")))[:, 0].astype(int)
        frame = len(names) - 1
        told.add(tuple(names[frame]))
        replay.note_surprise(np.array([frame]), np.array([number + 1.0]))
        known = np.flatnonzero([tuple(name) in told for name in names])
        others = np.setdiff1d(np.arange(len(names)), known)
        replay.note_surprise(others, np.zeros(len(others)))
        drawn = replay.windows(number, batch_size=200, length=2, num_surprising=200)[:, 1]
        assert set(drawn) <= set(known)
        if len(known) == 1:
            assert set(drawn) == {frame}


def test_half_of_the_steps_are_events_and_all_of_a_kind_are_drawn_alike():
    replay = EpisodeReplay(capacity=100, seed=0)
    for number, length in enumerate([5, 12]):
        parts, outcomes = episode(number, length)
        # The first terminates; the second is broken off, and has rewards twice.
        outcomes["reward"] = np.zeros(length, np.float32)
        outcomes["reward"][[3, 7] if number else []] = -1.0
        replay.add(parts, outcomes)
    assert (replay.num_events, replay.num_steps) == (3, 15)
    counts = np.zeros(17)
    for number in range(50):
        frames = replay.steps(number, batch_size=60)
        assert (frames[:, 1] - frames[:, 0] == 1).all()
        window = replay.cut(frames)
        is_event = (window.reward != 0) | window.terminated
        assert is_event[:30, 1].all() and not is_event[30:, 1].any()
        assert not window.is_first[:, 1].any()
        np.add.at(counts, frames[:, 1], 1)
    events = [4, 5 + 3, 5 + 7]
    rest = [frame for frame in range(17) if frame not in (0, 5, *events)]
    assert counts[[0, 5]].sum() == 0
    assert np.abs(counts[events] - 500).max() < 5 * np.sqrt(500)
    assert np.abs(counts[rest] - 125).max() < 5 * np.sqrt(125)


def test_events_that_are_common_are_drawn_as_often_as_they_come():
    replay = EpisodeReplay(capacity=100, seed=0)
    parts, outcomes = episode(1, 11)
    reward = np.ones(11, np.float32)
    reward[[4, 9]] = 0.0
    replay.add(parts, outcomes | {"reward": reward})
    frames = replay.steps(0, batch_size=50)[:, 1]
    assert np.isin(frames, [4, 9]).sum() == 10
    parts, outcomes = episode(1, 11)
    replay.add(parts, outcomes | {"reward": reward + 1})
    assert set(np.unique(replay.steps(1, batch_size=2000)[:, 1])) == set(range(1, 22)) - {11}


def test_steps_of_one_kind_fill_a_draw():
    replay = EpisodeReplay(capacity=100, seed=0)
    parts, outcomes = episode(1, 4)
    replay.add(parts, outcomes | {"reward": np.zeros(4, np.float32)})
    assert replay.num_events == 0
    assert set(replay.steps(0, batch_size=30)[:, 1].tolist()) == {1, 2, 3}


def test_a_draw_follows_from_content_seed_and_number():
    def slots(seed, number):
        replay = filled([5, 5, 5], seed=seed)
        return replay.cut(replay.windows(number, batch_size=20, length=3)).observation["slots"]

    assert torch.equal(slots(0, 4), slots(0, 4))
    assert not torch.equal(slots(0, 4), slots(0, 5)) and not torch.equal(slots(0, 4), slots(1, 4))


def test_series_set_draws_of_one_number_apart():
    replay = filled([5, 5, 5])
    drawn = [
        replay.windows(4, batch_size=20, length=3, series=series).tolist()
        for series in ((), (2, 0), (2, 1), (2, 1))
    ]
    assert drawn[2] == drawn[3]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_saved_and_loaded_it_draws_the_same(tmp_path):
    replay = filled([4, 7, 3], capacity=12)
    replay.version = 9
    replay.add(*episode(3, 5))
    replay.note_surprise(np.arange(4, 8), np.array([1.0, 4.0, 2.0, 3.0]))
    replay.save(tmp_path)
    other = EpisodeReplay(capacity=12, seed=0)
    other.load(tmp_path)
    for one in (replay, other):
        one.add(*episode(4, 6))
    windows = [
        one.cut(one.windows(3, batch_size=9, length=4, num_surprising=5)) for one in (replay, other)
    ]
    assert np.array_equal(replay.steps(3, batch_size=9), other.steps(3, batch_size=9))
    for name in ("action", "reward", "terminated", "truncated", "is_first"):
        assert torch.equal(getattr(windows[0], name), getattr(windows[1], name)), name
    assert torch.equal(windows[0].observation["slots"], windows[1].observation["slots"])
    places = range(len(replay))
    assert replay.outdated(places) == other.outdated(places) and other.version == 9


def test_an_empty_one_can_be_saved(tmp_path):
    EpisodeReplay(capacity=5, seed=0).save(tmp_path)
    other = filled([3])
    other.load(tmp_path)
    assert len(other) == other.num_frames == 0


def test_a_damaged_file_is_named(tmp_path):
    filled([4]).save(tmp_path)
    whole = (tmp_path / "replay.npz").read_bytes()
    for content in (whole[:-40], b"nothing"):
        (tmp_path / "replay.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"replay\.npz is damaged: "):
            EpisodeReplay(capacity=5, seed=0).load(tmp_path)


def test_episodes_of_an_earlier_version_are_found_and_replaced():
    replay = filled([4, 4, 4])
    replay.version = 1
    replay.add(*episode(3, 4))
    replay.add(*episode(4, 4), version=0)
    assert replay.outdated(range(5)) == [0, 1, 2, 4]
    frames = replay.windows(7, batch_size=3, length=3)
    touched = replay.cut(frames).observation["slots"][:, :, 0, 0]
    assert torch.equal(touched.long(), torch.from_numpy(replay.episodes_of(frames)))
    parts, outcomes = replay.episode(1)
    assert outcomes["reward"].tolist() == [0, 1, 2, 3]
    replay.replace(1, "slots", parts["slots"] + 100)
    assert replay.outdated(range(5)) == [0, 2, 4]
    assert next(iter(list(replay.frames_of("slots"))[1:]))[0, 0, 0] == 101
    with pytest.raises(ValueError, match=r"expected slots of shape \(4, 1, 2\), got \(3, 1, 2\)"):
        replay.replace(1, "slots", parts["slots"][:3])


def shorter(parts, outcomes):
    outcomes["reward"] = outcomes["reward"][:3]


def narrower(parts, outcomes):
    parts["slots"] = parts["slots"][:, :, :1]


def larger(parts, outcomes):
    parts["frame"] = np.zeros((4, 2, 2, 3), np.uint8)


def renamed(parts, outcomes):
    parts["more"] = parts.pop("slots")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (shorter, "expected arrays of one length, from 2 frames on"),
        (narrower, r"expected observation/slots of shape \(1, 2\) in float32 .*, got \(1, 1\)"),
        (larger, "expected observation/slots, .* as in the episodes before, got .*frame besides"),
        (renamed, "in the episodes before, got none"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(change, sentence):
    replay = filled([4])
    parts, outcomes = episode(1, 4)
    change(parts, outcomes)
    with pytest.raises(ValueError, match=sentence):
        replay.add(parts, outcomes)
    with pytest.raises(ValueError, match="capacity of at least 2 frames, got 1"):
        EpisodeReplay(capacity=1, seed=0)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(*[st.sampled_from(["on", "on", "end", "cut"])] * 3), min_size=1, max_size=15
    ),
    piece=st.sampled_from([None, 2, 3, 5]),
)
def test_what_is_played_comes_whole_or_in_pieces(steps, piece):
    replay = EpisodeReplay(capacity=1000, seed=0)
    played = OpenEpisodes(3, replay, piece=piece)
    clock, expected, running = np.zeros(3), [], [[0.0], [1.0], [2.0]]

    def named(count):
        return {"slots": (np.arange(3) + 10 * count).reshape(3, 1, 1).astype(np.float32)}

    played.begin(named(clock), empty=np.zeros((), np.int64))
    for number, kinds in enumerate(steps):
        ended = np.array([kind != "on" for kind in kinds])
        cut = np.array([kind == "cut" for kind in kinds])
        clock += 1
        last = named(clock)
        clock += ended
        for env in range(3):
            running[env].append(float(last["slots"][env, 0, 0]))
            if ended[env]:
                expected.append((running[env], not cut[env], bool(cut[env])))
                running[env] = [float(named(clock)["slots"][env, 0, 0])]
            elif len(running[env]) == piece:
                expected.append((running[env], False, True))
                running[env] = running[env][-1:]
        played.step(
            np.full(3, number + 1), np.ones(3), ended, cut, last=last, observation=named(clock)
        )
    played.break_off()
    expected += [(frames, False, True) for frames in running if len(frames) > 1]
    assert replay.num_steps == 3 * len(steps)
    found = [replay.episode(place) for place in range(len(replay))]
    assert len(found) == len(expected)
    for (parts, outcomes), (frames, is_terminal, is_cut) in zip(found, expected, strict=True):
        assert parts["slots"][:, 0, 0].tolist() == frames
        assert outcomes["terminated"][-1] == is_terminal and outcomes["truncated"][-1] == is_cut
        assert not outcomes["terminated"][:-1].any() and not outcomes["truncated"][:-1].any()
        assert outcomes["reward"].tolist() == [0.0] + [1.0] * (len(frames) - 1)
        assert outcomes["action"][-1] == 0
        assert (np.diff(outcomes["action"][:-1]) == 1).all()
