"""How good are a detector's boxes: COCO, PASCAL VOC, WIDER FACE, FDDB and the log-average miss rate.

All take two sequences of dicts, one of each per image and in the same order:

| of predictions | shape | |
|---|---|---|
| `boxes` | [D, 4] | (y0, x0, y1, x1) pixels of the image as it was annotated, continuous, y0 ≤ y1, x0 ≤ x1; D may be 0 |
| `scores` | [D] | the higher, the surer; in any order |
| `classes` | [D] | integers from 0; left out, all are 0 |
| `valid` | [D] | bool, False for padding; left out, all are valid |
| `ellipses` | [D, 5] | FDDB only, instead of `boxes` |

| of ground truth | shape | |
|---|---|---|
| `boxes` | [G, 4] | as above; G may be 0 |
| `labels` | [G] | integers from 0; left out, all are 0 |
| `crowd` | [G] | COCO, miss rate: bool, a region whose detections count neither way |
| `area` | [G] | COCO: of the annotation, square pixels; left out, that of the box |
| `difficult` | [G] | VOC: bool |
| `easy`, `medium`, `hard` | [G] | WIDER FACE: bool, the faces that the list of that name keeps |
| `ellipses` | [G, 5] | FDDB, instead of `boxes`: major and minor radius, angle of the major one in radians, center x, center y |
| `image_size` | [2] | FDDB: (height, width) to which regions are cut; left out, they are not |

Other keys are not looked at. What is of another shape, is not finite or has another class is refused in one line.
"""

from jaxface.metrics.detection.coco import coco_evaluate
from jaxface.metrics.detection.fddb import FddbScores, fddb_evaluate
from jaxface.metrics.detection.miss_rate import log_average_miss_rate
from jaxface.metrics.detection.rank_agreement import rank_agreement
from jaxface.metrics.detection.voc import VocScores, voc_evaluate
from jaxface.metrics.detection.wider_face import wider_face_evaluate

__all__ = [
    "FddbScores",
    "VocScores",
    "coco_evaluate",
    "fddb_evaluate",
    "log_average_miss_rate",
    "rank_agreement",
    "voc_evaluate",
    "wider_face_evaluate",
]
