from __future__ import annotations

import collections
import copy
import pathlib
import warnings
from typing import Any

import crafter
import gymnasium
import numpy as np
import pytest
import yaml
from crafter import constants, engine, objects
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from ocrl.envs.crafter import FIRST_ITEM_ID, FIRST_REGION_ID, CrafterEnv, crafter_score
from ocrl.envs.crafter_world import Arrow, Cow, OrderedSet, Plant, Skeleton, Zombie, pregenerate
from ocrl.types import VOID_ID

YAML = pathlib.Path(__file__).parents[2] / "configs/env/crafter.yaml"
NUM_ACTIONS = 17
_GRASS, _PATH, _STONE = (1 + constants.materials.index(name) for name in ("grass", "path", "stone"))


def make(**changes: Any) -> CrafterEnv:
    arguments = yaml.safe_load(YAML.read_text())
    assert arguments.pop("_target_") == "ocrl.envs.crafter.CrafterEnv"
    return CrafterEnv(**arguments | changes)


def beside(env: CrafterEnv, dx: int, dy: int) -> tuple[int, int]:
    """The cell of the map that far from the player's."""
    x, y = env._game.player.pos.tolist()
    return x + dx, y + dy


def put(env: CrafterEnv, kind: type, dx: int, dy: int) -> Any:
    """Put a creature or plant there, in the place of what stood there."""
    world, pos = env._game.world, beside(env, dx, dy)
    if world[pos][1] is not None:
        world.remove(world[pos][1])
    needs_player = kind in (Zombie, Skeleton)
    obj = kind(world, pos, env._game.player) if needs_player else kind(world, pos)
    world.add(obj)
    return obj


def cell(ids: NDArray[np.uint16], dx: int, dy: int) -> set[int]:
    """Ids of the pixels of a cell relative to the player's, at 64 pixels."""
    x, y = 7 * (4 + dx), 7 * (3 + dy)
    return set(np.unique(ids[y : y + 7, x : x + 7]).tolist())


class OrderedWorld(engine.World):
    def reset(self, seed: int | None = None) -> None:
        super().reset(seed)
        self._chunks = collections.defaultdict(OrderedSet)


def ordered_crafter(seed: int, area: tuple[int, int] = (64, 64)) -> crafter.Env:
    env = crafter.Env(seed=seed, area=area)
    env._world = OrderedWorld(env._area, constants.materials, (12, 12))
    env._local_view._world = env._sem_view._world = env._world
    return env


def help_along(player: Any, step: int) -> None:
    """Keep a random player alive and give it means, the same in both games."""
    if step % 3 == 0:
        player.inventory.update(health=9, food=9, drink=9)
    if step % 50 == 0:
        player.inventory.update(wood=9, stone=9, coal=9, iron=9, sapling=9, energy=5)
    if step % 170 == 0:
        player.inventory.update(dict.fromkeys(("wood_pickaxe", "stone_pickaxe", "iron_sword"), 1))


def wander(worlds: list[engine.World], players: list[Any], rng: np.random.Generator) -> None:
    """Move the players of equal worlds to the same cell, more often than not in a tunnel."""
    free = worlds[0]._obj_map == 0
    tunnels = free & (worlds[0]._mat_map == 1 + constants.materials.index("path"))
    meadows = free & (worlds[0]._mat_map == 1 + constants.materials.index("grass"))
    wanted = tunnels if rng.random() < 0.7 else meadows
    cells = np.argwhere(wanted if wanted.any() else free)
    pos = cells[rng.integers(len(cells))]
    for world, player in zip(worlds, players, strict=True):
        world.move(player, pos)


