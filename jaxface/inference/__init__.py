"""Trained networks on photographs.

A bundle is a network with its weights and all that its images need before it: `open_detector` makes one of a run, of a folder
that `save_bundle` wrote, or of published weights. `PhotoDetector` finds what it was trained on in images of any size.
"""

# ruff: noqa: E402 - what is missing is named before anything fails for want of it
from jaxface.extras import need

need("inference", "cv2", "orbax.checkpoint", "safetensors")

from jaxface.inference.bundle import (
    DetectorBundle,
    bundle_description,
    open_bundle,
    open_detector,
    open_run,
    open_weights,
    save_bundle,
    save_weights,
)
from jaxface.inference.letterbox import bucket_side, letterbox
from jaxface.inference.photo_detector import PhotoDetections, PhotoDetector

__all__ = [
    "DetectorBundle",
    "PhotoDetections",
    "PhotoDetector",
    "bucket_side",
    "bundle_description",
    "letterbox",
    "open_bundle",
    "open_detector",
    "open_run",
    "open_weights",
    "save_bundle",
    "save_weights",
]
