"""Boxes between views of an image, by hand and against a point-by-point computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.boxes import box_area, transform_boxes, view_to_view
from jaxface.errors import UserError

BOXES = np.array([[1.0, 2, 5, 9], [0, 0, 2, 1], [30, 20, 50, 40]], np.float32)
TURN = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # a quarter about the origin: (x, y) -> (-y, x)


def test_check_8_identity_scale_and_a_quarter_turn():
    np.testing.assert_array_equal(transform_boxes(BOXES, np.eye(3)), BOXES)
    np.testing.assert_array_equal(transform_boxes(BOXES, np.diag([2.0, 2, 1])), 2 * BOXES)
    turned = transform_boxes(np.array([[0.0, 0, 1, 2]]), TURN)[0]  # width 2, height 1
    np.testing.assert_allclose(turned, [0, -1, 2, 0], atol=1e-6)  # width 1, height 2


def test_check_8_what_leaves_the_view_has_no_area():
    away = np.array([[1.0, 0, 40], [0, 1, 0], [0, 0, 1]])
    moved = transform_boxes(BOXES, away, (32, 32))
    assert (np.asarray(box_area(moved)) == 0).all() and (np.asarray(moved) <= 32).all()


def test_any_matrix_as_its_corners_move():
    rng = np.random.default_rng(0)
    matrix = np.eye(3) + 0.1 * rng.normal(size=(3, 3)) * [[1, 1, 20], [1, 1, 20], [0.01, 0.01, 0.1]]
    expected = []
    for y0, x0, y1, x1 in BOXES:
        corners = np.array([[x, y, 1] for x in (x0, x1) for y in (y0, y1)]) @ matrix.T
        x, y = (corners[:, :2] / corners[:, 2:]).T
        expected.append([y.min(), x.min(), y.max(), x.max()])
    np.testing.assert_allclose(transform_boxes(BOXES, matrix), expected, rtol=1e-4, atol=1e-4)


def test_there_and_back_where_nothing_turns_and_batches_as_one():
    rng = np.random.default_rng(1)
    matrices = np.tile(np.eye(3), (3, 1, 1))
    matrices[:, 0, 0], matrices[:, 1, 1] = rng.uniform(0.5, 2, (2, 3))
    matrices[:, :2, 2] = rng.uniform(-4, 4, (3, 2))
    matrices[1, 0, 0] *= -1  # mirrored
    forth = view_to_view(matrices, matrices[::-1].copy())
    back = view_to_view(matrices[::-1].copy(), matrices)
    boxes = np.tile(BOXES, (3, 1, 1))
    there = jax.jit(transform_boxes)(boxes, forth)
    np.testing.assert_allclose(transform_boxes(there, back), boxes, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(there[1], transform_boxes(boxes[1], forth[1]), rtol=1e-6)
    np.testing.assert_allclose(forth, matrices[::-1] @ np.linalg.inv(matrices), rtol=1e-5, atol=1e-5)


def test_check_12_refuses_matrices_without_an_inverse():
    flat = np.diag([1.0, 0, 1])
    for call in (lambda: transform_boxes(BOXES, flat), lambda: view_to_view(flat, np.eye(3))):
        with pytest.raises(UserError, match="needs matrices with an inverse"):
            call()
    with pytest.raises(ValueError, match=r"matrix: needs \[..., 3, 3\], got \(2, 3\)"):
        transform_boxes(BOXES, np.eye(3)[:2])
    tiny = jnp.diag(jnp.array([1e-3, 1e-3, 1.0]))  # small, but a view
    assert np.isfinite(view_to_view(tiny, np.eye(3))).all()
