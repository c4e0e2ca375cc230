"""How the weights that several tasks want become one set of weights (ARI, arXiv:2208.12967)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxface.checks import AtLeast, Integers, NonNegative, check_number

Fusion = Literal["ari", "uniform", "last"]
"""Weights that grow with how far a task moved a tensor; the mean (iTAML, arXiv:2003.11652); the last task alone."""
Distance = Literal["sum", "relative"]
"""L1 distance of a tensor, or that divided by its mean over the tasks, which does not depend on size and rate."""


def fusion_weights(
    thetas: Any,
    base: Any,
    present: jax.Array,
    *,
    kind: Fusion = "ari",
    distance: Distance = "sum",
    floor: float = 0.85,
) -> Any:
    """How much each task counts for each parameter tensor.

        d_t = Σ |θ_t - q|;    w_t = (d_t² + floor) / Σ_t (d_t² + floor)          over the tasks that are present

    With "relative" d_t is divided by its mean over the tasks first (design). "uniform" has w_t = 1 / tasks and "last" 1 for the
    last task that is present: the published implementation of both ARI and iTAML, whose task copies are references to one
    storage, computes "last" whatever its weights say. Where all distances and the floor are 0, weights are uniform.

    Args:
      thetas: parameters with a leading axis [T, …] of tasks.
      base: q, those before any inner step.
      present: [T] bool, tasks with examples in the batch.
      kind, distance: as above.
      floor: added to d², ≥ 0; 0.85 is published, of sums.

    Returns:
      The same tree of [T] float32, each summing to 1; 0 for a task that is not present.

    Raises:
      UserError: a negative floor. ValueError: an unknown kind or distance.

    Example:
      >>> base, thetas = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([[1.1, 2.0], [0.9, 2.3]])}
      >>> weights = fusion_weights(thetas, base, jnp.array([True, True]))["w"]
      >>> [round(float(w), 4) for w in weights]
      [0.4599, 0.5401]
    """
    check_number("floor", floor, NonNegative)
    if kind not in ("ari", "uniform", "last") or distance not in ("sum", "relative"):
        raise ValueError(
            f"kind, distance: need 'ari', 'uniform' or 'last' and 'sum' or 'relative', got {kind!r}, {distance!r}"
        )
    present = jnp.asarray(present, bool)
    count = jnp.maximum(present.sum(), 1)
    uniform = present / count
    last = jnp.arange(len(present)) == len(present) - 1 - jnp.argmax(present[::-1])

    def weigh(theta, q):
        if kind == "uniform":
            return uniform
        if kind == "last":
            return (last & present).astype(jnp.float32)
        moved = jnp.abs(theta.astype(jnp.float32) - q.astype(jnp.float32)).reshape(len(theta), -1).sum(axis=1)
        moved = jnp.where(present, moved, 0.0)
        if distance == "relative":
            moved = moved / jnp.maximum(moved.sum() / count, jnp.finfo(jnp.float32).tiny)
        pull = jnp.where(present, jnp.square(moved) + floor, 0.0)
        total = pull.sum()
        return jnp.where(total > 0, pull / jnp.where(total > 0, total, 1.0), uniform)

    return jax.tree.map(weigh, thetas, base)


def fuse_tasks(thetas: Any, base: Any, weights: Any, alpha: float | jax.Array) -> Any:
    """The tasks' weights as one, and how far to go there.

        θ <- α Σ_t w_t θ_t + (1 - α) q

    Args:
      thetas: [T, …] parameters. base: q. weights: tree of [T] (`fusion_weights`).
      alpha: α in [0, 1] (`fusion_rate`).

    Example:
      >>> base, thetas = jnp.array([1.0, 2.0]), jnp.array([[1.1, 2.0], [0.9, 2.3]])
      >>> [round(float(w), 4) for w in fuse_tasks(thetas, base, jnp.array([0.5, 0.5]), 1.0)]
      [1.0, 2.15]
    """

    def fuse(theta, q, w):
        mean = jnp.tensordot(w, theta.astype(jnp.float32), axes=1)
        return (alpha * mean + (1 - alpha) * q.astype(jnp.float32)).astype(q.dtype)

    return jax.tree.map(fuse, thetas, base, weights)


def fusion_rate(session: int | jax.Array, tasks: int, *, beta: float = 1.0) -> jax.Array:
    """How far a session moves towards the fused weights: all the way in the first, less in later ones.

        α = exp(-β s / T)

    Args:
      session: s in [0, T), static or traced. tasks: T ≥ 1. beta: β ≥ 0.

    Raises:
      UserError: a number out of its range.

    Example:
      >>> round(float(fusion_rate(9, 10)), 4), round(float(fusion_rate(4, 5, beta=0.5)), 4)
      (0.4066, 0.6703)
    """
    check_number("tasks", tasks, AtLeast(1))
    check_number("session", session, Integers(0, tasks - 1))
    check_number("beta", beta, NonNegative)
    return jnp.exp(-beta * jnp.asarray(session, jnp.float32) / tasks)