@pytest.mark.parametrize("seed", [0, 1])
def test_episodes_are_those_of_crafter_with_ordered_chunks(seed: int) -> None:
    theirs, ours = ordered_crafter(seed), make(semantic_in_info=True)
    assert np.array_equal(theirs.reset(), ours.reset(seed=seed)[0])
    rng = np.random.default_rng(seed)
    num_dark = num_asleep = num_arrows = 0
    for step in range(320):
        help_along(theirs._player, step)
        help_along(ours._game.player, step)
        if step % 30 == 29:
            worlds = [theirs._world, ours._game.world]
            wander(worlds, [theirs._player, ours._game.player], rng)
        action = int(rng.integers(NUM_ACTIONS))
        frame, reward, done, their_info = theirs.step(action)
        observation, our_reward, terminated, truncated, info = ours.step(action)
        assert np.array_equal(observation, frame), f"step {step}"
        assert our_reward == reward and (terminated or truncated) == done
        for key in ("inventory", "achievements", "discount", "reward"):
            assert info[key] == their_info[key]
        for key in ("semantic", "player_pos"):
            assert np.array_equal(info[key], their_info[key])
        num_dark += ours._game.world.daylight < 0.5
        num_asleep += ours._game.player.sleeping
        num_arrows += any(type(obj) is Arrow for obj in ours._game.world.objects)
        if done:
            assert np.array_equal(theirs.reset(), ours.reset()[0])
    assert min(num_dark, num_asleep, num_arrows) > 10
    assert np.array_equal(
        theirs._world.random.get_state()[1], ours._game.world.random.get_state()[1]
    )


@pytest.mark.slow
def test_many_episodes_are_those_of_crafter_with_ordered_chunks() -> None:
    for seed in range(10, 22):
        theirs, ours = ordered_crafter(seed), make()
        assert np.array_equal(theirs.reset(), ours.reset(seed=seed)[0])
        rng = np.random.default_rng(seed)
        for step in range(2000):
            help_along(theirs._player, step)
            help_along(ours._game.player, step)
            if step % 30 == 29:
                worlds = [theirs._world, ours._game.world]
                wander(worlds, [theirs._player, ours._game.player], rng)
            action = int(rng.integers(NUM_ACTIONS))
            frame, reward, done, _ = theirs.step(action)
            observation, our_reward, *_ = ours.step(action)
            assert np.array_equal(observation, frame) and our_reward == reward
            if done:
                assert np.array_equal(theirs.reset(), ours.reset()[0])


def test_creatures_come_and_go_as_in_crafter() -> None:
    # On a small map all distances are near those that the rules ask for.
    theirs, ours = ordered_crafter(0, (20, 17)), make(area=(20, 17))
    theirs.reset()
    ours.reset(seed=0)
    worlds = [theirs._world, ours._game.world]
    rng = np.random.default_rng(0)
    come = gone = 0
    for _ in range(2500):
        ground = rng.choice([_GRASS, _PATH, _STONE], (20, 17), p=rng.dirichlet((0.5, 0.5, 0.5)))
        daylight = rng.random()
        for world in worlds:
            world._mat_map[:] = ground
            world.daylight = daylight
        wander(worlds, [theirs._player, ours._game.player], rng)
        if rng.random() < 0.2:
            for world in worlds:
                for obj in world.objects[1:]:
                    world.remove(obj)
        kind = (objects.Cow, objects.Zombie, objects.Skeleton)[rng.integers(3)]
        x, y = rng.integers(0, (20, 17))
        for env, world in zip((theirs, ours._game), worlds, strict=True):
            if world[x, y][1] is None:
                args = () if kind is objects.Cow else (env._player,)
                world.add(kind(world, (x, y), *args))
        before = len(worlds[0].objects)
        for chunk, members in theirs._world.chunks.items():
            theirs._balance_chunk(chunk, members)
        ours._game._balance()
        come += len(worlds[0].objects) > before
        gone += len(worlds[0].objects) < before
        assert np.array_equal(worlds[0]._obj_map, worlds[1]._obj_map)
        states = [world.random.get_state() for world in worlds]
        assert np.array_equal(states[0][1], states[1][1]) and states[0][2] == states[1][2]
    assert come > 20 and gone > 20


