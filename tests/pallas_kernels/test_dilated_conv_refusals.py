"""What the three operations refuse, and what a kernel cannot run: one line that names the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import common
from pallas_kernels import dilated_conv as dc

INTERPRETERS = ["pallas_tpu_interpret", "pallas_gpu_interpret"]
X = jnp.zeros((1, 4, 5, 8))
TAPS = jnp.zeros((2, 2, 8))


def cassod(**options):
    return dc.cassod(**{"x": X, "a": TAPS, "b": TAPS, "dilation": 1} | options)


def depthwise_conv(**options):
    return dc.depthwise_conv(**{"x": X, "w": jnp.zeros((3, 3, 8))} | options)


def conv_ccp(**options):
    return dc.conv_ccp(**{"x": X, "w": jnp.zeros((3, 3, 8, 12)), "groups": 2} | options)


REFUSALS = [
    (cassod, {"x": X[0]}, r"x: needs \[N, H, W, C\], nothing empty; got \[4, 5, 8\]"),
    (cassod, {"x": X[:, :0]}, r"x: needs .* got \[1, 0, 5, 8\]"),
    (cassod, {"x": X[..., :0], "a": TAPS[..., :0], "b": TAPS[..., :0]}, r"x: needs .* got \[1, 4, 5, 0\]"),
    (cassod, {"x": X.astype(jnp.int8)}, "x: needs float32 or bfloat16; got int8"),
    (cassod, {"x": np.zeros((1, 4, 5, 8), np.float16)}, "x: needs float32 or bfloat16; got float16"),
    (cassod, {"x": np.zeros((1, 4, 5, 8))}, "x: needs float32 or bfloat16; got float64"),
    (cassod, {"kind": "cd"}, "kind: needs 'ddp', 'dc' or 'cc'; got 'cd'"),
    (cassod, {"padding": "same"}, "padding: needs 'exact' or 'per_stage'; got 'same'"),
    (cassod, {"dilation": 0}, "dilation: needs an integer of at least 1; got 0"),
    (cassod, {"dilation": 1.5}, "dilation: needs an integer of at least 1; got 1.5"),
    (cassod, {"dilation": True}, "dilation: needs an integer of at least 1; got True"),
    (cassod, {"a": jnp.zeros((3, 3, 8))}, r"a: needs \[2, 2, 8\]; got \[3, 3, 8\]"),
    (cassod, {"a": jnp.zeros((2, 2, 7))}, r"a: needs \[2, 2, 8\]; got \[2, 2, 7\]"),
    (cassod, {"a": TAPS.astype(jnp.int32)}, "a: needs floating numbers; got int32"),
    (cassod, {"b": jnp.zeros((2, 3, 8))}, r"b: needs \[2, 2, 8\]; got \[2, 3, 8\]"),
    (cassod, {"kind": "dc"}, r"b: needs \[2, 2, 8, ≥1\]; got \[2, 2, 8\]"),
    (cassod, {"kind": "dc", "b": jnp.zeros((2, 2, 8, 0))}, r"b: needs \[2, 2, 8, ≥1\]; got \[2, 2, 8, 0\]"),
    (cassod, {"kind": "cc"}, r"a: needs \[2, 2, 8, ≥1\]; got \[2, 2, 8\]"),
    (
        cassod,
        {"kind": "cc", "a": jnp.zeros((2, 2, 8, 3)), "b": jnp.zeros((2, 2, 8, 4))},
        r"b: needs \[2, 2, 3, ≥1\]",
    ),
    (
        cassod,
        {"kind": "dc", "b": jnp.zeros((2, 2, 8, 4)), "pointwise": jnp.zeros((4, 4))},
        "pointwise: needs kind='ddp'",
    ),
    (cassod, {"pointwise": jnp.zeros((7, 4))}, r"pointwise: needs \[8, ≥1\]; got \[7, 4\]"),
    (cassod, {"pointwise": jnp.zeros((8, 0))}, r"pointwise: needs \[8, ≥1\]; got \[8, 0\]"),
    (cassod, {"pointwise": jnp.zeros((8, 4)), "bias": jnp.zeros(8)}, r"bias: needs \[4\]; got \[8\]"),
    (cassod, {"mid_scale": jnp.zeros(7)}, r"mid_scale: needs \[8\]; got \[7\]"),
    (cassod, {"mid_bias": jnp.zeros(())}, r"mid_bias: needs \[8\]; got \[\]"),
    (cassod, {"activation": "gelu"}, "activation: needs one of identity, relu, prelu; got 'gelu'"),
    (
        cassod,
        {"activation": "prelu"},
        "slope: needs activation='prelu', which needs a slope; got 'prelu' and no slope",
    ),
    (cassod, {"activation": "relu", "slope": 0.1}, "slope: needs activation='prelu', .* got 'relu' and one"),
    (cassod, {"activation": "prelu", "slope": jnp.zeros(3)}, r"slope: needs a number or \[8\]; got \[3\]"),
    (cassod, {"implementation": "triton"}, "implementation: needs None or one of .* got 'triton'"),
    (cassod, {"implementation": "pallas_gpu"}, "'pallas_gpu' cannot run: it needs a Hopper GPU"),
    (cassod, {"implementation": "pallas_tpu"}, "'pallas_tpu' cannot run: it needs a TPU"),
    (depthwise_conv, {"x": X[0]}, "x: needs"),
    (depthwise_conv, {"w": jnp.zeros((3, 3, 8, 1))}, r"w: needs \[≥1, ≥1, 8\]; got \[3, 3, 8, 1\]"),
    (depthwise_conv, {"w": jnp.zeros((3, 3, 7))}, r"w: needs \[≥1, ≥1, 8\]; got \[3, 3, 7\]"),
    (depthwise_conv, {"w": jnp.zeros((4, 4, 8))}, "w: needs an odd, square filter; got 4×4"),
    (depthwise_conv, {"w": jnp.zeros((3, 5, 8))}, "w: needs an odd, square filter; got 3×5"),
    (depthwise_conv, {"dilation": 0}, "dilation: needs an integer of at least 1; got 0"),
    (depthwise_conv, {"stride": 0}, "stride: needs an integer of at least 1; got 0"),
    (depthwise_conv, {"stride": 3}, "stride: needs 1, or 2 with dilation=1; got 3 with dilation=1"),
    (
        depthwise_conv,
        {"stride": 2, "dilation": 2},
        "stride: needs 1, or 2 with dilation=1; got 2 with dilation=2",
    ),
    (depthwise_conv, {"pointwise": jnp.zeros((9, 4))}, r"pointwise: needs \[8, ≥1\]; got \[9, 4\]"),
    (depthwise_conv, {"bias": jnp.zeros(9)}, r"bias: needs \[8\]; got \[9\]"),
    (depthwise_conv, {"stride": 2, "implementation": "pallas_tpu_interpret"}, "cannot run: it has stride 1"),
    (depthwise_conv, {"stride": 2, "implementation": "pallas_gpu_interpret"}, "cannot run: it has stride 1"),
    (conv_ccp, {"x": X.astype(jnp.int8)}, "x: needs float32 or bfloat16; got int8"),
    (conv_ccp, {"w": jnp.zeros((3, 3, 7, 12))}, r"w: needs \[≥1, ≥1, 8, ≥1\]; got \[3, 3, 7, 12\]"),
    (conv_ccp, {"w": jnp.zeros((2, 2, 8, 12))}, "w: needs an odd, square filter; got 2×2"),
    (conv_ccp, {"groups": 0}, "groups: needs an integer of at least 1; got 0"),
    (conv_ccp, {"groups": 128}, "groups: needs at most 127, the winner is stored as int8; got 128"),
    (conv_ccp, {"groups": 5}, "groups: needs a divisor of w's 12 filters; got 5"),
    (conv_ccp, {"activation": "gelu"}, "activation: needs one of"),
    (
        conv_ccp,
        {"activation": "prelu", "slope": -0.1},
        r"slope: needs a number in \[0, 1\], so that .* got -0.1",
    ),
    (conv_ccp, {"activation": "prelu", "slope": jnp.ones(6)}, r"slope: needs a number in \[0, 1\]"),
    (conv_ccp, {"bias": jnp.zeros(6)}, r"bias: needs \[12\]; got \[6\]"),
    (conv_ccp, {"bias": jnp.zeros(12, jnp.int32)}, "bias: needs floating numbers; got int32"),
    (dc.compose_taps, {"a": jnp.zeros((2, 2)), "b": TAPS}, "a, b: need ranks 2 and 2, .* got 2 and 3"),
    (
        dc.compose_taps,
        {"a": TAPS, "b": jnp.zeros((2, 2, 7))},
        "b: needs as many inputs as a has outputs, 8; got 7",
    ),
]


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [pytest.param(*r, id=f"{r[0].__name__} {r[2][:40]}") for r in REFUSALS],
)
def test_refusals(function, options, message):
    with pytest.raises(common.KernelError, match=message) as error:
        function(**options)
    assert "\n" not in str(error.value)


NOT_ON_TPU = [
    # One row of this width with its halo takes more than the vector memory.
    (
        cassod,
        {"x": jax.ShapeDtypeStruct((1, 64, 9000, 8), jnp.float32), "dilation": 8},
        "larger than the vector memory",
    ),
    (
        cassod,
        {"kind": "cc", "a": jnp.zeros((2, 2, 8, 8)), "b": jnp.zeros((2, 2, 8, 520))},
        "at most 512 output channels",
    ),
    (conv_ccp, {"x": jax.ShapeDtypeStruct((1, 64, 20000, 8), jnp.float32)}, "larger than the vector memory"),
]
BF = X.astype(jnp.bfloat16)
NOT_ON_GPU = [
    (cassod, {"pointwise": jnp.zeros((8, 8))}, "its matrix products take bfloat16"),
    (cassod, {"x": BF, "pointwise": jnp.zeros((8, 4))}, "multiples of 8 channels; got 4"),
    (cassod, {"x": BF[..., :4], "a": TAPS[..., :4], "b": TAPS[..., :4]}, "8 channels; got 4"),
    (
        cassod,
        {"x": BF, "kind": "cc", "a": jnp.zeros((2, 2, 8, 8)), "b": jnp.zeros((2, 2, 8, 8))},
        "mixes channels",
    ),
    (cassod, {"x": BF, "dilation": 200}, "larger than shared memory"),
    (conv_ccp, {"w": jnp.zeros((3, 3, 8, 32))}, "its matrix products take bfloat16"),
    (conv_ccp, {"x": BF}, "multiples of 16 maps; got 6"),
]


@pytest.mark.parametrize(
    ("implementation", "function", "options", "message"),
    [
        pytest.param(i, *r, id=f"{i} {r[0].__name__} {r[2][:30]}")
        for i, table in zip(INTERPRETERS, (NOT_ON_TPU, NOT_ON_GPU), strict=True)
        for r in table
    ],
)
def test_what_a_kernel_cannot_run_is_refused_before_it_is_lowered(implementation, function, options, message):
    arrays = {name: value for name, value in options.items() if hasattr(value, "shape")}
    static = {name: value for name, value in options.items() if name not in arrays}
    with pytest.raises(
        common.KernelError, match=f"implementation: '{implementation}' cannot run: .*{message}"
    ):
        jax.eval_shape(lambda arrays: function(**arrays, **static, implementation=implementation), arrays)
