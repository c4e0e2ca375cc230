"""Overlap, coding and anchors: numbers of the published definitions, gradients, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import boxes
from jaxface.boxes import AnchorSpec
from jaxface.errors import UserError

RNG = np.random.default_rng(0)
FACE_STDS = (0.1, 0.1, 0.2, 0.2)


def random_boxes(count, *, size=100.0, rng=RNG):
    corner = rng.uniform(0, size, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(1, size / 2, (count, 2))], axis=1).astype(np.float32)


def xyxy(*box):
    """A box given as (x0, y0, x1, y1)."""
    return jnp.array([[box[1], box[0], box[3], box[2]]], jnp.float32)


@pytest.mark.parametrize(
    ("a", "b", "iou", "giou"),
    [
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7, 1 / 7 - 2 / 9),  # 0.142857, -0.079365
        ((0, 0, 1, 1), (2, 0, 3, 1), 0.0, -1 / 3),
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0, 1.0),
    ],
)
def test_two_boxes_by_hand(a, b, iou, giou):
    a, b = xyxy(*a), xyxy(*b)
    np.testing.assert_allclose(boxes.box_iou(a, b), [[iou]], atol=1e-6)
    np.testing.assert_allclose(boxes.box_giou(a, b), [[giou]], atol=1e-6)


def test_all_pairs_against_float64():
    a, b = random_boxes(7), random_boxes(5)
    first, second = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    common = np.maximum(sides, 0).prod(axis=-1)
    area_a, area_b = ((c[..., 2:] - c[..., :2]).prod(axis=-1) for c in (first, second))
    union = area_a + area_b - common
    around = np.maximum(first[..., 2:], second[..., 2:]) - np.minimum(first[..., :2], second[..., :2])
    around = around.prod(axis=-1)
    np.testing.assert_allclose(boxes.box_iou(a, b), common / union, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(boxes.box_iof(a, b), common / area_a, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        boxes.box_giou(a, b), common / union - (around - union) / around, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(boxes.paired_giou(a[:5], b), np.diag(boxes.box_giou(a[:5], b)), rtol=1e-6)
    assert (common == 0).any() and (common > 0).any()


def test_bfloat16_boxes_are_compared_in_float32():
    a, b = (jnp.asarray(random_boxes(6), jnp.bfloat16) for _ in range(2))
    exact = boxes.box_iou(a.astype(jnp.float32), b.astype(jnp.float32))
    assert boxes.box_iou(a, b).dtype == jnp.float32
    np.testing.assert_array_equal(boxes.box_iou(a, b), exact)


DEGENERATE = jnp.array([[0.0, 0, 1, 1], [5, 5, 5, 5], [5, 0, 5, 9], [0, 0, 0, 0], [2, 2, 3, 3]])


def test_degenerate_boxes_have_finite_bounded_gradients():
    def loss(a, b):
        encoded = boxes.encode_boxes(a, b, stds=FACE_STDS)
        decoded = boxes.decode_boxes(a, encoded, stds=FACE_STDS)
        return (
            jnp.sum(boxes.box_iou(a, b) + boxes.box_giou(a, b) + boxes.box_iof(a, b))
            + jnp.sum(jnp.sin(encoded))
            + jnp.sum(jnp.sin(decoded))
        )

    every = jnp.concatenate([DEGENERATE, DEGENERATE[::-1]])
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(every, jnp.roll(every, 3, axis=0))
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() and np.abs(g).max() < 1e3 for g in gradients)
    np.testing.assert_array_equal(boxes.box_iou(DEGENERATE[1:2], DEGENERATE[1:2]), [[0.0]])


@pytest.mark.parametrize(
    "function",
    [boxes.box_iou, boxes.box_giou, boxes.box_iof, boxes.encode_boxes, functools.partial(boxes.decode_boxes)],
)
def test_jit_and_vmap_give_what_a_loop_gives(function):
    a, b = random_boxes(6).reshape(2, 3, 4), random_boxes(6).reshape(2, 3, 4) / 50
    looped = np.stack([function(x, y) for x, y in zip(jnp.asarray(a), jnp.asarray(b), strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(a, b), looped, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(function(jnp.asarray(a), jnp.asarray(b)), looped, rtol=1e-5, atol=1e-5)


def test_area_and_clipping():
    np.testing.assert_array_equal(boxes.box_area(DEGENERATE), [1, 0, 0, 0, 1])
    clipped = boxes.clip_boxes(jnp.array([[-3.0, 4, 30, 50], [40, 90, 60, 99]]), (20, 40))
    np.testing.assert_array_equal(clipped, [[0, 4, 20, 40], [20, 40, 20, 40]])
    sizes = jnp.array([[10, 40], [20, 40]])[:, None]
    per_image = boxes.clip_boxes(jnp.full((2, 1, 4), 30.0), sizes)
    np.testing.assert_array_equal(per_image[:, 0], [[10, 30, 10, 30], [20, 30, 20, 30]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: boxes.box_iou(jnp.array([[1.0, 1, 0, 2]]), DEGENERATE), r"a: needs \(y0, x0, y1, x1\) with"),
        (lambda: boxes.box_giou(DEGENERATE, jnp.array([[10.0, 80, 30, 20]])), r"b: needs \(y0, x0, y1, x1\)"),
        (lambda: boxes.box_iof(DEGENERATE * jnp.nan, DEGENERATE), "a: needs finite coordinates, got"),
        (lambda: boxes.box_iou(DEGENERATE[:, :3], DEGENERATE), r"a: needs boxes of shape \[..., 4\], got"),
        (lambda: boxes.encode_boxes(DEGENERATE, DEGENERATE, stds=(1, 2)), "stds: needs 4 numbers"),
        (lambda: boxes.decode_boxes(DEGENERATE, DEGENERATE[:, :2]), "deltas: needs shape"),
        (lambda: boxes.encode_points(DEGENERATE, DEGENERATE), r"points: needs shape \[..., P, 2\]"),
        (lambda: boxes.make_anchors([(2, 2)], AnchorSpec()), "level_shapes: needs 5 levels, as strides has"),
        (lambda: boxes.square_anchors(64, (8, 16)), "sizes: needs those of 2 levels, as strides has, got 3"),
        (lambda: boxes.square_anchors(0), "image_size: needs at least one pixel, got 0 x 0"),
        (lambda: AnchorSpec(scales=(0.0,)), "scales: needs a finite number above 0"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(ValueError, match=f"^{words}") as refused:
        call()
    assert "\n" not in str(refused.value)


def test_inverted_boxes_are_a_users_mistake():
    with pytest.raises(UserError):
        boxes.box_iou(jnp.array([[10.0, 80, 30, 20]]), DEGENERATE)


# Coding.


def test_encoding_by_hand():
    anchor, box = jnp.array([10.0, 10, 50, 30]), jnp.array([8.0, 12, 44, 36])
    np.testing.assert_allclose(
        boxes.encode_boxes(anchor, box), [0.2, -0.1, np.log(24 / 20), np.log(36 / 40)], atol=1e-6
    )
    np.testing.assert_allclose(
        boxes.encode_boxes(anchor, box, stds=FACE_STDS), [2, -1, 0.911608, -0.526803], atol=1e-6
    )
    shifted = boxes.encode_boxes(anchor, box, stds=FACE_STDS, means=(0.1, 0.2, 0.3, 0.4))
    plain = np.array([0.2, -0.1, 0.182322, -0.105361])
    np.testing.assert_allclose(shifted, (plain - [0.1, 0.2, 0.3, 0.4]) / FACE_STDS, atol=1e-5)


def test_the_face_detectors_example():
    """Anchor (cx, cy, w, h) = (.5, .5, .2, .2) and box (.45, .42, .69, .66), variances .1 and .2."""
    anchor, box = jnp.array([0.4, 0.4, 0.6, 0.6]), jnp.array([0.42, 0.45, 0.66, 0.69])
    deltas = boxes.encode_boxes(anchor, box, stds=FACE_STDS)
    np.testing.assert_allclose(deltas, [3.5, 2, 0.911608, 0.911608], atol=1e-5)
    assert float(boxes.paired_iou(anchor, box)) == pytest.approx(0.382436, abs=1e-6)


def test_decoding_inverts_encoding():
    anchors, targets = random_boxes(50), random_boxes(50)
    for stds, means in (((1.0,) * 4, 0.0), (FACE_STDS, (0.1, -0.2, 0.3, 0.05))):
        deltas = boxes.encode_boxes(anchors, targets, stds=stds, means=means)
        np.testing.assert_allclose(
            boxes.decode_boxes(anchors, deltas, stds=stds, means=means), targets, atol=1e-4
        )
    points = RNG.uniform(0, 100, (50, 5, 2)).astype(np.float32)
    np.testing.assert_allclose(
        boxes.decode_points(anchors, boxes.encode_points(anchors, points)), points, atol=1e-4
    )
    sizes = (480, 640)
    np.testing.assert_allclose(
        boxes.boxes_of_normalized(boxes.normalized_boxes(targets, sizes), sizes), targets, atol=1e-4
    )


def test_points_by_hand():
    anchor = jnp.array([0.0, 10, 40, 30])  # center (20, 20), 20 wide, 40 high
    np.testing.assert_allclose(
        boxes.encode_points(anchor, jnp.array([[22.0, 12.0], [20, 20]])), [[1, -2], [0, 0]], atol=1e-6
    )


def test_decoding_is_bounded_and_cut_to_the_image():
    anchors = jnp.array([[0.0, 0, 16, 16]])
    wild = jnp.array([[0.0, 0, 1e30, -1e30]])
    boxes_of_wild = boxes.decode_boxes(anchors, wild)
    np.testing.assert_allclose(boxes_of_wild[0, [3, 2]] - boxes_of_wild[0, [1, 0]], [1000, 0.256], rtol=1e-4)
    np.testing.assert_allclose(
        boxes.decode_boxes(anchors, wild, image_size=(12, 300)), [[7.872, 0, 8.128, 300]], atol=1e-3
    )
    gradient = jax.grad(lambda d: boxes.decode_boxes(anchors, d, stds=FACE_STDS).sum())(wild)
    assert np.isfinite(gradient).all()


# Anchors.


def test_anchors_of_retinanet_and_of_proposals():
    anchors = boxes.make_anchors([(1, 1)], AnchorSpec(strides=(8,)))
    assert anchors.shape == (9, 4) and anchors.dtype == np.float32
    np.testing.assert_allclose(
        anchors[0], [-11.313708, -22.627417, 11.313708, 22.627417], rtol=1e-6
    )  # ratio height / width of ½: wide
    np.testing.assert_allclose(anchors[4], np.array([-1, -1, 1, 1]) * 20.158737, rtol=1e-6)
    coarse = AnchorSpec(strides=(8, 16, 32, 64, 128), scales=(4.0,))
    fine = AnchorSpec(strides=(4, 8, 16, 32, 64), scales=(8.0,))
    for spec in (coarse, fine):
        of_cells = boxes.make_anchors([(1, 1)] * 5, spec)
        squares = of_cells[1::3]
        np.testing.assert_allclose(squares[:, 2] - squares[:, 0], [32, 64, 128, 256, 512])


def test_anchors_go_by_level_row_column_ratio_scale():
    spec = AnchorSpec(strides=(8, 16))
    anchors = boxes.make_anchors([(2, 3), (1, 2)], spec)
    assert anchors.shape == ((6 + 2) * 9, 4)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    rows_columns = [(r, c) for r in range(2) for c in range(3)]
    expected = np.array([*(np.array(rc) * 8 for rc in rows_columns), (0, 0), (0, 16)])
    np.testing.assert_allclose(centers, np.repeat(expected, 9, axis=0), atol=1e-5)  # no half stride
    sides = anchors[:9, 2:] - anchors[:9, :2]
    np.testing.assert_allclose(sides[:, 0] / sides[:, 1], np.repeat([0.5, 1, 2], 3), rtol=1e-5)
    np.testing.assert_allclose(np.sqrt(sides.prod(axis=1)), np.tile(8 * np.array(spec.scales), 3), rtol=1e-5)


def test_square_anchors_of_face_detectors():
    anchors = boxes.square_anchors(640)
    assert anchors.shape == (16_800, 4)
    np.testing.assert_array_equal(
        anchors[:3], [[-4, -4, 12, 12], [-12, -12, 20, 20], [-4, 4, 12, 20]]
    )  # sizes 16 and 32 around (4, 4), then the next column
    sides = anchors[:, 2] - anchors[:, 0]
    counts = {16: 6400, 32: 6400, 64: 1600, 128: 1600, 256: 400, 512: 400}
    assert {int(side): int(np.sum(sides == side)) for side in np.unique(sides)} == counts
    assert boxes.square_anchors(640, boxes.S3FD_STRIDES, boxes.S3FD_SIZES).shape == (34_125, 4)


def test_square_anchors_of_any_image_size():
    anchors = boxes.square_anchors((33, 70), (32,), ((64,),))  # maps of ⌈33 / 32⌉ × ⌈70 / 32⌉
    assert anchors.shape == (2 * 3, 4)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    np.testing.assert_array_equal(centers, [[y, x] for y in (16, 48) for x in (16, 48, 80)])


def test_anchors_in_the_padding_are_not_valid():
    shapes = [(4, 4), (2, 2)]
    mask = jax.jit(lambda size: boxes.valid_anchors(shapes, (8, 16), (2, 1), size))(jnp.array([17, 32]))
    # Of 32 × 32, 17 rows are the image's: 3 of 4 rows at stride 8, 2 of 2 at stride 16.
    np.testing.assert_array_equal(mask, [True] * 24 + [False] * 8 + [True] * 4)
    batch = jax.vmap(lambda size: boxes.valid_anchors(shapes, (8, 16), 1, size))(
        jnp.array([[32, 32], [8, 8]])
    )
    np.testing.assert_array_equal(batch.sum(axis=1), [20, 2])
