"""The cases in which a kernel must give the reference's values and gradients on the device itself.

One list for `tests/accelerator` and for `benchmarks.correctness`: every operation of every op, real shapes and odd ones.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels import binary_conv as bc
from pallas_kernels import common
from pallas_kernels import dilated_conv as dc
from pallas_kernels import margin_softmax as ms
from pallas_kernels import quantized_attention as qa
from pallas_kernels.binary_conv import api as binary_api
from pallas_kernels.binary_conv import gpu as binary_gpu
from pallas_kernels.binary_conv import reference as binary_reference
from pallas_kernels.dilated_conv import reference as dilated_reference
from pallas_kernels.margin_softmax import reference as margin_reference

OPS = ("binary_conv", "dilated_conv", "quantized_attention", "margin_softmax")


class Problem(NamedTuple):
    """Arrays by name, and two functions of them: `ours(implementation)` and the definition.

    Gradients are compared by the arrays named in `trained`, with a fixed cotangent.
    """

    arrays: dict[str, jax.Array]
    ours: Callable[[str], Callable[[dict], Any]]
    definition: Callable[[dict], Any]
    trained: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Case:
    """`operation` is what `common.choose` decides about; tolerances are of ‖a - b‖ / ‖b‖ of each output and gradient."""

    op: str
    operation: str
    name: str
    problem: Callable[[], Problem]
    tolerance: float
    gradient_tolerance: float = 0.0
    tiny: bool = False  # small enough for an interpreter on a CPU

    def __str__(self) -> str:
        return f"{self.op} {self.operation} {self.name}"


def kernel_of_this_device() -> str:
    """The implementation to check here; a CPU has the GPU kernels' interpreter."""
    return {"gpu": "pallas_gpu", "tpu": "pallas_tpu"}.get(
        common.target_device().platform, "pallas_gpu_interpret"
    )


def compare(case: Case, implementation: str) -> dict[str, float | bool]:
    """How far a kernel is from the definition.

    Returns:
      "distance", "gradient_distance" (where something is trained) and "right": both are within the case's tolerances.

    Raises:
      KernelError: the implementation refuses these shapes or types. Whatever a compiler or the device raises passes through.
    """
    problem = case.problem()
    outputs = jax.block_until_ready(
        jax.jit(_all(problem.ours(implementation), problem.trained))(problem.arrays)
    )
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(_all(problem.definition, problem.trained))(problem.arrays)
    distances = [float(_distance(*pair)) for pair in zip(outputs, expected, strict=True)]
    result = {"distance": distances[0], "right": distances[0] <= case.tolerance}
    if problem.trained:
        result["gradient_distance"] = distances[1]
        result["right"] = result["right"] and distances[1] <= case.gradient_tolerance
    return result


def _all(function, trained):
    """Its values and, where something is trained, its gradients: one program, which compiles once."""

    def call(arrays):
        y = function(arrays)
        if not trained:
            return (y,)
        fixed = {name: array for name, array in arrays.items() if name not in trained}
        same, pull = jax.vjp(lambda moved: function(fixed | moved), {name: arrays[name] for name in trained})
        weights = jax.tree.map(_weights, y)
        # The forward pass of a gradient may be another kernel than the plain call.
        return (y, same), pull(jax.tree.map(lambda w, t: w.astype(t.dtype), weights, y))[0]

    return call


def _weights(t):
    """A cotangent: numbers that bfloat16 represents and whose sum does not vanish, which would leave rounding alone."""
    return (1 + jnp.round(4 * jnp.cos(jnp.arange(t.size, dtype=jnp.float32))) / 8).reshape(t.shape)


@jax.jit
def _distance(values, expected):
    """The greatest ‖a - b‖ / ‖b‖ of the leaves; infinite where something is not finite."""

    def norm(t):
        return jnp.linalg.norm(t.astype(jnp.float32).ravel())

    pairs = zip(jax.tree.leaves(values), jax.tree.leaves(expected), strict=True)
    distances = [norm(a.astype(jnp.float32) - b.astype(jnp.float32)) / (norm(b) + 1e-20) for a, b in pairs]
    return jnp.max(jnp.nan_to_num(jnp.stack(distances), nan=jnp.inf, posinf=jnp.inf))


