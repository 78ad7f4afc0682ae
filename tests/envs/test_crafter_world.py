from __future__ import annotations

import copy
import pathlib
import pickle

import crafter
import numpy as np
import pytest
from crafter import constants, engine, objects

from ocrl.envs import crafter_world
from ocrl.envs.crafter_world import (
    CHUNK,
    OrderedSet,
    World,
    WorldCache,
    fill_world,
    pregenerate,
    seed_world,
    world_seed,
)


def generated(seed: int, area: tuple[int, int]) -> World:
    world = World(area, constants.materials, CHUNK)
    fill_world(world, seed_world(world, world_seed(seed, 1)))
    return world


def assert_same(world: engine.World, other: engine.World) -> None:
    assert np.array_equal(world._mat_map, other._mat_map)
    assert np.array_equal(world._obj_map, other._obj_map)
    names = [[type(obj).__name__ for obj in each.objects] for each in (world, other)]
    assert names[0] == names[1]
    assert list(world.chunks) == list(other.chunks)
    states = [each.random.get_state() for each in (world, other)]
    assert np.array_equal(states[0][1], states[1][1])
    assert states[0][2:] == states[1][2:]


@pytest.mark.parametrize("area", [(64, 64), (40, 50), (9, 7)])
@pytest.mark.parametrize("seed", [0, 1, 2, 12345, 2**31 - 2])
def test_worlds_are_crafters(seed: int, area: tuple[int, int]) -> None:
    env = crafter.Env(area=area, seed=seed)
    env.reset()
    assert_same(generated(seed, area), env._world)


@pytest.mark.slow
def test_many_worlds_are_crafters() -> None:
    for seed in range(100, 300):
        env = crafter.Env(seed=seed)
        env.reset()
        assert_same(generated(seed, (64, 64)), env._world)


def test_world_seed_is_crafters() -> None:
    env = crafter.Env(area=(5, 5), seed=7)
    env.reset()
    env.reset()
    world = World((5, 5), constants.materials, CHUNK)
    fill_world(world, seed_world(world, world_seed(7, 2)))
    assert_same(world, env._world)


def test_ordered_set_keeps_the_order_of_arrival() -> None:
    items = OrderedSet()
    for item in (3, 1, 2):
        items.add(item)
    items.remove(1)
    items.add(1)
    items.add(3)
    assert list(items) == [3, 2, 1]
    assert len(items) == 3 and 1 in items and 5 not in items
    with pytest.raises(KeyError):
        items.remove(5)


def test_an_objects_chunk_follows_it() -> None:
    world = World((64, 64), constants.materials, CHUNK)
    world.reset(seed=0)
    world.start(np.full((64, 64), constants.materials.index("grass") + 1, np.uint8))
    cow = objects.Cow(world, (11, 5))
    world.add(cow)
    assert type(cow) is crafter_world.Cow and isinstance(cow, objects.Cow)
    assert cow.move((1, 0))
    assert cow.pos.tolist() == [12, 5]
    assert list(world.chunks[(12, 24, 0, 12)]) == [cow]
    assert list(world.chunks[(0, 12, 0, 12)]) == []
    assert world[12, 5] == ("grass", cow) and world[11, 5] == ("grass", None)
    world.remove(cow)
    world.move(cow, (13, 5))
    assert not world._obj_map.any()


def test_quick_arithmetic_is_crafters() -> None:
    rng = np.random.default_rng(0)
    quick = World((64, 64), constants.materials, CHUNK)
    plain = engine.World((64, 64), constants.materials, CHUNK)
    materials = rng.integers(1, 13, (64, 64)).astype(np.uint8)
    for world in (quick, plain):
        world.reset(seed=3)
        world._mat_map[:] = materials
    pair = [objects.Cow(world, (5, 5)) for world in (quick, plain)]
    for world, cow in zip((quick, plain), pair, strict=True):
        world.add(cow)
    for _ in range(500):
        target = rng.integers(0, 64, 2)
        long_axis = bool(rng.integers(2))
        assert pair[0].distance(target) == pair[1].distance(target)
        toward = [cow.toward(target, long_axis).tolist() for cow in pair]
        assert toward[0] == toward[1]
        directions = [tuple(cow.random_dir()) for cow in pair]
        assert directions[0] == directions[1]
        assert pair[0].random.uniform() == pair[1].random.uniform()
        assert pair[0].move(directions[0]) == pair[1].move(directions[1])
        assert pair[0].pos.tolist() == pair[1].pos.tolist()


