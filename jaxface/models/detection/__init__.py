"""Detectors: images in, boxes with scores and landmarks out."""

from jaxface.models.detection.base import (
    DETECTORS,
    Detections,
    Detector,
    TrainingPass,
    best_candidates,
    create_detector,
    describe,
    detector_outputs,
    from_description,
    init_variables,
    select_detections,
    training_pass,
)
from jaxface.models.detection.cell_net import STRUCTURES, CellNet, Structure, context_weights
from jaxface.models.detection.detr import Detr, DetrNet
from jaxface.models.detection.faster_rcnn import FasterRCNN, Proposals, RegionSample
from jaxface.models.detection.published import PUBLISHED_DETECTORS, published_detector
from jaxface.models.detection.retinaface import RetinaFace
from jaxface.models.detection.retinanet import RetinaNet
from jaxface.models.detection.tiny_yolo import FusedTinyYolo, TinyYolo, fuse_tiny_yolo

__all__ = [
    "DETECTORS",
    "PUBLISHED_DETECTORS",
    "STRUCTURES",
    "CellNet",
    "Detections",
    "Detector",
    "Detr",
    "DetrNet",
    "FasterRCNN",
    "FusedTinyYolo",
    "Proposals",
    "RegionSample",
    "RetinaFace",
    "RetinaNet",
    "Structure",
    "TinyYolo",
    "TrainingPass",
    "best_candidates",
    "context_weights",
    "create_detector",
    "describe",
    "detector_outputs",
    "from_description",
    "fuse_tiny_yolo",
    "init_variables",
    "published_detector",
    "select_detections",
    "training_pass",
]
