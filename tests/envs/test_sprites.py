import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from ocrl.envs.registry import make, names
from ocrl.envs.sprites_render import COLORS, SHAPES
from ocrl.envs.sprites_scenes import SPLITS, TASKS

SPRITES = tuple(name for name in names() if name.split("-")[0] == "sprites")
COMPARISONS = ("sprites-object_comparison", "sprites-property_comparison")
RED_CIRCLE = (SHAPES.index("circle"), tuple(COLORS).index("red"))
BLUE_SQUARE = (SHAPES.index("square"), tuple(COLORS).index("blue"))


def play(env, seed, num_steps=40):
    env.action_space.seed(seed)
    trace = [env.reset(seed=seed)[0]]
    for _ in range(num_steps):
        frame, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        trace += [frame, env.segmentation(), np.array([reward, terminated, truncated])]
        if terminated or truncated:
            break
    return trace


def looks(env):
    """Shape, colour and size of the objects of an episode, and which one it is about."""
    attributes = env.objects()["attributes"][1:]
    return attributes[:, :3], np.flatnonzero(attributes[:, 3])


def test_every_task_has_a_name():
    tasks = {make(name).task for name in SPRITES}
    assert tasks == set(TASKS)


@pytest.mark.parametrize("action_kind", ["discrete", "continuous"])
@pytest.mark.parametrize("name", SPRITES)
def test_gymnasium_accepts_it(name, action_kind):
    check_env(make(name, action_kind=action_kind), skip_render_check=True)


@pytest.mark.parametrize("name", SPRITES)
def test_same_seed_gives_the_same_episode(name):
    first, again, other = play(make(name), 3), play(make(name), 3), play(make(name), 4)
    assert len(first) == len(again)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_same_seed_repeats_in_one_environment():
    env = make("sprites")
    first = play(env, 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, play(env, 3), strict=True))


def test_masks_tables_and_the_player_do_not_change_the_episode():
    plain, curious = make("sprites"), make("sprites")
    plain.reset(seed=5)
    curious.reset(seed=5)
    rng = np.random.default_rng(0)
    for action in rng.integers(4, size=50):
        curious.scripted_action(rng)
        curious.objects()
        assert np.array_equal(curious.segmentation(), curious.segmentation("scene"))
        curious.segmentation()[:] = 7
        curious.render()
        assert np.array_equal(plain.step(action)[0], curious.step(action)[0])
    assert np.array_equal(plain.segmentation(), curious.segmentation())


@pytest.mark.parametrize("occlusion", [False, True])
def test_objects_and_masks_agree(occlusion):
    env = make("sprites", num_objects=6, occlusion=occlusion, object_sizes=[0.15, 0.3], gap=0.0)
    assert env.max_objects == 7
    rng = np.random.default_rng(0)
    for seed in range(20):
        env.reset(seed=seed)
        for _ in range(10):
            env.step(env.scripted_action(rng))
        ids, table = env.segmentation(), env.objects()
        assert ids.dtype == np.uint16
        assert list(table["id"]) == sorted(set(np.unique(ids)) - {0})
        for row in table:
            rows, columns = np.nonzero(ids == row["id"])
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.allclose(row["box"] * env.size, box)
            assert row["category"] == (row["id"] > 1)
            radius = row["attributes"][2] / 2 + 0.5 / env.size
            assert np.all(np.abs(columns + 0.5 - row["position"][0] * env.size) < radius * env.size)
            assert np.all(np.abs(rows + 0.5 - row["position"][1] * env.size) < radius * env.size)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), speed=st.sampled_from([0.0, 0.01, 0.05]), count=st.integers(1, 6)
)
def test_nothing_overlaps_or_leaves_the_arena(seed, speed, count):
    env = make("sprites", num_objects=count, speed=speed, object_sizes=[0.12, 0.24], gap=0.0)
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(60):
        env.step(rng.integers(4))
        away = np.linalg.norm(env.positions[:, None] - env.positions[None], axis=-1)
        reach = env.radii[:, None] + env.radii[None]
        assert np.all((away - reach)[~np.eye(count + 1, dtype=bool)] > -1e-5)
        assert np.all(env.positions >= env.radii[:, None] - 1e-9)
        assert np.all(env.positions <= 1 - env.radii[:, None] + 1e-9)


