import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses
from jaxface.errors import UserError
from jaxface.losses import gabn

A = jnp.stack([jnp.array([[1.0, 2.0], [0.0, -1.0]]), jnp.array([[0.0, 1.0], [3.0, 1.0]])], axis=-1)[None]
W = jnp.array([2.0, -1.0])
RNG = np.random.default_rng(0)


def random(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def pooled(features):
    return features.mean(axis=(1, 2)) @ W


@pytest.mark.parametrize("kind", ["gradcam", "elementwise"])
def test_a_pooling_tail_by_hand(kind):
    maps, valid = losses.gradient_attention(pooled, A, kind=kind)
    gradients = jax.grad(lambda a: pooled(a).sum())(A)
    raw = jax.nn.relu((gradients * A).sum(-1))
    np.testing.assert_allclose(raw[0], [[0.5, 0.75], [0, 0]])
    np.testing.assert_allclose(maps[0], [[0.4, 0.6], [0, 0]], atol=2e-6)
    assert valid.tolist() == [True]


def test_flattening_tails_keep_places_elementwise_only():
    weights = jnp.zeros((2, 2, 3)).at[1, 0].set(jnp.array([1.0, 2.0, 0.5]))
    features = jnp.abs(random(4, 2, 2, 3)) + 0.1

    def tail(a):
        return (weights * a).sum(axis=(1, 2, 3))

    maps, _ = losses.gradient_attention(tail, features)
    np.testing.assert_allclose(maps[:, 1, 0], 1, atol=1e-5)
    np.testing.assert_allclose(maps.sum((1, 2)) - maps[:, 1, 0], 0)
    spread, _ = losses.gradient_attention(tail, features, kind="gradcam")
    raw = (weights.mean((0, 1)) * features).sum(-1)
    np.testing.assert_allclose(spread, raw / raw.sum((1, 2), keepdims=True), rtol=1e-4)
    assert (spread > 0).all()
    # Any weights: relu(Σ V A).
    anywhere = random(2, 2, 3)
    maps, _ = losses.gradient_attention(lambda a: (anywhere * a).sum(axis=(1, 2, 3)), features)
    raw = jax.nn.relu((anywhere * features).sum(-1))
    np.testing.assert_allclose(maps, raw / (raw.sum((1, 2), keepdims=True) + 1e-6), rtol=1e-5)


def test_maps_are_distributions_or_nothing():
    features = random(16, 4, 4, 5)
    weights = random(4, 4, 5)
    for kind in ("elementwise", "gradcam"):
        maps, valid = losses.gradient_attention(
            lambda a: (weights * a).sum(axis=(1, 2, 3)), features, kind=kind
        )
        assert (maps >= 0).all() and valid.all()
        np.testing.assert_allclose(maps.sum((1, 2)), 1, atol=1e-4)
    against = jnp.concatenate([-jnp.abs(features[:1]), jnp.abs(features[1:2])])
    maps, valid = losses.gradient_attention(lambda a: a.mean(axis=(1, 2)) @ jnp.ones(5), against)
    assert valid.tolist() == [False, True] and (maps[0] == 0).all()


def recognizer(features, prototypes, kernel):
    embeddings = jax.nn.silu(features.reshape(len(features), -1)) @ kernel
    unit, classes = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (embeddings, prototypes))
    return unit @ classes.T


def test_labels_pick_the_own_class_and_the_length_of_prototypes_does_not_matter():
    features, prototypes, kernel = random(6, 3, 3, 4), random(5, 8), random(36, 8)
    labels = jnp.array([0, 1, 2, 3, 4, 0])
    maps, _ = losses.gradient_attention(lambda a: recognizer(a, prototypes, kernel), features, labels)
    longer = prototypes * jnp.array([1.0, 7.0, 0.2, 3.0, 5.0])[:, None]
    others, _ = losses.gradient_attention(lambda a: recognizer(a, longer, kernel), features, labels)
    np.testing.assert_allclose(maps, others, rtol=1e-3, atol=1e-6)
    same, _ = losses.gradient_attention(
        lambda a: recognizer(a, prototypes, kernel)[jnp.arange(6), labels], features
    )
    np.testing.assert_allclose(maps, same, rtol=1e-5)
    wrong, _ = losses.gradient_attention(
        lambda a: recognizer(a, prototypes, kernel), features, (labels + 1) % 5
    )
    assert jnp.abs(wrong - maps).max() > 0.01


