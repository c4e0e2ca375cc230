"""Binary networks: their structure against numbers worked out from the source, and their packed form against the trained one."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import models
from jaxface.errors import UserError
from jaxface.layers import BinaryConv, RBOConv
from jaxface.models.binary import BinaryResNet, BinarySmall, network_cost, to_packed

STAGES = {"binary_resnet18": (4, 4, 4, 4), "binary_resnet34": (6, 8, 12, 6)}
CHANNELS = (64, 128, 256, 512)


def parameters(stages, *, per_filter=0, classes=1000, stem=7):
    """From the table of the source: every unit has three biases, a PReLU and a normalization; a stride has a shortcut."""
    total, inputs = stem * stem * 3 * 64 + 2 * 64, 64
    for units, width in zip(stages, CHANNELS, strict=True):
        for unit in range(units):
            total += inputs + 9 * inputs * width + 2 * width + 3 * width + per_filter * width
            if unit == 0 and inputs != width:
                total += inputs * width + 2 * width
            inputs = width
    return total + inputs * classes + classes


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("conv, per_filter", [(BinaryConv, 0), (RBOConv, 2)])
def test_parameters_of_the_source(name, conv, per_filter):
    model = models.create(name, embedding=1000, conv=conv)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)
    count = models.parameter_count(variables)
    assert count == parameters(STAGES[name], per_filter=per_filter)
    if name == "binary_resnet18":
        assert count == 11_704_424 + 2 * 4 * sum(CHANNELS) * (per_filter // 2)


def test_the_form_for_small_images():
    model = models.create("cifar_binary_resnet18", embedding=10)
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    output, variables = jax.eval_shape(
        functools.partial(model.init_with_output, train=False), jax.random.key(0), image
    )
    assert output.shape == (2, 10)
    assert models.parameter_count(variables) == parameters(STAGES["binary_resnet18"], classes=10, stem=3)


def trained(model, x, seed=0):
    """Variables that are nowhere at their start, with statistics that suit the images."""
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(seed), x)
    rng = np.random.default_rng(seed)

    def move(path, leaf):
        if path[-1].key in ("kernel", "density"):
            return leaf
        return leaf + jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype)

    params = jax.tree_util.tree_map_with_path(move, variables["params"])
    stats = variables["batch_stats"]
    run = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    for _ in range(3):
        stats = run({"params": params, "batch_stats": stats}, x)[1]["batch_stats"]
    return {"params": params, "batch_stats": stats}


def both(model, x, **options):
    variables = trained(model, x)
    packed = to_packed(model, variables, **options)
    wanted = jax.jit(functools.partial(model.apply, train=False))(variables, x)
    return wanted, jax.jit(lambda network, x: network(x))(packed, x), packed


CONVS = {
    "mean_abs": BinaryConv,
    "learned": functools.partial(BinaryConv, scale="learned"),
    "none": functools.partial(BinaryConv, scale="none"),
    "rbonn": RBOConv,
    "rbonn released": functools.partial(RBOConv, variant="released"),
    "rbonn as printed": functools.partial(RBOConv, variant="paper"),
}


@pytest.mark.parametrize("conv", CONVS)
def test_packed_layers_of_every_kind(conv):
    model = BinarySmall(embedding=5, width=40, depth=2, conv=CONVS[conv])
    x = jnp.asarray(np.random.default_rng(1).normal(size=(16, 3, 3, 1)), jnp.float32)
    wanted, got, packed = both(model, x)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert packed.units[0].weights.shape == (1, 1, 40, 2) and packed.units[0].weights.dtype == jnp.uint32


SMALL_RESNET18 = BinaryResNet(embedding=7, stages=(2, 2, 1), channels=(8, 16, 40))


def test_a_packed_resnet_is_the_trained_one():
    """Odd planes, a pooled stem, strides, shortcuts of both kinds."""
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, 27, 29, 3)), jnp.float32)
    wanted, got, packed = both(SMALL_RESNET18, x)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert (got.argmax(1) == wanted.argmax(1)).all()
    assert sum(unit.shortcut is not None for unit in packed.units) == 2


@pytest.mark.slow
def test_a_whole_resnet18_packs():
    """Sixteen binary layers at a quarter of the source's width, small images."""
    model = models.create("cifar_binary_resnet18", embedding=10, channels=(16, 32, 64, 128))
    x = jnp.asarray(np.random.default_rng(3).normal(size=(8, 16, 16, 3)), jnp.float32)
    wanted, got, _ = both(model, x)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)
    assert (got.argmax(1) == wanted.argmax(1)).all()


