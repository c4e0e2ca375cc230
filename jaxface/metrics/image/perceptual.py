"""Distances of images by what a network for classes sees in them: LPIPS and DISTS, with weights that the caller brings.

`interop.read_lpips` and `interop.read_dists` read the published weights; random ones give distances too, of no published scale.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError
from jaxface.metrics.image.fidelity import check_pair
from jaxface.metrics.image.filters import need_side

Convolutions = tuple[tuple[jax.Array, jax.Array], ...]
"""(kernel [h, w, in, out], bias [out]) of every convolution of a trunk: 13 of VGG-16, 5 of AlexNet."""

VGG_CHANNELS = (64, 128, 256, 512, 512)
"""Of VGG-16's five levels."""
ALEX_CHANNELS = (64, 192, 384, 256, 256)
"""Of AlexNet's five convolutions."""
VGG_DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions of each level of VGG-16."""
_LEAST_VGG, _LEAST_ALEX = 16, 31  # pixels, so that the last level has one
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS, of pixels in [-1, 1]
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # DISTS, of pixels in [0, 1]
_LEAST_LENGTH = 1e-10
_STABLE = 1e-6  # c1 and c2 of DISTS
_UNDER_ROOT = 1e-12  # of the L2 pool, and of lengths, whose root has no slope at 0


class LpipsWeights(NamedTuple):
    """Weights of LPIPS.

    Attributes:
      convolutions: of VGG-16 (13) or AlexNet (5).
      linear: [C] ≥ 0 of each of the five levels.
    """

    convolutions: Convolutions
    linear: tuple[jax.Array, ...]


class DistsWeights(NamedTuple):
    """Weights of DISTS.

    Attributes:
      convolutions: the 13 of VGG-16.
      alpha, beta: [3 + ΣC] ≥ 0 of means and of covariances, of the image and then the levels; 1475 as published.
    """

    convolutions: Convolutions
    alpha: jax.Array
    beta: jax.Array


def _convolve(x: jax.Array, kernel: jax.Array, bias: jax.Array, stride: int, padding: int) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    pads = [(padding, padding)] * 2
    x = jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (stride, stride), pads, dimension_numbers=numbers
    )
    return jax.nn.relu(x + bias.astype(x.dtype))


def _max_pool(x: jax.Array, side: int, stride: int) -> jax.Array:
    window, strides = (1, side, side, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "VALID")


def l2_pool(x: jax.Array) -> jax.Array:
    """What DISTS has in the place of maxima: root of the mean square under a Hann window of 3 x 3, with a stride of 2.

        √(h * x² + 1e-12),   h = (½, 1, ½)ᵀ (½, 1, ½) / 4, borders of zeros

    Args:
      x: [B, H, W, C] float.

    Returns:
      [B, ⌈H / 2⌉, ⌈W / 2⌉, C].

    Example:
      >>> l2_pool(jnp.full((1, 8, 8, 1), 2.0))[0, :2, 1, 0].tolist()
      [1.7320507764816284, 2.0]
    """
    line = np.array([0.25, 0.5, 0.25], np.float32)
    window = jnp.asarray(np.outer(line, line)[:, :, None, None] * np.ones(x.shape[-1], np.float32), x.dtype)
    pooled = jax.lax.conv_general_dilated(
        jnp.square(x), window, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]
    )  # fmt: skip
    return jnp.sqrt(pooled + _UNDER_ROOT)


def vgg16_levels(convolutions: Convolutions, x: jax.Array, *, smooth: bool = False) -> list[jax.Array]:
    """The maps relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of VGG-16.

    Args:
      convolutions: its 13.
      x: [B, H, W, 3] float, normalized as its user has it.
      smooth: `l2_pool` between levels instead of the largest of 2 x 2.

    Returns:
      Five of [B, H / 2^l, W / 2^l, C_l].
    """
    maps, layers = [], iter(convolutions)
    for level, depth in enumerate(VGG_DEPTHS):
        if level:
            x = l2_pool(x) if smooth else _max_pool(x, 2, 2)
        for _ in range(depth):
            x = _convolve(x, *next(layers), stride=1, padding=1)
        maps.append(x)
    return maps


def _alexnet_levels(convolutions: Convolutions, x: jax.Array) -> list[jax.Array]:
    maps = []
    for level, layer in enumerate(convolutions):
        if level in (1, 2):
            x = _max_pool(x, 3, 2)
        x = _convolve(x, *layer, stride=4 if level == 0 else 1, padding=2 if level < 2 else 1)
        maps.append(x)
    return maps


def _colors(image: jax.Array, other: jax.Array, least: int, of: str) -> jax.Array:
    """Both images behind each other, [2 B, H, W, 3]."""
    check_pair(image, other)
    if image.shape[-1] != 3:
        raise ValueError(f"image: needs 3 channels, got {image.shape}")
    need_side("image", *image.shape[-3:-1], least, of=of)
    return jnp.stack([image, other]).reshape(-1, *image.shape[-3:])


def _need_convolutions(convolutions: Convolutions, counts: tuple[int, ...]) -> None:
    if len(convolutions) not in counts:
        raise ValueError(
            f"weights: needs {' or '.join(map(str, counts))} convolutions, got {len(convolutions)}"
        )


def lpips(image: jax.Array, other: jax.Array, weights: LpipsWeights) -> jax.Array:
    """Learned perceptual similarity (arXiv:1801.03924, equation 1), version 0.1.

        Σ_l mean over places of Σ_c w_lc (f̂_lc - ĝ_lc)²,   f̂ = f / (|f| + 1e-10) over channels

    Its gradient at two equal images is 0.

    Args:
      image, other: [..., H, W, 3] float in [0, 1].
      weights: of VGG-16 or AlexNet.

    Returns:
      [...] ≥ 0, 0 where both are equal.

    Raises:
      ValueError: two shapes, or weights of another trunk. UserError: sides below 16 (VGG-16) or 31 (AlexNet).

    Example:
      >>> weights = LpipsWeights(*random_trunk_weights(jax.random.key(0), 16))
      >>> jax.eval_shape(lpips, jnp.zeros((5, 64, 48, 3)), jnp.zeros((5, 64, 48, 3)), weights).shape
      (5,)
    """
    _need_convolutions(weights.convolutions, (13, 5))
    is_vgg = len(weights.convolutions) == 13
    both = _colors(image, other, _LEAST_VGG if is_vgg else _LEAST_ALEX, "LPIPS")
    x = (2 * both - 1 - jnp.asarray(_SHIFT, both.dtype)) / jnp.asarray(_SCALE, both.dtype)
    maps = (vgg16_levels if is_vgg else _alexnet_levels)(weights.convolutions, x)
    levels = [
        lpips_level(*jnp.split(features, 2), linear)
        for features, linear in zip(maps, weights.linear, strict=True)
    ]
    return jnp.sum(jnp.stack(levels), axis=0).reshape(image.shape[:-3])


def lpips_level(first: jax.Array, second: jax.Array, linear: jax.Array) -> jax.Array:
    """What one level adds to `lpips`: [B] of maps [B, H, W, C] and weights [C]."""
    # The root of a sum of squares has no slope where all are 0, as behind a ReLU.
    unit = lambda f: f / (jnp.sqrt(jnp.sum(f * f, -1, keepdims=True) + _LEAST_LENGTH**2) + _LEAST_LENGTH)  # noqa: E731
    return jnp.mean(jnp.square(unit(first) - unit(second)) @ linear, axis=(1, 2))


def dists(image: jax.Array, other: jax.Array, weights: DistsWeights) -> jax.Array:
    """Deep image structure and texture similarity, as a distance (arXiv:2004.07728, equation 8).

        1 - Σ_c (a_c l_c + b_c s_c) / Σ (a + b),   l = (2 μ_f μ_g + c) / (μ_f² + μ_g² + c),   s = (2 σ_fg + c) / (σ_f² + σ_g² + c)

    with c = 1e-6, μ and σ over the whole plane of a channel, and channels of the image itself and of five levels of VGG-16 whose
    pooling is `l2_pool`. Unlike the published package it has its gradient always.

    Args:
      image, other: [..., H, W, 3] float in [0, 1].
      weights: the trunk's, and a and b, which need no particular sum.

    Returns:
      [...] ≥ 0, 0 where both are equal.

    Raises:
      ValueError: two shapes, or weights of other lengths. UserError: sides below 16.

    Example:
      >>> convolutions, _ = random_trunk_weights(jax.random.key(0), 16)
      >>> weights = DistsWeights(convolutions, jnp.ones(3 + 92), jnp.ones(3 + 92))
      >>> jax.eval_shape(dists, jnp.zeros((64, 48, 3)), jnp.zeros((64, 48, 3)), weights).shape
      ()
    """
    _need_convolutions(weights.convolutions, (13,))
    both = _colors(image, other, _LEAST_VGG, "DISTS")
    outputs = [len(bias) for _, bias in weights.convolutions]
    channels = 3 + sum(outputs[depth - 1] for depth in itertools.accumulate(VGG_DEPTHS))
    if weights.alpha.shape != (channels,) or weights.beta.shape != (channels,):
        raise ValueError(
            f"weights: needs alpha and beta of {channels}, got {weights.alpha.shape} and {weights.beta.shape}"
        )
    x = (both - jnp.asarray(_MEAN, both.dtype)) / jnp.asarray(_STD, both.dtype)
    maps = [both, *vgg16_levels(weights.convolutions, x, smooth=True)]
    sums = jnp.sum(weights.alpha) + jnp.sum(weights.beta)
    likeness = [dists_likeness(*jnp.split(features, 2)) for features in maps]
    means, covariances = (jnp.concatenate(part, axis=-1) for part in zip(*likeness, strict=True))
    distance = 1 - (means @ weights.alpha + covariances @ weights.beta) / sums
    return distance.reshape(image.shape[:-3])


def dists_likeness(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """l and s of `dists`, [B, C] each, of maps [B, H, W, C]."""
    mean_f, mean_g = jnp.mean(first, axis=(1, 2)), jnp.mean(second, axis=(1, 2))
    f, g = first - mean_f[:, None, None], second - mean_g[:, None, None]
    return moments_likeness(
        mean_f,
        mean_g,
        jnp.mean(f * f, axis=(1, 2)),
        jnp.mean(g * g, axis=(1, 2)),
        jnp.mean(f * g, axis=(1, 2)),
    )


def moments_likeness(mean_f, mean_g, var_f, var_g, covariance) -> tuple[jax.Array, jax.Array]:
    """l and s of `dists` of means, variances and covariances of any one shape."""
    luminance = (2 * mean_f * mean_g + _STABLE) / (mean_f**2 + mean_g**2 + _STABLE)
    return luminance, (2 * covariance + _STABLE) / (var_f + var_g + _STABLE)


def random_trunk_weights(
    key: jax.Array, narrower: int = 1, *, trunk: str = "vgg16"
) -> tuple[Convolutions, tuple[jax.Array, ...]]:
    """Weights of a VGG-16 or AlexNet that nobody trained, and equal weights of its channels, for tests and for trying code out.

    Args:
      key: of the draw; kernels are normal with He's variance, biases 0.
      narrower: every level has this fraction of its channels, one at least.
      trunk: "vgg16" or "alexnet".

    Returns:
      (convolutions, [C] of 1 / C for each of five levels).

    Raises:
      UserError: another trunk.

    Example:
      >>> convolutions, linear = random_trunk_weights(jax.random.key(0), 16)
      >>> len(convolutions), [len(w) for w in linear]
      (13, [4, 8, 16, 32, 32])
    """
    if trunk not in ("vgg16", "alexnet"):
        raise UserError(f"trunk: needs vgg16 or alexnet, got {trunk!r}")
    is_vgg = trunk == "vgg16"
    levels = [max(c // narrower, 1) for c in (VGG_CHANNELS if is_vgg else ALEX_CHANNELS)]
    outputs = [
        c for c, depth in zip(levels, VGG_DEPTHS if is_vgg else (1,) * 5, strict=True) for _ in range(depth)
    ]
    sides = [3] * 13 if is_vgg else [11, 5, 3, 3, 3]
    shapes = [(side, side, i, o) for side, i, o in zip(sides, [3, *outputs], outputs, strict=False)]
    sizes = [math.prod(shape) for shape in shapes]
    numbers = np.split(np.asarray(jax.random.normal(key, (sum(sizes),))), np.cumsum(sizes)[:-1])
    convolutions = tuple(
        (jnp.asarray(values.reshape(shape) * math.sqrt(2 / math.prod(shape[:3]))), jnp.zeros(shape[-1]))
        for values, shape in zip(numbers, shapes, strict=True)
    )
    return convolutions, tuple(jnp.full(c, 1 / c) for c in levels)
