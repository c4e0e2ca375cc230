import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.data.render.face_model import GRID, face_model
from jaxface.data.render.head_geometry import project, rotation_matrix
from jaxface.data.render.rasterize import rasterize, sample_grid, visible_surface


def brute_force(points, triangles, height, width):
    depth, winner = np.zeros((height, width)), np.full((height, width), -1)
    for v in range(height):
        for u in range(width):
            best = -np.inf
            for number, triangle in enumerate(triangles):
                a, b, c = points[triangle].astype(np.float64)
                matrix = np.array([[a[0], b[0], c[0]], [a[1], b[1], c[1]], [1, 1, 1]])
                if abs(np.linalg.det(matrix)) < 1e-9:
                    continue
                weights = np.linalg.solve(matrix, [u, v, 1])
                z = weights @ [a[2], b[2], c[2]]
                if (weights >= -1e-6).all() and z > best:
                    best, depth[v, u], winner[v, u] = z, z, number
    return depth, winner


def test_one_triangle():
    points = jnp.array([[0, 0, 1], [3, 0, 2], [0, 3, 3]], jnp.float32)
    depth, triangle, barycentric = rasterize(points, jnp.array([[0, 1, 2]]), height=4, width=4)
    expected = np.array([[1, 4 / 3, 5 / 3, 2], [5 / 3, 2, 7 / 3, 0], [7 / 3, 8 / 3, 0, 0], [3, 0, 0, 0]])
    covered = np.add.outer(np.arange(4), np.arange(4)) <= 3
    np.testing.assert_allclose(depth, expected, atol=1e-6)
    np.testing.assert_array_equal(triangle, np.where(covered, 0, -1))
    np.testing.assert_allclose(barycentric.sum(-1), covered, atol=1e-6)
    np.testing.assert_allclose(barycentric @ points[:, 2], expected, atol=1e-5)


def test_nearest_wins_ties_go_to_the_lowest_and_degenerate_triangles_are_skipped():
    square = np.array([[0, 0], [9, 0], [0, 9]], np.float32)
    layers = [np.c_[square, np.full(3, z)] for z in (1.0, 5.0, 5.0)]
    line = np.array([[0, 0, 99], [1, 1, 99], [2, 2, 99]])
    points = jnp.asarray(np.concatenate([*layers, line]), jnp.float32)
    triangles = jnp.arange(12).reshape(4, 3)
    depth, triangle, _ = rasterize(points, triangles, height=3, width=3)
    assert (triangle == 1).all() and (depth == 5).all()
    empty = rasterize(points, triangles[3:], height=3, width=3)
    assert (empty.triangle == -1).all() and (empty.depth == 0).all() and (empty.barycentric == 0).all()


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(st.integers(0, 2**31))
def test_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    points = np.c_[rng.uniform(-3, 10, (9, 2)), rng.uniform(-50, 50, 9)].astype(np.float32)
    # Distinct ones: equal depths that differ by rounding have no right order.
    triangles = rng.permutation(list(itertools.combinations(range(9), 3)))[:20].astype(np.int32)
    depth, triangle, _ = rasterize(jnp.asarray(points), jnp.asarray(triangles), height=7, width=8)
    expected, winner = brute_force(points, triangles, 7, 8)
    same = np.asarray(triangle) == winner
    assert same.mean() > 0.96  # a pixel within rounding of an edge may fall to either side
    np.testing.assert_allclose(np.asarray(depth)[same], expected[same], atol=2e-2)


def test_vmap_is_a_loop():
    rng = np.random.default_rng(0)
    points = jnp.asarray(
        np.c_[rng.uniform(0, 8, (30, 2)), rng.uniform(0, 5, 30)].reshape(3, 10, 3), jnp.float32
    )
    triangles = jnp.asarray(rng.integers(0, 10, (17, 3)), jnp.int32)
    together = jax.vmap(lambda p: rasterize(p, triangles, height=8, width=8))(points)
    for k in range(3):
        for a, b in zip(together, rasterize(points[k], triangles, height=8, width=8), strict=True):
            np.testing.assert_allclose(a[k], b, atol=1e-5)


