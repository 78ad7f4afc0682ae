"""Crafter's picture from a tile atlas, pixel-identical to the package's, and whose pixel it is.

H W image, X Y cells in view (x to the right, y down), h w pixels of a cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from crafter import constants, engine
from numba import njit
from numpy.typing import NDArray
from PIL import Image

MATERIALS = (None, *constants.materials)
SPRITES = (
    "player-left",
    "player-right",
    "player-up",
    "player-down",
    "player-sleep",
    "cow",
    "zombie",
    "skeleton",
    "arrow-left",
    "arrow-right",
    "arrow-up",
    "arrow-down",
    "plant",
    "plant-ripe",
)
ITEMS = tuple(constants.items)
_OUTSIDE = len(MATERIALS)
_SPRITE_CODES = {name: index + 1 for index, name in enumerate(SPRITES)}
_MOST_SHOWN = 10
"""Items from this amount on show crafter's sign for an unknown number."""
_OUTSIDE_GREY = 127


@dataclass(frozen=True)
class Layout:
    """Where things are in a picture.

    Attributes:
        size: (W,H) pixels.
        grid: (X,Y) cells of the local view.
        item_rows: rows of cells below it that show the inventory.
        unit: (w,h) pixels of a cell.
        border: (left, top) pixels that show nothing.
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    item_rows: int
    unit: tuple[int, int]
    border: tuple[int, int]

    @classmethod
    def of(cls, size: tuple[int, int], view: tuple[int, int]) -> Layout:
        """Lay out a picture of `size` pixels (W,H) over `view` cells, the inventory's included.

        Raises:
            ValueError: if there is no room for the map or a cell is under 2 pixels.
        """
        if view[0] < 1 or view[1] < 1:
            raise ValueError(f"expected a view of at least one cell a side, got {view}")
        item_rows = -(-len(ITEMS) // view[0])
        if view[1] <= item_rows:
            raise ValueError(
                f"expected a view of more than {item_rows} rows when it is {view[0]} wide (the "
                f"inventory takes {item_rows}), got {view[1]}"
            )
        unit = (size[0] // view[0], size[1] // view[1])
        if min(unit) < 2:
            raise ValueError(
                f"expected a size of at least {2 * view[0]} x {2 * view[1]} pixels for a view of "
                f"{view[0]} x {view[1]} cells, got {size[0]} x {size[1]}"
            )
        border = ((size[0] - unit[0] * view[0]) // 2, (size[1] - unit[1] * view[1]) // 2)
        return cls(size, (view[0], view[1] - item_rows), item_rows, unit, border)

    @property
    def canvas(self) -> tuple[int, int]:
        """(W,H) pixels of the local view: as many noise values a dark frame needs."""
        return self.grid[0] * self.unit[0], self.grid[1] * self.unit[1]


class Renderer:
    """Draws frames and ownership masks of one size.

    Each material, each sprite blended over each material, and each item with each amount is drawn
    once, beforehand. Noise is an argument, so drawing changes nothing.
    """

    def __init__(self, layout: Layout, textures: engine.Textures) -> None:
        self.layout = layout
        self._tiles, self._opaque = _draw_tiles(textures, layout.unit)
        self._items, self._items_opaque = _draw_items(textures, layout)
        self._sprite_boxes = {
            name: _box(self._opaque[code]) for name, code in _SPRITE_CODES.items()
        }
        self._blend = _grey_blend(0.4)
        self._vignette = _vignette(*layout.canvas)
        self._strip_amounts: tuple[int, ...] = ()

    def window(self, center: NDArray[np.integer], area: tuple[int, int]) -> Window:
        """Which cells of a map are in view."""
        return Window.around(center.tolist(), self.layout.grid, area)

    def codes(self, world: Any, window: Window) -> tuple[NDArray[np.int64], list[Any]]:
        """What to draw in each cell in view, and the objects in view in order of index.

        Returns:
            (2,X,Y): the material (or outside) and the sprite (0 for none).
        """
        codes = np.zeros((2, *self.layout.grid), np.int64)
        codes[0] = _OUTSIDE
        codes[0][window.view] = world._mat_map[window.map]
        indices = world._obj_map[window.map]
        found = [world._objects[index] for index in np.sort(indices[indices > 0]).tolist()]
        left, top = window.corner
        for obj in found:
            x, y = obj.pos.tolist()
            codes[1, x - left, y - top] = _SPRITE_CODES[obj.texture]
        return codes, found

    def frame(
        self,
        codes: NDArray[np.int64],
        *,
        inventory: dict[str, int],
        daylight: float,
        is_sleeping: bool,
        noise: NDArray[np.float64] | None,
    ) -> NDArray[np.uint8]:
        """Draw a frame.

        Args:
            codes: (2,X,Y) from `codes`.
            inventory: amount of each item.
            daylight: 0 to 1; below 0.5 the frame is noisy.
            is_sleeping: whether the player sleeps.
            noise: (W,H) of `Layout.canvas` in [32,127), read below a daylight of 0.5.

        Returns:
            (H,W,3).
        """
        layout = self.layout
        frame = np.zeros((layout.size[1], layout.size[0], 3), np.uint8)
        if daylight >= 0.5:
            noise = self._vignette  # Not read; any array of the right shape will do.
        elif noise is None or noise.shape != layout.canvas:
            raise ValueError(
                f"expected noise of shape {layout.canvas} at a daylight of {daylight:.2f}, got "
                f"{None if noise is None else noise.shape}"
            )
        _paint(
            frame,
            codes,
            self._tiles,
            layout.border,
            float(daylight),
            is_sleeping,
            noise,
            self._vignette,
            self._blend,
        )
        strip = self._strip(tuple(inventory.values()))
        x, y = layout.border[0], layout.border[1] + layout.canvas[1]
        frame[y : y + strip.shape[0], x : x + strip.shape[1]] = strip
        return frame

    def _strip(self, amounts: tuple[int, ...]) -> NDArray[np.uint8]:
        """The inventory's pixels; the last strip is kept, as inventories rarely change."""
        if amounts != self._strip_amounts:
            columns, (width, height) = self.layout.grid[0], self.layout.unit
            strip = np.zeros((self.layout.item_rows * height, columns * width, 3), np.uint8)
            for index, amount in enumerate(amounts):
                if amount >= 1:
                    x, y = index % columns * width, index // columns * height
                    strip[y : y + height, x : x + width] = self._items[index][
                        min(amount, _MOST_SHOWN)
                    ]
            self._strip_amounts, self._strip_pixels = amounts, strip
        return self._strip_pixels

    def box(self, sprite: str, x: int, y: int) -> tuple[int, int, int, int] | None:
        """Left, top, right, bottom pixels of a sprite's opaque part in the cell (x, y) of the view.

        None if the sprite has no opaque pixel at this size.
        """
        box = self._sprite_boxes[sprite]
        if box is None:
            return None
        left = self.layout.border[0] + x * self.layout.unit[0]
        top = self.layout.border[1] + y * self.layout.unit[1]
        return left + box[0], top + box[1], left + box[2], top + box[3]

    def segmentation(
        self,
        codes: NDArray[np.int64],
        *,
        ground: NDArray[np.uint16],
        sprites: NDArray[np.integer],
        items: dict[str, int] | None,
        first_item_id: int,
        void: int,
    ) -> NDArray[np.uint16]:
        """Say whose each pixel is: a sprite's where it is opaque, else the cell's.

        Args:
            codes: (2,X,Y) from `codes`.
            ground: (X,Y) ids of what lies on the cells.
            sprites: (X,Y) ids of the objects that stand on them.
            items: the inventory, to give its icons ids and its strip 0; None makes it void.
            first_item_id: the id of the first item.
            void: the id of pixels that show no map.

        Returns:
            (H,W) ids.
        """
        layout = self.layout
        ids = np.full((layout.size[1], layout.size[0]), void, np.uint16)
        _own(ids, codes, ground, sprites, self._opaque, layout.border)
        if items is None:
            return ids
        columns, (width, height), (left, top) = layout.grid[0], layout.unit, layout.border
        strip_top = top + layout.grid[1] * height
        ids[strip_top : strip_top + layout.item_rows * height, left : left + columns * width] = 0
        for index, amount in enumerate(items.values()):
            if amount < 1:
                continue
            x = left + index % columns * width
            y = strip_top + index // columns * height
            opaque = self._items_opaque[index][min(amount, _MOST_SHOWN)]
            ids[y : y + height, x : x + width][opaque] = first_item_id + index
        return ids


