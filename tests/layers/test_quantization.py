"""Learned quantizers: values and gradients worked out by hand, calibration, and the layers on them.

Numbers of `test_check_…` are those of the method's specification; `tests/oracles` has none, each follows from one line above it.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import layers
from jaxface.errors import UserError
from jaxface.layers.quantization import (
    OPERANDS,
    QuantizedConv,
    QuantizedDense,
    QuantizedDotProduct,
    calibrate,
    code_range,
    lsq_codes,
    lsq_init_alpha,
    lsq_init_zero_point,
    lsq_quantize,
)

X = jnp.array([-2, -0.3, 0.1, 0.24, 0.26, 0.74, 0.9, 3], jnp.float32)
RNG = np.random.default_rng(0)


def gradients(x, alpha, zero, upstream=None, **options):
    """x̂ and the gradients by x, α and z."""

    @jax.jit
    def run(x, alpha, zero, upstream):
        x_hat, pull = jax.vjp(functools.partial(lsq_quantize, **options), x, alpha, zero)
        return x_hat, *pull(upstream)

    upstream = np.ones(x.shape) if upstream is None else np.asarray(upstream)
    return run(x, np.float32(alpha), np.float32(zero), upstream.astype(np.float32))


def test_check_1_signed_codes_of_two_bits():
    x_hat, dx, d_alpha, dz = gradients(X, 0.5, 0.0, np.arange(1, 9), bits=2)
    np.testing.assert_allclose(x_hat, [-1, -0.5, 0, 0, 0.5, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(dx, [0, 2, 3, 4, 5, 0, 0, 0])
    np.testing.assert_allclose([d_alpha, dz], [6.392245, -3.889087], rtol=1e-6)
    codes = lsq_codes(X, 0.5, bits=2)
    assert codes.dtype == jnp.int8 and codes.tolist() == [-2, -1, 0, 0, 1, 1, 1, 1]


def test_check_2_a_value_on_the_bound_has_its_whole_gradient():
    x = jnp.array([0, 0.002, 0.003, 0.01, 0.02, 0.965])
    x_hat, dx, d_alpha, dz = gradients(x, 0.01, 0.0, bits=2, signed=False)
    np.testing.assert_allclose(x_hat, [0, 0, 0, 0.01, 0.02, 0.03], rtol=1e-6)
    np.testing.assert_array_equal(dx, [1, 1, 1, 1, 1, 0])
    np.testing.assert_allclose([d_alpha, dz], [0.589256, -0.002357], rtol=2e-4)


def test_check_3_a_zero_point_is_rounded():
    x_hat, _, d_alpha, dz = gradients(jnp.array([-1.2, -0.2, 0.3, 0.9]), 0.5, 0.6, bits=3)
    np.testing.assert_allclose(x_hat, [-1, 0, 0.5, 1])
    np.testing.assert_allclose(d_alpha, 0.404145, rtol=2e-6)
    assert dz == 0


def test_check_4_where_steps_start():
    signed, unsigned = jnp.linspace(-1, 1, 9), jnp.linspace(0, 1, 9)
    alpha = lsq_init_alpha(signed, bits=4)
    np.testing.assert_allclose(alpha, 0.4199606, rtol=1e-6)
    np.testing.assert_allclose(lsq_init_zero_point(signed, alpha, bits=4), 0.2359685, rtol=1e-6)
    alpha = lsq_init_alpha(unsigned, bits=4, signed=False)
    np.testing.assert_allclose(alpha, 0.2581989, rtol=1e-6)
    assert lsq_init_zero_point(unsigned, alpha, bits=4, signed=False) == 0
    assert lsq_init_alpha(jnp.zeros(3), bits=4) == 1


def test_check_5_a_quantized_linear_layer():
    layer = QuantizedDense(
        2, use_bias=False, weight_bits=4, input_bits=4, granularity="tensor", zero_point="code", compat=True
    )
    x = jnp.array([[1, 2, 3, 4], [0.5, -1, 1.5, -2]])
    params = jax.jit(layer.init)(jax.random.key(0), x)["params"]
    params["kernel"] = jnp.array([[0.1, -0.2, 0.3, -0.4], [1, 0.5, -0.5, -1]]).T
    variables = calibrate(layer, {"params": params}, x)
    starts = variables["quantization"]
    np.testing.assert_allclose(starts["kernel_quantizer"]["signed"], 0.3779645, rtol=1e-6)
    np.testing.assert_allclose(starts["input_quantizer"]["signed"], 1.4173669, rtol=1e-6)
    zero = variables["params"]["input_quantizer"]["zero_point"]
    np.testing.assert_allclose(zero, 0.9338935, rtol=1e-6)
    expected = [[-1.071429, -3.75], [1.607143, 0.535714]]
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=2e-6)


def max_abs_error(bits):
    """Relative error of attention with N(0, 1) operands, N = 197 and d = 64, whose steps are the largest values' (check 10)."""
    q, k, v = (np.random.default_rng(7).normal(size=(3, 197, 64)).astype(np.float32)[i] for i in range(3))

    def on_grid(x, signed=True, step=None):
        step = jnp.max(jnp.abs(x)) / code_range(bits, signed=signed)[1] if step is None else step
        return lsq_quantize(x, step, bits=bits, signed=signed)

    @jax.jit
    def errors(q, k, v):
        exact = jax.nn.softmax(q @ k.T / 8) @ v
        p = jax.nn.softmax(on_grid(q) @ on_grid(k).T / 8)
        found = [on_grid(p, False, step) @ on_grid(v) for step in (None, jnp.float32(1 / (2**bits - 1)))]
        return [jnp.linalg.norm(x - exact) / jnp.linalg.norm(exact) for x in found]

    return errors(q, k, v)


