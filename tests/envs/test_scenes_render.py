import numpy as np
import pytest

from ocrl.envs.scenes_camera import look_at, pinhole, points_of
from ocrl.envs.scenes_geometry import CUBE, CYLINDER, GROUND, SPHERE, body_table, cast
from ocrl.envs.scenes_render import (
    COLORS,
    LIGHTS,
    MATERIALS,
    _light_share,
    draw,
    light_pattern,
    linear_colors,
    shadow_circles,
)

CAMERA = look_at(-43.0, 27.0, 11.0, np.array([0.0, 0.0, 0.4]))
KEY = LIGHTS[:1]


def bodies_of(*solids):
    """Rows (shape, size, place, colour, material)."""
    shapes, sizes, places, colors, materials = zip(*solids, strict=True)
    return body_table(
        np.array(shapes),
        np.array(sizes, float),
        np.array(places, float),
        np.full(len(shapes), 0.4),
        linear_colors(np.array([COLORS[color] for color in colors])),
        np.array([MATERIALS.index(material) == 1 for material in materials]),
    )


def picture(bodies, *, size=64, supersampling=2, lights=LIGHTS):
    frame = np.full((size, size, 3), 77, np.uint8)
    ids, depth = np.full((size, size), 77, np.uint16), np.full((size, size), np.nan)
    pattern = light_pattern(supersampling)
    intrinsics = pinhole(size, 35.0)
    draw(frame, ids, depth, bodies, lights, intrinsics, CAMERA, pattern, supersampling)
    return frame, ids, depth


FEW = bodies_of(
    (SPHERE, 0.7, (0.5, -1.0), "red", "rubber"),
    (CUBE, 0.7, (-1.0, 0.5), "cyan", "metal"),
    (CYLINDER, 0.35, (1.2, 1.2), "green", "rubber"),
)


@pytest.mark.parametrize("supersampling", [1, 2, 3])
def test_masks_and_depth_are_those_of_the_centres_whatever_the_samples(supersampling):
    _, ids, depth = picture(FEW, supersampling=supersampling)
    expected, at = np.empty_like(ids), np.empty_like(depth)
    cast(expected, at, FEW, pinhole(64, 35.0), CAMERA)
    assert np.array_equal(ids, expected) and np.array_equal(depth, at)


def test_bodies_throw_shadows_away_from_the_key_light():
    body = bodies_of((SPHERE, 0.7, (0.0, 0.0), "red", "rubber"))
    with_body, ids, depth = picture(body, lights=KEY, supersampling=1)
    without, _, _ = picture(body[:0], lights=KEY, supersampling=1)
    darker = (without.astype(int) - with_body)[..., 0] * (ids == 0)
    points = points_of(depth, pinhole(64, 35.0), CAMERA)[darker > 50]
    assert 30 < len(points) < 600
    assert np.all(points[:, :2] @ -KEY[0, :2] > -1.5)
    assert (points[:, :2] @ -KEY[0, :2]).mean() > 1.0
    # Nothing on the ground gets lighter, and what is far away stays as it was.
    assert darker.min() >= -1
    far = np.linalg.norm(points_of(depth, pinhole(64, 35.0), CAMERA)[..., :2], axis=-1) > 6.0
    assert np.abs(darker[far]).max() == 0


def test_shadows_have_a_core_and_a_rim():
    body = bodies_of((SPHERE, 0.7, (0.0, 0.0), "red", "rubber"))
    pattern, circles = light_pattern(4), shadow_circles(body, KEY)

    def share(x, y):
        phases = range(16)
        shares = [
            _light_share(x, y, 0.0, GROUND, KEY, 0, body, circles, pattern, phase)
            for phase in phases
        ]
        return np.mean(shares)

    # Behind the ball, seen from the light, along the ray through its centre.
    center = np.array([0.0, 0.0, 0.7])
    core = center - (KEY[0, :3] - center) * 0.7 / (KEY[0, 2] - 0.7)
    assert share(*core[:2]) == 0.0
    assert share(*-core[:2]) == 1.0
    away = core[:2] / np.linalg.norm(core[:2])
    walk = [share(*(core[:2] + step * away)) for step in np.linspace(0.0, 2.5, 40)]
    assert walk[-1] == 1.0 and np.all(np.diff(walk) >= 0.0)
    assert sum(0.0 < value < 1.0 for value in walk) > 3


