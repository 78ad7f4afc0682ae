"""Crafter (Hafner 2021, arXiv:2109.06780) as a Gymnasium environment with exact object masks.

H W image, X Y cells (x to the right, y down), M objects in view.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
from crafter import constants
from numpy.typing import ArrayLike, NDArray

from ocrl.envs.crafter_game import Game
from ocrl.envs.crafter_render import Layout, Renderer
from ocrl.envs.crafter_world import ENTITIES, Arrow, Plant, Player, WorldCache
from ocrl.envs.interface import PRESETS, ObjectEnv, object_dtype
from ocrl.envs.regions import GROUND, Regions
from ocrl.types import BACKGROUND_ID, VOID_ID

FIRST_REGION_ID = 32768
"""Smaller ids are objects, numbered by crafter from the player's 1 in order of appearance."""
FIRST_ITEM_ID = VOID_ID - len(constants.items)
"""The ids of the inventory's items, for masks that show it."""
_GROUND_MATERIALS = constants.walkable
MAX_COUNT = max(item["max"] for item in constants.items.values())
"""The most that the inventory holds of anything, and the most of every vital."""


def crafter_score(success_rates: ArrayLike | Mapping[str, float]) -> float:
    """The Crafter score: the geometric mean of success rates, shifted by one percent.

    exp(mean(ln(1 + s))) - 1 over achievements, with s in percent (Hafner 2021, section 4.2).

    Args:
        success_rates: the share of episodes, in [0,1], that unlocked each achievement.

    Returns:
        In [0,100].

    Raises:
        ValueError: if there is no rate or one is outside [0,1].
    """
    values = success_rates.values() if isinstance(success_rates, Mapping) else success_rates
    rates = np.array(list(values), np.float64)  # type: ignore[arg-type]
    if rates.size == 0 or not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"expected success rates in [0,1], got {rates.tolist()}")
    return float(np.expm1(np.log1p(100 * rates).mean()))


