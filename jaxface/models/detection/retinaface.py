"""RetinaFace (arXiv:1905.00641) as its most-used public implementation has it: single-shot faces with five landmarks."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface import boxes
from jaxface.checks import AtLeast, NonNegative, Positive
from jaxface.errors import UserError
from jaxface.layers.context import CONTEXTS
from jaxface.layers.remat import Remat, run_block
from jaxface.losses.detection import multibox_loss
from jaxface.models.depth import DepthOrder, depth_order
from jaxface.models.detection.base import DETECTORS, Detections, select_detections
from jaxface.models.detection.pyramid import BACKBONES, FeaturePyramid

MEAN = (104.0, 117.0, 123.0)
"""What the published weights have taken from blue, green and red of their images in [0, 255]."""
STRIDES = (8, 16, 32)
STDS = (0.1, 0.1, 0.2, 0.2)
"""Of the deltas of boxes; the first also of those of points."""
_OUTPUTS = {"class_logits": 2, "box_deltas": 4, "point_deltas": 10}  # per anchor

Pixels = Literal["rgb", "bgr"]


class RetinaFaceNet(nn.Module):
    """Backbone, pyramid, context modules and heads.

        image -> backbone -> FPN -> one context module per level -> conv1x1 heads of classes, boxes and points per level

    Args:
      backbone: one of `BACKBONES.names()`.
      context: one of `CONTEXTS.names()`, the context modules' kind.
      features: of pyramid and context modules.
      anchors_per_place: of each level.
      pixels: what the stem sees: RGB in [-1, 1], or as the published weights BGR in [0, 255] less `MEAN`.
      remat: "block" stores the inputs of the backbone's units, the pyramid and the context modules alone for the backward pass.

    image [B, H, W, 3] float in [-1, 1] -> {"class_logits": [B, P, 2] (background, face), "box_deltas": [B, P, 4] (dx, dy, dw,
    dh), "point_deltas": [B, P, 10]} float32; the anchors come level by level from the finest, row by row, size by size.
    `dtype` is that of everything but the heads' outputs.
    """

    backbone: str = "mobilenet_025"
    context: str = "ssh"
    features: int = 64
    anchors_per_place: int = 2
    pixels: Pixels = "rgb"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.pixels == "bgr":
            image = (image[..., ::-1] + 1) * 127.5 - jnp.array(MEAN, image.dtype)
        again = (
            {} if self.remat == "none" else {"remat": self.remat}
        )  # a backbone of a user's may not have it
        backbone = BACKBONES[self.backbone](name="backbone", **again, **types)
        levels = backbone.levels(image.astype(self.dtype), train=train)
        pyramid = FeaturePyramid(self.features, name="pyramid", **types)
        levels = run_block(pyramid, levels, remat=self.remat, train=train)
        outputs = {name: [] for name in _OUTPUTS}
        for i, level in enumerate(levels, start=1):
            context = CONTEXTS[self.context](self.features, name=f"context{i}", **types)
            level = run_block(context, level, remat=self.remat, train=train)
            for name, size in _OUTPUTS.items():
                head = nn.Conv(self.anchors_per_place * size, (1, 1), name=f"{name}{i}", **types)
                outputs[name].append(head(level).astype(jnp.float32).reshape(level.shape[0], -1, size))
        return {name: jnp.concatenate(parts, axis=1) for name, parts in outputs.items()}

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on: those of the backbone, the pyramid, the context modules."""
        backbone = depth_order(BACKBONES[self.backbone]())
        inside = (tuple(f"backbone/{name}" for name in names) for names in backbone)
        return *inside, ("pyramid",), ("context1", "context2", "context3")


