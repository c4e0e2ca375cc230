"""Dilated cascades, DDC and pooled convolutions against convolutions: python -m benchmarks.dilated_conv [--quick] [--out FOLDER]

"lax" is the chain of XLA's own dilated, grouped convolutions, "space_to_batch" the same on the d² phases of the image without
dilation, "dense_3x3" one dense dilated convolution by the composed weights (linear cascades alone), "xla" ours (shift-and-add,
or whole convolutions where they are faster), and "pallas" the device's kernel. Feature maps are those of face detectors, of a
segmenter's pyramid and of Tiny-YOLO; bfloat16, on a CPU float32. Every output is checked against the float32 definition. On a
GPU, bytes are those of x and y, as if nothing else were moved, and the bound is the larger of those at 4.3 TB/s and of the
matrix products at 790 TFLOP/s. Maps below 50 MB stay in an H200's cache from one call to the next.
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import common
from pallas_kernels import dilated_conv as dc
from pallas_kernels.dilated_conv import reference

BYTES_PER_SECOND, FLOPS_PER_SECOND = 4.3e12, 790e12  # a copy and a bfloat16 product, measured on an H200
LIMIT = {"cpu": 75.0, "gpu": 125.0, "tpu": 125.0}  # seconds after which no further row is begun


@dataclasses.dataclass(frozen=True)
class Row:
    """`kind`: "ddp", "dc" or "cc" cascades, "ddc" (depthwise 3×3, ReLU, pointwise) or "ccp" (3×3, maximum over 2)."""

    name: str
    kind: str
    shape: tuple[int, int, int, int, int]  # N, H, W, C, O
    dilation: int = 1
    activation: str = "relu"
    gradient: bool = False

    def filters(self) -> list[tuple[int, ...]]:
        """Shapes of the parameters."""
        *_, channels, outputs = self.shape
        return {
            "ddp": [(2, 2, channels), (2, 2, channels), (channels, outputs)],
            "dc": [(2, 2, channels), (2, 2, channels, outputs)],
            "cc": [(2, 2, channels, outputs), (2, 2, outputs, outputs)],
            "ddc": [(3, 3, channels), (channels, outputs)],
            "ccp": [(3, 3, channels, 2 * outputs)],
        }[self.kind]

    def arrays(self, dtype) -> list[jax.Array]:
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.standard_normal(self.shape[:4], np.float32), dtype)
        # Parameters that bfloat16 represents, so that none of the variants rounds them.
        parameters = (
            rng.standard_normal(f, np.float32) / math.sqrt(math.prod(f[:-1])) for f in self.filters()
        )
        return [x, *(jnp.asarray(p, jnp.bfloat16).astype(jnp.float32) for p in parameters)]

    def bytes(self, dtype) -> int:
        """Of x and y; a gradient reads x and g and writes dx too."""
        n, height, width, channels, outputs = self.shape
        maps = 2 * (channels + outputs) + channels if self.gradient else channels + outputs
        return n * height * width * maps * jnp.dtype(dtype).itemsize

    def flops(self) -> int:
        """Of the matrix products; a gradient has two for each."""
        n, height, width, channels, outputs = self.shape
        products = {"ddp": channels, "ddc": channels, "dc": 4 * channels, "cc": 4 * (channels + outputs)}
        terms = products.get(self.kind, 9 * 2 * channels)
        return 2 * n * height * width * terms * outputs * (3 if self.gradient else 1)


DETECTOR = [
    Row("context s8", "ddp", (32, 80, 80, 64, 16), 2),
    Row("resnet context", "ddp", (24, 105, 105, 256, 64), 2),
    Row("resnet context", "dc", (24, 105, 105, 256, 64), 2),
    Row("S3FD stride 4", "ddp", (8, 160, 160, 256, 256), 2),
    Row("JPU", "ddp", (16, 60, 60, 1536, 512), 1),
    Row("JPU", "ddp", (16, 60, 60, 1536, 512), 8),
    Row("resnet context", "ddp", (24, 105, 105, 256, 64), 2, "identity"),
    Row("resnet context", "ddc", (24, 105, 105, 256, 64), 2),
    Row("resnet context", "ddp", (24, 105, 105, 256, 64), 2, gradient=True),
    Row("context s8", "dc", (32, 80, 80, 64, 16), 2),
    Row("context s16", "ddp", (32, 40, 40, 64, 16), 2),
    Row("context s8", "ddp", (1, 80, 80, 64, 16), 2),
    Row("context s8 @1600", "ddp", (1, 200, 269, 64, 16), 2),
    Row("JPU", "ddp", (16, 60, 60, 1536, 512), 2),
    Row("JPU", "ddp", (16, 60, 60, 1536, 512), 4),
    Row("resnet context", "dc", (24, 105, 105, 256, 64), 2, gradient=True),
]
TINY_YOLO = [(416, 3, 16), (208, 16, 32), (104, 32, 64), (52, 64, 128), (26, 128, 256), (13, 1024, 1024)]


def pooling(batch: int, layers: list) -> list[Row]:
    return [Row(f"Tiny-YOLO {s}²", "ccp", (batch, s, s, c, m), activation="prelu") for s, c, m in layers]


def rows(platform: str, *, quick: bool) -> list[Row]:
    if quick:
        small = (1, 9, 11, 16, 16)
        cascades = [Row("quick", kind, small, 2) for kind in ("ddp", "dc", "cc", "ddc")]
        linear = Row("quick", "ddp", small, 2, "identity", gradient=True)
        return [*cascades, linear, Row("quick", "ccp", small, activation="prelu")]
    if platform != "cpu":
        pooled = pooling(32, TINY_YOLO)
        return [*DETECTOR[:8], *pooled[:3], *DETECTOR[8:], *pooled[3:]]
    return [
        Row("context s8", "ddp", (1, 80, 80, 64, 16), 2),
        Row("context s8", "dc", (1, 80, 80, 64, 16), 2),
        Row("context s8", "cc", (1, 80, 80, 64, 16), 2),
        Row("context s8", "ddp", (1, 80, 80, 64, 16), 2, gradient=True),
        *pooling(1, [(208, 16, 32), (52, 64, 128), (13, 1024, 1024)]),
        Row("resnet context", "ddp", (1, 105, 105, 256, 64), 2, "identity"),
        Row("resnet context", "ddc", (1, 105, 105, 256, 64), 2),
        Row("resnet context", "ddp", (1, 105, 105, 256, 64), 2),
        Row("JPU", "ddp", (1, 60, 60, 1536, 512), 8),
    ]


# --- peers ------------------------------------------------------------------------------------------------------------


def convolution(x, w, padding, dilation=1):
    """XLA's, of x's type; depthwise for w [k, k, C]."""
    depthwise = w.ndim == 3
    return lax.conv_general_dilated(
        x,
        (w[:, :, None] if depthwise else w).astype(x.dtype),
        (1, 1),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] if depthwise else 1,
    )


def lax_chain(row: Row, x, *parameters, dilation=None):
    d = row.dilation if dilation is None else dilation
    phi = functools.partial(reference.activate, activation=row.activation, slope=0.1)
    if row.kind == "ccp":
        z = convolution(x, parameters[0], 1)
        return phi(jnp.max(z.reshape(*z.shape[:3], -1, 2), axis=-1))
    if row.kind == "ddc":
        w, *pointwise = parameters
        v = phi(convolution(x, w, d, d))
    else:
        a, b, *pointwise = parameters
        v = convolution(phi(convolution(x, a, d, d)), b, 0, d)
    return jnp.dot(v, pointwise[0].astype(v.dtype)) if pointwise else v


def space_to_batch(row: Row, x, *parameters):
    n, height, width, channels = x.shape
    d = row.dilation
    high, wide = -(-height // d), -(-width // d)
    phases = jnp.pad(x, [(0, 0), (0, high * d - height), (0, wide * d - width), (0, 0)])
    phases = phases.reshape(n, high, d, wide, d, channels).transpose(2, 4, 0, 1, 3, 5)
    y = lax_chain(row, phases.reshape(d * d * n, high, wide, channels), *parameters, dilation=1)
    y = y.reshape(d, d, n, high, wide, -1).transpose(2, 3, 0, 4, 1, 5)
    return y.reshape(n, high * d, wide * d, -1)[:, :height, :width]


def dense_3x3(row: Row, x, a, b, *pointwise):
    taps = dc.compose_taps(a, b)
    taps = taps[..., None] * pointwise[0] if pointwise else taps
    return convolution(x, taps, row.dilation, row.dilation)


def ours(row: Row, implementation: str, x, *parameters):
    options = {"activation": row.activation, "implementation": implementation}
    if row.kind == "ccp":
        return dc.conv_ccp(x, *parameters, groups=2, slope=0.1, **options)
    if row.kind == "ddc":
        return dc.depthwise_conv(x, *parameters, dilation=row.dilation, **options)
    return dc.cassod(x, *parameters, kind=row.kind, dilation=row.dilation, **options)


def definition(row: Row, x, *parameters):
    """The reference in float32."""
    x = x.astype(jnp.float32)
    if row.kind == "ccp":
        return reference.conv_ccp(x, *parameters, None, groups=2, activation=row.activation, slope=0.1)[0]
    rest = dict.fromkeys(("mid_scale", "mid_bias", "slope", "bias"))
    rest |= {"dilation": row.dilation, "activation": row.activation}
    if row.kind == "ddc":
        return reference.depthwise_conv(x, *parameters, stride=1, **rest)
    return reference.cassod(x, *parameters, kind=row.kind, padding="exact", **rest)


def with_gradients(function: Callable) -> Callable:
    """The output and the gradients by everything of an alternating sum of it."""

    def call(*arrays):
        y, pull = jax.vjp(function, *arrays)
        signs = 1 - 2 * (lax.iota(jnp.int32, y.shape[2]) % 2)[:, None]
        return y, pull(jnp.broadcast_to(signs, y.shape).astype(y.dtype))

    return call


def variants(row: Row, platform: str) -> dict[str, Callable]:
    chains = {"lax": lax_chain}
    if row.dilation > 1:
        chains["space_to_batch"] = space_to_batch
    if row.activation == "identity":
        chains["dense_3x3"] = dense_3x3
    functions = {name: functools.partial(function, row) for name, function in chains.items()}
    functions["xla"] = functools.partial(ours, row, "xla")
    if platform != "cpu":
        functions["pallas"] = functools.partial(ours, row, f"pallas_{platform}")
    return {name: with_gradients(f) if row.gradient else f for name, f in functions.items()}


# --- measurement ------------------------------------------------------------------------------------------------------


@jax.jit
def distance(outputs, expected):
    """The greatest ‖a - b‖ / ‖b‖ of the output and of each gradient."""
    pairs = zip(jax.tree.leaves(outputs), jax.tree.leaves(expected), strict=True)
    norm = lambda t: jnp.linalg.norm(t.astype(jnp.float32).ravel())  # noqa: E731
    return jnp.max(jnp.stack([norm(a.astype(jnp.float32) - b) / norm(b) for a, b in pairs]))


def measure(row: Row, platform: str, *, quick: bool) -> dict:
    dtype = jnp.float32 if platform == "cpu" else jnp.bfloat16
    arrays = row.arrays(dtype)
    define = functools.partial(definition, row)
    expected = jax.jit(with_gradients(define) if row.gradient else define)(*arrays)
    # Every stage of a chain rounds its map to bfloat16, and a gradient goes the other way where that makes a sign of 0.
    tolerance = 1e-4 if dtype == jnp.float32 else 5e-2 if row.gradient else 2e-2
    result = dataclasses.asdict(row) | {"distance": {}}
    functions = variants(row, platform)

    def check(name, output):
        result["distance"][name] = float(distance(output, expected))
        if not result["distance"][name] < tolerance:
            raise RuntimeError(f"wrong, {result['distance'][name]:.2g} off")

    options = {"repeats": 30, "warmup": 1, "budget": 1.0 if platform != "cpu" else 3.0}
    if platform != "cpu":
        options["iterations"] = 20
    if quick:
        options |= {"repeats": 3, "warmup": 1, "iterations": 1}
    timed, peer = "pallas" if "pallas" in functions else "xla", next(iter(functions))  # "lax"
    result |= common.compare(functions, tuple(arrays), ours=timed, peer=peer, check=check, **options)
    result["errors"] = result.pop("failed")
    if "seconds" not in result:
        return result | {"seconds": {}}
    timed, peer = result["ours"], result["peer"]
    times = {name: entry["seconds_median"] for name, entry in result["seconds"].items()}
    result["speedup_over_peer"] = {name: times[peer] / seconds for name, seconds in times.items()}
    others = [seconds for name, seconds in times.items() if name != timed]
    result["speedup_over_best_other"] = min(others) / times[timed] if others else None
    if platform == "gpu":
        moved, flops = row.bytes(dtype), row.flops()
        bound = max(moved / BYTES_PER_SECOND, flops / FLOPS_PER_SECOND)
        result |= {"bytes": moved, "flops": flops, "bound_seconds": bound}
        result["terabytes_per_second"] = {name: moved / seconds / 1e12 for name, seconds in times.items()}
        result["percent_of_bound"] = {name: 100 * bound / seconds for name, seconds in times.items()}
    return result


def show(result: dict) -> None:
    n, height, width, channels, outputs = result["shape"]
    what = f"{n}×{height}×{width}×{channels}→{outputs} d={result['dilation']}"
    direction = "forward and gradient" if result["gradient"] else "forward"
    print(f"{result['name']}: {result['kind']} {result['activation']} {what} {direction}")
    for name, entry in result["seconds"].items():
        low, high = (1e3 * t for t in entry["seconds_quartiles"])
        line = f"  {name:15s} {1e3 * entry['seconds_median']:9.3f} ms ({low:.3f}-{high:.3f})"
        line += f" {result['speedup_over_peer'][name]:6.2f}x"
        if "bound_seconds" in result:
            line += f" {result['terabytes_per_second'][name]:5.2f} TB/s {result['percent_of_bound'][name]:4.0f} % of bound"
        print(line)
    for name, error in result["errors"].items():
        print(f"  {name:15s} {error}")
    print(end="", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, few repeats")
    parser.add_argument(
        "--out",
        type=common.folder_argument,
        help="folder for the JSON, instead of benchmarks/results/<device>",
    )
    parser.add_argument("--seconds", type=float, help="no further row begins after them")
    given = parser.parse_args()

    platform = jax.devices()[0].platform
    platform = "gpu" if platform in ("cuda", "rocm") else platform
    limit = LIMIT[platform] if given.seconds is None else given.seconds
    results, left_out = [], []
    for row in common.within(rows(platform, quick=given.quick), limit, left_out):
        results.append(measure(row, platform, quick=given.quick))
        show(results[-1])
        common.write("dilated_conv", {"rows": results}, folder=given.out)
    if left_out:
        print(f"{len(left_out)} rows were not begun after {limit:.0f} s")
    report = {"rows": results, "left_out": [dataclasses.asdict(row) for row in left_out]}
    print(common.write("dilated_conv", report, folder=given.out))


if __name__ == "__main__":
    main()
