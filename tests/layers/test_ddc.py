import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import layers, models
from jaxface.errors import UserError
from jaxface.layers.context import CONTEXTS


def normal(shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def grouped(x, w):
    """The definition by XLA: one group of channels each, zeros around the image."""
    reach = w.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, w[:, :, None], (1, 1), [(reach, reach)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1], precision="highest",
    )  # fmt: skip


def shift_and_add(x, w, dilation):
    reach = w.shape[0] // 2 * dilation
    padded = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    height, width = x.shape[1:3]
    return sum(
        padded[:, m * dilation : m * dilation + height, n * dilation : n * dilation + width] * w[m, n]
        for m in range(w.shape[0])
        for n in range(w.shape[1])
    )


def zero_inserted(w, dilation):
    side = (w.shape[0] - 1) * dilation + 1
    return jnp.zeros((side, side, w.shape[-1])).at[::dilation, ::dilation].set(w)


@pytest.mark.parametrize(("side", "dilation"), [(3, 1), (3, 2), (5, 2)])
def test_is_the_grouped_convolution_with_zeros_between_its_taps(side, dilation):
    x, w = normal((2, 6, 9, 3)), normal((side, side, 3), 1)
    ours = layers.depthwise_dilated(x, w, dilation=dilation)
    np.testing.assert_allclose(ours, grouped(x, zero_inserted(w, dilation)), atol=1e-5)


@pytest.mark.parametrize(
    ("side", "dilation", "seen"), [(3, 1, 3), (3, 2, 5), (3, 3, 7), (5, 1, 5), (7, 1, 7), (5, 2, 9)]
)
def test_field_of_view(side, dilation, seen):
    """(k - 1)·d + 1 pixels, of which k have a weight."""
    delta = jnp.zeros((1, 19, 19, 1)).at[0, 9, 9, 0].set(1.0)
    y = layers.depthwise_dilated(delta, jnp.ones((side, side, 1)), dilation=dilation)[0, :, :, 0]
    touched = np.flatnonzero(np.asarray(y).any(axis=0)) - 9
    assert np.ptp(touched) + 1 == seen
    np.testing.assert_array_equal(touched, dilation * np.arange(-(side // 2), side // 2 + 1))


@pytest.mark.parametrize("side", [3, 5, 7])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_gradients_in_float64(side, dilation):
    """Against autodiff of the sum over shifted images; an image smaller than the filter is one like any other."""
    with jax.enable_x64(True):
        x, w, g = (
            normal((1, 5, 8, 2), 0, float),
            normal((side, side, 2), 1, float),
            normal((1, 5, 8, 2), 2, float),
        )

        def gradients(f):
            y, pull = jax.vjp(f, x, w)
            return y, *pull(g)

        gradients = jax.jit(gradients, static_argnums=0)
        ours = gradients(lambda x, w: layers.depthwise_dilated(x, w, dilation=dilation))
        for a, b in zip(ours, gradients(lambda x, w: shift_and_add(x, w, dilation)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-10)


def test_a_window_wider_than_the_image_sees_zeros():
    x, w = normal((1, 2, 3, 2)), normal((7, 7, 2), 1)
    y = layers.depthwise_dilated(x, w, dilation=3)
    np.testing.assert_allclose(y, shift_and_add(x, w, 3), atol=1e-6)


def test_separable_filters_are_two_passes():
    x, f, g = normal((1, 7, 6, 3)), normal(5, 1), normal(5, 2)
    w = jnp.broadcast_to((f[:, None] * g)[..., None], (5, 5, 3))
    rows = jnp.pad(x, ((0, 0), (2, 2), (0, 0), (0, 0)))
    rows = sum(rows[:, i : i + 7] * f[i] for i in range(5))
    columns = jnp.pad(rows, ((0, 0), (0, 0), (2, 2), (0, 0)))
    columns = sum(columns[:, :, i : i + 6] * g[i] for i in range(5))
    np.testing.assert_allclose(layers.depthwise_dilated(x, w), columns, atol=1e-5)


def weights(module, channels):
    x = jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32)
    params = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), x)["params"]
    return models.parameter_count(params)


@pytest.mark.parametrize(
    ("channels", "features", "count", "dense"),
    [(64, 32, 2624, 18_432), (64, 16, 1600, 9216), (16, 16, 400, 2304)],
)
def test_weights(channels, features, count, dense):
    assert weights(layers.DDCLayer(features, norm=False), channels) == count
    assert 9 * channels * features == dense


# Convolutions of the detector's head by level: (channels in, channels out) of the SSH context, and pixels of all levels.
SSH = [(64, 32), (64, 16), (16, 16), (16, 16), (16, 16)]
PARAMETERS, OPERATIONS, PIXELS = 426_608, 981_145_600, (6400, 1600, 400)


def changed(old, new, levels=PIXELS):
    """(weights, multiply-accumulates) that separable layers `new` save or cost in place of dense 3x3 ones `old`, in percent."""
    count = sum(weights(layers.DDCLayer(out, norm=False), inner) for inner, out in new)
    change = count - sum(9 * inner * out for inner, out in old)
    return 100 * len(levels) * change / PARAMETERS, 100 * sum(levels) * change / OPERATIONS


@pytest.mark.parametrize(
    ("old", "new", "levels", "expected"),
    [
        (SSH, SSH, PIXELS, (-20.49, -24.94)),
        (SSH, [(64, 32), (64, 16), (64, 16)], PIXELS, (-20.21, -24.60)),
        ([(64, 64)], [(64, 64)], PIXELS[:2], (-15.09, -26.25)),
    ],
)
def test_what_it_saves_of_the_detector(old, new, levels, expected):
    np.testing.assert_allclose(changed(old, new, levels), expected, atol=0.01)


def test_what_it_saves_of_merges_and_the_small_convolutions():
    merges, small = changed([(64, 64)], [(64, 64)], PIXELS[:2]), changed(SSH[2:], SSH[2:])
    np.testing.assert_allclose(np.add(merges, small), (-19.11, -31.14), atol=0.01)


def test_the_context_with_its_normalizations():
    """Three layers of 64 channels, a normalization in the middle and one at the end: 19.98 % of the detector on three levels."""
    context = CONTEXTS["ddc"](64)
    x = jax.ShapeDtypeStruct((1, 20, 20, 64), jnp.float32)
    y, variables = jax.eval_shape(lambda x: context.init_with_output(jax.random.key(0), x, train=False), x)
    assert y.shape == (1, 20, 20, 64)
    ssh = 34_560 + 2 * 96  # weights of the five convolutions and their normalizations
    change = 3 * (models.parameter_count(variables) - ssh) / PARAMETERS
    assert change == pytest.approx(-0.1998, abs=5e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"kernel_size": 5},
        {"dilation": 2, "negative_slope": 0.1},
        {"stride": 2, "activate": False},
        {"norm": False, "middle": False, "dilation": 3},
    ],
    ids=["large", "leaky", "strided", "linear"],
)
def test_the_fused_layer_is_the_trained_one(fields):
    layer, x = layers.DDCLayer(5, **fields), normal((2, 9, 8, 4))
    rng = np.random.default_rng(3)
    variables = layer.init(jax.random.key(0), x)
    variables = jax.tree.map(
        lambda v: v + jnp.asarray(rng.uniform(0.1, 0.5, v.shape), jnp.float32), variables
    )
    fused = layers.fuse_ddc(layer, variables)
    y = layer.apply(variables, x, train=False)
    np.testing.assert_allclose(jax.jit(lambda f, x: f(x))(fused, x), y, rtol=1e-4, atol=1e-4)
    assert y.shape == (2, *((5, 4) if layer.stride == 2 else (9, 8)), 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel_size": 4}, "kernel_size: needs an odd number"),
        ({"dilation": 0}, "dilation: needs at least 1, got 0"),
        ({"dilation": 2, "stride": 2}, "stride: needs 1, or more where dilation is 1; got 2 at dilation 2"),
        ({"stride": 0}, "stride: needs 1"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message):
        layers.DDCLayer(8, **fields)


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        ((1, 4, 4, 3), (3, 3, 2), "x: needs .N, H, W, 2. for these filters"),
        ((1, 4, 4, 3), (3, 5, 3), "w: needs .k, k, C."),
        ((4, 4, 3), (3, 3, 3), "x: needs"),
        ((1, 4, 4, 3), (2, 2, 3), "kernel_size: needs an odd number"),
    ],
)
def test_refused_shapes(x, w, message):
    with pytest.raises(UserError, match=message):
        layers.depthwise_dilated(jnp.ones(x), jnp.ones(w))


