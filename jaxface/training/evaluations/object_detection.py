"""Evaluation of a detector on images that it never saw."""

import functools
import math
import pathlib

import jax
import numpy as np

from jaxface import metrics
from jaxface.data.sources.source import Source, Subset
from jaxface.data.transforms.drawing import draw_boxes
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.metrics.detection.recall_by_size import recall_by_size
from jaxface.models.detection import Detections, Detector, detector_outputs
from jaxface.training import figures
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.map_source import map_source
from jaxface.training.recognition import statistics
from jaxface.training.stages import Figures
from jaxface.training.step import TrainState

_ANNOTATED = ("image", "image_size", "original_size")
_RECORDED = ("image", "image_size", "boxes", "box_mask", "box_label", "box_crowd")
_SIZES = ("small", "medium", "large")
_TRUE = (64, 220, 96)  # color of what is there, in figures


class ObjectDetection:
    """Evaluation of a detector by COCO's average precision, and by its recall at the threshold that it is used at.

    Of a set in VOC's layout it gives VOC's average precision too, that of 2007, over eleven recalls, and that of 2010; `ar` is
    the recall of 100 detections of an image, the mean over COCO's overlaps.

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
        try:
            source.ground_truth(0)
            self._annotated = True
        except AttributeError:
            self._annotated = False

    def detections(
        self, state: TrainState
    ) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
        """(what is detected, what is there) in every image, as `jaxface.metrics.detection` takes them; what is detected has
        `landmarks` besides, None of a detector without them.

        Places are in pixels of the image as it was annotated, where the source knows it (`ground_truth`), else of the record's.
        """
        variables = {"params": state.averaged_params["detector"], **statistics(state.extra)}
        detect = functools.partial(_detect, detector=self.detector, max_outputs=self.max_outputs)
        buckets = getattr(self.source, "buckets", np.zeros(len(self.source), np.int32))
        results: list[tuple] = [()] * len(self.source)
        for bucket in np.unique(buckets):
            numbers = np.flatnonzero(buckets == bucket)
            found, record = map_source(
                detect,
                Subset(self.source, numbers),
                variables,
                batch_size=self.batch_size,
                fields=_ANNOTATED if self._annotated else _RECORDED,
            )
            for i, number in enumerate(numbers):
                results[number] = self._result(number, *jax.tree.map(lambda x, i=i: x[i], (found, record)))
        found, truth = zip(*results, strict=True)
        return list(found), list(truth)

    def _result(self, number: int, found: Detections, record: dict) -> tuple[dict, dict]:
        valid, landmarks = found.valid, found.landmarks
        if self._annotated:
            scale = record["original_size"] / np.maximum(record["image_size"], 1)
            truth = self.source.ground_truth(int(number))
        else:
            scale, real = np.ones(2), record["box_mask"]
            names = {"boxes": "boxes", "labels": "box_label", "crowd": "box_crowd"}
            truth = {name: record[field][real] for name, field in names.items()}
        predicted = {
            "boxes": found.boxes[valid] * np.tile(scale, 2),
            "scores": found.scores[valid],
            "classes": found.classes[valid],
            "landmarks": None if landmarks is None else landmarks[valid] * scale[::-1],
        }
        return predicted, truth

    def __call__(self, state: TrainState) -> dict[str, float]:
        self._last, truth = self.detections(state)
        classes = self.detector.num_classes
        coco = metrics.coco_evaluate(self._last, truth, num_classes=classes)
        report = {"ap": coco["AP"], "ap50": coco["AP50"], "ap75": coco["AP75"], "ar": coco["AR100"]}
        # No object of a size gives -1 there.
        report |= {f"ap_{size}": coco[f"AP_{size}"] for size in _SIZES if coco[f"AP_{size}"] >= 0}
        if all("difficult" in image for image in truth):
            for year, eleven_points in (("07", True), ("10", False)):
                # Boxes go from the first pixel's edge to the last one's: their sides are those of VOC's development kit.
                voc = metrics.voc_evaluate(
                    self._last, truth, num_classes=classes, eleven_points=eleven_points
                )
                report[f"voc{year}_ap"] = voc.mean
        report |= recall_by_size(self._last, truth, score_threshold=self.score_threshold, num_classes=classes)
        if all("hard" in image for image in truth):
            report |= metrics.wider_face_evaluate(self._last, truth)
        return {f"detection/{name}": value for name, value in report.items() if not math.isnan(value)}

    def figures(self, state: TrainState) -> Figures:
        """Some images with what was detected in the state evaluated last, and what is there in green."""
        return {"detections": self._draw}

    def _draw(self, path: pathlib.Path) -> pathlib.Path:
        buckets = getattr(self.source, "buckets", np.zeros(len(self.source), np.int32))
        alike = np.flatnonzero(buckets == buckets[0])
        images = []
        for index in alike[np.linspace(0, len(alike) - 1, min(self.drawn, len(alike))).astype(int)].tolist():
            record, found = self.source[index], self._last[index]
            scale = np.ones(2)
            if self._annotated:
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
    outputs = detector_outputs(detector, variables, image, batch["image_size"])
    record = {
        name: value for name, value in batch.items() if name in _ANNOTATED + _RECORDED and name != "image"
    }
    detections = detector.detect(
        outputs, image.shape[1:3], valid_size=batch["image_size"], max_outputs=max_outputs
    )
    return detections, record
