import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from minigrid.core.world_object import Ball, Box, Door, Key, Lava, Wall
from minigrid.wrappers import RGBImgObsWrapper, RGBImgPartialObsWrapper

from ocrl.envs.minigrid import AGENT_ID, FIRST_REGION_ID
from ocrl.envs.registry import make
from ocrl.types import VOID_ID

IDS = (
    "BabyAI-PutNextLocal-v0",
    "MiniGrid-DoorKey-8x8-v0",
    "MiniGrid-FourRooms-v0",
    "MiniGrid-Dynamic-Obstacles-8x8-v0",
    "MiniGrid-LavaCrossingS9N2-v0",
    "MiniGrid-ObstructedMaze-Full-v1",
    "MiniGrid-Fetch-8x8-N3-v0",
)


def raw(identity, *, tile_size=8, **arguments):
    return make("minigrid", id=identity, size=None, tile_size=tile_size, **arguments)


def playground(items, *, agent=(1, 1), direction=0, **arguments):
    """An 8x8 room with only these items, by cell."""
    env = make("minigrid", id="MiniGrid-Empty-8x8-v0", **arguments)
    env.reset(seed=0)
    game = env.game
    game.see_through_walls = False
    generate = type(game)._gen_grid

    def fill(width, height):
        generate(game, width, height)
        game.grid.set(width - 2, height - 2, None)
        for cell, item in items.items():
            game.grid.set(*cell, item)
        game.agent_pos, game.agent_dir = agent, direction

    game._gen_grid = fill
    env.reset(seed=0)
    return env


def act(env, *names):
    for name in names:
        result = env.step(env.game.actions[name])
    return result


# The official wrapper always highlights a partial view.
@pytest.mark.parametrize(
    ("view", "highlight"), [("full", True), ("full", False), ("partial", True)]
)
@pytest.mark.parametrize("identity", IDS)
def test_frames_equal_the_official_ones(identity, view, highlight):
    env = raw(identity, view=view, highlight=highlight)
    game = gymnasium.make(identity, disable_env_checker=True, highlight=highlight)
    wrapper = RGBImgObsWrapper if view == "full" else RGBImgPartialObsWrapper
    official = wrapper(game, tile_size=8)
    rng = np.random.default_rng(0)
    seed, is_over = 0, True
    for step in range(200):
        if is_over:
            frame, info = env.reset(seed=seed)
            expected, _ = official.reset(seed=seed)
            seed += 1
        else:
            # The scripted player opens doors and boxes and carries things, as chance hardly does.
            action = env.scripted_action(rng) if step % 3 else int(rng.integers(3))
            frame, *outcome, info = env.step(action)
            expected, *expected_outcome, _ = official.step(action)
            assert outcome == expected_outcome
        assert np.array_equal(frame, expected["image"])
        assert info["mission"] == expected["mission"]
        is_over = step > 0 and any(outcome[1:])


@pytest.mark.parametrize("tile_size", [3, 16])
def test_other_tile_sizes_equal_the_official_ones(tile_size):
    env = raw("MiniGrid-DoorKey-5x5-v0", tile_size=tile_size, highlight=True)
    game = gymnasium.make("MiniGrid-DoorKey-5x5-v0", disable_env_checker=True)
    expected, _ = RGBImgObsWrapper(game, tile_size=tile_size).reset(seed=2)
    assert np.array_equal(env.reset(seed=2)[0], expected["image"])


@pytest.mark.parametrize("view", ["full", "partial"])
def test_gymnasium_accepts_it(view):
    check_env(make("minigrid", view=view), skip_render_check=True)


def test_the_default_fills_the_frame_with_many_objects():
    env = make("minigrid")
    frame, _ = env.reset(seed=0)
    assert frame.shape == (64, 64, 3)
    assert not (env.segmentation("scene") == VOID_ID).any()
    assert len(env.objects()) == 9