@dataclass(frozen=True)
class Window:
    """The part of a map that is in view.

    Attributes:
        corner: the cell of the map at the view's top left, which may be outside the map.
        map: the visible cells, as an index of the map.
        view: the same cells, as an index of the view.
    """

    corner: tuple[int, int]
    map: tuple[slice, slice]
    view: tuple[slice, slice]

    @classmethod
    def around(
        cls, center: tuple[int, int], grid: tuple[int, int], area: tuple[int, int]
    ) -> Window:
        """The window that crafter shows when the player is at `center`."""
        left, top = center[0] - grid[0] // 2, center[1] - grid[1] // 2
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + grid[0], area[0]), min(top + grid[1], area[1])
        return cls(
            (left, top),
            (slice(x0, x1), slice(y0, y1)),
            (slice(x0 - left, x1 - left), slice(y0 - top, y1 - top)),
        )


def _draw_tiles(
    textures: engine.Textures, unit: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Every cell there can be: (material or outside, sprite or none, h, w, 3); opaque sprites."""
    width, height = unit
    tiles = np.empty((_OUTSIDE + 1, len(SPRITES) + 1, height, width, 3), np.uint8)
    opaque = np.zeros((len(SPRITES) + 1, height, width), np.bool_)
    tiles[_OUTSIDE] = _OUTSIDE_GREY
    for material, name in enumerate(MATERIALS):
        tiles[material] = textures.get(name, unit).transpose(1, 0, 2)[..., :3]
    for name, code in _SPRITE_CODES.items():
        texture = textures.get(name, unit).transpose(1, 0, 2)
        opaque[code] = _opaque(texture)
        for tile in tiles[:, code]:
            tile[:] = _over(texture, tile)
    return tiles, opaque


def _draw_items(
    textures: engine.Textures, layout: Layout
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Every item with every amount: (item, amount, h, w, 3) and where it is not background.

    Crafter rounds positions after adding the offset inside the cell to the cell's own, so an item
    is drawn at its own place in the strip.
    """
    width, height = layout.unit
    columns = layout.grid[0]
    amounts = range(1, _MOST_SHOWN + 1)
    cells = np.zeros((len(ITEMS), _MOST_SHOWN + 1, height, width, 3), np.uint8)
    opaque = np.zeros(cells.shape[:-1], np.bool_)
    unit = np.array(layout.unit)
    for index, item in enumerate(ITEMS):
        corner = np.array((index % columns, index // columns)) * unit
        for amount in amounts:
            number = str(amount) if amount < _MOST_SHOWN else "unknown"
            for name, offset, scale in ((item, 0.1, 0.8), (number, 0.4, 0.6)):
                x, y = (corner + offset * unit).astype(np.int32) - corner
                texture = textures.get(name, scale * unit).transpose(1, 0, 2)
                rows, columns_ = slice(y, y + texture.shape[0]), slice(x, x + texture.shape[1])
                part = cells[index, amount, rows, columns_]
                part[:] = _over(texture, part)
                opaque[index, amount, rows, columns_] |= _opaque(texture)
    return cells, opaque


def _opaque(texture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    if texture.shape[-1] < 4:
        return np.ones(texture.shape[:2], np.bool_)
    return texture[..., 3] > 127


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _over(texture: NDArray[np.uint8], below: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blend a texture over what is there, in float32 and cut to integers as crafter does."""
    if texture.shape[-1] < 4:
        return texture
    alpha = texture[..., 3:].astype(np.float32) / 255
    color, current = (array.astype(np.float32) / 255 for array in (texture[..., :3], below))
    return (255 * (alpha * color + (1 - alpha) * current)).astype(np.uint8)


def _grey_blend(factor: float) -> NDArray[np.uint8]:
    """Pillow's blend of every grey (row) with every value (column), made by Pillow itself."""
    greys, values = (axis.astype(np.uint8) for axis in np.indices((256, 256)))
    return np.asarray(Image.blend(Image.fromarray(greys), Image.fromarray(values), factor))


def _vignette(width: int, height: int) -> NDArray[np.float64]:
    xs, ys = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    return np.ascontiguousarray(1 - np.exp(-0.5 * (xs**2 + ys**2) / (0.5**2)).T)


@njit(cache=True)
def _paint(frame, codes, tiles, border, daylight, is_sleeping, noise, vignette, blend):
    """Draw the cells in crafter's light: noise and vignette, washed-out blue night, sleep."""
    height, width = tiles.shape[2], tiles.shape[3]
    is_noisy = daylight < 0.5
    amount = 2 * (0.5 - daylight)
    darkness = 1 - daylight
    night_tint = (0.5 * 0.0, 0.5 * 16.0, 0.5 * 64.0)
    sleep_tint = (0.5 * 0.0, 0.5 * 0.0, 0.5 * 16.0)
    pixel = np.empty(3, np.uint8)
    for cell_y in range(codes.shape[2]):
        for row in range(height):
            y = cell_y * height + row
            for cell_x in range(codes.shape[1]):
                tile = tiles[codes[0, cell_x, cell_y], codes[1, cell_x, cell_y]]
                for column in range(width):
                    x = cell_x * width + column
                    for channel in range(3):
                        pixel[channel] = tile[row, column, channel]
                    if is_noisy:
                        mask = amount * vignette[x, y]
                        for channel in range(3):
                            value = (1 - mask) * tile[row, column, channel] + mask * noise[x, y]
                            pixel[channel] = np.uint8(value)
                    grey = _luma(pixel)
                    for channel in range(3):
                        night = 0.5 * blend[grey, pixel[channel]] + night_tint[channel]
                        day = daylight * tile[row, column, channel]
                        frame[border[1] + y, border[0] + x, channel] = np.uint8(
                            day + darkness * night
                        )
                    if is_sleeping:
                        grey = _luma(frame[border[1] + y, border[0] + x])
                        for channel in range(3):
                            frame[border[1] + y, border[0] + x, channel] = np.uint8(
                                0.5 * grey + sleep_tint[channel]
                            )


@njit(cache=True)
def _luma(pixel):
    """Pillow's RGB to L."""
    red, green, blue = int(pixel[0]), int(pixel[1]), int(pixel[2])
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


@njit(cache=True)
def _own(ids, codes, ground, sprites, opaque, border):
    """Write the ids of cells and sprites; cells outside the map keep what is there."""
    height, width = opaque.shape[1], opaque.shape[2]
    for cell_x in range(codes.shape[1]):
        for cell_y in range(codes.shape[2]):
            if codes[0, cell_x, cell_y] == _OUTSIDE:
                continue
            sprite = codes[1, cell_x, cell_y]
            for row in range(height):
                for column in range(width):
                    y = border[1] + cell_y * height + row
                    x = border[0] + cell_x * width + column
                    if sprite > 0 and opaque[sprite, row, column]:
                        ids[y, x] = sprites[cell_x, cell_y]
                    else:
                        ids[y, x] = ground[cell_x, cell_y]
