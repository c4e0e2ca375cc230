"""Which surface a pixel sees: an exact triangle rasterizer, and a fast one for surfaces that are grids.

Pixel centers lie at integer (u, v), v downwards; larger z is nearer to the camera.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

_CHUNK = 16  # triangles tested at once: bounds the memory, keeps the vector units busy
_NEAR, _FAR = 256.0, -256.0  # mm, depths that the fast path can order


def settle(tree):
    """Keeps the compiler from computing `tree` again inside each of its consumers (XLA's CPU fusion would)."""
    return jax.lax.optimization_barrier(tree)


class Raster(NamedTuple):
    """depth [H, W] float32 (0 in the background), triangle [H, W] int32 (-1), barycentric [H, W, 3] float32 (0)."""

    depth: jax.Array
    triangle: jax.Array
    barycentric: jax.Array


@functools.partial(jax.jit, static_argnames=("height", "width"))
def rasterize(points: jax.Array, triangles: jax.Array, *, height: int, width: int) -> Raster:
    """Exact visibility: at every pixel center the triangle with the largest interpolated z.

    A triangle covers a pixel whose barycentric coordinates are all >= -1e-6; of equal depths the lowest triangle wins;
    triangles without area are skipped. O(M H W) time, O(H W) memory; jit- and vmap-safe (design).

    Args:
      points: [N, 3] float32, (u, v) pixels and depth key z.
      triangles: [M, 3] int32, vertices of each triangle.
      height, width: of the image, pixels.

    Returns:
      Raster.

    Raises:
      ValueError: wrong ranks.
    """
    if points.ndim != 2 or points.shape[1] != 3 or triangles.ndim != 2 or triangles.shape[1] != 3:
        raise ValueError(
            f"rasterize: needs points [N, 3] and triangles [M, 3], got {points.shape}, {triangles.shape}"
        )
    points = points.astype(jnp.float32)
    count = triangles.shape[0]
    padding = -count % _CHUNK
    chunks = jnp.pad(triangles, ((0, padding), (0, 0))).reshape(
        -1, _CHUNK, 3
    )  # padding (0, 0, 0) has no area
    v, u = jnp.mgrid[:height, :width].astype(jnp.float32)

    def weights(corner):  # [..., 3, 3] -> three [..., H, W]
        a, b, c = (corner[..., i, :, None, None] for i in range(3))
        area = (b[..., 0, :, :] - a[..., 0, :, :]) * (c[..., 1, :, :] - a[..., 1, :, :]) - (
            b[..., 1, :, :] - a[..., 1, :, :]
        ) * (c[..., 0, :, :] - a[..., 0, :, :])
        safe = jnp.where(area == 0, 1.0, area)
        edge = lambda p, q: (  # noqa: E731
            (q[..., 0, :, :] - p[..., 0, :, :]) * (v - p[..., 1, :, :])
            - (q[..., 1, :, :] - p[..., 1, :, :]) * (u - p[..., 0, :, :])
        )
        return edge(b, c) / safe, edge(c, a) / safe, edge(a, b) / safe, area != 0

    def step(best, item):
        first, chunk = item
        corner = points[chunk]
        wa, wb, wc, solid = weights(corner)
        z = [corner[:, i, 2, None, None] for i in range(3)]
        depth = wa * z[0] + wb * z[1] + wc * z[2]
        inside = solid & (wa >= -1e-6) & (wb >= -1e-6) & (wc >= -1e-6)
        depth = jnp.where(inside, depth, -jnp.inf)
        winner = depth.argmax(0)  # the first of equals, hence the lowest id
        nearest = depth.max(0)
        closer = nearest > best[0]  # strict: an earlier triangle keeps a tie
        return (jnp.where(closer, nearest, best[0]), jnp.where(closer, first + winner, best[1])), None

    start = (jnp.full((height, width), -jnp.inf), jnp.full((height, width), -1, jnp.int32))
    firsts = jnp.arange(chunks.shape[0], dtype=jnp.int32) * _CHUNK
    (depth, triangle), _ = jax.lax.scan(step, start, (firsts, chunks))

    hit = triangle >= 0
    corner = points[triangles[jnp.maximum(triangle, 0)]]  # [H, W, 3, 3]
    a, b, c = corner[..., 0, :], corner[..., 1, :], corner[..., 2, :]
    cross = lambda p, q: p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]  # noqa: E731
    pixel = jnp.stack([u, v], -1)
    area = cross((b - a)[..., :2], (c - a)[..., :2])
    area = jnp.where(hit, area, 1.0)
    barycentric = jnp.stack(
        [
            cross((c - b)[..., :2], pixel - b[..., :2]) / area,
            cross((a - c)[..., :2], pixel - c[..., :2]) / area,
            cross((b - a)[..., :2], pixel - a[..., :2]) / area,
        ],
        -1,
    )
    return Raster(jnp.where(hit, depth, 0.0), triangle, jnp.where(hit[..., None], barycentric, 0.0))


