"""Photographs in, faces with embeddings out: detection, alignment and embedding in one compiled program per size of image."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import AtLeast, check_number
from jaxface.data.transforms.alignment import align_faces, named_template
from jaxface.errors import UserError
from jaxface.inference.bundle import (
    DetectorBundle,
    EmbeddingNetwork,
    RecognizerBundle,
    open_detector,
    open_recognizer,
)
from jaxface.inference.photo_detector import PhotoDetector, detect_at_scales, in_buckets, power_of_two
from jaxface.layers.prototypes import l2_normalize

_ENLARGED = 1.5  # pixels of a crop per pixel of the photograph from which little of a face is left
ASSUMED = "arcface"  # template of a recognizer that does not say to which its crops are aligned


class Faces(NamedTuple):
    """The faces of one photograph, the highest score first; places are in its own pixels.

    Attributes:
      boxes: [N, 4] float32 (y0, x0, y1, x1).
      scores: [N] float32 in [0, 1], of the detector; 1 where nothing was detected.
      landmarks: [N, 5, 2] float32 (x, y): eyes, nose, corners of the mouth, left before right as seen; None of aligned images.
      embeddings: [N, D] float32 of length 1 each.
      crops: [N, h, w, 3] uint8, the aligned faces that the recognizer saw.
      scales: [N] float32, pixels of a crop per pixel of the photograph; above 1 a face is smaller than the recognizer's.
    """

    boxes: np.ndarray
    scores: np.ndarray
    landmarks: np.ndarray | None
    embeddings: np.ndarray
    crops: np.ndarray
    scales: np.ndarray

    def largest(self) -> int:
        """Number of the face with the largest box."""
        height, width = (self.boxes[:, 2:] - self.boxes[:, :2]).T
        return int(np.argmax(height * width))


class Pipeline:
    """Detects, aligns and embeds the faces of photographs.

        photographs -> buckets of few sizes -> [detector -> five landmarks -> similarity onto the template -> recognizer] -> faces

    What is in brackets is one compiled program for each bucket and batch size. It aligns and embeds as many faces as there are:
    a loop of as many rounds as their number needs, `batch_size` faces in each at most.

    Args:
      recognizer: the network that embeds.
      detector: the network that finds faces and their landmarks; None for aligned images, or landmarks from elsewhere.
      threshold: smallest score of a face, in [0, 1].
      iou_threshold: overlap above which the worse of two detections goes.
      longest: longer side that photographs are shrunk to, pixels, ≥ 32; faces are aligned in what is left.
      max_faces: most faces of a photograph, those with the highest scores.
      batch_size: photographs of one size that are computed together, a power of two.

    Raises:
      UserError: a number out of its range, or a detector without landmarks.

    Example:
      >>> import jax, numpy as np
      >>> from jaxface import inference, models
      >>> module = models.create("mlp_8", embedding=4)
      >>> variables = module.init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32), train=False)
      >>> bundle = inference.RecognizerBundle(module=module, variables=variables, image_shape=(16, 16, 3))
      >>> pipeline = inference.Pipeline(bundle)  # no detector: every image is one aligned face
      >>> (faces,) = pipeline([np.full((32, 32, 3), 200, np.uint8)])
      >>> faces.embeddings.shape, faces.crops.shape, faces.boxes.tolist()
      ((1, 4), (1, 16, 16, 3), [[0.0, 0.0, 32.0, 32.0]])
    """

    def __init__(
        self,
        recognizer: RecognizerBundle,
        detector: DetectorBundle | None = None,
        *,
        threshold: float = 0.8,
        iou_threshold: float = 0.4,
        longest: int = 640,
        max_faces: int = 50,
        batch_size: int = 16,
    ):
        check_number("size", longest, AtLeast(32))
        check_number("max_faces", max_faces, AtLeast(1))
        check_number("batch_size", batch_size, AtLeast(1))
        self.recognizer, self.detector = recognizer, detector
        self.longest, self.batch_size = longest, power_of_two(batch_size)
        self._variables = jax.device_put(dict(recognizer.variables))
        self._crop = recognizer.image_shape[:2]
        self._options = dict(network=recognizer.network, flip=recognizer.flip, size=self._crop)
        self._detector = None
        if detector is not None:
            self._detector = PhotoDetector(
                detector,
                threshold=threshold,
                iou_threshold=iou_threshold,
                longest=longest,
                max_objects=max_faces,
                batch_size=self.batch_size,
            )
            if not _has_landmarks(self._detector):
                raise UserError(
                    f"detector: needs one that finds landmarks, to align faces by; {detector.source or 'this one'} finds none"
                )

    @classmethod
    def load(
        cls, bundle: str | pathlib.Path, detector: str | pathlib.Path | None = None, **options: Any
    ) -> Self:
        """A pipeline of networks from wherever they are: runs, bundles or published weights (`open_recognizer`, `open_detector`).

        Args:
          bundle: the recognizer.
          detector: the detector; None for aligned images, or landmarks from elsewhere.
          **options: of `Pipeline`.

        Raises:
          UserError: as these.
        """
        opened = None if detector is None else open_detector(detector)
        return cls(open_recognizer(bundle), opened, **options)

    def __call__(
        self, images: Sequence[np.ndarray], landmarks: Sequence[np.ndarray] | None = None
    ) -> list[Faces]:
        """The faces of each image.

        Args:
          images: [H, W, 3] uint8 RGB each, upright (`jaxface.data.decode_image` turns what a camera has marked); of any size.
          landmarks: [N, 5, 2] float (x, y) of each image instead of the detector's; N may be 0.

        Returns:
          One for each image. Without a detector and landmarks every image is one face, brought to the recognizer's size.

        Raises:
          ValueError: an image of another type or shape, or as many landmarks as there are not images.
          UserError: landmarks that are not finite, or that coincide.
        """
        if landmarks is not None:
            return self._given(images, landmarks)
        return self._aligned(images) if self._detector is None else self._detected(images)

    def notes(self, image: np.ndarray, faces: Faces) -> list[str]:
        """What makes the embeddings of an image less accurate than they might be, for people."""
        height, width = self._crop
        said = []
        if faces.landmarks is None and image.shape[0] * width != image.shape[1] * height:
            said.append(
                f"{image.shape[1]} x {image.shape[0]} pixels are no aligned face of {width} x {height}: accuracy suffers"
            )
        elif faces.landmarks is not None and self.recognizer.alignment is None:
            said.append(
                f"the recognizer does not say how its faces are aligned, {ASSUMED} is assumed: accuracy may suffer"
            )
        shrunk = faces.landmarks is not None and max(image.shape[:2]) > self.longest
        seen = min(1.0, self.longest / max(image.shape[:2])) if shrunk else 1.0
        for number, scale in enumerate(faces.scales.tolist(), start=1):
            if scale / seen >= _ENLARGED:
                hint = f"; a size above {self.longest} shows more of it" if shrunk else ""
                said.append(f"face {number} is enlarged {scale / seen:.1f} times: accuracy suffers{hint}")
        return said

    def _aligned(self, images: Sequence[np.ndarray]) -> list[Faces]:
        height, width = self._crop
        crops = []
        for image in images:
            _check_image(image)
            smaller = image.shape[0] > height
            method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
            same = image.shape[:2] == self._crop
            crops.append(image if same else cv2.resize(image, (width, height), interpolation=method))
        rows = np.stack(crops) if crops else np.zeros((0, height, width, 3), np.uint8)
        embeddings = self.recognizer.embed(rows, batch_size=self.batch_size)
        return [
            Faces(
                np.array([[0, 0, *image.shape[:2]]], np.float32),
                np.ones(1, np.float32),
                None,
                embeddings[i : i + 1],
                rows[i : i + 1],
                np.array([height / image.shape[0]], np.float32),
            )
            for i, image in enumerate(images)
        ]

    @functools.cached_property
    def _target(self) -> np.ndarray:
        return named_template(self.recognizer.alignment or ASSUMED, self._crop)

    def _detected(self, images: Sequence[np.ndarray]) -> list[Faces]:
        detector = self._detector
        assert detector is not None  # `__call__` asked
        run = functools.partial(
            _detect_and_embed,
            (detector.variables, self._variables),
            target=self._target,
            found=tuple(sorted(detector.options.items())),
            **self._options,
        )
        return self._collected(images, lambda bucket: run(bucket.images, bucket.valid_size))

    def _given(self, images: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> list[Faces]:
        if len(images) != len(landmarks):
            raise ValueError(f"landmarks: needs those of {len(images)} images, got {len(landmarks)}")
        points = [np.asarray(rows, np.float32).reshape(-1, 5, 2) for rows in landmarks]
        for number, rows in enumerate(points):
            if not np.isfinite(rows).all():
                raise UserError(f"landmarks: need finite (x, y), those of image {number} are not")
            if len(rows) and (np.ptp(rows, axis=1).max(axis=1) < 1e-3).any():
                raise UserError(f"landmarks: need five different points, those of image {number} coincide")
        most = max([len(rows) for rows in points], default=0)
        slots = 1 << (max(most, 1) - 1).bit_length()

        def run(bucket):
            rows = np.zeros((len(bucket.images), slots, 5, 2), np.float32)
            valid = np.zeros((len(bucket.images), slots), bool)
            for row, number in enumerate(bucket.numbers):
                count = len(points[number])
                rows[row, :count] = points[number] / np.array(bucket.scales[row], np.float32)[::-1]
                valid[row, :count] = True
            return _embed_given(
                self._variables,
                bucket.images,
                bucket.valid_size,
                rows,
                valid,
                target=self._target,
                **self._options,
            )

        return self._collected(images, run)

    def _collected(self, images: Sequence[np.ndarray], run) -> list[Faces]:
        """What `run` says of each bucket, sorted by image; while the host unpacks one bucket the device computes the next."""
        results: list[Any] = [None] * len(images)
        waiting: list = []

        def unpack():
            bucket, outputs = waiting.pop(0)
            faces = jax.device_get(outputs)
            # Valid faces were computed in this order, one image after the other.
            starts = np.concatenate([[0], np.cumsum(faces["valid"].sum(axis=1))])
            for row, number in enumerate(bucket.numbers):
                results[number] = _faces_of(faces, row, slice(*starts[row : row + 2]), bucket.scales[row])

        stride = 32 if self.detector is None else self.detector.detector.stride
        for image in images:
            _check_image(image)
        for bucket in in_buckets(images, longest=self.longest, stride=stride, batch_size=self.batch_size):
            waiting.append((bucket, run(bucket)))
            if len(waiting) > 1:
                unpack()
        while waiting:
            unpack()
        return results


def _check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"images: needs uint8 [H, W, 3] each, got {image.dtype} {image.shape}")


def _has_landmarks(detector: PhotoDetector) -> bool:
    side = 2 * detector.bundle.detector.stride
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
    size = jax.ShapeDtypeStruct((1, 2), np.int32)
    find = functools.partial(detect_at_scales, **detector.options)
    return jax.eval_shape(find, detector.variables, image, size).landmarks is not None


def _faces_of(faces: dict, row: int, computed: slice, scale: tuple[float, float]) -> Faces:
    """The faces of one image: its valid slots, and what was computed of them, in the pixels of the original."""
    valid, factors = faces["valid"][row], np.array(scale, np.float32)
    return Faces(
        faces["boxes"][row][valid] * np.tile(factors, 2),
        faces["scores"][row][valid],
        faces["landmarks"][row][valid] * factors[::-1],
        faces["embeddings"][computed],
        faces["crops"][computed],
        faces["scales"][row][valid] / factors.mean(),
    )


@functools.partial(jax.jit, static_argnames=("found", "network", "flip", "size"))
def _detect_and_embed(variables, images, valid_size, *, target, found, network, flip, size) -> dict:
    """Everything that happens to one bucket: `_embedded` of what the detector finds in it."""
    detections = detect_at_scales(variables[0], images, valid_size, **dict(found))
    assert detections.landmarks is not None  # `Pipeline` takes no detector without
    faces = _embedded(
        variables[1],
        images,
        valid_size,
        detections.landmarks,
        detections.valid,
        target=target,
        network=network,
        flip=flip,
        size=size,
    )
    return faces | {"boxes": detections.boxes, "scores": detections.scores}


@functools.partial(jax.jit, static_argnames=("network", "flip", "size"))
def _embed_given(variables, images, valid_size, landmarks, valid, *, target, network, flip, size) -> dict:
    """`_embedded` of landmarks from elsewhere; boxes are those of the crops."""
    faces = _embedded(
        variables,
        images,
        valid_size,
        landmarks,
        valid,
        target=target,
        network=network,
        flip=flip,
        size=size,
    )
    # A box around the landmarks, as much larger as a face is than its eyes, nose and mouth.
    low, high = landmarks.min(axis=2), landmarks.max(axis=2)
    margin = 0.6 * (high - low).max(axis=-1, keepdims=True)
    edges = valid_size[:, None, ::-1].astype(jnp.float32)
    low, high = jnp.clip(low - margin, 0, edges), jnp.clip(high + margin, 0, edges)
    boxes = jnp.concatenate([low[..., ::-1], high[..., ::-1]], axis=-1)
    return faces | {"boxes": boxes, "scores": valid.astype(jnp.float32)}


def _embedded(
    variables: Any,
    images: jax.Array,
    valid_size: jax.Array,
    landmarks: jax.Array,
    valid: jax.Array,
    *,
    target: jax.Array,
    network: EmbeddingNetwork,
    flip: bool,
    size: tuple[int, int],
) -> dict[str, jax.Array]:
    """Aligns and embeds the valid faces, image after image, as many rounds of B faces as that takes.

    Args:
      images: [B, H, W, 3] uint8. valid_size: [B, 2]. landmarks: [B, K, 5, 2]. valid: [B, K] bool.

    Returns:
      "embeddings" [B·K, D] and "crops" [B·K, h, w, 3] of which the first are those of the valid faces; "landmarks", "valid" and
      "scales" [B, K].
    """
    batch, slots = valid.shape
    order = jnp.argsort(~valid.reshape(-1), stable=True)
    rounds = -(-jnp.sum(valid) // batch)
    points = landmarks.reshape(batch * slots, 5, 2)

    def embed(number, filled):
        embeddings, crops = filled
        rows = jax.lax.dynamic_slice_in_dim(order, number * batch, batch)
        levels = align_faces(images, rows // slots, points[rows], target, size, valid_size=valid_size)
        # The crops that are returned are those that the recognizer sees: without the barrier each is rounded by itself.
        pixels = jax.lax.optimization_barrier(jnp.clip(jnp.round(levels), 0, 255).astype(jnp.uint8))
        unit = l2_normalize(network.features(variables, pixels, flip=flip).astype(jnp.float32))
        start = number * batch
        return (
            jax.lax.dynamic_update_slice_in_dim(embeddings, unit, start, axis=0),
            jax.lax.dynamic_update_slice_in_dim(crops, pixels, start, axis=0),
        )

    pixels = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    dim = jax.eval_shape(functools.partial(network, variables), pixels).shape[-1]
    filled = (
        jnp.zeros((batch * slots, dim), jnp.float32),
        jnp.zeros((batch * slots, *size, 3), jnp.uint8),
    )
    embeddings, crops = jax.lax.fori_loop(0, rounds, embed, filled)
    # Of a similarity with its template: the ratio of their spreads, but for what does not fit.
    spread = jnp.sqrt(jnp.square(landmarks - landmarks.mean(axis=2, keepdims=True)).sum(axis=(2, 3)))
    whole = jnp.sqrt(jnp.square(target - target.mean(axis=0)).sum())
    return {
        "embeddings": embeddings,
        "crops": crops,
        "landmarks": landmarks,
        "valid": valid,
        "scales": whole / jnp.maximum(spread, 1e-6),
    }
