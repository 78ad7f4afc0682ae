from __future__ import annotations

import collections
from typing import Any

import crafter
import numpy as np
import pytest
from crafter import constants, objects
from numpy.typing import NDArray

from ocrl.envs.crafter_game import Game
from ocrl.envs.crafter_render import SPRITES, Layout, Renderer
from ocrl.envs.crafter_world import Arrow, Cow, Plant, Skeleton, Zombie

VIEW = (9, 9)
STEPS = 520


def started(seed: int, view: tuple[int, int] = VIEW, area: tuple[int, int] = (64, 64)) -> Game:
    game = Game(area, view, None)
    game.seed(seed)
    game.begin(None)
    return game


def crafters_frame(game: Game, size: tuple[int, int], noise_seed: int) -> NDArray[np.uint8]:
    """What crafter itself draws of this state, its noise from a fresh generator."""
    random = game.world.random
    game.world.random = np.random.RandomState(noise_seed)
    try:
        return crafter.Env.render(game, size)
    finally:
        game.world.random = random


def our_frame(renderer: Renderer, game: Game, noise_seed: int) -> NDArray[np.uint8]:
    world, player = game.world, game.player
    codes, _ = renderer.codes(world, renderer.window(player.pos, world.area))
    return renderer.frame(
        codes,
        inventory=player.inventory,
        daylight=world.daylight,
        is_sleeping=player.sleeping,
        noise=np.random.RandomState(noise_seed).uniform(32, 127, renderer.layout.canvas),
    )


def put_something(game: Game, rng: np.random.Generator) -> None:
    """An object of a random kind on a free cell in view, on any material."""
    x, y = (game.player.pos + rng.integers(-3, 4, 2)).tolist()
    world = game.world
    if not (0 <= x < world.area[0] and 0 <= y < world.area[1]) or world[x, y][1]:
        return
    facing = [(-1, 0), (1, 0), (0, -1), (0, 1)][rng.integers(4)]
    made: list[Any] = [
        Cow(world, (x, y)),
        Zombie(world, (x, y), game.player),
        Skeleton(world, (x, y), game.player),
        Arrow(world, (x, y), facing),
        Plant(world, (x, y)),
    ]
    obj = made[rng.integers(len(made))]
    if isinstance(obj, Plant):
        obj.grown = int(rng.integers(0, 600))
    world.add(obj)


def disturb(game: Game, rng: np.random.Generator) -> None:
    """Keep the player alive and bring about what random play rarely sees."""
    player, world = game.player, game.world
    for name in player.inventory:
        if rng.random() < 0.1:
            player.inventory[name] = int(rng.integers(0, 10))
    player.health = max(player.health, int(rng.integers(1, 10)))
    if rng.random() < 0.02:
        player.sleeping = not player.sleeping
    if rng.random() < 0.3:
        put_something(game, rng)
    if rng.random() < 0.3:
        x, y = player.pos + rng.integers(-3, 4, 2)
        if 0 <= x < world.area[0] and 0 <= y < world.area[1]:
            world[x, y] = constants.materials[rng.integers(len(constants.materials))]
    if rng.random() < 0.05:
        cells = np.argwhere(world._obj_map[:8] == 0)
        world.move(player, cells[rng.integers(len(cells))].tolist())


@pytest.mark.parametrize("size", [64, 72, 96, 128])
def test_pixels_are_crafters(size: int) -> None:
    game, rng = started(size), np.random.default_rng(size)
    renderer = Renderer(Layout.of((size, size), VIEW), game._textures)
    seen: collections.Counter[str] = collections.Counter()
    for step in range(STEPS):
        seen["damage"] += game.advance(int(rng.integers(len(constants.actions)))) < 0
        expected = crafters_frame(game, (size, size), step)
        frame = our_frame(renderer, game, step)
        assert frame.dtype == np.uint8
        assert np.array_equal(frame, expected), f"step {step}"
        seen["night" if game.world.daylight < 0.5 else "day"] += 1
        seen["sleep"] += game.player.sleeping
        seen["full"] += all(amount > 0 for amount in game.player.inventory.values())
        window = renderer.window(game.player.pos, game.world.area)
        _, found = renderer.codes(game.world, window)
        seen.update(obj.texture for obj in found)
        seen["edge"] += window.map[0].stop - window.map[0].start < 9
        disturb(game, rng)
    assert all(seen[name] > 5 for name in ("day", "night", "sleep", "full", "damage", "edge")), seen
    assert set(SPRITES) <= set(seen), "a sprite was never drawn"


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 72, 96, 128, 27, 100, 300])
def test_pixels_are_crafters_for_long(size: int) -> None:
    game, rng = started(size + 1), np.random.default_rng(size + 1)
    renderer = Renderer(Layout.of((size, size), VIEW), game._textures)
    for step in range(3000):
        game.advance(int(rng.integers(len(constants.actions))))
        expected = crafters_frame(game, (size, size), step)
        assert np.array_equal(our_frame(renderer, game, step), expected), f"step {step}"
        disturb(game, rng)


@pytest.mark.parametrize(
    ("size", "view"),
    [((64, 64), (7, 9)), ((90, 60), (9, 7)), ((33, 80), (4, 8)), ((64, 64), (20, 12))],
)
def test_pixels_are_crafters_in_other_views(size: tuple[int, int], view: tuple[int, int]) -> None:
    game, rng = started(1, view, (30, 20)), np.random.default_rng(1)
    renderer = Renderer(Layout.of(size, view), game._textures)
    for step in range(60):
        game.advance(int(rng.integers(len(constants.actions))))
        game.world.daylight = rng.random()
        expected = crafters_frame(game, size, step)
        assert np.array_equal(our_frame(renderer, game, step), expected), f"step {step}"
        disturb(game, rng)


