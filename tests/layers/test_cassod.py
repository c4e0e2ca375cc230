"""Numbers are those of the checks of the method's specification, by their number; everything else is against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxface import hardware, layers
from jaxface.errors import UserError
from jaxface.layers import cassod
from jaxface.layers.context import CONTEXTS
from jaxface.models.detection import RetinaFace
from pallas_kernels import dilated_conv
from pallas_kernels.common import KernelError

A, B = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), np.array([[5.0, 6.0], [7.0, 8.0]], np.float32)
RAMP = ((np.arange(25.0).reshape(1, 5, 5, 1) - 12) / 10).astype(np.float32)
KINDS = cassod.CASCADE_KINDS
CHECK2 = [
    [-122.4, -104, -116.2, -75.1, -59.6],
    [-30.4, -12, -2.7, 2.4, 17.9],
    [30.4, 51.6, 79.2, 60, 77.6],
    [20.8, 33.6, 49.5, 35.4, 45.7],
    [84.8, 97.6, 127, 86.9, 97.2],
]


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def filters(kind, inputs=3, outputs=4, middle=None):
    return {
        name: numbers(*shape, seed=seed) / 2
        for seed, (name, shape) in enumerate(
            cassod.cascade_shapes(kind, inputs, outputs, middle=middle).items(), start=1
        )
    }


def one_channel(kind, a=A, b=B):
    """The taps of a cascade of one channel in the shapes of a kind."""
    shapes = cassod.cascade_shapes(kind, 1, 1)
    values = {"a": a, "b": b, "pointwise": np.ones((1, 1), np.float32)}
    return {name: np.reshape(values[name], shape) for name, shape in shapes.items()}


def on_ramp(kind, **options):
    module = layers.CascadedDilatedConv(1, dilation=2, kind=kind, norm="none", **options)
    params = one_channel(kind) | {"bias": np.zeros(1, np.float32)}
    return np.asarray(applied(module)({"params": params}, RAMP))[0, :, :, 0]


@functools.cache
def applied(module, **options):
    return jax.jit(functools.partial(module.apply, train=False, **options))


@functools.cache
def initialized(module, *shape):
    """Its variables for float32 images of a shape, as one program."""
    init = jax.jit(lambda: module.init(jax.random.key(0), jnp.zeros(shape), train=False))
    return jax.tree.map(np.asarray, init())


def plain_3x3(x, kernel, dilation):
    """SAME convolution by [3, 3, C, O]."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), [(dilation, dilation)] * 2, rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
    )  # fmt: skip


def composed(kind, taps):
    """The dense 3×3 filter that the filters of a kind amount to."""
    a, b = taps["a"], taps["b"]
    if kind == "cd":
        b = b[..., None] * jnp.eye(b.shape[-1])
    kernel = dilated_conv.compose_taps(a, b)
    return kernel[..., None] * taps["pointwise"] if kind == "ddp" else kernel


