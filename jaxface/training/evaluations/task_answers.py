"""What the head of a task answers on a source, and how right that is.

Methods: intern
"""

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface import metrics
from jaxface.data.sources.source import Source
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.models.staged import Features, features
from jaxface.models.task_heads import TaskHead
from jaxface.training.map_source import map_source

Metric = Literal[
    "accuracy", "mean_class_accuracy", "ap50", "wider_ap", "miss_rate", "cell_ap", "miou", "rmse"
]
"""What is reported of a task."""
METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "mean_class_accuracy"),
    "detection": ("ap50", "wider_ap", "miss_rate"),
    "cells": ("cell_ap",),
    "segmentation": ("miou",),
    "depth": ("rmse",),
}
"""Those of each task, the usual one first."""
LOWER_IS_BETTER = ("miss_rate", "rmse")
"""Metrics of errors."""


def check_metric(task: str, metric: str) -> None:
    """Raises UserError for a task or a metric of it that is not known.

    Example:
      >>> check_metric("depth", "rmse")
    """
    if task not in METRICS:
        raise UserError(f"task: needs one of {', '.join(METRICS)}, got {task!r}")
    if metric not in METRICS[task]:
        raise UserError(f"metric: {task} has {', '.join(METRICS[task])}, got {metric!r}")


@functools.partial(jax.jit, static_argnames=("backbone",))
def frozen_features(variables: Any, image: jax.Array, *, backbone: nn.Module) -> Features:
    """Features of a backbone in evaluation mode, of pixels or of images in [-1, 1]; a program that no head changes."""
    return backbone.apply(variables, normalize_pixels(image), train=False, method=features)


@functools.partial(jax.jit, static_argnames=("head", "columns", "size"))
def _answers(
    params, maps, image_size, *, head: TaskHead, columns: tuple[int, ...] | None, size: tuple[int, int]
) -> Any:
    outputs = head.module.apply({"params": params}, maps, size)
    chosen = slice(None) if columns is None else jnp.array(columns)
    if head.task == "classification":
        return outputs[..., chosen].argmax(axis=-1)
    if head.task == "segmentation":
        return outputs[0][..., chosen].argmax(axis=-1)
    if head.task == "depth":
        return outputs[0][..., 0]
    if head.task == "cells":
        return outputs
    detector = head.detector
    if columns is not None:
        outputs = {**outputs, "class_logits": outputs["class_logits"][..., chosen]}
        detector = dataclasses.replace(detector, num_classes=len(columns))
    found = detector.detect(outputs, size, valid_size=image_size, max_outputs=20)
    return {"boxes": found.boxes, "scores": found.scores, "classes": found.classes, "valid": found.valid}


def task_answers(
    backbone: nn.Module,
    variables: Any,
    head: TaskHead,
    params: Any,
    source: Source,
    *,
    columns: tuple[int, ...] | None = None,
    batch_size: int = 64,
) -> Any:
    """Answers on every record: classes [N], pixels [N, H, W], depths [N, H, W], logits of cells, or boxes as arrays [N, K, …].

    Args:
      backbone, variables: a staged backbone and its variables.
      head, params: of the task.
      source: the records.
      columns: numbers of the head's classes that are those of the source, in its order; all unless given.
    """
    detects = head.task == "detection"

    def answer(both, batch):
        maps = frozen_features(both["backbone"], batch["image"], backbone=backbone)
        sizes, size = batch.get("image_size"), batch["image"].shape[1:3]
        return _answers(both["head"], maps, sizes, head=head, columns=columns, size=size)

    both = {"backbone": variables, "head": params}
    fields = ("image", "image_size") if detects else ("image",)
    return map_source(answer, source, both, batch_size=batch_size, fields=fields)


def score(task: str, metric: str, answers: Any, source: Source, *, num_classes: int) -> float:
    """How right answers are.

    Args:
      task, metric: of `METRICS`.
      answers: of `task_answers`.
      source: the records.
      num_classes: classes of the source; pixels count their background.

    Raises:
      UserError: what `check_metric` refuses.
    """
    check_metric(task, metric)
    if task == "classification":
        if metric == "accuracy":
            return float(np.mean(answers == source.labels))
        return metrics.mean_class_accuracy(answers, np.asarray(source.labels), num_classes=num_classes)
    records = [source[i] for i in range(len(source))]
    if task == "segmentation":
        labels = np.stack([record["pixel_label"] for record in records])
        return metrics.mean_iou(metrics.pixel_confusion(answers, labels, num_classes=num_classes))
    if task == "depth":
        return metrics.depth_rmse(answers, np.stack([record["depth"] for record in records]))
    if task == "cells":
        return metrics.average_precision(answers, np.stack([record["cells"] for record in records]))
    names = ("boxes", "scores", "classes", "valid")
    found = [{name: answers[name][i] for name in names} for i in range(len(records))]
    if metric == "wider_ap" and hasattr(source, "ground_truth"):
        return metrics.wider_face_evaluate(found, [source.ground_truth(i) for i in range(len(source))])[
            "hard"
        ]
    truth = [
        {
            "boxes": record["boxes"][record["box_mask"]],
            "labels": record["box_label"][record["box_mask"]],
            "crowd": record["box_crowd"][record["box_mask"]],
        }
        for record in records
    ]
    if metric == "miss_rate":
        return metrics.log_average_miss_rate(found, truth)
    if metric == "wider_ap":
        raise UserError("metric: wider_ap needs faces with the lists easy, medium and hard")
    return float(metrics.coco_evaluate(found, truth, num_classes=num_classes)["AP50"])
