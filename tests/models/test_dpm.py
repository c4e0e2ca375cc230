import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses, models
from jaxface.errors import UserError
from jaxface.layers import GaussianHead, QualityHead

GROUPS = (("digit", 3), ("marks", 4))
IMAGES = jax.random.normal(jax.random.key(0), (5, 4, 4, 1))


def network(**fields):
    return models.DPM(models.create("mlp_6", embedding=None), GROUPS, dim=2, **fields)


@pytest.fixture(scope="module")
def groups():
    model = network(dq=True)
    return model, jax.jit(model.init)(jax.random.key(1), IMAGES)


@functools.partial(jax.jit, static_argnames=("model", "deterministic"))
def applied(model, variables, seed, deterministic=True):
    return model.apply(variables, IMAGES, deterministic=deterministic, rngs={"sample": jax.random.key(seed)})


def test_codes_start_narrow_and_their_means_stand_for_them(groups):
    model, variables = groups
    code = variables["params"]["code_digit"]
    assert (code["log_variance"]["bias"] == -2).all() and (
        variables["params"]["quality"]["output"]["bias"] == -1
    )
    first, second = (model.apply(variables, IMAGES, rngs={"sample": jax.random.key(seed)}) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    drawn, other = (applied(model, variables, seed, False) for seed in (0, 1))
    assert (drawn["semantics"]["digit"] != other["semantics"]["digit"]).any()
    np.testing.assert_array_equal(drawn["mu"]["digit"], first["mu"]["digit"])
    for name, classes in GROUPS:
        part = first["heads"][name]
        np.testing.assert_allclose(part.mu @ part.kernel + part.bias, first["semantics"][name], rtol=1e-6)
        assert first["semantics"][name].shape == (5, classes)
    with pytest.raises(UserError, match="key: needs a random key"):
        jax.eval_shape(functools.partial(model.apply, deterministic=False), variables, IMAGES)


def test_the_variance_is_that_of_the_loss(groups):
    model, variables = groups
    stats = losses.QualityStats(jnp.full(6, 0.1), jnp.full(6, 2.0), jnp.array(30.0))
    found = applied(model, {**variables, "quality_stats": stats._asdict()}, 0)
    params = {"params": variables["params"]["quality"]}
    expected = losses.quality_variance(lambda h: QualityHead().apply(params, h), found["features"], stats)
    np.testing.assert_allclose(found["v"], expected, rtol=1e-5)


def test_log_variances_are_clipped():
    head = GaussianHead(2)
    params = head.init(jax.random.key(0), jnp.ones((1, 3)))
    found = head.apply(jax.tree.map(lambda x: 1e4 * x, params), jnp.ones((1, 3)))
    assert (jnp.abs(found.logvar) == 10).all()


def test_one_code_for_all_groups_or_for_live_too():
    shared = jax.eval_shape(network(lq="shared").init, jax.random.key(0), IMAGES)["params"]
    assert [name for name in shared if name.startswith("code_")] == ["code_shared"]
    model = network(lq="general")
    found, _ = jax.jit(model.init_with_output)(jax.random.key(0), IMAGES)
    assert set(found["heads"]) == {"live", "digit", "marks"}
    part = found["heads"]["live"]
    np.testing.assert_allclose(part.mu @ part.kernel + part.bias, found["logits"], rtol=1e-6)
    np.testing.assert_array_equal(part.mu, found["heads"]["digit"].mu)


def test_aenet_has_the_heads_of_its_source():
    groups = (("attributes", 40), ("spoof_type", 11), ("illumination", 5))
    trunk = models.create("resnet18", embedding=None)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)

    def shapes(**fields):
        return jax.eval_shape(models.DPM(trunk, groups, **fields).init_with_output, jax.random.key(0), image)

    found, variables = shapes(lq="none", geometry="stage4_block2")
    heads = {name: part for name, part in variables["params"].items() if name != "trunk"}
    assert heads["classify_attributes"]["kernel"].shape == (512, 40)
    assert heads["depth_map"]["kernel"].shape == (3, 3, 512, 1) and set(heads["depth_map"]) == {"kernel"}
    assert found["depth"].shape == (1, 14, 14, 1) and found["reflection"].shape == (1, 14, 14, 3)
    trunk_size = 11_689_512 - 1000 * 513  # published, without its head of 1,000 classes
    assert models.parameter_count(variables["params"]) == trunk_size + (2 + 40 + 11 + 5) * 513 + 9 * 512 * 4
    _, dpm = shapes(dq=True, dim=128)
    quality = dpm["params"]["quality"]
    assert models.parameter_count(quality) == 512 * 24 + 24 + 25  # about 12 k
    with pytest.raises(UserError, match="geometry: needs a layer of the trunk with a map, got 'stage9'"):
        shapes(geometry="stage9")


def test_margins_of_two_classes_alone():
    assert models.live_margin(jnp.array([[1.0, 3.0], [0.0, -1.0]])).tolist() == [2, -1]
    with pytest.raises(ValueError, match="logits: needs \\[B, 2\\]"):
        models.live_margin(jnp.zeros((2, 3)))
