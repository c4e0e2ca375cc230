"""Binary cross-entropy of some of the classes: those of one task, or those seen so far (iTAML, ARI, arXiv:2208.12967)."""

import jax
import jax.numpy as jnp
import optax

from jaxface import checks
from jaxface.checks import Integers, check_number


def slice_bce_loss(logits: jax.Array, labels: jax.Array, task: int | jax.Array, *, size: int) -> jax.Array:
    """Each class of one task against the rest, on that task's columns alone; the released loss of ARI and iTAML.

        1/c Σ_{k = ct}^{c(t + 1) - 1} BCE(σ(z_k), [y = k])

    No column outside the slice has a gradient, so that the scores of two tasks are never compared: this is what makes one image
    at a time hard to tell among all classes.

    Args:
      logits: [B, C] float.
      labels: [B] integers in [0, C); a label outside the slice is a negative for all of its columns.
      task: t in [0, C / c), static or traced.
      size: c, classes of a task, ≥ 1; static.

    Returns:
      [B] float32.

    Raises:
      UserError: a size that does not divide C, or a task that does not exist.
      ValueError: shapes or types disagree.

    Example:
      >>> round(float(slice_bce_loss(jnp.array([[9.0, 9.0, 2.0, -1.0]]), jnp.array([2]), 1, size=2)[0]), 6)
      0.220095
    """
    labels = checks.scored_labels(logits, labels, name="logits")
    classes = logits.shape[1]
    check_number("size", size, Integers(1, classes))
    if classes % size:
        raise ValueError(f"size: needs a divisor of the {classes} classes, got {size}")
    check_number("task", task, Integers(0, classes // size - 1))
    first = jnp.asarray(task, jnp.int32) * size
    scores = jax.lax.dynamic_slice_in_dim(logits.astype(jnp.float32), first, size, axis=1)
    targets = labels[:, None] == first + jnp.arange(size)
    return optax.sigmoid_binary_cross_entropy(scores, targets).mean(axis=1)


def seen_bce_loss(logits: jax.Array, labels: jax.Array, seen: int | jax.Array) -> jax.Array:
    """Each class seen so far against all others: the joint loss that replay is usually trained with.

        1/n Σ_{k < n} BCE(σ(z_k), [y = k])

    Args:
      logits: [B, C] float. labels: [B] integers in [0, seen).
      seen: n in [1, C], static or traced; columns from there on have no gradient.

    Returns:
      [B] float32.

    Raises:
      UserError: a number of classes that there are not. ValueError: shapes or types disagree.

    Example:
      >>> round(float(seen_bce_loss(jnp.array([[2.0, -1.0, 9.0]]), jnp.array([0]), 2)[0]), 6)
      0.220095
    """
    labels = checks.scored_labels(logits, labels, name="logits")
    classes = logits.shape[1]
    check_number("seen", seen, Integers(1, classes))
    columns = jnp.arange(classes)
    values = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels[:, None] == columns)
    return jnp.sum(jnp.where(columns < seen, values, 0.0), axis=1) / seen
