"""RetinaFace: published counts, what its outputs mean, and its loss."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_detector import TINY

from jaxface import boxes
from jaxface.errors import UserError
from jaxface.hardware import network_cycles
from jaxface.layers import CONTEXTS
from jaxface.models import multiply_accumulates, parameter_count
from jaxface.models.convolutions import convolution_specs
from jaxface.models.detection import RetinaFace, create_detector, init_variables, select_detections
from jaxface.models.detection.retinaface import STDS


def shapes(detector, size=(640, 640)):
    return jax.eval_shape(lambda: init_variables(detector, jax.random.key(0), size))[0]


def test_published_counts():
    detector = create_detector("retinaface")
    assert parameter_count(shapes(detector)) == 426_608
    assert multiply_accumulates(detector.module, (640, 640, 3)) == 981_145_600
    assert len(detector.anchors((640, 640))) == 16_800
    weights = {name: 0 for name in ("backbone", "pyramid", "context", "head")}
    for path, leaf in flax.traverse_util.flatten_dict(shapes(detector)).items():
        if path[-1] == "kernel":
            part = path[0] if path[0] in weights else "context" if path[0].startswith("context") else "head"
            weights[part] += leaf.size
    assert weights == {"backbone": 207_600, "pyramid": 28_672 + 73_728, "context": 103_680, "head": 6_144}


@pytest.mark.parametrize(
    ("context", "weights", "operations"),
    [  # of convolutions alone
        ("ssh", 419_824, 981_145_600),
        ("dilated", 426_736, 1_000_499_200),
        ("ddc", 333_616, 739_763_200),
        ("cassod", 397_552, 918_784_000),
    ],
)
def test_weights_and_operations_by_kind_of_context(context, weights, operations):
    if context not in CONTEXTS:
        pytest.skip(f"no context {context} is registered")
    detector = RetinaFace(context=context)
    leaves = flax.traverse_util.flatten_dict(shapes(detector))
    assert sum(leaf.size for path, leaf in leaves.items() if path[-1] not in ("scale", "bias")) == weights
    # Not `multiply_accumulates`: the cascade's form on a CPU is a sum of shifted images.
    assert network_cycles(convolution_specs(detector.module, (640, 640, 3))).macs == operations


def test_the_large_backbone_has_its_published_size():
    detector = RetinaFace("resnet50")
    assert detector.module.features == 256
    assert parameter_count(shapes(detector)) == 27_293_600
    outputs = jax.eval_shape(
        lambda x: detector.module.init_with_output(jax.random.key(0), x)[0],
        jax.ShapeDtypeStruct((2, 72, 40, 3), jnp.float32),
    )
    places = len(detector.anchors((72, 40)))
    assert places == 2 * (9 * 5 + 5 * 3 + 3 * 2)
    assert {name: leaf.shape for name, leaf in outputs.items()} == {
        "class_logits": (2, places, 2),
        "box_deltas": (2, places, 4),
        "point_deltas": (2, places, 10),
    }


SMALL = RetinaFace(features=16, anchor_sizes=(10, 16, 24, 32, 40, 56))
SIZE = (64, 96)


def scene(count=3):
    """A batch of two images: three faces, and none but a region to ignore."""
    real = np.array([[4, 8, 20, 22], [10, 50, 50, 84], [40, 2, 52, 13]], np.float32)[:count]
    points = np.stack(
        [real[:, [1, 0]] + f * (real[:, [3, 2]] - real[:, [1, 0]]) for f in (0.2, 0.4, 0.5, 0.6, 0.8)], 1
    )
    rows = np.concatenate([real, np.tile(np.float32([[0, 0, 1, 1]]), (4 - count, 1))])
    padded = np.concatenate([points, np.zeros((4 - count, 5, 2), np.float32)])
    nothing = np.tile(np.float32([[0, 0, 1, 1]]), (4, 1))
    nothing[0] = 0, 0, 64, 48
    first = np.arange(4)[None] == 0
    return {
        "image": np.random.default_rng(0).uniform(-1, 1, (2, *SIZE, 3)).astype(np.float32),
        "boxes": np.stack([rows, nothing]),
        "box_mask": np.concatenate([np.arange(4)[None] < count, first]),
        "box_label": np.zeros((2, 4), np.int32),
        "box_crowd": np.concatenate([np.zeros((1, 4), bool), first]),
        "landmarks": np.stack([padded, np.zeros((4, 5, 2), np.float32)]),
        "landmark_mask": np.concatenate([np.array([[True, True, False, False]]), np.zeros((1, 4), bool)]),
        "image_size": np.array([SIZE, SIZE], np.int32),
    }


def perfect_outputs(batch):
    """What the heads would say if they knew: certain of the anchors that are a face's, exact about where it is."""
    anchors = SMALL.anchors(SIZE)
    assigned = boxes.face_assign(anchors, batch["boxes"][0], batch["box_mask"][0])
    rows = boxes.assigned_rows(assigned, batch["boxes"][0])
    points = boxes.assigned_rows(assigned, jnp.asarray(batch["landmarks"][0]))
    face = np.stack([np.asarray(assigned > 0), np.zeros(len(anchors), bool)])
    return {
        "class_logits": np.stack([np.where(face, -9.0, 9.0), np.where(face, 9.0, -9.0)], -1),
        "box_deltas": np.tile(boxes.encode_boxes(anchors, rows, stds=STDS), (2, 1, 1)),
        "point_deltas": np.tile(boxes.encode_points(anchors, points, std=STDS[0]).reshape(-1, 10), (2, 1, 1)),
    }


