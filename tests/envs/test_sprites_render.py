import math

import numpy as np
import pytest

from ocrl.envs.sprites_render import COLORS, SHAPES, draw, outline_table, tight_boxes

# Area over that of the circumscribed circle's square (2 r)^2 / 4 = r^2, by elementary geometry.
AREAS = {
    "circle": math.pi,
    "square": 2.0,
    "triangle": 3 * math.sqrt(3) / 4,
    "diamond": 2.0,
    "pentagon": 2.5 * math.sin(2 * math.pi / 5),
    "hexagon": 1.5 * math.sqrt(3),
    "star": 5 * 0.45 * math.sin(math.pi / 5),
    "spark": 4 * 0.4 * math.sin(math.pi / 4),
}


def picture(shapes, positions, radii, *, size=64, colors=None, background=(0, 0, 0)):
    frame = np.full((size, size, 3), 99, dtype=np.uint8)
    ids = np.full((size, size), 99, dtype=np.uint16)
    outlines = outline_table()[[SHAPES.index(shape) for shape in shapes]]
    colors = [(255, 255, 255)] * len(shapes) if colors is None else colors
    draw(
        frame,
        ids,
        np.array(background, dtype=np.uint8),
        np.array(positions, dtype=np.float64),
        np.array(radii, dtype=np.float64),
        outlines,
        np.array(colors, dtype=np.uint8),
    )
    return frame, ids


def corners(shape, center, radius):
    """The outline as a polygon, from the definition of each shape."""
    count, inner, start = {
        "square": (4, None, math.pi / 4),
        "triangle": (3, None, -math.pi / 2),
        "diamond": (4, None, 0.0),
        "pentagon": (5, None, -math.pi / 2),
        "hexagon": (6, None, 0.0),
        "star": (5, 0.45, -math.pi / 2),
        "spark": (4, 0.4, 0.0),
    }[shape]
    points = []
    for index in range(count):
        angle = start + 2 * math.pi * index / count
        points.append((math.cos(angle), math.sin(angle)))
        if inner is not None:
            angle += math.pi / count
            points.append((inner * math.cos(angle), inner * math.sin(angle)))
    return np.array(points) * radius + center


def is_inside(polygon, x, y):
    """Crossing number, straight from the textbook."""
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        crosses = (y0 > y) != (y1 > y)
        inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_masks_hold_the_pixels_whose_centres_are_inside(shape, size):
    rng = np.random.default_rng(0)
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    for _ in range(10):
        center, radius = rng.uniform(0.2, 0.8, 2), rng.uniform(0.08, 0.3)
        _, ids = picture([shape], [center], [radius], size=size)
        if shape == "circle":
            expected = np.hypot(x - center[0], y - center[1]) < radius
        else:
            expected = is_inside(corners(shape, center, radius), x, y)
        assert np.array_equal(ids == 1, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_drawn_amount_is_the_area(shape):
    size, radius = 256, 0.3
    frame, _ = picture([shape], [(0.503, 0.498)], [radius], size=size)
    drawn = frame[..., 0].astype(float).sum() / 255
    assert drawn == pytest.approx(AREAS[shape] * (radius * size) ** 2, rel=0.01)


def test_edges_are_smooth():
    frame, ids = picture(["circle"], [(0.5, 0.5)], [0.3])
    values = frame[..., 0]
    partial = (values > 0) & (values < 255)
    assert 100 < partial.sum() < 300
    assert np.all(values[ids == 1] > 127)
    assert np.all(values[ids == 0] <= 128)


def test_pixels_wholly_inside_have_exactly_the_colour():
    for number, color in enumerate(COLORS.values()):
        frame, _ = picture([SHAPES[number % len(SHAPES)]], [(0.5, 0.5)], [0.4], colors=[color])
        assert tuple(frame[32, 32]) == color


def test_the_first_shape_is_on_top():
    frame, ids = picture(
        ["circle", "square"],
        [(0.5, 0.5), (0.6, 0.5)],
        [0.2, 0.3],
        colors=[(255, 0, 0), (0, 255, 0)],
        background=(0, 0, 255),
    )
    assert set(np.unique(ids)) == {0, 1, 2}
    owner = np.array([[0, 0, 255], [255, 0, 0], [0, 255, 0]])[ids]
    # Away from every edge the colour is the owner's; on edges it is a mixture with at least half.
    assert np.mean(np.all(frame == owner, axis=-1)) > 0.9
    _, alone = picture(["circle"], [(0.5, 0.5)], [0.2])
    assert np.array_equal(ids == 1, alone == 1)


def test_shapes_across_the_border_are_cut():
    frame, ids = picture(["circle", "star"], [(0.0, 0.0), (1.0, 0.5)], [0.2, 0.2], size=32)
    assert ids[0, 0] == 1 and ids[16, 31] == 2 and frame[0, 0, 0] == 255


def test_tight_boxes():
    ids = np.zeros((8, 10), dtype=np.uint16)
    ids[2:5, 3:7] = 1
    ids[7, 9] = 3
    assert tight_boxes(ids, 3).tolist() == [[3, 2, 7, 5], [10, 8, 0, 0], [9, 7, 10, 8]]
