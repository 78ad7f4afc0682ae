import math

import numpy as np
import pytest
import torch

from ocrl.envs.scenes3d_geometry import (
    BOUND,
    KIND,
    MISSED,
    NUM_COLUMNS,
    Solids,
    X,
    Z,
    lengths,
    nearest,
    normals,
    padded_rows,
    solid_rows,
)
from ocrl.envs.scenes_geometry import (
    CONE,
    CUBE,
    CYLINDER,
    ICOSAHEDRON,
    SOLIDS,
    SPHERE,
    TORUS,
    body_table,
)

GOLDEN = (1 + math.sqrt(5)) / 2


def is_within(shape, size, points):
    """Whether points (...,3), with the ground's z = 0 below the upright solid, are inside of it."""
    x, y, z = np.moveaxis(points, -1, 0)
    flat = np.hypot(x, y)
    if shape == SPHERE:
        return flat**2 + (z - size) ** 2 < size**2
    if shape == CYLINDER:
        return (flat < size) & (z > 0) & (z < 2 * size)
    if shape == CONE:
        return (z > 0) & (flat < size * (1 - z / (2 * size)))
    if shape == TORUS:
        tube = 0.32 * size
        return (flat - (size - tube)) ** 2 + (z - tube) ** 2 < tube**2
    if shape == CUBE:
        half = size / math.sqrt(2)
        return (abs(x) < half) & (abs(y) < half) & (abs(z - half) < half)
    raise AssertionError(shape)


def rows_of(shapes, sizes, places, angles):
    count = len(shapes)
    table = body_table(
        np.array(shapes),
        np.array(sizes, float),
        np.array(places, float),
        np.array(angles, float),
        np.full((count, 3), 0.5),
        np.zeros(count, bool),
    )
    return solid_rows(table)


def solids_of(rows, num_views=1):
    kinds = frozenset(int(kind) for kind in rows[:, KIND])
    return Solids.of(torch.tensor(rows).expand(num_views, -1, -1), kinds)


def rays_at(rng, center, count, spread=0.9):
    """Origins on a ball around a point and directions towards places near it, (3,P) each."""
    away = rng.normal(size=(count, 3))
    origin = center + 6.0 * away / np.linalg.norm(away, axis=1, keepdims=True)
    ahead = center + rng.uniform(-spread, spread, (count, 3)) - origin
    return origin.T, (ahead / np.linalg.norm(ahead, axis=1, keepdims=True)).T


@pytest.mark.parametrize("shape", [SPHERE, CUBE, CYLINDER, CONE, TORUS], ids=lambda n: SOLIDS[n])
def test_rays_enter_solids_where_points_of_them_do(shape):
    rng = np.random.default_rng(shape)
    size, place, angle = 0.8, np.array([0.5, -0.3]), 0.7
    rows = rows_of([shape], [size], [place], [angle])
    origin, way = rays_at(rng, rows[0, X : Z + 1], 150)
    column = torch.zeros(150, dtype=torch.long)
    found = lengths(solids_of(rows), column, torch.tensor(origin), torch.tensor(way)).numpy()
    when = np.linspace(4.0, 8.0, 4001)
    points = origin.T[:, None] + when[:, None] * way.T[:, None]
    points = points - [*place, 0.0]
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = points[..., 0].copy(), points[..., 1].copy()
    points[..., 0], points[..., 1] = cos * x + sin * y, cos * y - sin * x
    inside = is_within(shape, size, points)
    is_met = inside.any(1)
    assert 15 < is_met.sum() < 140
    expected = when[inside.argmax(1)]
    is_found = found < MISSED
    # Marching misses what is thinner than its step, the torus what is within a hundredth.
    assert (is_met & ~is_found).sum() <= (2 if shape == TORUS else 0)
    assert (is_found & ~is_met).sum() <= 2
    both = is_met & is_found
    assert np.abs(found - expected)[both].max() < 2e-3


def test_an_icosahedron_lies_on_a_face_and_touches_its_ball():
    rows = rows_of([ICOSAHEDRON], [1.0], [(0.0, 0.0)], [0.0])
    rng = np.random.default_rng(0)
    inradius = GOLDEN**2 / math.sqrt(3) / math.sqrt(1 + GOLDEN**2)
    assert rows[0, Z] == pytest.approx(inradius) and rows[0, BOUND] == pytest.approx(1.0)
    origin, way = rays_at(rng, rows[0, X : Z + 1], 4000, spread=0.0)
    solids, column = solids_of(rows), torch.zeros(4000, dtype=torch.long)
    length = lengths(solids, column, torch.tensor(origin), torch.tensor(way))
    away = 6.0 - length.numpy()
    assert away.min() == pytest.approx(inradius, abs=2e-3)
    assert away.max() == pytest.approx(1.0, abs=2e-2) and away.max() < 1.0 + 1e-9
    points = torch.tensor(origin) + length * torch.tensor(way)
    faces = normals(solids, column, points)
    assert len(torch.unique(faces.T.round(decimals=4), dim=0)) == 20
    assert points[2].min() > -1e-9
    down = torch.tensor([[0.0], [0.0], [-3.0]]), torch.tensor([[0.0], [0.0], [1.0]])
    assert lengths(solids, column[:1], down[0].double(), down[1].double()) == pytest.approx(3.0)


