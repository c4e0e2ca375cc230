"""The gradients of DCP-NAS on a toy whose logits are linear in the architecture, z = Jα, in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.losses import dcp_nas as losses

J = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])
ALPHA = np.array([0.2, -0.1])
P = np.array([[0.7, 0.2, 0.1]])
T = np.array([0.5, -0.3])
LAM = 0.005


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def logits_fn(alpha):
    return (J @ jnp.ravel(alpha))[None]


def performance(alpha):
    return losses.child_performance(logits_fn(alpha), jnp.asarray(P))


def arch(alpha=ALPHA, **options):
    options = {"strength": LAM, **options}
    row = jnp.asarray(alpha)[None]
    return losses.child_arch_gradient(logits_fn, row, jnp.asarray(P), jnp.asarray(T)[None], **options)


def test_check_1_the_printed_tangent_is_zero_and_that_of_f_is_not():
    probabilities = jax.nn.softmax(logits_fn(ALPHA))
    np.testing.assert_allclose(probabilities[0], [0.351372, 0.260303, 0.388326], atol=1e-6)
    printed = jax.grad(lambda a: jax.nn.softmax(logits_fn(a)).sum())(jnp.asarray(ALPHA))
    np.testing.assert_allclose(printed, 0, atol=1e-15)
    tangent = losses.parent_tangent(logits_fn, jnp.asarray(ALPHA), jnp.array([0]))
    np.testing.assert_allclose(tangent, [0.260303, 0.128023], atol=1e-6)


def test_check_2_the_childs_performance_and_gradient():
    np.testing.assert_allclose(performance(jnp.asarray(ALPHA)), -0.294092, atol=1e-6)
    np.testing.assert_allclose(jax.grad(performance)(jnp.asarray(ALPHA)), [0.060303, 0.228023], atol=1e-6)
    np.testing.assert_allclose(arch().gradient[0], [0.060303, 0.228023], atol=1e-6)


def test_check_3_the_hessian_is_minus_the_fisher_matrix_and_not_the_outer_products_of_dp():
    hessian = jax.hessian(performance)(jnp.asarray(ALPHA))
    expected = [[-0.192545, 0.293627], [0.293627, -0.632238]]
    np.testing.assert_allclose(hessian, expected, atol=1e-6)
    columns = [losses.ggn_vector_product(logits_fn, jnp.asarray(ALPHA), e) for e in jnp.eye(2)]
    np.testing.assert_allclose(-jnp.stack(columns), hessian, atol=1e-12)
    slopes = jax.jacobian(lambda a: jax.nn.softmax(logits_fn(a))[0])(jnp.asarray(ALPHA))
    np.testing.assert_allclose(slopes.T @ slopes, [[0.055657, -0.086650], [-0.086650, 0.202898]], atol=1e-6)


@pytest.mark.parametrize("curvature", ["ggn", "exact", "printed"])
def test_check_4_the_discrepancy_and_the_whole_gradient(curvature):
    parts = arch(curvature=curvature)
    np.testing.assert_allclose(parts.discrepancy, 0.472142, atol=1e-6)
    by_hand = [-0.057906, -0.232653] if curvature != "printed" else [-0.062700, -0.223394]
    np.testing.assert_allclose(parts.total[0], by_hand, atol=1e-6)
    sign = -1 if curvature == "printed" else 1
    np.testing.assert_allclose(sign * parts.tangent_term[0] / LAM, [0.479407, -0.925887], atol=1e-6)

    def of_alpha(a):
        return losses.discrepancy(jax.grad(performance)(a), jnp.asarray(T))

    np.testing.assert_allclose(
        jax.grad(of_alpha)(jnp.asarray(ALPHA)), sign * parts.tangent_term[0] / LAM, atol=1e-12
    )


def test_check_5_the_product_is_that_of_the_matrix_and_symmetric():
    rng = np.random.default_rng(0)
    jacobian, alpha = rng.normal(size=(4, 3, 6)), jnp.asarray(rng.normal(size=(2, 3)))
    u, v = jnp.asarray(rng.normal(size=(2, 2, 3)))

    def logits(a):
        return jnp.asarray(jacobian) @ jnp.ravel(a)

    p = np.asarray(jax.nn.softmax(logits(alpha)))
    middle = np.stack([np.diag(row) - np.outer(row, row) for row in p])
    matrix = np.mean([j.T @ m @ j for j, m in zip(jacobian, middle, strict=True)], axis=0)
    product = losses.ggn_vector_product(logits, alpha, v)
    np.testing.assert_allclose(product.ravel(), matrix @ v.ravel(), rtol=1e-12)
    target = jax.nn.softmax(jnp.asarray(rng.normal(size=(4, 3))))
    exact = losses.exact_hessian_vector_product(
        lambda a: losses.child_performance(logits(a), target), alpha, v
    )
    np.testing.assert_allclose(product, -exact, atol=1e-12)
    np.testing.assert_allclose(
        jnp.vdot(u, product), jnp.vdot(v, losses.ggn_vector_product(logits, alpha, u)), rtol=1e-12
    )
    assert jnp.vdot(v, product) > 0


def test_check_6_the_performance_is_zero_only_where_classes_agree():
    logits = logits_fn(ALPHA)
    same = jax.nn.softmax(logits)
    assert float(losses.child_performance(logits, same)) == pytest.approx(0, abs=1e-15)
    assert float(losses.child_performance(logits, jnp.asarray(P))) < -0.2
    np.testing.assert_allclose(arch(strength=0.0).total, -arch().gradient, atol=1e-15)  # distillation alone
    by_parent = jax.grad(lambda p: losses.child_performance(logits, p))(jnp.asarray(P))
    np.testing.assert_array_equal(by_parent, 0)
    certain = jnp.array([[1.0, 0.0, 0.0]])  # 0 log 0 = 0
    assert np.isfinite(jax.grad(lambda z: losses.child_performance(z, certain))(logits)).all()


def descend(curvature, strength, steps=40_000, rate=1.0):
    def step(_, alpha):
        return alpha - rate * arch(alpha, strength=strength, curvature=curvature).total[0]

    return jax.jit(lambda a: jax.lax.fori_loop(0, steps, step, a))(jnp.asarray(ALPHA))


def test_check_8b_the_term_displaces_the_optimum_against_t_and_as_printed_along_it():
    plain = descend("ggn", 0.0)
    np.testing.assert_allclose(plain, [3.198673, 1.945910], atol=1e-6)
    for curvature, moved in (
        ("ggn", (-0.005016, 0.002974)),
        ("exact", (-0.005016, 0.002974)),
        ("printed", (0.004983, -0.003026)),
    ):
        shift = descend(curvature, LAM) - plain
        np.testing.assert_allclose(shift, moved, atol=2e-6)
        cosine = shift @ T / np.linalg.norm(shift) / np.linalg.norm(T)
        assert cosine == pytest.approx(0.99999 if curvature == "printed" else -0.99999, abs=2e-5)


def test_descent_on_the_discrepancy_alone_lowers_it():
    @jax.jit
    def run(alpha):
        def step(alpha, _):
            parts = arch(alpha)
            return alpha - 0.1 * parts.tangent_term[0] / LAM, parts.discrepancy

        return jax.lax.scan(step, alpha, None, 200)[1]

    values = run(jnp.asarray(ALPHA))
    assert (np.diff(values) < 0).all()
    np.testing.assert_allclose(values[jnp.array([0, 1, 199])], [0.472142, 0.367762, 0.012681], atol=1e-6)


def test_the_ratio_sets_the_strength():
    parts = arch(ratio=0.3)
    assert float(parts.ratio) == pytest.approx(0.3)
    assert float(arch().ratio) == pytest.approx(0.022, abs=5e-4)  # next to nothing at the paper's strength
    assert float(arch(ratio=0.0).strength) == 0
    nothing = losses.child_arch_gradient(
        logits_fn, jnp.asarray(ALPHA)[None], jax.nn.softmax(logits_fn(ALPHA)), jnp.zeros((1, 2)), ratio=0.3
    )
    assert np.isfinite(nothing.total).all() and float(nothing.strength) <= 1e6


@pytest.mark.parametrize("distance", ["l1", "cosine"])
def test_other_distances_take_the_same_curvature(distance):
    parts = arch(distance=distance, curvature="exact")

    def of_alpha(a):
        return losses.discrepancy(jax.grad(performance)(a), jnp.asarray(T), distance)

    np.testing.assert_allclose(jax.grad(of_alpha)(jnp.asarray(ALPHA)), parts.tangent_term[0] / LAM, atol=1e-9)


def test_the_reconstruction_freezes_signs_as_printed():
    kernel, scale = jnp.array([[0.5, -0.02], [-0.1, 0.04]]), jnp.array([0.3, 0.03])
    by_hand = 0.2**2 + 0.01**2 + 0.2**2 + 0.01**2
    value = losses.reconstruction_loss({"a": kernel}, {"a": scale})
    assert float(value) == pytest.approx(by_hand)
    assert float(losses.reconstruction_loss({"a": kernel}, {"a": scale}, mean=True)) == pytest.approx(
        by_hand / 4
    )
    slopes = jax.grad(lambda w: losses.reconstruction_loss({"a": w}, {"a": scale}))(kernel)
    np.testing.assert_allclose(slopes, [[0.4, 0.02], [0.4, 0.02]], atol=1e-12)
    inside = jnp.sign(kernel) * jnp.abs(kernel) < scale  # a weight between 0 and β is pushed away from 0
    assert (jnp.sign(-slopes) == jnp.sign(kernel))[inside & (jnp.abs(kernel) < scale)].all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: arch(curvature="hessian"), "curvature: needs one of ggn, exact, printed, got 'hessian'"),
        (lambda: arch(distance="l2"), "distance: needs one of frobenius, l1, cosine, got 'l2'"),
        (
            lambda: losses.child_arch_gradient(logits_fn, jnp.asarray(ALPHA), P, jnp.asarray(T)),
            r"alpha: needs \[E, M\], a row for each edge, got \(2,\)",
        ),
        (
            lambda: losses.child_performance(logits_fn(ALPHA), jnp.array([[0.7, 0.2, 0.3]])),
            "parent_probabilities: needs rows of probabilities that sum to 1, got one off by 0.2",
        ),
        (
            lambda: losses.discrepancy(jnp.ones((1, 2)), jnp.ones(2)),
            r"tangent: needs the gradient's shape \(1, 2\)",
        ),
        (lambda: losses.dcp_arch_gradient(T, T, -1.0), "strength: needs a finite number from 0, got -1"),
        (lambda: losses.reconstruction_loss({"a": T}, {}), r"scales: needs those of \['a'\]"),
    ],
)
def test_check_12_what_cannot_be_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
