"""The networks: published parameter counts, shapes, switches, and what a context model may see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_codec as small

from jaxface.errors import UserError
from jaxface.models.compression import EDIC, CodecSpec, decoder_macs, equal_macs
from jaxface.models.compression.networks import (
    ContextModel,
    HyperSynthesis,
    context_mask,
    from_description,
    split_parameters,
)

PLAIN = CodecSpec(attention=None, enhance=False, entropy="laplace")


def count(spec):
    image = np.zeros((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(lambda key: EDIC(spec).init(key, image), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_parameters_are_as_many_as_published():
    high = {"channels": 192, "latents": 320}
    assert count(PLAIN) == 5_069_443 and count(dataclasses.replace(PLAIN, **high)) == 11_806_723
    mixture = dataclasses.replace(PLAIN, entropy="mixture")
    assert count(mixture) == 6_840_451 and count(dataclasses.replace(mixture, **high)) == 16_232_963


def test_shapes_at_kodak_size():
    image = jax.ShapeDtypeStruct((1, 512, 768, 3), jnp.float32)
    network = EDIC(CodecSpec())

    def run(key, image):
        return network.apply(network.init(key, image), image)

    told = jax.eval_shape(run, jax.random.key(0), image)
    assert told["y_hat"].shape == (1, 32, 48, 192) and told["z_hat"].shape == (1, 8, 12, 128)
    assert told["x_rec"].shape == image.shape and told["bits_y"].shape == (1,)
    with pytest.raises(ValueError, match="sides of multiples of 64"):
        jax.eval_shape(run, jax.random.key(0), jax.ShapeDtypeStruct((1, 500, 768, 3), jnp.float32))


def test_the_widened_decoder_costs_as_much_as_the_enhancer():
    spec = CodecSpec(channels=12, latents=16, enhancer_width=8, halvings=2, hyper_halvings=1)
    control = equal_macs(spec)
    assert not control.enhance and control.decoder_width > spec.channels
    assert 1 <= decoder_macs(control) / decoder_macs(spec) < 1.02


def test_components_start_apart():
    spec = small.SMALL
    z = jnp.zeros((1, 2, 2, spec.channels))
    start = jax.jit(lambda key: HyperSynthesis(spec).init(key, z)["params"]["conv"]["bias"])
    told = np.asarray(start(jax.random.key(0)))
    bias = told.reshape(3, spec.components, spec.latents)
    np.testing.assert_array_equal(bias[1], np.repeat([[-2.0], [0.0], [2.0]], spec.latents, axis=1))
    told = jax.jit(lambda sums: split_parameters(spec, sums))(told.reshape(1, 1, 1, -1))
    np.testing.assert_array_equal(told.mu[0, 0, 0, 0], [-2, 0, 2])
    assert told.scale.shape == (1, 1, 1, spec.latents, 3) and (told.scale == 1).all()


def test_a_context_model_sees_only_what_was_decoded_before():
    spec = dataclasses.replace(small.SMALL, entropy="autoregressive", latents=3, channels=2)
    params = small.params_of(spec)["context"]
    y, features = jnp.ones((1, 5, 5, 3)), jnp.ones((1, 5, 5, 6))
    model = ContextModel(spec)
    tell = jax.jit(lambda y: model.apply({"params": params}, y, features))
    moved = np.abs(np.asarray(tell(y.at[0, 2, 2].add(3.0)) - tell(y)))[0].max(-1) > 0
    assert not moved[:2].any() and not moved[2, :3].any() and moved[2, 3] and moved[3].any()
    assert context_mask().sum() == 12


@pytest.mark.parametrize(
    "entropy",
    ["mixture", *(pytest.param(name, marks=pytest.mark.slow) for name in ("laplace", "mean_scale"))],
)
def test_noise_in_training_and_whole_numbers_in_evaluation(entropy):
    spec = dataclasses.replace(small.SMALL, entropy=entropy)
    network, params = EDIC(spec), small.params_of(spec)
    image = jnp.asarray(np.random.default_rng(0).random((2, 16, 16, 3)), jnp.float32)
    trained = jax.jit(network.apply)({"params": params}, image, rng=jax.random.key(0))
    told = jax.jit(network.apply)({"params": params}, image)
    assert (np.asarray(told["z_hat"]) == np.rint(told["z_hat"])).all()
    if entropy != "mean_scale":
        assert (np.asarray(told["y_hat"]) == np.rint(told["y_hat"])).all()
    assert np.abs(np.asarray(trained["y_hat"] - told["y_hat"])).max() <= 1.0 + 1e-4
    assert np.isfinite(trained["bits_y"]).all() and (trained["bits_y"] > 0).all()


def test_a_network_is_described_and_refused_when_it_makes_no_sense():
    assert from_description(dataclasses.asdict(small.SMALL)) == small.SMALL
    for described in (
        {"widths": 3},
        {"channels": "many"},
        {"enhance": 1},
        [1],
        {"channels": 0},
        {"entropy": "none"},
    ):
        with pytest.raises(UserError):
            from_description(described)
    with pytest.raises(UserError, match="components: needs an integer from 1, got 0"):
        CodecSpec(components=0)
