"""Detectors: images in, boxes with scores and landmarks out."""

from jaxface.models.detection.base import (
    DETECTORS,
    Detections,
    Detector,
    TrainingPass,
    best_candidates,
    create_detector,
    describe,
    from_description,
    init_variables,
    select_detections,
    training_pass,
)
from jaxface.models.detection.cell_net import STRUCTURES, CellNet, Structure, context_weights
from jaxface.models.detection.retinaface import RetinaFace
from jaxface.models.detection.retinanet import RetinaNet
from jaxface.models.detection.tiny_yolo import FusedTinyYolo, TinyYolo, fuse_tiny_yolo

__all__ = [
    "DETECTORS",
    "STRUCTURES",
    "CellNet",
    "Detections",
    "Detector",
    "FusedTinyYolo",
    "RetinaFace",
    "RetinaNet",
    "Structure",
    "TinyYolo",
    "TrainingPass",
    "best_candidates",
    "context_weights",
    "create_detector",
    "describe",
    "from_description",
    "fuse_tiny_yolo",
    "init_variables",
    "select_detections",
    "training_pass",
]
