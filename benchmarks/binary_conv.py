"""Binary convolution against XLA's real-valued convolution of the same signs: python -m benchmarks.binary_conv [--quick].

On a CPU: float32 convolution, int8 matrix product and population counts at the layers of ResNet-18, batch 1; then whole
blocks. On a GPU or TPU: the kernels and XLA against the bfloat16 convolution, and the fused block against sign, convolution,
normalization, shortcut, PReLU and sign by XLA, at the layers of ResNet-18 and ResNet-50. Every output is checked.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from benchmarks import common
from pallas_kernels import binary_conv as bc
from pallas_kernels.binary_conv import api, gpu, gpu_b1, xla

RESNET18 = {
    # H = W, C, O, kernel
    "r18 3x3 56x56 64-64": (56, 64, 64, 3),
    "r18 3x3 28x28 128-128": (28, 128, 128, 3),
    "r18 3x3 14x14 256-256": (14, 256, 256, 3),
    "r18 3x3 7x7 512-512": (7, 512, 512, 3),
}
RESNET50 = {
    "r50 1x1 56x56 64-256": (56, 64, 256, 1),
    "r50 1x1 28x28 512-128": (28, 512, 128, 1),
    "r50 1x1 14x14 1024-256": (14, 1024, 256, 1),
    "r50 1x1 7x7 512-2048": (7, 512, 2048, 1),
}
DEVICE_ROWS = {
    "r18 3x3 28x28 128-128": [1, 32, 256],
    "r18 3x3 14x14 256-256": [1, 256],
    "r18 3x3 56x56 64-64": [1, 32, 256],
    "r18 3x3 7x7 512-512": [1, 32, 256],
    "r50 1x1 56x56 64-256": [32],
    "r50 1x1 28x28 512-128": [256],
    "r50 1x1 14x14 1024-256": [32, 256],
    "r50 1x1 7x7 512-2048": [1],
}


def real(x, w):
    """XLA's convolution of signs that are stored as numbers."""
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def real_block(x, w, scale, shift, residual, prelu, bias):
    """The block without bits: sign, convolution, normalization, shortcut, PReLU, sign."""
    signs = jnp.where(x >= 0, 1, -1).astype(x.dtype)
    t = real(signs, w).astype(jnp.float32) * scale + shift + residual.astype(jnp.float32)
    out = jnp.where(t >= 0, t, t * prelu).astype(jnp.bfloat16)
    return out, jnp.where(out.astype(jnp.float32) + bias >= 0, 1, -1).astype(x.dtype)


def layer(name, shape, batch, *, dtype, convolutions, blocks, options):
    """One row: seconds of every variant of the convolution and of the block."""
    size, c, o, k = shape
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.choice([-1.0, 1.0], (batch, size, size, c)), dtype)
    w = jnp.asarray(rng.choice([-1.0, 1.0], (k, k, c, o)), dtype)
    xp, wp = bc.pack_bits(x), bc.pack_weights(w)
    scale, shift, prelu, bias = (jnp.asarray(rng.standard_normal(o), jnp.float32) for _ in range(4))
    scale = scale / np.sqrt(k * k * c)
    residual = jnp.asarray(rng.standard_normal((batch, size, size, o)), jnp.bfloat16)
    rest = (scale, shift, residual, prelu, bias)
    peer = f"{jnp.dtype(dtype).name} convolution"
    row = {"layer": name, "batch": batch, "macs": batch * size * size * o * k * k * c}
    expected = jax.jit(real)(x, w)

    def check(got):
        if not bool(jnp.all(got == expected.astype(jnp.int32))):
            raise RuntimeError("differs from the convolution of signs")

    expected_block = jax.jit(real_block)(x, w, *rest)

    def check_block(got):
        out, bits = got
        close = jnp.abs(out.astype(jnp.float32) - expected_block[0].astype(jnp.float32)) <= 0.05
        wrong = jnp.mean(bc.unpack_bits(bits, o, dtype=jnp.int8) != expected_block[1])
        if not bool(jnp.all(close)) or wrong > 1e-3:
            raise RuntimeError("differs from the unfused block")

    for kind, variants, function, arguments, peer_arguments, verify in (
        ("convolution", convolutions(c), real, (xp, wp), (x, w), check),
        ("block", blocks(c), real_block, (xp, wp, *rest), (x, w, *rest), check_block),
    ):
        given = {variant: arguments for variant in variants} | {peer: peer_arguments}
        measured = common.compare(
            {peer: function} | variants,
            given,
            ours=next(iter(variants)),
            peer=peer,
            check=lambda name, output, verify=verify: None if name == peer else verify(output),
            **options,
        )
        if "seconds" in measured:
            base = measured["seconds"][measured["peer"]]["seconds_median"]
            measured["speedups"] = {
                name: base / entry["seconds_median"]
                for name, entry in measured["seconds"].items()
                if name != peer
            }
        row[kind] = measured
        show(row, kind, peer)
    return row


