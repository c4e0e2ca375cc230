"""RetinaNet (arXiv:1708.02002): dense anchors on a feature pyramid, one class channel each, the focal loss.

Methods: rm_pfi
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface import boxes
from jaxface.checks import AtLeast, Fraction, NonNegative, OpenFraction, Positive
from jaxface.errors import UserError
from jaxface.losses.detection import retinanet_loss
from jaxface.models.detection.base import (
    DETECTORS,
    Detections,
    TrainingPass,
    best_candidates,
    select_detections,
)
from jaxface.models.detection.feature_pyramid import Maps, PyramidFields, PyramidNet


def prior_bias(prior: float) -> float:
    """The bias whose sigmoid is `prior`; -4.595 for 0.01."""
    return -math.log((1 - prior) / prior)


class RetinaNetNet(PyramidNet):
    """The network: a pyramid, and on each of its levels the same two heads.

        head    convs conv3x3 with ReLU, then one convolution to A · C class logits, or to A · 4 deltas

    image [B, H, W, 3] float in [-1, 1] -> {"class_logits": [B, P, C], "box_deltas": [B, P, 4] (dx, dy, dw, dh)} float32; the
    anchors come level by level from the finest, row by row, then ratio by ratio and scale by scale. `pyramid` and `heads` are the
    two halves, `levels_and_outputs` both.
    """

    def setup(self):
        self.setup_pyramid()
        spec = self.spec
        width = spec.features or spec.widths[-1]
        conv = partial(
            nn.Conv,
            kernel_init=nn.initializers.normal(0.01 if spec.head_convs else 0.1),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        self.class_tower = [conv(width, (3, 3), padding=1) for _ in range(spec.head_convs)]
        self.box_tower = [conv(width, (3, 3), padding=1) for _ in range(spec.head_convs)]
        last = partial(conv, kernel_size=(spec.head_kernel,) * 2, padding=spec.head_kernel // 2)
        start = nn.initializers.constant(prior_bias(spec.prior))
        self.class_logits = last(spec.per_cell * spec.num_classes, bias_init=start)
        self.box_deltas = last(spec.per_cell * 4)

    def heads(self, levels: Maps) -> dict[str, jax.Array]:
        """Logits and deltas of all anchors."""
        outputs = {"class_logits": [], "box_deltas": []}
        for level in levels:
            for name, tower, last in (
                ("class_logits", self.class_tower, self.class_logits),
                ("box_deltas", self.box_tower, self.box_deltas),
            ):
                x = level
                for conv in tower:
                    x = nn.relu(conv(x))
                size = self.spec.num_classes if name == "class_logits" else 4
                outputs[name].append(last(x).astype(jnp.float32).reshape(x.shape[0], -1, size))
        return {name: jnp.concatenate(parts, axis=1) for name, parts in outputs.items()}

    def levels_and_outputs(
        self, image: jax.Array, *, train: bool = False
    ) -> tuple[Maps, dict[str, jax.Array]]:
        """(maps of the pyramid, what `heads` makes of them)."""
        levels = self.pyramid(image, train=train)
        return levels, self.heads(levels)

    def __call__(self, image: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        return self.levels_and_outputs(image, train=train)[1]


@DETECTORS.register("retinanet")
@dataclasses.dataclass(frozen=True, kw_only=True)
class RetinaNet(PyramidFields):
    """RetinaNet: every anchor of a feature pyramid says for each class whether it is an object of it. The defaults are those of
    MMDetection's RetinaNet-R50-FPN on COCO."""

    scales: Annotated[tuple[float, ...], Positive] = boxes.AnchorSpec.scales
    """Sides of the square anchors of a cell, in strides."""
    ratios: Annotated[tuple[float, ...], Positive] = boxes.AnchorSpec.ratios
    """Height over width of the anchors."""
    whole_anchors: bool = False
    """Sides and corners of anchors are whole pixels, as torchvision has them."""
    head_convs: Annotated[int, AtLeast(0)] = 4
    """Convolutions of each head before its last one."""
    head_kernel: Annotated[int, AtLeast(1)] = 3
    """Side of the last one, odd."""
    prior: Annotated[float, OpenFraction] = 0.01
    """Score of every class at the start."""
    match_iou: Annotated[float, Fraction] = 0.5
    """Overlap from which an anchor is to find an object."""
    background_iou: Annotated[float, Fraction] = 0.4
    """Overlap below which it is background; between the two it counts neither way."""
    low_quality: bool = True
    """An object's best anchors are to find it, however little they overlap."""
    alpha: Annotated[float, Fraction] = 0.25
    """Of the focal loss: weight of the positives."""
    gamma: Annotated[float, NonNegative] = 2.0
    """Of the focal loss: how much easy anchors fade."""
    box_weight: Annotated[float, NonNegative] = 1.0
    """Weight of the boxes in the loss."""
    beta: Annotated[float, NonNegative] = 0.0
    """Of the boxes' smooth-L1; 0 is the absolute error."""

    def __post_init__(self):
        super().__post_init__()
        if self.head_kernel % 2 == 0:
            raise UserError(f"head_kernel: needs an odd number, got {self.head_kernel}")
        if self.background_iou > self.match_iou:
            raise UserError(
                f"background_iou: needs at most match_iou {self.match_iou:g}, got {self.background_iou:g}"
            )

    @property
    def module(self) -> RetinaNetNet:
        """The network of this description."""
        return RetinaNetNet(self, jnp.bfloat16 if self.bfloat16 else jnp.float32, remat=self.remat)

    def split_levels(self, values: jax.Array, image_size: tuple[int, int]) -> tuple[jax.Array, ...]:
        """Values of the anchors [B, P, ...] as maps [B, H, W, A, ...], one for each level."""
        shapes = self.level_shapes(image_size)
        ends = np.cumsum([rows * columns * self.per_cell for rows, columns in shapes])
        parts = jnp.split(values, ends[:-1], axis=1)
        return tuple(
            part.reshape(part.shape[0], *shape, self.per_cell, *part.shape[2:])
            for part, shape in zip(parts, shapes, strict=True)
        )

    def decode(self, outputs: Mapping[str, jax.Array], image_size: tuple[int, int]) -> jax.Array:
        """[B, P, 4] boxes of all anchors, not cut to the image."""
        return boxes.decode_boxes(jnp.asarray(self.anchors(image_size)), outputs["box_deltas"])

    def targets(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the anchors are to find, constants of the differentiation.

        Args:
          batch: `image`, `boxes`, `box_mask`, `box_label`, `box_crowd` and `image_size`; anchors of cells in what an image was
            padded with count neither way, nor does background in regions to ignore.

        Returns:
          (assigned [B, P] int32: -1 neither, 0 background, k > 0 for box k - 1; labels [B, P] int32: likewise, k > 0 for class
          k - 1; deltas [B, P, 4], of background those to box 0).
        """
        height, width = batch["image"].shape[1:3]
        anchors = jnp.asarray(self.anchors((height, width)))
        shapes = self.level_shapes((height, width))

        def of_image(object_boxes, mask, labels, crowd, size):
            assigned = boxes.max_iou_assign(
                anchors,
                object_boxes,
                mask,
                positive=self.match_iou,
                negative=self.background_iou,
                low_quality=self.low_quality,
                crowd=crowd,
            )
            inside = boxes.valid_anchors(shapes, self.strides, self.per_cell, size)
            assigned = jnp.where(inside, assigned, -1)
            deltas = boxes.encode_boxes(anchors, boxes.assigned_rows(assigned, object_boxes))
            return assigned, boxes.assigned_labels(assigned, labels), deltas

        names = ("boxes", "box_mask", "box_label", "box_crowd", "image_size")
        return jax.lax.stop_gradient(jax.vmap(of_image)(*(batch[name] for name in names)))

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """RetinaNet's loss of a batch (`jaxface.losses.retinanet_loss`) and its terms."""
        _, labels, deltas = self.targets(batch)
        terms = retinanet_loss(
            outputs["class_logits"],
            labels,
            outputs["box_deltas"],
            deltas,
            alpha=self.alpha,
            gamma=self.gamma,
            beta=self.beta,
            box_weight=self.box_weight,
        )
        return terms.total, {
            "class_loss": terms.classification,
            "box_loss": terms.box,
            "positives": terms.positives / len(labels),
        }

    def training_pass(
        self, variables: Mapping, batch: Mapping[str, jax.Array], rng: jax.Array
    ) -> TrainingPass:
        """The network on a batch in training, and its loss."""
        del rng
        (levels, outputs), updated = self.module.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"], method="levels_and_outputs"
        )
        return TrainingPass(*self.loss(outputs, batch), updated, levels, outputs)

    def detect(
        self,
        outputs: Mapping[str, jax.Array],
        image_size: tuple[int, int],
        *,
        valid_size: jax.Array | None = None,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        max_outputs: int = 100,
    ) -> Detections:
        """Objects, of each level the 1000 best pairs of anchor and class; arguments as in `Detector.detect`."""
        decoded = self.split_levels(self.decode(outputs, image_size), image_size)
        scores = self.split_levels(jax.nn.sigmoid(outputs["class_logits"]), image_size)
        candidates = [
            best_candidates(b.reshape(b.shape[0], -1, 4), s.reshape(s.shape[0], -1, self.num_classes))
            for b, s in zip(decoded, scores, strict=True)
        ]
        joined, scores, classes = (jnp.concatenate(parts, axis=1) for parts in zip(*candidates, strict=True))
        return select_detections(
            joined,
            scores,
            classes,
            image_size=image_size,
            valid_size=valid_size,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_outputs=max_outputs,
            candidates=joined.shape[1],
        )

    @classmethod
    def small(cls, **changes) -> "RetinaNet":
        """Three convolutions, one level of stride 4 with four square anchors, for scenes of 32 x 32; `changes` to its fields."""
        fields = dict(
            num_classes=1,
            trunk="plain",
            strides=(4,),
            features=None,
            scales=(2.5, 3.0, 3.6, 4.3),
            ratios=(1.0,),
            head_convs=0,
            head_kernel=1,
        )
        return cls(**{**fields, **changes})