def test_what_is_made_in_a_step_first_acts_in_the_next() -> None:
    env = arena()
    env._game.player.inventory["sapling"] = 1
    env.step(constants.actions.index("place_plant"))
    plant = env._game.world[beside(env, 0, 1)][1]
    assert type(plant) is Plant and plant.grown == 0
    env.step(0)
    assert plant.grown == 1


def played(env: CrafterEnv, seed: int, steps: int, *, look: bool = False) -> list[Any]:
    """What an episode is made of, apart from its pixels."""
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    trace: list[Any] = []
    for step in range(steps):
        help_along(env._game.player, step)
        _, reward, terminated, truncated, info = env.step(rng.integers(NUM_ACTIONS))
        if look:
            env.render()
            env.segmentation("entities"), env.segmentation("scene"), env.objects()
        world = env._game.world
        trace.append((reward, terminated, truncated, info["inventory"], world._obj_map.tobytes()))
        if terminated or truncated:
            env.reset()
    return trace


def test_size_rendering_and_masks_do_not_change_an_episode() -> None:
    first = played(make(), 4, 330)
    assert any(env_state[4] != first[0][4] for env_state in first)
    assert played(make(size=96), 4, 330) == first
    assert played(make(size=40), 4, 330, look=True) == first
    assert played(make(inventory_in_masks=True), 4, 330, look=True) == first


def test_same_seed_same_episode_whatever_came_before() -> None:
    env, other = make(size=32), make(size=32)
    first = [env.reset(seed=11)[0]]
    actions = [int(a) for a in np.random.default_rng(2).integers(0, NUM_ACTIONS, 60)]
    first += [env.step(action)[0] for action in actions]
    env.reset()
    other.reset(seed=3)
    other.reset()
    for each in (env, other):
        again = [each.reset(seed=11)[0]]
        again += [each.step(action)[0] for action in actions]
        assert np.array_equal(first, again)
    assert np.array_equal(env.reset()[0], other.reset()[0]), "the next episode is seeded too"


def test_frames_at_another_size_are_noisy_and_repeatable_in_the_dark() -> None:
    def frames(looks: int) -> list[NDArray[np.uint8]]:
        env = make(size=72)
        env.reset(seed=1)
        env._game._step = 250
        shown = [env.step(0)[0] for _ in range(5)]
        assert env._game.world.daylight < 0.3
        for _ in range(looks):
            assert np.array_equal(env.render(), shown[-1])
        return shown

    assert np.array_equal(frames(0), frames(3))
    dark = frames(0)
    assert not np.array_equal(dark[0], dark[1])


def test_death_terminates_and_length_truncates() -> None:
    env = make(length=5)
    env.reset(seed=0)
    for step in range(5):
        _, _, terminated, truncated, info = env.step(0)
        assert (terminated, truncated) == (False, step == 4)
        assert info["discount"] == 1.0
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset()
    for _ in range(4):
        env.step(0)
    env._game.player.health = 0
    _, reward, terminated, truncated, info = env.step(0)
    assert (terminated, truncated) == (True, False), "death in the last step is death"
    assert info["discount"] == 0.0 and reward == pytest.approx(-0.9)
    assert type(terminated) is bool and type(reward) is float


def test_endless_episodes() -> None:
    env = make(length=None, size=18)
    env.reset(seed=0)
    env._game._step = 20_000
    assert env.step(0)[3] is False


def test_reward_can_be_switched_off() -> None:
    env = make(reward=False)
    env.reset(seed=0)
    env._game.player.health = 5
    env._game.player.achievements["wake_up"] = 1
    _, reward, _, _, info = env.step(0)
    assert reward == 0.0 and info["reward"] == pytest.approx(0.6)