def test_objects_overlap_where_that_is_allowed():
    env = make("sprites", num_objects=6, occlusion=True, speed=0.05)
    env.reset(seed=0)
    hidden = 0
    for _ in range(100):
        env.step(0)
        away = np.linalg.norm(env.positions[:, None] - env.positions[None], axis=-1)
        hidden += int((away < 0.15).sum() > len(away))
    assert hidden > 10


def test_objects_drift_only_if_they_have_speed():
    for speed, is_moving in ((0.0, False), (0.02, True)):
        env = make("sprites", speed=speed)
        env.reset(seed=0)
        before = env.positions[1:].copy()
        env.positions[0] = env.radii[0]
        env.step(0)
        moved = np.linalg.norm(env.positions[1:] - before, axis=1)
        assert np.all((moved > 0.005) == is_moving)
        assert np.all(moved <= 1.5 * speed + 1e-9)


@pytest.mark.parametrize(
    ("action_kind", "action", "expected"),
    [
        ("discrete", 0, (0.0, -0.05)),
        ("discrete", 1, (0.0, 0.05)),
        ("discrete", 2, (-0.05, 0.0)),
        ("discrete", 3, (0.05, 0.0)),
        ("continuous", np.array([0.5, -1.0]), (0.025, -0.05)),
        ("continuous", np.array([3.0, 0.0]), (0.05, 0.0)),
    ],
)
def test_actions_move_the_agent(action_kind, action, expected):
    env = make("sprites-object_goal", action_kind=action_kind)
    env.reset(seed=0)
    assert np.allclose(env.positions[0], 0.5)
    env.positions[1:] = [[0.1, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.9]]
    env.step(action)
    assert np.allclose(env.positions[0] - 0.5, expected)


@pytest.mark.parametrize("row", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["sprites-object_goal", *COMPARISONS, "sprites-reach"])
def test_touching_ends_the_episode_and_pays_for_the_target_only(name, row):
    env = make(name, action_kind="discrete")
    env.reset(seed=1)
    env.positions[:] = [[0.5, 0.5], [0.1, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.9]]
    env.positions[row] = [0.5, 0.5 - env.radii[0] - env.radii[row] - 0.06]
    _, reward, terminated, _, info = env.step(0)
    assert (reward < 0.5, terminated) == (True, False)
    _, reward, terminated, truncated, info = env.step(0)
    is_target = row == env.target
    assert (terminated, truncated, info["is_success"]) == (True, False, is_target)
    if name == "sprites-reach":
        assert (reward > 0.9) == is_target
    else:
        assert reward == float(is_target)
    away = np.linalg.norm(env.positions[0] - env.positions[row])
    assert away == pytest.approx(env.radii[0] + env.radii[row], abs=1e-5)


def test_reach_pays_for_progress():
    env = make("sprites-reach")
    env.reset(seed=1)
    env.positions[:] = [[0.5, 0.5], [0.5, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.9]]
    assert env.step(np.array([0.0, -1.0]))[1] == pytest.approx(0.05)
    assert env.step(np.array([0.0, 0.5]))[1] == pytest.approx(-0.025)


def test_pushing_to_the_goal():
    env = make("sprites-object_interaction", num_objects=1)
    env.reset(seed=0)
    env.positions[:] = [[0.5, 0.88], [0.4, 0.88]]
    for _ in range(20):
        _, reward, terminated, _, info = env.step(2)
        if terminated:
            break
        assert reward == 0.0
    assert (reward, info["is_success"]) == (1.0, True)
    assert env.positions[1, 1] == 0.88
    assert np.linalg.norm(env.positions[1] - env.goal) <= env.goal_radius


