"""From coefficients to points, normals and irradiance: the head's shape, pose, cameras and light.

Camera frame: x right, y up, z towards the camera; image v points down. Functions take one face; map them over a batch.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.data.render.face_model import GRID, face_model


def rotation_matrix(pose: jax.Array) -> jax.Array:
    """R = Rz(roll) Ry(yaw) Rx(pitch), right-handed, for column vectors.

    Args:
      pose: [3] (pitch, yaw, roll) radians.

    Returns:
      [3, 3]. Positive yaw turns the nose to the right of the image, positive pitch turns it down.
    """
    (cx, cy, cz), (sx, sy, sz) = jnp.cos(pose), jnp.sin(pose)
    return jnp.stack(
        [
            jnp.stack([cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx]),
            jnp.stack([sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx]),
            jnp.stack([-sy, cy * sx, cy * cx]),
        ]
    )


def project(
    points: jax.Array, scale: jax.Array, translation: jax.Array, height: int, width: int
) -> jax.Array:
    """Weak perspective: u = W/2 + s x + tx, v = H/2 - s y + ty, depth key z.

    Args:
      points: [..., 3] mm in the camera frame.
      scale: s, pixels per mm.
      translation: [2] (tx, ty) pixels.

    Returns:
      [..., 3] (u, v, z).
    """
    return jnp.stack(
        [
            width / 2 + scale * points[..., 0] + translation[0],
            height / 2 - scale * points[..., 1] + translation[1],
            points[..., 2],
        ],
        -1,
    )


def project_pinhole(points: jax.Array, focal: float, center: float, distance: float) -> jax.Array:
    """Pinhole camera at `distance` on the z axis: u = f x/(d - z) + c, v = c - f y/(d - z); [..., 3] -> [..., 2]."""
    depth = distance - points[..., 2]
    return jnp.stack([focal * points[..., 0] / depth + center, center - focal * points[..., 1] / depth], -1)


def grid_normals(points: jax.Array) -> jax.Array:
    """Outward unit normals of a grid surface, dS/dcolumn x dS/drow; [R, C, 3] -> [R, C, 3]."""

    def slope(axis):  # central differences, one-sided at the border
        first = jax.lax.slice_in_dim(points, 0, 1, axis=axis)
        last = jax.lax.slice_in_dim(points, points.shape[axis] - 1, points.shape[axis], axis=axis)
        padded = jnp.concatenate([first, points, last], axis)
        size = padded.shape[axis]
        return jax.lax.slice_in_dim(padded, 2, size, axis=axis) - jax.lax.slice_in_dim(
            padded, 0, size - 2, axis=axis
        )

    normals = jnp.cross(slope(1), slope(0))
    return normals / (jnp.linalg.norm(normals, axis=-1, keepdims=True) + 1e-8)


def mesh_normals(points: jax.Array, triangles: jax.Array, *, area_weighted: bool = True) -> jax.Array:
    """Vertex normals of any mesh: the normalized sum of (v0-v1) x (v1-v2) over incident triangles.

    Args:
      points: [N, 3].
      triangles: [M, 3] int32, counter-clockwise seen from outside.
      area_weighted: large triangles count more; otherwise every face counts the same.

    Returns:
      [N, 3] unit vectors.
    """
    a, b, c = (points[triangles[:, i]] for i in range(3))
    faces = jnp.cross(a - b, b - c)
    if not area_weighted:
        faces = faces / (jnp.linalg.norm(faces, axis=-1, keepdims=True) + 1e-8)
    total = jnp.zeros_like(points).at[triangles.reshape(-1)].add(jnp.repeat(faces, 3, axis=0))
    return total / (jnp.linalg.norm(total, axis=-1, keepdims=True) + 1e-8)


def spherical_harmonics(normals: jax.Array) -> jax.Array:
    """Real spherical harmonics up to order 2 of unit vectors: [..., 3] -> [..., 9]."""
    x, y, z = normals[..., 0], normals[..., 1], normals[..., 2]
    return jnp.stack(
        [
            jnp.full_like(x, 0.282095),
            0.488603 * y,
            0.488603 * z,
            0.488603 * x,
            1.092548 * x * y,
            1.092548 * y * z,
            0.315392 * (3 * z**2 - 1),
            1.092548 * x * z,
            0.546274 * (x**2 - y**2),
        ],
        -1,
    )


_LAMBERT = np.array([np.pi] + 3 * [2 * np.pi / 3] + 5 * [np.pi / 4], np.float32)


def directional_light(direction: jax.Array, intensity: jax.Array) -> jax.Array:
    """Coefficients L = I Y(l) of a light from the unit vector l: [3], [] -> [9]."""
    return intensity[..., None] * spherical_harmonics(direction)


def shading(normals: jax.Array, ambient: jax.Array, light: jax.Array) -> jax.Array:
    """Lambertian irradiance E(n) = ambient + sum_k A_k L_k Y_k(n) in order 2.

    For one directional light, E - ambient = I (1/4 + (n.l)/2 + 5/32 (3 (n.l)^2 - 1)).

    Args:
      normals: [..., 3] unit vectors.
      ambient: [].
      light: [9].

    Returns:
      [...], may be slightly negative (clip before use).
    """
    return ambient + spherical_harmonics(normals) @ (_LAMBERT * light)


def head(shape: jax.Array, expression: jax.Array) -> jax.Array:
    """S = S_mean + B_id alpha + B_exp beta of one face: [24], [6] -> [GRID, GRID, 3] mm in the head's frame."""
    model = face_model()
    points = model.mean + model.identity @ shape + model.expression @ expression
    return points.reshape(GRID, GRID, 3)
