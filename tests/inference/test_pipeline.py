"""Photographs through detector, alignment and recognizer: each against the same steps one by one, on the host."""

import cv2
import jax
import numpy as np
import pytest
import red_square

from jaxface import data, inference, models
from jaxface.errors import UserError
from jaxface.inference import pipeline as pipelines

SIDE = 16


@pytest.fixture(scope="module")
def recognizer():
    """A perceptron with random weights, of crops of 16 x 16, with mirror images."""
    module = models.create("mlp_8", embedding=4)
    variables = module.init(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.float32), train=False)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), variables)
    return inference.RecognizerBundle(
        module=module, variables=variables, image_shape=(SIDE, SIDE, 3), flip=True
    )


@pytest.fixture(scope="module")
def pipeline(recognizer):
    return inference.Pipeline(recognizer, red_square.bundle(spread=1.0), batch_size=2, longest=256)


def photograph(height, width, box, seed=0):
    """A red square with smooth light over it, so that a crop of it has something to see."""
    image = red_square.photograph(height, width, box)
    light = np.random.default_rng(seed).integers(0, 60, (6, 6, 3)).astype(np.uint8)
    light = cv2.resize(light, (width, height), interpolation=cv2.INTER_CUBIC)
    light[..., 0] = 0
    light[..., 1:] //= 2
    return np.clip(image.astype(int) + np.where(image[..., :1] == 255, light, 0), 0, 255).astype(np.uint8)


CASES = [  # height, width, box
    (96, 64, (20, 8, 60, 48)),
    (100, 60, (31, 5, 71, 45)),
    (64, 64, (0, 0, 0, 0)),
    (96, 64, (40, 20, 72, 52)),
    (500, 300, (100, 40, 300, 240)),  # shrunk by half
]