def test_pushing_stops_at_walls_and_at_others():
    env = make("sprites-object_interaction", num_objects=2)
    env.reset(seed=0)
    agent, box, other = env.radii
    env.positions[:] = [[0.5, 0.5], [0.5 + agent + box, 0.5], [0.1, 0.1]]
    for _ in range(20):
        env.step(3)
    assert env.positions[1, 0] == pytest.approx(1 - box)
    assert env.positions[0, 0] == pytest.approx(1 - 2 * box - agent)
    env.reset(seed=0)
    env.positions[:] = [[0.5, 0.5], [0.5 + agent + box, 0.5], [0.5 + agent + 2 * box + other, 0.5]]
    before = env.positions.copy()
    assert not env.step(3)[2]
    assert np.allclose(env.positions, before, atol=1e-6)


def test_touching_another_ends_the_push():
    env = make("sprites-object_interaction", num_objects=2)
    env.reset(seed=0)
    env.positions[:] = [[0.5, 0.5], [0.1, 0.1], [0.5, 0.4 - 1e-3]]
    for _ in range(2):
        _, reward, terminated, _, info = env.step(0)
        if terminated:
            break
    assert (reward, terminated, info["is_success"]) == (0.0, True, False)


def test_free_play_ends_by_time_only():
    env = make("sprites", max_steps=30)
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[1:4] for _ in range(30)]
    assert ends == [(0.0, False, False)] * 29 + [(0.0, False, True)]


@pytest.mark.parametrize("num_objects", [3, 4, 5, 6])
def test_object_comparison_has_one_odd_object(num_objects):
    env = make("sprites-object_comparison", num_objects=num_objects, gap=0.02)
    odd_properties = set()
    for seed in range(60):
        env.reset(seed=seed)
        look, target = looks(env)
        others = np.delete(look, target[0], axis=0)
        assert len(target) == 1
        assert len(np.unique(others, axis=0)) == 1
        differs = np.flatnonzero(look[target[0]] != others[0])
        assert len(differs) == 1
        odd_properties.add(int(differs[0]))
    assert odd_properties == {0, 1, 2}


@pytest.mark.parametrize("num_objects", [3, 4, 5, 6])
def test_property_comparison_has_one_value_that_occurs_once(num_objects):
    env = make("sprites-property_comparison", num_objects=num_objects, gap=0.02)
    odd_properties, num_looks = set(), set()
    for seed in range(60):
        env.reset(seed=seed)
        look, target = looks(env)
        counts = np.array([[(look[:, p] == v).sum() for p, v in enumerate(row)] for row in look])
        assert [tuple(place) for place in np.argwhere(counts == 1)] == [
            (target[0], int(counts[target[0]].argmin()))
        ]
        odd_properties.add(int(counts[target[0]].argmin()))
        num_looks.add(len(np.unique(look, axis=0)))
    assert odd_properties == {0, 1, 2}
    assert num_objects < 4 or max(num_looks) > 2


@pytest.mark.parametrize("name", ["sprites-object_goal", "sprites-object_interaction"])
def test_a_fixed_target_occurs_once_and_the_agent_nowhere_else(name):
    env = make(name, colors=["red", "blue"], num_objects=3)
    for seed in range(50):
        env.reset(seed=seed)
        attributes = env.objects()["attributes"]
        pairs = [tuple(pair) for pair in attributes[:, :2].astype(int)]
        assert pairs.index(RED_CIRCLE) == 0 and pairs.count(RED_CIRCLE) == 1
        assert pairs.count(BLUE_SQUARE) == 1
        assert attributes[pairs.index(BLUE_SQUARE), 3] == 1.0


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["sprites", "sprites-object_goal", *COMPARISONS])
def test_held_out_pairs_stay_in_their_split(name, split):
    held_out = [["star", "green"], ["circle", "blue"], ["square", "yellow"]]
    env = make(name, held_out=held_out, split=split)
    pairs = {(SHAPES.index(shape), tuple(COLORS).index(color)) for shape, color in held_out}
    seen = []
    for seed in range(80):
        env.reset(seed=seed)
        look, _ = looks(env)
        seen.append(any((int(shape), int(color)) in pairs for shape, color, _ in look))
    assert {"train": not any(seen), "held_out": all(seen), "all": 0 < sum(seen) < 80}[split]