@pytest.mark.parametrize(("bits", "expected", "fixed"), [(2, 1.34, None), (8, 0.030, 0.15)])
def test_check_10_many_bits_are_no_quantization(bits, expected, fixed):
    found, with_fixed_step = max_abs_error(bits)
    np.testing.assert_allclose(found, expected, rtol=0.1)
    if fixed is not None:
        np.testing.assert_allclose(with_fixed_step, fixed, rtol=0.1)


def test_check_11_logits_are_a_product_of_integers():
    q, k = (jnp.asarray(RNG.normal(size=(2, 3, 11, 16)), jnp.float32) for _ in range(2))
    steps = jnp.array([0.2, 0.4, 0.6]), jnp.array([0.3, 0.5, 0.1])

    @jax.jit
    def both(q, k):
        floats = [lsq_quantize(x, step, bits=4, axis=1) for x, step in zip((q, k), steps, strict=True)]
        codes = [lsq_codes(x, step, bits=4, axis=1) for x, step in zip((q, k), steps, strict=True)]
        integers = jnp.einsum("bhnd,bhmd->bhnm", *codes, preferred_element_type=jnp.int32)
        scale = (steps[0] * steps[1] / 4)[:, None, None]
        return jnp.einsum("bhnd,bhmd->bhnm", *floats) / 4, scale * integers

    np.testing.assert_allclose(*both(q, k), rtol=1e-5, atol=1e-6)


def test_check_12_the_first_step_of_uniform_attention():
    found = {
        bits: float(lsq_init_alpha(jnp.full((4, 197), 1 / 197), bits=bits, signed=False))
        for bits in (2, 3, 4)
    }
    np.testing.assert_allclose(list(found.values()), [0.00586142, 0.00383720, 0.00262131], rtol=1e-5)
    largest = [step * (2**bits - 1) for bits, step in found.items()]
    np.testing.assert_allclose(largest, [0.0175843, 0.0268604, 0.0393196], rtol=1e-5)


