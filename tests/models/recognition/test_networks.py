"""One real forward and backward pass of every family, on small planes and shallow stacks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import models
from jaxface.errors import UserError
from jaxface.models.recognition.inception_resnet import Unit as InceptionUnit
from jaxface.models.recognition.iresnet import SqueezeExcite
from jaxface.models.recognition.resnet import Block as ResidualBlock
from jaxface.models.transformers.vit import Block as TransformerBlock

SMALL = {
    "mobilefacenet": {"blocks": (1, 0, 1)},
    "mobilefacenet_large": {"blocks": (0, 0, 0)},
    "mobilenet": {"stages": ((16, 1), (32, 2))},
    "se_iresnet50": {"stages": (1,), "channels": (16,)},
    "resnet18": {"stages": (1, 1), "channels": (8, 16)},
    "resnet50": {"stages": (1, 1), "channels": (8, 16)},
    "cifar_resnet20": {"stages": (1, 1, 1)},
    "vit_tiny": {"dim": 24, "depth": 2, "patch": 8, "dropout": 0.1, "drop_path": 0.2},
    "mlp": {"hidden": (16, 16)},
}


STAGES = ("stage1", "stage2", "stage3")


def images(count=4, size=32, channels=3):
    return np.random.default_rng(0).uniform(-1, 1, (count, size, size, channels)).astype(np.float32)


def initial(module, x, **options):
    """`init` as one program: operation by operation it would compile dozens."""
    return jax.jit(lambda x: module.init(jax.random.key(0), x, **options))(x)


@pytest.mark.parametrize("name", SMALL)
def test_embeddings_and_gradients_are_finite(name):
    module, x = models.create(name, embedding=8, **SMALL[name]), images()
    variables = initial(module, x, train=False)

    @jax.jit
    def gradient(params):
        def loss(params):
            state = {**variables, "params": params}
            y, _ = module.apply(
                state, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)}
            )
            return jnp.sum(jnp.sin(y)), y

        return jax.grad(loss, has_aux=True)(params)

    gradients, embeddings = gradient(variables["params"])
    assert embeddings.shape == (4, 8)
    assert embeddings.dtype == jnp.float32
    assert jnp.all(jnp.isfinite(embeddings))
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert jnp.all(jnp.isfinite(leaf)), path
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients))


def test_channels_are_weighted_by_the_whole_plane():
    """SqueezeExcite against its equation in float64."""
    x = images(2, 5, 32)
    module = SqueezeExcite(16)
    params = initial(module, x)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    hidden = x.mean((1, 2), dtype=np.float64) @ params["reduce"]["kernel"] + params["reduce"]["bias"]
    assert hidden.shape == (2, 2)
    hidden = np.where(hidden > 0, hidden, params["activation"]["slope"] * hidden)
    weights = 1 / (1 + np.exp(-(hidden @ params["expand"]["kernel"] + params["expand"]["bias"])))
    np.testing.assert_allclose(module.apply({"params": params}, x), x * weights[:, None, None], rtol=1e-4)


def test_planes_of_inception_resnet():
    """25, 12 and 5 of 112, as InsightFace's symbol gives by its unpadded strides; units keep the plane."""
    module = models.create("inception_resnet", embedding=8, stages=(1, 1, 1))
    image = jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.float32)
    run = partial(module.init_with_output, train=False, capture_intermediates=True, mutable=True)
    output, state = jax.eval_shape(run, jax.eval_shape(lambda: jax.random.key(0)), image)
    shapes = {name: state["intermediates"][f"{name}_unit1"]["__call__"][0].shape for name in STAGES}
    assert shapes == {"stage1": (1, 25, 25, 320), "stage2": (1, 12, 12, 1088), "stage3": (1, 5, 5, 2080)}
    assert output.shape == (1, 8)
    small = jax.ShapeDtypeStruct((1, 74, 80, 3), jnp.float32)
    with pytest.raises(UserError, match="image_size: needs at least 75, got 74"):
        jax.eval_shape(run, jax.eval_shape(lambda: jax.random.key(0)), small)


def test_a_unit_of_inception_resnet_adds_a_share_and_rectifies():
    x = jnp.asarray(images(2, 6, 4))
    results = []
    for linear in (False, True):
        unit = InceptionUnit(
            (((3, (1, 1), (0, 0)),), ((2, (1, 7), (1, 2)), (3, (7, 1), (2, 1)))), 0.5, linear
        )
        variables = initial(unit, x, train=False)
        results.append(jax.jit(partial(unit.apply, train=False))(variables, x))
    np.testing.assert_allclose(results[0], np.maximum(results[1], 0), atol=1e-6)
    variables["params"]["out"]["conv"]["kernel"] *= 0
    variables["params"]["out"]["norm"]["bias"] = jnp.full(4, 0.8)
    np.testing.assert_allclose(unit.apply(variables, x, train=False), x + 0.5 * 0.8, atol=1e-6)