def show(row, kind, peer):
    report = row[kind]
    cells = [f"{row['layer']:<24} B={row['batch']:<4} {kind:<12}"]
    if "seconds" in report:
        cells.append(f"{peer} {1e6 * report['seconds'][peer]['seconds_median']:8.1f} us")
        cells += [
            f"{v} {1e6 * report['seconds'][v]['seconds_median']:8.1f} us {ratio:5.2f}x"
            for v, ratio in report["speedups"].items()
        ]
    cells += [f"{v}: {line}" for v, line in report["failed"].items()]
    print(" | ".join(cells), flush=True)


def cpu(quick, limit, save):
    def methods(c):
        def call(method, xp, wp):
            return method(xp, wp, api.geometry_of(xp, wp, c, 1, "SAME", "zero"))

        names = dict.fromkeys([xla.method(), "popcount", "int8"])  # ours first
        return {name: functools.partial(call, xla.METHODS[name]) for name in names}

    def blocks(c):
        return {"xla": functools.partial(bc.binary_conv2d_block, channels=c)}

    layers = {"5x5 64-64": (5, 64, 64, 3)} if quick else RESNET18
    options = {"repeats": 5, "iterations": 1} if quick else {"repeats": 60, "iterations": 1, "budget": 10}
    rows = []
    for name, shape in common.within(layers.items(), limit):
        kinds = {"convolutions": methods, "blocks": blocks}
        rows.append(layer(name, shape, 1, dtype=jnp.float32, options=options, **kinds))
        save({"method": xla.method(), "rows": rows})
    flags = sorted({"amx_int8", "avx512_vpopcntdq", "avx512_vnni"} & xla.cpu_flags())
    if not quick and "avx512_vpopcntdq" in flags and "amx_int8" not in flags:
        slow = [r["layer"] for r in rows if r["convolution"]["speedups"]["popcount"] < 2]
        if slow:
            raise RuntimeError(f"popcount is below twice the float32 convolution at {', '.join(slow)}")
    return {"method": xla.method(), "cpu_flags": flags, "rows": rows}


def accelerator(quick, limit, save):
    hopper = jax.devices()[0].platform == "gpu"

    def variants(public, kernel):
        def of(c):
            xla_form = functools.partial(public, channels=c, implementation="xla")
            if not hopper:
                return {
                    "pallas_tpu": functools.partial(public, channels=c, implementation="pallas_tpu"),
                    "xla": xla_form,
                }

            def call(bits, xp, wp, *rest):
                geometry = api.geometry_of(xp, wp, c, 1, "SAME", "zero")
                return kernel(xp, wp, geometry, *rest, interpret=False, bits=bits)

            one, eight = (functools.partial(call, bits) for bits in (True, False))
            return {"int8": eight, "1 bit": one, "xla": xla_form}

        return of

    options = {"repeats": 5, "iterations": 5} if quick else {"repeats": 30, "iterations": 20, "budget": 1}
    wanted = {"r18 3x3 14x14 256-256": [1]} if quick else DEVICE_ROWS
    # The largest batches first: they say most, and time may end.
    pairs = sorted(
        ((name, batch) for name, batches in wanted.items() for batch in batches), key=lambda p: -p[1]
    )
    rows, left_out = [], []
    for name, batch in common.within(pairs, limit, left_out):
        kinds = {
            "convolutions": variants(bc.binary_conv2d, gpu.convolve),
            "blocks": variants(bc.binary_conv2d_block, gpu.block),
        }
        shape = (RESNET18 | RESNET50)[name]
        rows.append(layer(name, shape, batch, dtype=jnp.bfloat16, options=options, **kinds))
        save({"rows": rows})
    report = {"rows": rows, "left_out": left_out}
    if hopper:
        report |= {"bits_are_exact": gpu.bits_are_exact(), "instructions": instructions(options)}
    return report


