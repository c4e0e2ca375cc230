import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, PartitionSpec

from pallas_kernels import aot, common
from pallas_kernels import margin_softmax as ms
from pallas_kernels.margin_softmax import gpu, reference, tpu, xla
from pallas_kernels.margin_softmax.heads import arccos

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
P = PartitionSpec


def problem(batch, classes, features, *, seed=0, dtype=jnp.float32):
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


def ours(labels, head, where=None, **options):
    def call(x, w, weights):
        return ms.margin_softmax(x, w, labels, head, weights=weights, where=where, **options)[0]

    return jax.jit(jax.value_and_grad(call, (0, 1, 2)))


def materialised(labels, head, where=None):
    def call(x, w, weights):
        return jnp.sum(weights * reference.row_losses(x, w, labels, head, where=where))

    return jax.jit(jax.value_and_grad(call, (0, 1, 2)))


def close(found, expected, tolerance):
    """Every leaf within `tolerance` of its greatest entry."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
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


# The numbers of the methods' checks.


def test_sface_of_one_row():
    x, w = from_cosines(np.cos([[1.0, 1.1, 1.3]]))
    loss, terms = ms.margin_softmax(x, w, np.array([0]), ms.SFace())
    np.testing.assert_allclose(terms.intra, [-34.578295], rtol=2e-6)
    np.testing.assert_allclose(terms.inter, [29.026158], rtol=2e-6)
    np.testing.assert_allclose(loss, -5.552138, rtol=2e-5)
    np.testing.assert_allclose(terms.target_cosines, np.cos([1.0]), rtol=1e-6)


def test_sface_of_two_rows_and_its_gradient_by_the_cosines():
    angles = np.array([[1.0, 1.1, 1.3], [0.9, 1.2, 0.86]])
    x, w = from_cosines(np.cos(angles))
    labels = np.array([0, 2])
    (loss, terms), dx = jax.value_and_grad(
        lambda x: ms.margin_softmax(x, w, labels, ms.SFace()), has_aux=True
    )(x)
    np.testing.assert_allclose(terms.intra, [-34.578295, -12.945425], rtol=5e-6)
    np.testing.assert_allclose(terms.inter, [29.026158, 51.378486], rtol=5e-6)
    np.testing.assert_allclose(loss, 16.440462, rtol=5e-6)
    by_cosine = np.array([[-31.999026, 31.989269, 0.010731], [32.0, 16.0, -9.920817]])
    by_x = by_cosine @ w - np.sum(by_cosine * np.cos(angles), axis=1, keepdims=True) * x
    np.testing.assert_allclose(dx, by_x, rtol=2e-5, atol=1e-5)


def test_sface_midpoints():
    head = ms.SFace()
    angles = jnp.array([0.87, 0.9, 0.86, 1.0])
    found = -head.target_gradient(jnp.cos(angles))
    np.testing.assert_allclose(found, [32.0, 58.676947, 19.841633, 63.998052], rtol=1e-4)
    np.testing.assert_allclose(found[0] * np.sin(0.87), 24.458526, rtol=5e-5)
    push = head.gradient(jnp.cos(jnp.array([1.2, 1.1, 1.3, np.pi / 2])))
    np.testing.assert_allclose(push, [32.0, 63.978538, 0.021462, 8.382935e-12], rtol=1e-4)
    np.testing.assert_allclose(push[0] * np.sin(1.2), 29.825251, rtol=5e-5)


def test_sface_of_raw_rows():
    x, w = jnp.array([[3.0, 4.0]]), jnp.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
    call = jax.value_and_grad(lambda x, w: ms.margin_softmax(x, w, jnp.array([0]), ms.SFace())[0], (0, 1))
    loss, (dx, dw) = call(x, w)
    np.testing.assert_allclose(loss, 13.188398, rtol=1e-5)
    np.testing.assert_allclose(dx, [[-14.253142, 10.689857]], rtol=1e-5)
    np.testing.assert_allclose(dw[:2], [[0, -50.682137], [19.2, 0]], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dw[2], [3.531732e-7, 3.531732e-7], rtol=2e-2)
    np.testing.assert_allclose(jnp.vdot(x, dx), 0.0, atol=1e-4)


def test_softmax_of_given_logits():
    logits = np.array([[2.0, 1.0, 0.0, -1.0], [0.0, 3.0, 1.0, 1.0]])
    x, w = from_cosines(logits / 64)
    labels = np.array([0, 2])
    (loss, terms), dx = jax.value_and_grad(
        lambda x: ms.margin_softmax(x, w, labels, ms.softmax()), has_aux=True
    )(x)
    np.testing.assert_allclose(terms.losses, [0.440190, 2.277978], rtol=2e-5)
    np.testing.assert_allclose(loss, 1.359084, rtol=2e-5)
    by_logit = np.array([-0.178043, 0.118441, 0.043572, 0.016029])
    by_x = 64 * (by_logit @ w - (by_logit @ logits[0] / 64) * x[0])
    np.testing.assert_allclose(dx[0], by_x, rtol=1e-4, atol=1e-4)


def test_derivative_of_the_arcface_margin():
    cosine = jnp.cos(1.0)
    for mode, ratio in (("exact", 1.185418), ("straight_through", 1.0)):
        head = ms.arcface(gradient_mode=mode)
        np.testing.assert_allclose(jax.grad(head.target_logits)(cosine) / head.scale, ratio, rtol=1e-6)


def test_arccos():
    cosines = np.concatenate([np.linspace(-1, 1, 200_001), 1 - np.logspace(-7, 0, 1000)]).astype(np.float32)
    found = jax.jit(arccos)(cosines)
    np.testing.assert_allclose(found, np.arccos(cosines.astype(np.float64)), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(arccos(jnp.array([1.5, -1.5])), np.array([0.0, np.pi], np.float32))


# The definition against float64, and against the library's losses.


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
        here = labels >= 0
        rows = np.where(here, np.log(exp.sum(axis=1)) + peak[:, 0] - np.sum(target * logits, axis=1), 0.0)
        by_cosine = head.scale * (p - target) * np.where(target, slope, np.where(dropped, 0.0, 1.0))
        by_cosine *= here[:, None]
    by_cosine = by_cosine * weights[:, None]
    dx = (by_cosine @ wh - np.sum(by_cosine * cosines, axis=1, keepdims=True) * xh) / nx
    dw = (by_cosine.T @ xh - np.sum(by_cosine * cosines, axis=0)[:, None] * wh) / nw
    return np.sum(weights * rows), (dx, dw, rows)


@pytest.mark.parametrize("name", HEADS)
def test_reference_and_xla_against_float64(name):
    x, w, labels, weights, _ = problem(9, 37, 11)
    expected = by_hand(x, w, labels, HEADS[name], weights)
    close(materialised(labels, HEADS[name])(x, w, weights), expected, 2e-5)
    close(ours(labels, HEADS[name])(x, w, weights), expected, 2e-5)


def test_the_library_has_the_same_definitions():
    pytest.importorskip("chex")  # the kernels do without what the library needs
    from jaxface import losses

    x, w, labels, _, _ = problem(8, 50, 12, seed=3)
    unit = [a / jnp.linalg.norm(a, axis=1, keepdims=True) for a in (x, w)]
    cosines = unit[0] @ unit[1].T
    _, terms = ms.margin_softmax(x, w, labels, ms.SFace())
    theirs = losses.sface.sface_terms(cosines, labels)
    close((terms.intra, terms.inter, terms.target_cosines), theirs[:3], 1e-5)
    for head, options in (
        (ms.arcface(), {}),
        (
            ms.arcface(guard=False, gradient_mode="straight_through"),
            {"guard": False, "gradient": "straight_through"},
        ),
    ):
        _, terms = ms.margin_softmax(x, w, labels, head)
        close(terms.losses, losses.softmax.arcface_loss(cosines, labels, **options), 1e-5)
    _, terms = ms.margin_softmax(x, w, labels, ms.cosface())
    close(terms.losses, losses.softmax.cosface_loss(cosines, labels), 1e-5)


# Properties.


@hypothesis.settings(max_examples=4, deadline=None)
@hypothesis.given(
    batch=st.integers(1, 20),
    classes=st.integers(1, 300),
    features=st.integers(4, 40),  # in fewer, angles come near 0, where they magnify the last bit of a cosine
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    name=st.sampled_from(list(HEADS)),
    masked=st.booleans(),
)
def test_xla_is_the_reference(batch, classes, features, dtype, name, masked):
    x, w, labels, weights, where = problem(batch, classes, features, seed=batch + classes, dtype=dtype)
    where = where if masked else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(xla._TILE_ELEMENTS, "cpu", 128)  # many chunks and a rest
        found = ours(labels, HEADS[name], where)(x, w, weights)
    expected = materialised(labels, HEADS[name], where)(x, w, weights)
    assert found[0].dtype == jnp.float32
    assert [g.dtype for g in found[1]] == [dtype, dtype, jnp.float32]
    # The products of bfloat16 rows are exact, so the loss is that of float32; the gradients are rounded on the way.
    close((found[0], found[1][2]), (expected[0], expected[1][2]), 2e-5)
    close(found[1][:2], expected[1][:2], 2e-5 if dtype == jnp.float32 else 2e-2)


@pytest.mark.parametrize("name", ["sface", "arcface"])
def test_scale_invariance_and_orthogonality(name):
    x, w, labels, weights, _ = problem(6, 40, 10)
    call = ours(labels, HEADS[name])
    (loss, (dx, dw, _)), (again, (dx2, _, _)) = call(x, w, weights), call(4.0 * x, 0.25 * w, weights)
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    close(dx2, dx / 4, 1e-5)
    for rows, gradient in ((x, dx), (w, dw)):
        along = jnp.sum(rows * gradient, axis=1) / jnp.linalg.norm(rows, axis=1)
        np.testing.assert_allclose(along, 0.0, atol=2e-5 * float(jnp.abs(gradient).max()))


def test_permuted_classes_give_the_same_loss():
    x, w, labels, weights, _ = problem(6, 40, 10)
    order = np.random.default_rng(0).permutation(40)
    moved = jnp.where(labels < 0, -1, jnp.argsort(order)[labels])
    loss, (dx, dw, _) = ours(labels, HEADS["sface"])(x, w, weights)
    close(ours(moved, HEADS["sface"])(x, w[order], weights)[1][:2], (dx, dw[order]), 1e-5)


def test_sface_limits():
    x, w, labels, weights, _ = problem(6, 40, 10)
    cosines = np.asarray(reference._normalized(x) @ reference._normalized(w).T)
    target = np.asarray(labels)[:, None] == np.arange(40)
    flat = 32 * np.sum(np.where(target, -cosines, cosines), axis=1)
    _, terms = ms.margin_softmax(x, w, labels, ms.SFace(sharpness=0.0))
    close(terms.losses, flat, 1e-5)
    _, terms = ms.margin_softmax(x, w, labels, ms.SFace(sharpness=1e4, intra_angle=0.0, inter_angle=np.pi))
    close(terms.losses, 2 * flat, 1e-5)
    _, terms = ms.margin_softmax(x, w, labels, ms.SFace(sharpness=1e4, intra_angle=np.pi))
    np.testing.assert_array_equal(terms.intra, np.zeros(6))


@pytest.mark.parametrize("name", HEADS)
def test_the_boundary_is_finite(name):
    """Cosines of exactly ±1, the zero vector, one class, one row."""
    x = jnp.array([[2.0, 0, 0], [-3.0, 0, 0], [0, 0, 0], [1.0, 1.0, 1e-8]])
    w = jnp.array([[5.0, 0, 0], [-1.0, 0, 0], [0, 0, 0], [0.3, 0.3, 0]])
    labels = jnp.array([0, 0, 2, 3])
    for rows, classes in ((4, 4), (1, 1), (2, 1)):
        found = ours(labels[:rows], HEADS[name])(x[:rows], w[:classes], jnp.ones(rows))
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(found))


def test_a_label_on_no_shard():
    x, w, _, _, _ = problem(4, 30, 8)
    nowhere = jnp.full((4,), -1)
    loss, (dx, dw, _) = ours(nowhere, HEADS["arcface"])(x, w, jnp.ones(4))
    assert loss == 0 and not dx.any() and not dw.any()
    _, terms = ms.margin_softmax(x, w, nowhere, HEADS["sface"])
    assert not terms.intra.any() and terms.inter.any()


def test_terms():
    x, w, labels, weights, _ = problem(7, 30, 8)
    for name in ("sface", "arcface"):
        loss, terms = ms.margin_softmax(x, w, labels, HEADS[name], weights=weights)
        close(terms.losses, reference.row_losses(x, w, labels, HEADS[name]), 1e-5)
        np.testing.assert_allclose(loss, jnp.sum(weights * terms.losses), rtol=1e-5)
        mean, _ = ms.margin_softmax(x, w, labels, HEADS[name])
        np.testing.assert_allclose(mean, jnp.mean(terms.losses), rtol=1e-5)
    here = labels >= 0
    logits = HEADS["arcface"].target_logits(terms.target_cosines)
    close(jnp.where(here, terms.lse - logits, 0.0), terms.losses, 1e-4)
    # Nothing flows through the terms.
    through = jax.grad(lambda x: jnp.sum(ms.margin_softmax(x, w, labels, HEADS["arcface"])[1].losses))(x)
    assert not through.any()


def test_vmap():
    x, w, labels, _, _ = problem(6, 30, 8)
    call = jax.grad(lambda x: ms.margin_softmax(x, w, labels, HEADS["arcface"])[0])
    stack = jnp.stack([x, 2 * x + 1])
    close(jax.vmap(call)(stack), jnp.stack([call(one) for one in stack]), 1e-5)


# Negative sampling.


@pytest.mark.parametrize("name", ["sface", "arcface"])
def test_sampled_classes(name):
    x, w, _, weights, _ = problem(6, 40, 10)
    classes = jnp.asarray(np.random.default_rng(1).permutation(40)[:17])
    labels = jnp.array([0, 5, 16, -1, 5, 2])
    used = jnp.arange(17) < 15
    used = used.at[16].set(True)

    def call(w):
        return ms.margin_softmax(x, w, labels, HEADS[name], weights=weights, classes=classes, where=used)[0]

    def expected(w):
        rows = reference.row_losses(x, w[classes], labels, HEADS[name], where=used)
        return jnp.sum(weights * rows)

    close(jax.jit(jax.value_and_grad(call))(w), jax.value_and_grad(expected)(w), 2e-5)
    left_out = np.setdiff1d(np.arange(40), np.asarray(classes)[np.asarray(used)])
    assert not jax.grad(call)(w)[left_out].any()


def test_sampling_every_class_is_the_dense_loss():
    x, w, labels, weights, _ = problem(6, 40, 10)
    classes = jnp.asarray(np.random.default_rng(2).permutation(40))
    moved = jnp.where(labels < 0, -1, jnp.argsort(classes)[labels])
    for name in ("sface", "arcface"):
        found = ours(moved, HEADS[name], classes=classes)(x, w, weights)
        close(found, ours(labels, HEADS[name])(x, w, weights), 1e-5)


# Classes over devices.


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
    loss, (dx, dw, _) = materialised(labels, head)(x, w, jnp.full(x.shape[0], 1 / x.shape[0]))
    return loss, dx, dw


@pytest.mark.parametrize("name", ["sface", "insightface"])
@pytest.mark.parametrize(
    ("shards", "check_vma", "inside", "gathered"),
    [
        (8, True, False, False),
        (8, True, True, False),
        (8, True, False, True),
        (8, False, False, True),
        (3, True, False, False),
        (3, False, False, False),
        (1, True, True, False),
    ],
)
def test_shards_give_the_dense_gradients(name, shards, check_vma, inside, gathered):
    mesh = Mesh(np.array(jax.devices()[:shards]), ("model",))
    (x, w, labels, where), whole = sharded_problem(shards)
    options = {"check_vma": check_vma, "inside": inside, "gathered": gathered}
    mapped = on_shards(mesh, HEADS[name], **options)
    if inside:
        loss, dx, dw = jax.jit(mapped)(x, w, labels, where)
    else:
        loss, (dx, dw) = jax.jit(jax.value_and_grad(mapped, (0, 1)))(x, w, labels, where)
    classes = whole[1].shape[0]
    close((loss, dx, dw[:classes]), dense(HEADS[name], *whole), 2e-5)
    assert not dw[classes:].any()


def test_without_check_vma_the_inner_gradient_is_a_shards_part_times_the_axis():
    mesh = Mesh(np.array(jax.devices()[:4]), ("model",))
    (x, w, labels, where), whole = sharded_problem(4)
    mapped = on_shards(mesh, HEADS["arcface"], check_vma=False, inside=True)
    _, _, dw = jax.jit(mapped)(x, w, labels, where)
    close(dw[: whole[1].shape[0]] / 4, dense(HEADS["arcface"], *whole)[2], 2e-5)


@pytest.mark.parametrize("name", ["sface", "arcface"])
def test_data_and_classes_over_two_axes(name):
    """Rows over "data" with weights of the whole batch, classes over "model"."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    (x, w, labels, where), whole = sharded_problem(4)

    def local(x, w, labels, where):
        first = jax.lax.axis_index("model") * w.shape[0]
        mine = jnp.where((labels >= first) & (labels < first + w.shape[0]), labels - first, -1)
        loss, _ = ms.margin_softmax(
            x, w, mine, HEADS[name], weights=jnp.full(x.shape[0], 1 / 16), where=where, axis_name="model"
        )
        return jax.lax.psum(loss, "data")

    specs = (P("data"), P("model"), P("data"), P("model"))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
    loss, (dx, dw) = jax.jit(jax.value_and_grad(mapped, (0, 1)))(x, w, labels, where)
    close((loss, dx, dw[: whole[1].shape[0]]), dense(HEADS[name], *whole), 2e-5)


