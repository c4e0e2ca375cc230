"""DCP-NAS: gradients of an architecture that pull a binary network's search along a real one's (arXiv:2306.15390).

The Parent is a real supernet with architecture α [E, M], the Child the same one with binary weights and activations and α̂. With
p the classes that the Parent sees and p̂ those of the Child,

    f(α) = mean_b log p_y,   t = ∂f/∂α                    G(α̂) = mean_b Σ_n p_n log(p̂_n / p_n) ≤ 0,   g = ∂G/∂α̂
    L(α̂) = -G + λ D(g, t) + μ L_R,   D = ‖g - t‖²         ∂L/∂α̂ = -g + λ H_G ∂D/∂g,   H_G = ∂²G/∂α̂²

Functions here take `logits_fn`, α [E, M] -> logits [B, N], with everything else inside. The printed form of t, Σ_n ∂p_n/∂α, is 0
for every softmax; the gradient of f is what guides. The Hessian is replaced by its Gauss-Newton part, -F:

    F = mean_b Jᵀ (diag(p̂) - p̂ p̂ᵀ) J,   J = ∂z/∂α̂

Near the optimum of G the term shifts the minimum of L by -2λ (I + 2λF)⁻¹ t: matching gradients asks the Child to keep a residual
gradient of t. As printed, with +F, it shifts along t, and enlarges D.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxface import axes
from jaxface.checks import NonNegative, check_number
from jaxface.errors import UserError

Curvature = Literal["ggn", "exact", "printed"]
"""What stands for H_G: -F, the Hessian itself, or +F as the paper has it."""
Distance = Literal["frobenius", "l1", "cosine"]
"""D of two gradients: ‖g - t‖², Σ |g - t|, or 1 - cos(g, t)."""
LogitsFunction = Callable[[jax.Array], jax.Array]


def parent_performance(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """f = mean_b log p_y, the negative cross-entropy.

    Args:
      logits: [B, N] float. labels: [B] int in [0, N).

    Returns:
      [] ≤ 0.

    Example:
      >>> round(float(parent_performance(jnp.zeros((2, 4)), jnp.array([0, 3]))), 4)
      -1.3863
    """
    rows = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return rows.mean()


def child_performance(logits: jax.Array, parent_probabilities: jax.Array) -> jax.Array:
    """G = -mean_b KL(p ‖ p̂), 0 where the Child sees the same classes.

    Args:
      logits: [B, N] of the Child.
      parent_probabilities: [B, N], rows that sum to 1; constants.

    Returns:
      [] ≤ 0.

    Raises:
      UserError: probabilities that are known and do not sum to 1, or of another shape.

    Example:
      >>> logits = jnp.array([[0.3, 0.0, -1.0]])
      >>> float(child_performance(logits, jax.nn.softmax(logits)))
      0.0
    """
    check_probabilities(parent_probabilities, logits.shape)
    p = jax.lax.stop_gradient(parent_probabilities)
    logs = jax.nn.log_softmax(logits)
    entropy = jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0), axis=-1)
    return jnp.mean(jnp.sum(p * logs, axis=-1) - entropy)


def parent_tangent(logits_fn: LogitsFunction, alpha: jax.Array, labels: jax.Array) -> jax.Array:
    """t = ∂f/∂α, the direction in which the Parent's architecture improves; a constant.

    Args:
      logits_fn: of the Parent, on the batch on which g is taken.
      alpha: [E, M].
      labels: [B] int.

    Returns:
      [E, M].

    Example:
      >>> tangent = parent_tangent(lambda a: a, jnp.zeros((1, 4)), jnp.array([1]))  # one image, α its logits
      >>> tangent.tolist()
      [[-0.25, 0.75, -0.25, -0.25]]
    """
    gradient = jax.grad(lambda a: parent_performance(logits_fn(a), labels))(alpha)
    return jax.lax.stop_gradient(axes.mean(gradient))


def ggn_vector_product(logits_fn: LogitsFunction, alpha: jax.Array, vector: jax.Array) -> jax.Array:
    """F v of the mean over the batch, by one forward and one reverse derivative; F is never made.

        F v = (1/B) Σ_b Jᵀ (p̂ ∘ u - p̂ ⟨p̂, u⟩),   u = J v

    Args:
      logits_fn: α -> [B, N]; differentiated in forward mode too.
      alpha: [E, M], or any shape.
      vector: v, of alpha's shape.

    Returns:
      F v, of alpha's shape; ⟨v, F v⟩ ≥ 0.

    Example:
      >>> jacobian = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])
      >>> product = ggn_vector_product(lambda a: (jacobian @ a)[None], jnp.zeros(2), jnp.array([1.0, 0.0]))
      >>> [round(float(x), 4) for x in product]
      [0.2222, -0.3333]
    """
    logits, change = jax.jvp(logits_fn, (alpha,), (vector,))
    _, pullback = jax.vjp(logits_fn, alpha)
    return pullback(_fisher_of_logits(logits, change))[0]


def _fisher_of_logits(logits: jax.Array, change: jax.Array) -> jax.Array:
    p = jax.nn.softmax(logits)
    return (p * change - p * jnp.sum(p * change, axis=-1, keepdims=True)) / len(logits)


def exact_hessian_vector_product(
    function: Callable[[jax.Array], jax.Array], alpha: jax.Array, vector: jax.Array
) -> jax.Array:
    """H v of a scalar function, as the forward derivative of its gradient.

    Args:
      function: α -> scalar.
      alpha, vector: of one shape.

    Returns:
      H v.

    Example:
      >>> exact_hessian_vector_product(lambda a: jnp.sum(a**3), jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0])).tolist()
      [6.0, 12.0]
    """
    return jax.jvp(jax.grad(function), (alpha,), (vector,))[1]


def discrepancy(gradient: jax.Array, tangent: jax.Array, distance: Distance = "frobenius") -> jax.Array:
    """D of the Child's architecture gradient and the Parent's.

    Args:
      gradient: g. tangent: t, of g's shape.
      distance: which.

    Returns:
      [] ≥ 0.

    Raises:
      UserError: an unknown distance, or two shapes.

    Example:
      >>> float(discrepancy(jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 4.0]])))
      25.0
    """
    _check_kind("distance", distance, Distance)
    if gradient.shape != tangent.shape:
        raise UserError(f"tangent: needs the gradient's shape {gradient.shape}, got {tangent.shape}")
    if distance == "frobenius":
        return jnp.sum(jnp.square(gradient - tangent))
    if distance == "l1":
        return jnp.sum(jnp.abs(gradient - tangent))
    lengths = jnp.sqrt(jnp.sum(gradient**2) * jnp.sum(tangent**2) + jnp.finfo(gradient.dtype).tiny)
    return 1 - jnp.sum(gradient * tangent) / lengths


def dcp_arch_gradient(
    gradient: jax.Array, product: jax.Array, strength: jax.Array | float, curvature: Curvature = "ggn"
) -> jax.Array:
    """∂L/∂α̂ of L = -G + λD.

        exact     -g + λ H_G ∂D/∂g       ggn     -g - λ F ∂D/∂g       printed     -g + λ F ∂D/∂g

    For the squared norm ∂D/∂g = 2 (g - t).

    Args:
      gradient: g [E, M].
      product: H_G or F times ∂D/∂g.
      strength: λ ≥ 0.
      curvature: which of the three.

    Returns:
      [E, M].

    Raises:
      UserError: an unknown curvature, or a negative λ.

    Example:
      >>> g, product = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]])
      >>> [dcp_arch_gradient(g, product, 0.5, kind).tolist() for kind in ("ggn", "printed")]
      [[[-1.0, -1.0]], [[-1.0, 1.0]]]
    """
    _check_kind("curvature", curvature, Curvature)
    check_number("strength", strength, NonNegative)
    return -gradient + strength * (product if curvature != "ggn" else -product)


class ArchitectureGradient(NamedTuple):
    """What a Child's architecture is moved by, and its parts.

    Attributes:
      total: ∂L/∂α̂ [E, M].
      gradient: g.
      tangent_term: λ times curvature times ∂D/∂g, `total` + g.
      discrepancy: D.
      strength: λ.
    """

    total: jax.Array
    gradient: jax.Array
    tangent_term: jax.Array
    discrepancy: jax.Array
    strength: jax.Array

    @property
    def ratio(self) -> jax.Array:
        """‖tangent term‖ / ‖g‖."""
        return _norm(self.tangent_term) / jnp.maximum(_norm(self.gradient), _TINY)


_TINY = 1e-12
_STRONGEST = 1e6


def child_arch_gradient(
    logits_fn: LogitsFunction,
    alpha: jax.Array,
    parent_probabilities: jax.Array,
    tangent: jax.Array,
    *,
    strength: jax.Array | float = 5e-3,
    ratio: jax.Array | float | None = None,
    curvature: Curvature = "ggn",
    distance: Distance = "frobenius",
) -> ArchitectureGradient:
    """The gradient that moves the Child's architecture, on one batch.

    Args:
      logits_fn: of the Child.
      alpha: α̂ [E, M].
      parent_probabilities: [B, N].
      tangent: t [E, M], of the same batch.
      strength: λ ≥ 0; of no effect where there is a ratio.
      ratio: ‖tangent term‖ / ‖g‖ that λ is set for, anew in every call; 0 leaves the term out.
      curvature: what stands for the Hessian.
      distance: D.

    Returns:
      The gradient and its parts; constants.

    Raises:
      UserError: α̂ that is not [E, M], a tangent of another shape, an unknown curvature or distance.

    Example:
      >>> alpha, p = jnp.zeros((1, 2)), jnp.array([[0.75, 0.25]])
      >>> parts = child_arch_gradient(lambda a: a, alpha, p, jnp.zeros((1, 2)), ratio=0.5)
      >>> parts.gradient.tolist(), round(float(parts.ratio), 3)
      ([[0.25, -0.25]], 0.5)
    """
    if alpha.ndim != 2:
        raise UserError(f"alpha: needs [E, M], a row for each edge, got {alpha.shape}")
    _check_kind("curvature", curvature, Curvature)
    logits, pullback = jax.vjp(logits_fn, alpha)
    p = jax.lax.stop_gradient(parent_probabilities)
    gradient = axes.mean(pullback((p - jax.nn.softmax(logits)) / len(logits))[0])
    distance_of = lambda g: discrepancy(g, tangent, distance)  # noqa: E731
    value, direction = jax.value_and_grad(distance_of)(gradient)
    if curvature == "exact":
        product = exact_hessian_vector_product(lambda a: child_performance(logits_fn(a), p), alpha, direction)
    else:
        _, change = jax.jvp(logits_fn, (alpha,), (direction,))
        product = pullback(_fisher_of_logits(logits, change))[0]
    product = axes.mean(product)
    if ratio is not None:
        strength = jnp.minimum(ratio * _norm(gradient) / jnp.maximum(_norm(product), _TINY), _STRONGEST)
    total = dcp_arch_gradient(gradient, product, strength, curvature)
    parts = ArchitectureGradient(total, gradient, total + gradient, value, jnp.asarray(strength))
    return jax.lax.stop_gradient(parts)


def reconstruction_loss(
    kernels: Mapping[str, jax.Array], scales: Mapping[str, jax.Array], *, mean: bool = False
) -> jax.Array:
    """L_R = Σ ‖w - β∘sgn(w)‖², over layers, the signs being constants.

    By w its gradient is 2 (w - β sgn w): with the weight μ = 0.2 of the paper about a hundred times the task's, so that no sign
    ever turns. The released layers have μ = 5e-5.

    Args:
      kernels: name -> latent weights [..., O].
      scales: name -> β [O] > 0, of the same names.
      mean: over the weights instead of the sum.

    Returns:
      [] ≥ 0.

    Example:
      >>> float(reconstruction_loss({"a": jnp.array([[0.5], [-1.0]])}, {"a": jnp.array([0.5])}))
      0.25
    """
    if kernels.keys() != scales.keys():
        raise UserError(f"scales: needs those of {sorted(kernels)}, got {sorted(scales)}")
    total, count = jnp.zeros(()), 0
    for name, kernel in kernels.items():
        signs = jnp.where(jax.lax.stop_gradient(kernel) >= 0, 1, -1).astype(kernel.dtype)
        total, count = total + jnp.sum(jnp.square(kernel - scales[name] * signs)), count + kernel.size
    return total / max(count, 1) if mean else total


def check_probabilities(probabilities: jax.Array, shape: tuple[int, ...]) -> None:
    """Raises UserError where probabilities have another shape than [B, N], or are known and do not sum to 1."""
    if probabilities.shape != shape:
        raise UserError(f"parent_probabilities: needs the logits' shape {shape}, got {probabilities.shape}")
    if isinstance(probabilities, jax.core.Tracer):
        return
    error = float(jnp.abs(probabilities.sum(-1) - 1).max())
    if not error < 1e-3 or bool((probabilities < 0).any()):
        raise UserError(
            f"parent_probabilities: needs rows of probabilities that sum to 1, got one off by {error:.3g}"
        )


def _check_kind(name: str, value: str, kinds) -> None:
    if value not in get_args(kinds):
        raise UserError(f"{name}: needs one of {', '.join(get_args(kinds))}, got {value!r}")


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x)))