def test_wrong_ranks_are_refused():
    with pytest.raises(ValueError, match=r"points \[N, 3\]"):
        rasterize(jnp.zeros((4, 2)), jnp.zeros((1, 3), jnp.int32), height=8, width=8)
    with pytest.raises(ValueError, match="spacing"):
        visible_surface(jnp.zeros((57, 57, 3)), height=8, width=8, spacing=100)


def test_sample_grid_is_exact_on_bilinear_surfaces():
    row, column = np.mgrid[:5, :7].astype(np.float32)
    values = jnp.asarray(np.stack([2 * row - column, row * column], -1))
    at = np.random.default_rng(0).uniform(0, [4, 6], (50, 2)).astype(np.float32)
    expected = np.stack([2 * at[:, 0] - at[:, 1], at[:, 0] * at[:, 1]], -1)
    np.testing.assert_allclose(sample_grid(values, jnp.asarray(at)), expected, atol=1e-4)
    np.testing.assert_allclose(
        sample_grid(values, jnp.array([[4.0, 6.0], [0.0, 0.0]])), values[[-1, 0], [-1, 0]], atol=1e-5
    )


@functools.partial(jax.jit, static_argnames="size")
def both_paths(points, rotation, scale, size):
    """(exact raster, fast mask, what the fast path samples) of a head."""
    model = face_model()
    grid = project(points @ rotation.T, scale * size, jnp.array([1.0, -2.0]) * size / 112, size, size)
    exact = rasterize(grid, model.triangles, height=size, width=size)
    grid = grid.reshape(GRID, GRID, 3)
    at, mask = visible_surface(grid, height=size, width=size, spacing=0.033 * size)
    return exact, mask, sample_grid(grid, at)


POSES = [(0, 0, 0), (10, 35, 20), (-12, -60, 0)]


@pytest.mark.parametrize(
    ("size", "degrees", "scale"),
    [(size, degrees, scale) for size in (8, 64) for degrees in POSES for scale in (0.005, 0.008)]
    + [(112, degrees, scale) for degrees, scale in zip(POSES, (0.008, 0.005, 0.008), strict=True)]
    + [pytest.param(224, POSES[1], 0.008, marks=pytest.mark.slow)],
)
def test_fast_path_sees_what_the_exact_one_sees(size, degrees, scale):
    model = face_model()
    alpha = np.random.default_rng(size).standard_normal(24).astype(np.float32)
    rotation = rotation_matrix(jnp.deg2rad(jnp.array(degrees, jnp.float32)))
    exact, mask, sampled = both_paths(model.mean + model.identity @ alpha, rotation, scale, size)
    solid = np.asarray(exact.triangle >= 0)
    # No holes: what the exact path covers is missing at most on the outline, where a pixel center is grazed.
    missing = solid & ~np.asarray(mask)
    padded = np.pad(solid, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    assert not (missing & inner).any()
    assert (np.asarray(mask) != solid).sum() <= max(8, 0.6 * size)
    both = solid & np.asarray(mask)
    sampled = np.asarray(sampled)
    off = np.abs(sampled[..., 2] - np.asarray(exact.depth))[both]
    assert np.median(off) < 0.2 and (size < 16 or np.quantile(off, 0.95) < 2.0)
    v, u = np.mgrid[:size, :size]
    away = np.hypot(sampled[..., 0] - u, sampled[..., 1] - v)[both]
    assert (away < 0.1).mean() > (0.8 if size < 16 else 0.95) and away.max() < 2.2


def test_hidden_surface_is_hidden():
    # A ramp that folds back over itself: the near sheet (z = 20) must win wherever both project.
    column = np.linspace(0, 2, 41)
    u = np.where(column < 1, column * 30, (2 - column) * 30)
    z = np.where(column < 1, 0.0, 20.0)
    v = np.linspace(31, 0, 21)
    grid = np.stack(np.broadcast_arrays(u[None], v[:, None], z[None]), -1).astype(np.float32)

    @jax.jit
    def seen_depths(grid):
        at, mask = visible_surface(grid, height=32, width=32, spacing=2.0)
        return sample_grid(grid, at)[..., 2], mask

    seen, mask = seen_depths(grid)
    assert mask[:, :29].all() and (seen[:, :28] > 19).all()
