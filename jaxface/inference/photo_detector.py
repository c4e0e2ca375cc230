"""Detection in photographs of any size."""

import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxface import boxes
from jaxface.checks import AtLeast, Fraction, check_number
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.inference.bundle import DetectorBundle
from jaxface.inference.letterbox import letterbox
from jaxface.models.detection import Detections, Detector


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
        self.bundle, self.longest = bundle, longest
        self.max_objects, self.batch_size = max_objects, 1 << (batch_size.bit_length() - 1)
        self.iou_threshold = iou_threshold
        self._options = dict(
            detector=bundle.detector,
            score_threshold=threshold,
            iou_threshold=iou_threshold,
            max_outputs=max_objects,
        )
        self._variables = jax.device_put(dict(bundle.variables))

    def scales(self, height: int, width: int) -> list[int]:
        """Longer sides at which a photograph is looked at, the largest first."""
        sides = [min(self.longest, max(height, width))]
        while sides[-1] > self.bundle.image_size:
            sides.append(-(-sides[-1] // 2))
        return sides

    def __call__(self, images: Sequence[np.ndarray]) -> list[PhotoDetections]:
        """Detections in each of the images [H, W, 3] uint8 RGB."""
        by_size: dict[tuple[int, int], list] = defaultdict(list)
        for number, image in enumerate(images):
            for side in self.scales(*image.shape[:2]):
                boxed = letterbox(image, side, stride=self.bundle.detector.stride)
                by_size[boxed.image.shape[:2]].append((number, boxed))
        of_image: list[list[PhotoDetections]] = [[] for _ in images]
        for items in by_size.values():
            for start in range(0, len(items), self.batch_size):
                some = items[start : start + self.batch_size]
                rows = 1 << (len(some) - 1).bit_length()  # few batch sizes: 1, 2, 4, …
                filled = some + [some[-1]] * (rows - len(some))
                detections = jax.device_get(
                    _detect(
                        self._variables,
                        np.stack([boxed.image for _, boxed in filled]),
                        np.array([boxed.valid_size for _, boxed in filled], np.int32),
                        **self._options,
                    )
                )
                for row, (number, boxed) in enumerate(some):
                    of_image[number].append(_in_photograph(detections, row, boxed.scale))
        return [self._merged(found) for found in of_image]

    def _merged(self, at_scales: list[PhotoDetections]) -> PhotoDetections:
        """Those of all scales without the worse ones of each overlap."""
        if len(at_scales) == 1:
            return at_scales[0]
        coarseness = np.repeat(np.arange(len(at_scales)), [len(found.scores) for found in at_scales])
        joined = PhotoDetections(
            *(None if parts[0] is None else np.concatenate(parts) for parts in zip(*at_scales, strict=True))
        )
        # Padded to whole scales: the suppression is compiled for as many shapes as there are numbers of scales.
        padding = len(at_scales) * self.max_objects - len(joined.scores)
        indices, valid = _suppress(
            np.pad(joined.boxes, ((0, padding), (0, 0))),
            np.pad(joined.scores, (0, padding), constant_values=-np.inf),
            np.pad(joined.classes, (0, padding)),
            iou_threshold=self.iou_threshold,
            max_outputs=self.max_objects,
        )
        stay = np.asarray(indices)[np.asarray(valid)]
        stay = stay[~_inside(joined, coarseness)[np.ix_(stay, stay)].any(axis=1)]
        return PhotoDetections(*(None if part is None else part[stay] for part in joined))


def _inside(detections: PhotoDetections, coarseness: np.ndarray) -> np.ndarray:
    """[N, N] bool: i lies inside of j, of the same class and a coarser look, 2 to 12 times as large and as sure but for 0.1.

    What is smaller still may well be an object before or on another.
    """
    low = np.maximum(detections.boxes[:, None, :2], detections.boxes[:, :2])
    high = np.minimum(detections.boxes[:, None, 2:], detections.boxes[:, 2:])
    area = np.prod(detections.boxes[:, 2:] - detections.boxes[:, :2], axis=1)
    covered = np.prod(np.maximum(high - low, 0), axis=2) >= 0.6 * area[:, None]
    return (
        covered
        & (area >= 2 * area[:, None])
        & (area <= 12 * area[:, None])
        & (detections.scores >= detections.scores[:, None] - 0.1)
        & (detections.classes == detections.classes[:, None])
        & (coarseness > coarseness[:, None])
    )


_suppress = jax.jit(boxes.nms, static_argnames=("iou_threshold", "max_outputs"))


@functools.partial(jax.jit, static_argnames=("detector", "score_threshold", "iou_threshold", "max_outputs"))
def _detect(
    variables: Any, images: jax.Array, valid_size: jax.Array, *, detector: Detector, **options
) -> Detections:
    outputs = detector.module.apply(variables, normalize_pixels(images), train=False)
    return detector.detect(outputs, images.shape[1:3], valid_size=valid_size, **options)


def _in_photograph(detections: Detections, row: int, scale: tuple[float, float]) -> PhotoDetections:
    """The valid detections of a row, in the pixels of the original."""
    valid = np.asarray(detections.valid[row])
    factors = np.array(scale, np.float32)
    landmarks = detections.landmarks
    return PhotoDetections(
        detections.boxes[row][valid] * np.tile(factors, 2),
        detections.scores[row][valid],
        detections.classes[row][valid],
        None if landmarks is None else landmarks[row][valid] * factors[::-1],
    )
