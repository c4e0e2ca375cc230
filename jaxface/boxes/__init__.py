"""Pure functions on boxes: (y0, x0, y1, x1) pixels, float32, continuous, the origin at the top-left corner of the image.

| question | start with |
|---|---|
| how much do boxes overlap? | `box_iou`, `box_iof`, `box_giou` of every pair; `paired_iou`, `paired_giou` of one with one |
| what does a head predict? | `encode_boxes`, `decode_boxes`, `encode_points`, `decode_points` |
| where are the anchors? | `make_anchors`, `square_anchors`, `valid_anchors` |
| which box is an anchor's? | `max_iou_assign`, `face_assign`, `s3fd_assign`, `ssh_assign` |
| which detections stay? | `nms` |
"""

from jaxface.boxes.anchors import (
    S3FD_SIZES,
    S3FD_STRIDES,
    AnchorSpec,
    make_anchors,
    square_anchors,
    valid_anchors,
)
from jaxface.boxes.assignment import face_assign, max_iou_assign, s3fd_assign, ssh_assign
from jaxface.boxes.coding import decode_boxes, decode_points, encode_boxes, encode_points
from jaxface.boxes.geometry import box_area, clip_boxes
from jaxface.boxes.iou import box_giou, box_iof, box_iou, paired_giou, paired_iou
from jaxface.boxes.nms import nms

__all__ = [
    "S3FD_SIZES",
    "S3FD_STRIDES",
    "AnchorSpec",
    "box_area",
    "box_giou",
    "box_iof",
    "box_iou",
    "clip_boxes",
    "decode_boxes",
    "decode_points",
    "encode_boxes",
    "encode_points",
    "face_assign",
    "make_anchors",
    "max_iou_assign",
    "nms",
    "paired_giou",
    "paired_iou",
    "s3fd_assign",
    "square_anchors",
    "ssh_assign",
    "valid_anchors",
]
