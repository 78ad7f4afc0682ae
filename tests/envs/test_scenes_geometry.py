import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocrl.envs.scenes_camera import look_at, pinhole, points_of, project
from ocrl.envs.scenes_geometry import (
    BACKDROP_RADIUS,
    CUBE,
    CYLINDER,
    SHAPES,
    SPHERE,
    body_table,
    cast,
    normal,
    screen_boxes,
)

TARGET = np.array([0.0, 0.0, 0.4])


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def reference_hits(solid, origin, ray):
    """Every distance at which a ray crosses the surface: faces, caps and sides one by one."""
    shape, size, (x, y), angle = solid
    along, across = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    if shape == SPHERE:
        gap = [o - c for o, c in zip(origin, (x, y, size), strict=True)]
        a, b, c = dot(ray, ray), 2 * dot(gap, ray), dot(gap, gap) - size**2
        if b * b < 4 * a * c:
            return []
        root = math.sqrt(b * b - 4 * a * c)
        return [(-b - root) / (2 * a), (-b + root) / (2 * a)]
    flat = (origin[0] - x, origin[1] - y)
    if shape == CYLINDER:
        hits = []
        a, b = ray[0] ** 2 + ray[1] ** 2, 2 * dot(flat, ray[:2])
        c = dot(flat, flat) - size**2
        if a > 0 and b * b >= 4 * a * c:
            for sign in (-1, 1):
                t = (-b + sign * math.sqrt(b * b - 4 * a * c)) / (2 * a)
                if 0 <= origin[2] + t * ray[2] <= 2 * size:
                    hits.append(t)
        for height in (0.0, 2 * size):
            if ray[2] != 0:
                t = (height - origin[2]) / ray[2]
                if math.hypot(flat[0] + t * ray[0], flat[1] + t * ray[1]) <= size:
                    hits.append(t)
        return hits
    half = size / math.sqrt(2)
    local = (dot(flat, along), dot(flat, across), origin[2] - half)
    turned = (dot(ray[:2], along), dot(ray[:2], across), ray[2])
    hits = []
    for axis in range(3):
        for side in (-half, half):
            if turned[axis] != 0:
                t = (side - local[axis]) / turned[axis]
                others = [local[i] + t * turned[i] for i in range(3) if i != axis]
                if max(map(abs, others)) <= half:
                    hits.append(t)
    return hits


def reference_pixel(solids, intrinsics, extrinsics, row, column):
    """Id and depth at a pixel's centre, with how far the decision is from another one."""
    focal, center = intrinsics[0, 0], intrinsics[0, 2]
    local = ((column + 0.5 - center) / focal, (row + 0.5 - center) / focal, 1.0)
    ray = [dot(extrinsics[axis, :3].tolist(), local) for axis in range(3)]
    origin = extrinsics[:3, 3].tolist()
    a, b, c = dot(ray, ray), 2 * dot(origin, ray), dot(origin, origin) - BACKDROP_RADIUS**2
    first, found = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a), 0
    if ray[2] < 0:
        first = min(first, -origin[2] / ray[2])
    for index, solid in enumerate(solids):
        for t in reference_hits(solid, origin, ray):
            if 0 < t < first:
                first, found = t, index + 1
    return found, first


def table(solids):
    shapes, sizes, places, angles = (np.array(column) for column in zip(*solids, strict=True))
    count = len(solids)
    colors, metal = np.full((count, 3), 0.5), np.zeros(count, bool)
    return body_table(shapes, sizes.astype(float), places.astype(float), angles, colors, metal)


def seen(solids, size, extrinsics, field_of_view=35.0):
    ids, depth = np.full((size, size), 99, np.uint16), np.full((size, size), np.nan)
    intrinsics = pinhole(size, field_of_view)
    cast(ids, depth, table(solids), intrinsics, extrinsics)
    return ids, depth, intrinsics


solid = st.tuples(
    st.sampled_from([SPHERE, CUBE, CYLINDER]),
    st.floats(0.2, 1.0),
    st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
    st.floats(0, 6.3),
)


@settings(max_examples=25, deadline=None)
@given(
    solids=st.lists(solid, min_size=1, max_size=5),
    azimuth=st.floats(-180, 180),
    elevation=st.floats(3, 85),
    distance=st.floats(6, 15),
)
def test_masks_and_depth_are_those_of_a_slow_ray_caster(solids, azimuth, elevation, distance):
    extrinsics = look_at(azimuth, elevation, distance, TARGET)
    ids, depth, intrinsics = seen(solids, 20, extrinsics)
    for row in range(20):
        for column in range(20):
            found, first = reference_pixel(solids, intrinsics, extrinsics, row, column)
            # Solids that touch the same point of the ray may be told apart either way.
            assert depth[row, column] == pytest.approx(first, rel=1e-7)
            if ids[row, column] != found:
                ray_hits = reference_depths(solids, intrinsics, extrinsics, row, column)
                assert abs(ray_hits[ids[row, column]] - ray_hits[found]) < 1e-6


def reference_depths(solids, intrinsics, extrinsics, row, column):
    """Depth of each thing by itself; 0 is the ground."""
    alone = [reference_pixel([s], intrinsics, extrinsics, row, column)[1] for s in solids]
    return [reference_pixel([], intrinsics, extrinsics, row, column)[1], *alone]