def test_info_is_a_copy_with_achievements_and_scores() -> None:
    env = make(length=3)
    _, info = env.reset(seed=0)
    assert set(info["achievements"]) == set(constants.achievements)
    assert len(info["achievements"]) == 22 and info["episode_score"] == 0.0
    assert "semantic" not in info
    before = info["player_pos"].copy()
    env._game.player.achievements.update(collect_wood=3, eat_cow=1)
    env.step(1)
    _, _, _, _, info_2 = env.step(1)
    assert np.array_equal(info["player_pos"], before)
    assert info["achievements"]["collect_wood"] == 0
    assert info_2["achievements"]["collect_wood"] == 3
    assert info_2["episode_score"] == pytest.approx(np.exp(2 * np.log(101) / 22) - 1)
    assert "crafter_score" not in info_2
    _, _, _, truncated, last = env.step(0)
    assert truncated and last["crafter_score"] == last["episode_score"]
    env.reset()
    for _ in range(3):
        last = env.step(0)[4]
    assert last["episode_score"] == 0.0
    assert env.success_rates["eat_cow"] == 0.5 and env.success_rates["wake_up"] == 0.0
    assert last["crafter_score"] == pytest.approx(np.exp(2 * np.log(51) / 22) - 1)


def test_crafter_score() -> None:
    assert crafter_score([0.0] * 22) == 0.0
    assert crafter_score([1.0] * 22) == pytest.approx(100.0)
    assert crafter_score({"a": 0.5, "b": 0.0}) == pytest.approx(np.sqrt(51) - 1)
    for bad in ([], [1.1], [-0.1], [float("nan")]):
        with pytest.raises(ValueError, match="success rates"):
            crafter_score(bad)


@pytest.mark.parametrize("size", [64, 96])
def test_gymnasium_finds_nothing_to_complain_about(size: int) -> None:
    gymnasium.register("CrafterCheck-v0", entry_point=make, kwargs={"size": size})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(gymnasium.make("CrafterCheck-v0").unwrapped)
    finally:
        del gymnasium.registry["CrafterCheck-v0"]


def test_a_frame_belongs_to_who_asked_for_it() -> None:
    env = make()
    observation = env.reset(seed=0)[0]
    expected, ids = observation.copy(), env.segmentation()
    observation[:] = 0
    env.render()[:] = 0
    ids_before = ids.copy()
    ids[:] = 9
    assert np.array_equal(env.render(), expected)
    assert np.array_equal(env.segmentation(), ids_before)