@pytest.mark.parametrize(
    ("identity", "size", "tile", "border"),
    [("MiniGrid-FourRooms-v0", 64, 3, 3), ("MiniGrid-Empty-5x5-v0", 64, 12, 2)],
)
def test_a_size_takes_the_largest_tile_and_pads_with_void(identity, size, tile, border):
    env = make("minigrid", id=identity, size=size)
    frame, _ = env.reset(seed=0)
    inner, _ = raw(identity, tile_size=tile, highlight=False).reset(seed=0)
    cut = slice(border, border + len(inner))
    assert frame.shape == (size, size, 3)
    assert np.array_equal(frame[cut, cut], inner)
    is_void = env.segmentation() == VOID_ID
    assert not is_void[cut, cut].any()
    is_void[cut, cut] = True
    assert is_void.all() and frame.sum() == inner.sum()


@pytest.mark.parametrize("view", ["full", "partial"])
def test_masks_and_tables_do_not_change_the_episode(view):
    plain, curious = make("minigrid", view=view), make("minigrid", view=view)
    late = make("minigrid", view=view)
    for env in (plain, curious, late):
        env.reset(seed=4)
    for action in np.random.default_rng(0).integers(6, size=60):
        for preset in ("entities", "scene"):
            first = curious.segmentation(preset)
            curious.segmentation(preset)[:] = 3
            assert np.array_equal(first, curious.segmentation(preset))
        curious.objects()
        frames = [env.step(action)[0] for env in (plain, curious, late)]
        assert np.array_equal(frames[0], frames[1])
    assert np.array_equal(late.segmentation("scene"), curious.segmentation("scene"))


def test_same_seed_gives_the_same_episode():
    env = make("minigrid")
    traces = []
    for seed in (1, 1, 2):
        trace = [env.reset(seed=seed)[0]]
        rng = np.random.default_rng(0)
        trace += [env.step(env.scripted_action(rng))[0] for _ in range(8)]
        traces.append(np.stack([*trace, env.segmentation()[..., None].repeat(3, 2)]))
    assert np.array_equal(traces[0], traces[1])
    assert not np.array_equal(traces[0], traces[2])


def test_masks_hold_the_pixels_that_are_covered_by_half():
    cells = {(3, 1): Ball("blue"), (3, 3): Key("yellow"), (3, 5): Box("red"), (5, 5): Door("green")}
    env = playground(cells, size=8 * 32)
    frame, ids = env.render().astype(int), env.segmentation()
    assert sorted(np.unique(ids)) == [0, 1, 2, 3, 4, 5]
    y, x = (np.mgrid[:32, :32] + 0.5) / 32
    ball = ids[32:64, 96:128] == 2
    # MiniGrid counts 3 x 3 points of each pixel, which may differ from its centre on the rim.
    assert np.sum(ball ^ (np.hypot(x - 0.5, y - 0.5) < 0.31)) <= 8
    assert np.all(frame[32:64, 96:128, 2][ball] > 127)
    # A box owns its inside, which looks like the ground; a closed door the whole cell.
    box = ids[160:192, 96:128] == 4
    assert box[4:28, 4:28].all() and not box[:3].any() and not box[:, 29:].any()
    assert (ids[160:192, 160:192] == 5).all()
    agent = ids[32:64, 32:64] == AGENT_ID
    assert np.array_equal(agent, frame[32:64, 32:64, 0] > 127)
    assert np.count_nonzero(agent) == pytest.approx(0.75 * 0.62 / 2 * 32 * 32, rel=0.05)