def test_the_fused_blocks_in_bfloat16():
    """Rounded residuals may turn a sign that is near 0; with one unit none is turned after the entrance."""
    model = BinaryResNet(embedding=7, stages=(1,), channels=(8,), small_images=True)
    x = jnp.asarray(np.random.default_rng(4).normal(size=(4, 6, 6, 3)), jnp.float32)
    wanted, got, _ = both(model, x, dtype=jnp.bfloat16)
    np.testing.assert_allclose(got, wanted, atol=0.05)
    assert got.dtype == jnp.float32


def test_what_has_no_packed_form():
    x = jnp.ones((2, 2, 2, 1))

    def pack(model, change=lambda params: params):
        variables = model.init(jax.random.key(0), x, train=False)
        return to_packed(model, {**variables, "params": change(variables["params"])})

    small = functools.partial(BinarySmall, width=4, depth=1)
    with pytest.raises(
        UserError, match="conv: needs weights of signs and a scale per channel to pack, got scale='xnor'"
    ):
        pack(small(conv=functools.partial(BinaryConv, scale="xnor")))
    with pytest.raises(UserError, match="got real_weights"):
        pack(small(conv=functools.partial(BinaryConv, real_weights=True)))
    zeros = functools.partial(jax.tree_util.tree_map_with_path, lambda path, leaf: 0 * leaf)
    with pytest.raises(UserError, match="kernel: needs latent weights other than 0 to pack, got 16 zeros"):
        pack(small(conv=RBOConv), zeros)
    with pytest.raises(UserError, match="model: needs a BinaryResNet or BinarySmall to pack, got Dense"):
        to_packed(nn.Dense(3), {"params": {}, "batch_stats": {}})
    with pytest.raises(UserError, match="dtype: needs float32 or bfloat16, got int8"):
        to_packed(small(), {}, dtype=jnp.int8)


def test_fields_that_do_not_fit():
    with pytest.raises(UserError, match="stages, channels: need the same length"):
        BinaryResNet(stages=(1, 1))
    with pytest.raises(UserError, match="weight_init: needs one of normal, uniform, got 'other'"):
        BinarySmall(weight_init="other")


def test_the_cost_of_a_network():
    cost = network_cost(models.create("binary_resnet18", embedding=1000), (224, 224, 3))
    binary = [layer for layer in cost.layers if layer.binary]
    assert len(binary) == 16 and len(cost.layers) == 16 + 1 + 3 + 1
    # Products of ResNet-18's sixteen 3x3 convolutions and of what stays real.
    inner = 4 * 56**2 * 64 * 9 * 64
    inner += sum(s**2 * c * 9 * (c // 2 + 3 * c) for s, c in ((28, 128), (14, 256), (7, 512)))
    real = 112**2 * 64 * 147 + sum(s**2 * c * c // 2 for s, c in ((28, 128), (14, 256), (7, 512))) + 512_000
    assert sum(layer.multiply_accumulates for layer in binary) == inner
    assert cost.total("multiply_accumulates") == inner + real
    assert cost.total("operations") == pytest.approx(inner / 64 + real)
    weights = 4 * 9 * 64**2 + sum(9 * c * (c // 2 + 3 * c) for c in (128, 256, 512))
    assert sum(layer.weight_bits for layer in binary) == weights == sum(layer.weights for layer in binary)
    assert cost.parameters == 11_704_424
    first = next(layer for layer in cost.layers if layer.binary)
    assert (first.input_bytes, first.packed_input_bytes) == (4 * 56**2 * 64, 56**2 * 8)
    assert (
        cost.packed_weight_bytes
        == (weights + 32 * (9408 + sum(c * c // 2 for c in CHANNELS[1:]) + 512_000)) // 8
    )
