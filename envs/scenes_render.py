"""Pictures of bodies on a studio's ground: soft shadows, matte and metal, smooth edges.

M bodies, L lights, H W image. Colours are linear until the last step. Lengths and bodies as in
`ocrl.envs.scenes_geometry`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ocrl.envs.scenes_geometry import (
    BACKDROP,
    BLUE,
    BOUND,
    GREEN,
    GROUND,
    HALF_HEIGHT,
    HALF_WIDTH,
    IS_METAL,
    RED,
    X,
    Y,
    Z,
    cast,
    direction,
    empty_distance,
    hit,
    nearest,
    normal,
    screen_boxes,
)

COLORS: dict[str, tuple[int, int, int]] = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
"""CLEVR's colours by name; a colour's number is its place here."""
MATERIALS = ("rubber", "metal")
"""Names of the materials; a material's number is its place here."""

LIGHTS = np.array(
    [
        [-2.5, -5.0, 6.5, 0.9, 0.95],
        [6.5, 2.0, 5.0, 1.2, 0.22],
        [-3.5, 5.5, 6.0, 1.2, 0.25],
    ]
)
"""(L,5) key, fill and back light: a sphere's centre and radius, and how bright it is."""
LIGHT_SAMPLES = 4
_GAMMA = 2.2
CONTRAST = 0.03
_GROUND = (0.40, 0.40, 0.395)
HAZE_FROM, HAZE_UNTIL = 9.0, 30.0
SKY_LIGHT, BOUNCE = 0.34, 0.14
LEVELS = 4096
DISPLAY = np.round(255 * np.linspace(0.0, 1.0, LEVELS) ** (1 / _GAMMA)).astype(np.uint8)


def linear_colors(colors: NDArray[np.integer]) -> NDArray[np.float64]:
    """Colours (M,3) of a display, from 0 to 255, as the amounts of light they stand for."""
    return (np.asarray(colors) / 255.0) ** _GAMMA


def light_pattern(supersampling: int) -> NDArray[np.float64]:
    """Points (P,2) spread over the unit disc, from which a pixel's samples look at a light.

    Any `LIGHT_SAMPLES` of them that lie `supersampling`^2 apart are spread over it too.
    """
    index = np.arange(LIGHT_SAMPLES * supersampling**2)
    radius = np.sqrt((index + 0.5) / len(index))
    angle = index * math.pi * (3.0 - math.sqrt(5.0))
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])


