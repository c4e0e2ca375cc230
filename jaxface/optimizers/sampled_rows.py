"""Optimizers that leave alone the rows of a table that a step did not sample.

Methods: sface
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxface.errors import UserError


def sampled_rows(
    inner: optax.GradientTransformation, tables: Any | Callable[[Any], Any] = True
) -> optax.GradientTransformationExtraArgs:
    """`inner`, except that rows which a step did not sample keep their values and their statistics, bit for bit.

    Sampled classes give the rows of all other prototypes a gradient of 0, under which momentum and weight decay still move
    them. Here only sampled rows move, as in version 1 of PartialFC (arXiv:2203.15565), where the optimizer sees the gathered
    rows alone.

    A row (an index of the leading axis) of a table counts as sampled where its gradient has any element other
    than 0, or where `sampled` is true: `update(gradients, state, params, sampled=mask)` with mask [rows] bool for every
    table. Without the mask, a sampled row whose gradient is exactly 0 sits the step out: it misses a step of
    momentum and decay that version 1 would take. This needs every term of the row to underflow in float32: for a softmax a
    logit some 88 below the normalizer for every example of the batch, for SFace an angle some 88 / sharpness radians above
    `inter_angle` (2.3 with the paper's 80 and 1.2) to every example. Gradients smaller than 1.2e-38 are 0 on devices that
    flush subnormal numbers.

    The statistics of a parameter are the leaves of the state of `inner` whose path ends in that of the parameter and whose
    leading axis has its length. Everything else is shared by all rows and advances with every step: schedules, norms of
    `clip_by_global_norm`, and the count by which Adam corrects its bias, so that a row sampled seldom is corrected as if it
    had been sampled always.

    The state is that of `inner`, so that a run can change between `inner` and this. Rows are looked at one by one: where they
    are sharded nothing is communicated. Gradients must be those of the whole batch (averaged over replicas, summed over
    micro-batches), and what comes before this must leave their zeros 0.

    Args:
      inner: the whole optimizer, weight decay and learning rate included: what comes after this would move all rows.
      tables: which parameters are tables: a tree of bool, or a prefix of one, like the parameters, such as
        `{"backbone": False, "prototypes": True}`; or a function from parameters to it. All by default.

    Returns:
      An optax transformation. Its `update` raises UserError for a table without rows, and for a `sampled` of another
      shape than [rows].

    Example:
      >>> import optax
      >>> optimizer = sampled_rows(optax.sgd(1.0, momentum=0.9))
      >>> prototypes, state = jnp.zeros((2, 1)), optimizer.init(jnp.zeros((2, 1)))
      >>> _, state = optimizer.update(jnp.array([[1.0], [1.0]]), state, prototypes)
      >>> updates, _ = optimizer.update(jnp.array([[1.0], [0.0]]), state, prototypes)
      >>> round(float(updates[0, 0]), 2), abs(float(updates[1, 0]))  # the second row does not coast
      (-1.9, 0.0)
    """
    inner = optax.with_extra_args_support(inner)

    def update(gradients, state, params=None, *, sampled: jax.Array | None = None, **extra):
        moving = _moving(gradients, tables(gradients) if callable(tables) else tables, sampled)
        updates, new = inner.update(gradients, state, params, **extra)

        # x + (-0.0) is x, also for x = -0.0.
        def hold(path, update):
            rows = moving[path]
            return update if rows is None else _where(rows, update, jnp.full_like(update, -0.0))

        def keep(path, after, before):
            rows = next((moving[path[i:]] for i in range(len(path) + 1) if path[i:] in moving), None)
            theirs = rows is not None and jnp.shape(after)[:1] == rows.shape
            return _where(rows, after, before) if theirs else after

        updates = jax.tree_util.tree_map_with_path(hold, updates)
        return updates, jax.tree_util.tree_map_with_path(keep, new, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _moving(gradients, tables, sampled: jax.Array | None) -> dict[tuple, jax.Array | None]:
    """Path of a parameter -> [rows] bool, or None where all rows move."""
    flags = jax.tree.map(lambda flag, part: jax.tree.map(lambda _: bool(flag), part), tables, gradients)
    moving = {}
    for (path, gradient), flag in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(flags), strict=True
    ):
        name = jax.tree_util.keystr(path) or "the parameter"
        if not flag:
            moving[path] = None
        elif gradient.ndim == 0:
            raise UserError(f"tables: needs parameters with rows; got the scalar {name}")
        elif sampled is None:
            moving[path] = jnp.any(gradient != 0, axis=tuple(range(1, gradient.ndim)))
        elif jnp.shape(sampled) != gradient.shape[:1]:
            raise UserError(
                f"sampled: needs shape {gradient.shape[:1]}, the rows of {name}; got {jnp.shape(sampled)}"
            )
        else:
            moving[path] = jnp.asarray(sampled, bool)
    return moving


def _where(rows: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """x in these rows, y in the others."""
    return jnp.where(rows.reshape(rows.shape + (1,) * (x.ndim - 1)), x, y)
