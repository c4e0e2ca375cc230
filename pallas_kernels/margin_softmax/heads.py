"""The losses: what one cosine adds to a row's loss and to its gradient. Pure jnp, called by every backend on its tiles.

A head splits a row into its target, of which there is one and which is handled as a vector over the batch, and all other
classes, which are seen tile by tile. Over the others a head is either a sum of frozen weights times cosines (`one_pass`:
the gradient does not depend on the rest of the row, so loss and gradients come out of one pass over the classes), or a
log-sum-exp of logits, whose gradient needs the finished row.
"""

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from pallas_kernels.common import KernelError

# arccos(c) = sqrt(1 - c) p(c) on [0, 1]: p fitted for the smallest greatest error of the product, 9e-8 in exact arithmetic.
_ARCCOS = (
    1.5707962513,
    -0.2145910859,
    0.0888358876,
    -0.0491974317,
    0.0277629029,
    -0.0120033845,
    0.0026117165,
)


def arccos(cosines: jax.Array) -> jax.Array:
    """arccos in float32, |error| < 1e-6 rad, by a polynomial: TPU and GPU kernels have none. Beyond ±1 it is that of ±1."""
    size = jnp.abs(cosines)
    value = jnp.full_like(size, _ARCCOS[-1])
    for coefficient in _ARCCOS[-2::-1]:
        value = value * size + coefficient
    value = value * jnp.sqrt(jnp.maximum(1.0 - size, 0.0))
    return jnp.where(cosines < 0.0, math.pi - value, value)


@dataclasses.dataclass(frozen=True)
class SFace:
    """Sigmoid-constrained hypersphere loss (arXiv:2205.12010).

        L_i = -[r_intra(θ_iy)] cos θ_iy + Σ_{j≠y} [r_inter(θ_ij)] cos θ_ij,                  [·] = stop-gradient
        r_intra(θ) = s / (1 + exp(-k (θ - a))),    r_inter(θ) = s / (1 + exp(k (θ - b)))

    Attributes:
      scale: s > 0.
      sharpness: k ≥ 0, per radian.
      intra_angle: a, radians in [0, π]: the pull to the own class fades below it.
      inter_angle: b, radians in [0, π]: the push from other classes fades above it.
    """

    scale: float = 64.0
    sharpness: float = 80.0
    intra_angle: float = 0.87
    inter_angle: float = 1.2

    one_pass: ClassVar[bool] = True

    def __post_init__(self):
        _check("scale", self.scale, 0.0, math.inf, above=True)
        _check("sharpness", self.sharpness, 0.0, math.inf)
        _check("intra_angle", self.intra_angle, 0.0, math.pi)
        _check("inter_angle", self.inter_angle, 0.0, math.pi)

    def target_gradient(self, cosines: jax.Array) -> jax.Array:
        """-r_intra: what the loss of a row changes by per target cosine."""
        return -self.scale * jax.nn.sigmoid(self.sharpness * (arccos(cosines) - self.intra_angle))

    def gradient(self, cosines: jax.Array, shift: jax.Array | None = None) -> jax.Array:
        """r_inter of other classes' cosines, also the weight of each in the loss; `shift` is not used."""
        # exp would overflow at k (π - b); beyond e⁸⁰ the weight is 0 for every purpose.
        exponent = jnp.minimum(self.sharpness * (arccos(cosines) - self.inter_angle), 80.0)
        return self.scale / (1.0 + jnp.exp(exponent))