def test_weights_on_shards():
    mesh = Mesh(np.array(jax.devices()[:4]), ("model",))
    (x, w, labels, _), whole = sharded_problem(4, classes=100)
    weights = jnp.linspace(0.1, 1.0, 16)

    for head in (HEADS["sface"], HEADS["arcface"]):
        for spec in (P(), P("model")):

            def local(x, w, labels, weights, head=head, spec=spec):
                if spec == P("model"):
                    weights = jax.lax.all_gather(weights, "model", tiled=True)
                mine = labels - jax.lax.axis_index("model") * 25
                mine = jnp.where((mine >= 0) & (mine < 25), mine, -1)
                return ms.margin_softmax(x, w, mine, head, weights=weights, axis_name="model")[0]

            specs = (P(), P("model"), P(), spec)
            mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
            found = jax.jit(jax.value_and_grad(mapped, (0, 1, 3)))(x, w, labels, weights)
            close(found, materialised(labels, head)(*whole[:2], weights), 2e-5)


# Memory.


@pytest.mark.parametrize("name", ["sface", "arcface"])
@pytest.mark.parametrize(("batch", "classes"), [(256, 100_000), (1024, 1_000_000)])
def test_memory_does_not_grow_with_batch_times_classes(name, batch, classes):
    shapes = [((batch, 512), jnp.float32), ((classes, 512), jnp.float32), ((batch,), jnp.int32)]

    def call(x, w, labels):
        return ms.margin_softmax(x, w, labels, HEADS[name])[0]

    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    for function in (call, jax.value_and_grad(call, (0, 1))):
        compiled = jax.jit(function).lower(*arguments).compile().memory_analysis()
        # Tiles of 4 MB, a few of them and of the embeddings; the materialised loss holds matrices of 102 MB and 4.1 GB.
        assert compiled.temp_size_in_bytes <= 48 << 20
    assert compiled.output_size_in_bytes <= 4 * 512 * (batch + classes) + 1024