def test_a_target_that_is_held_out_appears_in_the_other_splits():
    env = make("sprites-object_goal", held_out=[["square", "blue"]], split="held_out")
    env.reset(seed=0)
    assert tuple(looks(env)[0][0, :2]) == BLUE_SQUARE


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("sprites-object_goal", 0.9),
        ("sprites-object_comparison", 0.9),
        ("sprites-property_comparison", 0.9),
        ("sprites-reach", 0.8),
        ("sprites-object_interaction", 0.65),
    ],
)
def test_the_scripted_player_solves_the_tasks(name, least):
    env = make(name)
    rng = np.random.default_rng(0)
    successes = 0
    for seed in range(60):
        env.reset(seed=seed)
        while True:
            _, _, terminated, truncated, info = env.step(env.scripted_action(rng))
            if terminated or truncated:
                break
        successes += info["is_success"]
    assert successes / 60 >= least


def test_the_scripted_player_gets_around():
    env = make("sprites")
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    places = []
    for _ in range(100):
        env.step(env.scripted_action(rng))
        places.append(env.positions[0].copy())
    assert np.ptp(places, axis=0).min() > 0.3


def test_gymnasium_knows_the_names():
    env = gymnasium.make("ocrl/Sprites-ObjectGoal-v0", size=32)
    assert env.reset(seed=0)[0].shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "object_gaol"}, "did you mean 'object_goal'"),
        ({"split": "trian"}, "did you mean 'train'"),
        ({"action_kind": "descrete"}, "did you mean 'discrete'"),
        ({"shapes": ["circel"]}, "did you mean 'circle'"),
        ({"colors": ["gren"]}, "did you mean 'green'"),
        ({"shapes": []}, "at least one"),
        ({"held_out": [["circle"]]}, r"expected \[shape, colour\]"),
        ({"split": "held_out"}, "expected pairs in held_out"),
        ({"num_objects": [3, 2]}, "num_objects"),
        ({"num_objects": 0}, "num_objects"),
        ({"task": "object_comparison", "num_objects": 2}, "3 objects or more"),
        ({"task": "object_goal", "target": ["circle", "red"]}, "does not look like the agent"),
        (
            {"task": "object_goal", "held_out": [["square", "blue"]]},
            "expected a target that is not held out",
        ),
        ({"step_size": 0.3}, "step_size"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make("sprites", **arguments)


def test_a_comparison_without_choice_is_refused():
    with pytest.raises(ValueError, match="two shapes, colors or object_sizes"):
        make(COMPARISONS[0], shapes=["star"], colors=["red"], object_sizes=[0.1])


def test_too_many_sprites_are_refused():
    env = make("sprites", num_objects=30)
    with pytest.raises(ValueError, match=r"expected sprites that find room.*take fewer"):
        env.reset(seed=0)


def test_a_split_without_a_scene_is_refused():
    env = make(COMPARISONS[0], colors=["red"], shapes=["circle", "star"], object_sizes=[0.1])
    with pytest.raises(ValueError, match=r"got none in \d+ tries"):
        env.reset(seed=0)


@pytest.mark.parametrize("action", [4, -1])
def test_an_action_outside_the_space_is_refused(action):
    env = make("sprites")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected an action from 0 to 3"):
        env.step(action)


@pytest.mark.parametrize("action", [np.array([np.nan, 0.0]), np.zeros(3)])
def test_a_bad_continuous_action_is_refused(action):
    env = make("sprites", action_kind="continuous")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="two numbers"):
        env.step(action)


def test_an_unknown_preset_is_refused():
    env = make("sprites")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="did you mean 'entities'"):
        env.segmentation("entity")
