"""Heads of several tasks on the features of one backbone: classes, boxes, cells, pixels, depth.

Methods: intern
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxface.errors import UserError
from jaxface.losses.experts import depth_loss, known_label_loss, pixel_loss
from jaxface.models.detection import Detector
from jaxface.models.detection.feature_pyramid import FeaturePyramidNetwork
from jaxface.models.staged import Features

_FAR_BELOW = -1e4  # logit of a class that a source does not annotate


class TaskHead(Protocol):
    """What makes answers of features, and what they are to be.

    Attributes:
      task: classification, detection, cells, segmentation or depth.
      module: `module.apply({"params"}, features, size)` -> outputs; size is (H, W) of the image.
    """

    task: ClassVar[str]

    @property
    def module(self) -> nn.Module:
        """The network: features -> outputs."""

    def loss(self, outputs: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Scalar loss of a batch; `known` [classes] in it says which classes its source annotates (all unless given)."""


class _Classes(nn.Module):
    count: int

    @nn.compact
    def __call__(self, features: Features, size: tuple[int, int]) -> jax.Array:
        del size
        return nn.Dense(self.count, name="dense")(features["pooled"])


@dataclasses.dataclass(frozen=True)
class ClassHead:
    """Class scores of the pooled features; cross-entropy, or the loss of known concepts where a batch has `target` and `mask`."""

    num_classes: int
    """Classes, or concepts."""
    smoothing: float = 0.0
    """Share of the label that is spread over all classes."""

    task: ClassVar[str] = "classification"

    @property
    def module(self) -> nn.Module:
        """Dense."""
        return _Classes(self.num_classes)

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The mean over the batch."""
        if "target" in batch:
            return known_label_loss(outputs, batch["target"], batch["mask"]).mean()
        wanted = optax.smooth_labels(jax.nn.one_hot(batch["label"], self.num_classes), self.smoothing)
        return optax.softmax_cross_entropy(outputs, wanted).mean()


class _Boxes(nn.Module):
    detector: Detector
    strides: tuple[int, ...]

    def setup(self):
        spec = self.detector
        self.heads = spec.module  # of which the trunk is not used, and so has no parameters
        if spec.features:
            beyond = [stride for stride in spec.level_strides if stride not in self.strides]
            self.fpn = FeaturePyramidNetwork(spec.features, len(beyond), spec.extra_from, spec.extra_relu)

    def __call__(self, features: Features, size: tuple[int, int]) -> Any:
        del size
        available = dict(zip(self.strides, features["taps"], strict=True))
        maps = tuple(available[stride] for stride in self.detector.level_strides if stride in available)
        return self.heads.heads(self.fpn(maps) if self.detector.features else maps)


@dataclasses.dataclass(frozen=True)
class BoxHead:
    """The heads of a dense detector on a pyramid, such as RetinaNet's, on the maps of a backbone, with its losses and boxes."""

    detector: Any
    """A `RetinaNet`; its trunk is not used."""
    strides: tuple[int, ...]
    """Of the backbone's maps."""

    task: ClassVar[str] = "detection"

    def __post_init__(self):
        if self.detector.level_strides[0] not in self.strides:
            raise UserError(
                f"detector.strides: needs a first one of the backbone's {self.strides}, got {self.detector.level_strides[0]}"
            )

    @property
    def module(self) -> nn.Module:
        """Pyramid and heads."""
        return _Boxes(self.detector, self.strides)

    def loss(self, outputs: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The detector's; a class that the source does not annotate counts as no answer."""
        if "known" in batch:
            logits = jnp.where(batch["known"] > 0, outputs["class_logits"], _FAR_BELOW)
            outputs = {**outputs, "class_logits": logits}
        return self.detector.loss(outputs, batch)[0]


class _Cells(nn.Module):
    level: int

    @nn.compact
    def __call__(self, features: Features, size: tuple[int, int]) -> jax.Array:
        del size
        return nn.Conv(1, (1, 1), name="conv")(features["taps"][self.level])[..., 0]


@dataclasses.dataclass(frozen=True)
class CellHead:
    """Whether an object has its center in a cell of a map; mean binary cross-entropy with `cells` [B, h, w]."""

    level: int = -1
    """Of the backbone's maps."""

    task: ClassVar[str] = "cells"

    @property
    def module(self) -> nn.Module:
        """conv1x1."""
        return _Cells(self.level)

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The mean over cells and images."""
        cells = batch["cells"].astype(jnp.float32)
        return optax.sigmoid_binary_cross_entropy(outputs.astype(jnp.float32), cells).mean()


class _Dense(nn.Module):
    channels: int
    width: int
    levels: tuple[int, ...] | None
    auxiliary: int | None

    @nn.compact
    def __call__(self, features: Features, size: tuple[int, int]) -> tuple[jax.Array, ...]:
        taps = features["taps"]
        chosen = range(len(taps)) if self.levels is None else self.levels
        finest = max((taps[level] for level in chosen), key=lambda tap: tap.shape[1]).shape[1:3]
        total = jnp.zeros(())
        for level in chosen:
            x = nn.Conv(self.width, (1, 1), name=f"lateral{level % len(taps) + 1}")(taps[level])
            total = total + jax.image.resize(x, (x.shape[0], *finest, self.width), "bilinear")
        answers = {"main": total}
        if self.auxiliary is not None:
            answers["auxiliary"] = taps[self.auxiliary]
        outputs = []
        for name, x in answers.items():
            x = nn.relu(nn.Conv(self.width, (3, 3), padding=1, name=f"{name}_conv")(nn.relu(x)))
            x = nn.Conv(self.channels, (1, 1), name=f"{name}_logits")(x).astype(jnp.float32)
            outputs.append(jax.image.resize(x, (x.shape[0], *size, self.channels), "bilinear"))
        return tuple(outputs)


@dataclasses.dataclass(frozen=True)
class PixelHead:
    """The class of every pixel, `pixel_label` [B, H, W]: maps as conv1x1 leaves them, scaled to the finest and summed; ReLU,
    conv3x3, ReLU, conv1x1; scaled bilinearly to the image."""

    num_classes: int
    """Classes, the background counted."""
    width: int = 32
    """Channels between."""
    levels: tuple[int, ...] | None = None
    """Maps that are read; all unless given."""
    auxiliary: int | None = None
    """A finer map with a head of its own in training; none by default."""
    auxiliary_weight: float = 0.4
    """Weight of its loss."""

    task: ClassVar[str] = "segmentation"

    @property
    def module(self) -> nn.Module:
        """Both heads."""
        return _Dense(self.num_classes, self.width, self.levels, self.auxiliary)

    def loss(self, outputs: tuple[jax.Array, ...], batch: Mapping[str, jax.Array]) -> jax.Array:
        """Cross-entropy among the classes that the source annotates."""
        known = batch.get("known")
        total = jnp.zeros(())
        for weight, logits in zip((1.0, self.auxiliary_weight), outputs, strict=False):
            if known is not None:
                logits = jnp.where(known > 0, logits, _FAR_BELOW)
            total = total + weight * pixel_loss(logits, batch["pixel_label"]).mean()
        return total


@dataclasses.dataclass(frozen=True)
class DepthHead:
    """The depth of every pixel, as `PixelHead` has classes."""

    width: int = 32
    """Channels between."""
    levels: tuple[int, ...] | None = None
    """Maps that are read; all unless given."""

    task: ClassVar[str] = "depth"

    @property
    def module(self) -> nn.Module:
        """One head of one channel."""
        return _Dense(1, self.width, self.levels, None)

    def loss(self, outputs: tuple[jax.Array, ...], batch: Mapping[str, jax.Array]) -> jax.Array:
        """Huber's, where a depth was measured."""
        return depth_loss(outputs[0][..., 0], batch["depth"]).mean()
