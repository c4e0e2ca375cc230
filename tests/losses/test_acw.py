import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import layers, losses
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize
from jaxface.training import class_banks

RGB = jnp.array([[0.8, 0.1, 0.3]])
DEPTH = jnp.array([[0.2, 0.7, 0.1]])
LABEL = np.array([0])


def logits_of(confidence):
    return jnp.log(jnp.array([[confidence, 1 - confidence]]))


def unit(rng, *shape):
    return l2_normalize(jnp.asarray(rng.normal(size=shape), jnp.float32))


def cross_entropy(confidence):
    """The oracle of the constants below: S (c cos_r + (1 - c) cos_d) and its cross-entropy in float64 numpy."""
    z = 16 * (confidence * np.float64([0.8, 0.1, 0.3]) + (1 - confidence) * np.float64([0.2, 0.7, 0.1]))
    return np.log(np.exp(z).sum()) - z[0]


@pytest.mark.parametrize(("confidence", "expected"), [(0.5, 0.190725), (0.75, 0.003318), (0.25, 3.241549)])
def test_values_by_hand(confidence, expected):
    loss = losses.acw_loss(logits_of(confidence), RGB, DEPTH, LABEL, scale=16.0)
    np.testing.assert_allclose(cross_entropy(confidence), expected, atol=1e-6)
    np.testing.assert_allclose(loss, [cross_entropy(confidence)], rtol=1e-3, atol=2e-6)


def test_the_gradient_moves_confidence_to_the_modality_that_is_right():
    gradient = jax.jit(jax.grad(lambda l: losses.acw_loss(l, RGB, DEPTH, LABEL, scale=16.0).sum()))
    # By central differences of the float64 oracle: ∂c_r/∂l_r = c_r c_d = 1/4.
    slope = (cross_entropy(0.5 + 1e-6) - cross_entropy(0.5 - 1e-6)) / 2e-6 / 4
    np.testing.assert_allclose(slope, -0.811709, atol=1e-6)
    np.testing.assert_allclose(gradient(jnp.zeros((1, 2))), [[slope, -slope]], rtol=1e-5)
    # The closed form at other logits: c = softmax(1.2, -0.3) = 1 / (1 + exp(-1.5)).
    logits = jnp.array([[1.2, -0.3]])
    c = np.asarray(jax.nn.softmax(logits))[0]
    np.testing.assert_allclose(c, [1 / (1 + np.exp(-1.5)), 1 / (1 + np.exp(1.5))], atol=1e-6)
    z = 16 * (c[0] * RGB + c[1] * DEPTH)[0]
    p = jax.nn.softmax(z) - jnp.array([1.0, 0, 0])
    expected = c[0] * c[1] * 16 * jnp.sum(p * (RGB - DEPTH)[0])
    np.testing.assert_allclose(gradient(logits), [[expected, -expected]], rtol=1e-5)


def test_modalities_that_agree_give_no_gradient_at_all():
    scores = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (5, 7)), jnp.float32)
    labels = np.array([0, 6, 3, 2, 2])
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(5, 2)), jnp.float32)
    gradient = jax.jit(jax.grad(lambda l: losses.acw_loss(l, scores, scores, labels).sum()))(logits)
    np.testing.assert_array_equal(gradient, np.zeros((5, 2)))


def test_what_the_recognizers_say_is_a_constant():
    value = lambda r, d: losses.acw_loss(jnp.zeros((1, 2)), r, d, LABEL).sum()  # noqa: E731
    for gradient in jax.jit(jax.grad(value, (0, 1)))(RGB, DEPTH):
        np.testing.assert_array_equal(gradient, np.zeros((1, 3)))
    net = layers.ConfidenceNet(4)
    rng = np.random.default_rng(0)
    features = unit(rng, 3, 5), unit(rng, 3, 6), jnp.ones(3), jnp.ones(3)
    params = jax.jit(net.init)(jax.random.key(0), *features)
    params = jax.tree.map(lambda x: x + 0.3, params)
    gradients = jax.jit(jax.grad(lambda *f: net.apply(params, *f).sum(), (0, 1, 2, 3)))(*features)
    assert all((g == 0).all() for g in gradients)


