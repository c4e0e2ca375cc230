"""Margin softmax in XLA: the methods' numbers, the definition in float64, properties, memory and refusals."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from margin_softmax_cases import (
    HEADS,
    by_hand,
    close,
    from_cosines,
    loss_and_terms,
    materialized,
    ours,
    problem,
)

from pallas_kernels import common
from pallas_kernels import margin_softmax as ms
from pallas_kernels.margin_softmax import api, reference, xla
from pallas_kernels.margin_softmax.heads import arccos

# The numbers of the methods' checks.


def test_sface_of_one_row():
    x, w = from_cosines(np.cos([[1.0, 1.1, 1.3]]))
    loss, terms = loss_and_terms(x, w, np.array([0]), ms.SFace())
    np.testing.assert_allclose(terms.intra, [-34.578295], rtol=2e-6)
    np.testing.assert_allclose(terms.inter, [29.026158], rtol=2e-6)
    np.testing.assert_allclose(loss, -5.552138, rtol=2e-5)
    np.testing.assert_allclose(terms.target_cosines, np.cos([1.0]), rtol=1e-6)


def test_sface_of_two_rows_and_its_gradient_by_the_cosines():
    angles = np.array([[1.0, 1.1, 1.3], [0.9, 1.2, 0.86]])
    x, w = from_cosines(np.cos(angles))
    labels = np.array([0, 2])
    loss, terms = loss_and_terms(x, w, labels, ms.SFace())
    _, (dx, _, _) = ours(jnp.asarray(labels), ms.SFace())(x, w, jnp.full(2, 0.5))
    np.testing.assert_allclose(terms.intra, [-34.578295, -12.945425], rtol=5e-6)
    np.testing.assert_allclose(terms.inter, [29.026158, 51.378486], rtol=5e-6)
    np.testing.assert_allclose(loss, 16.440462, rtol=5e-6)
    by_cosine = np.array([[-31.999026, 31.989269, 0.010731], [32.0, 16.0, -9.920817]])
    by_x = by_cosine @ w - np.sum(by_cosine * np.cos(angles), axis=1, keepdims=True) * x
    np.testing.assert_allclose(dx, by_x, rtol=2e-5, atol=1e-5)


def test_sface_midpoints():
    head = ms.SFace()
    angles = jnp.array([0.87, 0.9, 0.86, 1.0])
    actual = -head.target_gradient(jnp.cos(angles))
    np.testing.assert_allclose(actual, [32.0, 58.676947, 19.841633, 63.998052], rtol=1e-4)
    np.testing.assert_allclose(actual[0] * np.sin(0.87), 24.458526, rtol=5e-5)
    push = head.gradient(jnp.cos(jnp.array([1.2, 1.1, 1.3, np.pi / 2])))
    np.testing.assert_allclose(push, [32.0, 63.978538, 0.021462, 8.382935e-12], rtol=1e-4)
    np.testing.assert_allclose(push[0] * np.sin(1.2), 29.825251, rtol=5e-5)


def test_sface_of_raw_rows():
    x, w = jnp.array([[3.0, 4.0]]), jnp.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
    loss, (dx, dw, _) = ours(jnp.array([0]), ms.SFace())(x, w, jnp.ones(1))
    np.testing.assert_allclose(loss, 13.188398, rtol=1e-5)
    np.testing.assert_allclose(dx, [[-14.253142, 10.689857]], rtol=1e-5)
    np.testing.assert_allclose(dw[:2], [[0, -50.682137], [19.2, 0]], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dw[2], [3.531732e-7, 3.531732e-7], rtol=2e-2)
    np.testing.assert_allclose(jnp.vdot(x, dx), 0.0, atol=1e-4)


def test_softmax_of_given_logits():
    logits = np.array([[2.0, 1.0, 0.0, -1.0], [0.0, 3.0, 1.0, 1.0]])
    x, w = from_cosines(logits / 64)
    labels = np.array([0, 2])
    loss, terms = loss_and_terms(x, w, labels, ms.softmax())
    _, (dx, _, _) = ours(jnp.asarray(labels), ms.softmax())(x, w, jnp.full(2, 0.5))
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
    actual = jax.jit(arccos)(cosines)
    np.testing.assert_allclose(actual, np.arccos(cosines.astype(np.float64)), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(arccos(jnp.array([1.5, -1.5])), np.array([0.0, np.pi], np.float32))


# The definition against float64, and against the library's losses.


@pytest.mark.parametrize("name", HEADS)
def test_reference_and_xla_against_float64(name):
    x, w, labels, weights, _ = problem()
    expected = by_hand(x, w, labels, HEADS[name], weights)
    close(materialized(labels, HEADS[name])(x, w, weights), expected, 2e-5)
    close(ours(labels, HEADS[name])(x, w, weights), expected, 2e-5)


def test_the_library_has_the_same_definitions():
    pytest.importorskip("chex")  # the kernels do without what the library needs
    from jaxface import losses

    x, w, labels, _, _ = problem(seed=3)
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (np.asarray(x), np.asarray(w))]
    cosines = jnp.asarray(unit[0] @ unit[1].T)
    _, terms = loss_and_terms(x, w, labels, ms.SFace())
    theirs = jax.jit(losses.sface.sface_terms)(cosines, labels)
    close((terms.intra, terms.inter, terms.target_cosines), theirs[:3], 1e-5)
    for head, options in (
        (ms.arcface(), {}),
        (
            ms.arcface(guard=False, gradient_mode="straight_through"),
            {"guard": False, "gradient": "straight_through"},
        ),
    ):
        _, terms = loss_and_terms(x, w, labels, head)
        theirs = jax.jit(functools.partial(losses.softmax.arcface_loss, **options))(cosines, labels)
        close(terms.losses, theirs, 1e-5)
    _, terms = loss_and_terms(x, w, labels, ms.cosface())
    close(terms.losses, jax.jit(losses.softmax.cosface_loss)(cosines, labels), 1e-5)


# Properties.


def in_small_chunks(head, labels, where=None, **options):
    """As `ours`, in chunks of 128 classes and what they leave."""

    def call(x, w, weights):
        return ms.margin_softmax(x, w, labels, head, weights=weights, where=where, **options)[0]

    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(xla._TILE_ELEMENTS, "cpu", 128)
            return compiled(*arguments)

    compiled = jax.jit(jax.value_and_grad(call, (0, 1, 2)))
    return run


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "masked"),
    [
        ("sface", (20, 300, 40), jnp.float32, True),
        ("insightface", (7, 257, 16), jnp.bfloat16, True),
        ("arcface", (1, 130, 9), jnp.float32, False),
        ("wide", (3, 1, 5), jnp.bfloat16, False),
    ],
)
def test_xla_is_the_reference(name, shape, dtype, masked):
    *_, labels, _, where = problem(*shape)
    where = where if masked else None
    run, expected_run = in_small_chunks(HEADS[name], labels, where), materialized(labels, HEADS[name], where)

    @hypothesis.settings(max_examples=5, deadline=None)
    @hypothesis.given(seed=st.integers(0, 99), scale=st.sampled_from([2.0**-6, 1.0, 2.0**6]))
    def values(seed, scale):
        x, w, _, weights, _ = problem(*shape, seed=seed, dtype=dtype)
        x = x * jnp.asarray(scale, dtype)
        actual, expected = run(x, w, weights), expected_run(x, w, weights)
        assert actual[0].dtype == jnp.float32
        assert [g.dtype for g in actual[1]] == [dtype, dtype, jnp.float32]
        # The products of bfloat16 rows are exact, so the loss is that of float32; the gradients are rounded on the way.
        # Rows of either sign may cancel in the weighted mean, to a value far below the terms that were rounded.
        np.testing.assert_allclose(actual[0], expected[0], rtol=2e-5, atol=2e-6)
        close(actual[1][2], expected[1][2], 2e-5)
        close(actual[1][:2], expected[1][:2], 2e-5 if dtype == jnp.float32 else 2e-2)

    values()


def test_saved_cosines_change_nothing():
    """None of them, those of whole chunks, all."""
    x, w, labels, weights, where = problem(7, 300, 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(xla._TILE_ELEMENTS, "cpu", 128)
        classes = [xla.saved_classes(x, w, size) for size in (0, 4 * 7 * 299, 4 * 7 * 300)]
    assert classes == [0, 256, 300]
    recomputed, in_part, all_of_them = (
        in_small_chunks(HEADS["insightface"], labels, where, saved_bytes=size)(x, w, weights)
        for size in (0, 4 * 7 * 299, 4 * 7 * 300)
    )
    close(in_part, recomputed, 1e-6)
    close(all_of_them, recomputed, 1e-6)


@pytest.mark.parametrize("name", ["sface", "arcface"])
def test_scale_invariance_and_orthogonality(name):
    x, w, labels, weights, _ = problem()
    call = ours(labels, HEADS[name])
    (loss, (dx, dw, _)), (again, (dx2, _, _)) = call(x, w, weights), call(4.0 * x, 0.25 * w, weights)
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    close(dx2, dx / 4, 1e-5)
    for rows, gradient in ((x, dx), (w, dw)):
        along = jnp.sum(rows * gradient, axis=1) / jnp.linalg.norm(rows, axis=1)
        np.testing.assert_allclose(along, 0.0, atol=2e-5 * float(jnp.abs(gradient).max()))


def test_permuted_classes_give_the_same_loss():
    x, w, labels, weights, _ = problem()
    order = np.random.default_rng(0).permutation(37)
    moved = jnp.where(labels < 0, -1, jnp.argsort(order)[labels])
    loss, (dx, dw, _) = ours(labels, HEADS["sface"])(x, w, weights)
    close(ours(moved, HEADS["sface"])(x, w[order], weights)[1][:2], (dx, dw[order]), 1e-5)


def test_sface_limits():
    x, w, labels, weights, _ = problem()
    cosines = np.asarray(reference._normalized(x) @ reference._normalized(w).T)
    target = np.asarray(labels)[:, None] == np.arange(37)
    flat = 32 * np.sum(np.where(target, -cosines, cosines), axis=1)
    _, terms = loss_and_terms(x, w, labels, ms.SFace(sharpness=0.0))
    close(terms.losses, flat, 1e-5)
    _, terms = loss_and_terms(x, w, labels, ms.SFace(sharpness=1e4, intra_angle=0.0, inter_angle=np.pi))
    close(terms.losses, 2 * flat, 1e-5)
    _, terms = loss_and_terms(x, w, labels, ms.SFace(sharpness=1e4, intra_angle=np.pi))
    np.testing.assert_array_equal(terms.intra, np.zeros(9))


@pytest.mark.parametrize("name", HEADS)
def test_the_boundary_is_finite(name):
    """Cosines of exactly ±1, the zero vector, one class, one row."""
    x = jnp.array([[2.0, 0, 0], [-3.0, 0, 0], [0, 0, 0], [1.0, 1.0, 1e-8]])
    w = jnp.array([[5.0, 0, 0], [-1.0, 0, 0], [0, 0, 0], [0.3, 0.3, 0]])
    labels = jnp.array([0, 0, 2, 3])
    for rows, classes in ((4, 4), (1, 1)) if name in ("sface", "arcface", "insightface") else ((4, 4),):
        actual = ours(labels[:rows], HEADS[name])(x[:rows], w[:classes], jnp.ones(rows))
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(actual))


def test_a_label_on_no_shard():
    x, w, _, _, _ = problem()
    nowhere = jnp.full((9,), -1)
    loss, (dx, dw, _) = ours(nowhere, HEADS["arcface"])(x, w, jnp.ones(9))
    assert loss == 0 and not dx.any() and not dw.any()
    _, terms = loss_and_terms(x, w, nowhere, HEADS["sface"])
    assert not terms.intra.any() and terms.inter.any()


def test_terms():
    x, w, labels, weights, _ = problem()
    row_losses = jax.jit(reference.row_losses, static_argnums=3)
    for name in ("sface", "arcface"):
        loss, terms = loss_and_terms(x, w, labels, HEADS[name], weights)
        close(terms.losses, row_losses(x, w, labels, HEADS[name]), 1e-5)
        np.testing.assert_allclose(loss, np.sum(np.asarray(weights) * np.asarray(terms.losses)), rtol=1e-5)
    mean, _ = jax.jit(lambda x, w: ms.margin_softmax(x, w, labels, HEADS["arcface"]))(x, w)
    np.testing.assert_allclose(mean, np.mean(np.asarray(terms.losses)), rtol=1e-5)
    logits = HEADS["arcface"].target_logits(terms.target_cosines)
    close(jnp.where(labels >= 0, terms.lse - logits, 0.0), terms.losses, 1e-4)


@pytest.mark.parametrize("name", ["sface", "arcface"])
def test_nothing_flows_through_the_terms(name):
    x, w, labels, _, _ = problem()

    def of_terms(x):
        return jnp.sum(ms.margin_softmax(x, w, labels, HEADS[name])[1].losses)

    assert not jax.jit(jax.grad(of_terms))(x).any()


def test_vmap():
    x, w, labels, weights, _ = problem()

    def call(x):
        return jax.grad(lambda x: ms.margin_softmax(x, w, labels, HEADS["arcface"], weights=weights)[0])(x)

    stack = jnp.stack([x, 2 * x + 1])
    expected = [ours(labels, HEADS["arcface"])(one, w, weights)[1][0] for one in stack]
    close(jax.jit(jax.vmap(call))(stack), jnp.stack(expected), 1e-5)


# Negative sampling.


@pytest.mark.parametrize("name", ["sface", "arcface"])
def test_sampled_classes(name):
    x, w, _, weights, _ = problem()
    classes = np.random.default_rng(1).permutation(37)[:17]
    labels = jnp.array([0, 5, 16, -1, 5, 2, 1, 3, 14])
    used = jnp.arange(17) < 15
    used = used.at[16].set(True)
    actual = ours(labels, HEADS[name], used, jnp.asarray(classes))(x, w, weights)
    loss, (dx, dw, d_weights) = materialized(labels, HEADS[name], used)(x, w[classes], weights)
    close(actual, (loss, (dx, jnp.zeros_like(w).at[classes].set(dw), d_weights)), 2e-5)
    left_out = np.setdiff1d(np.arange(37), classes[np.asarray(used)])
    assert len(left_out) == 21 and not actual[1][1][left_out].any()


def test_sampling_every_class_is_the_dense_loss():
    x, w, labels, weights, _ = problem()
    classes = jnp.asarray(np.random.default_rng(2).permutation(37))
    moved = jnp.where(labels < 0, -1, jnp.argsort(classes)[labels])
    for name in ("sface", "arcface"):
        actual = ours(moved, HEADS[name], classes=classes)(x, w, weights)
        close(actual, ours(labels, HEADS[name])(x, w, weights), 1e-5)


# Memory.


def compiled_memory(function, batch, classes):
    shapes = [((batch, 512), jnp.float32), ((classes, 512), jnp.float32), ((batch,), jnp.int32)]
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().memory_analysis()


@pytest.mark.parametrize("name", ["sface", "arcface"])
@pytest.mark.parametrize(("batch", "classes"), [(256, 100_000), (1024, 1_000_000)])
def test_memory_does_not_grow_with_batch_times_classes(name, batch, classes):
    def call(x, w, labels):
        return ms.margin_softmax(x, w, labels, HEADS[name], saved_bytes=0)[0]

    for function in (call, jax.value_and_grad(call, (0, 1))):
        analysis = compiled_memory(function, batch, classes)
        # Tiles of 4 MB, a few of them and of the embeddings; the materialized loss holds matrices of 102 MB and 4.1 GB.
        assert analysis.temp_size_in_bytes <= 48 << 20
    assert analysis.output_size_in_bytes <= 4 * 512 * (batch + classes) + 1024


@pytest.mark.parametrize(
    ("batch", "classes", "budget"),
    [(256, 100_000, 4 * 256 * 100_000), (1024, 1_000_000, api.SAVED_BYTES), (1024, 20_000, 4 * 512 * 20_000)],
)
def test_memory_of_what_a_cpu_saves(batch, classes, budget):
    """All cosines, as many as 1 GiB holds, as many as the prototypes' bytes hold."""

    def call(x, w, labels):
        return ms.margin_softmax(x, w, labels, HEADS["arcface"])[0]

    held = compiled_memory(jax.value_and_grad(call, (0, 1)), batch, classes).temp_size_in_bytes
    assert budget - (24 << 20) < held < budget + (48 << 20)


def test_accelerators_save_nothing():
    x, w = jax.ShapeDtypeStruct((256, 512), jnp.float32), jax.ShapeDtypeStruct((100_000, 512), jnp.float32)
    for kind in ("NVIDIA H200", "TPU v5 lite"):
        with common.assume_device(kind):
            assert api._saved_classes("xla", x, w, None) == 0
    assert api._saved_classes("xla", x, w, None) == 100_000
    assert api._saved_classes("pallas_tpu_interpret", x, w, None) == 0


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
        ("embeddings", {"embeddings": np.ones((4, 8), np.float16)}),
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
        ("saved_bytes", {"saved_bytes": -1}),
        ("saved_bytes", {"saved_bytes": 0.5}),
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
