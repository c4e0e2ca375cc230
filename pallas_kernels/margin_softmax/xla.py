"""Chunks of classes in a loop of XLA products: the production path of CPUs and of every device without a timed kernel.

A chunk's cosines are all of [B, C] that exists at a time, but for those of the first classes that `reduce` is asked to save
for `gradient`. The gradient of a chunk's prototypes is written in place into the one [C, D] buffer that is returned.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from pallas_kernels import common
from pallas_kernels.margin_softmax import shards
from pallas_kernels.margin_softmax.heads import Head
from pallas_kernels.margin_softmax.sphere import inverse_norms, through_norms

_TILE_ELEMENTS = {"cpu": 1 << 20, "gpu": 1 << 23, "tpu": 1 << 22}


def _chunk(x, prototypes):
    """Classes per chunk: a [B, chunk] tile that stays in the caches."""
    elements = _TILE_ELEMENTS[common.target_device().platform]
    return min(prototypes.shape[0], common.round_up(common.cdiv(elements, x.shape[0]), 128))


def saved_classes(x: jax.Array, prototypes: jax.Array, saved_bytes: int) -> int:
    """How many classes' float32 cosines fit `saved_bytes`: all of them, else whole chunks."""
    fitting = saved_bytes // (4 * x.shape[0])
    if fitting >= prototypes.shape[0]:
        return prototypes.shape[0]
    return fitting - fitting % _chunk(x, prototypes)


def reduce(
    head: Head, x: jax.Array, prototypes: jax.Array, labels: jax.Array, where: jax.Array | None
) -> jax.Array:
    """[B] over the classes other than the target: Σ r cos θ of a one-pass head, else log Σ exp z (-inf over none)."""
    return reduce_and_save(head, x, prototypes, labels, where, saved=0)[0]


def reduce_and_save(
    head: Head,
    x: jax.Array,
    prototypes: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    *,
    saved: int,
) -> tuple[jax.Array, jax.Array]:
    """What `reduce` returns, and the cosines [B, saved] of the first classes; `saved` as `saved_classes` gives it."""
    inverse = inverse_norms(x)

    def step(start, size, carry, *, save=False):
        sums, cosines_of_saved = carry
        w = jax.lax.dynamic_slice_in_dim(prototypes, start, size)
        cosines = _cosines(x, w, inverse, inverse_norms(w))
        if save:
            cosines_of_saved = jax.lax.dynamic_update_slice_in_dim(cosines_of_saved, cosines, start, 1)
        others = ~_is_target(labels, start, size)
        if where is not None:
            others &= jax.lax.dynamic_slice_in_dim(where, start, size)
        if head.one_pass:
            sums += jnp.sum(jnp.where(others, head.gradient(cosines) * cosines, 0.0), axis=1)
            return sums, cosines_of_saved
        logits = jnp.where(others, head.logits(cosines), -jnp.inf)
        peak, total = sums
        raised = jnp.maximum(peak, jnp.max(logits, axis=1))
        # A row that has seen nothing yet keeps peak -inf; shifting by 0 there avoids inf - inf.
        base = jnp.where(raised == -jnp.inf, 0.0, raised)
        total = total * jnp.exp(peak - base) + jnp.sum(jnp.exp(logits - base[:, None]), axis=1)
        return (raised, total), cosines_of_saved

    zero = jnp.zeros(x.shape[:1], jnp.float32)
    carry = zero if head.one_pass else (zero - jnp.inf, zero)
    carry = (carry, jax.lax.empty((x.shape[0], saved), jnp.float32))  # every column is written
    chunk = _chunk(x, prototypes)
    carry = over_chunks(functools.partial(step, save=True), saved, chunk, carry, x)
    sums, cosines = over_chunks(step, prototypes.shape[0], chunk, carry, x, first=saved)
    return sums if head.one_pass else sums[0] + jnp.log(sums[1]), cosines


def gradient(
    head: Head,
    x: jax.Array,
    prototypes: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    scale: jax.Array,
    shift: jax.Array,
    target_gradient: jax.Array,
    saved_cosines: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Both gradients where ∂L/∂cos_ij is target_gradient_i at the target and else scale_i head.gradient(cos_ij, shift_i).

    Args:
      saved_cosines: [B, S] of the first S classes, from `reduce_and_save`; the others' are computed. None: S = 0.

    Returns:
      ([B, D] of x's dtype, [C, D] of the prototypes' dtype, [B] float32: `reduce` of a one-pass head, else 0).
    """
    inverse = inverse_norms(x)
    saved = 0 if saved_cosines is None else saved_cosines.shape[1]

    def step(start, size, carry, *, load=False):
        dx, dw, sums = carry
        w = jax.lax.dynamic_slice_in_dim(prototypes, start, size)
        inverse_w = inverse_norms(w)
        if load:
            cosines = jax.lax.dynamic_slice_in_dim(saved_cosines, start, size, 1)
        else:
            cosines = _cosines(x, w, inverse, inverse_w)
        is_target = _is_target(labels, start, size)
        slope = head.gradient(cosines, shift[:, None])
        if where is not None:
            slope = jnp.where(jax.lax.dynamic_slice_in_dim(where, start, size), slope, 0.0)
        if head.one_pass:
            sums = sums + jnp.sum(jnp.where(is_target, 0.0, slope * cosines), axis=1)
        by_cosine = jnp.where(is_target, target_gradient[:, None], scale[:, None] * slope)
        by_product = (by_cosine * (inverse * inverse_w.T)).astype(x.dtype)
        dx = dx + jnp.dot(by_product, w.astype(x.dtype), preferred_element_type=jnp.float32)
        dw_raw = jnp.dot(by_product.T, x, preferred_element_type=jnp.float32)
        dw_chunk = through_norms(dw_raw, w, inverse_w).astype(dw.dtype)
        # The TPU compiler would keep the whole gradient transposed, as this product leaves it, and copy it after the loop.
        dw_chunk = with_layout_constraint(dw_chunk, Layout((0, 1)))
        return dx, jax.lax.dynamic_update_slice_in_dim(dw, dw_chunk, start, 0), sums

    carry = (
        jnp.zeros(x.shape, jnp.float32),
        jax.lax.empty(prototypes.shape, prototypes.dtype),  # every row is written
        jnp.zeros(x.shape[:1], jnp.float32),
    )
    chunk = _chunk(x, prototypes)
    carry = over_chunks(functools.partial(step, load=True), saved, chunk, carry, x)
    dx, dw, sums = over_chunks(step, prototypes.shape[0], chunk, carry, x, first=saved)
    return through_norms(dx, x, inverse).astype(x.dtype), dw, sums


def over_chunks(
    step: Callable, classes: int, chunk: int, carry: Any, like: jax.Array, *, first: int = 0
) -> Any:
    """`step(start, size, carry)` over the classes from `first` on, in chunks of equal size and one of what they leave.

    The carry varies over the mesh as `like` does.
    """
    full, rest = divmod(classes - first, chunk)
    carry = shards.vary(carry, shards.axes(like))
    if full:
        carry = jax.lax.fori_loop(0, full, lambda i, carry: step(first + i * chunk, chunk, carry), carry)
    return step(first + full * chunk, rest, carry) if rest else carry


def _cosines(x, w, inverse, inverse_w):
    """[B, chunk] float32; the product's operands have the dtype of x."""
    product = jnp.dot(x, w.astype(x.dtype).T, preferred_element_type=jnp.float32)
    return product * (inverse * inverse_w.T)


def _is_target(labels, start, size):
    return labels[:, None] == start + jnp.arange(size, dtype=jnp.int32)