def cases(op: str | None = None, *, tiny: bool = False) -> list[Case]:
    """All cases of an op or of all ops, or those small enough for an interpreter."""
    listed = [*_binary_cases(), *_dilated_cases(), *_attention_cases(), *_margin_cases()]
    return [case for case in listed if op in (None, case.op) and (case.tiny or not tiny)]


def _normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


# --- binary_conv ------------------------------------------------------------------------------------------------------


def _binary_cases():
    shapes = [
        # N, H, W, C, O, k, stride, pad_mode, padding
        (1, 4, 5, 33, 17, 3, 1, "zero", "SAME"),
        (32, 14, 14, 256, 256, 3, 1, "zero", "SAME"),
        (8, 28, 28, 128, 128, 3, 1, "zero", "SAME"),
        (3, 9, 11, 65, 40, 3, 2, "minus_one", "SAME"),
        (2, 7, 7, 512, 2048, 1, 1, "zero", "SAME"),
        (5, 13, 6, 96, 130, 3, 1, "plus_one", ((2, 0), (1, 3))),
        (1, 1, 37, 1000, 72, 1, 1, "zero", "VALID"),
    ]
    for fused in (False, True):
        for bits in (False, True):
            for shape in shapes if not fused else shapes[:5]:
                n, h, w, c, o, k, stride, pad_mode, _ = shape
                yield Case(
                    "binary_conv",
                    "block" if fused else "convolution",
                    f"{n}×{h}×{w} {c}-{o} {k}×{k}/{stride} {pad_mode} {'1 bit' if bits else 'int8'}",
                    functools.partial(_binary, shape, fused=fused, bits=bits),
                    tolerance=5e-2
                    if fused
                    else 0.0,  # integers; a block rounds its output, and a sign may turn
                    tiny=shape is shapes[0] and not bits,
                )
    for estimator in ("clip", "approx_sign", "identity"):
        yield Case(
            "binary_conv",
            "straight-through",
            estimator,
            functools.partial(_straight_through, estimator),
            tolerance=1e-2,
            gradient_tolerance=2e-2,
            tiny=estimator == "clip",
        )


def _binary(shape, *, fused, bits):
    n, h, w, c, o, k, stride, pad_mode, padding = shape
    xp, wp = bc.pack_bits(_normal(0, n, h, w, c)), bc.pack_weights(_normal(1, k, k, c, o))
    geometry = binary_api.geometry_of(xp, wp, c, stride, padding, pad_mode)
    options = {"channels": c, "strides": stride, "padding": padding, "pad_mode": pad_mode}
    arrays = {"xp": xp, "wp": wp}
    if fused:
        arrays |= {name: _normal(2 + at, o) for at, name in enumerate(["scale", "shift", "prelu", "bias"])}
        arrays["scale"] = arrays["scale"] / math.sqrt(k * k * c)
        size = (n, geometry.out_height, geometry.out_width, o)
        arrays["residual"] = _normal(6, *size, dtype=jnp.bfloat16)

    def signs(result):
        return (result[0], bc.unpack_bits(result[1], o, dtype=jnp.float32)) if fused else result

    def rest(arrays):
        return [arrays[name] for name in ("scale", "shift", "residual", "prelu", "bias")] if fused else []

    def ours(implementation):
        public = bc.binary_conv2d_block if fused else bc.binary_conv2d
        kernel = binary_gpu.block if fused else binary_gpu.convolve

        def call(arrays):
            operands = (arrays["xp"], arrays["wp"])
            if not implementation.startswith("pallas_gpu"):
                return signs(public(*operands, *rest(arrays), implementation=implementation, **options))
            common.choose(implementation, {"pallas_gpu": binary_gpu.obstacle(geometry)})
            interpret = common.interpret(implementation)
            return signs(kernel(*operands, geometry, *rest(arrays), interpret=interpret, bits=bits))

        return call

    def definition(arrays):
        dot = binary_reference.convolve(arrays["xp"], arrays["wp"], geometry)
        return signs(binary_reference.epilogue(dot, *rest(arrays))) if fused else dot

    return Problem(arrays, ours, definition)