def test_gradients_of_the_input_domain_by_hand():
    """y = (x - z)/α = [-2.5, 0.3, 4]: outside, inside, outside of [-2, 1]; g = 1/√(3·1)."""
    x = jnp.array([-0.75, 0.65, 2.5])
    options = {"bits": 2, "zero_point_domain": "input"}
    x_hat, dx, d_alpha, dz = gradients(x, 0.5, 0.5, [1, 2, 3], **options)
    np.testing.assert_allclose(x_hat, [-0.5, 0.5, 1.0], atol=1e-7)
    np.testing.assert_array_equal(dx, [0, 2, 0])
    np.testing.assert_allclose(d_alpha, (1 * -2 + 2 * -0.3 + 3 * 1) / 3**0.5, rtol=1e-5)
    np.testing.assert_allclose(dz, (1 + 3) / 3**0.5, rtol=1e-6)


@pytest.mark.parametrize("axis", [1, -1])
def test_a_step_per_channel_is_a_quantizer_per_channel(axis):
    """Heads (axis 1) and channels (the last): each on its own gives the same, once g counts the whole tensor."""
    x = jnp.asarray(RNG.normal(size=(2, 3, 4, 3)), jnp.float32)
    alpha, zero = jnp.array([0.2, 0.5, 1.1]), jnp.array([0.0, 1.2, -0.7])
    upstream = jnp.asarray(RNG.normal(size=x.shape), jnp.float32)

    def run(x, alpha, zero, u, axis, numel):
        quantize = functools.partial(lsq_quantize, bits=3, axis=axis, numel=numel)
        value, pull = jax.vjp(quantize, x, alpha, zero)
        return value, *pull(u)

    value, dx, d_alpha, dz = jax.jit(run, static_argnums=(4, 5))(x, alpha, zero, upstream, axis, None)
    for i in range(3):
        one, u = (jnp.take(a, i, axis) for a in (x, upstream))
        parts = jax.jit(run, static_argnums=(4, 5))(one, alpha[i], zero[i], u, None, x.size)
        np.testing.assert_allclose(jnp.take(value, i, axis), parts[0], rtol=1e-6)
        np.testing.assert_allclose(jnp.take(dx, i, axis), parts[1], rtol=1e-6)
        np.testing.assert_allclose((d_alpha[i], dz[i]), parts[2:], rtol=1e-5, atol=1e-6)


def test_bfloat16_is_computed_in_float32_and_every_mode_agrees():
    x = jnp.asarray(RNG.normal(size=(5, 8)), jnp.bfloat16)
    quantize = functools.partial(lsq_quantize, alpha=jnp.float32(0.3), bits=4)
    expected = quantize(x.astype(jnp.float32))
    assert quantize(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(quantize(x), expected.astype(jnp.bfloat16))
    np.testing.assert_array_equal(jax.vmap(quantize)(x), jax.jit(quantize)(x))
    codes = lsq_codes(jnp.linspace(0, 300, 7), 1.0, bits=8, signed=False)
    assert codes.dtype == jnp.uint8 and codes.max() == 255


class Stack(nn.Module):
    """A signed input, a ReLU, an input that is not; and attention."""

    implementation: str | None = "fake"
    bits: int = 4

    @nn.compact
    def __call__(self, x):
        dense = functools.partial(
            QuantizedDense, weight_bits=self.bits, input_bits=self.bits, granularity="tensor"
        )
        x = nn.relu(dense(12, name="first")(x))
        mix = functools.partial(
            QuantizedDotProduct, bits=self.bits, zero_point="code", implementation=self.implementation
        )
        return layers.Attention(2, dense=dense, mix=mix, name="attention")(x)


TOKENS = jnp.asarray(RNG.normal(size=(2, 7, 5)), jnp.float32)


@pytest.fixture(scope="module")
def stack():
    module = Stack()
    return module, calibrate(module, jax.jit(module.init)(jax.random.key(0), TOKENS), TOKENS)


def test_calibration_decides_signs_and_starts_from_what_a_layer_sees(stack):
    module, variables = stack
    starts = variables["quantization"]
    assert set(starts["first"]["input_quantizer"]) == {"signed"}
    assert set(starts["attention"]["qkv"]["input_quantizer"]) == {"unsigned"}
    mix = starts["attention"]["mix"]
    assert {name: set(part) for name, part in mix.items()} == {
        "query_quantizer": {"signed"},
        "key_quantizer": {"signed"},
        "value_quantizer": {"signed"},
        "probability_quantizer": {"unsigned"},
    }
    # Rows of probabilities have the mean 1/7: 2/7/√15.
    np.testing.assert_allclose(mix["probability_quantizer"]["unsigned"], 2 / 7 / 15**0.5, rtol=1e-6)
    x = lsq_quantize(TOKENS, lsq_init_alpha(TOKENS, bits=4), bits=4)
    kernel = variables["params"]["first"]["kernel"]
    start = jnp.full(12, lsq_init_alpha(kernel, bits=4))
    hidden = nn.relu(x @ lsq_quantize(kernel, start, bits=4, axis=-1))
    found = starts["attention"]["qkv"]["input_quantizer"]["unsigned"]
    np.testing.assert_allclose(found, lsq_init_alpha(hidden, bits=4, signed=False), rtol=1e-5)
    # Once more from steps that have learned: the same.
    moved = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 1 if path[-1].key == "log_step" else leaf, variables["params"]
    )
    again = calibrate(module, {**variables, "params": moved}, TOKENS)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), again, variables)