@njit(cache=True, error_model="numpy")
def shadow_circles(bodies: NDArray[np.float64], lights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Circles on the ground that hold each body's shadow of each light: x, y, radius, (L,M,3).

    A ray from the ground to a light passes the height z of a body's side where it has gone the
    share k = z / (height of the light) of its way. What it starts from so that it passes through
    the body's footprint there is a disc, whose centre and radius are linear in k / (1 - k).
    """
    circles = np.empty((len(lights), len(bodies), 3))
    for number in range(len(lights)):
        for index in range(len(bodies)):
            lowest = lights[number, 2] - lights[number, 3]
            share = (bodies[index, Z] + bodies[index, HALF_HEIGHT]) / lowest
            reach = share / (1.0 - share) if share < 1.0 else math.inf
            near = bodies[index, HALF_WIDTH] * math.sqrt(2.0)
            far = near * (1.0 + reach) + lights[number, 3] * reach
            away_x = (bodies[index, X] - lights[number, 0]) * reach
            away_y = (bodies[index, Y] - lights[number, 1]) * reach
            length = math.sqrt(away_x * away_x + away_y * away_y)
            radius = max(0.5 * (near + far + length), far)
            shift = min((radius - near) / length, 1.0) if length > 0.0 else 0.0
            circles[number, index, 0] = bodies[index, X] + away_x * shift
            circles[number, index, 1] = bodies[index, Y] + away_y * shift
            circles[number, index, 2] = radius
    return circles


@njit(cache=True, error_model="numpy", forceinline=True)
def _light_share(
    x: float,
    y: float,
    z: float,
    skipped: int,
    lights: NDArray[np.float64],
    number: int,
    bodies: NDArray[np.float64],
    circles: NDArray[np.float64],
    pattern: NDArray[np.float64],
    phase: int,
) -> float:
    """How much of a light is seen from a point, from 0 to 1, by `LIGHT_SAMPLES` rays."""
    to_x, to_y, to_z = lights[number, 0] - x, lights[number, 1] - y, lights[number, 2] - z
    unit_x = unit_y = unit_z = spread = side_x = side_y = up_x = up_y = up_z = 0.0
    has_sides = False
    blocked = 0
    for index in range(len(bodies)):
        if index == skipped:
            continue
        if skipped == GROUND:
            gap_x, gap_y = circles[number, index, 0] - x, circles[number, index, 1] - y
            if gap_x * gap_x + gap_y * gap_y > circles[number, index, 2] ** 2:
                continue
        if not has_sides:
            away = math.sqrt(to_x * to_x + to_y * to_y + to_z * to_z)
            unit_x, unit_y, unit_z = to_x / away, to_y / away, to_z / away
            spread = lights[number, 3] / away
            flat = math.sqrt(unit_x * unit_x + unit_y * unit_y)
            side_x, side_y = (-unit_y / flat, unit_x / flat) if flat > 0.0 else (1.0, 0.0)
            up_x, up_y, up_z = -unit_z * side_y, unit_z * side_x, unit_x * side_y - unit_y * side_x
            has_sides = True
        # The rays to the light fill a cone; most bodies are wholly beside it.
        gap_x, gap_y, gap_z = bodies[index, X] - x, bodies[index, Y] - y, bodies[index, Z] - z
        along = gap_x * unit_x + gap_y * unit_y + gap_z * unit_z
        across = gap_x * gap_x + gap_y * gap_y + gap_z * gap_z - along * along
        reach = bodies[index, BOUND] + spread * max(along, 0.0)
        if along < -bodies[index, BOUND] or across > reach * reach:
            continue
        for sample in range(LIGHT_SAMPLES):
            if blocked & (1 << sample):
                continue
            point = sample * (len(pattern) // LIGHT_SAMPLES) + phase
            right = lights[number, 3] * pattern[point, 0]
            up = lights[number, 3] * pattern[point, 1]
            dx = to_x + right * side_x + up * up_x
            dy = to_y + right * side_y + up * up_y
            dz = to_z + up * up_z
            if hit(bodies, index, x, y, z, dx, dy, dz) < 1.0:
                blocked |= 1 << sample
    if blocked == 0:
        return 1.0
    share = LIGHT_SAMPLES
    for sample in range(LIGHT_SAMPLES):
        share -= (blocked >> sample) & 1
    return share / LIGHT_SAMPLES


@njit(cache=True, error_model="numpy", forceinline=True)
def _openness(
    x: float,
    y: float,
    z: float,
    nx: float,
    ny: float,
    nz: float,
    skipped: int,
    bodies: NDArray[np.float64],
) -> float:
    """How much of the light from all sides reaches a point, with every body taken for a ball."""
    share = 1.0
    for index in range(len(bodies)):
        if index == skipped:
            continue
        gap_x, gap_y, gap_z = bodies[index, X] - x, bodies[index, Y] - y, bodies[index, Z] - z
        square = gap_x * gap_x + gap_y * gap_y + gap_z * gap_z
        facing = gap_x * nx + gap_y * ny + gap_z * nz
        radius = 1.1 * bodies[index, HALF_WIDTH]
        if facing > 0.0 and square < 36.0 * radius * radius:
            cover = facing * radius * radius / (square * math.sqrt(square))
            share *= 1.0 - min(cover, 0.85)
    return share


@njit(cache=True, error_model="numpy", forceinline=True)
def _haze(x: float, y: float) -> float:
    """How far the ground has gone over into the backdrop."""
    away = (math.sqrt(x * x + y * y) - HAZE_FROM) / (HAZE_UNTIL - HAZE_FROM)
    away = min(max(away, 0.0), 1.0)
    return away * away * (3.0 - 2.0 * away)


@njit(cache=True, error_model="numpy", forceinline=True)
def _backdrop(rise: float) -> float:
    """Brightness of the backdrop, `rise` being the sine of the angle above the horizon."""
    return 0.34 - 0.1 * min(max(rise, 0.0), 1.0)


@njit(cache=True, error_model="numpy", forceinline=True)
def _lit(
    x: float,
    y: float,
    z: float,
    nx: float,
    ny: float,
    nz: float,
    index: int,
    bodies: NDArray[np.float64],
    lights: NDArray[np.float64],
    circles: NDArray[np.float64],
    pattern: NDArray[np.float64],
    phase: int,
    view: tuple[float, float, float],
    shine: float,
) -> tuple[float, float, bool]:
    """Light that a point scatters, its highlights, and whether it lies in the rim of a shadow."""
    share = SKY_LIGHT * (0.5 + 0.5 * nz) + BOUNCE * (0.5 - 0.5 * nz)
    scattered = share * _openness(x, y, z, nx, ny, nz, index, bodies)
    highlight, is_rim = 0.0, False
    for number in range(len(lights)):
        to_x, to_y, to_z = lights[number, 0] - x, lights[number, 1] - y, lights[number, 2] - z
        away = math.sqrt(to_x * to_x + to_y * to_y + to_z * to_z)
        facing = (to_x * nx + to_y * ny + to_z * nz) / away
        # A light with a size sets gradually.
        soft = lights[number, 3] / away
        if facing <= -soft:
            continue
        facing = facing if facing > soft else (facing + soft) ** 2 / (4.0 * soft)
        seen = 1.0
        if phase >= 0:
            seen = _light_share(x, y, z, index, lights, number, bodies, circles, pattern, phase)
            is_rim |= 0.0 < seen < 1.0
        scattered += lights[number, 4] * facing * seen
        if shine > 0.0:
            half_x = to_x / away - view[0]
            half_y = to_y / away - view[1]
            half_z = to_z / away - view[2]
            length = math.sqrt(half_x * half_x + half_y * half_y + half_z * half_z)
            tilt = max((half_x * nx + half_y * ny + half_z * nz) / length, 0.0)
            highlight += lights[number, 4] * seen * tilt**shine
    return scattered, highlight, is_rim


@njit(cache=True, error_model="numpy")
def _mirrored(
    x: float,
    y: float,
    z: float,
    dx: float,
    dy: float,
    dz: float,
    index: int,
    bodies: NDArray[np.float64],
    lights: NDArray[np.float64],
    circles: NDArray[np.float64],
    pattern: NDArray[np.float64],
) -> tuple[float, float, float]:
    """What a mirror at a point of body `index` shows in a unit direction."""
    distance, found = nearest(bodies, index, x, y, z, dx, dy, dz)
    view = (dx, dy, dz)
    if found == BACKDROP:
        bright = _backdrop(dz)
        for number in range(len(lights)):
            to_x, to_y, to_z = lights[number, 0] - x, lights[number, 1] - y, lights[number, 2] - z
            away = math.sqrt(to_x * to_x + to_y * to_y + to_z * to_z)
            off = 1.0 - (to_x * dx + to_y * dy + to_z * dz) / away
            wide = 0.5 * (lights[number, 3] / away) ** 2
            glow = min(max((2.0 * wide - off) / (1.6 * wide), 0.0), 1.0)
            bright += 3.2 * lights[number, 4] * glow * glow * (3.0 - 2.0 * glow)
        return bright, bright, bright
    x, y, z = x + distance * dx, y + distance * dy, z + distance * dz
    nx, ny, nz = (0.0, 0.0, 1.0) if found == GROUND else normal(bodies, found, x, y, z)
    # Shadows in a mirror are left out: they are small, and would be most of the work.
    scattered = _lit(x, y, z, nx, ny, nz, found, bodies, lights, circles, pattern, -1, view, 0.0)[0]
    if found == GROUND:
        return _ground_color(x, y, scattered, dz)
    red, green, blue = bodies[found, RED], bodies[found, GREEN], bodies[found, BLUE]
    return scattered * red, scattered * green, scattered * blue


@njit(cache=True, error_model="numpy", forceinline=True)
def _ground_color(x: float, y: float, scattered: float, rise: float) -> tuple[float, float, float]:
    haze, far = _haze(x, y), _backdrop(rise)
    near = 1.0 - haze
    return (
        near * scattered * _GROUND[0] + haze * far,
        near * scattered * _GROUND[1] + haze * far,
        near * scattered * _GROUND[2] + haze * far,
    )


@njit(cache=True, error_model="numpy")
def _shade(
    extrinsics: NDArray[np.float64],
    ray: tuple[float, float, float],
    distance: float,
    index: int,
    bodies: NDArray[np.float64],
    lights: NDArray[np.float64],
    circles: NDArray[np.float64],
    pattern: NDArray[np.float64],
    phase: int,
) -> tuple[float, float, float, bool]:
    """Colour of what a camera's ray meets at a distance; also whether in the rim of a shadow."""
    x = extrinsics[0, 3] + distance * ray[0]
    y = extrinsics[1, 3] + distance * ray[1]
    z = extrinsics[2, 3] + distance * ray[2]
    length = math.sqrt(ray[0] * ray[0] + ray[1] * ray[1] + ray[2] * ray[2])
    view = (ray[0] / length, ray[1] / length, ray[2] / length)
    if index == BACKDROP:
        bright = _backdrop(view[2])
        return bright, bright, bright, False
    is_ground = index == GROUND
    nx, ny, nz = (0.0, 0.0, 1.0) if is_ground else normal(bodies, index, x, y, z)
    is_metal = not is_ground and bodies[index, IS_METAL] > 0.0
    shine = 0.0 if is_ground else 90.0 if is_metal else 12.0
    scattered, highlight, is_rim = _lit(
        x, y, z, nx, ny, nz, index, bodies, lights, circles, pattern, phase, view, shine
    )
    if is_ground:
        red, green, blue = _ground_color(x, y, scattered, view[2])
        return min(red, 1.0), min(green, 1.0), min(blue, 1.0), is_rim
    red, green, blue = bodies[index, RED], bodies[index, GREEN], bodies[index, BLUE]
    if not is_metal:
        gloss = 0.05 * highlight
        red, green, blue = red * scattered, green * scattered, blue * scattered
        return min(red + gloss, 1.0), min(green + gloss, 1.0), min(blue + gloss, 1.0), is_rim
    facing = -(view[0] * nx + view[1] * ny + view[2] * nz)
    dx = view[0] + 2.0 * facing * nx
    dy = view[1] + 2.0 * facing * ny
    dz = view[2] + 2.0 * facing * nz
    seen = _mirrored(x, y, z, dx, dy, dz, index, bodies, lights, circles, pattern)
    # Metals colour what they mirror, less so at a grazing angle (Schlick's approximation).
    grazing = (1.0 - max(facing, 0.0)) ** 5
    gloss = 0.8 * highlight
    red = 0.45 * red * scattered + (red + (1.0 - red) * grazing) * seen[0]
    green = 0.45 * green * scattered + (green + (1.0 - green) * grazing) * seen[1]
    blue = 0.45 * blue * scattered + (blue + (1.0 - blue) * grazing) * seen[2]
    return min(red + gloss, 1.0), min(green + gloss, 1.0), min(blue + gloss, 1.0), is_rim


@njit(cache=True, error_model="numpy")
def _is_edge(light: NDArray[np.float64], row: int, column: int) -> bool:
    """Whether a pixel of (H,W,3) differs from one of its four neighbours."""
    height, width = light.shape[:2]
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        other_row, other = row + down, column + right
        if 0 <= other_row < height and 0 <= other < width:
            for channel in range(3):
                here, there = light[row, column, channel], light[other_row, other, channel]
                # In proportion, as the eye sees it.
                if abs(here - there) > CONTRAST * (here + there + 0.2):
                    return True
    return False


@njit(cache=True, error_model="numpy")
def _smooth(
    row: int,
    column: int,
    bodies: NDArray[np.float64],
    boxes: NDArray[np.int64],
    lights: NDArray[np.float64],
    circles: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    extrinsics: NDArray[np.float64],
    pattern: NDArray[np.float64],
    supersampling: int,
) -> tuple[float, float, float]:
    """The mean colour over a grid of samples of a pixel."""
    x, y, z = extrinsics[0, 3], extrinsics[1, 3], extrinsics[2, 3]
    red, green, blue = 0.0, 0.0, 0.0
    for phase in range(supersampling * supersampling):
        across = column + (phase % supersampling + 0.5) / supersampling
        down = row + (phase // supersampling + 0.5) / supersampling
        ray = direction(across, down, intrinsics, extrinsics)
        distance, index = empty_distance(x, y, z, ray[0], ray[1], ray[2])
        for other in range(len(bodies)):
            is_across = boxes[other, 0] <= column < boxes[other, 2]
            if is_across and boxes[other, 1] <= row < boxes[other, 3]:
                met = hit(bodies, other, x, y, z, ray[0], ray[1], ray[2])
                if met < distance:
                    distance, index = met, other
        color = _shade(extrinsics, ray, distance, index, bodies, lights, circles, pattern, phase)
        red, green, blue = red + color[0], green + color[1], blue + color[2]
    share = 1.0 / (supersampling * supersampling)
    return red * share, green * share, blue * share


@njit(cache=True, error_model="numpy")
def draw(
    frame: NDArray[np.uint8],
    ids: NDArray[np.uint16],
    depth: NDArray[np.float64],
    bodies: NDArray[np.float64],
    lights: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    extrinsics: NDArray[np.float64],
    pattern: NDArray[np.float64],
    supersampling: int,
) -> None:
    """Draw a picture with its masks and depth.

    Masks and depth are those of the pixels' centres, see `scenes_geometry.cast`. Colours are those
    of the centre where the picture is smooth, and the mean over a grid of samples where a pixel
    differs from its neighbours or lies in the rim of a shadow.

    Args:
        frame: (H,W,3), overwritten.
        ids: (H,W), overwritten.
        depth: (H,W), overwritten.
        bodies: (M,13).
        lights: (L,5), see `LIGHTS`.
        intrinsics: (3,3).
        extrinsics: (4,4).
        pattern: `light_pattern(supersampling)`.
        supersampling: samples across a pixel; 1 for none but the centre.
    """
    cast(ids, depth, bodies, intrinsics, extrinsics)
    height, width = ids.shape
    x, y, z = extrinsics[0, 3], extrinsics[1, 3], extrinsics[2, 3]
    boxes = screen_boxes(bodies, intrinsics, extrinsics, height, width)
    circles = shadow_circles(bodies, lights)
    light = np.empty((height, width, 3))
    is_rough = np.zeros((height, width), dtype=np.bool_)
    center = int(np.int64(0))  # numba would compile everything once more for a literal
    for row in range(height):
        for column in range(width):
            ray = direction(column + 0.5, row + 0.5, intrinsics, extrinsics)
            index = int(ids[row, column]) - 1
            if index < 0:
                index = empty_distance(x, y, z, ray[0], ray[1], ray[2])[1]
            distance = depth[row, column]
            color = _shade(
                extrinsics, ray, distance, index, bodies, lights, circles, pattern, center
            )
            light[row, column, 0] = color[0]
            light[row, column, 1] = color[1]
            light[row, column, 2] = color[2]
            is_rough[row, column] = color[3]
    for row in range(height):
        for column in range(width):
            mean = (light[row, column, 0], light[row, column, 1], light[row, column, 2])
            if supersampling > 1 and (is_rough[row, column] or _is_edge(light, row, column)):
                mean = _smooth(
                    row,
                    column,
                    bodies,
                    boxes,
                    lights,
                    circles,
                    intrinsics,
                    extrinsics,
                    pattern,
                    supersampling,
                )
            for channel in range(3):
                frame[row, column, channel] = DISPLAY[int(mean[channel] * (LEVELS - 1) + 0.5)]