def test_what_knows_everything_has_no_loss_and_finds_every_face():
    batch = scene()
    outputs = perfect_outputs(batch)
    loss, terms = jax.jit(SMALL.loss)(outputs, batch)
    assert loss < 1e-4 and terms["positives"] > 1
    found = jax.jit(SMALL.detect, static_argnums=1)(outputs, SIZE)
    assert found.valid.sum(axis=1).tolist() == [3, 0]
    order = np.argsort(found.boxes[0, :3, 0])
    np.testing.assert_allclose(found.boxes[0, :3][order], batch["boxes"][0, [0, 1, 2]], atol=1e-3)
    np.testing.assert_allclose(found.landmarks[0, :3][order], batch["landmarks"][0, [0, 1, 2]], atol=1e-3)
    assert found.scores[0, :3].min() > 0.99 and (found.scores[0, 3:] == 0).all()


def test_the_loss_is_the_published_one_by_hand():
    batch = scene(count=1)
    outputs = jax.tree.map(np.zeros_like, perfect_outputs(batch))
    _, terms = jax.jit(SMALL.loss)(outputs, batch)
    anchors = SMALL.anchors(SIZE).astype(np.float64)
    box = batch["boxes"][0, 0].astype(np.float64)
    low, high = np.maximum(anchors[:, :2], box[:2]), np.minimum(anchors[:, 2:], box[2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    side = anchors[:, 2] - anchors[:, 0]
    iou = shared / (side**2 + np.prod(box[2:] - box[:2]) - shared)
    positive = iou >= 0.35
    positive[iou.argmax()] |= iou.max() >= 0.2
    assert terms["positives"] == positive.sum() / 2 > 0
    # Every logit is 0: ln 2 for each positive and its seven negatives.
    np.testing.assert_allclose(terms["class_loss"], 8 * np.log(2), rtol=1e-6)
    center, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    middle = (anchors[:, :2] + anchors[:, 2:]) / 2
    deltas = np.concatenate(
        [(center - middle) / side[:, None] / 0.1, np.log(size / side[:, None]) / 0.2], axis=1
    )[positive]
    smooth = np.where(np.abs(deltas) < 1, deltas**2 / 2, np.abs(deltas) - 0.5)
    np.testing.assert_allclose(terms["box_loss"], smooth.sum() / positive.sum(), rtol=1e-5)
    points = (
        (batch["landmarks"][0, 0][None, :, ::-1] - middle[positive][:, None])
        / side[positive][:, None, None]
        / 0.1
    )
    smooth = np.where(np.abs(points) < 1, points**2 / 2, np.abs(points) - 0.5)
    np.testing.assert_allclose(terms["point_loss"], smooth.sum() / positive.sum(), rtol=1e-5)


def test_regions_to_ignore_and_padding_count_neither_way():
    batch = scene()
    outputs = perfect_outputs(batch)
    anchors = SMALL.anchors(SIZE)
    middles = (anchors[:, :2] + anchors[:, 2:]) / 2
    # Sure of faces deep inside the region of the second image: nobody minds. It has no positive, so no negatives either.
    inside = (np.abs(middles - [32, 24]) < 10).all(axis=1)
    outputs["class_logits"][1, inside] = -9, 9
    loss = jax.jit(lambda outputs, batch: SMALL.loss(outputs, batch)[0])
    assert loss(outputs, batch) < 1e-4
    # Sure of faces at the right edge of the first: minded, unless it is what the image was padded with.
    edge = middles[:, 1] > 90
    outputs["class_logits"][0, edge] = -9, 9
    assert loss(outputs, batch) > 1
    batch["image_size"][0] = 64, 86
    assert loss(outputs, batch) < 1e-4


def test_background_near_a_face_may_count_neither_way():
    batch = scene(count=1)
    outputs = perfect_outputs(batch)
    anchors = SMALL.anchors(SIZE)
    near = np.asarray(boxes.box_iou(anchors, batch["boxes"][0, :1]))[:, 0]
    outputs["class_logits"][0, (near >= 0.2) & (near < 0.35)] = -9, 9
    assert ((near >= 0.2) & (near < 0.35)).any()
    assert jax.jit(SMALL.loss)(outputs, batch)[0] > 1
    assert jax.jit(dataclasses.replace(SMALL, ignore_iou=0.2).loss)(outputs, batch)[0] < 1e-4


def test_gradients_are_finite_without_faces_and_with_degenerate_ones():
    batch = scene()
    batch["box_mask"][:] = False
    outputs = {name: jnp.asarray(leaf) for name, leaf in perfect_outputs(scene()).items()}
    gradient = jax.jit(jax.grad(lambda o, b: SMALL.loss(o, b)[0]))
    for rows in (
        batch,
        scene() | {"boxes": np.zeros((2, 4, 4), np.float32), "box_mask": np.ones((2, 4), bool)},
    ):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(outputs, rows)))


