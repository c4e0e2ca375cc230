"""Trained networks on photographs.

A bundle is a network with its weights and all that its images need before it: `open_recognizer` and `open_detector` make one of a
run, of a folder that `save_bundle` wrote, or of published weights. `PhotoDetector` finds what it was trained on in images of any
size. A `Gallery` says who of the people in it, if anybody, an embedding is of.
"""

# ruff: noqa: E402 - what is missing is named before anything fails for want of it
from jaxface.extras import need

need("inference", "cv2", "orbax.checkpoint", "safetensors")

from jaxface.inference.bundle import (
    DetectorBundle,
    EmbeddingNetwork,
    RecognizerBundle,
    Threshold,
    detector_description,
    import_detector,
    import_recognizer,
    open_bundle,
    open_detector,
    open_recognizer,
    recognizer_description,
    save_bundle,
    save_weights,
)
from jaxface.inference.codec import (
    Codec,
    codec_description,
    codec_weights,
    open_codec,
    open_video_codec,
    save_codec,
    video_description,
)
from jaxface.inference.gallery import Gallery, Matches
from jaxface.inference.letterbox import bucket_side, letterbox
from jaxface.inference.photo_detector import PhotoDetections, PhotoDetector
from jaxface.inference.pipeline import Faces, Pipeline

__all__ = [
    "Codec",
    "DetectorBundle",
    "EmbeddingNetwork",
    "Faces",
    "Gallery",
    "Matches",
    "PhotoDetections",
    "PhotoDetector",
    "Pipeline",
    "RecognizerBundle",
    "Threshold",
    "bucket_side",
    "codec_description",
    "codec_weights",
    "detector_description",
    "import_detector",
    "import_recognizer",
    "letterbox",
    "open_bundle",
    "open_codec",
    "open_detector",
    "open_recognizer",
    "open_video_codec",
    "recognizer_description",
    "save_bundle",
    "save_codec",
    "save_weights",
    "video_description",
]