def test_creatures_stay_on_the_map() -> None:
    world = World((3, 3), constants.materials, CHUNK)
    world.reset(seed=0)
    world.start(np.full((3, 3), constants.materials.index("grass") + 1, np.uint8))
    cow = objects.Cow(world, (0, 0))
    world.add(cow)
    assert not cow.move((-1, 0)) and not cow.move((0, -1))
    assert world[-1, 0] == (None, None) and world[0, 3] == (None, None)


def test_near_is_crafters_distance_rule() -> None:
    world = generated(1, (64, 64))
    for center in ((32, 32), (0, 0), (63, 10)):
        pos = np.array(center)
        limit = len(world._objects) - 3
        expected = [
            obj
            for obj in world._objects[1:limit]
            if obj is not None and np.abs(obj.pos - pos).sum() < 18
        ]
        assert world.near(pos, 18, limit) == expected


def test_only_real_changes_are_logged() -> None:
    world = generated(0, (9, 9))
    before = world._mat_map.copy()
    world[4, 4] = "grass"
    world[np.array((4, 4))] = "table"
    world[4, 4] = "table"
    world[4, 4] = "path"
    assert world.changes == [(4, 4, 11), (4, 4, 4)]
    assert np.array_equal(world.initial_materials, before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_draws_from_its_own_generator(duplicate) -> None:  # type: ignore[no-untyped-def]
    world = generated(0, (64, 64))
    twin = duplicate(world)
    draws = [twin.objects[1].random.uniform() for _ in range(3)]
    assert [world.objects[1].random.uniform() for _ in range(3)] == draws
    assert twin.random.random_sample() == world.random.random_sample()


def test_crafter_itself_is_untouched() -> None:
    generated(0, (64, 64))
    env = crafter.Env(seed=0, area=(20, 20))
    env.reset()
    assert {type(obj).__module__ for obj in env._world.objects} == {"crafter.objects"}
    assert all(type(chunk) is set for chunk in env._world.chunks.values())


def test_pregenerated_worlds_are_the_generated_ones(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "worlds"
    seen: list[int] = []
    assert pregenerate(folder, seeds=[4, 5], area=(30, 20), episodes=2, progress=seen.append) == 4
    assert seen == [1, 2, 3, 4]
    assert pregenerate(folder, seeds=[4, 5], area=(30, 20), episodes=2) == 0
    assert len(list(folder.iterdir())) == 4
    cache = WorldCache(folder)
    world = World((30, 20), constants.materials, CHUNK)
    number = world_seed(4, 1)
    assert cache.load(world, seed_world(world, number), number)
    assert_same(world, generated(4, (30, 20)))
    assert np.array_equal(world.initial_materials, world._mat_map)
    assert not cache.load(world, seed_world(world, 99), 99)


def test_a_damaged_world_is_named(tmp_path: pathlib.Path) -> None:
    pregenerate(tmp_path, seeds=[1], area=(9, 9))
    cache, number = WorldCache(tmp_path), world_seed(1, 1)
    world = World((9, 9), constants.materials, CHUNK)
    file = cache.file(number, (9, 9))
    whole = file.read_bytes()
    for content in (b"", b"no zip", whole[: len(whole) // 2], whole[:-1]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=file.name):
            cache.load(world, seed_world(world, number), number)
    num_refused = 0
    for position in range(0, len(whole), 3):
        altered = bytearray(whole)
        altered[position] ^= 255
        file.write_bytes(altered)
        try:
            cache.load(world, seed_world(world, number), number)
        except ValueError as error:
            num_refused += 1
            assert file.name in str(error)
        else:
            # Bytes that mean nothing, such as dates.
            assert_same(world, generated(1, (9, 9)))
    assert num_refused > len(whole) // 6
    file.write_bytes(whole)
    file.rename(cache.file(number, (8, 8)))
    small = World((8, 8), constants.materials, CHUNK)
    with pytest.raises(ValueError, match=r"size \(8, 8\), got format 1 and size \(9, 9\)"):
        cache.load(small, seed_world(small, number), number)


def test_nothing_half_written(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(stream, **arrays) -> None:  # type: ignore[no-untyped-def]
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(OSError, match="No space left"):
        pregenerate(tmp_path, seeds=[1], area=(9, 9))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_says_what_to_do(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="pregenerate"):
        WorldCache(tmp_path / "none")