@pytest.mark.parametrize("seed", range(4))
def test_every_pixel_of_a_scene_is_that_of_the_slow_ray_caster(seed):
    rng = np.random.default_rng(seed)
    solids = [
        (index % 3, rng.uniform(0.3, 0.8), tuple(rng.uniform(-2.5, 2.5, 2)), rng.uniform(0, 6))
        for index in range(6)
    ]
    extrinsics = look_at(rng.uniform(-180, 180), rng.uniform(10, 60), 11.0, TARGET)
    ids, depth, intrinsics = seen(solids, 64, extrinsics)
    expected = np.array(
        [
            [reference_pixel(solids, intrinsics, extrinsics, row, column) for column in range(64)]
            for row in range(64)
        ]
    )
    assert len(np.unique(ids)) > 4
    assert np.array_equal(ids, expected[..., 0])
    assert np.allclose(depth, expected[..., 1], rtol=1e-12)


def test_a_ray_along_an_axis_divides_by_nothing():
    camera = np.eye(4)
    camera[:3, :3] = np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]])
    camera[:3, 3] = [-5.0, 0.0, 0.5]
    for shape in range(3):
        ids, depth, _ = seen(
            [(shape, 0.5 * math.sqrt(2) if shape == CUBE else 0.5, (0, 0), 0)], 1, camera
        )
        assert ids[0, 0] == 1 and depth[0, 0] == pytest.approx(4.5)


@pytest.mark.parametrize("shape", range(3), ids=SHAPES)
def test_solids_stand_on_the_ground_and_fill_their_circle(shape):
    rng = np.random.default_rng(0)
    bodies = table([(shape, 0.6, (1.0, -2.0), 0.7)])
    heights, reach = [], []
    for azimuth in rng.uniform(-180, 180, 30):
        ids, depth, intrinsics = seen(
            [(shape, 0.6, (1.0, -2.0), 0.7)], 64, extrinsics := look_at(azimuth, 20, 9, TARGET)
        )
        points = points_of(depth, intrinsics, extrinsics)[ids == 1]
        heights += [points[:, 2].min(), points[:, 2].max()]
        reach.append(np.linalg.norm(points[:, :2] - [1.0, -2.0], axis=1).max())
        for point in points[::50]:
            outward = np.array(normal(bodies, 0, *point))
            assert np.linalg.norm(outward) == pytest.approx(1.0)
            assert outward @ (point - extrinsics[:3, 3]) < 1e-6
    top = 0.6 * math.sqrt(2) if shape == CUBE else 1.2
    assert -1e-9 < min(heights) < 0.15 and top - 0.1 < max(heights) < top + 1e-9
    assert 0.55 < max(reach) < 0.6 + 1e-9


@pytest.mark.parametrize(("shape", "face"), [(CUBE, 0), (CUBE, 1), (CUBE, 2), (CYLINDER, 2)])
def test_normals_of_flat_sides(shape, face):
    bodies = table([(shape, 1.0, (0.0, 0.0), 0.5)])
    half = bodies[0, 6]
    turn = np.array([[math.cos(0.5), -math.sin(0.5), 0], [math.sin(0.5), math.cos(0.5), 0]])
    turn = np.vstack([turn, [0, 0, 1]])
    for sign in (-1, 1):
        local = np.array([0.1, -0.2, 0.15]) * half
        local[face] = sign * half
        outward = np.eye(3)[face] * sign
        point = turn @ local + [0, 0, half]
        assert np.allclose(normal(bodies, 0, *point), turn @ outward)


@settings(max_examples=60, deadline=None)
@given(solid=solid, azimuth=st.floats(-180, 180), distance=st.floats(1, 12))
def test_boxes_hold_all_of_a_body(solid, azimuth, distance):
    extrinsics = look_at(azimuth, 25.0, distance, TARGET)
    intrinsics = pinhole(32, 60.0)
    boxes = screen_boxes(table([solid]), intrinsics, extrinsics, 32, 32)
    left, top, right, bottom = boxes[0]
    for row in range(0, 32, 3):
        for column in range(0, 32, 3):
            if not (left <= column < right and top <= row < bottom):
                assert reference_pixel([solid], intrinsics, extrinsics, row, column)[0] == 0


def test_points_project_back_to_the_centres_of_their_pixels():
    extrinsics = look_at(-40.0, 30.0, 11.0, TARGET)
    _, depth, intrinsics = seen([(SPHERE, 0.7, (0.5, 0.5), 0.0)], 32, extrinsics)
    points = points_of(depth, intrinsics, extrinsics)
    pixels, depths = project(points.reshape(-1, 3), intrinsics, extrinsics)
    row, column = np.mgrid[:32, :32] + 0.5
    assert np.allclose(pixels.reshape(32, 32, 2), np.stack([column, row], axis=-1))
    assert np.allclose(depths.reshape(32, 32), depth)
    homogeneous = np.linalg.inv(extrinsics) @ [*points[5, 7], 1.0]
    assert np.allclose((intrinsics @ homogeneous[:3] / homogeneous[2])[:2], [7.5, 5.5])


def test_a_camera_is_upright_and_looks_at_its_target():
    extrinsics = look_at(30.0, 40.0, 7.0, TARGET)
    right, down, ahead = extrinsics[:3, :3].T
    assert np.allclose(extrinsics[:3, :3].T @ extrinsics[:3, :3], np.eye(3))
    assert np.linalg.det(extrinsics[:3, :3]) == pytest.approx(1.0)
    assert right[2] == pytest.approx(0.0) and down[2] < 0.0
    assert np.allclose(extrinsics[:3, 3] + 7.0 * ahead, TARGET)
    assert extrinsics[2, 3] == pytest.approx(0.4 + 7.0 * math.sin(math.radians(40)))
    assert math.degrees(math.atan2(extrinsics[1, 3], extrinsics[0, 3])) == pytest.approx(30.0)


def test_the_field_of_view_is_that_of_the_borders():
    intrinsics = pinhole(100, 50.0)
    left = (0.0 - intrinsics[0, 2]) / intrinsics[0, 0]
    assert 2 * math.degrees(math.atan(-left)) == pytest.approx(50.0)
