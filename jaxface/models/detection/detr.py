"""Detectors that predict a set: DETR (arXiv:2005.12872), SMCA (arXiv:2101.07448), and both with few bits (arXiv:2304.00253).

Methods: qdetr
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxface import boxes
from jaxface.checks import AtLeast, Integers, NonNegative, Positive, ProperFraction
from jaxface.errors import UserError
from jaxface.hardware.low_bit import FULL, LowBitCost, low_bit_cost
from jaxface.layers.attention import Attention, DotProduct
from jaxface.layers.detr import (
    DecoderLayer,
    EncoderLayer,
    GaussianLook,
    Perceptron,
    padded_places,
    sine_of_points,
    sine_positions,
)
from jaxface.layers.qdetr import DistributionAlignment, query_spread
from jaxface.layers.quantization import Granularity, QuantizedConv, QuantizedDense, QuantizedDotProduct
from jaxface.losses.detection import detr_loss, detr_match
from jaxface.models.counting import elementwise_operations
from jaxface.models.depth import DepthOrder
from jaxface.models.detection.base import DETECTORS, Detections, TrainingPass, select_detections
from jaxface.models.detection.pyramid import ResNetLevels
from jaxface.models.transformers.quantized import matrix_products

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of RGB levels in [0, 1] that published weights take from their images."""
Queries = Literal["learned", "grid"]
Pixels = Literal["rgb", "imagenet"]
_PARTS = ("backbone", "encoder", "decoder")
_RESNETS = {
    "resnet18": {"stages": (2, 2, 2, 2), "bottleneck": False},
    "resnet50": {"stages": (3, 4, 6, 3)},
    "resnet101": {"stages": (3, 4, 23, 3)},
}
_STEM = "stem_conv"  # the first convolution of every backbone here