def sample_grid(values: jax.Array, at: jax.Array) -> jax.Array:
    """Bilinear values of a grid at fractional (row, column) positions.

    Args:
      values: [R, C, K] float.
      at: [..., 2] float, row in [0, R-1] and column in [0, C-1].

    Returns:
      [..., K].
    """
    rows, columns, channels = values.shape
    row = jnp.clip(jnp.floor(at[..., 0]), 0, rows - 2).astype(jnp.int32)
    column = jnp.clip(jnp.floor(at[..., 1]), 0, columns - 2).astype(jnp.int32)
    fr, fc = at[..., 0] - row, at[..., 1] - column
    corner = row * columns + column
    flat = values.reshape(-1, channels)

    def channel(k):  # one plain gather per corner and channel: XLA fuses these on every backend
        line = flat[:, k]
        low = line[corner] * (1 - fc) + line[corner + 1] * fc
        high = line[corner + columns] * (1 - fc) + line[corner + columns + 1] * fc
        return low * (1 - fr) + high * fr

    return jnp.stack([channel(k) for k in range(channels)], -1)


def _newton(grid: jax.Array, at: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One Newton step towards the grid position that projects to `target`; also the step's validity (faces us)."""
    rows, columns, _ = grid.shape
    row = jnp.clip(jnp.floor(at[..., 0]), 0, rows - 2).astype(jnp.int32)
    column = jnp.clip(jnp.floor(at[..., 1]), 0, columns - 2).astype(jnp.int32)
    fr, fc = at[..., 0] - row, at[..., 1] - column
    corner = row * columns + column

    def linear(k):
        line = grid[..., k].reshape(-1)
        p00, p01 = line[corner], line[corner + 1]
        p10, p11 = line[corner + columns], line[corner + columns + 1]
        low, high = p00 + (p01 - p00) * fc, p10 + (p11 - p10) * fc
        return low + (high - low) * fr, high - low, (p01 - p00) * (1 - fr) + (p11 - p10) * fr

    u, u_row, u_column = linear(0)
    v, v_row, v_column = linear(1)
    du, dv = target[..., 0] - u, target[..., 1] - v
    facing = u_row * v_column - u_column * v_row  # > 0 where the outside of the surface is seen
    safe = jnp.where(jnp.abs(facing) < 1e-6, 1e-6, facing)
    step = jnp.stack([(du * v_column - dv * u_column) / safe, (dv * u_row - du * v_row) / safe], -1)
    moved = at + jnp.clip(step, -1.5, 1.5)
    moved = jnp.clip(moved, 0.0, jnp.array([rows - 1.0, columns - 1.0]))
    return moved, facing > 1e-6


def visible_surface(
    grid: jax.Array, *, height: int, width: int, spacing: float = 4.0
) -> tuple[jax.Array, jax.Array]:
    """Fast visibility of a grid surface: which grid position each pixel sees.

    The grid is refined bilinearly and splatted as points; each pixel keeps the nearest of the samples around it by one
    scatter-max over packed (depth, index) integers; Newton steps on the projection then move that sample to the pixel
    center, which fills gaps and removes the splat's stair-steps. Where they do not arrive, beyond a silhouette, the
    pixel keeps its own sample, or its neighbors', within the surface, and is background on the outline (design).

    Differentiable: the last Newton step carries the gradient of the implicit function `grid(at) = pixel`.

    Args:
      grid: [R, C, 3] float32, (u, v) pixels and z mm in (-256, 256), rows upwards in the image.
      height, width: of the image, pixels.
      spacing: upper bound of the distance of neighboring grid points, pixels; sets the refinement.

    Returns:
      (at [H, W, 2] fractional (row, column) of the grid, mask [H, W] bool; `at` is arbitrary where mask is false).
    """
    rows, columns, _ = grid.shape
    factor = max(1, round(spacing))
    fine_rows, fine_columns = (rows - 1) * factor + 1, (columns - 1) * factor + 1
    bits = (fine_rows * fine_columns).bit_length()
    if bits > 20:
        raise ValueError(f"spacing: {spacing} pixels needs {bits} bits of index, at most 20 are possible")
    fixed = jax.lax.stop_gradient(grid)

    def refine(x, axis):
        low, high = (
            jax.lax.slice_in_dim(x, 0, -1 + x.shape[axis], axis=axis),
            jax.lax.slice_in_dim(x, 1, None, axis=axis),
        )
        steps = [low + (high - low) * (k / factor) for k in range(factor)]
        x_fine = jnp.stack(steps, axis + 1).reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
        return jnp.concatenate([x_fine, jax.lax.slice_in_dim(x, -1 + x.shape[axis], None, axis=axis)], axis)

    fine = [refine(refine(fixed[..., k], 0), 1).reshape(-1) for k in range(3)]
    column, row = jnp.round(fine[0]).astype(jnp.int32), jnp.round(fine[1]).astype(jnp.int32)
    outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
    pixel = jnp.where(outside, height * width, row * width + column)
    levels = 2 ** (31 - bits)
    depth = jnp.clip((fine[2] - _FAR) / (_NEAR - _FAR) * levels, 0, levels - 1).astype(jnp.int32)
    key = (depth << bits) | (jnp.arange(fine_rows * fine_columns, dtype=jnp.int32) + 1)
    pixel, key = settle((pixel, key))
    nearest = jnp.zeros(height * width + 1, jnp.int32).at[pixel].max(key)[:-1].reshape(height, width)

    def nearest_around(keys):
        keys = jnp.pad(keys, 1)
        keys = jnp.maximum(jnp.maximum(keys[:-2], keys[1:-1]), keys[2:])
        return jnp.maximum(jnp.maximum(keys[:, :-2], keys[:, 1:-1]), keys[:, 2:])

    around = nearest_around(nearest)
    around = jnp.where(
        around > 0, around, nearest_around(around)
    )  # where a slope has torn the samples far apart

    def position(keys):
        index = jnp.maximum((keys & (2**bits - 1)) - 1, 0)
        return jnp.stack([index // fine_columns, index % fine_columns], -1).astype(jnp.float32) / factor

    v, u = jnp.mgrid[:height, :width].astype(jnp.float32)
    target = jnp.stack([u, v], -1)
    # Where samples are dense enough to leave no gap, the nearest sample of the pixel itself is the closer start.
    start = nearest if spacing / factor <= 0.6 else around
    at = settle(_newton(fixed, settle(position(start)), target)[0])
    at = settle(_newton(fixed, at, target)[0])
    at, facing = settle(_newton(grid, jax.lax.stop_gradient(at), target))
    reached = sample_grid(fixed[..., :2], jax.lax.stop_gradient(at))
    arrived = (start > 0) & facing & (jnp.abs(reached - target).max(-1) < 0.05)
    seen = jnp.pad(arrived | (nearest > 0), 1, constant_values=True)
    within = seen[:-2, 1:-1] & seen[2:, 1:-1] & seen[1:-1, :-2] & seen[1:-1, 2:] & (around > 0)
    return jnp.where(
        arrived[..., None], at, position(jnp.where(nearest > 0, nearest, around))
    ), arrived | within