# The kernels, step by step on the CPU. Operands that bfloat16 holds make the products exact, so that what is compared with
# the XLA path is the kernel and not its rounding.


def check_kernel(implementation, name, shape, *, masked, dtype=jnp.bfloat16):
    x, w, labels, weights, where = problem(*shape, dtype=jnp.bfloat16)
    x, w, where = x.astype(dtype), w.astype(dtype), where if masked else None
    found = ours(labels, HEADS[name], where, implementation=implementation)(x, w, weights)
    expected = ours(labels, HEADS[name], where)(x, w, weights)
    close((found[0], found[1][2]), (expected[0], expected[1][2]), 2e-5)
    # The gradient by the raw products is rounded to bfloat16, by the XLA path only for bfloat16 embeddings.
    close(found[1][:2], expected[1][:2], 1e-2)
    if not HEADS[name].one_pass:
        return
    # Without a gradient the loss is computed by another kernel.
    alone = jax.jit(
        lambda x, w: ms.margin_softmax(
            x, w, labels, HEADS[name], weights=weights, where=where, implementation=implementation
        )[0]
    )(x, w)
    np.testing.assert_allclose(alone, found[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "masked"),
    [
        ("sface", (5, 140, 24), True),
        ("arcface", (130, 257, 40), False),
        pytest.param("wide", (130, 300, 130), False, marks=pytest.mark.slow),
        pytest.param("insightface", (3, 1, 7), False, marks=pytest.mark.slow),
        pytest.param("softmax", (9, 257, 130), True, marks=pytest.mark.slow),
    ],
)
def test_tpu_kernel(name, shape, masked):
    check_kernel("pallas_tpu_interpret", name, shape, masked=masked)