def test_plain_shortcut_has_no_parameters_and_pads_both_sides():
    x = jnp.asarray(images(2, 6, 4))
    block = ResidualBlock(8, 2, plain_shortcut=True)
    variables = initial(block, x, train=False)
    assert set(variables["params"]) == {"conv1", "norm1", "conv2", "norm2"}
    variables["params"]["norm2"]["scale"] = jnp.zeros(8)
    y = jax.jit(partial(block.apply, train=False))(variables, x)
    np.testing.assert_array_equal(y[..., 2:6], jax.nn.relu(x[:, ::2, ::2]))
    np.testing.assert_array_equal(jnp.delete(y, jnp.arange(2, 6), axis=-1), 0)


def test_bottleneck_strides_in_its_3x3_convolution():
    block = ResidualBlock(4, 2, bottleneck=True)
    state = initial(block, jnp.ones((1, 8, 8, 4)), train=False, capture_intermediates=True, mutable=True)
    sides = {
        name: state["intermediates"][name]["__call__"][0].shape[1] for name in ("conv1", "conv2", "conv3")
    }
    assert sides == {"conv1": 8, "conv2": 4, "conv3": 4}


def test_vit_without_class_token_ignores_the_order_of_patches_but_for_positions():
    module = models.create("vit_tiny", embedding=8, dim=24, depth=2, patch=8, pool="mean")
    x = images(2, 16)
    variables = initial(module, x)
    assert "class_token" not in variables["params"]
    variables["params"]["positions"] = jnp.zeros((1, 4, 24))
    swapped = np.concatenate([x[:, 8:], x[:, :8]], axis=1)
    apply = jax.jit(module.apply)
    np.testing.assert_allclose(apply(variables, x), apply(variables, swapped), atol=1e-5)
    with pytest.raises(ValueError, match="image_size: needs a multiple of the patch, which has 8"):
        module.apply(variables, images(2, 20))


@pytest.mark.parametrize("size", [8, 24])
@pytest.mark.parametrize(
    "name", ["iresnet_pico", "iresnet18", "mobilefacenet", "resnet18", "cifar_resnet20", "vit_tiny", "mlp"]
)
def test_a_small_image_is_taken_or_refused_in_a_line(name, size):
    module = models.create(name, embedding=8)
    start = partial(module.init_with_output, train=False)
    shapes = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((2, size, size, 3), np.float32)
    if name == "vit_tiny":
        with pytest.raises(UserError, match="image_size: needs a multiple of the patch") as caught:
            jax.eval_shape(start, *shapes)
        assert "\n" not in str(caught.value)
    else:
        assert jax.eval_shape(start, *shapes)[0].shape == (2, 8)


def test_attention_against_its_equation():
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6)), jnp.float32)
    block = TransformerBlock(heads=2)
    variables = initial(block, tokens, train=False)
    p = variables["params"]["attention"]

    def normalize(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    qkv = np.asarray(normalize(tokens)) @ p["qkv"]["kernel"]
    mixed = np.zeros((2, 5, 6))
    for head in range(2):
        query, key, value = (qkv[..., 6 * i + 3 * head :][..., :3] for i in range(3))
        weights = jax.nn.softmax(query @ key.transpose(0, 2, 1) / np.sqrt(3))
        mixed[..., 3 * head : 3 * head + 3] = weights @ value
    x = tokens + mixed @ p["out"]["kernel"]
    hidden = jax.nn.gelu(normalize(x) @ variables["params"]["expand"]["kernel"], approximate=False)
    expected = x + hidden @ variables["params"]["project"]["kernel"]
    found = jax.jit(partial(block.apply, train=False))(variables, tokens)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_drop_path_skips_whole_branches():
    tokens = jnp.ones((64, 3, 6)) * jnp.arange(6.0)
    block = TransformerBlock(heads=2, drop_path=0.5)
    variables = initial(block, tokens, train=False)
    apply = jax.jit(partial(block.apply, train=True))
    y = apply(variables, tokens, rngs={"dropout": jax.random.key(3)})
    untouched = jnp.all(y == tokens, axis=(1, 2))
    assert (
        4 <= int(untouched.sum()) <= 30
    )  # both branches skipped: a quarter of 64, give or take 3.5 deviations


def test_mlp_takes_flat_and_image_input():
    module = models.create("mlp", embedding=32)
    x = images(3, 8, 1)
    variables = initial(module, x)
    np.testing.assert_array_equal(module.apply(variables, x), module.apply(variables, x.reshape(3, 64)))
