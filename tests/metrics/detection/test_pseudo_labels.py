"""Precision and recall of pseudo boxes, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.metrics import pseudo_label_counts

TRUE = np.array([[0, 0, 10, 10], [0, 20, 10, 30], [0, 0, 1, 1]], np.float32)
LABELS, REAL = np.array([0, 1, 0]), np.array([True, True, False])


def counts(boxes, labels, mask=None, **changes):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    mask = np.ones(len(boxes), bool) if mask is None else np.asarray(mask)
    return pseudo_label_counts(boxes, np.asarray(labels, int), mask, TRUE, LABELS, REAL, **changes)


def test_a_box_is_right_where_it_overlaps_an_object_of_its_class_by_more_than_half():
    found = counts([[0, 0, 10, 9], [0, 20, 10, 30], [0, 0, 10, 10]], [0, 0, 1])  # two of the wrong class
    assert [float(x) for x in found] == pytest.approx([1, 3, 2, 0.9])
    report = found.report()
    assert float(report["precision"]) == pytest.approx(1 / 3) and float(report["recall"]) == 0.5
    assert float(counts([[0, 0, 10, 5]], [0]).right) == 0  # exactly half is wrong
    assert float(counts([[0, 0, 10, 5]], [0], iou_threshold=0.4).right) == 1


def test_padding_counts_nowhere_and_twice_found_counts_twice():
    twice = [[0, 0, 10, 10]] * 3
    found = counts(twice, [0, 0, 0], [True, True, False])
    assert [float(x) for x in found] == [2, 2, 2, 2]
    assert float(counts([[0, 0, 1, 1]], [0]).right) == 0  # the padded object


def test_nothing_at_all_is_nothing_and_images_add_up():
    none = counts([[0, 0, 10, 10]], [0], [False])
    assert all(float(v) == 0 for v in none.report().values())
    boxes = jnp.array([[[0.0, 0, 10, 10]], [[0, 20, 10, 30]]])
    both = pseudo_label_counts(
        boxes,
        jnp.array([[0], [1]]),
        jnp.ones((2, 1), bool),
        jnp.stack([TRUE, TRUE]),
        jnp.stack([LABELS, LABELS]),
        jnp.stack([REAL, REAL]),
    )
    assert [float(x) for x in both] == [2, 2, 4, 2]