class CrafterEnv(ObjectEnv):
    """The game of the `crafter` package; same seed and same actions, same episode.

    What differs from `crafter.Env`:

    - The objects of a chunk have an order, so an episode follows from its seed.
    - A dark frame takes its noise from the world's generator in crafter. Here a step in the dark
      takes as many numbers from it as crafter's frame of 64 pixels would, whatever is drawn. At
      that size they are the noise; at other sizes it comes from a generator of its own, seeded by
      world and step. So an episode at 64 pixels is the one of `crafter.Env` with ordered chunks,
      pixel for pixel, and image size, `render()` and masks do not change an episode.
    - `reset(seed=s)` starts the first episode of seed s, `reset()` the next one.
    - The end is `terminated` when the player is dead, else `truncated`; a step after it raises
      `gymnasium.error.ResetNeeded`.
    - `info` has no map of materials unless asked for. It has `inventory`, `achievements` (how
      often each of the 22 was reached in this episode), `player_pos`, `discount`, `reward`,
      `episode_score` (the Crafter score of this episode alone); in an episode's last step also
      `crafter_score`, the score over all episodes that this environment has finished.

    Masks: sprites own the pixels where their alpha is above 127. Objects have crafter's index as
    id; connected regions of material other than grass, sand and path (preset `scene`) are those of
    the whole map, see `Regions`. Outside the map, in the border and (unless `inventory_in_masks`)
    in the inventory strip is void.

    Object positions are centres of cells; `health` is a number of hit points, `facing_x` and
    `facing_y` are steps of the player and arrows.
    """

    categories = ("player", "cow", "zombie", "skeleton", "arrow", "plant")
    attribute_names = ("health", "facing_x", "facing_y", "sleeping", "ripe")
    action_names = tuple(constants.actions)
    attribute_limits = MappingProxyType({"health": MAX_COUNT})
    vector_sizes = MappingProxyType({"inventory": len(constants.items)})

    def __init__(
        self,
        size: int,
        *,
        area: Sequence[int],
        view: Sequence[int],
        length: int | None,
        reward: bool = True,
        inventory_in_masks: bool = False,
        semantic_in_info: bool = False,
        world_cache: str | os.PathLike[str] | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Set up the game.

        Args:
            size: pixels of a side of the square image.
            area: (X,Y) cells of the map.
            view: (X,Y) cells in the image, the rows of the inventory included.
            length: steps after which an episode is truncated; None for endless ones.
            reward: whether steps are rewarded; `info["reward"]` is there either way.
            inventory_in_masks: give the icons of the inventory ids instead of void.
            semantic_in_info: put crafter's map of materials and objects into `info`.
            world_cache: a folder written by `crafter_world.pregenerate`; worlds that are not in it
                are generated.
            render_mode: None or "rgb_array"; `render()` works in both.

        Raises:
            ValueError: if an argument makes no picture, map or episode.
            FileNotFoundError: if there is no folder `world_cache`.
        """
        area, view = _pair("area", area), _pair("view", view)
        if length is not None and length < 1:
            raise ValueError(f"expected a length of at least one step or None, got {length}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"expected a render_mode of None or {self.metadata['render_modes']}, "
                f"got {render_mode!r}"
            )
        self.render_mode = render_mode
        layout = Layout.of((size, size), view)
        self._game = Game(area, view, length)
        self._renderer = Renderer(layout, self._game._textures)
        self._cache = None if world_cache is None else WorldCache(world_cache)
        self._is_rewarded = reward
        self._inventory_in_masks = inventory_in_masks
        self._semantic_in_info = semantic_in_info
        self._seed: int | None = None
        self._is_over = True
        self._num_finished = 0
        self._num_unlocked = dict.fromkeys(constants.achievements, 0)
        self.max_objects = layout.grid[0] * layout.grid[1]
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(constants.actions))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start the first episode of `seed`, or the next one; `options` are not read."""
        super().reset(seed=seed)
        if seed is None and self._seed is None:
            seed = int(self.np_random.integers(2**31 - 1))
        if seed is not None:
            self._seed = int(seed)
            self._game.seed(self._seed)
        self._game.begin(self._cache)
        self._regions: Regions | None = None
        self._num_replayed = 0
        self._is_over = False
        return self._draw(), self._info(0.0)

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Play one action."""
        if self._is_over:
            raise gymnasium.error.ResetNeeded("expected a call of reset(): there is no episode")
        index = int(action)
        if not 0 <= index < len(constants.actions):
            raise ValueError(
                f"expected an action in 0 ... {len(constants.actions) - 1}, got {action!r}"
            )
        reward = self._game.advance(index)
        terminated = self._game.player.health <= 0
        truncated = not terminated and self._game.is_out_of_time
        self._is_over = terminated or truncated
        info = self._info(reward)
        if self._is_over:
            self._num_finished += 1
            for name in self._game.unlocked:
                self._num_unlocked[name] += 1
            info["crafter_score"] = crafter_score(self.success_rates)
        return self._draw(), reward if self._is_rewarded else 0.0, terminated, truncated, info

    @property
    def success_rates(self) -> dict[str, float]:
        """Share of the finished episodes that unlocked each achievement; 0 if there are none."""
        total = max(1, self._num_finished)
        return {name: count / total for name, count in self._num_unlocked.items()}

    def render(self) -> NDArray[np.uint8]:
        """The current observation."""
        self._check_started()
        return self._frame.copy()

    def segmentation(self, preset: str = "entities") -> NDArray[np.uint16]:
        """Object ids (H,W) of the current frame, see `ObjectEnv.segmentation`.

        Raises:
            OverflowError: if the episode has had more objects or regions than there are ids.
        """
        if preset not in PRESETS:
            raise ValueError(f"expected a preset in {PRESETS}, got {preset!r}")
        self._check_started()
        if preset not in self._masks:
            self._masks[preset] = self._segment(with_regions=preset == "scene")
        return self._masks[preset].copy()

    def objects(self) -> NDArray[np.void]:
        """The entities in view, see `ObjectEnv.objects`."""
        self._check_started()
        table = np.zeros(len(self._found), object_dtype(len(self.attribute_names)))
        layout, count = self._renderer.layout, 0
        for obj in self._found:
            x, y = (int(a) - b for a, b in zip(obj.pos, self._window.corner, strict=True))
            box = self._renderer.box(obj.texture, x, y)
            if box is None:
                continue
            row = table[count]
            index = self._game.world._obj_map.item(*obj.pos.tolist())
            _check_entity_id(index)
            row["id"] = index
            row["category"] = ENTITIES.index(type(obj))
            row["position"] = [
                (border + (cell + 0.5) * unit) / side
                for border, cell, unit, side in zip(
                    layout.border, (x, y), layout.unit, layout.size, strict=True
                )
            ]
            row["box"] = np.array(box) / (*layout.size, *layout.size)
            row["attributes"] = _attributes(obj)
            count += 1
        return table[:count]

    def vectors(self) -> dict[str, NDArray[np.float32]]:
        """`inventory` (16,): vitals and items in the order of crafter, as shares of the most."""
        self._check_started()
        counts = np.array([*self._game.player.inventory.values()], np.float32)
        return {"inventory": counts / MAX_COUNT}

    def _check_started(self) -> None:
        if self._seed is None:
            raise gymnasium.error.ResetNeeded("expected a call of reset(): there is no frame")

    def _draw(self) -> NDArray[np.uint8]:
        game = self._game
        self._masks: dict[str, NDArray[np.uint16]] = {}
        self._window = self._renderer.window(game.player.pos, game.world.area)
        self._codes, self._found = self._renderer.codes(game.world, self._window)
        self._frame = self._renderer.frame(
            self._codes,
            inventory=game.player.inventory,
            daylight=game.world.daylight,
            is_sleeping=game.player.sleeping,
            noise=game.noise(self._renderer.layout.canvas),
        )
        return self._frame.copy()

    def _info(self, reward: float) -> dict[str, Any]:
        player = self._game.player
        num_unlocked = len(self._game.unlocked)
        info = {
            "inventory": player.inventory.copy(),
            "achievements": player.achievements.copy(),
            "discount": 1.0 - float(player.health <= 0),
            "player_pos": player.pos.copy(),
            "reward": reward,
            "episode_score": _EPISODE_SCORES[num_unlocked],
        }
        if self._semantic_in_info:
            info["semantic"] = self._game.semantic()
        return info

    def _segment(self, *, with_regions: bool) -> NDArray[np.uint16]:
        grid, window = self._renderer.layout.grid, self._window
        ground = np.full(grid, BACKGROUND_ID, np.uint16)
        sprites = np.zeros(grid, np.uint32)
        if with_regions:
            ground[window.view] = self._track_regions().labels[window.map]
        sprites[window.view] = self._game.world._obj_map[window.map]
        _check_entity_id(int(sprites.max()))
        return self._renderer.segmentation(
            self._codes,
            ground=ground,
            sprites=sprites,
            items=self._game.player.inventory if self._inventory_in_masks else None,
            first_item_id=FIRST_ITEM_ID,
            void=VOID_ID,
        )

    def _track_regions(self) -> Regions:
        """The regions of the map now, replaying what changed since they were last asked for."""
        world = self._game.world
        if self._regions is None:
            self._regions = Regions(
                _KINDS[world.initial_materials],
                first_id=FIRST_REGION_ID,
                last_id=FIRST_ITEM_ID - 1,
            )
        for x, y, material in world.changes[self._num_replayed :]:
            self._regions.change(x, y, int(_KINDS[material]))
        self._num_replayed = len(world.changes)
        return self._regions


_KINDS = np.array(
    [
        GROUND if name is None or name in _GROUND_MATERIALS else index
        for index, name in enumerate([None, *constants.materials])
    ]
)
_EPISODE_SCORES = [
    crafter_score(np.arange(len(constants.achievements)) < count)
    for count in range(len(constants.achievements) + 1)
]


def _pair(name: str, value: Sequence[int]) -> tuple[int, int]:
    pair = tuple(int(entry) for entry in value)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"expected {name} to be two positive numbers, got {value!r}")
    return pair[0], pair[1]


def _check_entity_id(index: int) -> None:
    if index >= FIRST_REGION_ID:
        raise OverflowError(
            f"expected at most {FIRST_REGION_ID - 1} objects in an episode, got more: set a "
            "shorter length"
        )


def _attributes(obj: Any) -> tuple[float, ...]:
    x, y = obj.facing if isinstance(obj, Player | Arrow) else (0, 0)
    is_sleeping = isinstance(obj, Player) and obj.sleeping
    return obj.health, x, y, is_sleeping, isinstance(obj, Plant) and obj.ripe