@pytest.mark.parametrize("name", ["sface", "arcface"])
def test_tpu_kernel_with_two_cores_and_a_batch_in_parts(monkeypatch, name):
    monkeypatch.setattr(tpu, "_blocks", lambda batch, classes, features: (128, 128))
    monkeypatch.setattr(tpu, "_splits", lambda blocks: min(2, blocks))
    check_kernel("pallas_tpu_interpret", name, (200, 300, 16), masked=True, dtype=jnp.float32)


@pytest.mark.parametrize(
    ("name", "shape", "masked"),
    [
        ("sface", (5, 300, 24), True),
        ("insightface", (7, 257, 64), True),
        pytest.param("arcface", (130, 40, 70), False, marks=pytest.mark.slow),
    ],
)
def test_gpu_kernel(name, shape, masked):
    check_kernel("pallas_gpu_interpret", name, shape, masked=masked)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wide", "softmax"])
def test_gpu_kernel_over_chunks(monkeypatch, name):
    monkeypatch.setattr(gpu, "_CHUNK_BYTES", 1)
    check_kernel("pallas_gpu_interpret", name, (9, 700, 72), masked=True, dtype=jnp.float32)


@pytest.mark.slow
def test_tpu_kernel_on_shards():
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    (x, w, labels, where), whole = sharded_problem(2)
    mapped = on_shards(mesh, HEADS["wide"], implementation="pallas_tpu_interpret")
    loss, (dx, dw) = jax.jit(jax.value_and_grad(mapped, (0, 1)))(x, w, labels, where)
    close((loss, dx, dw[: whole[1].shape[0]]), dense(HEADS["wide"], *whole), 2e-2)


