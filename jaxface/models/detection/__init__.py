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
from jaxface.models.detection.retinaface import RetinaFace

__all__ = [
    "DETECTORS",
    "Detections",
    "Detector",
    "RetinaFace",
    "create_detector",
    "describe",
    "from_description",
    "init_variables",
    "select_detections",
]