def test_faces_are_those_of_the_same_steps_one_by_one(pipeline, recognizer):
    images = [photograph(*case, seed=i) for i, case in enumerate(CASES)]
    found = pipeline(images)
    assert [len(faces.boxes) for faces in found] == [1, 1, 0, 1, 1]
    assert found[2].embeddings.shape == (0, 4) and found[2].crops.shape == (0, SIDE, SIDE, 3)
    for image, (height, width, box), faces in zip(images, CASES, found, strict=True):
        if not len(faces.boxes):
            continue
        pixel = max(1.0, max(height, width) / 256)
        np.testing.assert_allclose(faces.boxes[0], box, atol=pixel)
        assert faces.scores[0] > 0.9
        small = inference.letterbox(image, 256)
        on_host = data.align_face(small.image, faces.landmarks[0] / np.float32(small.scale)[::-1], 112)
        points = faces.landmarks[0] / np.float32(small.scale)[::-1]
        matrix = data.umeyama(points, data.named_template("arcface", (SIDE, SIDE)))
        crop = cv2.warpAffine(small.image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
        assert np.abs(faces.crops[0].astype(int) - crop).max() <= 8  # OpenCV's places are of 1/32 pixel
        assert np.abs(faces.crops[0].astype(int) - crop).mean() < 1 and on_host.shape == (112, 112, 3)
        np.testing.assert_allclose(faces.embeddings, recognizer.embed(faces.crops), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(faces.embeddings, axis=1), 1, atol=1e-5)
        assert faces.scales[0] == pytest.approx(SIDE / (box[3] - box[1]), rel=0.06)


def test_batches_and_neighbors_change_nothing(pipeline):
    images = [photograph(*CASES[0], seed=i) for i in range(3)] + [photograph(*CASES[2])]
    together = pipeline(images)
    alone = [pipeline([image])[0] for image in images]
    for ours, theirs in zip(together, alone, strict=True):
        for name in ("boxes", "scores", "landmarks", "scales"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-5)
        # Half levels, which are many where a square is shrunk to 2/5, are rounded either way.
        assert np.abs(ours.crops.astype(int) - theirs.crops).max(initial=0) <= 2
        assert (np.sum(ours.embeddings * theirs.embeddings, axis=1) > 0.999).all()


def test_one_program_for_a_bucket(recognizer):
    pipeline = inference.Pipeline(recognizer, red_square.bundle(spread=1.0), batch_size=2)
    before = pipelines._detect_and_embed._cache_size()
    pipeline([photograph(96, 64, (20, 8, 60, 48)), photograph(90, 60, (20, 8, 60, 48))])
    pipeline([photograph(65, 33, (1, 1, 20, 20)), photograph(66, 64, (0, 0, 0, 0))])
    assert pipelines._detect_and_embed._cache_size() - before <= 1
    assert pipeline([]) == []


def test_several_faces_by_landmarks_from_elsewhere(recognizer):
    pipeline = inference.Pipeline(recognizer, batch_size=2)
    image = np.random.default_rng(3).integers(0, 256, (80, 120, 3), np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 3)
    base = data.template(112) / 112
    points = np.stack([base * 30 + (5, 10), base * 40 + (60, 20), base * 20 + (100, 55)]).astype(np.float32)
    (faces, none) = pipeline([image, image], [points, np.zeros((0, 5, 2))])
    assert len(none.boxes) == 0 and faces.embeddings.shape == (3, 4)
    target = data.named_template("arcface", (SIDE, SIDE))
    for i in range(3):
        matrix = data.umeyama(points[i], target)
        crop = cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
        assert np.abs(faces.crops[i].astype(int) - crop).max() <= 4
        inside = (points[i] >= faces.boxes[i, 1::-1]) & (points[i] <= faces.boxes[i, :1:-1])
        assert inside.all()
    np.testing.assert_allclose(faces.embeddings, recognizer.embed(faces.crops), atol=1e-5)
    np.testing.assert_allclose(faces.landmarks, points, atol=1e-4)


def test_aligned_images_are_embedded_as_they_are(recognizer):
    crops = np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    pipeline = inference.Pipeline(recognizer)
    found = pipeline([*crops, np.repeat(np.repeat(crops[0], 2, 0), 2, 1)])
    np.testing.assert_allclose(
        np.concatenate([faces.embeddings for faces in found]),
        recognizer.embed(crops[[0, 1, 2, 0]]),
        atol=1e-5,
    )
    assert found[0].landmarks is None and found[3].boxes.tolist() == [[0, 0, 32, 32]]


def test_what_costs_accuracy_is_said(pipeline, recognizer):
    aligned = inference.Pipeline(recognizer)
    wide, square = np.zeros((20, 40, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)
    assert "are no aligned face of 16 x 16" in aligned.notes(wide, aligned([wide])[0])[0]
    assert aligned.notes(square, aligned([square])[0]) == []
    near, far = photograph(96, 64, (20, 8, 60, 48)), photograph(96, 64, (20, 8, 28, 16))
    assert pipeline.notes(near, pipeline([near])[0]) == []
    (note,) = pipeline.notes(far, pipeline([far])[0])
    assert note.startswith("face 1 is enlarged 2.") and "a size above" not in note
    shrunk = photograph(1024, 64, (20, 8, 44, 32))
    (note,) = pipeline.notes(shrunk, pipeline([shrunk])[0])
    assert "a size above 256 shows more of it" in note


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p.__call__([np.zeros((8, 8), np.uint8)]), "images: needs uint8"),
        (lambda p: p.__call__([np.zeros((8, 8, 3))]), "images: needs uint8"),
        (lambda p: p.__call__([np.zeros((8, 8, 3), np.uint8)], []), "needs those of 1 images, got 0"),
        (lambda p: p.__call__([np.zeros((8, 8, 3), np.uint8)], [np.full((1, 5, 2), np.nan)]), "need finite"),
        (lambda p: p.__call__([np.zeros((8, 8, 3), np.uint8)], [np.ones((1, 5, 2))]), "coincide"),
    ],
)
def test_what_cannot_be_a_face_is_refused(recognizer, make, words):
    with pytest.raises((ValueError, UserError), match=words):
        make(inference.Pipeline(recognizer))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 1.5}, "threshold: needs a number from 0 to 1"),
        ({"longest": 8}, "size: needs an integer from 32"),
        ({"max_faces": 0}, "max_faces: needs an integer from 1"),
        ({"batch_size": 0}, "batch_size: needs an integer from 1"),
    ],
)
def test_impossible_numbers_are_refused(recognizer, options, words):
    with pytest.raises(UserError, match=words):
        inference.Pipeline(recognizer, red_square.bundle(), **options)