def test_entities_and_their_table_agree() -> None:
    env = make()
    rng = np.random.default_rng(0)
    env.reset(seed=2)
    categories: set[str] = set()
    for step in range(120):
        help_along(env._game.player, step)
        if step % 20 == 0:
            put(env, (Cow, Zombie, Skeleton)[step // 20 % 3], 2, step % 3)
        env.step(rng.integers(NUM_ACTIONS))
        ids, table = env.segmentation("entities"), env.objects()
        assert set(np.unique(ids)) == {0, VOID_ID, *table["id"].tolist()}
        assert (ids[49:] == VOID_ID).all() and (ids[:, 63] == VOID_ID).all()
        assert len(table) <= env.max_objects == 63
        for row in table:
            ys, xs = np.nonzero(ids == row["id"])
            box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 64
            np.testing.assert_allclose(row["box"], box, atol=1e-7)
            obj = env._game.world._objects[row["id"]]
            name = env.categories[row["category"]]
            categories.add(name)
            assert name == type(obj).__name__.lower()
            x, y = (obj.pos - env._game.player.pos).tolist()
            np.testing.assert_allclose(
                row["position"], ((4.5 + x) * 7 / 64, (3.5 + y) * 7 / 64), atol=1e-6
            )
            assert row["attributes"][0] == obj.health
    assert {"player", "cow", "zombie", "skeleton"} <= categories


def test_attributes() -> None:
    env = make()
    env.reset(seed=0)
    player = env._game.player
    put(env, Plant, 2, 0).grown = 1000
    put(env, Zombie, -2, 0)
    player.sleeping, player.inventory["energy"] = True, 3
    env.step(0)
    rows = {env.categories[row["category"]]: row["attributes"] for row in env.objects()}
    assert env.attribute_names == ("health", "facing_x", "facing_y", "sleeping", "ripe")
    assert rows["player"][1:].tolist() == [0, 1, 1, 0]
    assert rows["plant"].tolist() == [1, 0, 0, 0, 1]


def test_ids_of_objects_stay_with_them() -> None:
    env = make()
    env.reset(seed=3)
    rng = np.random.default_rng(3)
    seen: dict[int, Any] = {}
    for step in range(200):
        help_along(env._game.player, step)
        if step % 20 == 0:
            put(env, (Cow, Zombie)[step // 20 % 2], 2, step % 3)
        env.step(rng.integers(NUM_ACTIONS))
        for index in env.objects()["id"].tolist():
            obj = env._game.world._objects[index]
            assert seen.setdefault(index, obj) is obj
    assert seen[1] is env._game.player and len(seen) > 3


def arena(**changes: Any) -> CrafterEnv:
    """A meadow with nobody but the player, who faces down."""
    env = make(**changes)
    env.reset(seed=0)
    world = env._game.world
    for obj in world.objects[1:]:
        world.remove(obj)
    world.start(np.full(world.area, constants.materials.index("grass") + 1, np.uint8))
    return env


def test_scene_gives_material_regions_ids_that_stay() -> None:
    env = arena()
    world, (x, y) = env._game.world, env._game.player.pos.tolist()
    for dx in range(-3, 4):
        world[x + dx, y + 1] = "tree"
    world[x - 3, y - 2] = "water"
    world[x - 3, y - 1] = "sand"
    world[x + 3, y - 2] = "diamond"
    world.start(world._mat_map.copy())
    env.step(0)
    first = env.segmentation("scene")
    (trees,), (water,), (diamond,) = cell(first, 0, 1), cell(first, -3, -2), cell(first, 3, -2)
    assert cell(first, -3, -1) == {0} and cell(first, 1, 0) == {0}
    assert cell(first, -3, 1) == cell(first, 3, 1) == {trees}
    assert len({trees, water, diamond}) == 3 and min(trees, water, diamond) >= FIRST_REGION_ID
    assert cell(env.segmentation("entities"), 0, 1) == {0}
    # Felling the middle tree splits the row; one half keeps the id, bystanders theirs.
    env.step(constants.actions.index("do"))
    second = env.segmentation("scene")
    assert cell(second, 0, 1) == {0}
    halves = cell(second, -1, 1) | cell(second, 1, 1)
    assert trees in halves and len(halves) == 2
    assert cell(second, -3, -2) == {water} and cell(second, 3, -2) == {diamond}
    # A table is a new region; the ids of the rest do not move.
    env._game.player.inventory["wood"] = 9
    env.step(constants.actions.index("place_table"))
    third = env.segmentation("scene")
    (table,) = cell(third, 0, 1)
    assert table not in {0, trees, water, diamond} | halves
    assert cell(third, -1, 1) | cell(third, 1, 1) == halves


def test_regions_reach_beyond_the_view() -> None:
    env = arena()
    world, (x, y) = env._game.world, env._game.player.pos.tolist()
    path = [(x - 2, y + 2 - i) for i in range(12)] + [(x - 2 + i, y - 10) for i in range(5)]
    for pos in [*path, *[(x + 2, y + 2 - i) for i in range(12)]]:
        world[pos] = "water"
    world.start(world._mat_map.copy())
    env.step(0)
    ids = env.segmentation("scene")
    assert cell(ids, -2, 0) == cell(ids, 2, 0), "one lake, joined outside the view"


def test_regions_do_not_depend_on_when_they_are_asked_for() -> None:
    often, once = make(), make()
    rng = np.random.default_rng(8)
    for env in (often, once):
        env.reset(seed=8)
    for step in range(150):
        action, x, y = rng.integers(NUM_ACTIONS), *rng.integers(28, 37, 2)
        name = ("grass", "stone", "tree", "water", "table")[rng.integers(5)]
        for env in (often, once):
            help_along(env._game.player, step)
            env.step(action)
            if env._game.world[x, y][1] is None:
                env._game.world[x, y] = name
        often.segmentation("scene")
    assert len(once._game.world.changes) > 100
    assert np.array_equal(often.segmentation("scene"), once.segmentation("scene"))
    once.reset(seed=8)
    often.reset(seed=8)
    once.segmentation("scene")
    assert np.array_equal(often.segmentation("scene"), once.segmentation("scene"))


def test_transparent_pixels_of_a_sprite_belong_to_what_is_below() -> None:
    env = arena()
    put(env, Plant, 2, 1)
    env._game.world[beside(env, 2, 1)] = "water"
    env.step(0)
    scene, entities = cell(env.segmentation("scene"), 2, 1), cell(env.segmentation(), 2, 1)
    assert len(scene) == 2 and max(scene) >= FIRST_REGION_ID
    assert entities == {0, min(scene)}


def test_outside_of_the_map_is_void() -> None:
    env = make(area=(7, 7))
    env.reset(seed=0)
    for preset in ("entities", "scene"):
        ids = env.segmentation(preset)
        assert cell(ids, -4, 0) == cell(ids, 4, 0) == {VOID_ID}
        assert VOID_ID not in cell(ids, -3, 0) | cell(ids, 3, 0)


def test_inventory_masks_on_request() -> None:
    env = make(inventory_in_masks=True)
    env.reset(seed=0)
    for preset in ("entities", "scene"):
        strip = env.segmentation(preset)[49:63, :63]
        assert set(np.unique(strip)) == {0, *range(FIRST_ITEM_ID, FIRST_ITEM_ID + 4)}
    assert FIRST_ITEM_ID + 16 <= VOID_ID


def test_too_many_objects_is_said_not_hidden() -> None:
    env = arena()
    world = env._game.world
    world._objects += [None] * FIRST_REGION_ID
    put(env, Plant, 1, 0)
    env.step(0)
    for ask in (env.segmentation, env.objects):
        with pytest.raises(OverflowError, match="at most 32767 objects"):
            ask()


def test_worlds_from_a_folder_give_the_same_episodes(tmp_path: pathlib.Path) -> None:
    pregenerate(tmp_path, seeds=[6], area=(64, 64))
    assert played(make(world_cache=tmp_path), 6, 60) == played(make(), 6, 60)


def test_a_loaded_world_is_not_generated(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pregenerate(tmp_path, seeds=[6], area=(64, 64))
    env = make(world_cache=str(tmp_path))

    def refuse(*_: Any) -> None:
        raise AssertionError("generated")

    monkeypatch.setattr("ocrl.envs.crafter_game.fill_world", refuse)
    env.reset(seed=6)
    with pytest.raises(AssertionError, match="generated"):
        env.reset(seed=7)


def test_a_copied_environment_goes_its_own_way() -> None:
    env = make(size=32)
    env.reset(seed=5)
    env.step(0)
    twin = copy.deepcopy(env)
    actions = [int(a) for a in np.random.default_rng(0).integers(0, NUM_ACTIONS, 40)]
    imagined = [twin.step(action)[0] for action in actions]
    assert np.array_equal(imagined, [env.step(action)[0] for action in actions])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="at least 18 x 18"):
        make(size=12)
    with pytest.raises(ValueError, match="expected area to be two positive numbers"):
        make(area=(0, 64))
    with pytest.raises(ValueError, match="expected view to be two positive numbers"):
        make(view=(9, 9, 9))
    with pytest.raises(ValueError, match="length of at least one step or None, got 0"):
        make(length=0)
    with pytest.raises(ValueError, match="render_mode"):
        make(render_mode="human")
    with pytest.raises(FileNotFoundError, match="pregenerate"):
        make(world_cache="/nowhere/at/all")
    env = make()
    for ask in (env.render, env.segmentation, env.objects, lambda: env.step(0)):
        with pytest.raises(gymnasium.error.ResetNeeded):
            ask()
    env.reset(seed=0)
    for action in (-1, 17):
        with pytest.raises(ValueError, match=r"action in 0 \.\.\. 16"):
            env.step(action)
    with pytest.raises(ValueError, match="expected a preset in"):
        env.segmentation("thing")
