"""Evaluation of a detector on images that it never saw."""

import functools
import math
import pathlib

import jax
import numpy as np

from jaxface import metrics
from jaxface.data.sources.source import Source
from jaxface.data.transforms.drawing import draw_boxes
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.metrics.detection.recall_by_size import recall_by_size
from jaxface.models.detection import Detector
from jaxface.training import figures
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.map_source import map_source
from jaxface.training.recognition import statistics
from jaxface.training.stages import Figures
from jaxface.training.step import TrainState

_TRUE = (64, 220, 96)  # color of what is there, in figures


class ObjectDetection:
    """Evaluation of a detector by COCO's average precision, and by its recall at the threshold that it is used at.

    Args:
      detector: whose parameters are the part `detector` of the state's.
      source: records of images with objects.
      score_threshold: of what counts for recall and false positives, and is drawn.
      batch_size: images at a time.
      max_outputs: most detections of an image.
      drawn: images in the figure.

    Raises:
      UserError: no record, or the package that COCO's evaluation needs is not installed.
    """

    def __init__(
        self,
        detector: Detector,
        source: Source,
        *,
        score_threshold: float = 0.5,
        batch_size: int = 32,
        max_outputs: int = 100,
        drawn: int = 8,
    ):
        check_not_empty(source)
        metrics.coco_evaluate([{"boxes": np.zeros((0, 4)), "scores": []}], [{"boxes": np.zeros((0, 4))}])
        self.detector, self.source = detector, source
        self.score_threshold, self.batch_size = score_threshold, batch_size
        self.max_outputs, self.drawn = max_outputs, drawn

    def detections(self, state: TrainState) -> list[dict[str, np.ndarray]]:
        """What is detected in every image: `boxes`, `scores`, `classes`, and `landmarks`, None of a detector without them.

        Places are in pixels of the image as it was annotated, where the source knows it (`ground_truth`), else of the record's.
        """
        variables = {"params": state.averaged_params["detector"], **statistics(state.extra)}
        detect = functools.partial(_detect, detector=self.detector, max_outputs=self.max_outputs)
        fields = ("image", "image_size", "original_size") if self._has_originals else ("image", "image_size")
        found, sizes = map_source(detect, self.source, variables, batch_size=self.batch_size, fields=fields)
        results = []
        for i, valid in enumerate(found.valid):
            scale = np.ones(2)
            if self._has_originals:
                scale = sizes["original_size"][i] / np.maximum(sizes["image_size"][i], 1)
            results.append(
                {
                    "boxes": found.boxes[i][valid] * np.tile(scale, 2),
                    "scores": found.scores[i][valid],
                    "classes": found.classes[i][valid],
                    "landmarks": None if found.landmarks is None else found.landmarks[i][valid] * scale[::-1],
                }
            )
        return results

    def __call__(self, state: TrainState) -> dict[str, float]:
        self._last = self.detections(state)
        truth = [self._truth(i) for i in range(len(self.source))]
        classes = self.detector.num_classes
        coco = metrics.coco_evaluate(self._last, truth, num_classes=classes)
        report = {"ap": coco["AP"], "ap50": coco["AP50"], "ap75": coco["AP75"]}
        report |= recall_by_size(self._last, truth, score_threshold=self.score_threshold, num_classes=classes)
        return {f"detection/{name}": value for name, value in report.items() if not math.isnan(value)}

    def figures(self, state: TrainState) -> Figures:
        """Some images with what was detected in the state evaluated last, and what is there in green."""
        return {"detections": self._draw}

    @property
    def _has_originals(self) -> bool:
        return hasattr(self.source, "ground_truth")

    def _truth(self, index: int) -> dict[str, np.ndarray]:
        if self._has_originals:
            return self.source.ground_truth(index)
        record = self.source[index]
        real = record["box_mask"]
        return {
            "boxes": record["boxes"][real],
            "labels": record["box_label"][real],
            "crowd": record["box_crowd"][real],
        }

    def _draw(self, path: pathlib.Path) -> pathlib.Path:
        images = []
        for index in np.linspace(0, len(self.source) - 1, min(self.drawn, len(self.source))).astype(int):
            record, found = self.source[int(index)], self._last[index]
            scale = np.ones(2)
            if self._has_originals:
                scale = record["image_size"] / np.maximum(record["original_size"], 1)
            good = found["scores"] >= self.score_threshold
            landmarks = None if found["landmarks"] is None else found["landmarks"][good] * scale[::-1]
            image = draw_boxes(record["image"], record["boxes"][record["box_mask"]], color=_TRUE)
            images.append(
                draw_boxes(
                    image,
                    found["boxes"][good] * np.tile(scale, 2),
                    scores=found["scores"][good],
                    classes=found["classes"][good],
                    landmarks=landmarks,
                )
            )
        half = -(-len(images) // 2)
        rows = {"detections; what is there in green": np.stack(images[:half])}
        if images[half:]:
            rows[" "] = np.stack(images[half:])
        return figures.save_image_rows(rows, path)


@functools.partial(jax.jit, static_argnames=("detector", "max_outputs"))
def _detect(variables, batch, *, detector: Detector, max_outputs: int):
    image = normalize_pixels(batch["image"])
    outputs = detector.module.apply(variables, image, train=False)
    sizes = {name: batch[name] for name in ("image_size", "original_size") if name in batch}
    detections = detector.detect(
        outputs, image.shape[1:3], valid_size=batch["image_size"], max_outputs=max_outputs
    )
    return detections, sizes