def test_drawing_changes_nothing() -> None:
    game = started(3)
    game.world.daylight = 0.1
    renderer = Renderer(Layout.of((64, 64), VIEW), game._textures)
    before = game.world.random.get_state()[1].copy()
    assert np.array_equal(our_frame(renderer, game, 0), our_frame(renderer, game, 0))
    assert not np.array_equal(our_frame(renderer, game, 0), our_frame(renderer, game, 1))
    assert np.array_equal(before, game.world.random.get_state()[1])


def test_dark_frames_need_noise_of_the_right_shape() -> None:
    game = started(3)
    renderer = Renderer(Layout.of((64, 64), VIEW), game._textures)
    codes, _ = renderer.codes(game.world, renderer.window(game.player.pos, game.world.area))
    for noise in (None, np.zeros((49, 63))):
        with pytest.raises(ValueError, match=r"noise of shape \(63, 49\)"):
            renderer.frame(
                codes,
                inventory=game.player.inventory,
                daylight=0.2,
                is_sleeping=False,
                noise=noise,
            )


def slow_segmentation(
    game: Game, size: int, ground: NDArray[np.uint16], show_items: bool
) -> NDArray[np.uint16]:
    """Ownership from the textures' alpha, a pixel at a time."""
    unit = size // 9
    border = (size - 9 * unit) // 2
    ids = np.full((size, size), 65535, np.uint16)
    for cell_x in range(9):
        for cell_y in range(7):
            x, y = (game.player.pos + np.array((cell_x - 4, cell_y - 3))).tolist()
            if not (0 <= x < game.world.area[0] and 0 <= y < game.world.area[1]):
                continue
            obj = game.world[x, y][1]
            for i in range(unit):
                for j in range(unit):
                    owner = ground[cell_x, cell_y]
                    if obj is not None:
                        texture = game._textures.get(obj.texture, (unit, unit))
                        if texture[i, j, 3] > 127:
                            owner = game.world._obj_map[x, y]
                    ids[border + cell_y * unit + j, border + cell_x * unit + i] = owner
    if show_items:
        ids[border + 7 * unit : border + 9 * unit, border : border + 9 * unit] = 0
        for index, (name, amount) in enumerate(game.player.inventory.items()):
            for texture_name, offset, scale in ((name, 0.1, 0.8), (str(amount), 0.4, 0.6)):
                if amount:
                    texture = game._textures.get(texture_name, (scale * unit, scale * unit))
                    left = border + index % 9 * unit + int(offset * unit)
                    top = border + (7 + index // 9) * unit + int(offset * unit)
                    opaque = (
                        texture[..., 3] > 127 if texture.shape[2] == 4 else texture[..., 0] >= 0
                    )
                    for i, j in np.argwhere(opaque).tolist():
                        ids[top + j, left + i] = 60000 + index
    return ids


@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize("show_items", [False, True])
def test_masks_follow_opaque_pixels(size: int, show_items: bool) -> None:
    game, rng = started(5), np.random.default_rng(5)
    renderer = Renderer(Layout.of((size, size), VIEW), game._textures)
    for _ in range(12):
        for _ in range(8):
            disturb(game, rng)
        window = renderer.window(game.player.pos, game.world.area)
        codes, _ = renderer.codes(game.world, window)
        ground = rng.integers(0, 5, (9, 7)).astype(np.uint16)
        sprites = np.zeros((9, 7), np.uint32)
        sprites[window.view] = game.world._obj_map[window.map]
        ids = renderer.segmentation(
            codes,
            ground=ground,
            sprites=sprites,
            items=game.player.inventory if show_items else None,
            first_item_id=60000,
            void=65535,
        )
        assert ids.dtype == np.uint16
        assert np.array_equal(ids, slow_segmentation(game, size, ground, show_items))


def test_boxes_hold_the_opaque_pixels_exactly() -> None:
    game = started(5)
    renderer = Renderer(Layout.of((64, 64), VIEW), game._textures)
    for sprite in SPRITES:
        opaque = game._textures.get(sprite, (7, 7))[..., 3] > 127
        xs, ys = np.nonzero(opaque)
        expected = (14 + xs.min(), 35 + ys.min(), 15 + xs.max(), 36 + ys.max())
        assert renderer.box(sprite, 2, 5) == expected


def test_layout_and_its_errors() -> None:
    layout = Layout.of((64, 64), VIEW)
    assert (layout.grid, layout.unit, layout.border) == ((9, 7), (7, 7), (0, 0))
    assert layout.canvas == (63, 49)
    assert Layout.of((128, 128), VIEW).border == (1, 1)
    with pytest.raises(ValueError, match=r"at least 18 x 18 pixels .* got 17 x 64"):
        Layout.of((17, 64), VIEW)
    with pytest.raises(ValueError, match="more than 2 rows"):
        Layout.of((64, 64), (9, 2))
    with pytest.raises(ValueError, match="at least one cell"):
        Layout.of((64, 64), (0, 9))


def test_fences_are_the_only_objects_without_a_sprite() -> None:
    kinds = {kind for kind in vars(objects).values() if isinstance(kind, type)}
    drawn = {kind.__name__ for kind in kinds} - {"Object", "Fence"}
    assert drawn == {"Player", "Cow", "Zombie", "Skeleton", "Arrow", "Plant"}