# Weights of convolutions and of the classifier of 1000 classes, and multiply-accumulates at 224 x 224.
MOBILENETS = {
    1.0: (4_209_088, 4_288_448, 568.74, 599.65),
    0.75: (2_568_144, 2_627_664, 325.40, 348.58),
    0.5: (1_319_648, 1_359_328, 149.50, 164.95),
    0.25: (463_600, 483_440, 41.03, 48.76),
}


def kernel_count(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return models.parameter_count({"params": [leaf for path, leaf in leaves if path[-1].key == "kernel"]})


@pytest.mark.parametrize(
    "width", [1.0, 0.25, *(pytest.param(w, marks=pytest.mark.slow) for w in (0.75, 0.5))]
)
def test_mobilenets(width):
    small, large, fewer, more = MOBILENETS[width]
    for kernel, count, operations in ((3, small, fewer), (5, large, more)):
        model = models.create("mobilenet_v1", embedding=1000, width=width, depthwise_kernel=kernel)
        image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        params = jax.eval_shape(lambda x, m=model: m.init(jax.random.key(0), x), image)["params"]
        assert kernel_count(params) == count
        assert models.multiply_accumulates(model, (224, 224, 3)) / 1e6 == pytest.approx(operations, abs=5e-3)


def test_the_levels_of_a_backbone():
    """Weights of RetinaFace's MobileNetV1-0.25, the maps of strides 8, 16 and 32 of an image that they do not divide."""
    model = models.create("mobilenet_v1_quarter", embedding=None, negative_slope=0.1)
    image = jax.ShapeDtypeStruct((2, 100, 70, 3), jnp.float32)
    maps, variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, method="levels"), image
    )
    assert [m.shape for m in maps] == [(2, 13, 9, 64), (2, 7, 5, 128), (2, 4, 3, 256)]
    assert kernel_count(variables["params"]) == 207_600
    with pytest.raises(UserError, match="width: needs at least 1/32"):
        models.create("mobilenet_v1", width=0.01)
