"""The numbers of the spec, recomputed by hand, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses
from jaxface.errors import UserError
from jaxface.layers import sample_gaussian
from jaxface.losses import QualityStats, SemanticHead

MU, LOGVAR = jnp.array([[0.5, -1.0]]), jnp.log(jnp.array([[1.0, 0.25]]))
MARGINS = (
    (4, 8, 1.965515, 0.877129),
    (1, 1, 0.847367, 0.700014),
    (-2, 5, -1.161791, 0.238342),
    (6, 100, 0.945499, 0.720209),
)


def one(value):
    return jnp.array([value], jnp.float32)


def test_the_divergence_and_its_gradients():
    np.testing.assert_allclose(losses.gaussian_kl(MU, LOGVAR, reduce="sum"), [0.943147], rtol=1e-5)
    np.testing.assert_allclose(losses.gaussian_kl(MU, LOGVAR), [0.471574], rtol=1e-5)
    np.testing.assert_allclose(0.125 + 0.818147, 0.943147)
    total = jax.jit(jax.grad(lambda m, v: losses.gaussian_kl(m, v, reduce="sum").sum(), (0, 1)))
    by_mu, by_logvar = total(MU, LOGVAR)
    np.testing.assert_allclose(by_mu, [[0.5, -1.0]], rtol=1e-6)
    np.testing.assert_allclose(by_logvar, [[0.0, -0.375]], atol=1e-6)
    codes = np.random.default_rng(0).normal(size=(2, 50, 4))
    assert (losses.gaussian_kl(codes[0], codes[1]) > 0).all()
    assert losses.gaussian_kl(jnp.zeros((3, 4)), jnp.zeros((3, 4))).tolist() == [0, 0, 0]


def head(mu, logvar):
    kernel = jnp.array([[1.0, 0.0, -1.0], [0.0, 1.0, 1.0]])
    return SemanticHead(jnp.array([mu]), jnp.array([logvar]), kernel, jnp.zeros(3))


def test_a_sample_classified_by_hand(monkeypatch):
    monkeypatch.setattr(
        jax.random, "normal", lambda key, shape: jnp.broadcast_to(jnp.array([0.5, -1.0]), shape)
    )
    part = head([0.3, -0.2], [-1.0, -2.0])
    sample = sample_gaussian(jax.random.key(0), part.mu, part.logvar)
    np.testing.assert_allclose(sample, [[0.603265, -0.567879]], atol=1e-6)
    np.testing.assert_allclose(sample @ part.kernel, [[0.603265, -0.567879, -1.171145]], atol=1e-6)
    loss, report = losses.lq_loss(
        jax.random.key(0), {"lamp": part}, {"lamp": jnp.array([0])}, lam=2.0, beta=0.0
    )
    np.testing.assert_allclose((loss, report["lamp_loss"]), (2 * 0.391769, 0.391769), rtol=1e-5)


def test_weights_of_groups_multiply_the_divergence_and_the_mean_is_the_sum_over_its_dimensions():
    heads = {"a": head([0.3, -0.2], [-1.0, -2.0]), "b": head([1.0, 2.0], [0.0, 0.0])}
    labels = {"a": jnp.array([0]), "b": jnp.array([2])}
    plain = {name: losses.masked_label_loss(h.mu @ h.kernel, labels[name]) for name, h in heads.items()}
    kl = {name: losses.gaussian_kl(h.mu, h.logvar)[0] for name, h in heads.items()}
    lam = {"a": 0.5, "b": 3.0}
    expected = sum(lam[n] * (plain[n] + 10 * kl[n]) for n in heads)
    for options in ({"beta": 10.0}, {"beta": 5.0, "reduce": "sum"}):
        loss, _ = losses.lq_loss(None, heads, labels, lam=lam, sample=False, **options)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
    still = {name: h._replace(logvar=jnp.full_like(h.logvar, -30.0)) for name, h in heads.items()}
    drawn, means = (
        losses.lq_loss(jax.random.key(1), still, labels, lam=lam, beta=0.0, sample=sample)[0]
        for sample in (True, False)
    )
    np.testing.assert_allclose(drawn, means, atol=2e-6)


def test_moderation():
    m, v, margin, probability = np.array(MARGINS, np.float32).T
    moderated = jax.jit(
        lambda m, v: (
            losses.moderated_margin(m, v),
            losses.moderated_prob(m, v),
            losses.moderated_prob(-m, v),
        )
    )
    found = moderated(m, v)
    for value, expected in zip(found, (margin, probability, 1 - probability), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    points, weights = np.polynomial.hermite_e.hermegauss(120)
    exact = (weights / weights.sum() / (1 + np.exp(-(m[:, None] + np.sqrt(v)[:, None] * points)))).sum(axis=1)
    assert (np.abs(exact - probability) < 0.01).all()


def test_what_moderation_keeps_and_what_it_changes():
    m, v = np.linspace(-8, 8, 33, dtype=np.float32), np.full(33, 7.0, np.float32)
    moderated = jax.jit(losses.moderated_margin)
    still, moved, more = (np.asarray(moderated(m, k * v)) for k in (0, 1, 2))
    np.testing.assert_array_equal(still, m)
    assert (np.diff(moved) > 0).all() and (np.sign(moved) == np.sign(m)).all()
    assert (np.abs(more) <= np.abs(moved)).all()
    noisy, clean = moderated(np.array([5.0, 2.0], np.float32), np.array([60.0, 0.0], np.float32))
    np.testing.assert_allclose((noisy, clean), (1.008878, 2.0), rtol=1e-5)  # ranks turn round


def test_a_wrong_margin_makes_the_variance_grow():
    @jax.jit
    @jax.vmap
    def both(m):
        return jax.value_and_grad(lambda v: losses.dq_loss(m[None], v[None], jnp.ones(1, int))[0])(1.0)

    values, slopes = both(jnp.array([-3.0, 3.0]))
    np.testing.assert_allclose(values, (2.617857, 0.075758), rtol=1e-4)
    np.testing.assert_allclose(slopes, (-0.332249, 0.026148), rtol=1e-4)


def test_the_sampled_loss():
    noise = np.array([[[1.0, -1.0]], [[-1.0, 1.0]], [[0.0, 0.0]]], np.float32)
    logits, label = np.array([[2.0, 0.0]], np.float32), np.array([0])

    @jax.jit
    def found(noise):
        return losses.dq_mc_loss(None, logits, jnp.full(1, 1.5), label, noise=noise)

    each = [found(noise[t : t + 1]) for t in range(3)]
    np.testing.assert_allclose(each, (0.006715, 1.313262, 0.126928), rtol=1e-4)
    np.testing.assert_allclose(found(noise), 0.336384, rtol=1e-5)
    plain = np.log1p(np.exp(-2.0))
    for samples in (1, 5):
        drawn = jax.jit(lambda key, n=samples: losses.dq_mc_loss(key, logits, jnp.zeros(1), label, samples=n))
        np.testing.assert_allclose(drawn(jax.random.key(0)), plain, rtol=1e-6)


def test_attributes_count_where_the_mask_says():
    logits = jnp.array([[1.0, -2.0], [3.0, 0.5]])
    labels = jnp.array([[1, 0], [0, 1]])
    first = np.log1p(np.exp([-1.0, -2.0])).mean()
    loss = losses.masked_label_loss(logits, labels, jnp.array([True, False]))
    np.testing.assert_allclose(loss, first, rtol=1e-6)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda z: losses.masked_label_loss(z, labels, jnp.zeros(2)))
    )(logits)
    assert value == 0 and (gradient == 0).all()


def test_the_variance_is_in_units_of_the_margins():
    features = jnp.array([[0.0, 2.0, 1.0], [4.0, 6.0, 1.0]])
    stats = losses.quality_stats(features, jnp.array([6.0, -8.0]))
    assert stats.mean.tolist() == [2, 4, 1] and stats.scale == 50
    np.testing.assert_allclose(stats.std, [2, 2, 4 / 300], rtol=1e-5)  # what does not move is not blown up
    found = losses.quality_variance(lambda h: h.sum(axis=1), features, stats)
    np.testing.assert_allclose(found, 50 * np.log1p(np.exp([-2.0, 2.0])), rtol=1e-5)


HEAD = head([0.3, -0.2], [-1.0, -2.0])
LABEL = {"lamp": jnp.array([0])}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: losses.gaussian_kl(MU, LOGVAR[:, :1]), "logvar: needs \\[B, D\\] as the means"),
        (lambda: losses.gaussian_kl(MU, LOGVAR, reduce="max"), "reduce: needs mean or sum, got 'max'"),
        (lambda: losses.lq_loss(None, {"lamp": HEAD}, LABEL), "key: needs a random key"),
        (lambda: losses.lq_loss(None, {"lamp": HEAD}, LABEL, beta=-1.0, sample=False), "beta: needs .* got -1"),
        (lambda: losses.lq_loss(None, {"lamp": HEAD}, LABEL, lam=-1.0, sample=False), "lam: needs .* got -1"),
        (lambda: losses.lq_loss(None, {"lamp": HEAD}, LABEL, lam={}, sample=False), "lam: needs a weight of 'lamp'"),
        (lambda: losses.lq_loss(None, {"lamp": HEAD}, {}, sample=False), "labels: needs the groups"),
        (lambda: losses.lq_loss(None, {"lamp": HEAD}, {"lamp": jnp.array([3])}, sample=False), "labels: .*3"),
        (lambda: losses.lq_loss(None, {"lamp": HEAD._replace(kernel=jnp.zeros((3, 3)))}, LABEL, sample=False),
         "lamp: needs a kernel \\[2, K\\]"),
        (lambda: losses.moderated_margin(one(1), one(-1)), "variance: needs values from 0, got -1"),
        (lambda: losses.moderated_margin(one(1), jnp.zeros(2)), "variance: needs the shape"),
        (lambda: losses.moderated_margin(one(np.nan), one(1)), "margin: needs finite"),
        (lambda: losses.dq_loss(one(1), one(1), jnp.array([2])), "live: .*2"),
        (lambda: losses.dq_loss(one(1), one(1), one(1)), "live: needs an integer dtype"),
        (lambda: losses.dq_mc_loss(None, MU, one(1), jnp.array([0]), samples=0), "samples: needs .* got 0"),
        (lambda: losses.dq_mc_loss(None, MU, one(1), jnp.array([0])), "key: needs a random key"),
        (lambda: losses.dq_mc_loss(None, MU, one(-1), jnp.array([0])), "deviation: needs values from 0"),
        (lambda: losses.masked_label_loss(MU, jnp.array([[0, 2]])), "labels: needs 0 and 1"),
        (lambda: losses.quality_variance(lambda h: h[:, 0], MU, QualityStats(one(0), one(1), one(1))), "features: needs"),
    ],
)  # fmt: skip
def test_refusals(call, words):
    with pytest.raises((UserError, ValueError), match=words):
        call()
