"""Detectors: images in, boxes with scores and landmarks out."""

from jaxface.models.detection.base import (
    DETECTORS,
    Detections,
    Detector,
    create_detector,
    describe,
    from_description,
    init_variables,
    select_detections,
)
from jaxface.models.detection.cell_net import STRUCTURES, CellNet, Structure, context_weights
from jaxface.models.detection.retinaface import RetinaFace

__all__ = [
    "DETECTORS",
    "STRUCTURES",
    "CellNet",
    "Detections",
    "Detector",
    "RetinaFace",
    "Structure",
    "context_weights",
    "create_detector",
    "describe",
    "from_description",
    "init_variables",
    "select_detections",
]
