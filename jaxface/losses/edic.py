"""What bits cost and what a codec is trained on: probabilities of whole numbers under mixtures (arXiv:2002.03370)."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.scipy.special import erfc, log_ndtr

from jaxface.checks import NonNegative, check_number
from jaxface.layers.gdn import lower_bound
from jaxface.metrics.image.ms_ssim import ms_ssim

LEAST_PROBABILITY = 1e-9
"""What a probability counts for at least: 29.9 bits."""
LEAST_SCALE = 0.11
"""Of a Gaussian in a mixture."""
SLOPE = 50.0
"""Bits per unit of y, μ or σ that a gradient may say at most."""
_CEILING = -1e-7
_LOG_ROOT_TAU = 0.5 * math.log(2 * math.pi)


def _check_same(*arrays: jax.Array) -> None:
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(f"logits, mu, sigma: need one shape [..., K], got {sorted(shapes)}")


def _phi(t: jax.Array) -> jax.Array:
    return 0.5 * erfc(-t / math.sqrt(2.0))


def gaussian_bin_prob(y: jax.Array, mu: jax.Array, sigma: jax.Array) -> jax.Array:
    """Mass of a Gaussian in the bin of width 1 around y.

        P = Φ((½ - |y - μ|) / σ) - Φ((-½ - |y - μ|) / σ),   Φ(t) = ½ erfc(-t / √2)

    Folded to the lower tail, where float32 still tells the two apart. With noise U(-½, ½) added to y it is the density of what
    comes out, and at whole numbers the probability of rounding to y.

    Args:
      y, mu: float, of shapes that broadcast.
      sigma: > 0.

    Returns:
      [...] in [0, 1].

    Example:
      >>> round(float(gaussian_bin_prob(jnp.float32(0), jnp.float32(0), jnp.float32(1))), 6)
      0.382925
    """
    v = jnp.abs(y - mu)
    return _phi((0.5 - v) / sigma) - _phi((-0.5 - v) / sigma)


def laplace_bin_prob(y: jax.Array, scale: jax.Array) -> jax.Array:
    """Mass of a zero-mean Laplace distribution in the bin of width 1 around y, as the released scale hyperprior has it.

        P = F(y + ½) - F(y - ½),   F(t) = ½ e^{t/b} for t < 0, 1 - ½ e^{-t/b} otherwise

    Args:
      y: float.
      scale: b > 0.

    Returns:
      [...] in [0, 1].

    Example:
      >>> round(float(laplace_bin_prob(jnp.float32(1), jnp.float32(1))), 4)
      0.1917
    """
    v = jnp.abs(y)
    # At the peak the bin holds both sides; beyond, e^{-(v - ½)/b} - e^{-(v + ½)/b} without a difference near 1.
    inside = 1 - 0.5 * (jnp.exp(-(0.5 + v) / scale) + jnp.exp(-jnp.maximum(0.5 - v, 0.0) / scale))
    outside = 0.5 * jnp.exp(-jnp.maximum(v - 0.5, 0.0) / scale) * -jnp.expm1(-1 / scale)
    return jnp.where(v < 0.5, inside, outside)


def mixture_bin_prob(y: jax.Array, logits: jax.Array, mu: jax.Array, sigma: jax.Array) -> jax.Array:
    """Mass of a mixture of Gaussians in the bin of width 1 around y (arXiv:2002.03370).

        P = Σ_k softmax(logits)_k [Φ((y + ½ - μ_k) / σ_k) - Φ((y - ½ - μ_k) / σ_k)]

    Args:
      y: [...] float.
      logits, mu, sigma: [..., K], σ > 0.

    Returns:
      [...] in [0, 1].

    Raises:
      ValueError: parameters of several shapes.

    Example:
      >>> one = jnp.zeros((1, 1))
      >>> round(float(mixture_bin_prob(jnp.zeros(1), one, one, one + 1)[0]), 6)
      0.382925
    """
    _check_same(logits, mu, sigma)
    return jnp.sum(jax.nn.softmax(logits) * gaussian_bin_prob(y[..., None], mu, sigma), axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _log_bracket(v: jax.Array, sigma: jax.Array, slope: float) -> jax.Array:
    """log[Φ((½ - v)/σ) - Φ((-½ - v)/σ)] for v ≥ 0, with derivatives of at most `slope` nats."""
    upper, lower = log_ndtr((0.5 - v) / sigma), log_ndtr((-0.5 - v) / sigma)
    return upper + jnp.log(-jnp.expm1(jnp.minimum(lower - upper, _CEILING)))


def _log_bracket_forward(v, sigma, slope):
    log = _log_bracket(v, sigma, slope)
    return log, (v, sigma, log)


def _log_bracket_backward(slope, saved, g):
    v, sigma, log = saved
    a, b = (0.5 - v) / sigma, (-0.5 - v) / sigma
    # φ(a) / bracket and φ(b) / bracket, which stay finite where either is 0 in float32.
    at_a = jnp.exp(jnp.minimum(-0.5 * a * a - _LOG_ROOT_TAU - log, 60.0))
    at_b = jnp.exp(jnp.minimum(-0.5 * b * b - _LOG_ROOT_TAU - log, 60.0))
    by_v = jnp.clip((at_b - at_a) / sigma, -slope, slope)
    by_sigma = jnp.clip((b * at_b - a * at_a) / sigma, -slope, slope)
    return g * by_v, g * by_sigma


_log_bracket.defvjp(_log_bracket_forward, _log_bracket_backward)


def mixture_bin_logprob(
    y: jax.Array, logits: jax.Array, mu: jax.Array, sigma: jax.Array, *, slope: float = SLOPE
) -> jax.Array:
    """log P of `mixture_bin_prob`, computed in logarithms: a far symbol keeps its gradient, which the probability form loses.

        log P = logsumexp_k(log softmax(logits)_k + a_k + log(-expm1(b_k - a_k))),
        a_k = log Φ((½ - |y - μ_k|) / σ_k),   b_k = log Φ((-½ - |y - μ_k|) / σ_k)

    The slope of a component by y, μ or σ, which grows with the distance, is limited.

    Args:
      y: [...] float.
      logits, mu, sigma: [..., K], σ > 0.
      slope: the limit, bits per unit, ≥ 0.

    Returns:
      [...] nats, ≤ 0.

    Raises:
      ValueError: parameters of several shapes. UserError: a negative slope.

    Example:
      >>> far = mixture_bin_logprob(jnp.full(1, 9.0), *[jnp.full((1, 1), p) for p in (0.0, 0.0, 0.11)])
      >>> bool(jnp.isfinite(far[0])) and float(far[0]) < -2900
      True
    """
    check_number("slope", slope, NonNegative)
    _check_same(logits, mu, sigma)
    brackets = _log_bracket(jnp.abs(y[..., None] - mu), sigma, slope * math.log(2))
    return jax.nn.logsumexp(jax.nn.log_softmax(logits) + brackets, axis=-1)


def rate_bits(probabilities: jax.Array) -> jax.Array:
    """Bits of all symbols together.

        R = -Σ log2 max(P, 1e-9)

    The bound's gradient is one-sided: what is too improbable is still pushed up.

    Args:
      probabilities: [...] in [0, 1].

    Returns:
      [] float32.

    Example:
      >>> float(rate_bits(jnp.full((4,), 0.25)))
      8.0
    """
    return -jnp.sum(jnp.log2(lower_bound(probabilities, LEAST_PROBABILITY)))


def rd_loss(
    image: jax.Array, decoded: jax.Array, bits: jax.Array, *, weight: float, distortion: str = "mse"
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Rate and distortion, what a codec is trained on (arXiv:2002.03370, equation 1).

        L = λ D + R / (B H W),   D the mean squared error of pixels in [0, 1], or 1 - MS-SSIM

    Args:
      image: [B, H, W, 3] in [0, 1].
      decoded: [B, H, W, 3], not clipped.
      bits: [] R of the whole batch.
      weight: λ ≥ 0; that of pixels in [0, 255] is 65025 times smaller.
      distortion: "mse" or "ms_ssim", which needs sides above 160.

    Returns:
      (loss [], {"bpp", "mse", "distortion"}).

    Raises:
      ValueError: images of two shapes, or another distortion. UserError: a negative weight.

    Example:
      >>> loss, report = rd_loss(jnp.zeros((1, 2, 2, 3)), jnp.full((1, 2, 2, 3), 0.5), jnp.float32(8), weight=4.0)
      >>> float(loss), float(report["bpp"])
      (3.0, 2.0)
    """
    check_number("weight", weight, NonNegative)
    if image.shape != decoded.shape or image.ndim != 4:
        raise ValueError(f"decoded: needs [B, H, W, C] as the image, got {decoded.shape} and {image.shape}")
    if distortion not in ("mse", "ms_ssim"):
        raise ValueError(f"distortion: needs 'mse' or 'ms_ssim', got {distortion!r}")
    mse = jnp.mean(jnp.square(decoded - image))
    value = mse if distortion == "mse" else 1 - ms_ssim(image, decoded).mean()
    bpp = bits / math.prod(image.shape[:3])
    return weight * value + bpp, {"bpp": bpp, "mse": mse, "distortion": value}