def test_detections_are_cut_to_what_is_valid_and_suppressed_by_class():
    rows = np.float32(
        [[[0, 0, 10, 10], [0, 1, 10, 10], [30, 30, 40, 60], [50, 50, 60, 60], [0, 0, np.nan, 10]]]
    )
    scores = np.float32([[0.9, 0.8, 0.7, 0.95, 1.0]])
    options = dict(image_size=(64, 64), score_threshold=0.5, iou_threshold=0.4, max_outputs=4)
    found = select_detections(rows, scores, valid_size=np.array([[48, 48]]), **options)
    assert found.valid.tolist() == [[True, True, False, False]] and found.landmarks is None
    np.testing.assert_array_equal(found.boxes[0, :2], [[0, 0, 10, 10], [30, 30, 40, 48]])
    apart = select_detections(rows, scores, np.array([[0, 1, 0, 0, 0]]), **options)
    assert apart.valid.all() and apart.classes.tolist() == [[0, 0, 1, 0]]
    np.testing.assert_array_equal(apart.scores[0], np.float32([0.95, 0.9, 0.8, 0.7]))


def test_bfloat16_says_nearly_the_same():
    params, extra = jax.jit(lambda rng: init_variables(TINY, rng, SIZE))(jax.random.key(1))
    image = scene()["image"]
    outputs = [
        jax.jit(dataclasses.replace(TINY, bfloat16=half).module.apply)({"params": params, **extra}, image)
        for half in (False, True)
    ]
    for name in outputs[0]:
        assert outputs[1][name].dtype == np.float32
        scale = np.abs(outputs[0][name]).max()
        np.testing.assert_allclose(outputs[1][name], outputs[0][name], atol=0.05 * scale)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"backbone": "mobilenet"}, "backbone: needs one of"),
        ({"context": "shh"}, "did you mean 'ssh'"),
        ({"anchor_sizes": (8, 16, 24, 32)}, "anchor_sizes: needs a multiple of 3 sizes, got 4"),
        ({"anchor_sizes": (8, 16, 0)}, "anchor_sizes"),
        ({"pixels": "hsv"}, "pixels: needs 'rgb' or 'bgr', got 'hsv'"),
        ({"size": 3}, "has no field size; its fields are"),
    ],
)
def test_impossible_fields_are_refused(fields, words):
    with pytest.raises(UserError, match=words):
        create_detector("retinaface", **fields)