def instructions(options):
    """Time of as many 1-bit as int8 instructions, all operands at hand: equal where a bit costs an eighth of a byte."""
    size, steps, blocks = 128, 20 if options["iterations"] == 5 else 500, 264
    tiling = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(64))

    def kernel(bits, a, b, out, a_smem, b_smem, out_smem, barrier):
        plgpu.copy_gmem_to_smem(a, a_smem, barrier)
        plgpu.copy_gmem_to_smem(b, b_smem, barrier)
        plgpu.barrier_wait(barrier)
        values = plgpu.load(a_smem, layout=plgpu.Layout.WGMMA_8BIT)
        if bits:
            nothing = plgpu.layout_cast(jnp.zeros((size, size), jnp.int32), plgpu.Layout.WGMMA)
            step = lambda _, sums: gpu_b1.and_popcount(sums, values, b_smem, interpreted=False)  # noqa: E731
            sums = lax.fori_loop(0, steps, step, nothing)
        else:

            def multiply(accumulator):
                @pl.loop(0, steps)
                def _(_):
                    plgpu.wgmma(accumulator, values, b_smem.T)
                    plgpu.wgmma_wait(0)

                return accumulator[...]

            sums = pl.run_scoped(multiply, plgpu.ACC((size, size), jnp.int32))
        out_smem[...] = sums
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_smem, out.at[pl.ds(lax.axis_index("block") * size, size)])
        plgpu.wait_smem_to_gmem(0)

    def call(bits, a, b):
        return plgpu.kernel(
            functools.partial(kernel, bits),
            out_type=jax.ShapeDtypeStruct((blocks * size, size), jnp.int32),
            scratch_types=[
                plgpu.SMEM((size, 64), jnp.int8, transforms=tiling),
                plgpu.SMEM((size, 64), jnp.int8, transforms=tiling),
                plgpu.SMEM((size, size), jnp.int32),
                plgpu.Barrier(num_arrivals=2),
            ],
            grid=(blocks,),
            grid_names=("block",),
        )(a, b)

    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.integers(-128, 128, (size, 64)), jnp.int8) for _ in range(2))
    try:
        measured = common.compare(
            {"1 bit": functools.partial(call, True), "int8": functools.partial(call, False)},
            (a, b), ours="1 bit", peer="int8", **options,
        )  # fmt: skip
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"}
    macs = blocks * size * size * steps * 64
    print(
        f"1-bit instructions take {1 / measured['speedup']:.2f} of the time of as many int8 ones", flush=True
    )
    return measured | {
        "macs_per_second": {
            "int8": macs / measured["seconds"]["int8"]["seconds_median"],
            "1 bit": 8 * macs / measured["seconds"]["1 bit"]["seconds_median"],
        }
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes and few repeats")
    parser.add_argument(
        "--out",
        type=common.folder_argument,
        help="folder of the JSON file (default: benchmarks/results/<device>)",
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="no further row begins after them")
    given = parser.parse_args()
    run = cpu if jax.devices()[0].platform == "cpu" else accelerator
    save = functools.partial(common.write, "binary_conv", folder=given.out)
    print(save(run(given.quick, given.seconds, save)))


if __name__ == "__main__":
    main()