def test_boundaries_are_finite():
    logits = jnp.array([[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]])
    scores = jnp.array([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]])
    value, gradient = jax.jit(
        jax.value_and_grad(lambda l: losses.acw_loss(l, scores, -scores, np.array([0, 0, 1])).sum())
    )(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_types_jit_and_vmap():
    half = losses.acw_loss(
        jnp.zeros((1, 2), jnp.bfloat16), RGB.astype(jnp.bfloat16), DEPTH.astype(jnp.bfloat16), LABEL
    )
    assert half.dtype == jnp.float32
    rng = np.random.default_rng(2)
    logits, rgb, depth = (
        jnp.asarray(rng.uniform(-1, 1, s), jnp.float32) for s in ((3, 4, 2), (3, 4, 5), (3, 4, 5))
    )
    labels = np.array([[0, 1, 2, 3]] * 3)
    rows = jnp.stack([losses.acw_loss(*x) for x in zip(logits, rgb, depth, labels, strict=True)])
    mapped = jax.jit(jax.vmap(losses.acw_loss))(logits, rgb, depth, labels)
    np.testing.assert_allclose(mapped, rows, rtol=1e-5)
    np.testing.assert_allclose(
        jax.jit(losses.acw_loss)(logits[0], rgb[0], depth[0], labels[0]), rows[0], rtol=1e-5
    )


def test_prototypes_without_the_image_itself():
    rng = np.random.default_rng(3)
    features, labels = unit(rng, 5, 6), np.array([0, 0, 1, 1, 1])
    sums = class_banks.add_class_features(jnp.zeros((2, 6)), features, labels)
    scores = losses.leave_one_out_cosines(features, labels, sums, features)
    # In a class of two the other image is all that is left.
    np.testing.assert_allclose(scores[0, 0], features[0] @ features[1], atol=1e-6)
    np.testing.assert_allclose(scores[1, 0], scores[0, 0], atol=1e-6)
    others = l2_normalize(features[3] + features[4])
    np.testing.assert_allclose(scores[2, 1], features[2] @ others, atol=1e-6)
    whole = l2_normalize(features[:2].sum(axis=0))
    np.testing.assert_allclose(scores[2, 0], features[2] @ whole, atol=1e-6)
    # Nothing is left out of a zero share, and one image is its own prototype.
    plain = losses.leave_one_out_cosines(features, labels, sums)
    zeros = losses.leave_one_out_cosines(features, labels, sums, jnp.zeros_like(features))
    np.testing.assert_allclose(plain, zeros, atol=1e-6)
    one = losses.leave_one_out_cosines(features[:1], np.array([0]), features[:1])
    np.testing.assert_allclose(one, [[1.0]], atol=1e-6)
    left = losses.leave_one_out_cosines(features[:1], np.array([0]), features[:1], features[:1])
    np.testing.assert_array_equal(left, [[0.0]])


def test_a_fresh_network_trusts_both_alike():
    net, rng = layers.ConfidenceNet(8), np.random.default_rng(4)
    features = unit(rng, 6, 5), unit(rng, 6, 7), jnp.arange(6.0), jnp.zeros(6)
    logits = net.apply(net.init(jax.random.key(0), *features), *features)
    np.testing.assert_array_equal(jax.nn.softmax(logits), np.full((6, 2), 0.5))
    assert logits.dtype == jnp.float32


def test_inputs_of_the_network():
    rng = np.random.default_rng(5)
    u = unit(rng, 2, 5)
    rgb, depth = u, unit(rng, 2, 7)
    long, short = jnp.full(2, 9.0), jnp.full(2, 3.0)

    def answers(**options):
        net = layers.ConfidenceNet(8, **options)
        params = jax.jit(net.init)(jax.random.key(0), rgb, depth, short, short)
        params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)
        seen = (rgb, depth, short, short), (rgb, depth, long, short), (-rgb, depth, short, short)
        apply = jax.jit(net.apply)
        return [apply(params, *f) for f in seen]

    same, longer, other = answers()
    assert (same != longer).any() and (same != other).any()  # lengths and embeddings both count
    same, longer, other = answers(norms=False)
    assert (same == longer).all() and (same != other).any()
    same, longer, other = answers(features=False)
    assert (same != longer).any() and (same == other).all()
    with pytest.raises(ValueError, match="at least one"):
        answers(features=False, norms=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": 0.0}, "scale: needs a finite number above 0"),
        ({"scale": float("nan")}, "scale: needs a finite number above 0"),
        ({"logits": jnp.zeros((2, 2))}, "differ in batch"),
        ({"logits": jnp.zeros((1, 3))}, "logits: needs shape"),
        ({"depth_cosines": jnp.zeros((1, 4))}, "differ"),
        ({"rgb_cosines": jnp.full((1, 3), jnp.nan)}, "rgb_cosines: needs finite"),
        ({"labels": np.array([3])}, r"\[0, 3\)"),
        ({"labels": np.array([0.0])}, "integer"),
    ],
)
def test_refusals_of_the_loss(change, words):
    given = dict(logits=jnp.zeros((1, 2)), rgb_cosines=RGB, depth_cosines=DEPTH, labels=LABEL) | change
    with pytest.raises((ValueError, AssertionError), match=words):
        losses.acw_loss(**given)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": 1.01 * jnp.eye(2)}, "features: needs rows of length 1 or 0, got 1.01"),
        ({"features": jnp.full((2, 2), jnp.nan)}, "features: needs finite"),
        (
            {"sums": jnp.eye(2) * jnp.array([[1.0], [0.0]])},
            "sums: every class needs an image, class 1 has none",
        ),
        ({"labels": np.array([0])}, "differ in batch"),
        ({"sums": jnp.ones((2, 3))}, "differ in size"),
        ({"share": jnp.ones((1, 2))}, "share must have"),
    ],
)
def test_refusals_of_prototypes(change, words):
    given = dict(features=jnp.eye(2), labels=np.array([0, 1]), sums=2 * jnp.eye(2), share=jnp.eye(2)) | change
    with pytest.raises((UserError, ValueError, AssertionError), match=words):
        losses.leave_one_out_cosines(**given)
