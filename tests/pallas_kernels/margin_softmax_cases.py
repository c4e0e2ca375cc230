"""What the tests of `margin_softmax` share: heads, problems, and each program compiled once for all tests that run it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from pallas_kernels import margin_softmax as ms
from pallas_kernels.margin_softmax import reference

HEADS = {
    "sface": ms.SFace(),
    "wide": ms.SFace(scale=8.0, sharpness=5.0, intra_angle=0.5, inter_angle=1.5),
    "softmax": ms.softmax(16.0),
    "cosface": ms.cosface(),
    "arcface": ms.arcface(),
    "insightface": ms.Margin(
        angular_margin=0.4, cosine_margin=0.1, guard=False, gradient_mode="straight_through", filter_above=0.3
    ),
}
SHAPE = (9, 37, 11)
"""Rows, classes and features of what does not need another size: tests of one shape share their programs."""


def problem(batch=SHAPE[0], classes=SHAPE[1], features=SHAPE[2], *, seed=0, dtype=jnp.float32):
    """Embeddings near their prototypes, labels of which one is on no shard, weights, and a mask that leaves out a fifth."""
    keys = jax.random.split(jax.random.key(seed), 5)
    labels = jax.random.randint(keys[0], (batch,), 0, classes)
    prototypes = jax.random.normal(keys[1], (classes, features))
    embeddings = 2.0 * jax.random.normal(keys[2], (batch, features)) + 0.7 * prototypes[labels]
    if batch > 2:
        labels = labels.at[1].set(-1)
    weights = jax.random.uniform(keys[3], (batch,))
    where = jax.random.uniform(keys[4], (classes,)) < 0.8
    return embeddings.astype(dtype), prototypes.astype(dtype), labels, weights, where


@functools.cache
def _value_and_gradients(head, options):
    def call(x, w, weights, labels, where, classes):
        loss, terms = ms.margin_softmax(
            x, w, labels, head, weights=weights, where=where, classes=classes, **dict(options)
        )
        return loss, terms

    return jax.jit(jax.value_and_grad(call, (0, 1, 2), has_aux=True))


def ours(labels, head, where=None, classes=None, **options):
    """(x, w, weights) -> (loss, gradients); compiled once for a head, its options and shapes."""
    run = _value_and_gradients(head, tuple(options.items()))

    def call(x, w, weights):
        (loss, _), gradients = run(x, w, weights, labels, where, classes)
        return loss, gradients

    return call


def loss_and_terms(x, w, labels, head, weights=None):
    """Of `ours`; the mean over the rows without weights."""
    labels, batch = jnp.asarray(labels), len(labels)
    weights = jnp.full((batch,), 1 / batch, jnp.float32) if weights is None else weights
    return _value_and_gradients(head, ())(x, w, weights, labels, None, None)[0]


@functools.cache
def _materialized(head):
    def call(x, w, weights, labels, where):
        return jnp.sum(weights * reference.row_losses(x, w, labels, head, where=where))

    return jax.jit(jax.value_and_grad(call, (0, 1, 2)))


def materialized(labels, head, where=None):
    """(x, w, weights) -> (loss, gradients) of the definition."""
    return lambda x, w, weights: _materialized(head)(x, w, weights, labels, where)


def close(actual, expected, tolerance):
    """Every leaf within `tolerance` of its greatest entry."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * (np.abs(b).max() + 1e-6))


def from_cosines(cosines):
    """Unit embeddings e_i and unit prototypes with these cosines [B, C]."""
    cosines = np.asarray(cosines, np.float64)
    batch, classes = cosines.shape
    rest = np.sqrt(1 - np.sum(cosines**2, axis=0))
    return np.eye(batch, batch + 1, dtype=np.float32), np.concatenate([cosines, rest[None]]).T.astype(
        np.float32
    )


