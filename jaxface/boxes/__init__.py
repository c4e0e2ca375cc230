"""Pure functions on boxes: (y0, x0, y1, x1) pixels, float32, continuous, the origin at the top-left corner of the image.

| question | start with |
|---|---|
| how much do boxes overlap? | `box_iou`, `box_iof`, `box_giou` of every pair; `paired_iou`, `paired_giou` of one with one |
| what does a head predict? | `encode_boxes`, `decode_boxes`, `encode_points`, `decode_points` |
| and a set predictor? | `normalized_boxes`, `boxes_of_normalized` |
| where are the anchors? | `make_anchors`, `square_anchors`, `valid_anchors` |
| which box is an anchor's? | `face_assign`, `max_iou_assign`, `s3fd_assign`, `ssh_assign` |
| and what belongs to that box? | `assigned_rows`, `assigned_labels` |
| what to train on? | `sample_rois`, `sample_mask` |
| which detections stay? | `nms` |
| what are the features of a region? | `roi_levels`, `roi_align` |
| where is a box in another view? | `transform_boxes`, `view_to_view` |
"""

from jaxface.boxes.anchors import (
    S3FD_SIZES,
    S3FD_STRIDES,
    AnchorSpec,
    make_anchors,
    square_anchors,
    valid_anchors,
)
from jaxface.boxes.assignment import (
    assigned_labels,
    assigned_rows,
    face_assign,
    max_iou_assign,
    s3fd_assign,
    ssh_assign,
)
from jaxface.boxes.coding import (
    boxes_of_normalized,
    decode_boxes,
    decode_points,
    encode_boxes,
    encode_points,
    normalized_boxes,
)
from jaxface.boxes.geometry import box_area, clip_boxes
from jaxface.boxes.iou import box_giou, box_iof, box_iou, paired_giou, paired_iou
from jaxface.boxes.nms import nms
from jaxface.boxes.roi_align import roi_align, roi_levels
from jaxface.boxes.sampling import Sample, sample_mask, sample_rois
from jaxface.boxes.views import transform_boxes, view_to_view

__all__ = [
    "S3FD_SIZES",
    "S3FD_STRIDES",
    "AnchorSpec",
    "Sample",
    "assigned_labels",
    "assigned_rows",
    "box_area",
    "box_giou",
    "box_iof",
    "box_iou",
    "boxes_of_normalized",
    "clip_boxes",
    "decode_boxes",
    "decode_points",
    "encode_boxes",
    "encode_points",
    "face_assign",
    "make_anchors",
    "max_iou_assign",
    "nms",
    "normalized_boxes",
    "paired_giou",
    "paired_iou",
    "roi_align",
    "roi_levels",
    "s3fd_assign",
    "sample_mask",
    "sample_rois",
    "square_anchors",
    "ssh_assign",
    "transform_boxes",
    "valid_anchors",
    "view_to_view",
]