def _straight_through(estimator):
    """Autodiff through x - stop(x) forms of the estimators is the definition."""

    def carrier(x):
        if estimator == "approx_sign":
            inner = jnp.clip(x, -1, 1)
            return 2 * inner - jnp.sign(inner) * inner**2
        return jnp.clip(x, -1, 1) if estimator == "clip" else x

    def sign(x, carried):
        return carried + lax.stop_gradient(jnp.where(x >= 0, 1.0, -1.0) - carried)

    def definition(arrays):
        x, w = arrays["x"], arrays["w"]
        y = lax.conv_general_dilated(
            sign(x, carrier(x)),
            sign(w, jnp.clip(w, -1, 1)),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
        return y * arrays["alpha"]

    def ours(_):
        return lambda arrays: bc.binary_conv2d_ste(arrays["x"], arrays["w"], arrays["alpha"], estimator)

    arrays = {"x": _normal(0, 2, 9, 9, 33), "w": _normal(1, 3, 3, 33, 24), "alpha": _normal(2, 24)}
    return Problem(arrays, ours, definition, ("x", "w", "alpha"))


# --- dilated_conv -----------------------------------------------------------------------------------------------------


def _dilated_cases():
    bf16, f32 = jnp.bfloat16, jnp.float32
    cascades = [
        # kind, N, H, W, C, O, dilation, activation, padding, dtype
        ("ddp", (1, 7, 9, 16, 16), 2, "relu", "exact", bf16),
        ("ddp", (4, 80, 80, 64, 16), 2, "relu", "exact", bf16),
        ("dc", (2, 105, 105, 256, 64), 2, "relu", "exact", bf16),
        ("cc", (2, 40, 40, 64, 32), 2, "prelu", "exact", bf16),
        ("ddp", (2, 60, 60, 512, 256), 8, "prelu", "per_stage", bf16),
        ("dc", (1, 19, 23, 24, 40), 3, "identity", "exact", bf16),
        ("ddp", (2, 33, 31, 40, 24), 1, "prelu", "exact", f32),
    ]
    for at, (kind, shape, dilation, activation, padding, dtype) in enumerate(cascades):
        static = {"kind": kind, "dilation": dilation, "activation": activation, "padding": padding}
        yield _dilated_case("cassod", "cascade", shape, static, dtype, tiny=at == 0)
    depthwise = [
        # k, N, H, W, C, O, dilation, activation, dtype
        (3, (1, 6, 9, 16, 16), 2, "identity", bf16),
        (3, (2, 105, 105, 256, 64), 2, "relu", bf16),
        (7, (2, 28, 28, 128, 64), 1, "prelu", bf16),
        (5, (1, 17, 13, 24, 40), 3, "identity", f32),
    ]
    for at, (k, shape, dilation, activation, dtype) in enumerate(depthwise):
        static = {"k": k, "dilation": dilation, "activation": activation}
        yield _dilated_case("depthwise_conv", "depthwise", shape, static, dtype, tiny=at == 0)
    pooled = [
        # k, N, H, W, C, M, groups, activation
        (3, (1, 6, 7, 16, 16), 2, "prelu"),
        (3, (4, 52, 52, 64, 128), 2, "prelu"),
        (1, (2, 13, 13, 256, 48), 3, "relu"),
        (3, (3, 17, 11, 3, 16), 4, "identity"),
    ]
    for at, (k, shape, groups, activation) in enumerate(pooled):
        static = {"k": k, "groups": groups, "activation": activation}
        yield _dilated_case("conv_ccp", "conv_ccp", shape, static, bf16, tiny=at == 0)


def _dilated_case(function, operation, shape, static, dtype, *, tiny):
    n, h, w, c, o = shape
    words = " ".join(str(value) for value in static.values())
    exact = dtype == jnp.float32
    return Case(
        "dilated_conv",
        operation,
        f"{n}×{h}×{w}×{c}→{o} {words} {jnp.dtype(dtype).name}",
        functools.partial(_dilated, function, shape, static, dtype),
        # A GPU rounds float32 operands of its matrix unit to ten bits; where that turns a sign, a gradient goes the other way.
        tolerance=5e-3 if exact else 2e-2,
        gradient_tolerance=2e-2 if exact else 5e-2,
        tiny=tiny,
    )


def _dilated(function, shape, static, dtype):
    n, h, w, c, o = shape
    static = dict(static)
    k, kind = static.pop("k", 2), static.get("kind")
    filters = {
        "ddp": {"a": (2, 2, c), "b": (2, 2, c), "pointwise": (c, o)},
        "dc": {"a": (2, 2, c), "b": (2, 2, c, o)},
        "cc": {"a": (2, 2, c, o), "b": (2, 2, o, o)},
        None: {"w": (k, k, c), "pointwise": (c, o)},
    }[kind]
    vectors = {"mid_scale": o if kind == "cc" else c, "mid_bias": o if kind == "cc" else c, "bias": o}
    if function == "conv_ccp":
        filters, vectors = {"w": (k, k, c, o * static["groups"])}, {"bias": o * static["groups"]}
        static["slope"] = 0.25
    arrays = {"x": _normal(0, n, h, w, c, dtype=dtype)}
    for at, (name, size) in enumerate(filters.items()):
        dense = name == "pointwise" or len(size) == 4
        fan = math.prod(size[:-1] if dense else size[:2])
        # Numbers that bfloat16 represents: rounding them is not what is compared.
        arrays[name] = (_normal(1 + at, *size) / math.sqrt(fan)).astype(jnp.bfloat16).astype(jnp.float32)
    arrays |= {name: _normal(7 + at, size) for at, (name, size) in enumerate(vectors.items())}
    if "mid_scale" in arrays:  # it is folded into the taps, which must stay what bfloat16 represents
        arrays["mid_scale"] = jnp.exp2(jnp.round(arrays["mid_scale"]))
    if static["activation"] == "prelu" and function != "conv_ccp":
        arrays["slope"] = 0.25 * _normal(11, vectors["mid_bias"])

    def ours(implementation):
        return lambda arrays: getattr(dc, function)(**arrays, **static, implementation=implementation)

    def definition(arrays):
        if function == "conv_ccp":
            y = dilated_reference.conv_ccp(**_wide(arrays), **static)
            return y[0]
        absent = dict.fromkeys(("slope",)) | ({"stride": 1} if function == "depthwise_conv" else {})
        return getattr(dilated_reference, function)(**(absent | _wide(arrays) | static))

    return Problem(arrays, ours, definition, tuple(arrays))


def _wide(arrays):
    return {name: array.astype(jnp.float32) for name, array in arrays.items()}


# --- quantized_attention ----------------------------------------------------------------------------------------------


def _attention_cases():
    rows = [
        # mode, bits, (B, H, Nq, Nk, d), dtype, lengths
        ("lsq", (8, 8, 8, 7), (1, 1, 24, 40, 32), jnp.bfloat16, False),
        ("lsq", (8, 8, 8, 7), (8, 6, 197, 197, 64), jnp.bfloat16, False),
        ("lsq", (4, 4, 4, 8), (2, 3, 100, 850, 32), jnp.bfloat16, True),
        ("lsq", (2, 2, 2, 2), (2, 2, 577, 577, 64), jnp.float32, False),
        ("ptq", (8, 8, 8, 8), (1, 1, 24, 40, 32), jnp.bfloat16, False),
        ("ptq", (8, 8, 8, 8), (2, 4, 1024, 1024, 64), jnp.bfloat16, False),
        ("ptq", (8, 8, 8, 8), (2, 2, 333, 1050, 128), jnp.bfloat16, True),
        ("ptq", (8, 8, 8, 8), (2, 2, 200, 131, 32), jnp.float16, False),
    ]
    for codes in (False, True):
        for mode, bits, shape, dtype, lengths in rows:
            small = shape[2] < 32
            yield Case(
                "quantized_attention",
                mode,
                f"{'codes' if codes else 'floats'} {shape} bits {bits} {jnp.dtype(dtype).name}"
                + (" lengths" if lengths else ""),
                functools.partial(_attention, mode, bits, shape, dtype, codes=codes, lengths=lengths),
                # A block-wise walk takes e against the running maximum, a finer grid than the definition's.
                tolerance=2e-2 if mode == "lsq" else 5e-2,
                gradient_tolerance=5e-2,
                tiny=small and not codes,
            )


def _attention(mode, bits, shape, dtype, *, codes, lengths):
    batch, heads, queries, keys, d = shape
    sizes = {"q": (queries,), "k": (keys,), "v": (keys,)}
    arrays = {
        name: _normal(at, batch, heads, *tokens, d, dtype=dtype)
        for at, (name, tokens) in enumerate(sizes.items())
    }
    options = {"mode": mode, "bits": bits}
    if lengths:
        options["kv_lengths"] = jnp.asarray([keys - 3 * i for i in range(batch)], jnp.int32)
    if mode == "lsq":
        for name, b in zip("qkv", bits[:3], strict=True):
            mean = jnp.mean(jnp.abs(arrays[name].astype(jnp.float32)), (0, 2, 3))
            arrays[f"{name}_step"] = 2 * mean / math.sqrt(2 ** (b - 1) - 1)
        arrays["p_step"] = jnp.full((heads,), 2 / keys / math.sqrt(2 ** bits[3] - 1))

    def steps(arrays):
        return qa.AttnSteps(*(arrays[f"{name}_step"] for name in "qkvp")) if mode == "lsq" else None

    def from_codes(arrays, implementation):
        given = steps(arrays)
        if mode == "lsq":
            q8, k8, v8 = (
                qa.quantize_lsq(arrays[name], step[None, :, None, None], bits=b)
                for name, step, b in zip("qkv", given, bits[:3], strict=False)
            )
        else:
            q8, q_step = qa.quantize_absmax(arrays["q"], granularity="block", block=128)
            k8, k_step, _ = qa.quantize_smooth(arrays["k"], kv_lengths=options.get("kv_lengths"))
            v8, v_step = qa.quantize_channels(arrays["v"])
            given = qa.AttnSteps(q_step, k_step, v_step)
        return qa.quantized_attention_codes(
            q8, k8, v8.swapaxes(2, 3), steps=given, implementation=implementation, out_dtype=dtype, **options
        )

    def ours(implementation):
        def call(arrays):
            if codes:
                return from_codes(arrays, implementation)
            return qa.quantized_attention(
                *(arrays[name] for name in "qkv"),
                steps=steps(arrays),
                implementation=implementation,
                **options,
            )

        return call

    # The plain form is the reference's own formulas; on float32 copies, which hold the same numbers.
    def definition(arrays):
        return ours("xla")(_wide(arrays))

    return Problem(arrays, ours, definition, () if codes else tuple(arrays))


# --- margin_softmax ---------------------------------------------------------------------------------------------------


def _margin_cases():
    heads = {
        # At 1.2 every push from random rows would be 0, and nothing of it be compared.
        "sface": ms.SFace(inter_angle=1.5),
        "arcface": ms.arcface(),
        "cosface": ms.cosface(),
        "softmax": ms.softmax(16.0),
        "insightface": ms.Margin(
            angular_margin=0.4,
            cosine_margin=0.1,
            guard=False,
            gradient_mode="straight_through",
            filter_above=0.3,
        ),
    }
    shapes = [(5, 17, 40), (256, 10_001, 512), (1000, 3001, 128)]
    for head_name, head in heads.items():
        for at, shape in enumerate(shapes if head_name in ("sface", "arcface") else shapes[:2]):
            for dtype in (jnp.float32, jnp.bfloat16) if at == 1 else (jnp.float32,):
                yield Case(
                    "margin_softmax",
                    "one pass" if head.one_pass else "two passes",
                    f"{head_name} {shape} {jnp.dtype(dtype).name}",
                    functools.partial(_margin, head, shape, dtype),
                    tolerance=5e-2,
                    gradient_tolerance=5e-2,
                    tiny=at == 0 and head_name in ("sface", "arcface"),
                )


def _margin(head, shape, dtype):
    batch, classes, features = shape
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, classes, batch), jnp.int32)
    prototypes = _normal(1, classes, features)
    embeddings = _normal(2, batch, features) + 0.5 * prototypes[labels]
    labels = labels.at[1].set(-1)
    where = jnp.asarray(rng.uniform(size=classes) < 0.8)
    arrays = {
        "x": embeddings.astype(dtype),
        "w": prototypes.astype(dtype),
        "weights": jnp.asarray(rng.uniform(size=batch), jnp.float32) / batch,
    }

    def ours(implementation):
        return lambda arrays: ms.margin_softmax(
            arrays["x"],
            arrays["w"],
            labels,
            head,
            weights=arrays["weights"],
            where=where,
            implementation=implementation,
        )[0]

    def definition(arrays):
        losses = margin_reference.row_losses(arrays["x"], arrays["w"], labels, head, where=where)
        return jnp.sum(arrays["weights"] * losses)

    return Problem(arrays, ours, definition, ("x", "w", "weights"))
