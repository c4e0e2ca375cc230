"""Tiny YOLOv2 (arXiv:1612.08242), whose convolutions may be pooled across channels (arXiv:2104.14124).

Methods: condensation_net
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import AtLeast, Fraction, Integers, NonNegative
from jaxface.errors import UserError
from jaxface.layers.condensation import CondensationConv, FusedCondensation, fuse_condensation
from jaxface.layers.remat import Remat, run_block
from jaxface.losses.yolo import decode_yolo, yolo_loss
from jaxface.models.depth import DepthOrder
from jaxface.models.detection.base import DETECTORS, Detections, select_detections

_VOC = ((38.08, 34.56), (141.12, 109.44), (364.16, 212.16), (163.52, 301.44), (336.64, 531.84))


class TinyYoloNet(nn.Module):
    """Convolutions 3x3 with batch normalization and leaky ReLU, some of them followed by a maximum over 2x2 pixels.

        layers  `layer1`, `layer2`, …: conv3x3 of R·M filters, BN, maximum over R, leaky ReLU, 2x2 maximum
        head    `head`: conv1x1 to A · (5 + C), with a bias

    Args:
      widths: M, maps that each layer stores.
      pools: stride of the 2x2 maximum behind each of the first layers; 1 keeps the size.
      ccp_layers: layers, from 1, whose maps are maxima over groups.
      ccp_groups: R, filters of a map in those layers.
      num_anchors: A.
      num_classes: C.
      quantized: binary weights and 2-bit activations in all layers but the first and the head.
      remat: "block" stores the inputs of the layers alone for the backward pass.

    image [B, H, W, 3] float in [-1, 1] -> [B, h, w, A, 5 + C] float32 with h = H / stride; H and W are multiples of the stride,
    the product of `pools`. As in darknet's VOC configuration 15,758,256 weights of convolutions with one class; R = 2 in layers 2
    to 8 adds 15,727,104. `dtype` is that of everything but the output.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 1024)
    pools: tuple[int, ...] = (2, 2, 2, 2, 2, 1)
    ccp_layers: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    ccp_groups: int = 2
    num_anchors: int = 5
    num_classes: int = 1
    quantized: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def setup(self):
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i, width in enumerate(self.widths, start=1):
            layer = CondensationConv(
                width,
                self.ccp_groups if i in self.ccp_layers else 1,
                quantized=self.quantized and i > 1,
                pool=self.pools[i - 1] if i <= len(self.pools) else 0,
                **types,
            )
            setattr(self, f"layer{i}", layer)
        self.head = nn.Conv(self.num_anchors * (5 + self.num_classes), (1, 1), **types)

    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        x = image.astype(self.dtype)
        for i in range(1, len(self.widths) + 1):
            x = run_block(getattr(self, f"layer{i}"), x, remat=self.remat, train=train)
        x = self.head(x).astype(jnp.float32)
        return x.reshape(*x.shape[:3], self.num_anchors, 5 + self.num_classes)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return tuple((f"layer{i}",) for i in range(1, len(self.widths) + 1))


class FusedTinyYolo(flax.struct.PyTreeNode):
    """A `TinyYoloNet` for inference: no maps of virtual channels are stored, normalizations are folded.

    Attributes:
      layers: one fused convolution per layer.
      kernel, bias: of the head.
      per_cell: (A, 5 + C).
    """

    layers: tuple[FusedCondensation, ...]
    kernel: jax.Array
    bias: jax.Array
    per_cell: tuple[int, int] = flax.struct.field(pytree_node=False)

    def __call__(self, image: jax.Array, *, implementation: str | None = None) -> jax.Array:
        """image [B, H, W, 3] -> [B, h, w, A, 5 + C]; `implementation` as the kernels take it."""
        x = image
        for layer in self.layers:
            x = layer(x, implementation=implementation)
        x = x @ self.kernel[0, 0] + self.bias
        return x.astype(jnp.float32).reshape(*x.shape[:3], *self.per_cell)


def fuse_tiny_yolo(network: TinyYoloNet, variables: Mapping) -> FusedTinyYolo:
    """The deployment form of a trained network, layer by layer as `jaxface.layers.fuse_condensation`.

    Args:
      network: the training form.
      variables: its {"params", "batch_stats"}.

    Returns:
      A network with the outputs of `network.apply(variables, image, train=False)`.
    """
    params, stats = variables["params"], variables["batch_stats"]
    bound = network.bind(variables)
    layers = []
    for i in range(1, len(network.widths) + 1):
        name = f"layer{i}"
        layer = getattr(bound, name).clone(parent=None)
        layers.append(fuse_condensation(layer, {"params": params[name], "batch_stats": stats[name]}))
    return FusedTinyYolo(
        tuple(layers),
        params["head"]["kernel"],
        params["head"]["bias"],
        (network.num_anchors, 5 + network.num_classes),
    )