@dataclasses.dataclass(frozen=True)
class Margin:
    """Softmax cross-entropy over cosines with margins on the target: CosFace, ArcFace and their sum.

        L_i = log Σ_j exp z_ij - z_iy,    z_iy = s (cos(θ_iy + m₂) - m₃),    z_ij = s cos θ_ij for j ≠ y

    Attributes:
      scale: s > 0.
      angular_margin: m₂, radians in [0, π] (ArcFace, arXiv:1801.07698).
      cosine_margin: m₃ in [0, 2] (CosFace, arXiv:1801.09414).
      guard: beyond θ = π - m₂ the target's logit continues as s (cos θ - m₂ sin m₂ - m₃) instead of turning upwards.
        InsightFace's current head has no guard.
      gradient_mode: "exact", or "straight_through": the margin has derivative 1, as in InsightFace's current head.
      filter_above: other classes' cosines above it count as 0, without gradient (noisy labels); None filters nothing.
    """

    scale: float = 64.0
    angular_margin: float = 0.0
    cosine_margin: float = 0.0
    guard: bool = True
    gradient_mode: Literal["exact", "straight_through"] = "exact"
    filter_above: float | None = None

    one_pass: ClassVar[bool] = False

    def __post_init__(self):
        _check("scale", self.scale, 0.0, math.inf, above=True)
        _check("angular_margin", self.angular_margin, 0.0, math.pi)
        _check("cosine_margin", self.cosine_margin, 0.0, 2.0)
        if self.gradient_mode not in ("exact", "straight_through"):
            raise KernelError(
                f"gradient_mode: needs 'exact' or 'straight_through'; got {self.gradient_mode!r}"
            )
        if self.filter_above is not None:
            _check("filter_above", self.filter_above, -1.0, 1.0)

    def target_logits(self, cosines: jax.Array) -> jax.Array:
        """z_iy of the target cosines; JAX differentiates it."""
        # Flooring 1 - c² keeps the derivative finite at c = ±1, where it becomes cos m₂.
        sine = jnp.sqrt(jnp.maximum(1.0 - cosines**2, 1e-7))
        moved = cosines * math.cos(self.angular_margin) - sine * math.sin(self.angular_margin)
        if self.guard:
            beyond = cosines <= -math.cos(self.angular_margin)
            moved = jnp.where(beyond, cosines - self.angular_margin * math.sin(self.angular_margin), moved)
        moved = moved - self.cosine_margin
        if self.gradient_mode == "straight_through":
            moved = cosines + jax.lax.stop_gradient(moved - cosines)
        return self.scale * moved

    def logits(self, cosines: jax.Array) -> jax.Array:
        """z_ij of other classes' cosines."""
        if self.filter_above is not None:
            cosines = jnp.where(cosines > self.filter_above, 0.0, cosines)
        return self.scale * cosines

    def gradient(self, cosines: jax.Array, shift: jax.Array) -> jax.Array:
        """The derivative of log Σ_{j≠y} exp z_ij, which is `shift`, by other classes' cosines."""
        slope = self.scale * jnp.exp(self.logits(cosines) - shift)
        if self.filter_above is not None:
            slope = jnp.where(cosines > self.filter_above, 0.0, slope)
        return slope


Head = SFace | Margin
"""What `margin_softmax` computes: SFace, or a softmax with margins."""


def softmax(scale: float = 64.0) -> Margin:
    """Softmax cross-entropy over scaled cosines, without a margin (NormFace, arXiv:1704.06369)."""
    return Margin(scale=scale)


def cosface(scale: float = 64.0, margin: float = 0.35) -> Margin:
    """CosFace (arXiv:1801.09414): the target's logit is s (cos θ - m)."""
    return Margin(scale=scale, cosine_margin=margin)


def arcface(
    scale: float = 64.0,
    margin: float = 0.5,
    *,
    guard: bool = True,
    gradient_mode: Literal["exact", "straight_through"] = "exact",
) -> Margin:
    """ArcFace (arXiv:1801.07698): the target's logit is s cos(θ + m)."""
    return Margin(scale=scale, angular_margin=margin, guard=guard, gradient_mode=gradient_mode)


def _check(name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    inside = isinstance(value, int | float) and math.isfinite(value) and low <= value <= high
    if not inside or (above and value == low):
        bracket = "(" if above else "["
        raise KernelError(f"{name}: needs a finite number in {bracket}{low:g}, {high:g}]; got {value!r}")