def user_sized(dtype=jnp.float32):
    shapes = [
        ((1024, 512), dtype),
        ((1_000_000, 512), dtype),
        ((1024,), jnp.int32),
        ((1_000_000,), jnp.bool_),
    ]
    return [jax.ShapeDtypeStruct(*shape) for shape in shapes]


@pytest.mark.parametrize("name", ["sface", "insightface"])
def test_gpu_kernels_lower(name):
    def call(x, w, labels, where):
        return ms.margin_softmax(x, w, labels, HEADS[name], where=where, implementation="pallas_gpu")[0]

    for function in (call, jax.grad(call, (0, 1)))[not HEADS[name].one_pass :]:
        assert "mosaic_gpu" in aot.lower_for_gpu(function, *user_sized())


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize(("kind", "platform"), [("NVIDIA H200", "cuda"), ("TPU v5 lite", "tpu")])
def test_kernels_lower_on_shards(check_vma, kind, platform):
    family = "gpu" if platform == "cuda" else "tpu"
    device = AbstractDevice(kind, 132 if family == "gpu" else None, family)
    mesh = AbstractMesh((2,), ("model",), axis_types=(AxisType.Auto,), abstract_device=device)
    for name in ("sface", "arcface"):
        mapped = on_shards(mesh, HEADS[name], implementation=f"pallas_{family}", check_vma=check_vma)
        with jax.sharding.use_abstract_mesh(mesh):
            traced = jax.jit(jax.value_and_grad(mapped, (0, 1))).trace(*user_sized())
            assert "custom_call" in traced.lower(lowering_platforms=(platform,)).as_text()


