"""What a binary network weighs and computes, layer by layer, in its training form and on packed bits.

Methods: rbonn, bamsprod, dcp_nas
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.layers import BinaryConv, BinaryDense, OneBitConv, RBOConv

BINARY = (BinaryConv, BinaryDense, RBOConv)
WORD = 32  # bits that are counted at once, and products of ±1 that one of them stands for


class LayerCost(NamedTuple):
    """A layer with weights, on one image.

    Attributes:
      name: path in the network.
      binary: whether its weights and inputs are signs; with binary weights alone, its products are real and its weights bits.
      multiply_accumulates: products of its convolution or matrix product.
      operations: what they cost: as many where they are real, 1/64 of it where they are binary (Bi-Real Net's convention).
      weights: of the kernel; biases, scales and normalization are not counted.
      weight_bits: of the packed form: 1 of each binary weight, in words of 32 channels; 32 of a real one.
      input_bytes, packed_input_bytes: read by the float32 form and by the packed one.
    """

    name: str
    binary: bool
    multiply_accumulates: int
    operations: float
    weights: int
    weight_bits: int
    input_bytes: int
    packed_input_bytes: int


class NetworkCost(NamedTuple):
    """The layers of a network, and their sums.

    Attributes:
      layers: in the order in which they run.
      parameters: of the whole network, those of normalization, scales and biases included.
    """

    layers: tuple[LayerCost, ...]
    parameters: int

    def total(self, field: str) -> float:
        """Sum of a field of `LayerCost` over the layers."""
        return sum(getattr(layer, field) for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """Of all kernels in float32."""
        return 4 * self.total("weights")

    @property
    def packed_weight_bytes(self) -> int:
        """Of all kernels in the packed form."""
        return self.total("weight_bits") // 8


def network_cost(module: nn.Module, image_shape: tuple[int, int, int]) -> NetworkCost:
    """Bits, operations and bytes of every layer with a kernel; nothing is computed.

    Args:
      module: any network; layers that are no `BinaryConv`, `BinaryDense`, `RBOConv` or `OneBitConv` are real.
      image_shape: (H, W, C).

    Returns:
      The costs of one image.

    Example:
      >>> from jaxface import models
      >>> cost = network_cost(models.create("binary_small", embedding=10), (8, 8, 1))
      >>> [(layer.name, layer.binary, layer.weight_bits) for layer in cost.layers][:2]
      [('input_dense', False, 131072), ('block1/binary', True, 4096)]
    """
    layers = []

    def watch(call, arguments, options, context):
        output = call(*arguments, **options)
        layer = context.module
        if context.method_name == "__call__" and isinstance(layer, (nn.Conv, nn.Dense, OneBitConv, *BINARY)):
            layers.append(_cost(layer, arguments[0].shape, output.shape))
        return output

    def run(image):
        with nn.intercept_methods(watch):
            return module.init(jax.random.key(0), image, train=False)

    variables = jax.eval_shape(run, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    return NetworkCost(tuple(layers), count)


def _cost(layer: nn.Module, inputs: Sequence[int], outputs: Sequence[int]) -> LayerCost:
    if isinstance(layer, OneBitConv):
        taps, groups = layer.kernel_size**2, inputs[-1] if layer.depthwise else 1
        binary_weights = layer.form in ("binary", "packed")
        binary = binary_weights and layer.sign_inputs
    else:
        taps = math.prod(getattr(layer, "kernel_size", ()))
        groups = getattr(layer, "feature_group_count", 1)
        binary = binary_weights = isinstance(layer, BINARY) and not getattr(layer, "real_weights", False)
    channels = inputs[-1] // groups
    products, weights = math.prod(outputs) * taps * channels, taps * channels * outputs[-1]
    words, pixels = -(-inputs[-1] // WORD), math.prod(inputs[:-1])
    rows = 1 if groups > 1 else outputs[-1]  # of a depthwise layer the channels lie along the words
    return LayerCost(
        name="/".join(layer.path),
        binary=binary,
        multiply_accumulates=products,
        operations=products / 64 if binary else float(products),
        weights=weights,
        weight_bits=WORD * (taps * words * rows if binary_weights else weights),
        input_bytes=4 * math.prod(inputs),
        packed_input_bytes=4 * pixels * words if binary else 4 * math.prod(inputs),
    )