class DetrNet(nn.Module):
    """A convolutional backbone, an encoder of its places, and a decoder whose queries each say one box and its class.

        tokens  = encoder layers of input(backbone(image)), with fixed sine positions
        objects = decoder layers of zeros, with the positions of the queries, which look at the tokens
        outputs = class(norm(objects)), sigmoid(box(norm(objects)) + logit of where the query looks)        after every layer

    Args:
      backbone: makes the network `backbone` of (name=), image -> map [B, h, w, C].
      num_classes: C' of the output, "no object" included where it has one.
      queries: N.
      query_form: "learned" are free; "grid" are tied to a square grid of N points, that their boxes are relative to.
      gaussian: the cross-attention's scores have a Gaussian prior around a learned place (SMCA).
      dim: D, channels of the tokens, a multiple of 4 and of `heads`.
      heads, hidden, dropout: of the layers (`jaxface.layers.detr`).
      encoder_layers, decoder_layers: how many.
      encoder_attention, self_attention, cross_attention: make the attentions, as `Attention`; encoder_dense, decoder_dense the
        perceptrons' layers, as `flax.linen.Dense`.
      class_bias: start of the classes' bias.
      pixels: what the backbone sees: RGB in [-1, 1], or less ImageNet's mean and over its deviation.

    image [B, H, W, 3] float in [-1, 1] -> {"class_logits" [B, L, N, C'], "boxes" [B, L, N, 4] in [0, 1] (center x, center y,
    width, height) over the image's} of all L decoder layers, float32; with `attended`, also "attended" [B, L, N, D], the
    co-attended features of each layer's cross-attention. With valid_size [B, 2], (height, width) of images that are padded at the
    bottom and the right, the padding is black to the backbone and no attention sees it; positions and boxes are relative to the
    images without it. `dtype` is that of everything but the outputs.
    """

    backbone: Callable[..., nn.Module]
    num_classes: int = 92
    queries: int = 100
    query_form: Queries = "learned"
    gaussian: bool = False
    dim: int = 256
    heads: int = 8
    hidden: int = 2048
    dropout: float = 0.1
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_attention: Callable[..., nn.Module] = Attention
    self_attention: Callable[..., nn.Module] = Attention
    cross_attention: Callable[..., nn.Module] = Attention
    encoder_dense: Callable[..., nn.Module] = nn.Dense
    decoder_dense: Callable[..., nn.Module] = nn.Dense
    class_bias: float = 0.0
    pixels: Pixels = "rgb"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        image: jax.Array,
        *,
        valid_size: jax.Array | None = None,
        train: bool = False,
        attended: bool = False,
    ) -> dict[str, jax.Array]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = image.astype(self.dtype)
        if self.pixels == "imagenet":
            mean, std = (jnp.array(row, self.dtype) for row in IMAGENET)
            x = ((x + 1) / 2 - mean) / std
        if valid_size is not None:
            rows, columns = (jnp.arange(n) < valid_size[:, axis, None] for axis, n in enumerate(x.shape[1:3]))
            x = jnp.where((rows[:, :, None] & columns[:, None])[..., None], x, 0)
        x = self.backbone(name="backbone", **types)(x, train=train)
        batch, *plane, _ = x.shape
        plane = tuple(plane)
        xavier = {"kernel_init": nn.initializers.xavier_uniform()}
        tokens = nn.Dense(self.dim, name="input", **xavier, **types)(x).reshape(batch, -1, self.dim)
        if valid_size is None:
            positions, mask, extent = sine_positions(*plane, self.dim).reshape(-1, self.dim), None, None
        else:
            mask, extent, positions = padded_places(valid_size, image.shape[1:3], plane, self.dim)
            mask = mask[:, None, None]
        positions = jnp.asarray(positions, self.dtype)

        layer = {"heads": self.heads, "hidden": self.hidden, "dropout": self.dropout, **types}
        for i in range(1, self.encoder_layers + 1):
            made = EncoderLayer(
                attention=self.encoder_attention, dense=self.encoder_dense, name=f"encoder{i}", **layer
            )
            tokens = made(tokens, positions, mask, train=train)

        query, reference = self._queries()
        query = jnp.broadcast_to(query.astype(self.dtype), (batch, self.queries, self.dim))
        objects, centers, prior = jnp.zeros_like(query), reference, None
        norm = nn.LayerNorm(epsilon=1e-5, param_dtype=self.param_dtype, name="decoder_norm")
        states, features = [], []
        for i in range(1, self.decoder_layers + 1):
            if self.gaussian:
                look = GaussianLook(
                    self.heads, find=i == 1, param_dtype=self.param_dtype, name=f"decoder{i}_look"
                )
                prior, centers = look(objects, query, centers, plane, extent)
            made = DecoderLayer(
                attention=self.self_attention,
                cross_attention=self.cross_attention,
                dense=self.decoder_dense,
                name=f"decoder{i}",
                **layer,
            )
            objects, looked = made(objects, query, tokens, positions, prior, mask, train=train)
            states.append(norm(objects.astype(jnp.float32)))
            features.append(looked.astype(jnp.float32))

        # Not stacked: ONNX's converter has no such operation.
        states, features = (jnp.concatenate([x[:, None] for x in xs], axis=1) for xs in (states, features))
        bias = nn.initializers.constant(self.class_bias)
        classify = nn.Dense(
            self.num_classes, bias_init=bias, param_dtype=self.param_dtype, name="class", **xavier
        )
        deltas = Perceptron((self.dim, self.dim, 4), param_dtype=self.param_dtype, name="box")(states)
        if self.gaussian or self.query_form == "grid":
            places = jnp.broadcast_to(centers, (batch, self.queries, 2))[:, None]
            deltas = deltas + jnp.pad(places, [(0, 0)] * 3 + [(0, 2)])
        outputs = {"class_logits": classify(states), "boxes": jax.nn.sigmoid(deltas)}
        return {**outputs, "attended": features} if attended else outputs

    def _queries(self) -> tuple[jax.Array, jax.Array]:
        """Positions of the queries [N, D], and logits of the points (x, y) that they are tied to: [N, 2], or zero."""
        start = nn.initializers.normal(1.0)
        query = self.param("queries", start, (self.queries, self.dim), self.param_dtype)
        if self.query_form == "learned":
            return query, jnp.zeros((1, 2), jnp.float32)
        side = math.isqrt(self.queries)
        rows, columns = ((np.mgrid[:side, :side] + 0.5) / side).reshape(2, -1)
        points = np.stack([columns, rows], axis=-1).astype(np.float32)
        placed = sine_of_points(2 * np.pi * points[:, ::-1], self.dim)
        return query + placed, jnp.asarray(np.log(points / (1 - points)))

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the heads left out."""
        layers = (f"encoder{i + 1}" for i in range(self.encoder_layers))
        decoder = (f"decoder{i + 1}" for i in range(self.decoder_layers))
        return ("backbone",), ("input",), *((name,) for name in layers), *((name,) for name in decoder)


class Patches(nn.Module):
    """Convolutions 3x3 with stride 2 and ReLU up to a stride, for small images; image [B, H, W, 3] -> [B, H/s, W/s, C].

    Args:
      features: C.
      stride: a power of two, from 2.
      conv: makes a convolution, as `flax.linen.Conv`.
    """

    features: int = 32
    stride: int = 4
    conv: Callable[..., nn.Module] = nn.Conv
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        del train
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        around = ((1, 1), (1, 1))
        for i in range(int(math.log2(self.stride))):
            name = f"conv{i}" if i else _STEM
            x = nn.relu(self.conv(self.features, (3, 3), (2, 2), padding=around, name=name, **types)(x))
        return x


class LastLevel(nn.Module):
    """The coarsest level of a ResNet, whose normalizations are constants; image [B, H, W, 3] -> [B, H/32, W/32, C].

    Args:
      stages, bottleneck: as `ResNetLevels` has them.
      conv: makes a convolution, as `flax.linen.Conv`.
    """

    stages: tuple[int, int, int, int] = (3, 4, 6, 3)
    bottleneck: bool = True
    conv: Callable[..., nn.Module] = nn.Conv
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        levels = ResNetLevels(
            self.stages,
            bottleneck=self.bottleneck,
            frozen=True,
            conv=self.conv,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        nn.share_scope(self, levels)
        return levels.levels(image, train=train)[-1]


@DETECTORS.register("detr")
@dataclasses.dataclass(frozen=True)
class Detr:
    """A set predictor: DETR, with `gaussian` and `focal` SMCA, and with `weight_bits` either of them in few bits.

    The defaults are the laptop's, for images of 32 pixels.
    """

    num_classes: Annotated[int, AtLeast(1)] = 1
    """Classes of objects; of published weights for COCO 91, whose numbers are those of its categories."""
    backbone: str = "patches"
    """patches, two strided convolutions for small images; or resnet18, resnet50, resnet101 with constant normalizations."""
    queries: Annotated[int, AtLeast(1)] = 9
    """Most objects of an image; published are 100, and 300 of SMCA."""
    query_form: Queries = "grid"
    """Free queries as published ("learned"), or tied to a square grid of points, which short runs learn more with."""
    gaussian: bool = False
    """SMCA's prior: every head of a query looks around a place that it has learned."""
    focal: bool = False
    """Sigmoid focal loss on the classes, as SMCA has, instead of cross-entropy with "no object"."""
    dim: Annotated[int, AtLeast(4)] = 32
    """Channels of tokens and objects; published 256, as 8 heads, 2048 hidden units, 6 and 6 layers, dropout 0.1."""
    heads: Annotated[int, AtLeast(1)] = 4
    """Heads of the attentions."""
    hidden: Annotated[int, AtLeast(1)] = 128
    """Hidden units of the perceptrons."""
    encoder_layers: Annotated[int, AtLeast(0)] = 1
    """Layers of the encoder."""
    decoder_layers: Annotated[int, AtLeast(1)] = 2
    """Layers of the decoder."""
    dropout: Annotated[float, ProperFraction] = 0.0
    """Rate in both."""
    pixels: Pixels = "rgb"
    """What the backbone sees: rgb in [-1, 1], or less ImageNet's mean and over its deviation, as published weights need it."""
    class_weight: Annotated[float, NonNegative] = 1.0
    """Weight of the classes in the matching and the loss; 2 in SMCA."""
    box_weight: Annotated[float, NonNegative] = 5.0
    """Weight of the boxes' distance in both."""
    giou_weight: Annotated[float, NonNegative] = 2.0
    """Weight of the boxes' overlap in both."""
    no_object_weight: Annotated[float, Positive] = 0.1
    """Weight of the predictions that no object has, in the cross-entropy."""
    weight_bits: Annotated[int | None, Integers(2, 8)] = None
    """Bits of the weights of convolutions and linear layers; None leaves the network as it is, whatever the fields below say."""
    input_bits: Annotated[int, Integers(2, 8)] = 4
    """Bits of the inputs of these layers."""
    attention_bits: Annotated[int, Integers(2, 8)] = 8
    """Bits of queries, keys, values and probabilities in the two products of an attention."""
    edge_bits: Annotated[int, Integers(2, 8)] = 8
    """Bits of the first convolution, weights and inputs."""
    quantized: tuple[Literal["backbone", "encoder", "decoder"], ...] = _PARTS
    """Parts of few bits; the published first stage has the backbone alone."""
    align_query: Literal["no", "cross", "both"] = "no"
    """Distribution alignment of the decoder's queries: none, of the cross-attentions, or of the self-attentions too."""
    granularity: Granularity = "tensor"
    """What of a layer's input shares a step: all of it, or each channel, as released."""
    bfloat16: bool = False
    """Compute in bfloat16; parameters, outputs and the loss stay float32."""

    def __post_init__(self):
        if self.query_form == "grid" and math.isqrt(self.queries) ** 2 != self.queries:
            raise UserError(f"queries: need a square number for a grid, got {self.queries}")
        if self.dim % self.heads or self.dim % 4:
            raise UserError(f"dim: needs a multiple of 4 and of heads, {self.heads}, got {self.dim}")
        if unknown := sorted(set(self.quantized) - set(_PARTS)):
            raise UserError(f"quantized: needs some of {', '.join(_PARTS)}, got {', '.join(unknown)}")
        names = ("patches", *_RESNETS)
        if self.backbone not in names:
            raise UserError(f"backbone: needs one of {', '.join(names)}, got {self.backbone!r}")

    @property
    def stride(self) -> int:
        """Pixels per place of the backbone's map."""
        return 4 if self.backbone == "patches" else 32

    @property
    def module(self) -> DetrNet:
        """The network."""
        layers = {part: self._layers(part) for part in _PARTS}
        made = (
            partial(Patches, self.dim)
            if self.backbone == "patches"
            else partial(LastLevel, **_RESNETS[self.backbone])
        )
        backbone = partial(made, conv=layers["backbone"]["conv"])
        aligned = {
            name: partial(
                Attention,
                dense=layers["decoder"]["dense"],
                mix=self._mix("decoder", self.align_query in wanted),
            )
            for name, wanted in (("self_attention", ("both",)), ("cross_attention", ("cross", "both")))
        }
        return DetrNet(
            backbone,
            num_classes=self.num_classes + (not self.focal),
            queries=self.queries,
            query_form=self.query_form,
            gaussian=self.gaussian,
            dim=self.dim,
            heads=self.heads,
            hidden=self.hidden,
            dropout=self.dropout,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers,
            encoder_attention=partial(
                Attention, dense=layers["encoder"]["dense"], mix=self._mix("encoder", False)
            ),
            encoder_dense=layers["encoder"]["dense"],
            decoder_dense=layers["decoder"]["dense"],
            class_bias=-math.log(99) if self.focal else 0.0,
            pixels=self.pixels,
            dtype=jnp.bfloat16 if self.bfloat16 else jnp.float32,
            **aligned,
        )

    def _plain(self, part: str) -> bool:
        return self.weight_bits is None or part not in self.quantized

    def _layers(self, part: str) -> dict[str, Callable[..., nn.Module]]:
        if self._plain(part):
            return {"conv": nn.Conv, "dense": nn.Dense}
        bits = {"weight_bits": self.weight_bits, "input_bits": self.input_bits}
        edge = {"weight_bits": self.edge_bits, "input_bits": self.edge_bits}

        def conv(*arguments, name, **options):
            return QuantizedConv(
                *arguments,
                name=name,
                granularity=self.granularity,
                **(edge if name == _STEM else bits),
                **options,
            )

        return {"conv": conv, "dense": partial(QuantizedDense, granularity=self.granularity, **bits)}

    def _mix(self, part: str, align: bool) -> Callable[..., nn.Module]:
        if self._plain(part):
            return DotProduct
        rectify = DistributionAlignment if align else None
        return partial(QuantizedDotProduct, bits=self.attention_bits, rectify=rectify, rectified=("query",))

    def anchors(self, image_size: tuple[int, int]) -> np.ndarray:
        """[N, 4]: every query's box is relative to the whole image."""
        return np.tile(np.array([0, 0, *image_size], np.float32), (self.queries, 1))

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """DETR's loss of every decoder layer, each with its own matching; regions marked as crowds are no objects."""
        mask = batch["box_mask"] & ~batch["box_crowd"]
        target = (batch["boxes"], batch["box_label"], mask)
        sizes = jnp.maximum(batch["image_size"], 1).astype(jnp.float32)
        match = partial(
            detr_match,
            class_cost=self.class_weight,
            box_cost=self.box_weight,
            giou_cost=self.giou_weight,
            focal=self.focal,
        )
        matches = jax.vmap(jax.vmap(match, in_axes=(0, 0, None, None, None, None)))(
            outputs["class_logits"], outputs["boxes"], *target, sizes
        )

        def of_layer(logits, predicted, matched):
            return detr_loss(
                logits,
                predicted,
                *target,
                sizes,
                matched,
                no_object_weight=self.no_object_weight,
                class_weight=self.class_weight,
                box_weight=self.box_weight,
                giou_weight=self.giou_weight,
                focal=self.focal,
            )

        terms = jax.vmap(of_layer, in_axes=1)(outputs["class_logits"], outputs["boxes"], matches)
        report = {"class_loss": terms.classification, "box_loss": terms.box, "giou_loss": terms.giou}
        return terms.total.sum(), {name: values[-1] for name, values in report.items()}

    def training_pass(
        self, variables: Mapping, batch: Mapping[str, jax.Array], rng: jax.Array
    ) -> TrainingPass:
        """As `jaxface.models.detection.training_pass`, with the co-attended features among the outputs."""
        outputs, updated = self.module.apply(
            variables,
            batch["image"],
            valid_size=batch["image_size"],
            train=True,
            attended=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        return TrainingPass(*self.loss(outputs, batch), updated, (), outputs)

    def outputs(
        self, variables: Mapping, image: jax.Array, valid_size: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """As `jaxface.models.detection.detector_outputs`: of images without their padding."""
        return self.module.apply(variables, image, valid_size=valid_size, train=False)

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
        """The last layer's boxes as they are, of which none suppresses another: `iou_threshold` is not looked at.

        With a cross-entropy a query says its likeliest class, with a focal loss any.
        """
        del iou_threshold
        logits = outputs["class_logits"][:, -1]
        sizes = jnp.array([image_size]) if valid_size is None else jnp.maximum(valid_size, 1)
        places = boxes.boxes_of_normalized(outputs["boxes"][:, -1], sizes[:, None])
        if self.focal:
            scores = jax.nn.sigmoid(logits)
            count = scores.shape[-1]
            places = jnp.repeat(places, count, axis=1)
            classes = jnp.broadcast_to(jnp.arange(count), scores.shape).reshape(len(scores), -1)
            scores = scores.reshape(len(scores), -1)
        else:
            chances = jax.nn.softmax(logits, axis=-1)[..., :-1]
            scores, classes = chances.max(axis=-1), chances.argmax(axis=-1)
        return select_detections(
            places,
            scores,
            classes,
            image_size=image_size,
            valid_size=valid_size,
            score_threshold=score_threshold,
            iou_threshold=1.0,
            max_outputs=max_outputs,
            candidates=max(max_outputs, self.queries),
        )


def query_spreads(
    module: nn.Module, variables: Mapping, image: jax.Array, valid_size: jax.Array | None = None
) -> dict[tuple[str, ...], jax.Array]:
    """Path of every attention's `mix` -> mean spread of its queries (`jaxface.layers.query_spread`), of a float network.

    Args:
      module, variables: a `DetrNet` without quantizers. image: [B, H, W, 3]. valid_size: as the network takes it.
    """
    found = {}

    def watch(call, arguments, options, context):
        if isinstance(context.module, DotProduct) and context.method_name == "__call__":
            found[context.module.path] = jnp.mean(query_spread(arguments[0]))
        return call(*arguments, **options)

    with nn.intercept_methods(watch):
        module.apply(variables, image, valid_size=valid_size, train=False)
    return found


def with_spreads(params: Mapping, spreads: Mapping[tuple[str, ...], jax.Array]) -> dict:
    """Parameters whose alignments start at these spreads instead of 1, each the same for all channels: standardized queries are
    then as long as the float network's."""
    flat = flatten_dict(params)
    for path, spread in spreads.items():
        place = (*path, "rectify_query", "scale")
        if place in flat:
            flat[place] = jnp.full_like(flat[place], spread)
    return unflatten_dict(flat)


def detr_cost(detector: Detr, image_size: tuple[int, int]) -> LowBitCost:
    """Operations and bytes of a set predictor on one image, float or of few bits.

    Elementwise operations are those of the float network, and one for every activation that is quantized, as an integer product
    that hands on codes has it.

    Args:
      detector: any. image_size: (H, W).

    Returns:
      `jaxface.hardware.low_bit_cost` of its products.

    Example:
      >>> float_cost, low = (detr_cost(Detr(weight_bits=bits), (32, 32)) for bits in (None, 4))
      >>> float_cost.macs == low.macs, float_cost.weight_bytes / low.weight_bytes > 3
      (True, True)
    """
    shape = (*image_size, 3)
    plain = dataclasses.replace(detector, weight_bits=None, align_query="no").module
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(lambda x: plain.init(jax.random.key(0), x, train=False), image)
    elementwise = elementwise_operations(lambda v, x: plain.apply(v, x, train=False), variables, image)
    products = matrix_products(detector.module, shape)
    elementwise += sum(row.inputs for row in products if row.input_bits < FULL)
    return low_bit_cost(products, elementwise=elementwise)
