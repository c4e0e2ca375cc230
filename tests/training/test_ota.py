"""DIGG: R where nothing is changed, steps in units of the codebook, and constants that stay constants."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vqgan import tiny_generator

from jaxface.errors import UserError
from jaxface.losses.ota import feature_statistics
from jaxface.training.ota import DiggSpec, descend, digg_generate, mixed_latents
from jaxface.training.re_representation import re_represent

MODEL, PARAMS = tiny_generator()
GUIDES = jax.random.uniform(jax.random.key(3), (6, 8, 8, 1), minval=-1)
WEIGHTS = jax.random.normal(jax.random.key(4), (64, 3))
SAME = jnp.array([True, False] * 3)


def generate(spec, weights=WEIGHTS, params=PARAMS):
    def asked(images):
        features = jnp.tanh(images.reshape(len(images), -1) @ weights)
        return features, 2 * features

    statistics = feature_statistics(asked(GUIDES)[0])
    return digg_generate(
        MODEL, params, asked, GUIDES, GUIDES[::-1], SAME, statistics, jax.random.key(5), spec
    )


@pytest.fixture(scope="module")
def jitted():
    return jax.jit(generate, static_argnums=0)


def test_without_a_change_it_is_r(jitted):
    made = jitted(DiggSpec(steps=0, mixing=0.0, noise=0.0))
    np.testing.assert_array_equal(made.images, jax.jit(re_represent, static_argnums=0)(MODEL, PARAMS, GUIDES))
    assert float(made.changed) == 0.0 and made.losses.shape == (0,)


@pytest.mark.slow
def test_steps_are_counted_in_cells_of_the_codebook(jitted):
    spec = DiggSpec(steps=8, task=0.5)
    made = jitted(spec)
    assert float(made.changed) > 0.02 and np.all(np.isfinite(made.losses))
    # Latents and codes a thousand times larger, decoded as before: an absolute step would change nothing.
    larger = {**PARAMS, "quantizer": {"codebook": 1e3 * PARAMS["quantizer"]["codebook"]}}
    larger["before"] = jax.tree.map(lambda x: 1e3 * x, PARAMS["before"])
    larger["after"] = {**PARAMS["after"], "kernel": PARAMS["after"]["kernel"] / 1e3}
    np.testing.assert_allclose(jitted(spec, params=larger).changed, made.changed, atol=0.05)
    # Steps that reach no other cell leave the mixed latents as they are.
    blind = jitted(dataclasses.replace(spec, reach=1e-3))
    assert float(blind.changed) < 0.01
    mixed = jitted(dataclasses.replace(spec, steps=0))
    assert (
        float(jnp.abs(blind.images - mixed.images).mean())
        < 0.02
        < float(jnp.abs(made.images - mixed.images).mean())
    )


def test_mixing_takes_sites_of_the_second_guide():
    first, second = jnp.zeros((50, 4, 4, 2)), jnp.ones((50, 4, 4, 2))
    codes = PARAMS["quantizer"]["codebook"]
    mixed = mixed_latents(first, second, codes, jax.random.key(0), mixing=0.3, noise=0.0)
    assert set(np.unique(mixed)) == {0.0, 1.0} and abs(float(mixed.mean()) - 0.3) < 0.05
    np.testing.assert_array_equal(mixed[..., 0], mixed[..., 1])  # whole sites
    noisy = mixed_latents(first, second, codes, jax.random.key(0), mixing=0.0, noise=0.2)
    np.testing.assert_allclose(noisy.std((0, 1, 2)), 0.2 * codes.std(0), rtol=0.1)


def test_nearness_alone_falls_on_a_linear_decoder():
    decoder = jax.random.normal(jax.random.key(0), (4, 9))
    target = jax.random.normal(jax.random.key(1), (5, 9))
    _, losses = descend(
        lambda z: jnp.square(z @ decoder - target).mean(), jnp.zeros((5, 4)), steps=60, learning_rate=0.01
    )
    assert np.all(np.diff(losses) <= 0) and losses[-1] < 0.8 * losses[0]


def test_generator_codebook_and_teacher_are_constants():
    spec = DiggSpec(steps=2, task=1.0, diversity=0.1)

    def total(params, weights):
        made = generate(spec, weights, params)
        return made.images.sum() + made.losses.sum()

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(PARAMS, WEIGHTS)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixing": 1.2}, "digg.mixing"),
        ({"noise": -1.0}, "digg.noise"),
        ({"steps": -1}, "digg.steps"),
    ],
)
def test_numbers_out_of_their_range_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        generate(DiggSpec(**changes))


def test_one_image_alone_has_no_statistics():
    def asked(images):
        return images.reshape(len(images), -1), images.reshape(len(images), -1)

    statistics = feature_statistics(asked(GUIDES)[0])
    arguments = MODEL, PARAMS, asked, GUIDES[:1], GUIDES[:1], SAME[:1], statistics, jax.random.key(0)
    with pytest.raises(UserError, match="at least 2 at a time, got 1"):
        jax.eval_shape(lambda: digg_generate(*arguments))
    with pytest.raises(UserError, match="guides: needs two of each, at least one"):
        digg_generate(*arguments[:3], GUIDES[:0], GUIDES[:0], *arguments[5:])
