import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

import ocrl.envs
from ocrl.envs.object_table import ObjectTable, place_columns
from ocrl.envs.observation import ObservedEnv
from ocrl.envs.sprites_render import COLORS, SHAPES

SPRITES = {"size": 32, "max_steps": 4}


def decoded(table, columns):
    """Rows that hold an object, as dicts from column to number."""
    return [dict(zip(columns, row.tolist(), strict=True)) for row in table if row[0]]


def test_rows_of_sprites_by_hand():
    env = ocrl.envs.make("sprites-object_goal", **SPRITES)
    env.reset(seed=0)
    table, objects = ObjectTable(env, is_shuffled=False), env.objects()
    array = table(objects)
    assert array.shape == table.shape == (5, 3 + 4 + 1 + len(SHAPES) + len(COLORS))
    assert "is_target" not in table.columns
    rows = decoded(array, table.columns)
    assert len(rows) == len(objects)
    for row, entry in zip(rows, objects, strict=True):
        shape, color, size, _ = entry["attributes"]
        expected = dict.fromkeys(table.columns, 0.0) | {
            "presence": 1.0,
            f"category={env.categories[entry['category']]}": 1.0,
            "x": entry["position"][0],
            "y": entry["position"][1],
            "width": entry["box"][2] - entry["box"][0],
            "height": entry["box"][3] - entry["box"][1],
            "size": size,
            f"shape={SHAPES[int(shape)]}": 1.0,
            f"color={tuple(COLORS)[int(color)]}": 1.0,
        }
        assert row == pytest.approx(expected)


def test_columns_of_places_are_x_and_y_of_every_view():
    table = ObjectTable(ocrl.envs.make("sprites-object_goal", **SPRITES), is_shuffled=False)
    assert [table.columns[place] for place in place_columns(table.columns)] == ["x", "y"]
    assert place_columns(["presence", "x@0", "y@0", "width@0", "x@1", "y@1", "size"]) == [
        1,
        2,
        4,
        5,
    ]
    assert place_columns([]) == []


def test_empty_rows_are_zero_and_the_rest_comes_first():
    env = ocrl.envs.make("sprites", num_objects=[2, 5], **SPRITES)
    table = ObjectTable(env, is_shuffled=False)
    counts = set()
    for seed in range(6):
        env.reset(seed=seed)
        objects = env.objects()
        array = table(objects)
        assert array[: len(objects), 0].all()
        assert not array[len(objects) :].any()
        counts.add(len(objects))
    assert len(counts) > 1


def test_shuffled_rows_are_the_same_set_in_an_order_of_the_seed():
    keys = ["objects"]
    plain = ObservedEnv(ocrl.envs.make("sprites", num_objects=3, **SPRITES), keys)
    twins = [
        ObservedEnv(ocrl.envs.make("sprites", num_objects=3, **SPRITES), keys, is_shuffled=True)
        for _ in range(2)
    ]
    ordered = [plain.reset(seed=4)[0], *(plain.step(1)[0] for _ in range(3))]
    shuffled = [[env.reset(seed=4)[0], *(env.step(1)[0] for _ in range(3))] for env in twins]
    np.testing.assert_array_equal(*shuffled)
    for one, other in zip(ordered, shuffled[0], strict=True):
        assert sorted(map(tuple, one)) == sorted(map(tuple, other))
    orders = [
        [other.tolist().index(row) for row in one.tolist()]
        for one, other in zip(ordered, shuffled[0], strict=True)
    ]
    assert len({tuple(order) for order in orders}) > 1
    other_seed = twins[0].reset(seed=5)[0]
    assert sorted(map(tuple, other_seed)) != sorted(map(tuple, ordered[0]))


def test_health_and_inventory_of_crafter_are_shares():
    env = ocrl.envs.make("crafter", area=[16, 16])
    env = ObservedEnv(env, ["objects", "inventory"])
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    counts = np.array(list(info["inventory"].values()))
    np.testing.assert_allclose(observation["inventory"], counts / 9)
    assert observation["inventory"][:4].tolist() == [1.0] * 4
    table = ObjectTable(env.unwrapped, is_shuffled=False)
    player = decoded(observation["objects"], table.columns)[0]
    assert player["category=player"] == player["health"] == 1.0


def test_objects_of_minigrid_have_their_colours_and_doors_their_state():
    env = ocrl.envs.make("minigrid", id="MiniGrid-DoorKey-5x5-v0", max_objects=4)
    env.reset(seed=0)
    table = ObjectTable(env, is_shuffled=False)
    rows = {
        next(key for key, value in row.items() if key.startswith("category=") and value): row
        for row in decoded(table(env.objects()), table.columns)
    }
    assert rows["category=door"]["state=locked"] == 1.0
    assert rows["category=key"]["color=yellow"] == 1.0
    ways = [value for key, value in rows["category=agent"].items() if "direction=" in key]
    assert sorted(ways) == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("processes", [False, True], ids=["same_process", "sub_process"])