def test_check_1_composition():
    kernel = dilated_conv.compose_taps(A, B)
    assert kernel.tolist() == [[5, 16, 12], [22, 60, 40], [21, 52, 32]]
    assert np.linalg.matrix_rank(kernel) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_check_2_exact_padding_is_the_3x3_convolution(kind):
    y = on_ramp(kind)
    np.testing.assert_allclose(y, CHECK2, atol=3e-5)
    np.testing.assert_allclose(np.asarray(y, np.float64).sum(), 475.2, atol=2e-4)
    kernel = np.asarray(dilated_conv.compose_taps(A, B))[..., None, None]
    np.testing.assert_allclose(
        y, jax.jit(plain_3x3, static_argnums=2)(RAMP, kernel, 2)[0, :, :, 0], atol=3e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_check_3_per_stage_padding(kind):
    y = on_ramp(kind, padding="per_stage")
    np.testing.assert_allclose(y[:3, :3], np.array(CHECK2)[:3, :3], atol=3e-5)
    np.testing.assert_allclose(y[3], [6.2, 15.2, 25.2, 11, 16], atol=3e-5)
    np.testing.assert_allclose(np.asarray(y, np.float64).sum(), 110.1, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_check_4_relu_between(kind):
    y = on_ramp(kind, activation="relu")
    np.testing.assert_allclose(y[0], 0)
    np.testing.assert_allclose(y[1], [9.6, 20.4, 34, 26.6, 36.8], atol=3e-5)
    np.testing.assert_allclose(y[2], [69.2, 81.4, 109, 77.6, 87.8], atol=3e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_check_5_gradients_and_eulers_identity(kind):
    def total(taps):
        return jnp.sum(cassod.cascaded_dilated_conv(RAMP, **taps, kind=kind, dilation=2))

    by = jax.jit(jax.grad(total))(one_channel(kind))
    np.testing.assert_allclose(np.ravel(by["a"]), [-82.5, -47.1, 77.7, 104.7], atol=2e-4)
    np.testing.assert_allclose(np.ravel(by["b"]), [-24.9, -8.7, 39.3, 47.1], atol=2e-4)
    for taps, gradient in ((A, by["a"]), (B, by["b"])):
        np.testing.assert_allclose(np.sum(np.ravel(taps) * np.ravel(gradient)), 475.2, atol=2e-3)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_check_7_support_and_what_library_padding_does(d):
    x = np.zeros((1, 15, 15, 1), np.float32)
    x[0, 7, 7] = 1
    ones = {"a": np.ones((2, 2, 1), np.float32), "b": np.ones((2, 2, 1), np.float32)}
    y = cassod.cascaded_dilated_conv(x, **ones, kind="ddp", dilation=d)[0, :, :, 0]
    assert np.flatnonzero(y.any(1)).tolist() == np.flatnonzero(y.any(0)).tolist() == [7 - d, 7, 7 + d]
    assert y[np.ix_([7 - d, 7, 7 + d], [7])].ravel().tolist() == [2, 4, 2]  # (1, 2, 1) of the other axis' 2
    twice = x
    for _ in range(2):
        twice = lax.conv_general_dilated(
            twice, jnp.ones((2, 2, 1, 1)), (1, 1), "SAME", rhs_dilation=(d, d),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
    rows = np.flatnonzero(np.asarray(twice)[0, :, :, 0].any(1)).tolist()
    assert rows == {1: [5, 6, 7], 2: [5, 7, 9], 3: [3, 6, 9]}[d]


@pytest.mark.parametrize(
    ("inputs", "outputs", "dense", "counts"),
    [
        (64, 16, 9216, {"cc": 5120, "dc": 4352, "cd": 4160, "ddp": 1536}),
        (16, 16, 2304, {"cc": 2048, "dc": 1088, "cd": 1088, "ddp": 384}),
    ],
)
def test_check_8_weights(inputs, outputs, dense, counts):
    assert 9 * inputs * outputs == dense
    for kind, count in counts.items():
        module = layers.CascadedDilatedConv(outputs, dilation=2, kind=kind)
        image = jax.ShapeDtypeStruct((1, 4, 4, inputs), jnp.float32)
        shapes = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), image)
        assert (
            sum(shapes["params"][name].size for name in cassod.cascade_shapes(kind, inputs, outputs)) == count
        )
    # The abstract's 47 %, of any number of inputs.
    assert counts["dc"] / dense == pytest.approx(0.472222, abs=1e-6)
    assert counts["dc"] / dense == pytest.approx(4 / 9 * (1 + 1 / outputs))


def test_the_ratios_of_the_other_kinds():
    ratio = {
        (kind, inputs, outputs): sum(map(np.prod, cassod.cascade_shapes(kind, inputs, outputs).values()))
        / (9 * inputs * outputs)
        for kind in KINDS
        for inputs, outputs in ((64, 16), (16, 16))
    }
    assert ratio["cd", 64, 16] == pytest.approx(0.4514, abs=5e-5)
    assert ratio["ddp", 64, 16] == pytest.approx(0.167, abs=5e-4)
    assert ratio["cc", 64, 16] == pytest.approx(0.556, abs=5e-4)
    assert ratio["cc", 16, 16] == pytest.approx(0.889, abs=5e-4)
    assert cassod.cascade_shapes("cc", 3, 4, middle=5) == {"a": (2, 2, 3, 5), "b": (2, 2, 5, 4)}


@pytest.mark.parametrize(("d", "ratio"), [(1, 1), (2, 2.777778), (3, 5.444444), (4, 9)])
def test_check_9_cycles_with_and_without_inserted_zeros(d, ratio):
    """At d = 2 it is the published 2.78, a ratio of cycles of one layer; the cascade itself gains 9/8 over an addressed 3×3."""
    cycles = {mode: hardware.dilated_cycles(3, d, mode) for mode in ("zero", "address")}
    assert cycles["zero"] / cycles["address"] == pytest.approx(ratio, abs=1e-6)
    specs = layers.CascadedDilatedConv(16, dilation=d, kind="dc").conv_specs((1, 8, 8, 64))
    taps = sum(hardware.taps(spec.kernel_size, spec.dilation) for spec in specs)
    assert cycles["address"] / taps == 9 / 8
    assert d != 2 or cycles["zero"] / taps == 25 / 8


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_accelerator_sees(kind):
    specs = layers.CascadedDilatedConv(16, dilation=2, kind=kind).conv_specs((1, 5, 8, 64))
    shapes = cassod.cascade_shapes(kind, 64, 16)
    cycles = hardware.layer_cycles(specs)
    assert cycles.weights.tolist() == [int(np.prod(shape)) for shape in shapes.values()]
    assert cycles.macs.tolist() == [40 * int(np.prod(shape)) for shape in shapes.values()]
    assert [spec.name for spec in specs] == list(shapes)
    assert {spec.dilation for spec in specs if spec.name != "pointwise"} == {2}


@pytest.mark.parametrize("kind", KINDS)
def test_check_10_translation_linearity_and_bfloat16(kind):
    d, taps = 2, filters(kind)
    call = jax.jit(functools.partial(cassod.cascaded_dilated_conv, kind=kind, dilation=d))
    x = numbers(2, 9, 8, 3)
    y = call(x, **taps)
    expected = jax.jit(lambda x, taps: plain_3x3(x, composed(kind, taps), d))(x, taps)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    moved = np.zeros_like(x)
    moved[:, d:] = x[:, :-d]
    np.testing.assert_allclose(call(moved, **taps)[:, 2 * d : -d], y[:, d : -2 * d], atol=2e-5)
    np.testing.assert_allclose(call(3 * x - moved, **taps), 3 * y - call(moved, **taps), atol=5e-5)
    # Operands that bfloat16 holds exactly, so that what differs is the layer.
    low, x_low = jax.tree.map(lambda t: t.astype(jnp.bfloat16), (taps, x))
    rounded = call(x_low, **low)
    assert rounded.dtype == jnp.bfloat16
    low, x_low = jax.tree.map(lambda t: t.astype(np.float32), (low, x_low))
    exact = np.asarray(call(x_low, **low))
    np.testing.assert_allclose(
        np.asarray(rounded, np.float32), exact, rtol=2**-7, atol=2**-7 * np.abs(exact).max()
    )


X = np.zeros((1, 4, 5, 3), np.float32)


@pytest.mark.parametrize("kind", ["dc", "cd"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dilation": 0}, "dilation: needs an integer"),
        ({"dilation": 1.5}, "dilation: needs an integer"),
        ({"kind": "dd"}, "kind: needs one of ddp, dc, cc, cd, got 'dd'"),
        ({"padding": "same"}, "padding: needs"),
        ({"activation": "gelu"}, "activation: needs one of identity, relu, leaky_relu, got 'gelu'"),
        ({"norm": "first"}, "norm: needs one of none, last, both, got 'first'"),
        ({"start": "zeros"}, "start: needs he or identity, got 'zeros'"),
        ({"features": 0}, "features: needs an integer from 1, got 0"),
        ({"middle": 4}, "middle: needs kind 'cc'"),
        ({"x": X[0]}, r"x: needs floats \[B, H, W, C\]"),
        ({"x": X.astype(np.int32)}, r"x: needs floats \[B, H, W, C\], got int32"),
    ],
)
def test_check_11_refusals(kind, changes, words):
    fields = {"features": 4, "dilation": 2, "kind": kind, "norm": "none", **changes}
    x = fields.pop("x", X)
    with pytest.raises((UserError, KernelError), match=f"^{words}") as caught:
        layers.CascadedDilatedConv(**fields).init(jax.random.key(0), x, train=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("dc", {"a": np.ones((3, 3, 3), np.float32)}, r"a: needs \[2, 2, 3\]"),
        ("dc", {"b": np.ones((2, 2, 5, 4), np.float32)}, r"b: needs \[2, 2, 3"),
        ("cd", {"a": np.ones((3, 3, 3, 4), np.float32)}, r"a: needs \[2, 2, 3, O\]"),
        ("cd", {"a": np.ones((2, 2, 5, 4), np.float32)}, r"a: needs \[2, 2, 3, O\]"),
        ("cd", {"b": np.ones((2, 2, 5), np.float32)}, r"b: needs \[2, 2, 4\]"),
        ("cd", {"bias": np.ones(3, np.float32)}, r"bias: needs \[4\]"),
        ("cd", {"mid_bias": np.ones(3, np.float32)}, r"mid_bias: needs \[4\]"),
        ("cd", {"pointwise": np.ones((4, 4), np.float32)}, "pointwise: needs kind 'ddp'"),
        ("cd", {"x": X.astype(np.float16)}, "x: needs float32 or bfloat16"),
        ("cd", {"padding": "valid"}, "padding: needs one of exact, per_stage"),
        ("cd", {"dilation": True}, "dilation: needs an integer from 1, got True"),
    ],
)
def test_check_11_refusals_of_filters(kind, changes, words):
    arguments = {"x": X, **filters(kind), "dilation": 2, **changes}
    with pytest.raises((UserError, KernelError), match=f"^{words}"):
        cassod.cascaded_dilated_conv(**arguments, kind=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_check_11_stride_is_no_argument_and_nan_taps_propagate(kind):
    with pytest.raises(TypeError, match="stride"):
        layers.CascadedDilatedConv(4, stride=2)
    taps = filters(kind)
    taps["a"][0, 0, 0] = np.nan
    call = jax.jit(functools.partial(cassod.cascaded_dilated_conv, kind=kind, dilation=2))
    assert np.isnan(call(numbers(1, 5, 5, 3), **taps)).any()


def variables(module, x):
    """Trained ones: statistics and scales that are not those of the start, some of them negative."""
    rng = np.random.default_rng(0)

    def change(path, leaf):
        name = path[-1].key
        drawn = rng.uniform(0.5, 2, leaf.shape) if name == "var" else rng.normal(size=leaf.shape)
        return drawn.astype(np.float32) if name in ("scale", "bias", "mean", "var") else leaf

    return jax.tree_util.tree_map_with_path(change, initialized(module, *x.shape))


@pytest.mark.parametrize(
    ("kind", "norm", "activation", "padding"),
    [
        ("ddp", "last", "identity", "exact"), ("ddp", "both", "leaky_relu", "per_stage"), ("dc", "last", "identity", "exact"),
        ("dc", "both", "relu", "exact"), ("dc", "both", "identity", "per_stage"), ("dc", "none", "relu", "per_stage"),
        ("cc", "both", "leaky_relu", "exact"), ("cd", "both", "relu", "per_stage"), ("cd", "last", "identity", "exact"),
    ],
)  # fmt: skip
def test_the_deployment_form_gives_what_the_training_form_gives(kind, norm, activation, padding):
    """Float64 numpy is the third: statistics applied as they are defined, zeros where the padding says so."""
    x, middle = numbers(2, 5, 4, 3), 5 if kind == "cc" else None
    module = layers.CascadedDilatedConv(
        4, dilation=2, kind=kind, norm=norm, activation=activation, padding=padding, middle=middle
    )
    trained = variables(module, x)

    @jax.jit
    def both(trained, x):
        fused = cassod.fuse_cascade(module, trained)
        return module.apply(trained, x, train=False), fused(x), fused(x.astype(jnp.bfloat16))

    y, fused, low = both(trained, x)
    expected = in_float64(module, trained, x)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(y, expected, atol=1e-5 * scale)
    np.testing.assert_allclose(fused, y, atol=1e-5 * scale)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(low, np.float32), y, atol=0.03 * scale)


def in_float64(module, trained, x):
    params, stats = (
        jax.tree.map(lambda t: np.asarray(t, np.float64), trained.get(k, {}))
        for k in ("params", "batch_stats")
    )
    d, size = module.dilation, x.shape[1:3]

    def norm(x, name):
        if name not in params:
            return x
        deviation = np.sqrt(stats[name]["var"] + 1e-5)
        return params[name]["scale"] * (x - stats[name]["mean"]) / deviation + params[name]["bias"]

    def at(x, i, j, start):
        """x moved by (i, j), zero outside, on rows from `start` on."""
        out = np.zeros((x.shape[0], *(n + d for n in size), x.shape[3]))
        for r in range(out.shape[1]):
            for c in range(out.shape[2]):
                if 0 <= r + i + start < x.shape[1] and 0 <= c + j + start < x.shape[2]:
                    out[:, r, c] = x[:, r + i + start, c + j + start]
        return out

    def stage(x, w, start):
        mix = np.multiply if w.ndim == 3 else np.matmul
        return sum(mix(at(x, p * d, q * d, start), w[p, q]) for p in range(2) for q in range(2))

    u = norm(stage(np.asarray(x, np.float64), params["a"], -d), "mid_norm")
    slope = {"identity": 1.0, "relu": 0.0, "leaky_relu": module.slope}[module.activation]
    s = np.where(u > 0, u, slope * u)
    if module.padding == "per_stage":
        s = s[:, : size[0], : size[1]]
    v = stage(s, params["b"], 0)[:, : size[0], : size[1]]
    v = v @ params["pointwise"] if module.kind == "ddp" else v
    return norm(v, "norm") + params.get("bias", 0.0)


def test_variables_of_another_layer_are_not_fused():
    module = layers.CascadedDilatedConv(4, norm="none")
    trained = initialized(module, 1, 4, 4, 3)
    with pytest.raises(UserError, match=r"^variables: need those of"):
        cassod.fuse_cascade(module.clone(norm="both"), trained)


@pytest.mark.parametrize("kind", KINDS)
def test_the_identity_start_is_the_identity(kind):
    module = layers.CascadedDilatedConv(3, dilation=2, kind=kind, norm="none", start="identity")
    x = numbers(1, 6, 5, 3)
    np.testing.assert_allclose(applied(module)(initialized(module, *x.shape), x), x, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_has_unit_gain_then_hes(kind):
    """Variances 1/fan-in in the first stages and 2/fan-in in the last; no stage starts at zero."""
    shapes = cassod.cascade_shapes(kind, 200, 100)
    params = initialized(layers.CascadedDilatedConv(100, kind=kind, norm="none"), 1, 1, 1, 200)["params"]
    last = list(shapes)[-1]
    fan_in = {"ddp": (4, 4, 200), "dc": (4, 800), "cd": (800, 4), "cc": (800, 400)}[kind]
    for (name, shape), inputs in zip(shapes.items(), fan_in, strict=True):
        assert params[name].shape == shape
        wanted = (2 if name == last else 1) / inputs
        assert np.var(params[name]) == pytest.approx(wanted, rel=0.15)
    assert float(layers.stage_ratio(params)) == pytest.approx(
        np.linalg.norm(params["a"]) / np.linalg.norm(params["b"]), rel=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_may_go_to_either_stage(kind):
    """The gauge of a linear cascade: nothing in it changes, and the lengths of a and b do."""
    taps, x = filters(kind), numbers(1, 5, 5, 3)
    moved = {**taps, "a": taps["a"] * 4, "b": taps["b"] / 4}
    call = jax.jit(functools.partial(cassod.cascaded_dilated_conv, kind=kind, dilation=2))
    np.testing.assert_allclose(call(x, **moved), call(x, **taps), atol=1e-5)
    assert layers.stage_ratio(moved) / layers.stage_ratio(taps) == pytest.approx(16, rel=1e-5)


@pytest.mark.parametrize(("kind", "weights"), [("cassod", 8704), ("cassod_cd", 8320), ("cassod_ddp", 3072)])
def test_the_context_module(kind, weights):
    """47.22 % of the weights in the dilated layers of the module at 64 channels."""
    module = CONTEXTS[kind](64)
    image = jax.ShapeDtypeStruct((1, 8, 8, 64), jnp.float32)
    shapes = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), image)["params"]
    names = ("a", "b", "pointwise")
    assert sum(shapes[b][n].size for b in ("middle", "far") for n in names if n in shapes[b]) == weights
    assert shapes["near"]["conv"]["kernel"].shape == (3, 3, 64, 32)
    assert kind != "cassod" or weights / (2 * 9 * 64 * 16) == pytest.approx(0.4722, abs=5e-5)


def test_the_context_module_is_its_branches():
    module, x = CONTEXTS["cassod"](8), numbers(2, 7, 6, 5)
    trained = variables(module, x)

    @jax.jit
    def both(trained, x):
        branch = {name: {part: trained[part][name] for part in trained} for name in trained["params"]}
        norm, stats = branch["near"]["params"]["norm"], branch["near"]["batch_stats"]["norm"]
        near = plain_3x3(x, branch["near"]["params"]["conv"]["kernel"], 1) - stats["mean"]
        near = norm["scale"] * near / jnp.sqrt(stats["var"] + 1e-5) + norm["bias"]
        others = [
            cassod.fuse_cascade(layers.CascadedDilatedConv(2, dilation=d), branch[name])(x)
            for name, d in (("middle", 2), ("far", 3))
        ]
        in_training, changed = module.apply(trained, x, train=True, mutable=["batch_stats"])
        parts = jax.nn.relu(jnp.concatenate([near, *others], axis=-1))
        return module.apply(trained, x, train=False), parts, in_training, changed["batch_stats"]

    y, parts, in_training, statistics = both(trained, x)
    np.testing.assert_allclose(y, parts, atol=2e-5)
    assert in_training.shape == (2, 7, 6, 8) and set(statistics) == {"near", "middle", "far"}


@pytest.mark.parametrize(
    ("context", "weights", "operations"),
    [("dilated", 426_736, 1_000_499_200), ("cassod", 397_552, 918_784_000)],
)
def test_the_detector_with_its_context_modules(context, weights, operations):
    """Convolution weights of RetinaFace with MobileNet-0.25, and multiply-accumulates at 640², a weight at each of its places."""
    network = RetinaFace(context=context).module
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(functools.partial(network.init, train=False), jax.random.key(0), image)["params"]
    filters = {
        "/".join(entry.key for entry in path): leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        if leaf.ndim >= 2
    }
    assert sum(filters.values()) == weights
    of_levels = {
        level: sum(size for name, size in filters.items() if name.startswith(f"context{level}/"))
        for level in (1, 2, 3)
    }
    ssh = 64 * 32 * 9 + 64 * 16 * 9 + 3 * 16 * 16 * 9
    # The rest of the network is the same in all, so its operations are those of the published network less its modules.
    others = 981_145_600 - ssh * (80**2 + 40**2 + 20**2)
    assert others + sum(of_levels[i] * side**2 for i, side in ((1, 80), (2, 40), (3, 20))) == operations
