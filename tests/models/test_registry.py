"""What holds for every network by name: shapes, types, parameter counts, refused input."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxface import models
from jaxface.errors import UserError

SIDES = {"vit": 64, "deit": 64, "swin": 224, "cifar": 32, "mlp": 8}


@functools.cache
def shapes(name, *, size=None, channels=3, **fields):
    """Variables of a network as shapes alone: nothing is initialized."""
    side = size or next((side for prefix, side in SIDES.items() if name.startswith(prefix)), 112)
    module = models.create(name, **fields)
    image = jax.ShapeDtypeStruct((2, side, side, channels), jnp.float32)
    return module, image, jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)


# Tracing the deeper ones of each family, and the wider ones, takes seconds and walks the same code as their smallest sister.
SISTERS = {
    "iresnet34",
    "iresnet50",
    "iresnet100",
    "iresnet200",
    "resnet34",
    "resnet101",
    "bilinear_resnet34",
    "vit_small",
    "vit_base",
    "vit_large",
}
SISTERS |= {"dcp_nas_large", "wrn28_10", "metanet_b4", "metanet_b15"}
SISTERS |= {"cifar_resnet32", "cifar_resnet44", "cifar_resnet56", "cifar_resnet110"}
SISTERS |= {
    "deit_small_distilled",
    "deit_base_distilled",
    "swin_small",
    "swin_base",
    "mobilenet_v2",
    "mobilenet_v2_half",
}
DEEP = {"apvit", "deit_tiny_distilled", "se_iresnet50", "inception_resnet"}
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name in DEEP else name
    for name in models.names()
    if name not in SISTERS
]


@pytest.mark.parametrize("name", NAMES)
def test_output_is_float32_embeddings_and_parameters_are_float32(name):
    module, image, variables = shapes(name, embedding=32, dtype=jnp.bfloat16)
    keys = {"dropout": jax.random.key(0)}
    embeddings, _ = jax.eval_shape(
        lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"], rngs=keys), variables, image
    )
    assert embeddings.shape == (2, 32)
    assert embeddings.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


# Published counts of iResNet include the last scale, which is fixed at 1 and is no parameter here: 512 fewer.
@pytest.mark.parametrize(
    ("name", "embedding", "size", "published", "fixed"),
    [
        ("iresnet18", 512, 112, 24_025_600, 512),
        pytest.param("iresnet34", 512, 112, 34_139_328, 512, marks=pytest.mark.slow),
        ("iresnet50", 512, 112, 43_590_848, 512),
        pytest.param("iresnet100", 512, 112, 65_156_160, 512, marks=pytest.mark.slow),
        pytest.param("iresnet200", 512, 112, 118_833_920, 512, marks=pytest.mark.slow),
        # iResNet-50 and, after each of its 3, 4, 14, 3 units of C channels, C²/8 weights and 2 (C/16) + C biases and slopes.
        ("se_iresnet50", 512, 112, 43_590_848 + 1_752 + 8_768 + 118_720 + 100_032, 512),
        # The published 4,231,976 of 1000 classes, with Dense on 7 x 7 x 1024 and its BN for the classifier on the mean.
        ("mobilenet", 512, 112, 4_231_976 - 1_025_000 + (50_176 + 1) * 512 + 512, 0),
        # The published 55,843,464; a BN after the last convolution of every unit; 129 for 128 channels in 20 of them.
        pytest.param(
            "inception_resnet",
            1000,
            112,
            55_843_464 + 10 * 320 + 20 * 1088 + 10 * 2080 + 20 * (1088 + 2 + 7 * 160),
            0,
            marks=pytest.mark.slow,
        ),
        ("mobilefacenet", 128, 112, 1_003_264, 0),
        ("mobilefacenet_large", 512, 112, 2_059_520, 0),
        ("resnet18", 1000, 224, 11_689_512, 0),
        pytest.param("resnet34", 1000, 224, 21_797_672, 0, marks=pytest.mark.slow),
        pytest.param("face_resnet34", 512, 112, 34_124_608, 0, marks=pytest.mark.slow),
        ("resnet50", 1000, 224, 25_557_032, 0),
        pytest.param("resnet101", 1000, 224, 44_549_160, 0, marks=pytest.mark.slow),
        ("cifar_resnet20", 10, 32, 269_722, 0),
        pytest.param("cifar_resnet110", 10, 32, 1_727_962, 0, marks=pytest.mark.slow),
        pytest.param("wrn28_10", 10, 32, 36_479_194, 0, marks=pytest.mark.slow),
        ("wrn16_4", 10, 32, 2_748_890, 0),
        ("vit_tiny", 1000, 224, 5_717_416, 0),
        pytest.param("vit_small", 1000, 224, 22_050_664, 0, marks=pytest.mark.slow),
        pytest.param("vit_base", 1000, 224, 86_567_656, 0, marks=pytest.mark.slow),
        pytest.param("vit_large", 1000, 224, 304_326_632, 0, marks=pytest.mark.slow),
        pytest.param("deit_tiny_distilled", 1000, 224, 5_910_800, 0, marks=pytest.mark.slow),
        pytest.param("deit_small_distilled", 1000, 224, 22_436_432, 0, marks=pytest.mark.slow),
        pytest.param("deit_base_distilled", 1000, 224, 87_338_192, 0, marks=pytest.mark.slow),
        ("swin_tiny", 1000, 224, 28_288_354, 0),
        pytest.param("swin_small", 1000, 224, 49_606_258, 0, marks=pytest.mark.slow),
        pytest.param("swin_base", 1000, 224, 87_768_224, 0, marks=pytest.mark.slow),
    ],
)
def test_parameter_counts(name, embedding, size, published, fixed):
    _, _, variables = shapes(name, embedding=embedding, size=size)
    assert models.parameter_count(variables) + fixed == published


def test_parameter_count_of_the_digits_mlp():
    _, _, variables = shapes("mlp", embedding=32, size=8, channels=1)
    assert models.parameter_count(variables) == (64 * 256 + 256) + (256 * 256 + 256) + (256 * 32 + 32)
    assert models.parameter_count(variables["params"]) == models.parameter_count(variables)


@pytest.mark.parametrize(
    ("name", "embedding", "size", "giga"),
    [
        ("iresnet18", 512, 112, "2.610"),
        pytest.param("iresnet50", 512, 112, "6.309", marks=pytest.mark.slow),
        pytest.param("iresnet100", 512, 112, "12.090", marks=pytest.mark.slow),
        ("mobilefacenet", 128, 112, "0.221"),
        ("mobilefacenet_large", 512, 112, "0.438"),
        ("resnet18", 1000, 224, "1.814"),
        pytest.param("resnet50", 1000, 224, "4.089", marks=pytest.mark.slow),
    ],
)
def test_multiply_accumulates(name, embedding, size, giga):
    module = models.create(name, embedding=embedding)
    assert f"{models.multiply_accumulates(module, (size, size, 3)) / 1e9:.3f}" == giga


def test_multiply_accumulates_of_an_mlp_and_of_attention():
    assert (
        models.multiply_accumulates(models.create("mlp", embedding=32), (8, 8, 1))
        == 64 * 256 + 256 * 256 + 256 * 32
    )
    module = models.create("vit_tiny", embedding=10, dim=12, heads=3, depth=1, patch=4, pool="mean")
    patches = 4 * (4 * 4 * 3) * 12
    attention = 4 * 12 * 36 + 2 * 4 * 4 * 12 + 4 * 12 * 12
    perceptron = 2 * 4 * 12 * 48
    assert models.multiply_accumulates(module, (8, 8, 3)) == patches + attention + perceptron + 12 * 10


@pytest.mark.parametrize("size", [48, 64, 224])
@pytest.mark.parametrize("name", ["iresnet18", "mobilefacenet", "iresnet_nano"])
def test_other_image_sizes(name, size):
    module, image, variables = shapes(name, size=size, embedding=16)
    assert jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, image).shape == (2, 16)


@pytest.mark.parametrize(
    ("name", "size", "features"),
    [("cifar_resnet20", 32, 64), ("mobilenet_v2_quarter", 32, 1280), ("mlp", 8, 256), ("vit_tiny", 64, 192)],
)
def test_pooled_features_without_the_last_layer(name, size, features):
    module, image, variables = shapes(name, size=size, embedding=None)
    assert "head_dense" not in variables["params"]
    output = jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, image)
    assert output.shape == (2, features) and output.dtype == jnp.float32
    assert models.feature_size(module, image.shape[1:]) == features


def test_a_last_layer_that_is_more_than_linear_stays():
    with pytest.raises(UserError, match="embedding: 'iresnet18' needs a size, got None"):
        models.create("iresnet18", embedding=None)


def test_unknown_name_gives_the_nearest():
    with pytest.raises(UserError, match=r"'iresnet51'.*iresnet50") as error:
        models.create("iresnet51")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"convnet, .*mlp, .*vit_large"):
        models.create("zzzz")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("iresnet18", {"depth": 3}, "'iresnet18' has no field depth; its fields are .*block"),
        ("iresnet18", {"block": "other"}, "block: needs one of insightface, sface"),
        ("iresnet18", {"stages": (1, 1)}, "stages, channels: need the same length"),
        ("resnet18", {"block": "other"}, "block: needs one of basic, bottleneck"),
        ("resnet18", {"stages": (1, 1)}, "stages, channels: need the same length"),
        ("vit_tiny", {"pool": "max"}, "pool: needs one of class, mean"),
        ("vit_tiny", {"heads": 5}, "dim: needs a multiple of heads"),
        ("mlp", {"embedding": 0}, "embedding: needs at least 1"),
    ],
)
def test_impossible_fields(name, fields, message):
    with pytest.raises(UserError, match=message):
        models.create(name, **fields)


def test_widths_of_a_perceptron_by_name():
    shapes = jax.eval_shape(
        models.create("mlp_24x7", embedding=3).init, jax.random.key(0), jnp.zeros((1, 2, 5, 1))
    )["params"]
    kernels = {name: layer["kernel"].shape for name, layer in shapes.items()}
    assert kernels == {"hidden1": (10, 24), "hidden2": (24, 7), "head_dense": (7, 3)}
    with pytest.raises(UserError, match="mlp_x"):
        models.create("mlp_x")