@DETECTORS.register("tiny_yolo")
@dataclasses.dataclass(frozen=True)
class TinyYolo:
    """Tiny YOLOv2, one grid of cells with anchors of a few sizes; its layers may have several filters per stored map."""

    widths: Annotated[tuple[int, ...], AtLeast(1)] = (16, 32, 64, 128, 256, 512, 1024, 1024)
    """Maps that each layer stores."""
    pools: Annotated[tuple[int, ...], Integers(1, 2)] = (2, 2, 2, 2, 2, 1)
    """Stride of the 2x2 maximum behind each of the first layers."""
    ccp_layers: Annotated[tuple[int, ...], AtLeast(1)] = (2, 3, 4, 5, 6, 7, 8)
    """Layers, counted from 1, whose maps are maxima over groups of filters."""
    ccp_groups: Annotated[int, Integers(1, 127)] = 2
    """Filters of a map in those layers; 1 is Tiny YOLOv2."""
    anchor_sizes: tuple[tuple[float, float], ...] = _VOC
    """(Height, width) of the anchors, pixels > 0; those of VOC unless given (`losses.cluster_anchors` finds others)."""
    num_classes: Annotated[int, AtLeast(1)] = 1
    """Classes of objects."""
    quantized: bool = False
    """Binary weights and 2-bit activations in all layers but the first and the head."""
    object_weight: Annotated[float, NonNegative] = 5.0
    """Weight of the objectness of what is responsible for an object."""
    background_weight: Annotated[float, NonNegative] = 1.0
    """Weight of the objectness elsewhere."""
    ignore_iou: Annotated[float, Fraction] = 0.6
    """Overlap with an object from which a box is no background."""
    bfloat16: bool = False
    """Compute in bfloat16; parameters, statistics, outputs and the loss stay float32."""
    remat: Remat = "none"
    """What the backward pass computes again instead of storing it: nothing, or each layer."""

    def __post_init__(self):
        if not self.anchor_sizes or any(len(size) != 2 or min(size) <= 0 for size in self.anchor_sizes):
            raise UserError(f"anchor_sizes: needs pairs (height, width) above 0, got {self.anchor_sizes}")
        if len(self.pools) > len(self.widths):
            raise UserError(
                f"pools: needs at most one for each of {len(self.widths)} layers, got {len(self.pools)}"
            )
        if unknown := sorted(set(self.ccp_layers) - set(range(1, len(self.widths) + 1))):
            raise UserError(f"ccp_layers: needs layers from 1 to {len(self.widths)}, got {unknown[0]}")

    @property
    def stride(self) -> int:
        """Side of a cell, pixels."""
        return int(np.prod(self.pools))

    @property
    def module(self) -> TinyYoloNet:
        """The network of this description."""
        return TinyYoloNet(
            self.widths,
            self.pools,
            self.ccp_layers,
            self.ccp_groups,
            len(self.anchor_sizes),
            self.num_classes,
            self.quantized,
            jnp.bfloat16 if self.bfloat16 else jnp.float32,
            remat=self.remat,
        )

    def anchors(self, image_size: tuple[int, int]) -> np.ndarray:
        """[h·w·A, 4] float32 pixels around the centers of the cells, row by row, size by size."""
        cells = np.stack(np.mgrid[tuple(slice(-(-side // self.stride)) for side in image_size)], axis=-1)
        centers = (cells[:, :, None] + 0.5) * self.stride
        half = np.asarray(self.anchor_sizes) / 2
        return np.concatenate([centers - half, centers + half], axis=-1).reshape(-1, 4).astype(np.float32)

    def loss(
        self, outputs: jax.Array, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of YOLOv2 (`jaxface.losses.yolo_loss`) and its terms."""
        terms = yolo_loss(
            outputs,
            batch["boxes"],
            batch["box_mask"],
            batch["box_label"],
            anchor_sizes=self.anchor_sizes,
            stride=self.stride,
            box_crowd=batch["box_crowd"],
            image_size=batch["image_size"],
            object_weight=self.object_weight,
            background_weight=self.background_weight,
            ignore_iou=self.ignore_iou,
        )
        return terms.total, {
            "coordinate_loss": terms.coordinates,
            "object_loss": terms.objects,
            "background_loss": terms.background,
            "class_loss": terms.classes,
            "overlap": terms.overlap,
        }

    def detect(
        self,
        outputs: jax.Array,
        image_size: tuple[int, int],
        *,
        valid_size: jax.Array | None = None,
        score_threshold: float = 0.02,
        iou_threshold: float = 0.4,
        max_outputs: int = 100,
    ) -> Detections:
        """Objects, scored by objectness times the probability of the likeliest class; arguments as in `Detector.detect`."""
        decoded = decode_yolo(outputs, self.anchor_sizes, self.stride)
        count = np.prod(outputs.shape[1:4])
        return select_detections(
            decoded.boxes.reshape(-1, count, 4),
            (decoded.objectness * decoded.classes.max(axis=-1)).reshape(-1, count),
            decoded.classes.argmax(axis=-1).reshape(-1, count),
            image_size=image_size,
            valid_size=valid_size,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_outputs=max_outputs,
        )
