"""The definition: the whole [B, C] matrix of cosines, differentiated by JAX."""

import jax
import jax.numpy as jnp

from pallas_kernels.margin_softmax.heads import Head, SFace


def row_losses(
    embeddings: jax.Array,
    prototypes: jax.Array,
    labels: jax.Array,
    head: Head,
    *,
    where: jax.Array | None = None,
) -> jax.Array:
    """[B] losses of embeddings [B, D] against prototypes [C, D]; arguments as `api.margin_softmax`, one shard."""
    cosines = _normalized(embeddings) @ _normalized(prototypes).T
    return losses_of_cosines(cosines, labels, head, where=where)


def losses_of_cosines(
    cosines: jax.Array, labels: jax.Array, head: Head, *, where: jax.Array | None = None
) -> jax.Array:
    """[B] losses of cosines [B, C]."""
    labels, classes = jnp.asarray(labels, jnp.int32), cosines.shape[1]
    is_target = labels[:, None] == jnp.arange(classes)
    unknown = jnp.where((labels < -1) | (labels >= classes), jnp.nan, 0.0)
    counts = jnp.ones_like(is_target) if where is None else is_target | where
    if isinstance(head, SFace):
        angles = jnp.arccos(jnp.clip(jax.lax.stop_gradient(cosines), -1 + 1e-7, 1 - 1e-7))
        pull = -head.scale * jax.nn.sigmoid(head.sharpness * (angles - head.intra_angle))
        push = head.scale * jax.nn.sigmoid(head.sharpness * (head.inter_angle - angles))
        weights = jnp.where(is_target, pull, jnp.where(counts, push, 0.0))
        return jnp.sum(jax.lax.stop_gradient(weights) * cosines, axis=1) + unknown
    others = cosines
    if head.filter_above is not None:
        others = jnp.where(cosines > head.filter_above, 0.0, cosines)
    logits = jnp.where(is_target, _with_margin(cosines, head), head.scale * others)
    logits = jnp.where(counts, logits, -jnp.inf)
    target = jnp.sum(jnp.where(is_target, logits, 0.0), axis=1)
    return jnp.where(labels == -1, 0.0, jax.nn.logsumexp(logits, axis=1) - target) + unknown


def _with_margin(cosines, head):
    m = head.angular_margin
    sine = jnp.sqrt(jnp.maximum(1.0 - cosines**2, 1e-7))
    moved = cosines * jnp.cos(m) - sine * jnp.sin(m)
    if head.guard:
        moved = jnp.where(cosines <= -jnp.cos(m), cosines - m * jnp.sin(m), moved)
    moved = moved - head.cosine_margin
    if head.gradient_mode == "straight_through":
        moved = cosines + jax.lax.stop_gradient(moved - cosines)
    return head.scale * moved


def _normalized(rows):
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    squares = jax.lax.stop_gradient(jnp.sum(rows**2, axis=1, keepdims=True))
    # The derivative fades below a length of 1e-4; the value stays.
    share = jnp.where(squares > 1e-12, jnp.minimum(squares / 1e-8, 1.0), 0.0)
    rows = share * rows + jax.lax.stop_gradient((1 - share) * rows)
    return rows * jax.lax.rsqrt(jnp.maximum(jnp.sum(rows**2, axis=1, keepdims=True), 1e-12))
