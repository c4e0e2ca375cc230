"""RBONN: recurrent bilinear optimization of binary weights (arXiv:2209.01542).

A binary filter computes α_i Σ sgn(x)·sgn(w_i); with A_i = 1/α_i, w_i and A_i are two factors of one product,
G = ½ Σ_i ||A_i w_i - sgn(w_i)||². What couples their gradients is not computable; a learned vector U and a gate on filters whose
A_i is large ("dense") stand for it. The paper and its released code differ, and both are here by `variant`:

| variant | gate | what the gate lets through |
|---|---|---|
| `paper` | A_i among the largest, ||w_i||₁ not | after a step, w <- w + U w (`jaxface.optimizers.recurrent_bilinear`) |
| `released` | sorting permutation of α used as if it were the rank | in the forward pass alone, w - U g, g the last gradient |
| `released_fixed` | rank of α: the smallest ones | the same |

Methods: rbonn, dcp_nas
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.checks import Fraction, NonNegative, Positive, check_number
from jaxface.errors import UserError
from jaxface.layers.binary import (
    Estimator,
    check_images,
    check_kind,
    convolve,
    half_padding,
    mean_abs_scale,
    sign,
)

Variant = Literal["paper", "released", "released_fixed"]
VARIANTS: tuple[str, ...] = Variant.__args__
ScaleInit = Literal["mean_abs", "normal"]
SCALE_INITS: tuple[str, ...] = ScaleInit.__args__
LAST_GRADIENT = "last_gradient"
"""Flax collection of the gradients of the step before, `kernel` of each layer that looks ahead."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def bilinear_binarize(
    kernel: jax.Array, alpha: jax.Array, weight: float = 1e-4, beta: float = 0.02
) -> jax.Array:
    """The kernel that a released RBONN layer convolves with, and its own backward rule.

        q = β·sgn(w)·α
        cotangents of g:   w: λ(w - q) + g·α,    α_i: Σ_i g·w - λ Σ_i (w - q)·β·sgn(w)

    The second is not the gradient of q by α: where batch normalization follows, that gradient is 0. sgn(0) = 0, as released.

    Args:
      kernel: [..., O] latent weights w.
      alpha: [O] scales of the output channels.
      weight: λ ≥ 0 of the bilinear term.
      beta: β > 0.

    Returns:
      q, of kernel's shape and type.
    """
    del weight
    return beta * jnp.sign(kernel) * alpha


def _binarize_forward(kernel, alpha, weight, beta):
    return bilinear_binarize(kernel, alpha, weight, beta), (kernel, alpha)


def _binarize_backward(weight, beta, saved, g):
    kernel, alpha = saved
    signs = beta * jnp.sign(kernel)
    error = weight * (kernel - signs * alpha)
    return error + g * alpha, jnp.sum(g * kernel - error * signs, axis=range(kernel.ndim - 1))


bilinear_binarize.defvjp(_binarize_forward, _binarize_backward)


def density_mask(
    alpha: jax.Array, kernel: jax.Array, tau: float = 0.6, variant: Variant = "released_fixed"
) -> jax.Array:
    """The gate: which output channels are dense in A = 1/α.

        paper            [rank A_i > T] [rank ||w_i||₁ <= T],   T = int(τ O), ranks 1..O ascending
        released_fixed   [rank α_i <= int((1 - τ) O)]
        released         [π_i < int((1 - τ) O)],   π = argsort(α), which is a rank only where π is its own inverse

    Args:
      alpha: [O], > 0 in the paper's variant.
      kernel: [..., O] latent weights.
      tau: τ in [0, 1], static.
      variant: static.

    Returns:
      float32 [O] of 0 and 1, through which no gradient flows.

    Raises:
      UserError: τ or the variant out of range, α not [O], or not positive in the paper's variant.

    Example:
      >>> alpha = jnp.array([0.9, 0.1, 0.5, 0.3, 0.7])
      >>> density_mask(alpha, jnp.ones((1, 1, 1, 5))).tolist()
      [0.0, 1.0, 0.0, 1.0, 0.0]
    """
    check_number("tau", tau, Fraction)
    check_kind("variant", variant, VARIANTS)
    channels = kernel.shape[-1]
    if alpha.shape != (channels,):
        raise UserError(f"alpha: needs shape ({channels},), the output channels; got {alpha.shape}")
    if variant == "paper":
        check_positive("alpha", alpha)
        smallest = int(channels * tau)
        norms = jnp.sum(jnp.abs(kernel), axis=tuple(range(kernel.ndim - 1)))
        mask = (_rank(1 / alpha) >= smallest) & (_rank(norms) < smallest)
    else:
        order = jnp.argsort(alpha) if variant == "released" else _rank(alpha)
        mask = order < int(channels * (1 - tau))
    return jax.lax.stop_gradient(mask.astype(jnp.float32))


