"""Which box an anchor is assigned to, by hand and against loops; samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import boxes

TRUE = jnp.array([True])
# One program each instead of some twenty: eager operations compile one by one.
MAX_IOU = jax.jit(boxes.max_iou_assign, static_argnames="low_quality")
FACE, SSH = jax.jit(boxes.face_assign), jax.jit(boxes.ssh_assign)
S3FD = jax.jit(boxes.s3fd_assign, static_argnames="max_matches")
EVERY = {"max_iou": MAX_IOU, "face": FACE, "s3fd": S3FD, "ssh": SSH}


def squares(*corners, side=10.0):
    return jnp.array([[y, x, y + side, x + side] for y, x in corners], jnp.float32)


def random_case(seed, anchors=60, count=6):
    rng = np.random.default_rng(seed)

    def draw(number, low, high):
        corner = rng.uniform(0, 60, (number, 2))
        return np.concatenate([corner, corner + rng.uniform(low, high, (number, 2))], axis=1)

    mask = rng.permutation(count) < 4
    return (
        draw(anchors, 8, 24).astype(np.float32),
        np.where(mask[:, None], draw(count, 6, 30), [0, 0, 1, 1]).astype(np.float32),
        mask,
    )


def test_thresholds_by_hand():
    # A box of 10 × 10 and anchors shifted by 0, 2, 4 and 9: IoU 1, 8 / 12, 6 / 14 and 1 / 19.
    anchors = squares((0, 0), (0, 2), (0, 4), (0, 9))
    given = {"low_quality": False, "min_positive": 0.0}
    assert MAX_IOU(anchors, squares((0, 0)), TRUE, positive=0.7, negative=0.3, **given).tolist() == [
        1,
        -1,
        -1,
        0,
    ]
    assert MAX_IOU(anchors, squares((0, 0)), TRUE, positive=0.5, negative=0.5, **given).tolist() == [
        1,
        1,
        0,
        0,
    ]
    # SSH: 0.5 and 0.3, nothing forced.
    assert SSH(anchors, squares((0, 0)), TRUE).tolist() == [1, 1, -1, 0]
    assert SSH(anchors[2:], squares((0, 0)), TRUE).tolist() == [-1, 0]


def test_low_quality_matches_take_all_equal_anchors_and_later_boxes_win():
    # Both anchors overlap the box equally, at 6 / 14, below `positive`.
    anchors, box = squares((0, 4), (0, -4)), squares((0, 0))
    assert MAX_IOU(anchors, box, TRUE, positive=0.7, negative=0.3).tolist() == [1, 1]
    assert MAX_IOU(anchors, box, TRUE, positive=0.7, negative=0.3, min_positive=0.43).tolist() == [-1, -1]
    # The anchor's best is box 1 (IoU 1), but it is the best anchor of box 2 as well, which comes later and takes it.
    two = squares((0, 0), (0, 6))
    both = jnp.array([True, True])
    assert MAX_IOU(squares((0, 0)), two, both, positive=0.7, negative=0.3).tolist() == [2]
    assert MAX_IOU(squares((0, 0)), two[::-1], both, positive=0.7, negative=0.3).tolist() == [2]
    assert MAX_IOU(squares((0, 0)), two, both, positive=0.7, negative=0.3, min_positive=0.3).tolist() == [1]


@pytest.mark.parametrize("function", EVERY.values(), ids=EVERY)
def test_without_a_box_everything_is_background(function):
    anchors, padding = squares((0, 0), (0, 30)), jnp.tile(jnp.array([[0.0, 0, 1, 1]]), (3, 1))
    assert function(anchors, padding, jnp.zeros(3, bool)).tolist() == [0, 0]


@pytest.mark.parametrize("function", EVERY.values(), ids=EVERY)
def test_padding_changes_nothing_and_a_batch_is_a_loop(function):
    cases = [random_case(seed) for seed in range(4)]
    batch = jax.jit(jax.vmap(function))(
        *(jnp.asarray(np.stack(column)) for column in zip(*cases, strict=True))
    )
    for assigned, (anchors, targets, mask) in zip(np.asarray(batch), cases, strict=True):
        alone = np.asarray(function(anchors, targets[mask], np.ones(mask.sum(), bool)))
        numbers = np.concatenate([[-1, 0], np.flatnonzero(mask) + 1])  # of the box among all
        np.testing.assert_array_equal(assigned, numbers[alone + 1])
        assert assigned.dtype == np.int32


def iou64(a, b):
    a, b = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    sides = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0)
    common = sides.prod(axis=-1)
    return common / ((a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - common)


@pytest.mark.parametrize("seed", range(3))
def test_general_assignment_step_by_step(seed):
    anchors, targets, mask = random_case(seed)
    iou = iou64(anchors, targets[mask])
    expected = np.full(len(anchors), -1)
    expected[iou.max(axis=1) < 0.2] = 0
    positive = iou.max(axis=1) >= 0.5
    expected[positive] = iou.argmax(axis=1)[positive] + 1
    for number, best in enumerate(iou.max(axis=0)):
        if best >= 0.2:
            expected[iou[:, number] == best] = number + 1
    assigned = MAX_IOU(anchors, targets[mask], np.ones(4, bool), negative=0.2, min_positive=0.2)
    np.testing.assert_array_equal(assigned, expected)
    assert {-1, 0, 1} <= set(expected.tolist())


@pytest.mark.parametrize("seed", range(3))
def test_matching_of_retinaface_step_by_step(seed):
    anchors, targets, mask = random_case(seed)
    iou = iou64(anchors, targets[mask])
    best, index = iou.max(axis=1), iou.argmax(axis=1)
    best_of_box, anchor_of_box = iou.max(axis=0), iou.argmax(axis=0)
    best[anchor_of_box[best_of_box >= 0.32]] = 2  # forced, with a threshold that boxes miss
    for number, anchor in enumerate(anchor_of_box):
        index[anchor] = number
    expected = np.where(best < 0.35, 0, index + 1)
    assigned = FACE(anchors, targets[mask], np.ones(4, bool), forced=0.32)
    np.testing.assert_array_equal(assigned, expected)
    assert (expected > 0).sum() >= 3


def test_a_face_that_overlaps_too_little_is_not_forced():
    anchors = squares((0, 0), (50, 50))
    # IoU 3.5 / 16.5 = 0.21 and 3 / 17 = 0.18 with the first anchor.
    assert FACE(anchors, squares((0, 6.5)), TRUE).tolist() == [1, 0]
    assert FACE(anchors, squares((0, 7.0)), TRUE).tolist() == [0, 0]
    # Two boxes share their best anchor: the later one has it.
    pair = squares((0, 2), (0, 3))
    assert FACE(anchors, pair, jnp.array([True, True])).tolist() == [2, 0]


def test_a_face_outside_every_anchor_claims_none():
    anchors = squares((0, 0), (50, 50))
    far = squares((0, 0), (200, 200))
    assert FACE(anchors, far, jnp.array([True, True])).tolist() == [1, 0]


def test_s3fd_compensates_faces_with_few_anchors():
    # The first face has 4 anchors of IoU ≥ .35, the second none; N = 4 // 2 = 2.
    anchors = squares((0, 0), (0, 1), (1, 0), (1, 1), (40, 5), (40, 6), (40, 6.5), (40, 7), (40, 9.9))
    faces = squares((0, 0), (40, 0))
    iou = iou64(np.asarray(anchors), np.asarray(faces))
    assert (iou[:4, 0] >= 0.35).all() and iou[4:, 1].max() < 0.35 and iou[4, 1] > iou[5, 1] > 0.1
    assigned = S3FD(anchors, faces, jnp.array([True, True]))
    assert assigned.tolist() == [1, 1, 1, 1, 2, 2, 0, 0, 0]
    # Alone it has N = 1; with IoU of at most 0.1 it gets none.
    assert S3FD(anchors[4:], faces[1:], TRUE).tolist() == [1, 0, 0, 0, 0]
    assert S3FD(anchors[8:], faces[1:], TRUE).tolist() == [0]


def test_a_crowd_is_no_target_and_its_background_is_ignored():
    anchors = squares((0, 0), (30, 30), (34, 34), (60, 60))
    targets = jnp.concatenate([squares((0, 0)), squares((30, 30), side=20.0)])
    mask, crowd = jnp.array([True, True]), jnp.array([False, True])
    for function in EVERY.values():
        assert function(anchors, targets, mask, crowd=crowd).tolist() == [1, -1, -1, 0]
        # A crowd region that is padding covers nothing.
        assert function(anchors, targets, jnp.array([True, False]), crowd=crowd).tolist() == [1, 0, 0, 0]


def test_what_belongs_to_an_anchor():
    assigned = jnp.array([-1, 0, 2, 1])
    assert boxes.assigned_labels(assigned, jnp.array([7, 4])).tolist() == [-1, 0, 5, 8]
    values = jnp.arange(4.0).reshape(2, 2)
    assert boxes.assigned_rows(assigned, values)[2:].tolist() == [[2, 3], [0, 1]]


# Samples.


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        (50, 100, (4, 12)),
        (2, 100, (2, 14)),
        (0, 100, (0, 16)),
        (50, 3, (4, 3)),
        (0, 0, (0, 0)),
        (2, 5, (2, 5)),
    ],
)
def test_a_sample_has_the_share_it_should(positives, negatives, expected):
    assigned = jnp.array([3] * positives + [0] * negatives + [-1] * 7)
    sample = boxes.sample_rois(jax.random.key(0), assigned, num=16, positive_fraction=0.25)
    assert sample.indices.shape == sample.valid.shape == sample.positive.shape == (16,)
    chosen = np.asarray(sample.indices)[np.asarray(sample.valid)]
    assert len(set(chosen.tolist())) == chosen.size == sum(expected)
    kinds = np.asarray(assigned)[chosen]
    assert ((kinds > 0).sum(), (kinds == 0).sum()) == expected
    np.testing.assert_array_equal(
        np.asarray(assigned)[np.asarray(sample.indices)[np.asarray(sample.positive)]], 3
    )
    mask = boxes.sample_mask(sample, assigned.size)
    np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(chosen))


def test_a_sample_is_random_and_a_batch_of_samples_is_a_loop():
    assigned = jnp.stack([jnp.arange(40) % 3 - 1, jnp.arange(40) % 2])
    keys = jax.random.split(jax.random.key(1), 2)

    def draw(key, row):
        return boxes.sample_rois(key, row, num=10, positive_fraction=0.5)

    batch = jax.jit(jax.vmap(draw))(keys, assigned)
    for index in range(2):
        alone = draw(keys[index], assigned[index])
        for got, expected in zip(batch, alone, strict=True):
            np.testing.assert_array_equal(got[index], expected)
    assert set(batch.indices[1].tolist()) != set(draw(keys[0], assigned[1]).indices.tolist())


def test_the_hardest_come_first():
    assigned = jnp.array([1, 1, 1, 0, 0, 0, 0, -1])
    hardness = jnp.array([0.1, 0.9, 0.5, 0.2, 0.8, 0.8, 0.4, 9.0])
    sample = boxes.sample_rois(None, assigned, num=5, positive_fraction=0.4, priority=hardness)
    assert sample.indices.tolist() == [1, 2, 4, 5, 6]
    assert sample.positive.tolist() == [True, True, False, False, False]


def test_samples_that_are_refused():
    assigned = jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match=r"^key, priority: needs one of them"):
        boxes.sample_rois(None, assigned)
    with pytest.raises(ValueError, match=r"^num: needs an integer from 1, got 0"):
        boxes.sample_rois(jax.random.key(0), assigned, num=0)
    with pytest.raises(
        ValueError, match=r"^positive_fraction: needs a finite number|^positive_fraction: needs a number"
    ):
        boxes.sample_rois(jax.random.key(0), assigned, positive_fraction=1.5)
