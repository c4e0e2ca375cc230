"""Detection in photographs of any size."""

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import boxes
from jaxface.checks import AtLeast, Fraction, check_number
from jaxface.data.transforms.pixels import from_levels, normalize_pixels
from jaxface.inference.bundle import DetectorBundle
from jaxface.inference.letterbox import bucket_side, letterbox
from jaxface.models.detection import Detections, Detector, detector_outputs

_GRAY = from_levels(127)  # of what is padded


class PhotoDetections(NamedTuple):
    """What was found in one photograph, the highest score first; in its own pixels.

    Attributes:
      boxes: [N, 4] float32 (y0, x0, y1, x1).
      scores: [N] float32 in [0, 1].
      classes: [N] int32.
      landmarks: [N, 5, 2] float32 (x, y): eyes, nose, corners of the mouth, left before right as seen; None of a detector
        without them.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    landmarks: np.ndarray | None


class Bucket(NamedTuple):
    """Photographs of one bucket, B of them, the last one repeated to a power of two.

    Attributes:
      numbers: of the photographs, without the repeated ones.
      images: [B, H, W, 3] uint8.
      valid_size: [B, 2] int32 (height, width) of each photograph in it, at the top left.
      scales: (y, x) of each, by which to multiply places to have them in the photograph.
    """

    numbers: list[int]
    images: np.ndarray
    valid_size: np.ndarray
    scales: list[tuple[float, float]]


def in_buckets(
    images: Sequence[np.ndarray], *, longest: int, stride: int, batch_size: int
) -> Iterator[Bucket]:
    """Photographs of any size in batches of few shapes (`letterbox`), whatever their order."""
    by_size: dict[tuple[int, int], list] = defaultdict(list)
    for number, image in enumerate(images):
        boxed = letterbox(image, longest, stride=stride)
        by_size[boxed.image.shape[:2]].append((number, boxed))
    for items in by_size.values():
        for start in range(0, len(items), batch_size):
            some = items[start : start + batch_size]
            rows = 1 << (len(some) - 1).bit_length()  # few batch sizes: 1, 2, 4, …
            filled = some + [some[-1]] * (rows - len(some))
            yield Bucket(
                [number for number, _ in some],
                np.stack([boxed.image for _, boxed in filled]),
                np.array([boxed.valid_size for _, boxed in filled], np.int32),
                [boxed.scale for _, boxed in filled],
            )


def power_of_two(batch_size: int) -> int:
    """The largest power of two up to a number from 1."""
    return 1 << (batch_size.bit_length() - 1)


class PhotoDetector:
    """Finds objects in photographs of any size.

    A photograph is shrunk until its longer side is at most `longest`, and padded to one of a few sizes, so that few programs are
    compiled. While it is larger than the images that the detector was trained on, it is looked at again at half the size, where
    objects that were too large come into the range of the anchors. Of detections that overlap the best one stays, and what lies
    inside of a larger object that a coarser look has found about as surely, such as an eye that passes for a face, goes.

    Args:
      bundle: the detector.
      threshold: smallest score, in [0, 1].
      iou_threshold: overlap above which the worse of two detections of a class goes.
      longest: side, pixels, ≥ 32.
      max_objects: most detections of a photograph.
      batch_size: images of one size that go through the network together, a power of two.

    Raises:
      UserError: a number out of its range.
    """

    def __init__(
        self,
        bundle: DetectorBundle,
        *,
        threshold: float = 0.5,
        iou_threshold: float = 0.4,
        longest: int = 640,
        max_objects: int = 200,
        batch_size: int = 8,
    ):
        check_number("threshold", threshold, Fraction)
        check_number("iou_threshold", iou_threshold, Fraction)
        check_number("size", longest, AtLeast(32))
        check_number("max_objects", max_objects, AtLeast(1))
        check_number("batch_size", batch_size, AtLeast(1))
        self.bundle, self.longest, self.batch_size = bundle, longest, power_of_two(batch_size)
        self.options = dict(
            detector=bundle.detector,
            trained_size=bundle.image_size,
            score_threshold=threshold,
            iou_threshold=iou_threshold,
            max_outputs=max_objects,
        )
        self.variables = jax.device_put(dict(bundle.variables))

    def scales(self, height: int, width: int) -> list[int]:
        """Longer sides at which a photograph is looked at, the largest first."""
        factor = min(1.0, self.longest / max(height, width))
        sides = max(round(height * factor), 1), max(round(width * factor), 1)
        bucket = [bucket_side(side, stride=self.bundle.detector.stride) for side in sides]
        looks = 1 + _halvings(max(bucket), self.bundle.image_size)
        return [-(-max(sides) // 2**k) for k in range(looks)]

    def __call__(self, images: Sequence[np.ndarray]) -> list[PhotoDetections]:
        """Detections in each of the images [H, W, 3] uint8 RGB."""
        results: list[Any] = [None] * len(images)
        buckets = in_buckets(
            images,
            longest=self.longest,
            stride=self.bundle.detector.stride,
            batch_size=self.batch_size,
        )
        for bucket in buckets:
            detections = jax.device_get(
                _detect(self.variables, bucket.images, bucket.valid_size, **self.options)
            )
            for row, number in enumerate(bucket.numbers):
                results[number] = _in_photograph(detections, row, bucket.scales[row])
        return results


def _halvings(side: int, trained_size: int) -> int:
    """How often a side is halved until it is no larger than the detector's images."""
    count = 0
    while side > trained_size:
        side, count = -(-side // 2), count + 1
    return count


def detect_at_scales(
    variables: Any,
    images: jax.Array,
    valid_size: jax.Array,
    *,
    detector: Detector,
    trained_size: int,
    score_threshold: float,
    iou_threshold: float,
    max_outputs: int,
) -> Detections:
    """What `PhotoDetector` finds in one bucket: pure, with static shapes.

    Args:
      variables: of the detector's module.
      images: [B, H, W, 3] uint8; H and W are multiples of the detector's stride.
      valid_size: [B, 2] integers (height, width) of the images before they were padded.
      trained_size: side of the images that the detector was trained on, pixels.
      detector, score_threshold, iou_threshold, max_outputs: as in `Detector.detect`.
    """
    options: dict[str, Any] = dict(
        score_threshold=score_threshold, iou_threshold=iou_threshold, max_outputs=max_outputs
    )
    looks, pixels, size = [], normalize_pixels(images), valid_size
    for k in range(1 + _halvings(max(images.shape[1:3]), trained_size)):
        if k:
            pixels, size = _half(pixels, detector.stride), -(-size // 2)
        outputs = detector_outputs(detector, variables, pixels, size)
        found = detector.detect(outputs, (pixels.shape[1], pixels.shape[2]), valid_size=size, **options)
        points = None if found.landmarks is None else found.landmarks * 2**k
        looks.append(found._replace(boxes=found.boxes * 2**k, landmarks=points))
    if len(looks) == 1:
        return looks[0]
    coarseness = jnp.repeat(jnp.arange(len(looks)), max_outputs)
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *looks)

    def merged(found: Detections) -> Detections:
        """Those of all scales of an image without the worse ones of each overlap."""
        scores = jnp.where(found.valid, found.scores, -jnp.inf)
        indices, valid = boxes.nms(
            found.boxes, scores, found.classes, iou_threshold=iou_threshold, max_outputs=max_outputs
        )
        best = jax.tree.map(lambda part: part[indices], found)
        inside = _inside(best, coarseness[indices]) & valid[None, :]
        return best._replace(valid=valid & ~inside.any(axis=1))

    return jax.vmap(merged)(joined)


def _half(pixels: jax.Array, stride: int) -> jax.Array:
    """Images of half the size, padded with gray at the bottom and the right to multiples of the stride."""
    batch, height, width, channels = pixels.shape
    pixels = pixels.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
    padding = [(0, 0), (0, -(height // 2) % stride), (0, -(width // 2) % stride), (0, 0)]
    return jnp.pad(pixels, padding, constant_values=_GRAY)


def _inside(detections: Detections | PhotoDetections, coarseness: jax.Array) -> jax.Array:
    """[N, N] bool: i lies inside of j, of the same class and a coarser look, 2 to 12 times as large and as sure but for 0.1.

    What is smaller still may well be an object before or on another.
    """
    corners, scores, classes = detections.boxes, detections.scores, detections.classes
    low = jnp.maximum(corners[:, None, :2], corners[:, :2])
    high = jnp.minimum(corners[:, None, 2:], corners[:, 2:])
    area = jnp.prod(corners[:, 2:] - corners[:, :2], axis=1)
    covered = jnp.prod(jnp.maximum(high - low, 0), axis=2) >= 0.6 * area[:, None]
    return (
        covered
        & (area >= 2 * area[:, None])
        & (area <= 12 * area[:, None])
        & (scores >= scores[:, None] - 0.1)
        & (classes == classes[:, None])
        & (coarseness > coarseness[:, None])
    )


_STATIC = ("detector", "trained_size", "score_threshold", "iou_threshold", "max_outputs")
_detect = functools.partial(jax.jit, static_argnames=_STATIC)(detect_at_scales)


def _in_photograph(detections: Detections, row: int, scale: tuple[float, float]) -> PhotoDetections:
    """The valid detections of a row, in the pixels of the original."""
    valid = np.asarray(detections.valid[row])
    factors = np.array(scale, np.float32)
    landmarks = detections.landmarks
    return PhotoDetections(
        np.asarray(detections.boxes[row])[valid] * np.tile(factors, 2),
        np.asarray(detections.scores[row])[valid],
        np.asarray(detections.classes[row])[valid],
        None if landmarks is None else np.asarray(landmarks[row])[valid] * factors[::-1],
    )