def test_half_of_a_light_is_seen_past_a_straight_edge():
    # A wall so large that its upper edge is straight, at half the light's height, half way to it.
    light = np.array([[0.0, 8.0, 8.0, 1.0, 1.0]])
    wall = bodies_of((CUBE, 2.0 * np.sqrt(2.0), (0.0, 6.0), "red", "rubber"))
    wall[0, 4], wall[0, 5] = 1.0, 0.0
    pattern = light_pattern(8)
    # The near upper edge is at y = 4, z = 4.
    shares = [
        _light_share(0.0, 0.0, 0.0, GROUND, light, 0, wall, shadow_circles(wall, light), pattern, p)
        for p in range(64)
    ]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)


def test_no_shadow_is_left_out_on_the_ground():
    rng = np.random.default_rng(0)
    pattern, num_shaded = light_pattern(2), 0
    for _ in range(8):
        bodies = bodies_of(
            *[
                (int(kind), float(rng.uniform(0.3, 1.2)), rng.uniform(-3, 3, 2), "red", "rubber")
                for kind in rng.integers(3, size=4)
            ]
        )
        circles = shadow_circles(bodies, LIGHTS)
        everything = circles * [1, 1, 1e6]
        for x, y in rng.uniform(-6, 6, (300, 2)):
            for light in range(3):
                few, every = (
                    _light_share(x, y, 0.0, GROUND, LIGHTS, light, bodies, known, pattern, 1)
                    for known in (circles, everything)
                )
                assert few == every
                num_shaded += few < 1.0
    assert num_shaded > 100


def test_edges_are_the_mean_of_a_finer_picture():
    def light_of(frame):
        return (frame / 255.0) ** 2.2

    fine, _, _ = picture(FEW, size=256, supersampling=1)
    mean = light_of(fine).reshape(64, 4, 64, 4, 3).mean((1, 3))
    errors = [np.abs(light_of(picture(FEW, supersampling=n)[0]) - mean) for n in (1, 2, 4)]
    worst = [np.quantile(error, 0.99) for error in errors]
    assert worst[2] < 0.4 * worst[0] and worst[1] < 0.7 * worst[0]
    assert errors[2].mean() < 0.003


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("material", MATERIALS)
def test_colours_are_recognised(color, material):
    frame, ids, _ = picture(bodies_of((SPHERE, 0.7, (0.0, 0.0), color, material)))
    mean = frame[ids == 1].mean(0)
    hues = {name: np.array(rgb) / np.linalg.norm(rgb) for name, rgb in COLORS.items()}
    best = max(hues, key=lambda name: hues[name] @ mean / np.linalg.norm(mean))
    assert best == color


def test_metal_mirrors_its_neighbour_and_rubber_does_not():
    def redness(material, color):
        ball = (SPHERE, 0.7, (0.0, 0.0), "gray", material)
        bodies = bodies_of(ball, (CUBE, 0.7, (1.1, -1.1), color, "rubber"))
        frame, ids, _ = picture(bodies, supersampling=1)
        visible = frame[ids == 1].astype(float)
        return (visible[:, 0] - visible[:, 2]).max()

    assert redness("metal", "red") > redness("metal", "gray") + 8
    assert abs(redness("rubber", "red") - redness("rubber", "gray")) < 3


def test_metal_has_highlights():
    brightest = []
    for material in MATERIALS:
        frame, ids, _ = picture(bodies_of((SPHERE, 0.7, (0.0, 0.0), "blue", material)))
        brightest.append(frame[ids == 1][:, 0].max())
    assert brightest[1] > brightest[0] + 60


def test_the_ground_is_a_quiet_grey():
    frame, ids, depth = picture(FEW[:0])
    assert not ids.any() and np.isfinite(depth).all()
    assert np.ptp(frame, axis=-1).max() < 6
    steps = np.abs(np.diff(frame.astype(int), axis=0)).max()
    assert frame.min() > 100 and frame.max() < 235 and steps <= 6
