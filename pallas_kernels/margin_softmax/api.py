"""Margin losses of embeddings against class prototypes, without their [B, C] matrix of cosines."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import common
from pallas_kernels.common import Implementation, KernelError
from pallas_kernels.margin_softmax import gpu, shards, tpu, xla
from pallas_kernels.margin_softmax.heads import Head
from pallas_kernels.margin_softmax.sphere import inverse_norms

SAVED_BYTES = 1 << 30
"""Most bytes of cosines that a `Margin` saves on a CPU unless told otherwise."""


class SFaceTerms(NamedTuple):
    """What makes up an SFace loss; each [B] float32, without gradient, of all shards."""

    losses: jax.Array  # intra + inter
    target_cosines: jax.Array  # cos θ_iy, 0 for a label on no shard
    intra: jax.Array  # -r_intra(θ_iy) cos θ_iy
    inter: jax.Array  # Σ_{j≠y} r_inter(θ_ij) cos θ_ij


class MarginTerms(NamedTuple):
    """What makes up a margin softmax loss; each [B] float32, without gradient, of all shards."""

    losses: jax.Array  # lse - z_iy, 0 for a label on no shard
    target_cosines: jax.Array  # cos θ_iy, before the margin; 0 for a label on no shard
    lse: jax.Array  # log Σ_j exp z_ij, the target with its margin


def margin_softmax(
    embeddings: jax.Array,
    prototypes: jax.Array,
    labels: jax.Array,
    head: Head,
    *,
    weights: jax.Array | None = None,
    classes: jax.Array | None = None,
    where: jax.Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    saved_bytes: int | None = None,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, SFaceTerms | MarginTerms]:
    """Margin loss over cosines, in memory O(B D + C D) (PartialFC, arXiv:2203.15565; SFace, arXiv:2205.12010).

        loss = Σ_i w_i L_i(x̂_i · Ŵ_1, …, x̂_i · Ŵ_C),        x̂_i = x_i / ‖x_i‖,  Ŵ_j = W_j / ‖W_j‖

    with L of `head`. Chunks or blocks of [B, C] exist in turn. For SFace the loss and both gradients come out of one pass
    over the classes, for a `Margin` out of two, of which the second recomputes the cosines that `saved_bytes` has not let the
    first one save. Derivatives of first order, in reverse mode, by `embeddings`, `prototypes` and `weights`.

    The products take operands of the embeddings' dtype and accumulate in float32 ("pallas_gpu" and "pallas_tpu" round
    float32 operands to bfloat16); norms, arccos, sigmoid, exp and the loss are float32.

    Args:
      embeddings: [B, D] float32 or bfloat16, any norms; a zero row has cosines 0.
      prototypes: [C, D] float32 or bfloat16, any norms.
      labels: [B] int, in [0, C). -1: the target is on another shard (with `axis_name`); where it is on none, SFace
        counts every class as another one, and a `Margin` gives the row loss 0 and no gradient. Where the values are not known,
        anything else gives NaN.
      head: `SFace(...)`, `softmax(...)`, `cosface(...)`, `arcface(...)` or `Margin(...)`.
      weights: [B] float32 w_i, by default 1/B.
      classes: [S] int, distinct, in [0, C): negative sampling. Only these prototypes take part, labels are positions in
        `classes`, and all other prototypes have gradient 0.
      where: [C] bool, or [S] with `classes`: False leaves a class out of the sum over the others, with gradient 0 unless it
        is the target of a row. For a shard padded to the size of its neighbors, and for unused places in `classes`.
      axis_name: mesh axis or axes over which the prototypes are sharded, inside `jax.shard_map`. Embeddings and weights are then
        those of the whole batch on every shard (replicated or gathered), labels, `classes` and `where` the shard's own;
        partial sums are combined over the axis. Gradients follow the rules of `shard_map`, inside and outside of it: under
        `check_vma=True` a replicated argument receives the sum over the shards, a varying one its shard's part; under
        `check_vma=False` `jax.grad` inside the mapped function gives the shard's part times the size of the axis, as for
        any `psum`, and `jax.grad` outside gives the gradient.
      saved_bytes: ≥ 0, bytes of float32 cosines that a `Margin` may hold from the loss to its gradient ("xla" only): 4 B C
        hold them all, and one product over the classes in four is saved. None: on a CPU what the prototypes take, at most
        `SAVED_BYTES` = 1 GiB; elsewhere 0, with which no more than a chunk of [B, C] ever exists.
      implementation: None picks; else "xla", "pallas_gpu" (Hopper), "pallas_tpu", or one of their interpreters.

    Returns:
      (loss, terms): float32 scalar, the same on every shard, and what it is made of, see `SFaceTerms`, `MarginTerms`.

    Raises:
      KernelError: a wrong shape, dtype or head, an empty batch, negative `saved_bytes`, (where the values are known) labels
        or `classes` out of range, or an implementation that this device cannot run.
    """
    _check(embeddings, prototypes, labels, head, weights, classes, where, saved_bytes)
    batch = embeddings.shape[0]
    # Types that may be too narrow for the number of classes are gone from here on.
    labels = jnp.asarray(labels, jnp.int32)
    if weights is None:
        weights = jnp.full((batch,), 1.0 / batch, jnp.float32)
    weights = jnp.asarray(weights, jnp.float32)
    if classes is not None:
        prototypes = jnp.take(prototypes, jnp.asarray(classes, jnp.int32), axis=0, mode="clip")
    names = () if axis_name is None else (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    # Weights that were gathered over an axis are the same all over it, which their type cannot say.
    if gathered := tuple(name for name in names if name in shards.axes(weights)):
        weights = jax.lax.pmean(weights, gathered)
    arrays = (embeddings, prototypes, labels, where, weights)
    over = shards.axes(*(array for array in arrays if array is not None)) | set(names)
    # From here on everything is local to a shard. JAX sums the gradients of what was replicated, as it knows where.
    arrays = shards.vary(arrays, over)
    implementation = _choose(implementation, head, embeddings.dtype, batch, *prototypes.shape)
    plan = Plan(head, implementation, _saved_classes(implementation, embeddings, prototypes, saved_bytes))
    loss, terms = (_sface if head.one_pass else _margin)(plan, names, *arrays)
    return loss, jax.lax.stop_gradient(terms)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is static in a call."""

    head: Head
    implementation: Implementation
    saved: int = 0  # classes whose cosines the loss saves for the gradient

    def reduce(self, *arrays: jax.Array) -> jax.Array:
        """As `xla.reduce`."""
        return self._backend("reduce")(self.head, *arrays)

    def reduce_and_save(self, *arrays: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """As `xla.reduce_and_save`; None where nothing is saved."""
        if not self.saved:
            return self.reduce(*arrays), None
        return xla.reduce_and_save(self.head, *arrays, saved=self.saved)

    def gradient(self, *arrays: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """As `xla.gradient`."""
        return self._backend("gradient")(self.head, *arrays)

    def _backend(self, name: str) -> Callable:
        if self.implementation == "xla":
            return getattr(xla, name)
        kernels = gpu if self.implementation.startswith("pallas_gpu") else tpu
        return functools.partial(getattr(kernels, name), interpret=common.interpret(self.implementation))


def _choose(
    implementation: str | None, head: Head, dtype, batch: int, classes: int, features: int
) -> Implementation:
    obstacles = {
        "pallas_gpu": gpu.obstacle(batch, classes, features),
        "pallas_tpu": tpu.obstacle(batch, classes, features),
    }
    return common.choose(
        implementation, obstacles, op="margin_softmax", facts=facts(head, dtype, batch, classes, features)
    )


def facts(head: Head, dtype, batch: int, classes: int, features: int) -> dict[str, str | int]:
    """What the speed of a loss with its gradients depends on, for `common.choose`; `dtype` is the embeddings'."""
    return {
        "operation": "one pass" if head.one_pass else "two passes",
        "dtype": jnp.dtype(dtype).name,
        "batch": batch,
        "classes": classes,
        "features": features,
    }


def _saved_classes(implementation, embeddings, prototypes, saved_bytes):
    if implementation != "xla":
        return 0
    if saved_bytes is None:
        on_cpu = common.target_device().platform == "cpu"
        saved_bytes = min(prototypes.size * prototypes.dtype.itemsize, SAVED_BYTES) if on_cpu else 0
    return xla.saved_classes(embeddings, prototypes, saved_bytes)


def _known(labels, classes):
    """Labels of which those that are none, which a kernel might look for in its padding, are -1; [B] NaN for them, else 0."""
    unknown = (labels < -1) | (labels >= classes)
    return jnp.where(unknown, -1, labels), jnp.where(unknown, jnp.nan, jnp.float32(0))


def _sface(plan, names, x, prototypes, labels, where, weights):
    labels, spoiled = _known(labels, prototypes.shape[0])
    loss, inter, target = _one_pass(plan, x, prototypes, labels, where, weights)
    loss += jnp.sum(spoiled)
    intra = plan.head.target_gradient(target) * target + spoiled
    loss, intra, inter, target = _sum((loss, intra, inter, target), names)
    return loss, SFaceTerms(intra + inter, target, intra, inter)


def _margin(plan, names, x, prototypes, labels, where, weights):
    labels, spoiled = _known(labels, prototypes.shape[0])
    lse, target = _others(plan, x, prototypes, labels, where)
    on_shard = labels >= 0
    logits = jnp.where(on_shard, plan.head.target_logits(target), spoiled)
    peak = jax.lax.stop_gradient(jnp.maximum(lse, jnp.where(on_shard, logits, -jnp.inf)))
    peak = jax.lax.pmax(peak, names) if names else peak
    total = jnp.exp(lse - peak) + jnp.where(on_shard, jnp.exp(logits - peak), 0.0)
    shards_with_target = on_shard.astype(jnp.float32) + spoiled
    total, logits, target, shards_with_target = _sum((total, logits, target, shards_with_target), names)
    lse = jnp.log(total) + peak
    losses = jnp.where(shards_with_target == 0, 0.0, lse - logits)
    # The weights vary like everything else by now; the mean over equal ones takes that back.
    weights = jax.lax.pmean(weights, names) if names else weights
    return jnp.sum(weights * losses), MarginTerms(losses, target, lse)


def _sum(tree, names):
    return jax.lax.psum(tree, names) if names else tree


def _target_cosines(x, prototypes, labels):
    """[B] cos θ_iy from the prototypes' rows; 0 for a label of -1."""
    rows = jnp.take(prototypes, labels, axis=0, mode="clip").astype(jnp.float32)
    cosines = (
        jnp.sum(x.astype(jnp.float32) * rows, axis=1, keepdims=True) * inverse_norms(x) * inverse_norms(rows)
    )
    return jnp.where(labels >= 0, cosines[:, 0], 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _one_pass(plan, x, prototypes, labels, where, weights):
    """(Σ_i w_i L_i, [B] Σ_{j≠y} r cos θ_ij, [B] cos θ_iy) of a one-pass head on one shard."""
    target = _target_cosines(x, prototypes, labels)
    inter = plan.reduce(x, prototypes, labels, where)
    return jnp.sum(weights * (plan.head.target_gradient(target) * target + inter)), inter, target


def _one_pass_forward(plan, x, prototypes, labels, where, weights):
    target = _target_cosines(x, prototypes, labels)
    pull = plan.head.target_gradient(target)
    dx, dw, inter = plan.gradient(
        x, prototypes, labels, where, weights, jnp.zeros_like(weights), weights * pull
    )
    losses = pull * target + inter
    return (jnp.sum(weights * losses), inter, target), (dx, dw, losses)


def _one_pass_backward(plan, residuals, cotangents):
    by_loss = cotangents[0]
    dx, dw, losses = residuals
    return (by_loss * dx).astype(dx.dtype), (by_loss * dw).astype(dw.dtype), None, None, by_loss * losses


_one_pass.defvjp(_one_pass_forward, _one_pass_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _others(plan, x, prototypes, labels, where):
    """([B] log Σ_{j≠y} exp z_ij, -inf over none; [B] cos θ_iy) of one shard."""
    return plan.reduce(x, prototypes, labels, where), _target_cosines(x, prototypes, labels)


def _others_forward(plan, x, prototypes, labels, where):
    lse, cosines = plan.reduce_and_save(x, prototypes, labels, where)
    target = _target_cosines(x, prototypes, labels)
    return (lse, target), (x, prototypes, labels, where, lse, cosines)


def _others_backward(plan, residuals, cotangents):
    x, prototypes, labels, where, lse, cosines = residuals
    by_lse, by_target = cotangents
    empty = lse == -jnp.inf
    scale, shift = jnp.where(empty, 0.0, by_lse), jnp.where(empty, 0.0, lse)
    saved = () if cosines is None else (cosines,)
    dx, dw, _ = plan.gradient(x, prototypes, labels, where, scale, shift, by_target, *saved)
    return dx, dw, None, None


_others.defvjp(_others_forward, _others_backward)


def _check(embeddings, prototypes, labels, head, weights, classes, where, saved_bytes):
    if saved_bytes is not None and not (isinstance(saved_bytes, int) and saved_bytes >= 0):
        raise KernelError(f"saved_bytes: needs None or a whole number of at least 0; got {saved_bytes!r}")
    if not isinstance(head, Head):
        raise KernelError(f"head: needs SFace(...), softmax(...), cosface(...), arcface(...); got {head!r}")
    for name, array in (("embeddings", embeddings), ("prototypes", prototypes)):
        if array.ndim != 2 or 0 in array.shape:
            raise KernelError(f"{name}: needs two dimensions of at least 1; got shape {array.shape}")
        if array.dtype not in (jnp.float32, jnp.bfloat16):
            raise KernelError(f"{name}: needs float32 or bfloat16; got {array.dtype}")
    if embeddings.shape[1] != prototypes.shape[1]:
        raise KernelError(
            f"prototypes: needs {embeddings.shape[1]} features as the embeddings; got {prototypes.shape[1]}"
        )
    batch, taking_part = embeddings.shape[0], prototypes.shape[0]
    if classes is not None:
        _check_vector("classes", classes, None, jnp.integer)
        _check_values("classes", classes, 0, prototypes.shape[0])
        taking_part = classes.shape[0]
    _check_vector("labels", labels, batch, jnp.integer)
    _check_values("labels", labels, -1, taking_part)
    if weights is not None:
        _check_vector("weights", weights, batch, jnp.floating)
    if where is not None:
        _check_vector("where", where, taking_part, jnp.bool_)


def _check_vector(name, array, size, kind):
    if array.ndim != 1 or array.shape[0] != (size or max(array.shape[0], 1)):
        raise KernelError(f"{name}: needs shape [{size or 'at least 1'}]; got {array.shape}")
    if not jnp.issubdtype(array.dtype, kind):
        raise KernelError(f"{name}: needs dtype {kind.__name__}; got {array.dtype}")


def _check_values(name, array, low, end):
    if isinstance(array, jax.core.Tracer):
        return
    values = np.asarray(array)
    if values.min() < low or values.max() >= end:
        raise KernelError(f"{name}: needs values in [{low}, {end}); got {values.min()} to {values.max()}")
    if name == "classes" and len(np.unique(values)) != len(values):
        raise KernelError("classes: needs distinct values; got repeated ones")