def test_a_kernel_computes_what_the_floats_do_with_the_same_gradients(stack):
    module, variables = stack
    params = jax.tree.map(lambda x: x, variables["params"])
    params["attention"]["mix"]["query_quantizer"]["zero_point"] = jnp.array([1.0, 0.0])

    def loss(params, implementation):
        out = Stack(implementation).apply({**variables, "params": params}, TOKENS)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape)))

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    for (path, expected), found in zip(
        jax.tree_util.tree_leaves_with_path(run(params, "fake")),
        jax.tree.leaves(run(params, "xla")),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-5, err_msg=str(path))


def test_steps_learn_as_logarithms(stack):
    module, variables = stack

    def loss(params):
        return jnp.sum(jnp.square(module.apply({**variables, "params": params}, TOKENS)))

    run = jax.jit(jax.value_and_grad(loss))
    gradient = run(variables["params"])[1]["first"]["input_quantizer"]["log_step"]
    far = jax.tree.map(lambda x: x, variables["params"])
    far["first"]["input_quantizer"]["log_step"] = jnp.asarray(-5.0)
    assert gradient.shape == () and gradient != 0 and jnp.isfinite(run(far)[0])


def test_masks_and_operands(stack):
    _, variables = stack
    mix = {name: variables[name]["attention"]["mix"] for name in ("params", "quantization")}
    module = QuantizedDotProduct(bits=4, zero_point="code")
    kernel = QuantizedDotProduct(bits=4, zero_point="code", implementation="xla")
    q, k, v = (jnp.asarray(RNG.normal(size=(2, 7, 2, 6)), jnp.float32) for _ in range(3))
    seen = np.arange(7) < 5

    @jax.jit
    def run(q, k, v):
        masked, told = module.apply(mix, q, k, v, mask=seen[None, None, None], mutable=[OPERANDS])
        bias = jnp.where(seen, 0.0, -jnp.inf)[None, None, None]
        return masked, told, module.apply(mix, q, k[:, :5], v[:, :5]), kernel.apply(mix, q, k, v, bias=bias)

    masked, told, fewer, by_kernel = run(q, k, v)
    np.testing.assert_allclose(fewer, masked, atol=1e-6)
    np.testing.assert_allclose(by_kernel, masked, atol=1e-5)
    np.testing.assert_array_equal(told[OPERANDS]["query"][0], q)


