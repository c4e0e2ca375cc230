"""The detectors that are published with weights, by name: what their tensors do not say of them.

Methods: pseco, qdetr, rm_pfi
"""

from jaxface.errors import UserError
from jaxface.models.detection.base import Detector
from jaxface.models.detection.detr import Detr
from jaxface.models.detection.faster_rcnn import FasterRCNN
from jaxface.models.detection.retinanet import RetinaNet

_COCO = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant _ stop_sign "
    "parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe _ backpack umbrella _ _ handbag "
    "tie suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard "
    "tennis_racket bottle _ wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot "
    "hot_dog pizza donut cake chair couch potted_plant bed _ dining_table _ _ toilet _ tv laptop mouse remote "
    "keyboard cell_phone microwave oven toaster sink refrigerator _ book clock vase scissors teddy_bear hair_drier "
    "toothbrush "
)  # one for each of COCO's numbers from 1; _ where there is none

COCO_CLASSES = {
    number: name.replace("_", " ") for number, name in enumerate(_COCO.split(), start=1) if name != "_"
}
"""COCO's number of each of its 80 classes -> its name."""

_TORCHVISION = dict(trunk="resnet50", pixels="imagenet", whole_anchors=True)
_DETR = dict(
    queries=100, query_form="learned", pixels="imagenet", dim=256, heads=8, hidden=2048, encoder_layers=6, decoder_layers=6,
    dropout=0.1,
)  # fmt: skip
_PUBLISHED = {
    "detr_resnet50": (Detr, {**_DETR, "backbone": "resnet50"}, 91),
    "detr_resnet101": (Detr, {**_DETR, "backbone": "resnet101"}, 91),
    "smca_resnet50": (
        Detr,
        {**_DETR, "backbone": "resnet50", "queries": 300, "gaussian": True, "focal": True, "class_weight": 2.0},
        91,
    ),
    "retinanet_torchvision": (RetinaNet, {**_TORCHVISION, "extra_from": "pyramid", "extra_relu": True}, 91),
    "faster_rcnn_torchvision": (FasterRCNN, _TORCHVISION, 90),
    "faster_rcnn_pseco": (
        FasterRCNN,
        dict(
            trunk="resnet50", caffe=True, pixels="caffe", strides=(8, 16, 32, 64, 128), finer=1, scales=(4.0,),
            extra_from="trunk", focal=True, class_weight=10.0,
        ),
        80,
    ),
    **{
        f"{kind}_{trunk}{style}": (
            detector,
            dict(trunk=trunk, caffe=bool(style), pixels="caffe" if style else "imagenet"),
            80,
        )
        for kind, detector in (("retinanet", RetinaNet), ("faster_rcnn", FasterRCNN))
        for trunk in ("resnet18", "resnet50", "resnet101")
        for style in ("", "_caffe")
        if not (trunk == "resnet18" and style)
    },
}  # fmt: skip

PUBLISHED_DETECTORS = tuple(sorted(_PUBLISHED))
"""Names: MMDetection's RetinaNet and Faster R-CNN on COCO by their trunk, `_caffe` those of Caffe's weights, torchvision's of 91
classes, PseCo's, DETR's and SMCA's."""


def published_detector(name: str, **changes) -> Detector:
    """A detector as it is published; `changes` to its fields, such as `num_classes`.

    | name | trunk | classes | pixels |
    |---|---|---|---|
    | retinanet_resnet{18, 50, 101}, faster_rcnn_resnet{18, 50, 101} | stride in the 3x3 convolutions | 80 | ImageNet's, RGB |
    | retinanet_resnet{50, 101}_caffe, faster_rcnn_resnet{50, 101}_caffe | stride in the first 1x1 | 80 | BGR less the mean |
    | retinanet_torchvision, faster_rcnn_torchvision | resnet50 | 91 and 90 | ImageNet's, RGB |
    | detr_resnet{50, 101}, smca_resnet50 | stride in the 3x3 convolutions | 91 | ImageNet's, RGB |
    | faster_rcnn_pseco | resnet50, Caffe's; strides 8 to 128 and a finer map | 80 | BGR less the mean |

    Both of torchvision have integer anchors; its RetinaNet keeps a channel for the background, class 0, which is never an
    object, and the classes of its Faster R-CNN are COCO's numbers less 1.

    Raises:
      UserError: a name or a field that is not known.

    Example:
      >>> published_detector("retinanet_resnet50").num_classes
      80
    """
    if name not in _PUBLISHED:
        raise UserError(f"network: needs one of {', '.join(PUBLISHED_DETECTORS)}, got {name!r}")
    kind, fields, classes = _PUBLISHED[name]
    return kind(**{"num_classes": classes, **fields, **changes})