def test_everything_coloured_is_in_the_scene():
    env = make("minigrid", id="MiniGrid-LavaCrossingS9N2-v0", size=9 * 16)
    frame, _ = env.reset(seed=0)
    ids = env.segmentation("scene")
    assert (frame[ids == 0].max(axis=0) <= 127).all()
    kinds = {}
    for label in np.unique(ids[ids >= FIRST_REGION_ID]):
        rows, columns = np.nonzero(ids == label)
        kinds[label] = env.game.grid.get(columns[0] // 16, rows[0] // 16).type
    assert sorted(set(kinds.values())) == ["goal", "lava", "wall"]
    assert set(np.unique(env.segmentation())) == {0, AGENT_ID}


def test_regions_are_connected():
    cells = {(3, 3): Lava(), (3, 4): Lava(), (5, 5): Lava(), (4, 4): Wall()}
    ids = playground(cells, size=64).segmentation("scene")[4::8, 4::8]
    assert ids[3, 3] == ids[4, 3] != ids[5, 5]
    assert len({ids[0, 0], ids[3, 3], ids[5, 5], ids[4, 4]}) == 4
    assert ids[0, 0] == ids[7, 7] >= FIRST_REGION_ID


@pytest.mark.parametrize("is_watched", [True, False])
def test_regions_keep_their_ids_when_material_goes(is_watched):
    env = playground({(x, 3): Lava() for x in range(1, 6)}, size=64)
    before = env.segmentation("scene")[4::8, 4::8] if is_watched else None
    env.game.grid.set(2, 3, None)
    act(env, "left")
    ids = env.segmentation("scene")[4::8, 4::8]
    assert ids[3, 2] == 0
    assert ids[3, 3] == ids[3, 5] != ids[3, 1] >= FIRST_REGION_ID
    assert ids[3, 1] > ids[3, 3]
    assert before is None or ids[3, 3] == before[3, 3] == before[3, 1]


def test_a_carried_object_keeps_its_id():
    env = playground({(2, 1): Ball("blue"), (5, 5): Key("red")}, size=64)
    ids = env.segmentation()
    assert ids[12, 20] == 2 and ids[44, 44] == 3
    act(env, "pickup")
    assert 2 not in env.segmentation() and 2 not in env.objects()["id"]
    act(env, "right", "forward", "drop")
    ids = env.segmentation()
    assert ids[28, 12] == 2 and ids[44, 44] == 3 and ids[12, 20] == 0


def test_what_was_in_a_box_has_an_id_of_its_own():
    env = playground({(2, 1): Box("blue", contains=Key("red")), (5, 5): Ball("red")}, size=64)
    assert set(np.unique(env.segmentation())) == {0, 1, 2, 4}
    act(env, "toggle")
    assert set(np.unique(env.segmentation())) == {0, 1, 3, 4}
    assert env.categories[env.objects()["category"][1]] == "key"


def test_a_door_keeps_its_id_and_tells_its_state():
    env = playground({(2, 1): Door("red", is_locked=True), (1, 2): Key("red")}, size=64)
    doors = []
    for names in ((), ("right", "pickup", "left", "toggle"), ("toggle",)):
        for name in names:
            act(env, name)
        door = env.objects()[1]
        doors.append((int(door["id"]), int(door["attributes"][1])))
    assert doors == [(2, 2), (2, 0), (2, 1)]
    act(env, "toggle", "forward")
    ids = env.segmentation()[8:16, 16:24]
    assert set(np.unique(ids)) == {0, AGENT_ID, 2}


@pytest.mark.parametrize("view", ["full", "partial"])
def test_objects_and_masks_agree(view):
    env = make("minigrid", id="BabyAI-GoTo-v0", size=22 * 8, view=view)
    rng = np.random.default_rng(0)
    for seed in range(2):
        env.reset(seed=seed)
        for _ in range(10):
            env.step(env.scripted_action(rng))
        ids, table = env.segmentation(), env.objects()
        assert list(table["id"]) == sorted(set(np.unique(ids)) - {0, VOID_ID})
        assert len(table) <= env.max_objects
        for row in table:
            rows, columns = np.nonzero(ids == row["id"])
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.allclose(row["box"] * len(ids), box)
            left, top, right, bottom = row["box"]
            tile = 8 if view == "full" else 25
            assert abs((left + right) / 2 - row["position"][0]) < tile / 2 / len(ids)
            assert abs((top + bottom) / 2 - row["position"][1]) < tile / 2 / len(ids)
    assert table["attributes"][0, 2] == (env.game.agent_dir if view == "full" else 3)


def test_a_partial_view_hides_what_the_agent_does_not_see():
    cells = {(3, y): Wall() for y in range(1, 7)} | {(5, 1): Ball("red"), (2, 2): Key("blue")}
    env = playground(cells, view="partial", size=7 * 8)
    ids = env.segmentation()
    assert set(np.unique(ids)) == {0, AGENT_ID, 3, VOID_ID}
    # The agent looks up from the middle of the last row; the wall stands two cells before it.
    assert (ids[: 4 * 8] == VOID_ID).all()
    assert not (ids[48:, 24:40] == VOID_ID).any()
    assert ids[48 - 4, 32 + 4] == 3
    scene = env.segmentation("scene")
    assert scene[4 * 8 + 4, 28] >= FIRST_REGION_ID
    assert np.array_equal(scene == VOID_ID, ids == VOID_ID)


def test_a_partial_view_shows_what_the_agent_carries():
    env = playground({(2, 1): Box("blue")}, view="partial", size=7 * 16)
    act(env, "pickup")
    tile = env.segmentation()[96:112, 48:64]
    assert set(np.unique(tile)) == {0, AGENT_ID, 2}
    box = env.objects()[1]
    assert np.allclose(box["position"], [3.5 / 7, 6.5 / 7])


@pytest.mark.parametrize(
    ("identity", "least"),
    [
        ("BabyAI-PutNextLocal-v0", 0.95),
        ("BabyAI-GoToLocal-v0", 0.95),
        ("MiniGrid-DoorKey-8x8-v0", 0.9),
        ("MiniGrid-LavaCrossingS9N2-v0", 0.9),
        ("MiniGrid-BlockedUnlockPickup-v0", 0.8),
        ("MiniGrid-ObstructedMaze-1Dlhb-v0", 0.8),
        ("MiniGrid-Fetch-8x8-N3-v0", 0.9),
        ("MiniGrid-GoToDoor-8x8-v0", 0.9),
        ("MiniGrid-PutNear-8x8-N3-v0", 0.8),
        ("MiniGrid-RedBlueDoors-8x8-v0", 0.9),
        ("MiniGrid-MemoryS9-v0", 0.9),
    ],
)
def test_the_scripted_player_reaches_goals(identity, least):
    env = raw(identity, tile_size=2)
    rng = np.random.default_rng(0)
    successes = 0
    for seed in range(20):
        env.reset(seed=seed)
        while True:
            action = env.scripted_action(rng)
            assert env.action_space.contains(action)
            _, _, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                break
        successes += info["is_success"]
    assert successes / 20 >= least


@pytest.mark.parametrize("identity", ["MiniGrid-Playground-v0", "BabyAI-KeyInBox-v0"])
def test_the_scripted_player_moves_things_where_it_knows_no_goal(identity):
    env = raw(identity, tile_size=2)
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    carried = set()
    for _ in range(100):
        env.step(env.scripted_action(rng))
        carried.add(env.game.carrying)
    assert len(carried) > 1


def test_the_scripted_player_keeps_to_the_actions_of_the_game():
    env = raw("MiniGrid-Dynamic-Obstacles-5x5-v0")
    rng = np.random.default_rng(0)
    for seed in range(10):
        env.reset(seed=seed)
        for _ in range(10):
            action = env.scripted_action(rng)
            assert env.action_space.contains(action)
            if any(env.step(action)[2:4]):
                break


def test_babyai_is_silent(capsys):
    env = make("minigrid")
    for seed in range(10):
        env.reset(seed=seed)
    assert capsys.readouterr().out == ""


def test_arguments_reach_the_game():
    env = make("minigrid", view="partial", size=None, tile_size=8, arguments={"agent_view_size": 5})
    assert env.reset(seed=0)[0].shape == (40, 40, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id": "BabyAI-PutNextLocl-v0"}, "did you mean 'BabyAI-PutNextLocal-v0'"),
        ({"id": "minigrid-doorkey-8x8-v0"}, "did you mean 'MiniGrid-DoorKey-8x8-v0'"),
        ({"id": "CartPole-v1"}, "expected one of 1"),
        ({"view": "ful"}, "did you mean 'full'"),
        ({"size": 7}, "expected at least 8"),
        ({"tile_size": 8}, "expected one of size and tile_size"),
        ({"size": None}, "expected one of size and tile_size"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make("minigrid", **arguments)


def test_an_unknown_preset_is_refused():
    env = make("minigrid")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="did you mean 'scene'"):
        env.segmentation("scenes")


def test_more_objects_than_announced_are_refused():
    env = make("minigrid", max_objects=4)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected at least 9"):
        env.objects()