@DETECTORS.register("retinaface")
@dataclasses.dataclass(frozen=True)
class RetinaFace:
    """Faces and their five landmarks from three levels of a pyramid, with square anchors of a few sizes at each place."""

    backbone: str = "mobilenet_025"
    """Feature maps at strides 8, 16 and 32: mobilenet_025 or resnet50."""
    context: str = "ssh"
    """Kind of the context modules."""
    features: Annotated[int | None, AtLeast(4)] = None
    """Channels of pyramid and context modules, a multiple of 4; published are 64, and 256 with resnet50."""
    anchor_sizes: Annotated[tuple[float, ...], Positive] = (16, 32, 64, 128, 256, 512)
    """Sides of the anchors, pixels: a third of them at each of the strides 8, 16 and 32."""
    match_iou: Annotated[float, Positive] = 0.35
    """Overlap from which an anchor is to find a face."""
    ignore_iou: Annotated[float, Positive] = 0.35
    """Overlap from which an anchor that is to find no face is not background either; from `match_iou` on there are none."""
    negative_ratio: Annotated[float, Positive] = 7.0
    """Negatives in the loss per positive anchor, the hardest of an image."""
    box_weight: Annotated[float, NonNegative] = 2.0
    """Weight of the boxes' term in the loss."""
    point_weight: Annotated[float, NonNegative] = 1.0
    """Weight of the landmarks' term in the loss."""
    pixels: Pixels = "rgb"
    """What the stem sees: rgb in [-1, 1], or bgr in [0, 255] less a mean, as the published weights do."""
    bfloat16: bool = False
    """Compute in bfloat16; parameters, statistics, outputs and the loss stay float32."""
    remat: Remat = "none"
    """What the backward pass computes again instead of storing it: nothing, or each block."""

    num_classes = 1
    stride = STRIDES[-1]

    def __post_init__(self):
        if not self.anchor_sizes or len(self.anchor_sizes) % len(STRIDES):
            raise UserError(
                f"anchor_sizes: needs a multiple of {len(STRIDES)} sizes, got {len(self.anchor_sizes)}"
            )
        if self.pixels not in ("rgb", "bgr"):
            raise UserError(f"pixels: needs 'rgb' or 'bgr', got {self.pixels!r}")
        _ = BACKBONES[self.backbone], CONTEXTS[self.context]  # refuses other names

    @property
    def per_place(self) -> int:
        """Anchors at each place of a level."""
        return len(self.anchor_sizes) // len(STRIDES)

    @property
    def module(self) -> RetinaFaceNet:
        """The network of this description."""
        features = self.features or (256 if self.backbone == "resnet50" else 64)
        return RetinaFaceNet(
            self.backbone,
            self.context,
            features,
            self.per_place,
            self.pixels,
            jnp.bfloat16 if self.bfloat16 else jnp.float32,
            remat=self.remat,
        )

    def anchors(self, image_size: tuple[int, int]) -> np.ndarray:
        """[P, 4] float32 pixels, level by level from the finest; 16,800 at 640 x 640 with two sizes each."""
        return boxes.square_anchors(image_size, STRIDES, np.reshape(self.anchor_sizes, (len(STRIDES), -1)))

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The multibox loss of a batch (`jaxface.losses.multibox_loss`) and its terms.

        Anchors go to faces by RetinaFace's matching. Those in what an image was padded with, background in regions to ignore
        and background near a face (`ignore_iou`) count neither way.
        """
        height, width = batch["image"].shape[1:3]
        anchors = jnp.asarray(self.anchors((height, width)))
        shapes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]

        def targets(face_boxes, mask, labels, crowd, points, points_known, size):
            assigned = boxes.face_assign(anchors, face_boxes, mask, positive=self.match_iou, crowd=crowd)
            inside = boxes.valid_anchors(shapes, STRIDES, self.per_place, size)
            labels = boxes.assigned_labels(assigned, labels)
            near = (
                jnp.max(jnp.where(mask, boxes.box_iou(anchors, face_boxes), 0.0), axis=1) >= self.ignore_iou
            )
            labels = jnp.where(inside & ~(near & (labels == 0)), labels, -1)
            deltas = boxes.encode_boxes(anchors, boxes.assigned_rows(assigned, face_boxes), stds=STDS)
            points = boxes.encode_points(anchors, boxes.assigned_rows(assigned, points), std=STDS[0])
            return labels, deltas, points, boxes.assigned_rows(assigned, points_known)

        names = ("boxes", "box_mask", "box_label", "box_crowd", "landmarks", "landmark_mask", "image_size")
        labels, deltas, points, points_known = jax.lax.stop_gradient(
            jax.vmap(targets)(*(batch[name] for name in names))
        )
        terms = multibox_loss(
            outputs["class_logits"],
            labels,
            outputs["box_deltas"],
            deltas,
            outputs["point_deltas"].reshape(points.shape),
            points,
            points_known,
            negatives_per_positive=self.negative_ratio,
            box_weight=self.box_weight,
            point_weight=self.point_weight,
        )
        return terms.total, {
            "class_loss": terms.classification,
            "box_loss": terms.box,
            "point_loss": terms.points,
            "positives": terms.positives / len(labels),
        }

    def detect(
        self,
        outputs: Mapping[str, jax.Array],
        image_size: tuple[int, int],
        *,
        valid_size: jax.Array | None = None,
        score_threshold: float = 0.02,
        iou_threshold: float = 0.4,
        max_outputs: int = 100,
    ) -> Detections:
        """Faces with landmarks; arguments as in `Detector.detect`."""
        anchors = jnp.asarray(self.anchors(image_size))
        points = outputs["point_deltas"].reshape(*outputs["point_deltas"].shape[:2], 5, 2)
        return select_detections(
            boxes.decode_boxes(anchors, outputs["box_deltas"], stds=STDS),
            jax.nn.softmax(outputs["class_logits"])[..., 1],
            landmarks=boxes.decode_points(anchors, points, std=STDS[0]),
            image_size=image_size,
            valid_size=valid_size,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_outputs=max_outputs,
        )