# Refusals.


@pytest.mark.parametrize(
    ("head", "options"),
    [
        (ms.SFace, {"scale": 0.0}),
        (ms.SFace, {"scale": float("nan")}),
        (ms.SFace, {"sharpness": -1.0}),
        (ms.SFace, {"sharpness": float("inf")}),
        (ms.SFace, {"intra_angle": -0.1}),
        (ms.SFace, {"inter_angle": 3.2}),
        (ms.Margin, {"scale": -64.0}),
        (ms.Margin, {"angular_margin": 4.0}),
        (ms.Margin, {"cosine_margin": float("nan")}),
        (ms.Margin, {"gradient_mode": "none"}),
        (ms.Margin, {"filter_above": 1.5}),
        (ms.Margin, {"scale": None}),
    ],
)
def test_refused_heads(head, options):
    with pytest.raises(common.KernelError, match=f"^{next(iter(options))}: needs .*; got "):
        head(**options)


X, W, Y = jnp.ones((4, 8)), jnp.ones((10, 8)), jnp.zeros(4, jnp.int32)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("embeddings", {"embeddings": X[0]}),
        ("embeddings", {"embeddings": X[:0], "labels": Y[:0]}),
        ("embeddings", {"embeddings": X.astype(jnp.int32)}),
        ("embeddings", {"embeddings": X.astype(jnp.float16)}),
        ("prototypes", {"prototypes": W[None]}),
        ("prototypes", {"prototypes": W[:0]}),
        ("prototypes", {"prototypes": W[:, :7]}),
        ("labels", {"labels": Y.astype(jnp.float32)}),
        ("labels", {"labels": Y[:3]}),
        ("labels", {"labels": Y + 10}),
        ("labels", {"labels": Y - 2}),
        ("labels", {"labels": Y + 2, "classes": jnp.arange(2)}),
        ("head", {"head": "sface"}),
        ("weights", {"weights": jnp.ones(3)}),
        ("weights", {"weights": jnp.ones(4, jnp.int32)}),
        ("classes", {"classes": jnp.array([0, 10])}),
        ("classes", {"classes": jnp.array([3, 3])}),
        ("classes", {"classes": jnp.zeros((0,), jnp.int32)}),
        ("classes", {"classes": jnp.zeros(3)}),
        ("where", {"where": jnp.ones(9, bool)}),
        ("where", {"where": jnp.ones(10)}),
        ("where", {"where": jnp.ones(10, bool), "classes": jnp.arange(5)}),
        ("implementation", {"implementation": "triton"}),
        ("implementation", {"implementation": "pallas_gpu"}),
        ("implementation", {"implementation": "pallas_tpu"}),
    ],
)
def test_refused_calls(name, changed):
    given = {"embeddings": X, "prototypes": W, "labels": Y, "head": ms.SFace()} | changed
    with pytest.raises(common.KernelError, match=rf"^{name}: [^\n]*$"):
        ms.margin_softmax(**given)


def test_labels_are_not_looked_at_while_traced():
    jax.jit(functools.partial(ms.margin_softmax, head=ms.SFace()))(X, W, Y + 10)
