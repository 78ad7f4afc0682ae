import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocrl.envs.scenes_physics import move
from ocrl.envs.scenes_sampler import place


def play(places, velocities, radii, *, duration=1.0, arena=100.0, masses=None):
    places, velocities = np.array(places, float), np.array(velocities, float)
    masses = np.ones(len(radii)) if masses is None else np.array(masses, float)
    meetings = move(places, velocities, np.array(radii, float), masses, arena, duration)
    return places, velocities, meetings


def test_a_body_alone_moves_straight():
    places, velocities, meetings = play([[1, 2]], [[0.3, -0.1]], [0.5], duration=4.0)
    assert np.allclose(places, [[2.2, 1.6]]) and np.allclose(velocities, [[0.3, -0.1]])
    assert meetings == 0


def test_equal_bodies_exchange_their_speeds_head_on():
    places, velocities, meetings = play([[0, 0], [3, 0]], [[1, 0], [0, 0]], [0.5, 0.5], duration=4)
    assert meetings == 1
    # Contact at x = 2 after 2 steps; the second goes on for 2 more.
    assert np.allclose(places, [[2, 0], [5, 0]]) and np.allclose(velocities, [[0, 0], [1, 0]])


def test_a_heavy_body_hardly_notices_a_light_one():
    _, velocities, _ = play(
        [[0, 0], [3, 0]], [[1, 0], [0, 0]], [0.5, 0.5], duration=4, masses=[3.0, 1.0]
    )
    assert np.allclose(velocities[:, 0], [0.5, 1.5])


def test_only_the_part_along_the_line_between_them_is_exchanged():
    side = math.sqrt(0.75)
    _, velocities, meetings = play([[0, 0], [3, side]], [[1, 0], [0, 0]], [0.5, 0.5], duration=4)
    assert meetings == 1
    line = np.array([0.5, side])
    assert np.allclose(velocities[1], 0.5 * line) and np.allclose(
        velocities[0], [0.75, -0.5 * side]
    )


def test_the_border_mirrors_a_body():
    places, velocities, _ = play([[0, 0]], [[1, 0]], [0.5], duration=5.0, arena=3.0)
    assert np.allclose(places, [[0, 0]]) and np.allclose(velocities, [[-1, 0]])


def test_bodies_that_graze_do_not_meet():
    assert play([[0, 0], [3, 1.001]], [[1, 0], [0, 0]], [0.5, 0.5], duration=9)[2] == 0
    assert play([[0, 0], [3, 0.999]], [[1, 0], [0, 0]], [0.5, 0.5], duration=9)[2] == 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 8), speed=st.sampled_from([0.1, 1.0, 8.0]))
def test_nothing_overlaps_or_leaves_and_energy_stays(seed, count, speed):
    rng = np.random.default_rng(seed)
    radii = rng.uniform(0.2, 0.7, count)
    places = place(rng, radii, arena=4.0, gap=0.0)
    velocities = rng.normal(0.0, speed, (count, 2))
    masses = radii**3
    before = (masses * (velocities**2).sum(1)).sum()
    for _ in range(20):
        move(places, velocities, radii, masses, 4.0, 1.0)
        away = np.linalg.norm(places[:, None] - places[None], axis=-1)
        gaps = (away - radii[:, None] - radii[None])[~np.eye(count, dtype=bool)]
        assert np.all(gaps > -1e-9)
        assert np.all(np.linalg.norm(places, axis=1) + radii < 4.0 + 1e-9)
    assert (masses * (velocities**2).sum(1)).sum() == pytest.approx(before, rel=1e-9)


def test_momentum_stays_where_no_border_is():
    rng = np.random.default_rng(0)
    radii = rng.uniform(0.2, 0.6, 6)
    places = place(rng, radii, arena=3.0, gap=0.0)
    velocities = -places + rng.normal(0, 0.1, (6, 2))
    masses = radii**3
    before = masses @ velocities
    assert move(places, velocities, radii, masses, 1000.0, 5.0) > 2
    assert np.allclose(masses @ velocities, before)


def test_one_long_move_is_many_short_ones():
    rng = np.random.default_rng(1)
    radii = np.full(4, 0.5)
    start, speeds = place(rng, radii, arena=3.0, gap=0.1), rng.normal(0, 0.3, (4, 2))
    once = play(start, speeds, radii, duration=3.0, arena=3.0)
    places, velocities = start.copy(), speeds.copy()
    for _ in range(6):
        move(places, velocities, radii, np.ones(4), 3.0, 0.5)
    assert once[2] > 0
    assert np.allclose(places, once[0]) and np.allclose(velocities, once[1])


def test_bodies_find_their_places():
    rng = np.random.default_rng(0)
    for _ in range(20):
        radii = rng.choice([0.3, 0.7], 6)
        places = place(rng, radii, arena=3.0, gap=0.2)
        assert np.all(np.linalg.norm(places, axis=1) + radii <= 3.0 + 1e-9)
        away = np.linalg.norm(places[:, None] - places[None], axis=-1) - radii[:, None] - radii
        assert away[~np.eye(6, dtype=bool)].min() >= 0.2
    assert place(rng, np.full(30, 0.7), arena=3.0, gap=0.0) is None