def test_maps_of_the_image_are_the_largest_channel_averaged_over_blocks():
    images, weights = random(3, 6, 4, 2), random(6, 4, 2)
    maps, _ = losses.gradient_attention(
        lambda x: (weights * x).sum(axis=(1, 2, 3)), images, kind="input", grid=(3, 2)
    )
    expected = np.abs(weights).max(-1).reshape(3, 2, 2, 2).mean((1, 3))
    np.testing.assert_allclose(maps[0], expected / expected.sum(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["elementwise", "gradcam", "input"])
def test_second_derivatives_agree_with_finite_differences(kind):
    """A loss over maps, by one weight of the features that are mapped."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        images, kernel = jnp.asarray(rng.normal(size=(5, 4, 4, 2))), jnp.asarray(rng.normal(size=(48, 6)))
        weights = jnp.asarray(rng.normal(size=(2, 3)))
        judge, prototypes = jnp.asarray(rng.normal(size=(16, 3))), jnp.asarray(rng.normal(size=(4, 6)))
        labels = jnp.array([0, 1, 2, 3, 1])

        def value(weights):
            def features(x):
                return jax.nn.silu(x @ weights)

            def tail(a):
                return recognizer(a, prototypes, kernel)

            if kind == "input":
                found = losses.gradient_attention(lambda x: tail(features(x)), images, labels, kind=kind)
            else:
                found = losses.gradient_attention(tail, features(images), labels, kind=kind)
            return losses.adversarial_uniform(16 * found.maps.reshape(5, -1) @ judge).mean()

        value, gradient_of = jax.jit(value), jax.jit(jax.grad(value))
        assert value(weights).dtype == jnp.float64
        gradient = gradient_of(weights)
        for place in ((0, 0), (1, 2)):
            step = jnp.zeros_like(weights).at[place].set(1e-6)
            finite = (value(weights + step) - value(weights - step)) / 2e-6
            assert abs(finite) > 1e-3
            np.testing.assert_allclose(gradient[place], finite, rtol=1e-3)


def test_adversarial_terms_by_hand():
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
    features, kernel, prototypes = random(4, 4, 4, 2), random(32, 6), random(3, 6)
    images, labels = random(4, 8, 8, 2), jnp.array([0, 1, 2, 0])
    resized = jnp.asarray(RNG.normal(size=(128, 32)) / 10, jnp.float32)

    def erased_loss(kernel, mask=None):
        if mask is None:
            maps = losses.gradient_attention(
                lambda a: recognizer(a, prototypes, kernel), features, labels
            ).maps
            mask = losses.topn_mask(maps, count=3, cells=4, image_shape=(8, 8))
        seen = (losses.erase(images, mask).reshape(4, -1) @ resized).reshape(4, 4, 4, 2)
        return losses.cosface_loss(recognizer(seen, prototypes, kernel), labels).mean(), mask

    gradient_of = jax.jit(jax.grad(erased_loss, has_aux=True))
    gradient, mask = gradient_of(kernel)
    fixed, _ = gradient_of(kernel, mask)
    np.testing.assert_allclose(gradient, fixed, rtol=1e-5, atol=1e-7)
    assert jnp.abs(gradient).max() > 0

    def total(kernel):
        return erased_loss(kernel)[1].sum()

    assert (jax.jit(jax.grad(total))(kernel) == 0).all()


def test_boundaries_and_types():
    for dtype in (jnp.float32, jnp.bfloat16):

        def value(features, dtype=dtype):
            found = losses.gradient_attention(
                lambda a: recognizer(a + 1e-3, jnp.ones((2, 3), dtype), jnp.ones((8, 3), dtype)),
                features,
                jnp.array([0]),
            )
            return losses.adversarial_uniform(found.maps.reshape(1, -1)).sum(), found

        for features in (jnp.zeros((1, 2, 2, 2), dtype), jnp.ones((1, 2, 2, 2), dtype)):
            (total, found), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(features)
            assert found.maps.dtype == jnp.float32 and total.dtype == jnp.float32
            assert jnp.isfinite(total) and jnp.isfinite(gradient).all()


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
    with pytest.raises(AssertionError, match=r"tail: needs to give \[B\]"):
        losses.gradient_attention(lambda a: a.mean(axis=(1, 2)), A)