def test_a_convolution_of_patches_is_a_linear_layer_on_them():
    image = jnp.asarray(RNG.normal(size=(2, 4, 4, 3)), jnp.float32)
    conv = QuantizedConv(5, (2, 2), (2, 2), "VALID", weight_bits=3, input_bits=3, granularity="tensor")
    variables = calibrate(conv, jax.jit(conv.init)(jax.random.key(0), image), image)
    patches = image.reshape(2, 2, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 2, 2, 12)
    dense = QuantizedDense(5, weight_bits=3, input_bits=3, granularity="tensor")
    params = {**variables["params"], "kernel": variables["params"]["kernel"].reshape(12, 5)}
    expected = jax.jit(dense.apply)({**variables, "params": params}, patches)
    np.testing.assert_allclose(jax.jit(conv.apply)(variables, image), expected, atol=1e-5)


def test_inputs_may_stay_as_they_are():
    layer = QuantizedDense(4, weight_bits=8, input_bits=None)
    variables = calibrate(layer, jax.jit(layer.init)(jax.random.key(0), TOKENS), TOKENS)
    assert set(variables["quantization"]) == {"kernel_quantizer"}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: code_range(1), "bits: needs an integer from 2 to 8, got 1"),
        (lambda: lsq_quantize(X, 1.0, bits=9), "bits: needs an integer from 2 to 8, got 9"),
        (lambda: lsq_quantize(X, 0.0, bits=2), "alpha: needs finite steps above 0, got 0"),
        (lambda: lsq_quantize(X, jnp.nan, bits=2), "alpha: needs finite steps above 0, got nan"),
        (lambda: lsq_quantize(X, jnp.ones(3), bits=2, axis=0), r"alpha: needs \(8,\), as axis 0 of x has"),
        (lambda: lsq_quantize(X, jnp.ones(8), bits=2), "alpha: needs a scalar, unless an axis is named"),
        (lambda: lsq_quantize(X, 1.0, bits=2, axis=1), "axis: needs one of the 1 axes of x, got 1"),
        (lambda: lsq_quantize(X, 1.0, bits=2, signed=False), "needs values from 0, got -2"),
        (lambda: lsq_codes(X, 1.0, bits=2, zero_point_domain="x"), "needs 'code' or 'input', got 'x'"),
        (
            lambda: QuantizedDense(2, granularity="head").init(jax.random.key(0), TOKENS),
            "granularity: needs 'channel' or 'tensor', got 'head'",
        ),
        (lambda: QuantizedDotProduct(bits=(2, 2)).all_bits(), "bits: needs one number, or those of q, k, v"),
        (
            lambda: calibrate(nn.Dense(2), nn.Dense(2).init(jax.random.key(0), TOKENS), TOKENS),
            "calibrate: Dense has no quantizer",
        ),
    ],
)
def test_refusals(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_an_uncalibrated_quantizer_says_so_before_anything_compiles(stack):
    module, variables = stack
    with pytest.raises(UserError, match="quantizers: first/kernel_quantizer is not calibrated"):
        jax.eval_shape(module.apply, {"params": variables["params"]}, TOKENS)
    with pytest.raises(UserError, match="calibrate: needs values"):
        jax.eval_shape(functools.partial(calibrate, module), variables, TOKENS)
    with pytest.raises(UserError, match="calibrate: needs finite inputs, those of first/input_quantizer"):
        calibrate(module, variables, TOKENS * jnp.inf)


def test_kernels_take_no_zero_points_in_units_of_the_input():
    module = QuantizedDotProduct(bits=4, zero_point="input", implementation="xla")
    q = jnp.ones((1, 3, 2, 4))
    variables = calibrate(module, module.init(jax.random.key(0), q, q, q), q, q, q)
    with pytest.raises(UserError, match="zero_point: a kernel needs None or 'code', got 'input'"):
        module.apply(variables, q, q, q)