def drelu(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Density-ReLU: values [..., O] where the gate [O] is open, else 0."""
    return values * mask


def backtrack(
    kernel: jax.Array,
    recurrence: jax.Array,
    mask: jax.Array,
    last_gradient: jax.Array | None = None,
    variant: Variant = "released_fixed",
) -> jax.Array:
    """The latent weights of gated filters, corrected.

        paper                      w + U·DReLU(w)
        released, released_fixed   w - U·DReLU(g),   g the gradient of the step before, a constant

    Args:
      kernel: [..., O] latent weights w.
      recurrence: U [O].
      mask: [O], of `density_mask`.
      last_gradient: g of kernel's shape; the paper's variant takes none.
      variant: static.

    Returns:
      Corrected weights, of kernel's shape.

    Raises:
      UserError: an unknown variant, or a g of another shape.
    """
    check_kind("variant", variant, VARIANTS)
    if variant == "paper":
        return kernel + recurrence * drelu(kernel, mask)
    if last_gradient is None or last_gradient.shape != kernel.shape:
        given = None if last_gradient is None else last_gradient.shape
        raise UserError(f"last_gradient: needs shape {kernel.shape}, as the kernel; got {given}")
    return kernel - recurrence * drelu(jax.lax.stop_gradient(last_gradient), mask)


def bilinear_loss(kernel: jax.Array, density: jax.Array) -> jax.Array:
    """How far A w is from its signs, G_i = ½ ||A_i w_i - sgn(w_i)||², the signs being constants.

    Args:
      kernel: [..., O] latent weights.
      density: A [O].

    Returns:
      [O] ≥ 0.

    Example:
      >>> bilinear_loss(jnp.array([[0.5], [-0.25]]), jnp.array([2.0])).tolist()
      [0.125]
    """
    error = density * kernel - jax.lax.stop_gradient(jnp.sign(kernel))
    return 0.5 * jnp.sum(jnp.square(error), axis=tuple(range(kernel.ndim - 1)))


def paper_gradients(
    kernel: jax.Array,
    density: jax.Array,
    gradients: tuple[jax.Array, jax.Array],
    previous: jax.Array,
    *,
    weight: float = 1e-4,
    tau: float = 0.6,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of the paper's objective L = L_S + λ G by w, A and U.

        dL/dw_i = dL_S/dw_i + λ A_i (A_i w_i - sgn w_i),   dL/dA_i = dL_S/dA_i + λ <w_i, A_i w_i - sgn w_i>
        dL/dU_i = <dL_S/dw_i, DReLU(w_i of the step before, A)>

    Args:
      kernel: [kh, kw, I, O] latent weights w.
      density: A [O] > 0.
      gradients: of L_S by w and by A.
      previous: w of the step before.
      weight: λ ≥ 0.
      tau: of the gate.

    Returns:
      The three, in shapes [kh, kw, I, O], [O] and [O].
    """
    axes = tuple(range(kernel.ndim - 1))
    by_kernel, by_density = gradients
    error = density * kernel - jnp.sign(kernel)
    gated = drelu(previous, density_mask(1 / density, previous, tau, "paper"))
    return (
        by_kernel + weight * density * error,
        by_density + weight * jnp.sum(kernel * error, axis=axes),
        jnp.sum(by_kernel * gated, axis=axes),
    )


def paper_update(
    kernel: jax.Array,
    density: jax.Array,
    recurrence: jax.Array,
    gradients: tuple[jax.Array, jax.Array],
    previous: jax.Array,
    *,
    rates: tuple[float, float, float],
    weight: float = 1e-4,
    tau: float = 0.6,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One step of the paper's algorithm with plain gradient descent.

        A <- |A - η₁ dL/dA|,   w <- w - η₂ dL/dw + U·DReLU(w, A),   U <- |U - η₃ dL/dU|

    with everything on the right of the step before. The absolute values are printed so: at 0, U grows in either direction.

    Args:
      kernel, density, gradients, previous, weight, tau: as `paper_gradients`.
      recurrence: U [O] ≥ 0.
      rates: η₁, η₂, η₃, of A, w and U.

    Returns:
      New w, A and U.

    Raises:
      UserError: a kernel that is not [kh, kw, I, O], A not positive, τ out of range, or a `previous` of another shape.
    """
    check_kernel(kernel)
    check_positive("density", density)
    if previous.shape != kernel.shape:
        raise UserError(f"previous: needs shape {kernel.shape}, as the kernel; got {previous.shape}")
    by_kernel, by_density, by_recurrence = paper_gradients(
        kernel, density, gradients, previous, weight=weight, tau=tau
    )
    mask = density_mask(1 / density, kernel, tau, "paper")
    return (
        backtrack(kernel, recurrence, mask, variant="paper") - rates[1] * by_kernel,
        jnp.abs(density - rates[0] * by_density),
        jnp.abs(recurrence - rates[2] * by_recurrence),
    )


class RBOConv(nn.Module):
    """Binary convolution trained by recurrent bilinear optimization; at inference an ordinary one.

        y = conv(sgn(x), q),   q = `bilinear_binarize`(w - U·DReLU(g), |s|)          released, released_fixed; g = 0 at inference
        y = conv(sgn(x), sgn(w)) / A                                                 paper

    where g is the gradient of the step before: `jaxface.optimizers.keep_last_gradient` keeps it, and a training step hands it in
    as the collection `last_gradient`. Without that collection nothing is looked ahead, as in a first step. In the paper's variant
    the optimizer is wrapped in `jaxface.optimizers.recurrent_bilinear`, and the layer itself is plain.

    Under batch normalization, which should follow, y's scale moves nothing: s acts through the gate alone.

    Args:
      features, kernel_size, strides, padding, estimator, kernel_init: as `jaxface.layers.BinaryConv`.
      variant: paper, released or released_fixed.
      tau: τ in [0, 1] of the gate.
      weight: λ ≥ 0 of the bilinear term, in the backward pass.
      beta: β > 0 of the effective kernel.
      recurrence_init: U at the start, ≥ 0; 0.2, and 1e-3 in the paper's variant, where U multiplies w, unless given.
      scale_init: of α = |s| = 1 / A: "mean_abs", so that dense A means small w and the effective kernel starts as
        sgn(w)·mean|w|; or "normal", N(0, 1), as released. By the variant unless given.

    x [B, H, W, C] -> [B, Ho, Wo, O]. Parameters: `kernel` [kh, kw, C, O], `recurrence` [O], and `scale` [O], or in the paper's
    variant `density` [O], A.

    Raises:
      UserError: a field out of its range, an input that is not [B, H, W, C], or a last gradient of another shape.

    Example:
      >>> layer, x = RBOConv(8), jnp.zeros((1, 6, 6, 4))
      >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0].shape
      (1, 6, 6, 8)
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: str | Sequence[tuple[int, int]] | None = None
    variant: Variant = "released_fixed"
    tau: float = 0.6
    weight: float = 1e-4
    beta: float = 0.02
    recurrence_init: float | None = None
    scale_init: ScaleInit | None = None
    estimator: Estimator = "approx_sign"
    kernel_init: Callable = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        self._check(x)
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        paper = self.variant == "paper"
        start = self.recurrence_init
        start = (1e-3 if paper else 0.2) if start is None else start
        recurrence = self.param(
            "recurrence", nn.initializers.constant(start), (self.features,), self.param_dtype
        )
        padding = half_padding(self.kernel_size) if self.padding is None else self.padding
        signs = sign(x.astype(self.dtype), self.estimator)
        if paper:
            density = self.param("density", lambda key: 1 / jnp.abs(self._alpha(key, kernel)))
            y = convolve(signs, sign(kernel, "clip").astype(self.dtype), self.strides, padding)
            return y / density.astype(self.dtype)

        scale = self.param("scale", lambda key: self._alpha(key, kernel))
        alpha = jnp.abs(scale)
        if train and self.has_variable(LAST_GRADIENT, "kernel"):
            mask = density_mask(alpha, kernel, self.tau, self.variant)
            last = self.get_variable(LAST_GRADIENT, "kernel")
            kernel = backtrack(kernel, recurrence, mask, last, self.variant)
        weights = bilinear_binarize(kernel, alpha, self.weight, self.beta)
        return convolve(signs, weights.astype(self.dtype), self.strides, padding)

    def deployed(self, params: Mapping) -> tuple[jax.Array, jax.Array]:
        """Latent weights and scales α [O] of this layer's parameters, for packing.

        Raises:
          UserError: a latent weight of exactly 0, which trains as 0 and has no sign.
        """
        kernel = params["kernel"]
        if self.variant == "paper":
            return kernel, 1 / params["density"]
        if zeros := int(jnp.sum(kernel == 0)):
            raise UserError(f"kernel: needs latent weights other than 0 to pack, got {zeros} zeros")
        return kernel, self.beta * jnp.abs(params["scale"])

    def _scale_init(self) -> str:
        return self.scale_init or ("normal" if self.variant == "released" else "mean_abs")

    def _alpha(self, key, kernel):
        if self._scale_init() == "mean_abs":
            return mean_abs_scale(kernel) / (1.0 if self.variant == "paper" else self.beta)
        return jax.random.normal(key, (self.features,), self.param_dtype)

    def _check(self, x):
        check_images(x)
        check_kind("variant", self.variant, VARIANTS)
        check_kind("scale_init", self._scale_init(), SCALE_INITS)
        check_number("tau", self.tau, Fraction)
        check_number("weight", self.weight, NonNegative)
        check_number("beta", self.beta, Positive)
        if self.recurrence_init is not None:
            check_number("recurrence_init", self.recurrence_init, NonNegative)


def check_kernel(kernel: jax.Array) -> None:
    """Raises UserError where a kernel is not [kh, kw, I, O]."""
    if kernel.ndim != 4:
        raise UserError(f"kernel: needs [kh, kw, I, O], got {kernel.shape}")


def check_positive(name: str, values: jax.Array) -> None:
    """Raises UserError where known values are not all above 0."""
    if not isinstance(values, jax.core.Tracer) and not bool((values > 0).all()):
        raise UserError(f"{name}: needs positive values, got {float(values.min()):g}")


def _rank(values: jax.Array) -> jax.Array:
    """0-based ranks, ascending; of equal values the first is lower."""
    return jnp.argsort(jnp.argsort(values))
