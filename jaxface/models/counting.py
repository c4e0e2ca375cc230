"""How large a network is: parameters and multiply-accumulates, without running it."""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.hardware import network_cycles
from jaxface.models.convolutions import traced_layers


def parameter_count(variables: Mapping) -> int:
    """Number of trained scalars: all of `variables["params"]`, or of `variables` itself if it has no such entry.

    Leaves may be arrays or the shapes that `jax.eval_shape` gives.

    Example:
      >>> from jaxface.models import create
      >>> network = create("mlp_8", embedding=4)
      >>> variables = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2, 2, 1), "float32"))
      >>> parameter_count(variables)
      76
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables.get("params", variables)))


def multiply_accumulates(module: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one forward pass on one image, in convolutions and matrix products.

        convolution: output elements · kernel height · kernel width · input channels per group
        matrix product: output elements · contracted elements

    Args:
      module: a network of `jaxface.models`.
      image_shape: (H, W, C).

    Returns:
      An exact integer; nothing is computed on a device. Normalization, activations and sums are not counted.

    Example:
      >>> from jaxface.models import create
      >>> multiply_accumulates(create("mlp_8", embedding=4), (2, 2, 1))  # 4 · 8 + 8 · 4
      64
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda image: module.init(jax.random.key(0), image, train=False), image)
    layers = traced_layers(
        lambda variables, image: module.apply(variables, image, train=False), variables, image
    )
    return network_cycles(layers).macs if layers else 0