def by_hand(x, w, labels, head, weights):
    """Loss and gradients in float64 from the formulas for the gradient by the cosines."""
    x, w, weights = (np.asarray(a, np.float64) for a in (x, w, weights))
    labels = np.asarray(labels)
    nx, nw = (np.linalg.norm(a, axis=1, keepdims=True) for a in (x, w))
    xh, wh = x / nx, w / nw
    cosines = xh @ wh.T
    target = labels[:, None] == np.arange(len(w))
    if isinstance(head, ms.SFace):
        angles = np.arccos(cosines)
        pull = head.scale / (1 + np.exp(-head.sharpness * (angles - head.intra_angle)))
        push = head.scale / (1 + np.exp(head.sharpness * (angles - head.inter_angle)))
        by_cosine = np.where(target, -pull, push)
        rows = np.sum(by_cosine * cosines, axis=1)
    else:
        m = head.angular_margin
        angles = np.arccos(cosines)
        moved = np.cos(angles + m) - head.cosine_margin
        slope = np.sin(angles + m) / np.sin(angles)
        beyond = head.guard & (cosines <= -np.cos(m))
        moved = np.where(beyond, cosines - m * np.sin(m) - head.cosine_margin, moved)
        slope = np.where(beyond | (head.gradient_mode == "straight_through"), 1.0, slope)
        dropped = ~target & (cosines > (2 if head.filter_above is None else head.filter_above))
        logits = head.scale * np.where(target, moved, np.where(dropped, 0.0, cosines))
        peak = logits.max(axis=1, keepdims=True)
        exp = np.exp(logits - peak)
        p = exp / exp.sum(axis=1, keepdims=True)
        has_target = labels >= 0
        rows = np.where(
            has_target, np.log(exp.sum(axis=1)) + peak[:, 0] - np.sum(target * logits, axis=1), 0.0
        )
        by_cosine = head.scale * (p - target) * np.where(target, slope, np.where(dropped, 0.0, 1.0))
        by_cosine *= has_target[:, None]
    by_cosine = by_cosine * weights[:, None]
    dx = (by_cosine @ wh - np.sum(by_cosine * cosines, axis=1, keepdims=True) * xh) / nx
    dw = (by_cosine.T @ xh - np.sum(by_cosine * cosines, axis=0)[:, None] * wh) / nw
    return np.sum(weights * rows), (dx, dw, rows)


def on_shards(mesh, head, *, implementation=None, check_vma=True, inside=False, gathered=False):
    """Prototypes sharded over "model": the loss, or with `inside` (loss, dx, dw) of `jax.grad` inside the mapped function."""

    def local(x, w, labels, where):
        if gathered:
            x, labels = (jax.lax.all_gather(a, "model", tiled=True) for a in (x, labels))
        first = jax.lax.axis_index("model") * w.shape[0]
        mine = jnp.where((labels >= first) & (labels < first + w.shape[0]), labels - first, -1)

        def call(x, w):
            options = {"where": where, "axis_name": "model", "implementation": implementation}
            return ms.margin_softmax(x, w, mine, head, **options)[0]

        if inside:
            loss, (dx, dw) = jax.value_and_grad(call, (0, 1))(x, w)
            return loss, dx, dw
        return call(x, w)

    batch = P("model") if gathered else P()
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(batch, P("model"), batch, P("model")),
        out_specs=(P(), P(), P("model")) if inside else P(),
        check_vma=check_vma,
    )


def sharded_problem(shards, batch=16, classes=101, features=12):
    """Padded to equal shards; returns also the dense loss and gradients."""
    x, w, labels, _, _ = problem(batch, classes, features)
    labels = jnp.maximum(labels, 0)
    pad = -classes % shards
    padded = jnp.pad(w, ((0, pad), (0, 0)))
    return (x, padded, labels, jnp.arange(classes + pad) < classes), (x, w, labels)


def dense(head, x, w, labels):
    loss, (dx, dw, _) = materialized(labels, head)(x, w, jnp.full(x.shape[0], 1 / x.shape[0]))
    return loss, dx, dw


def user_sized(classes=1_000_000, dtype=jnp.float32):
    """Shapes of 1024 rows against a million classes."""
    shapes = [
        ((1024, 512), dtype),
        ((classes, 512), dtype),
        ((1024,), jnp.int32),
        ((classes,), jnp.bool_),
    ]
    return [jax.ShapeDtypeStruct(*shape) for shape in shapes]
