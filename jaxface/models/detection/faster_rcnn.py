"""Faster R-CNN with a feature pyramid (arXiv:1506.01497, arXiv:1612.03144): proposals from dense anchors, then a head on regions.

Methods: pseco
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface import boxes
from jaxface.checks import AtLeast, Fraction, NonNegative, OpenFraction, Positive
from jaxface.errors import UserError
from jaxface.losses.detection import rcnn_loss, rpn_loss
from jaxface.models.detection.base import (
    DETECTORS,
    Detections,
    TrainingPass,
    best_candidates,
    select_detections,
)
from jaxface.models.detection.feature_pyramid import Maps, PyramidFields, PyramidNet
from jaxface.models.detection.retinanet import prior_bias

STDS = (0.1, 0.1, 0.2, 0.2)
"""Of the deltas of regions; those of proposals have 1."""


class Proposals(NamedTuple):
    """Regions that may hold an object, of a batch, in static shapes; the best first.

    Attributes:
      boxes: [B, K, 4] pixels. scores: [B, K] float32 in [0, 1], 0 where not valid. valid: [B, K] bool.
    """

    boxes: jax.Array
    scores: jax.Array
    valid: jax.Array


class RegionSample(NamedTuple):
    """Regions to train the head on, R of each image, the positives first.

    Attributes:
      boxes: [B, R, 4] pixels.
      labels: [B, R] int32, 0 background, k > 0 class k - 1. assigned: [B, R] int32, k > 0 for box k - 1.
      deltas: [B, R, 4] to the assigned boxes; those of positives count.
      valid: [B, R] bool, False where there were not enough regions.
    """

    boxes: jax.Array
    labels: jax.Array
    assigned: jax.Array
    deltas: jax.Array
    valid: jax.Array


class FasterRCNNNet(PyramidNet):
    """The network: a pyramid, the head of proposals on each level, the head of regions.

        proposals   conv3x3, ReLU; conv1x1 to A logits and to A · 4 deltas
        regions     RoIAlign of the level that fits, dense layers with ReLU, dense to the class logits and to C · 4 deltas

    `pyramid(image)`, `proposals(levels)` and `regions(levels, boxes)` are its parts; the latter two take as many maps as the
    detector has strides with anchors, of whichever resolution. Called on an image [B, H, W, 3] float in [-1, 1] it is all of them
    and gives {"boxes": [B, K, 4], "valid": [B, K], "class_logits": [B, K, C + 1 or C], "box_deltas": [B, K, C, 4]}.
    """

    # Not annotated, so no field of the module.
    no_onnx = "its proposals are suppressed by a loop that ends when nothing changes"

    def setup(self):
        self.setup_pyramid()
        spec, types = self.spec, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(nn.Conv, kernel_init=nn.initializers.normal(0.01), **types)
        width = spec.features or spec.widths[-1]
        self.proposal_conv = conv(width, (3, 3), padding=1)
        self.proposal_logits = conv(spec.per_cell, (1, 1))
        self.proposal_deltas = conv(spec.per_cell * 4, (1, 1))
        self.hidden = [
            nn.Dense(size, kernel_init=nn.initializers.xavier_uniform(), **types) for size in spec.hidden
        ]
        if spec.focal:
            options = {"bias_init": nn.initializers.constant(prior_bias(spec.prior))}
        else:
            options = {}
        channels = spec.num_classes + (not spec.focal)
        normal = nn.initializers.normal
        self.class_logits = nn.Dense(channels, kernel_init=normal(0.01), **options, **types)
        self.box_deltas = nn.Dense(spec.num_classes * 4, kernel_init=normal(0.001), **types)

    def proposals(self, levels: Maps) -> tuple[jax.Array, jax.Array]:
        """(logits [B, A], deltas [B, A, 4]) of all anchors, level by level, row by row."""
        self.spec.check_levels(levels)
        logits, deltas = [], []
        for level in levels:
            x = nn.relu(self.proposal_conv(level))
            logits.append(self.proposal_logits(x).astype(jnp.float32).reshape(x.shape[0], -1))
            deltas.append(self.proposal_deltas(x).astype(jnp.float32).reshape(x.shape[0], -1, 4))
        return jnp.concatenate(logits, axis=1), jnp.concatenate(deltas, axis=1)

    def regions(self, levels: Maps, regions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(class logits [B, R, C + 1], with the focal loss [B, R, C]; deltas [B, R, C, 4]) of boxes [B, R, 4], pixels.

        No gradient goes into the boxes.
        """
        spec = self.spec
        spec.check_levels(levels)
        regions = jax.lax.stop_gradient(regions)
        x = boxes.roi_align(
            levels[: spec.region_levels],
            regions,
            boxes.roi_levels(regions, levels=spec.region_levels, finest=spec.finest),
            strides=spec.strides[: spec.region_levels],
            output_size=spec.region_size,
        )
        x = x.reshape(*x.shape[:2], -1)
        for dense in self.hidden:
            x = nn.relu(dense(x))
        logits, deltas = self.class_logits(x), self.box_deltas(x)
        deltas = deltas.reshape(*deltas.shape[:2], spec.num_classes, 4)
        return logits.astype(jnp.float32), deltas.astype(jnp.float32)

    def __call__(self, image: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        levels = self.spec.anchor_levels(self.pyramid(image, train=train))
        found = self.spec.propose(*self.proposals(levels), image.shape[1:3])
        logits, deltas = self.regions(levels, found.boxes)
        return {"boxes": found.boxes, "valid": found.valid, "class_logits": logits, "box_deltas": deltas}


@DETECTORS.register("faster_rcnn")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FasterRCNN(PyramidFields):
    """Faster R-CNN: dense anchors propose regions, a head tells the classes and the boxes of the best of them. The defaults are
    those of MMDetection's Faster R-CNN-R50-FPN on COCO."""

    strides: Annotated[tuple[int, ...], AtLeast(2)] = (4, 8, 16, 32, 64)
    """Of the levels with anchors, each twice the one before; what the trunk does not have is made further."""
    finer: Annotated[int, AtLeast(0)] = 0
    """Levels of the pyramid finer than those, without anchors: for an image of half the size that is read one level earlier."""
    extra_from: Literal["trunk", "pyramid", "pool"] = "pool"
    """What the levels beyond the trunk are made from: trunk (its coarsest map), pyramid (the coarsest output) or pool (every
    second cell of that)."""
    scales: Annotated[tuple[float, ...], Positive] = (8.0,)
    """Sides of the square anchors of a cell, in strides."""
    ratios: Annotated[tuple[float, ...], Positive] = boxes.AnchorSpec.ratios
    """Height over width of the anchors."""
    whole_anchors: bool = False
    """Sides and corners of anchors are whole pixels, as torchvision has them."""
    proposal_iou: Annotated[tuple[float, float], Fraction] = (0.3, 0.7)
    """Overlaps below which an anchor is background, and from which it is an object."""
    proposal_samples: Annotated[int, AtLeast(1)] = 256
    """Anchors of an image in the loss, at most half of them objects."""
    candidates: Annotated[tuple[int, int], AtLeast(1)] = (2000, 1000)
    """Best anchors of each level that become proposals, in training and after it."""
    proposals: Annotated[int, AtLeast(1)] = 1000
    """Proposals of an image."""
    proposal_nms: Annotated[float, Fraction] = 0.7
    """Overlap above which the worse of two proposals of a level goes."""
    region_levels: Annotated[int, AtLeast(1)] = 4
    """Levels, from the finest with anchors, that regions are read from."""
    finest: Annotated[float, Positive] = 56.0
    """Regions of less than twice this side, pixels, are read from the finest of them."""
    region_size: Annotated[int, AtLeast(1)] = 7
    """Bins of a region along a side."""
    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (1024, 1024)
    """Sizes of the dense layers of the head."""
    region_iou: Annotated[float, Fraction] = 0.5
    """Overlap from which a region is an object, and below which it is background."""
    region_samples: Annotated[int, AtLeast(1)] = 512
    """Regions of an image in the loss."""
    region_positives: Annotated[float, Fraction] = 0.25
    """Greatest share of objects among them."""
    focal: bool = False
    """Classes are told from background one by one with the focal loss, not by a softmax."""
    prior: Annotated[float, OpenFraction] = 0.01
    """With the focal loss: score of every class at the start."""
    class_weight: Annotated[float, NonNegative] = 1.0
    """Weight of the head's classification in the loss; 10 is usual with the focal loss."""
    box_weight: Annotated[float, NonNegative] = 1.0
    """Weight of the boxes of both heads in the loss."""
    beta: Annotated[float, NonNegative] = 0.0
    """Of the boxes' smooth-L1; 0 is the absolute error."""

    def __post_init__(self):
        super().__post_init__()
        if self.region_levels > len(self.strides):
            raise UserError(
                f"region_levels: needs at most the {len(self.strides)} levels with anchors, got {self.region_levels}"
            )
        if len(self.proposal_iou) != 2 or self.proposal_iou[0] > self.proposal_iou[1]:
            raise UserError(f"proposal_iou: needs low <= high, got {self.proposal_iou}")
        if len(self.candidates) != 2:
            raise UserError(f"candidates: needs two numbers, got {self.candidates}")

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Of all maps of the pyramid."""
        finer = tuple(self.strides[0] // 2**k for k in range(self.finer, 0, -1))
        return (*finer, *self.strides)

    def anchor_levels(self, levels: Maps) -> Maps:
        """The maps with anchors among all maps of the pyramid."""
        return levels[self.finer :]

    def check_levels(self, levels: Maps) -> None:
        """Raises ValueError unless there are as many maps as strides with anchors."""
        if len(levels) != len(self.strides):
            raise ValueError(f"levels: needs {len(self.strides)} maps, got {len(levels)}")

    @property
    def module(self) -> FasterRCNNNet:
        """The network of this description."""
        return FasterRCNNNet(self, jnp.bfloat16 if self.bfloat16 else jnp.float32, remat=self.remat)

    def propose(
        self,
        logits: jax.Array,
        deltas: jax.Array,
        image_size: tuple[int, int],
        *,
        valid_size: jax.Array | None = None,
        train: bool = False,
    ) -> Proposals:
        """The best anchors, decoded, cut to the image, without those that a better one of their level overlaps.

        Args:
          logits: [B, A]. deltas: [B, A, 4].
          image_size: (H, W). valid_size: [B, 2] integers (height, width) before padding.
          train: how many candidates of a level there are.

        Returns:
          K = `proposals` of each image, or as many as there are candidates; constants of the differentiation.
        """
        logits, deltas = jax.lax.stop_gradient((logits, deltas))
        sizes = jnp.broadcast_to(
            jnp.array(image_size, jnp.int32) if valid_size is None else valid_size, (logits.shape[0], 2)
        )
        anchors = self.anchors(image_size)
        counts = [rows * columns * self.per_cell for rows, columns in self.level_shapes(image_size)]
        starts = np.cumsum([0, *counts])

        def of_image(logits, deltas, size):
            found = []
            for start, count in zip(starts, counts, strict=False):
                part = slice(start, start + count)
                best, rows = jax.lax.top_k(logits[part], min(self.candidates[not train], count))
                decoded = boxes.decode_boxes(jnp.asarray(anchors[part])[rows], deltas[part][rows])
                decoded = boxes.clip_boxes(jnp.nan_to_num(decoded), size)
                real = jnp.all(decoded[:, 2:] > decoded[:, :2], axis=1)
                scores = jnp.where(real, jax.nn.sigmoid(best), -jnp.inf)
                indices, valid = boxes.nms(
                    decoded,
                    scores,
                    iou_threshold=self.proposal_nms,
                    max_outputs=min(self.proposals, len(best)),
                )
                found.append((decoded[indices], jnp.where(valid, scores[indices], -jnp.inf)))
            joined, scores = (jnp.concatenate(parts) for parts in zip(*found, strict=True))
            scores, best = jax.lax.top_k(scores, min(self.proposals, len(scores)))
            valid = scores > -jnp.inf
            return Proposals(joined[best], jnp.where(valid, scores, 0.0), valid)

        return jax.vmap(of_image)(logits, deltas, sizes)

    def proposal_targets(
        self, batch: Mapping[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the anchors are to say: (labels [B, A] int32: -1 neither, 0 background, 1 object; deltas [B, A, 4]; which are in
        the sample [B, A] bool)."""
        height, width = batch["image"].shape[1:3]
        anchors = jnp.asarray(self.anchors((height, width)))
        shapes = self.level_shapes((height, width))

        def of_image(key, object_boxes, mask, crowd, size):
            low, high = self.proposal_iou
            assigned = boxes.max_iou_assign(
                anchors, object_boxes, mask, positive=high, negative=low, min_positive=low, crowd=crowd
            )
            inside = boxes.valid_anchors(shapes, self.strides, self.per_cell, size)
            assigned = jnp.where(inside, assigned, -1)
            deltas = boxes.encode_boxes(anchors, boxes.assigned_rows(assigned, object_boxes))
            sample = boxes.sample_rois(
                key, assigned, num=min(self.proposal_samples, len(anchors)), positive_fraction=0.5
            )
            return jnp.minimum(assigned, 1), deltas, boxes.sample_mask(sample, len(anchors))

        keys = jax.random.split(rng, len(batch["image"]))
        names = ("boxes", "box_mask", "box_crowd", "image_size")
        return jax.lax.stop_gradient(jax.vmap(of_image)(keys, *(batch[name] for name in names)))

    def region_targets(
        self, regions: jax.Array, valid: jax.Array, batch: Mapping[str, jax.Array]
    ) -> RegionSample:
        """What regions [B, R, 4] are to find, where valid [B, R]; constants of the differentiation."""

        def of_image(regions, valid, object_boxes, mask, labels, crowd):
            assigned = boxes.max_iou_assign(
                regions,
                object_boxes,
                mask,
                positive=self.region_iou,
                negative=self.region_iou,
                low_quality=False,
                crowd=crowd,
            )
            assigned = jnp.where(valid, assigned, -1)
            deltas = boxes.encode_boxes(regions, boxes.assigned_rows(assigned, object_boxes), stds=STDS)
            return RegionSample(regions, boxes.assigned_labels(assigned, labels), assigned, deltas, valid)

        names = ("boxes", "box_mask", "box_label", "box_crowd")
        return jax.lax.stop_gradient(jax.vmap(of_image)(regions, valid, *(batch[name] for name in names)))

    def sample_regions(
        self,
        found: Proposals,
        batch: Mapping[str, jax.Array],
        rng: jax.Array,
        *,
        add_objects: bool = True,
    ) -> RegionSample:
        """Regions to train the head on: proposals, and unless told otherwise the objects themselves."""
        regions, valid = found.boxes, found.valid
        if add_objects:
            regions = jnp.concatenate([batch["boxes"], regions], axis=1)
            valid = jnp.concatenate([batch["box_mask"] & ~batch["box_crowd"], valid], axis=1)
        everything = self.region_targets(regions, valid, batch)

        def of_image(key, targets):
            sample = boxes.sample_rois(
                key, targets.assigned, num=self.region_samples, positive_fraction=self.region_positives
            )
            return jax.tree.map(lambda rows: rows[sample.indices], targets)._replace(valid=sample.valid)

        return jax.vmap(of_image)(jax.random.split(rng, len(regions)), everything)

    def proposal_loss(
        self, logits: jax.Array, deltas: jax.Array, batch: Mapping[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of the proposals (`jaxface.losses.rpn_loss`) and its terms."""
        labels, targets, sampled = self.proposal_targets(batch, rng)
        terms = rpn_loss(logits, labels, deltas, targets, sampled, beta=self.beta, box_weight=self.box_weight)
        return terms.total, {"proposal_class_loss": terms.classification, "proposal_box_loss": terms.box}

    def region_loss(
        self,
        logits: jax.Array,
        deltas: jax.Array,
        sample: RegionSample,
        *,
        class_weights: jax.Array | None = None,
        box_weights: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of the head on sampled regions (`jaxface.losses.rcnn_loss`) and its terms; weights are [B, R]."""
        terms = rcnn_loss(
            logits,
            sample.labels,
            deltas.reshape(*deltas.shape[:2], -1),
            sample.deltas,
            sample.valid,
            beta=self.beta,
            box_weight=self.box_weight,
            class_weight=self.class_weight,
            focal=self.focal,
            class_weights=class_weights,
            box_weights=box_weights,
        )
        return terms.total, {
            "class_loss": terms.classification,
            "box_loss": terms.box,
            "positives": terms.positives / len(logits),
        }

    def training_pass(
        self, variables: Mapping, batch: Mapping[str, jax.Array], rng: jax.Array
    ) -> TrainingPass:
        """The network on a batch in training, and the losses of both heads; `levels` are all maps of the pyramid."""
        anchor_key, region_key = jax.random.split(rng)
        run = partial(self.module.apply, variables)
        levels, updated = run(batch["image"], train=True, mutable=["batch_stats"], method="pyramid")
        used = self.anchor_levels(levels)
        logits, deltas = run(used, method="proposals")
        loss, report = self.proposal_loss(logits, deltas, batch, anchor_key)
        size = batch["image"].shape[1:3]
        found = self.propose(logits, deltas, size, valid_size=batch["image_size"], train=True)
        sample = self.sample_regions(found, batch, region_key)
        class_logits, box_deltas = run(used, sample.boxes, method="regions")
        more, told = self.region_loss(class_logits, box_deltas, sample)
        outputs = {
            "proposal_logits": logits,
            "proposal_deltas": deltas,
            "proposals": found,
            "sample": sample,
            "class_logits": class_logits,
            "box_deltas": box_deltas,
        }
        return TrainingPass(loss + more, {**report, **told}, updated, levels, outputs)

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The head's loss over all proposals that the module gives; training is `training_pass`, which samples them."""
        sample = self.region_targets(outputs["boxes"], outputs["valid"], batch)
        return self.region_loss(outputs["class_logits"], outputs["box_deltas"], sample)

    def scores(self, logits: jax.Array) -> jax.Array:
        """[..., C] probabilities of the classes, background left out."""
        return jax.nn.sigmoid(logits) if self.focal else jax.nn.softmax(logits)[..., :-1]

    def decode_regions(
        self, regions: jax.Array, deltas: jax.Array, image_size: jax.Array | tuple[int, int] | None = None
    ) -> jax.Array:
        """[B, R, C, 4] boxes that deltas [B, R, C, 4] of boxes [B, R, 4] mean, cut to an image of that size."""
        return boxes.decode_boxes(regions[..., None, :], deltas, stds=STDS, image_size=image_size)

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
        """Objects, among the 2000 best pairs of proposal and class; arguments as in `Detector.detect`."""
        scores = jnp.where(outputs["valid"][..., None], self.scores(outputs["class_logits"]), 0.0)
        decoded = self.decode_regions(outputs["boxes"], outputs["box_deltas"])
        best, scores, classes = best_candidates(decoded, scores, count=2000)
        return select_detections(
            best,
            scores,
            classes,
            image_size=image_size,
            valid_size=valid_size,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_outputs=max_outputs,
            candidates=best.shape[1],
        )

    @classmethod
    def small(cls, **changes) -> "FasterRCNN":
        """Four convolutions, levels of strides 4 and 8 with one square anchor each, for scenes of 32 x 32; `changes` to its
        fields."""
        fields = dict(
            num_classes=1,
            trunk="plain",
            widths=(16, 32, 32, 32),
            steps=(2, 2, 1, 2),
            strides=(4, 8),
            features=32,
            scales=(3.0,),
            ratios=(1.0,),
            proposal_samples=32,
            candidates=(64, 64),
            proposals=32,
            region_levels=2,
            finest=8.0,
            region_size=5,
            hidden=(64,),
            region_samples=32,
        )
        return cls(**{**fields, **changes})
