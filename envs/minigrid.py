"""MiniGrid and BabyAI with the official pictures, drawn faster, and exact object masks.

Chevalier-Boisvert et al., "Minigrid & Miniworld" (2023, arXiv:2306.13831) and "BabyAI" (2018,
arXiv:1810.08272). H W image, X Y cells of the grid, v cells of a side of the agent's view, t pixels
of a side of a tile, M objects.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import gymnasium
import minigrid  # noqa: F401  registers the ids
import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, STATE_TO_IDX
from minigrid.core.world_object import WorldObj
from minigrid.envs.babyai.core import roomgrid_level
from minigrid.minigrid_env import MiniGridEnv as Game
from numpy.typing import NDArray

from ocrl.envs.interface import PRESETS, ObjectEnv, object_dtype
from ocrl.envs.minigrid_mission import MissionCode
from ocrl.envs.minigrid_render import (
    EMPTY_CODE,
    FORWARD,
    WALL_CODE,
    TileAtlas,
    paint,
    paint_ids,
    view_of_agent,
)
from ocrl.envs.policies_minigrid import MiniGridBot
from ocrl.envs.regions import Regions
from ocrl.envs.registry import unknown
from ocrl.envs.sprites_render import tight_boxes
from ocrl.types import VOID_ID

AGENT_ID = 1
FIRST_REGION_ID = 32768
OUTSIDE_ID = VOID_ID - 1
"""Region id of the walls that a partial view shows beyond the grid."""

_MATERIALS = ("wall", "floor", "goal", "lava")
_UP = 3

# BabyAI prints a line whenever it throws a layout away.
vars(roomgrid_level)["print"] = lambda *_: None


class MiniGridEnv(ObjectEnv):
    """Any MiniGrid or BabyAI id as pixels, with `info["mission"]` and `info["is_success"]`.

    At the same tile size a frame equals `RGBImgObsWrapper`'s (`view="full"`) or
    `RGBImgPartialObsWrapper`'s (`view="partial"`) pixel by pixel. With `size` the largest tile that
    fits is taken and the picture stands in the middle of black, which is void in the masks: no
    pixel is ever resized, so the masks stay exact.

    Masks. An object keeps its id wherever it is put or carried; what was in a box has its own. A
    pixel belongs to what covers more than half of it, the agent on top of what it stands on.
    `entities` are the agent (id 1), doors, keys, balls and boxes; `scene` adds connected regions
    of walls, lava, goals and coloured floor, one id each. In a partial view cells that the agent
    does not see are drawn as empty ground, as the official wrapper draws them, and are void; a
    carried object lies under the agent there, and is nowhere in a full view.

    `objects()` has the colour as its number in MiniGrid, the state of doors (0 open, 1 closed, 2
    locked; 0 for all else) and the direction of the agent as drawn (0 right, 1 down, 2 left, 3 up).
    """

    categories = ("agent", "door", "key", "ball", "box")
    attribute_names = ("color", "state", "direction")
    attribute_classes = MappingProxyType(
        {
            "color": tuple(sorted(COLOR_TO_IDX, key=COLOR_TO_IDX.__getitem__)),
            "state": tuple(sorted(STATE_TO_IDX, key=STATE_TO_IDX.__getitem__)),
            "direction": ("right", "down", "left", "up"),
        }
    )
    render_mode = "rgb_array"

    def __init__(
        self,
        id: str,
        *,
        view: str,
        size: int | None,
        tile_size: int | None,
        highlight: bool,
        max_objects: int,
        arguments: Mapping[str, Any],
    ) -> None:
        """Set up a game.

        Args:
            id: a Gymnasium id of MiniGrid or BabyAI.
            view: `full`, or `partial` for what the agent has before it.
            size: pixels of a side of the square image; None for the picture as it is.
            tile_size: pixels of a side of a tile where `size` is None, else None.
            highlight: lighten the cells that the agent sees; the official wrappers do.
            max_objects: no frame has more objects, the agent included; for arrays of fixed size.
            arguments: further arguments of the game's class, such as `agent_view_size`.

        Raises:
            ValueError: if the id or the view does not exist, if `size` is smaller than the grid or
                if not exactly one of `size` and `tile_size` is given.
        """
        known = [name for name in gymnasium.registry if name.startswith(("MiniGrid-", "BabyAI-"))]
        if id not in known:
            raise ValueError(_unknown_id(id, known))
        if view not in ("full", "partial"):
            raise ValueError(unknown("view", view, ("full", "partial")))
        if (size is None) == (tile_size is None):
            raise ValueError(
                f"expected one of size and tile_size and None for the other, got size {size} and "
                f"tile_size {tile_size}"
            )
        game = gymnasium.make(id, disable_env_checker=True, **arguments).unwrapped
        self._game = cast(Game, game)
        self.id = id
        self.max_objects = max_objects
        # The game makes its symbolic observation in every step; nobody reads it here.
        self._game.gen_obs = lambda: {}  # type: ignore[method-assign]
        self._is_full = view == "full"
        self._highlight = highlight
        side = self._game.agent_view_size
        columns, rows = (self._game.width, self._game.height) if self._is_full else (side, side)
        if size is not None:
            tile_size = size // max(columns, rows)
            if tile_size < 1:
                raise ValueError(
                    f"size: expected at least {max(columns, rows)}, one pixel for each cell of "
                    f"{id}, got {size}"
                )
        assert tile_size is not None
        height, width = rows * tile_size, columns * tile_size
        frame_height, frame_width = (height, width) if size is None else (size, size)
        self._atlas = TileAtlas(tile_size)
        self._canvas = np.zeros((frame_height, frame_width, 3), dtype=np.uint8)
        top, left = (frame_height - height) // 2, (frame_width - width) // 2
        self._window = (slice(top, top + height), slice(left, left + width))
        self._drawn = np.full((rows, columns), -1, dtype=np.int64)
        self._origin = np.array([left, top]) / tile_size
        self._bot = MiniGridBot()
        self._mission_code = MissionCode(self._game)
        self.vector_sizes = {"mission": self._mission_code.size}
        self.observation_space = gymnasium.spaces.Box(0, 255, self._canvas.shape, np.uint8)
        self.action_space = self._game.action_space
        self.action_names = tuple(action.name for action in self._game.actions)

    @property
    def game(self) -> Game:
        """The game itself, with everything there is to know."""
        return self._game

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        self._game.reset(seed=seed, options=options)
        self._bot.reset()
        self._mission: NDArray[np.float32] | None = None
        self._cells: list[WorldObj | None] = list(self._game.grid.grid)
        self._start = self._cells
        self._changes: list[tuple[int, WorldObj | None]] = []
        self._regions: Regions | None = None
        self._ids: dict[WorldObj, int] = {}
        self._doors = [item for item in self._cells if item is not None and item.type == "door"]
        self._door_states = [item.encode() for item in self._doors]
        shape = (self._game.height, self._game.width)
        self._codes = np.array([self._atlas.code(item) for item in self._cells]).reshape(shape)
        self._cell_ids = np.array([self._identify(item) for item in self._cells]).reshape(shape)
        return self._draw(), self._info(False)

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Act in the game."""
        _, reward, terminated, truncated, _ = self._game.step(action)
        self._follow()
        is_success = terminated and float(reward) > 0.0
        return self._draw(), float(reward), terminated, truncated, self._info(is_success)

    def _info(self, is_success: bool) -> dict[str, Any]:
        return {"mission": self._game.mission, "is_success": is_success}

    def vectors(self) -> dict[str, NDArray[np.float32]]:
        """`mission` (W,): what is asked for, see `MissionCode`."""
        if self._mission is None:
            self._mission = self._mission_code(self._game)
        return {"mission": self._mission.copy()}

    def _identify(self, item: WorldObj | None) -> int:
        """The id of what a cell holds, 0 for material; boxes and their contents in turn."""
        if item is None or item.type in _MATERIALS:
            return 0
        if item not in self._ids:
            self._ids[item] = AGENT_ID + 1 + len(self._ids)
            self._identify(item.contains)
        return self._ids[item]

    def _follow(self) -> None:
        """Take over what has changed in the grid; comparing lists of the same objects is cheap."""
        cells = self._game.grid.grid
        if cells != self._cells:
            for index, item in enumerate(cells):
                if item is not self._cells[index]:
                    self._changes.append((index, item))
                    self._codes.flat[index] = self._atlas.code(item)
                    self._cell_ids.flat[index] = self._identify(item)
            self._cells = list(cells)
        for number, door in enumerate(self._doors):
            state = door.encode()
            if state != self._door_states[number]:
                self._door_states[number] = state
                places = [index for index, item in enumerate(self._cells) if item is door]
                self._codes.flat[places] = self._atlas.code(door)

    def _agent_cell(self) -> tuple[int, int]:
        x, y = self._game.agent_pos
        return int(x), int(y)

    def _look(self) -> None:
        """Find out what the agent has before it in this frame, for the picture and the masks."""
        self._view_cells, self._seen = view_of_agent(
            self._codes,
            self._atlas.is_opaque,
            self._agent_cell(),
            FORWARD[self._game.agent_dir],
            self._game.see_through_walls,
            self._game.agent_view_size,
        )

    def _shown(
        self, table: NDArray[np.int64], outside: int, hidden: int, carried: int
    ) -> NDArray[np.int64]:
        """What the agent's view shows of a table over the grid's cells, (v,v)."""
        columns, rows = self._view_cells[..., 0], self._view_cells[..., 1]
        height, width = table.shape
        is_inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        shown = np.where(is_inside, table[rows % height, columns % width], outside)
        shown = np.where(self._seen, shown, hidden)
        shown[-1, len(shown) // 2] = carried
        return shown

    def _view_codes(self) -> NDArray[np.int64]:
        carried = self._atlas.code(self._game.carrying)
        return self._shown(self._codes, WALL_CODE, EMPTY_CODE, carried)

    def _draw(self) -> NDArray[np.uint8]:
        atlas, direction = self._atlas, int(self._game.agent_dir)
        if self._highlight or not self._is_full:
            self._look()
        if self._is_full:
            (x, y), codes = self._agent_cell(), self._codes
            wanted = atlas.plain[codes]
            if self._highlight:
                columns, rows = self._view_cells[self._seen].T
                is_inside = (columns >= 0) & (columns < codes.shape[1])
                is_inside &= (rows >= 0) & (rows < codes.shape[0])
                columns, rows = columns[is_inside], rows[is_inside]
                wanted[rows, columns] = atlas.lit[codes[rows, columns]]
        else:
            x, y, direction = self._game.agent_view_size // 2, self._game.agent_view_size - 1, _UP
            codes = self._view_codes()
            wanted = atlas.plain[codes]
            if self._highlight:
                wanted = np.where(self._seen, atlas.lit[codes], wanted)
        wanted[y, x] = atlas.agent(int(codes[y, x]), direction, self._highlight)
        paint(self._canvas[self._window], self._drawn, wanted, atlas.tiles)
        return self._canvas.copy()

    def render(self) -> NDArray[np.uint8]:
        """The current frame (H,W,3)."""
        return self._canvas.copy()

    def segmentation(self, preset: str = "entities") -> NDArray[np.uint16]:
        """Object ids (H,W), see `ObjectEnv.segmentation`.

        Raises:
            ValueError: if `preset` is not one of `PRESETS`.
        """
        if preset not in PRESETS:
            raise ValueError(unknown("preset", preset, PRESETS))
        ids, outside = self._cell_ids, 0
        if preset == "scene":
            ids, outside = np.where(ids > 0, ids, self._region_labels()), OUTSIDE_ID
        codes, direction = self._codes, int(self._game.agent_dir)
        x, y = self._agent_cell()
        if not self._is_full:
            carried = self._identify(self._game.carrying)
            ids = self._shown(ids, outside, VOID_ID, carried)
            codes, direction = self._view_codes(), _UP
            x, y = self._game.agent_view_size // 2, self._game.agent_view_size - 1
        atlas, size = self._atlas, self._atlas.tile_size
        segmentation = np.full(self._canvas.shape[:2], VOID_ID, dtype=np.uint16)
        inner = segmentation[self._window]
        paint_ids(inner, ids.astype(np.uint16), codes, atlas.covered)
        if not self._is_full:
            hidden = np.kron(ids == VOID_ID, np.ones((size, size), dtype=np.bool_))
            inner[hidden] = VOID_ID
        tile = inner[y * size : (y + 1) * size, x * size : (x + 1) * size]
        tile[atlas.agent_covered[direction]] = AGENT_ID
        return segmentation

    def _region_labels(self) -> NDArray[np.int64]:
        """Ids (Y,X) of regions of material, as they have come about since the episode began."""
        shape = self._codes.shape
        if self._regions is None:
            kinds = np.array([_material(item) for item in self._start]).reshape(shape)
            self._regions = Regions(kinds, first_id=FIRST_REGION_ID, last_id=OUTSIDE_ID - 1)
        for index, item in self._changes:
            self._regions.change(*divmod(index, shape[1]), _material(item))
        self._changes.clear()
        return self._regions.labels.astype(np.int64)

    def objects(self) -> NDArray[np.void]:
        """The `entities` with at least one pixel; boxes are tight around their pixels.

        Raises:
            ValueError: if there are more than `max_objects`.
        """
        ids = self.segmentation()
        boxes = tight_boxes(ids, AGENT_ID + len(self._ids))
        visible = np.flatnonzero(boxes[:, 2] > 0)
        if len(visible) > self.max_objects:
            raise ValueError(
                f"max_objects: expected at least {len(visible)}, as many objects as {self.id} "
                f"shows, got {self.max_objects}"
            )
        items = list(self._ids)
        places = self._places()
        height, width = ids.shape
        scale = np.array([width, height], dtype=np.float64)
        table = np.zeros(len(visible), dtype=object_dtype(len(self.attribute_names)))
        table["id"] = visible + 1
        table["box"] = boxes[visible] / np.tile(scale, 2)
        for row, label in zip(table, visible + 1, strict=True):
            center = (np.array(places[int(label)]) + 0.5 + self._origin) * self._atlas.tile_size
            row["position"] = center / scale
            if label == AGENT_ID:
                direction = int(self._game.agent_dir) if self._is_full else _UP
                row["attributes"] = (COLOR_TO_IDX["red"], 0, direction)
            else:
                item = items[label - AGENT_ID - 1]
                row["category"] = self.categories.index(item.type)
                row["attributes"] = (*item.encode()[1:], 0)
        return table

    def _places(self) -> dict[int, tuple[int, int]]:
        """Column and row in the picture by id."""
        if self._is_full:
            ids, agent = self._cell_ids, self._agent_cell()
        else:
            carried = self._identify(self._game.carrying)
            ids = self._shown(self._cell_ids, 0, 0, carried)
            agent = (self._game.agent_view_size // 2, self._game.agent_view_size - 1)
        places = {int(ids[y, x]): (int(x), int(y)) for y, x in np.argwhere(ids > 0)}
        return places | {AGENT_ID: agent}

    def scripted_action(self, rng: np.random.Generator) -> int:
        """What the scripted player does now, see `MiniGridBot`; random in part, by `rng` alone."""
        return self._bot(self._game, rng)

    def close(self) -> None:
        """Close the game."""
        self._game.close()


def _material(item: WorldObj | None) -> int:
    """The kind of region that a cell belongs to, 0 for ground and objects."""
    if item is None or item.type not in _MATERIALS:
        return 0
    kind, color, _ = item.encode()
    return 1 + kind * len(COLOR_TO_IDX) + color


def _unknown_id(name: str, known: list[str]) -> str:
    lowered = {entry.lower(): entry for entry in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.4)
    listed = ", ".join(lowered[entry] for entry in close) or ", ".join(known[:3])
    hint = f" (did you mean {lowered[close[0]]!r}?)" if close else ""
    return f"unknown MiniGrid id {name!r}{hint}: expected one of {len(known)}, such as {listed}"
