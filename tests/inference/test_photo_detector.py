import numpy as np
import pytest
import red_square

from jaxface import inference
from jaxface.errors import UserError
from jaxface.inference import bucket_side, letterbox, photo_detector


def test_sizes_fall_into_few_buckets():
    sides = [bucket_side(side) for side in range(1, 4097)]
    assert len(set(sides)) == 3 + 3 * 5 + 1
    assert all(bucket >= side and bucket % 32 == 0 for side, bucket in enumerate(sides, start=1))
    assert max(bucket / side for side, bucket in enumerate(sides, start=1) if side > 128) < 4 / 3
    assert [bucket_side(n) for n in (1, 33, 97, 129, 160, 640, 641)] == [32, 64, 128, 160, 160, 640, 768]
    assert bucket_side(100, stride=64) == 128
    with pytest.raises(UserError, match="side: needs an integer from 1, got 0"):
        bucket_side(0)


def test_a_letterboxed_image_is_at_the_top_left_and_says_its_scale():
    image = red_square.photograph(300, 1000, (0, 0, 300, 1000))
    boxed = letterbox(image, 500)
    assert boxed.image.shape == (160, 512, 3) and boxed.valid_size == (150, 500) and boxed.scale == (2, 2)
    assert (boxed.image[:150, :500] == (255, 0, 0)).all()
    assert (boxed.image[150:] == 127).all() and (boxed.image[:, 500:] == 127).all()
    small = letterbox(image[:1, :1], 500)
    assert small.valid_size == (1, 1) and small.image.shape == (32, 32, 3)
    with pytest.raises(ValueError, match=r"image: needs uint8 \[H, W, 3\]"):
        letterbox(image.astype(np.float32), 500)


BOXES = [  # height, width, box
    (100, 60, (20, 8, 50, 40)),
    (1000, 700, (300, 100, 640, 460)),
    (57, 1300, (13, 650, 39, 910)),
    (128, 128, (0, 0, 128, 128)),
]


def test_boxes_and_points_are_in_the_photographs_own_pixels():
    photographs = [red_square.photograph(*case) for case in BOXES]
    found = inference.PhotoDetector(red_square.bundle(), longest=512)(photographs)
    for (height, width, box), detections in zip(BOXES, found, strict=True):
        pixel = max(1.0, max(height, width) / 512)
        assert len(detections.scores) == 1, "one thing at several scales is one detection"
        np.testing.assert_allclose(detections.boxes[0], box, atol=pixel)
        np.testing.assert_allclose(detections.landmarks[0], [[box[1], box[0]]] * 5, atol=pixel)


def test_what_is_too_large_for_the_detector_is_found_in_a_smaller_copy():
    photographs = [
        red_square.photograph(512, 512, (8, 16, 408, 416)),
        red_square.photograph(64, 64, (0, 0, 0, 0)),
    ]
    detect = inference.PhotoDetector(red_square.bundle(widest=110), longest=512)
    assert detect.scales(512, 400) == [512, 256, 128] and detect.scales(90, 100) == [100]
    large, nothing = detect(photographs)
    np.testing.assert_allclose(large.boxes, [[8, 16, 408, 416]], atol=4)
    assert nothing.boxes.shape == (0, 4) and nothing.landmarks.shape == (0, 5, 2)


def test_what_lies_inside_of_a_larger_object_goes_unless_it_is_much_surer():
    rows = np.float32([[20, 20, 50, 50], [20, 60, 50, 90], [0, 0, 100, 100], [90, 90, 120, 120]])
    found = inference.PhotoDetections(rows, np.float32([0.95, 0.99, 0.9, 0.9]), np.array([0, 0, 0, 1]), None)
    inside = photo_detector._inside(found, np.array([0, 0, 1, 0]))
    assert np.argwhere(inside).tolist() == [[0, 2], [1, 2]]
    assert not photo_detector._inside(found, np.array([1, 1, 1, 1])).any(), "one look knows no eyes for faces"
    small = found._replace(
        boxes=rows * np.float32([[0.9], [1], [1], [1]]) + np.float32([[9, 9, 0, 0], *[[0] * 4] * 3])
    )
    assert np.argwhere(photo_detector._inside(small, np.array([0, 0, 1, 0]))).tolist() == [[1, 2]]
    unsure = found._replace(scores=np.float32([0.95, 0.99, 0.87, 0.9]))
    assert np.argwhere(photo_detector._inside(unsure, np.array([0, 0, 1, 0]))).tolist() == [[0, 2]]


def test_batches_change_nothing_and_compile_few_programs():
    rng = np.random.default_rng(0)
    photographs = []
    for _ in range(13):
        y0, x0 = rng.integers(0, 40, 2)
        photographs.append(red_square.photograph(*rng.integers(100, 129, 2), (y0, x0, y0 + 30, x0 + 20)))
    compiled = photo_detector._detect._cache_size()
    together = inference.PhotoDetector(red_square.bundle(), batch_size=4)(photographs)
    assert photo_detector._detect._cache_size() - compiled <= 4  # of 4 and 1, in at most four buckets
    alone = inference.PhotoDetector(red_square.bundle(), batch_size=1)
    for photograph, detections in zip(photographs, together, strict=True):
        (single,) = alone([photograph])
        for ours, theirs in zip(detections, single, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 1.5}, "threshold: needs a number from 0 to 1, got 1.5"),
        ({"longest": 8}, "size: needs an integer from 32, got 8"),
        ({"batch_size": 0}, "batch_size: needs an integer from 1, got 0"),
    ],
)
def test_impossible_numbers_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        inference.PhotoDetector(red_square.bundle(), **options)
