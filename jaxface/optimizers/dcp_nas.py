"""DCP-NAS: the decoupled step of an architecture, and CP-NAS's choice by accuracies (arXiv:2306.15390, 2005.00057).

Weights and architecture depend on each other, and the factor ∂w/∂α cannot be computed. A learned ψ [E] ≥ 0, one number per edge,
takes its place: after a step of α the columns of the operations whose weights are dense are corrected,

    α̃ = α' + η ψ∘α,   gate_m = [rank R_m > ⌊ε M⌋],   ∂L/∂ψ_e = Σ_m gate_m η α_em ∂L/∂α̃_em

where R_m is the squared norm of all weights of operation m in the supernet.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxface.checks import NonNegative, OpenFraction, Positive, check_number
from jaxface.errors import UserError

GateNorm = Literal["mean", "sum"]
"""R of an operation: the mean square of its weights, or their sum of squares, which is larger the more weights there are."""


def operation_norms(squares: jax.Array, counts: jax.Array, norm: GateNorm = "mean") -> jax.Array:
    """R [M] of operations; 0 of those without weights.

    Args:
      squares: [M], Σ w² of an operation's weights over the supernet.
      counts: [M], how many there are.
      norm: mean or sum.

    Raises:
      UserError: an unknown norm.

    Example:
      >>> operation_norms(jnp.array([0.0, 2.0]), jnp.array([0, 4])).tolist()
      [0.0, 0.5]
    """
    if norm not in get_args(GateNorm):
        raise UserError(f"gate_norm: needs one of {', '.join(get_args(GateNorm))}, got {norm!r}")
    return squares / jnp.maximum(counts, 1) if norm == "mean" else squares


def density_gate(norms: jax.Array, eps: float = 0.75) -> jax.Array:
    """gate_m = [rank of R_m > ⌊ε M⌋], ranks 1..M ascending; of equal values the first is lower.

    With M = 8 of which four operations have no weights, ε = 0.5 opens the other four whatever their weights are; 0.75 opens the
    two densest.

    Args:
      norms: [M] ≥ 0.
      eps: ε in (0, 1), static.

    Returns:
      bool [M].

    Raises:
      UserError: ε outside (0, 1).

    Example:
      >>> density_gate(jnp.array([1.5, 0.2, 0.9]), 0.5).tolist()
      [True, False, True]
    """
    check_number("eps", eps, OpenFraction)
    ranks = jnp.argsort(jnp.argsort(norms)) + 1
    return ranks > int(eps * len(norms))


class Decoupled(NamedTuple):
    """α̃ [E, M] and the gate [M]."""

    alpha: jax.Array
    gate: jax.Array


def decoupled_step(
    alpha_new: jax.Array,
    alpha_old: jax.Array,
    psi: jax.Array,
    norms: jax.Array,
    *,
    eta: jax.Array | float = 1.0,
    eps: float = 0.75,
) -> Decoupled:
    """α̃ = α' + η ψ∘α in the columns that the gate opens, α' in the others.

    With η = η₁ η₂ as printed, 3e-4 · 0.025, ψ stays below 1e-8 and nothing is corrected; η = 1 absorbs it in ψ. A row grows by
    1 + ψ in every step, so ψ must be small.

    Args:
      alpha_new: α' [E, M], after the step.
      alpha_old: α, before it.
      psi: ψ [E] ≥ 0.
      norms: R [M].
      eta: η > 0.
      eps: of `density_gate`.

    Raises:
      UserError: architectures that are not [E, M], a ψ that is not [E], norms that are not [M], or a number out of its range.

    Example:
      >>> old, new = jnp.array([[0.1, 0.2]]), jnp.array([[0.2, 0.2]])
      >>> decoupled_step(new, old, jnp.array([1.0]), jnp.array([0.0, 1.0]), eps=0.5).alpha.round(3).tolist()
      [[0.20000000298023224, 0.4000000059604645]]
    """
    if alpha_new.ndim != 2 or alpha_new.shape != alpha_old.shape:
        raise UserError(f"alpha_new: needs [E, M] as alpha_old, got {alpha_new.shape} and {alpha_old.shape}")
    edges, operations = alpha_new.shape
    if psi.shape != (edges,):
        raise UserError(f"psi: needs one number for each of the {edges} edges, got {psi.shape}")
    if norms.shape != (operations,):
        raise UserError(f"norms: needs one number for each of the {operations} operations, got {norms.shape}")
    check_number("eta", eta, Positive)
    gate = density_gate(norms, eps)
    return Decoupled(jnp.where(gate, alpha_new + eta * psi[:, None] * alpha_old, alpha_new), gate)


def psi_gradient(
    gradient: jax.Array, alpha_old: jax.Array, gate: jax.Array, eta: jax.Array | float = 1.0
) -> jax.Array:
    """∂L/∂ψ [E] = Σ_m gate_m η α_em ∂L/∂α̃_em.

    Args:
      gradient: ∂L/∂α̃ [E, M].
      alpha_old: α [E, M] of the step that made α̃, a constant.
      gate: [M] of that step.
      eta: η.

    Example:
      >>> psi_gradient(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]]), jnp.array([False, True])).tolist()
      [8.0]
    """
    return eta * jnp.sum(jnp.where(gate, alpha_old * gradient, 0.0), axis=1)


def bounded_psi(psi: jax.Array, *, reflect: bool = False, limit: float | None = None) -> jax.Array:
    """ψ kept at 0 or above: max(0, ψ), or |ψ| as printed, which turns a step of either sign from 0 into growth.

    Args:
      psi: [E].
      reflect: |ψ|.
      limit: largest ψ, > 0; none unless given.
    """
    psi = jnp.abs(psi) if reflect else jnp.maximum(psi, 0.0)
    return psi if limit is None else jnp.minimum(psi, limit)


def psi_update(
    psi: jax.Array,
    gradient: jax.Array,
    rate: float = 1e-3,
    *,
    reflect: bool = False,
    limit: float | None = None,
) -> jax.Array:
    """A plain gradient step of ψ, kept at 0 or above (`bounded_psi`).

    Args:
      psi: [E] ≥ 0.
      gradient: ∂L/∂ψ [E].
      rate: ≥ 0.
      reflect, limit: as there.

    Example:
      >>> psi_update(jnp.array([0.1]), jnp.array([1.0]), 0.3).tolist()
      [0.0]
      >>> [round(float(x), 3) for x in psi_update(jnp.array([0.1]), jnp.array([1.0]), 0.3, reflect=True)]
      [0.2]
    """
    check_number("rate", rate, NonNegative)
    return bounded_psi(psi - rate * gradient, reflect=reflect, limit=limit)


def cp_indicator(
    parent_accuracies: jax.Array,
    child_accuracies: jax.Array,
    beta_p: float = 2.0,
    *,
    where: jax.Array | None = None,
) -> jax.Array:
    """CP-NAS's score of operations from accuracies of architectures that have them (arXiv:2005.00057).

        z_k = β_P (A_P,k - A_C,k) + A_C,k,   e = softmax_k z

    Args:
      parent_accuracies, child_accuracies: [..., K], means over the samples.
      beta_p: β_P ≥ 0. The order of operations depends on it.
      where: [..., K], the operations that take part; all unless given.

    Returns:
      e [..., K], which sums to 1.

    Example:
      >>> e = cp_indicator(jnp.array([0.9, 0.8, 0.7]), jnp.array([0.6, 0.65, 0.3]), 0.0)
      >>> [round(float(x), 4) for x in e]
      [0.3582, 0.3765, 0.2653]
    """
    check_number("beta_p", beta_p, NonNegative)
    z = beta_p * (parent_accuracies - child_accuracies) + child_accuracies
    return jax.nn.softmax(z if where is None else jnp.where(where, z, -jnp.inf), axis=-1)


def sample_without_replacement(key: jax.Array, alive: jax.Array) -> jax.Array:
    """For every edge its live operations in a random order: column j is the j-th architecture of a round.

    Args:
      key: of the round.
      alive: bool [E, M], as many in every row.

    Returns:
      int32 [E, M]: the first K columns are permutations of the live operations, the rest is of the others.

    Example:
      >>> order = sample_without_replacement(jax.random.key(0), jnp.array([[True, False, True]]))
      >>> sorted(order[0, :2].tolist())
      [0, 2]
    """
    draws = jax.random.uniform(key, alive.shape)
    return jnp.argsort(jnp.where(alive, draws, 2.0), axis=1).astype(jnp.int32)
