"""Boxes from one view of an image to another: every change of its geometry is a matrix.

A matrix takes (x, y, 1) of the original image to (x, y, 1) of the view, in continuous pixels with the origin at the top-left
corner. So views of one image are related by `view_to_view`, however each was made.

Methods: pseco
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.boxes.geometry import SMALLEST, box_array, clip_boxes
from jaxface.errors import UserError


def transform_boxes(
    boxes: jax.Array, matrix: jax.Array, image_size: jax.Array | tuple[int, int] | None = None
) -> jax.Array:
    """Where boxes are in another view: the smallest upright box around the four corners that the matrix moves.

    Rotation and shear therefore make boxes larger, and not back again. A box that leaves the view has no area there.

    Args:
      boxes: [..., N, 4] (y0, x0, y1, x1) pixels.
      matrix: [..., 3, 3] on columns (x, y, 1).
      image_size: (height, width) of the view, or an array [..., 2], to which boxes are cut; None cuts nothing.

    Returns:
      [..., N, 4] float32.

    Raises:
      ValueError: shapes. UserError: a matrix without an inverse, or boxes that are none, where the values are known.

    Example:
      >>> turn = jnp.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # (x, y) -> (-y, x)
      >>> transform_boxes(jnp.array([[0.0, 0, 1, 2]]), turn).tolist()  # as wide as it was high
      [[0.0, -1.0, 2.0, 0.0]]
    """
    boxes, matrix = box_array("boxes", boxes), _matrix("matrix", matrix)
    y0, x0, y1, x1 = (boxes[..., i] for i in range(4))
    x, y = jnp.stack([x0, x1, x0, x1], axis=-1), jnp.stack([y0, y0, y1, y1], axis=-1)
    rows = matrix[..., None, None, :, :]  # against boxes and corners
    moved = [rows[..., i, 0] * x + rows[..., i, 1] * y + rows[..., i, 2] for i in range(3)]
    depth = jnp.where(jnp.abs(moved[2]) > SMALLEST, moved[2], SMALLEST)
    x, y = moved[0] / depth, moved[1] / depth
    hull = jnp.stack([y.min(-1), x.min(-1), y.max(-1), x.max(-1)], axis=-1)
    if image_size is None:
        return hull
    return clip_boxes(hull, jnp.asarray(image_size)[..., None, :])


def view_to_view(source: jax.Array, target: jax.Array) -> jax.Array:
    """The matrix from one view to another of the same image: target · source⁻¹.

    Args:
      source, target: [..., 3, 3], each from the original to its view.

    Returns:
      [..., 3, 3] float32.

    Raises:
      ValueError: shapes. UserError: a matrix without an inverse, where the values are known.

    Example:
      >>> half, shifted = jnp.diag(jnp.array([0.5, 0.5, 1])), jnp.eye(3).at[0, 2].set(3)
      >>> view_to_view(half, shifted).tolist()
      [[2.0, 0.0, 3.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]
    """
    source, target = _matrix("source", source), _matrix("target", target)
    # By cofactors: LAPACK's inverse is a call of its own for each matrix, and these are three by three.
    a, b, c = source[..., 0, :], source[..., 1, :], source[..., 2, :]
    cofactors = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=-1)
    determinant = jnp.sum(a * jnp.cross(b, c), axis=-1)[..., None, None]
    return jnp.einsum("...ij,...jk->...ik", target, cofactors / determinant, precision="highest")


def _matrix(name: str, matrix: jax.Array) -> jax.Array:
    if np.ndim(matrix) < 2 or np.shape(matrix)[-2:] != (3, 3):
        raise ValueError(f"{name}: needs [..., 3, 3], got {np.shape(matrix)}")
    if not isinstance(matrix, jax.core.Tracer):
        values = np.asarray(matrix, np.float64)
        # An inverse is possible or not whatever the unit is: relative to the size of the rows.
        size = np.maximum(np.prod(np.linalg.norm(values, axis=-1), axis=-1), np.finfo(float).tiny)
        if not (np.isfinite(values).all() and (np.abs(np.linalg.det(values)) / size > 1e-9).all()):
            raise UserError(f"{name}: needs matrices with an inverse, got one whose determinant is 0")
    return jnp.asarray(matrix).astype(jnp.float32)
