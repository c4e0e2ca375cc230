import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines
from jaxface.losses import gabn

A = jnp.stack([jnp.array([[1.0, 2.0], [0.0, -1.0]]), jnp.array([[0.0, 1.0], [3.0, 1.0]])], axis=-1)[None]
W = jnp.array([2.0, -1.0])
RNG = np.random.default_rng(0)


def random(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def pooled(features):
    return features.mean(axis=(1, 2)) @ W


def attention_of(tail, features, **options):
    """Maps of a number [B], an embedding of one entry: of both signs, the gradient of its score is its own."""
    labels = jnp.zeros(len(features), jnp.int32)

    @jax.jit
    def attention(features):
        return losses.gradient_attention(
            lambda a: tail(a)[:, None], features, jnp.ones((1, 1)), labels, **options
        )

    return attention(features)


def flattened(weights):
    return lambda features: (weights * features).sum(axis=(1, 2, 3))


# Checks by number are those of the method's specification, worked out on paper.


@pytest.mark.parametrize("kind", ["gradcam", "elementwise"])
def test_a_pooling_tail_by_hand(kind):
    """Check 1: relu(Σ_c w_c A_c) / 4 = [[.5, .75], [0, 0]]."""
    maps, valid = attention_of(pooled, A, kind=kind)
    np.testing.assert_allclose(maps[0], [[0.4, 0.6], [0, 0]], atol=2e-6)
    assert valid.tolist() == [True]
    gradients = jnp.broadcast_to(W / 4, A.shape)
    raw, _ = gabn._attention_maps(A, gradients, kind=kind)
    np.testing.assert_allclose(raw[0] * 1.25, [[0.5, 0.75], [0, 0]], atol=2e-6)


def test_flattening_tails_keep_places_elementwise_only():
    """Check 2; relu(Σ_c V A) and relu(Σ_c mean(V)_c A_c) in numpy."""
    weights = np.zeros((2, 2, 3), np.float32)
    weights[1, 0] = 1.0, 2.0, 0.5
    features = jnp.abs(random(4, 2, 2, 3)) + 0.1
    maps, _ = attention_of(flattened(weights), features)
    np.testing.assert_allclose(maps[:, 1, 0], 1, atol=1e-5)
    np.testing.assert_allclose(maps.sum((1, 2)) - maps[:, 1, 0], 0)
    spread, _ = attention_of(flattened(weights), features, kind="gradcam")
    raw = (weights.mean((0, 1)) * np.asarray(features)).sum(-1)
    np.testing.assert_allclose(spread, raw / raw.sum((1, 2), keepdims=True), rtol=1e-4)
    assert (spread > 0).all()
    anywhere = random(2, 2, 3)
    maps, _ = attention_of(flattened(anywhere), features)
    raw = np.maximum((np.asarray(anywhere) * np.asarray(features)).sum(-1), 0)
    np.testing.assert_allclose(maps, raw / (raw.sum((1, 2), keepdims=True) + 1e-6), rtol=1e-4)


def test_maps_are_distributions_or_nothing():
    """Check 3."""
    features, weights = random(16, 4, 4, 5), random(4, 4, 5)
    for kind in ("elementwise", "gradcam"):
        maps, valid = attention_of(flattened(weights), features, kind=kind)
        assert (maps >= 0).all() and valid.all()
        np.testing.assert_allclose(maps.sum((1, 2)), 1, atol=1e-4)
    against = np.abs(features[:2]) * np.array([-1, 1], np.float32)[:, None, None, None]
    maps, valid = attention_of(lambda a: a.mean(axis=(1, 2)) @ jnp.ones(5), against)
    assert valid.tolist() == [False, True] and (maps[0] == 0).all()


def test_attributions_of_the_projection_are_complete_and_those_of_the_cosine_cancel():
    """Check 13: Σ A ∂q/∂A is q, and 0, for a linear tail; the oracle is the cosine in float64 numpy."""
    features, kernel, classes = random(6, 3, 3, 4), random(36, 8), random(6, 8)

    @functools.partial(jax.jit, static_argnums=1)
    def attributions(features, score):
        def total(features):
            embeddings = features.reshape(6, -1) @ kernel
            values = losses.attention_score(embeddings, classes, score=score)
            return values.sum(), values

        gradient, values = jax.grad(total, has_aux=True)(features)
        return (gradient * features).sum((1, 2, 3)), values

    f, w = np.float64(features).reshape(6, -1) @ np.float64(kernel), np.float64(classes)
    expected = (f * w).sum(1) / np.linalg.norm(f, axis=1) / np.linalg.norm(w, axis=1)
    for score, total in (("projection", expected), ("cosine", np.zeros(6))):
        attribution, values = attributions(features, score)
        np.testing.assert_allclose(values, expected, atol=1e-5)
        np.testing.assert_allclose(attribution, total, atol=1e-5)


@functools.partial(jax.jit, static_argnames="score")
def summed(features, prototypes, labels, **options):
    """Maps of a network that adds up its places."""
    return losses.gradient_attention(lambda a: a.sum(axis=(1, 2)), features, prototypes, labels, **options)


def test_of_two_places_the_projection_finds_the_one_that_matters():
    """Check 14: without the first place the cosine falls from .9825 to .1961, without the second to .9806."""
    features = np.array([[[[10.0, 0.0], [0.0, 0.1]]]], np.float32)
    prototypes, labels = np.array([[0.0, 1.0], [1.0, 0.2]], np.float32), np.array([1])

    rests = np.array([[10.0, 0.1], [0.0, 0.1], [10.0, 0.0]], np.float32)
    for options, expected in (
        ({"score": "projection"}, [0.9980, 0.0020]),
        ({}, [0.9980, 0.0020]),
        ({"score": "cosine"}, [0, 0.9995]),
    ):
        cosines_of_rests = losses.attention_score(rests, np.tile(prototypes[1], (3, 1)), **options)
        np.testing.assert_allclose(cosines_of_rests, [0.9825, 0.1961, 0.9806], atol=5e-5)
        maps, valid = summed(features, prototypes, labels, **options)
        np.testing.assert_allclose(maps[0, 0], expected, atol=1e-4)
        assert valid.all()


def test_a_face_that_is_recognized_perfectly_has_a_map_under_the_projection_alone():
    """Check 14: what the cosine leaves is rounding, which the floor of a map keeps small."""
    features = np.abs(np.asarray(random(4, 2, 2, 3))) + np.float32(0.5)
    prototypes, labels = features.sum(axis=(1, 2)), np.arange(4)
    shares = (
        features * (prototypes / (prototypes**2).sum(1, keepdims=True))[:, None, None]
    )  # A ∂q/∂A = A w / ‖f‖
    for score in ("projection", "cosine"):
        maps, valid = summed(features, prototypes, labels, score=score)
        if score == "projection":
            np.testing.assert_allclose(maps, shares.sum(-1), atol=1e-5)
            assert valid.all()
        else:
            assert (maps.sum((1, 2)) < 0.5).all()


def embedder(kernel):
    return lambda features: jax.nn.silu(features.reshape(len(features), -1)) @ kernel


def test_labels_pick_the_class_and_the_length_of_prototypes_does_not_matter():
    """Check 4; the maps of each class by a prototype of one row."""
    features, kernel = random(6, 3, 3, 4), random(36, 8)
    prototypes, labels = np.asarray(random(5, 8)), np.array([0, 1, 2, 3, 4, 0])

    @jax.jit
    def attention(features, prototypes, labels):
        return losses.gradient_attention(embedder(kernel), features, prototypes, labels)

    maps, _ = attention(features, prototypes, labels)
    longer = prototypes * np.array([1.0, 7.0, 0.2, 3.0, 5.0])[:, None]
    np.testing.assert_allclose(attention(features, longer, labels).maps, maps, rtol=1e-3, atol=1e-6)
    # As if the class of each record were the only one.
    alone, _ = attention(features, np.tile(prototypes[2], (5, 1)), np.zeros(6, np.int32))
    np.testing.assert_allclose(alone[2], maps[2], rtol=1e-3, atol=1e-6)
    assert np.abs(attention(features, prototypes, (labels + 1) % 5).maps - maps).max() > 0.01
    # A traced label that is no class has no map, rather than that of another class.
    assert (
        attention(features, prototypes, np.array([5, -1, 0, 1, 2, 3])).valid.tolist()
        == [False] * 2 + [True] * 4
    )


def test_maps_of_the_image_are_the_largest_channel_averaged_over_blocks():
    images, weights = random(3, 6, 4, 2), random(6, 4, 2)
    maps, _ = attention_of(flattened(weights), images, kind="input", grid=(3, 2))
    expected = np.abs(weights).max(-1).reshape(3, 2, 2, 2).mean((1, 3))
    np.testing.assert_allclose(maps[0], expected / expected.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "score"),
    [
        ("elementwise", "projection"),
        ("elementwise", "cosine"),
        ("gradcam", "projection"),
        ("input", "projection"),
    ],
)
def test_second_derivatives_agree_with_finite_differences(kind, score):
    """Check 11: a loss over maps, by one weight of the features that are mapped."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        images, kernel = jnp.asarray(rng.normal(size=(5, 4, 4, 2))), jnp.asarray(rng.normal(size=(48, 6)))
        weights = jnp.asarray(rng.normal(size=(2, 3)))
        judge, prototypes = jnp.asarray(rng.normal(size=(16, 3))), jnp.asarray(rng.normal(size=(4, 6)))
        labels = jnp.array([0, 1, 2, 3, 1])

        def value(weights):
            def features(x):
                return jax.nn.silu(x @ weights)

            tail, inputs = embedder(kernel), features(images)
            if kind == "input":
                tail, inputs = lambda x: embedder(kernel)(features(x)), images
            maps = losses.gradient_attention(tail, inputs, prototypes, labels, kind=kind, score=score).maps
            return losses.adversarial_uniform(16 * maps.reshape(5, -1) @ judge).mean()

        value_and_gradient = jax.jit(jax.value_and_grad(value))
        total, gradient = value_and_gradient(weights)
        assert total.dtype == jnp.float64
        for place in ((0, 0), (1, 2)):
            step = np.zeros(weights.shape)
            step[place] = 1e-6
            finite = (value_and_gradient(weights + step)[0] - value_and_gradient(weights - step)[0]) / 2e-6
            assert abs(finite) > 1e-3
            np.testing.assert_allclose(gradient[place], finite, rtol=1e-3)


def test_adversarial_terms_by_hand():
    """Check 5: log 4, and log 4 + .429813."""
    np.testing.assert_allclose(losses.adversarial_uniform(jnp.full((3, 4), 2.0)), 1.386294, rtol=1e-6)
    skewed = jnp.log(jnp.array([[0.7, 0.1, 0.1, 0.1]]))
    np.testing.assert_allclose(losses.adversarial_uniform(skewed), 1.816108, rtol=1e-6)
    gradient = jax.grad(lambda z: losses.adversarial_uniform(z).sum())
    np.testing.assert_allclose(gradient(jnp.full((3, 4), 2.0)), 0, atol=1e-7)
    assert jnp.abs(gradient(skewed)).max() > 0.1
    groups = jnp.array([0, 1, 3])
    logits = jnp.tile(skewed, (3, 1))
    np.testing.assert_allclose(losses.discriminator_loss(logits, groups), -np.log([0.7, 0.1, 0.1]), rtol=1e-5)
    pushed = losses.adversarial_to_reference(logits, groups)
    np.testing.assert_allclose(pushed, [0, -np.log(0.7), -np.log(0.7)], rtol=1e-5)
    pushed = losses.adversarial_to_reference(logits, groups, reference=3)
    np.testing.assert_allclose(pushed, [-np.log(0.1), -np.log(0.1), 0], rtol=1e-5)
    masked = losses.adversarial_uniform(
        logits, valid=jnp.array([True, False, True]), weights=jnp.array([2.0, 1.0, 0.5])
    )
    np.testing.assert_allclose(masked, 1.816108 * np.array([2, 0, 0.5]), rtol=1e-6)


def test_groups_of_a_batch_weigh_alike():
    groups = jnp.array([0, 0, 0, 1, 2, 2])
    weights = losses.group_weights(groups, 3)
    np.testing.assert_allclose(weights, [2 / 3] * 3 + [2] + [1, 1], rtol=1e-6)
    assert jnp.isfinite(losses.group_weights(groups, 4)).all()
    spread = jax.vmap(
        functools.partial(losses.group_weights, count=3, axis_name="devices"), axis_name="devices"
    )
    np.testing.assert_allclose(spread(groups.reshape(2, 3)).reshape(-1), weights, rtol=1e-6)


def test_the_best_cells_are_erased():
    """Check 6."""
    maps = (jnp.arange(16.0) / 15).reshape(1, 4, 4)
    np.testing.assert_allclose(
        maps.reshape(2, 2, 2, 2).mean((1, 3)).reshape(-1), [0.166667, 0.3, 0.7, 0.833333], atol=1e-6
    )

    def mask(count, maps=maps, cells=2):
        return np.asarray(losses.topn_mask(maps, count=count, cells=cells, image_shape=(8, 12)))

    one = np.ones((1, 8, 12))
    one[:, 4:, 6:] = 0
    np.testing.assert_array_equal(mask(1), one)
    two = np.ones((1, 8, 12))
    two[:, 4:] = 0
    np.testing.assert_array_equal(mask(2), two)
    assert (mask(0) == 1).all() and (mask(4) == 0).all() and mask(1).dtype == np.float32
    ties = mask(2, jnp.full((1, 4, 4), 0.1), 4)
    assert ties[0, :2, :6].sum() == 0 and ties.sum() == 8 * 12 - 2 * 6
    images = random(1, 8, 12, 3)
    np.testing.assert_array_equal(losses.erase(images, mask(0)), images)
    assert (losses.erase(images, mask(4)) == 0).all()
    noisy = losses.erase(images, mask(1), jnp.full_like(images, 0.25))
    assert (noisy[:, 4:, 6:] == 0.25).all()
    np.testing.assert_array_equal(noisy[:, :4], images[:, :4])
    # Each image by its own map.
    both = losses.topn_mask(jnp.concatenate([maps, maps[:, ::-1]]), count=1, cells=2, image_shape=(4, 4))
    assert both[0, 3, 3] == 0 and both[1, 0, 3] == 0 and both[1, 3, 3] == 1


def test_masks_are_constants():
    """Check 8."""
    features, kernel, prototypes = random(4, 4, 4, 2), random(32, 6), random(3, 6)
    images, labels = random(4, 8, 8, 2), jnp.array([0, 1, 2, 0])
    resized = jnp.asarray(RNG.normal(size=(128, 32)) / 10, jnp.float32)

    def erased_loss(kernel, mask=None):
        if mask is None:
            maps = losses.gradient_attention(embedder(kernel), features, prototypes, labels).maps
            mask = losses.topn_mask(maps, count=3, cells=4, image_shape=(8, 8))
        seen = (losses.erase(images, mask).reshape(4, -1) @ resized).reshape(4, 4, 4, 2)
        return losses.cosface_loss(cosines(embedder(kernel)(seen), prototypes), labels).mean(), mask

    gradient_of = jax.jit(jax.grad(erased_loss, has_aux=True))
    gradient, mask = gradient_of(kernel)
    fixed, _ = gradient_of(kernel, mask)
    np.testing.assert_allclose(gradient, fixed, rtol=1e-5, atol=1e-7)
    assert jnp.abs(gradient).max() > 0

    def total(kernel):
        return erased_loss(kernel)[1].sum()

    assert (jax.jit(jax.grad(total))(kernel) == 0).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_boundaries_and_types(dtype):
    """No feature, features of one value, and an embedding of zeros: finite values and bounded gradients."""
    kernel, prototypes = jnp.ones((8, 3), dtype), jnp.ones((2, 3), dtype)

    def value(features, shift, score):
        attention = losses.gradient_attention(
            lambda a: embedder(kernel)(a + shift), features, prototypes, np.array([0]), score=score
        )
        return losses.adversarial_uniform(attention.maps.reshape(1, -1)).sum(), attention

    @jax.jit
    def both(features, shift):
        differentiated = jax.value_and_grad(value, has_aux=True)
        return [differentiated(features, shift, score) for score in ("projection", "cosine")]

    for features, shift in ((0, 1e-3), (1, 1e-3), (0, 0)):
        for (total, attention), gradient in both(np.full((1, 2, 2, 2), features, dtype), dtype(shift)):
            assert attention.maps.dtype == jnp.float32 and total.dtype == jnp.float32
            assert np.isfinite(total) and (np.abs(gradient.astype(np.float32)) < 1e4).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: losses.topn_mask(jnp.ones((1, 4, 4)), count=5, cells=2, image_shape=(8, 8)), "erase: needs"),
        (
            lambda: losses.topn_mask(jnp.ones((1, 4, 4)), count=1, cells=4, image_shape=(8, 10)),
            "cells: needs",
        ),
        (lambda: losses.topn_mask(jnp.ones((1, 4, 4)), count=1, cells=8, image_shape=(8, 8)), "cells: needs"),
        (lambda: losses.adversarial_uniform(jnp.ones((2, 1))), "groups: needs at least two, got 1"),
        (lambda: losses.group_weights(jnp.array([0]), 1), "groups: needs at least two, got 1"),
        (
            lambda: losses.adversarial_to_reference(jnp.ones((1, 2)), jnp.array([0]), reference=2),
            "reference: needs",
        ),
        (lambda: gabn._attention_maps(A, A, grid=(3, 1)), "grid: needs divisors"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_misuse_is_named():
    for group in (2, -1):
        with pytest.raises(ValueError, match=r"^groups: needs values in \[0, 2\), got "):
            losses.discriminator_loss(jnp.ones((2, 2)), jnp.array([0, group]))
    with pytest.raises(ValueError, match="kind: needs one of gradcam"):
        gabn._attention_maps(A, A, kind="max")
    with pytest.raises(AssertionError, match="features and gradients differ"):
        gabn._attention_maps(A, A[:, :1])
    with pytest.raises(ValueError, match="score: needs one of projection, cosine, got 'dot'"):
        losses.attention_score(jnp.ones((2, 3)), jnp.ones((2, 3)), score="dot")
    with pytest.raises(AssertionError, match="embeddings and class_prototypes differ"):
        losses.attention_score(jnp.ones((2, 3)), jnp.ones((1, 3)))
    with pytest.raises(AssertionError, match=r"embeddings: needs shape \[B, D\]"):
        losses.gradient_attention(pooled, A, jnp.ones((1, 1)), jnp.array([0]))
