import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import models
from jaxface.errors import UserError


def shapes(name, classes=100, **fields):
    module = models.create(name, embedding=classes, **fields)
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    return module, jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image), image


@pytest.mark.parametrize(
    ("name", "published"),
    [("mobilenet_v2", 2_353_060), ("mobilenet_v2_half", 812_836), ("mobilenet_v2_quarter", 364_492)],
)
def test_parameters_of_the_cifar_form(name, published):
    assert models.parameter_count(shapes(name)[1]) == published


def test_planes_and_channels_along_the_network():
    module, variables, image = shapes("mobilenet_v2_half")

    def after(layer):
        give = jax.eval_shape(
            lambda v, x: models.apply_with_layer(module, v, x, layer=layer)[1], variables, image
        )
        return give.shape[1:]

    found = [after(f"stage{i}_block{j}") for i, j in ((1, 1), (2, 2), (3, 3), (4, 4), (5, 3), (6, 3), (7, 1))]
    assert found == [
        (16, 16, 8), (16, 16, 12), (8, 8, 16), (4, 4, 32), (4, 4, 48), (2, 2, 80), (2, 2, 160)
    ]  # fmt: skip
    assert after("stem_conv") == (16, 16, 16) and after("head_conv") == (2, 2, 1280)


def test_a_block_adds_its_input_where_it_can():
    from jaxface.models.recognition.mobilenet_v2 import InvertedBottleneck

    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 4)), jnp.float32)
    for features, stride, residual in ((4, 1, True), (4, 2, False), (6, 1, False)):
        block = InvertedBottleneck(features, expansion=6, stride=stride)
        variables = jax.jit(lambda x, block=block: block.init(jax.random.key(0), x, train=False))(x)
        assert variables["params"]["conv1"]["kernel"].shape == (1, 1, 4, 24)
        variables["params"]["norm3"]["scale"] = jnp.zeros(features)
        y = block.apply(variables, x, train=False)
        np.testing.assert_array_equal(y, x if residual else jnp.zeros_like(y))


@pytest.mark.slow
def test_initial_scales():
    module = models.create("mobilenet_v2", embedding=100)
    params = jax.jit(lambda x: module.init(jax.random.key(0), x, train=False))(jnp.zeros((1, 32, 32, 3)))[
        "params"
    ]
    kernel = params["stage6_block2"]["conv2"]["kernel"]
    assert kernel.shape == (3, 3, 1, 960)
    assert float(kernel.std()) == pytest.approx((2 / (9 * 960)) ** 0.5, rel=0.05)
    assert float(params["head_conv"]["kernel"].std()) == pytest.approx((2 / 1280) ** 0.5, rel=0.05)
    assert float(params["head_dense"]["kernel"].std()) == pytest.approx(0.01, rel=0.05)


def test_a_width_without_channels_is_refused():
    with pytest.raises(UserError, match="width: needs at least 1/16"):
        models.create("mobilenet_v2", width=0.05)


def test_a_layer_comes_along_with_the_output():
    module = models.create("iresnet_pico", embedding=8)
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3)), jnp.float32)
    variables = jax.jit(lambda x: module.init(jax.random.key(0), x, train=False))(x)
    run = jax.jit(models.apply_with_layer, static_argnames=("model", "layer", "train"))
    output, inner, updated = run(module, variables, x, layer="stage2_block1")
    np.testing.assert_allclose(output, module.apply(variables, x, train=False), rtol=1e-5, atol=1e-6)
    assert inner.shape == (4, 2, 2, 32) and updated == {}
    rngs = {"dropout": jax.random.key(1)}
    output, inner, updated = run(module, variables, x, layer="head_dense", train=True, rngs=rngs)
    assert inner.shape == (4, 8) and set(updated) == {"batch_stats"}
    expected, after = module.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), updated, dict(after))
    with pytest.raises(UserError, match=r"layer: IResNet has .*stem_conv.*, got 'stage9'"):
        models.apply_with_layer(module, variables, x, layer="stage9")


def test_the_resnet_50_of_cifar_papers():
    # 100 classes: 2048 · 100 + 100 in the head, and a 3x3 stem on three channels.
    assert models.parameter_count(shapes("cifar_resnet50")[1]) == 23_705_252