@pytest.mark.parametrize("shape", range(6), ids=SOLIDS)
def test_normals_are_units_that_turn_towards_the_ray_and_across_the_surface(shape):
    rng = np.random.default_rng(shape)
    rows = rows_of([shape], [0.9], [(0.2, 0.1)], [0.4])
    origin, way = (torch.tensor(part) for part in rays_at(rng, rows[0, X : Z + 1], 600))
    solids, column = solids_of(rows), torch.zeros(600, dtype=torch.long)
    length = lengths(solids, column, origin, way)
    met = length < MISSED
    point = origin + length * way
    normal = normals(solids, column, point)
    assert torch.allclose(normal[:, met].norm(dim=0), torch.ones(int(met.sum())).double())
    assert ((normal * way).sum(0)[met] < 1e-6).all()
    # A ray beside meets the plane of the surface, but for bends and edges.
    shifted = way + 1e-4 * torch.tensor(rng.normal(size=way.shape))
    shifted = shifted / shifted.norm(dim=0)
    beside = lengths(solids, column, origin, shifted)
    both = met & (beside < MISSED) & ((beside - length).abs() < 0.05)
    off = ((origin + beside * shifted - point) * normal).sum(0)[both].abs()
    assert both.sum() > 100 and off.median() < 1e-6 and off.quantile(0.9) < 1e-3


def test_a_turned_solid_is_met_as_its_rays_turned_back():
    rng = np.random.default_rng(5)
    rows = rows_of(list(range(6)), [0.7] * 6, [(0.0, 0.0)] * 6, [0.0] * 6)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    tilted = rows.copy()
    tilted[:, 4:13] = turn.reshape(-1)
    for number in range(6):
        center = rows[number, X : Z + 1]
        origin, way = rays_at(rng, center, 100)
        column = torch.full((100,), number)
        back = (turn.T @ (origin - center[:, None])) + center[:, None]
        found = lengths(solids_of(tilted), column, torch.tensor(origin), torch.tensor(way))
        expected = lengths(solids_of(rows), column, torch.tensor(back), torch.tensor(turn.T @ way))
        met = expected < MISSED
        assert met.sum() > 20 and torch.equal(found < MISSED, met)
        torch.testing.assert_close(found[met], expected[met], atol=1e-6, rtol=0)


def test_the_nearest_of_several_is_met_and_ones_own_is_not():
    rows = rows_of([SPHERE, SPHERE, CUBE], [0.5] * 3, [(0, 0), (2, 0), (4, 0)], [0.0] * 3)
    solids = solids_of(rows, num_views=2)
    origin = torch.tensor([[-3.0, 6.0, 0.0], [0.0, 0.0, 5.0], [0.5, 0.3, 0.5]]).double()
    way = torch.tensor([[1.0, -1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]).double()
    view = torch.tensor([0, 1, 0])
    length, column = nearest(solids, view, origin, way)
    assert column.tolist() == [0, 5, -1] and length[2] >= MISSED
    assert length[0] == pytest.approx(2.5) and length[1] == pytest.approx(2 - 0.5 / math.sqrt(2))
    length, column = nearest(solids, view, origin, way, own=column)
    assert column.tolist() == [1, 4, -1]
    assert length[0] == pytest.approx(4.5)


def test_rays_of_whole_views_and_lists_of_rays_agree():
    rng = np.random.default_rng(2)
    shapes, places = list(range(6)), rng.uniform(-2, 2, (6, 2))
    rows = rows_of(shapes, [0.5] * 6, places, rng.uniform(0, 6, 6))
    solids = Solids.of(
        torch.tensor(np.stack([padded_rows(rows, 9), padded_rows(rows[::-1], 9)])),
        frozenset(shapes),
    )
    parts = [rays_at(rng, np.array([0.0, 0.0, 0.5]), 200, spread=2.0) for _ in range(2)]
    origin, way = (torch.tensor(np.stack([p[i] for p in parts], axis=1)) for i in range(2))
    view = torch.arange(2)[:, None].expand(2, 200)
    length, column = nearest(solids, view, origin, way)
    flat = nearest(solids, view.flatten(), origin.flatten(1), way.flatten(1))
    assert torch.equal(length.flatten(), flat[0]) and torch.equal(column.flatten(), flat[1])
    assert len(column.unique()) > 10
    # Solids that only fill up are never met, and views keep to their own.
    assert set(column[0].unique().tolist()) <= {-1, *range(6)}
    assert set(column[1].unique().tolist()) <= {-1, *range(9, 15)}
    assert padded_rows(rows, 9).shape == (9, NUM_COLUMNS)


def test_float32_is_enough():
    rng = np.random.default_rng(3)
    rows = rows_of(list(range(6)), [0.5] * 6, rng.uniform(-2, 2, (6, 2)), rng.uniform(0, 6, 6))
    for number in range(6):
        origin, way = rays_at(rng, rows[number, X : Z + 1], 500, spread=0.3)
        column = torch.full((500,), number)
        exact = lengths(solids_of(rows), column, torch.tensor(origin), torch.tensor(way))
        rough = Solids(solids_of(rows).columns.float(), 1, frozenset(range(6)))
        found = lengths(rough, column, torch.tensor(origin).float(), torch.tensor(way).float())
        both = (exact < MISSED) & (found < MISSED)
        assert ((exact < MISSED) != (found < MISSED)).sum() <= 1
        assert (exact - found).abs()[both].median() < 1e-6
        assert (exact - found).abs()[both].quantile(0.99) < 1e-4
