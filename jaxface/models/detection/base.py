"""What a detector is to training, evaluation and inference, and the table of detectors."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.boxes import nms
from jaxface.checks import check_fields
from jaxface.errors import UserError
from jaxface.registry import Registry

Outputs = Any  # any pytree of arrays [B, ...]: what a detector's module makes of images


class Detections(NamedTuple):
    """What was detected in a batch of images, in static shapes: of the K rows of an image those count that are `valid`.

    Attributes:
      boxes: [B, K, 4] float32 (y0, x0, y1, x1) pixels, the highest score first.
      scores: [B, K] float32 in [0, 1].
      classes: [B, K] int32; 0 of a detector of faces.
      landmarks: [B, K, 5, 2] float32 (x, y) pixels: eyes, nose, corners of the mouth, left before right as seen in the image;
        None of a detector without them.
      valid: [B, K] bool.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    landmarks: jax.Array | None
    valid: jax.Array


class Detector(Protocol):
    """A network with what its outputs mean. Detectors are frozen dataclasses whose fields are JSON-like (`describe`).

    One whose training is more than the loss of its module's outputs has a `training_pass` of its own, as the function below.

    Attributes:
      module: `module.apply(variables, image [B, H, W, 3] float32 in [-1, 1], train=…)` is the outputs; H and W are multiples of
        `stride`. It has batch statistics.
      num_classes: classes of objects, background not counted.
      stride: of the coarsest level.
    """

    num_classes: int
    stride: int

    @property
    def module(self) -> nn.Module:
        """The network: images [B, H, W, 3] -> its outputs."""

    def anchors(self, image_size: tuple[int, int]) -> np.ndarray:
        """[P, 4] boxes that the outputs of images (H, W) are relative to."""

    def loss(
        self, outputs: Outputs, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(scalar, metrics) of a batch: `boxes`, `box_mask`, `box_label`, `box_crowd`, `landmarks`, `landmark_mask`."""

    def detect(
        self,
        outputs: Outputs,
        image_size: tuple[int, int],
        *,
        valid_size: jax.Array | None = None,
        score_threshold: float = 0.02,
        iou_threshold: float = 0.4,
        max_outputs: int = 100,
    ) -> Detections:
        """Decoded boxes that survive the suppression of their neighbors; pure, with static shapes (`select_detections`).

        Args:
          outputs: of the module.
          image_size: (H, W) that it saw.
          valid_size: [B, 2] integers (height, width) of the images before they were padded at the bottom and the right; boxes
            whose center lies outside are dropped, the others cut to it.
          score_threshold: smallest score.
          iou_threshold: a box goes where a better one of its class overlaps it by more.
          max_outputs: K of the result.
        """


class TrainingPass(NamedTuple):
    """What a detector makes of a batch in training.

    Attributes:
      loss: scalar. report: metrics of it.
      updated: collections that the pass has changed, such as batch statistics.
      levels: maps of the feature pyramid [B, H, W, C], fine before coarse; none of a detector without one.
      outputs: of the module.
    """

    loss: jax.Array
    report: dict[str, jax.Array]
    updated: Mapping[str, Any]
    levels: tuple[jax.Array, ...]
    outputs: Outputs


def training_pass(
    detector: "Detector", variables: Mapping, batch: Mapping[str, jax.Array], rng: jax.Array
) -> TrainingPass:
    """A detector's pass over a batch: its own `training_pass` where it has one, else its module, then its loss.

    Args:
      variables: of its module. batch: as in `Detector.loss`, with `image` float32 in [-1, 1]. rng: for what is random in it.
    """
    if hasattr(detector, "training_pass"):
        return detector.training_pass(variables, batch, rng)
    outputs, updated = detector.module.apply(
        variables, batch["image"], train=True, mutable=["batch_stats"], rngs={"dropout": rng}
    )
    return TrainingPass(*detector.loss(outputs, batch), updated, (), outputs)


def detector_outputs(
    detector: "Detector", variables: Mapping, image: jax.Array, valid_size: jax.Array | None = None
) -> Outputs:
    """A detector's outputs on images that may be padded: its own `outputs` where it has one, which can leave the padding out.

    Args:
      variables: of its module. image: [B, H, W, 3] float32 in [-1, 1].
      valid_size: [B, 2] integers (height, width) before padding, which `Detector.detect` then gets too; None for all of it.
    """
    if hasattr(detector, "outputs"):
        return detector.outputs(variables, image, valid_size)
    return detector.module.apply(variables, image, train=False)


def best_candidates(
    boxes: jax.Array, scores: jax.Array, *, count: int = 1000
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best pairs of box and class.

    Args:
      boxes: [B, P, 4], or [B, P, C, 4] one for each class. scores: [B, P, C]. count: K, or P · C where that is less.

    Returns:
      (boxes [B, K, 4], scores [B, K], classes [B, K] int32), the best first.

    Example:
      >>> boxes, scores = jnp.arange(8.0).reshape(1, 2, 4), jnp.array([[[0.1, 0.7], [0.4, 0.2]]])
      >>> [part.tolist() for part in best_candidates(boxes, scores, count=2)[1:]]
      [[[0.699999988079071, 0.4000000059604645]], [[1, 0]]]
    """
    _, places, classes = scores.shape

    def of_image(boxes, scores):
        # No more than `count` boxes have one of the `count` best scores.
        _, rows = jax.lax.top_k(scores.max(axis=1), min(count, places))
        best, pairs = jax.lax.top_k(scores[rows].ravel(), min(count, rows.size * classes))
        rows, columns = rows[pairs // classes], pairs % classes
        return boxes[rows] if boxes.ndim == 2 else boxes[rows, columns], best, columns.astype(jnp.int32)

    return jax.vmap(of_image)(boxes, scores)


def select_detections(
    boxes: jax.Array,
    scores: jax.Array,
    classes: jax.Array | None = None,
    landmarks: jax.Array | None = None,
    *,
    image_size: tuple[int, int],
    valid_size: jax.Array | None = None,
    score_threshold: float,
    iou_threshold: float,
    max_outputs: int,
    candidates: int = 1000,
) -> Detections:
    """Suppresses neighbors among the best decoded boxes of each image: what the end of every `detect` is.

    Args:
      boxes: [B, P, 4] pixels.
      scores: [B, P] float32; those that are not finite count as 0.
      classes: [B, P] int32; all 0 unless given.
      landmarks: [B, P, 5, 2] or None.
      image_size, valid_size, score_threshold, iou_threshold, max_outputs: as in `Detector.detect`.
      candidates: how many of the best boxes of an image are looked at.

    Returns:
      The detections, best first.
    """
    batch, places, _ = boxes.shape
    valid_size = jnp.broadcast_to(
        jnp.array(image_size, jnp.int32) if valid_size is None else valid_size, (batch, 2)
    )

    def of_image(boxes, scores, classes, landmarks, size):
        size = size.astype(jnp.float32)
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        real = jnp.all((centers >= 0) & (centers < size), axis=1) & jnp.all(jnp.isfinite(boxes), axis=1)
        scores = jnp.where(real & (scores >= score_threshold), scores, -jnp.inf)
        scores, best = jax.lax.top_k(scores, min(candidates, places))
        boxes = jnp.clip(jnp.nan_to_num(boxes[best]), 0, jnp.tile(size, 2))
        indices, valid = nms(
            boxes, scores, classes[best], iou_threshold=iou_threshold, max_outputs=max_outputs
        )
        zero = jnp.zeros((), jnp.float32)
        return Detections(
            jnp.where(valid[:, None], boxes[indices], zero),
            jnp.where(valid, scores[indices], zero),
            jnp.where(valid, classes[best][indices], 0),
            None if landmarks is None else jnp.where(valid[:, None, None], landmarks[best][indices], zero),
            valid,
        )

    classes = jnp.zeros((batch, places), jnp.int32) if classes is None else classes.astype(jnp.int32)
    return jax.vmap(of_image)(boxes, scores, classes, landmarks, valid_size)


DETECTORS: Registry[type] = Registry("detector", "jaxface.models.detection")
"""Classes of detectors, each registered beside its definition."""


def create_detector(name: str, **fields) -> Detector:
    """A detector by name.

    Args:
      name: one of `DETECTORS.names()`.
      **fields: of its class.

    Raises:
      UserError: the name or a field is unknown, or a field's value is impossible.
    """
    detector = DETECTORS[name]
    names = sorted(field.name for field in dataclasses.fields(detector))
    if unknown := sorted(set(fields) - set(names)):
        raise UserError(
            f"detector {name!r} has no field {', '.join(unknown)}; its fields are {', '.join(names)}"
        )
    made = detector(**fields)
    check_fields(made)
    return made


def describe(detector: Detector) -> dict[str, Any]:
    """A detector as JSON-like values, from which `from_description` makes it again."""
    return {"name": DETECTORS.name_of(type(detector)), **dataclasses.asdict(detector)}


def from_description(description: Mapping[str, Any]) -> Detector:
    """The inverse of `describe`, also of what JSON made of it.

    Raises:
      UserError: no description of a detector that is known.
    """
    if not isinstance(description, Mapping) or not isinstance(description.get("name"), str):
        raise UserError("detector: needs an object with the name of a detector")
    fields = {name: _tuples(value) for name, value in description.items() if name != "name"}
    try:
        return create_detector(description["name"], **fields)
    except TypeError as error:
        raise UserError(f"detector: {error}") from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def init_variables(detector: Detector, rng: jax.Array, image_size: tuple[int, int]) -> tuple[dict, dict]:
    """Fresh (parameters, other collections) of a detector's network.

    They are drawn from XLA's own generator, keyed by `rng`: with JAX's default one this takes seven times as long to compile on a
    CPU. Its numbers are those of the kind of device that draws them.
    """
    key = jax.random.wrap_key_data(jnp.resize(jax.random.key_data(rng), 4), impl="rbg")
    variables = dict(detector.module.init(key, jnp.zeros((1, *image_size, 3)), train=False))
    return variables.pop("params"), variables