def test_vector_environments_observe_parts(processes):
    """Each environment by hand, in a worker or here; the last observation has the same form."""
    keys = ["objects", "frame"]
    envs = ocrl.envs.make_vec("sprites", 2, processes=processes, observe=keys, **SPRITES)
    observation, _ = envs.reset(seed=7)
    singles = [ObservedEnv(ocrl.envs.make("sprites", **SPRITES), keys) for _ in range(2)]
    expected = [single.reset(seed=7 + row)[0] for row, single in enumerate(singles)]
    for _ in range(5):
        for row, parts in enumerate(expected):
            for key in keys:
                np.testing.assert_array_equal(observation[key][row], parts[key])
        observation, _, _, truncated, info = envs.step(np.array([1, 2]))
        for row, single in enumerate(singles):
            expected[row], *_, is_over, _ = single.step(1 + row)
            assert is_over == truncated[row]
            if is_over:
                for key in keys:
                    np.testing.assert_array_equal(info["final_obs"][row][key], expected[row][key])
                expected[row] = single.reset()[0]
    assert envs.segmentation().shape == (2, 32, 32)
    assert len(envs.objects()) == 2
    envs.close()


def test_one_part_is_the_observation_itself():
    env = ocrl.envs.make("sprites", **SPRITES)
    assert ObservedEnv(env, ["frame"]).observation_space == env.observation_space
    objects = ObservedEnv(env, ["objects"])
    assert isinstance(objects.observation_space, Box)
    assert objects.observation_space.contains(objects.reset(seed=0)[0])
    assert isinstance(ObservedEnv(env, ["frame", "objects"]).observation_space, Dict)


def seen_by_three(keys, **options):
    scene = {"size": 24, "supersampling": 1, "num_views": 3, "num_objects": 3}
    env = ocrl.envs.make("scenes_multiview", **scene)
    return ObservedEnv(env, keys, **options), env


def test_cameras_stand_beside_the_frame():
    observed, env = seen_by_three(["frame", "extrinsics", "intrinsics"])
    observation, _ = observed.reset(seed=0)
    assert observed.observation_space.contains(observation)
    assert observation["frame"].shape == (3, 24, 24, 3)
    np.testing.assert_allclose(observation["intrinsics"], env.intrinsics(), rtol=1e-6)
    np.testing.assert_allclose(observation["extrinsics"], env.extrinsics(), rtol=1e-6)


def test_views_are_stacked_as_colours():
    observed, _ = seen_by_three(["frame"], is_stacked=True)
    plain, _ = seen_by_three(["frame"])
    stacked, frames = observed.reset(seed=0)[0], plain.reset(seed=0)[0]
    assert observed.observation_space.contains(stacked)
    assert stacked.shape == (24, 24, 9)
    for view, frame in enumerate(frames):
        np.testing.assert_array_equal(stacked[..., 3 * view : 3 * view + 3], frame)
    env = ocrl.envs.make("sprites", **SPRITES)
    single = ObservedEnv(env, ["frame"], is_stacked=True)
    assert single.observation_space == env.observation_space
    assert single.reset(seed=0)[0].shape == (32, 32, 3)


def test_rows_of_several_views_have_a_place_in_each():
    _, env = seen_by_three(["frame"])
    table = ObjectTable(env, is_shuffled=False)
    for seed in range(3):
        env.reset(seed=seed)
        objects = env.objects()
        rows = decoded(table(objects), table.columns)
        assert len(rows) == len(objects) > 0
        for row, entry in zip(rows, objects, strict=True):
            for view in range(3):
                sides = entry["box"][view, 2:] - entry["box"][view, :2]
                expected = [*entry["position"][view], *sides]
                found = [row[f"{name}@{view}"] for name in ("x", "y", "width", "height")]
                assert found == pytest.approx(expected)
    assert len({entry["x@0"] for entry in rows} | {entry["x@1"] for entry in rows}) > len(rows)


def test_bad_arguments():
    env = ocrl.envs.make("sprites", **SPRITES)
    with pytest.raises(ValueError, match=r"unknown part .* 'inventory'.*one of frame, objects"):
        ObservedEnv(env, ["frame", "inventory"])
    for keys in ([], ["frame", "frame"]):
        with pytest.raises(ValueError, match="expected different parts"):
            ObservedEnv(env, keys)
    with pytest.raises(ValueError, match=r"with cameras, whose poses .*, got SpritesEnv, which"):
        ObservedEnv(env, ["frame", "intrinsics"])
    with pytest.raises(ValueError, match="unknown part"):
        ocrl.envs.make_vec("sprites", 2, observe=["frames"])
