"""Binary convolution on Hopper: tensor cores, activations unpacked in registers, no im2col.

*int8.* The C channels of a pixel are G groups of 64 bytes, and bit p + 1 of byte q of group g is channel 64·P·g + P·q + p,
p < P, with P = 4, 2 or 1 planes, the most that fill whole groups. So `bytes & 2^(p+1)`, which 8-bit registers can do (they
cannot shift), is 2^(p+1) or 0, and against weights of ±2^(P-1-p) every plane adds 2^P for a set bit:

    accumulator = 2^P·s,   y = 2s - Σw = (accumulator >> (P - 1)) - Σw,   s = Σ of w where x is +1

*Bits.* Where the 1-bit instruction has shown on this device that it is exact, the packed taps of a row lie side by side and
are multiplied as they are: y = 4·popcount(x & w) - 2·popcount(x) - Σw.

*Taps.* The padded image lies flat in memory, pixel after pixel, strides split into phases, so that one row of outputs reads
one run of pixels per tap. A tile is some whole rows of outputs: for every tap and group a producer warpgroup copies those
runs and the weights (TMA), and two consumer warpgroups load, mask and multiply (`wgmma`, activations in registers).

*The rest* is one more tap, of int8: for zero padding, bytes 127 and 1 at the columns of taps that are outside, against the two
digits of Σ_c w in base 127; for bits, the digits of popcount(x) too.

*Signs* go back through the activations' buffers: as bytes 0 and 1, multiplied by powers of two, they are bytes of the words.
"""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import common
from pallas_kernels.binary_conv import geometry as geo
from pallas_kernels.binary_conv import gpu_b1, packing, reference
from pallas_kernels.binary_conv.gpu_layout import (
    GROUP,
    LARGEST_SUM,
    MOST_TAPS,
    PACKED,
    Plan,
    byte_weights,
    make_plan,
    operands,
    run_length,
)

_CONSUMERS = 2


def obstacle(geometry: geo.Geometry) -> str | None:
    """Why this convolution cannot run here, or None."""
    if geometry.products >= 1 << 24:
        return f"it needs K = kh·kw·C < 2^24, got {geometry.products}"
    if geometry.corrected and (math.prod(geometry.kernel) > MOST_TAPS or geometry.channels > LARGEST_SUM):
        return f"its zero padding needs at most {MOST_TAPS} taps and {LARGEST_SUM} channels"
    if run_length(geometry.out_width, 128) is None:
        return f"it needs a width of at most 128 or with an even divisor from 64 to 128, got {geometry.out_width}"
    return None


def convolve(xp, wp, geometry: geo.Geometry, *, interpret, bits: bool | None = None) -> jax.Array:
    """int32 [N, Ho, Wo, O]; see `reference.convolve`. `bits` forces one of the two instructions."""
    plan = make_plan(geometry, fused=False, bits=_choose_bits(geometry, interpret, bits))
    (y,) = _call(plan, operands(xp, wp, plan), [], interpret)
    shape = geometry.batch, geometry.out_height, geometry.out_width, geometry.outputs
    return y[:, : geometry.outputs].reshape(shape)


def block(
    xp,
    wp,
    geometry: geo.Geometry,
    scale,
    shift,
    residual,
    prelu,
    bias,
    *,
    interpret,
    bits: bool | None = None,
):
    """bfloat16 [N, Ho, Wo, O] and uint32 [N, Ho, Wo, ⌈O/32⌉]; see `reference.epilogue`. `bits` as for `convolve`."""
    plan = make_plan(geometry, fused=True, bits=_choose_bits(geometry, interpret, bits))
    missing = ((0, 0), (0, plan.outputs - geometry.outputs))
    prelu = jnp.ones_like(scale) if prelu is None else prelu
    bias = jnp.zeros_like(scale) if bias is None else bias
    # A bias of -inf leaves the bits of channels that do not exist unset.
    per_column = [
        jnp.pad(jnp.stack([scale, shift, prelu]), missing),
        jnp.pad(bias[None], missing, constant_values=-jnp.inf),
    ]
    epilogue = [jnp.concatenate(per_column), byte_weights(plan)]
    if residual is not None:
        epilogue.append(jnp.pad(residual.reshape(-1, geometry.outputs), missing))
    out, packed = _call(plan, operands(xp, wp, plan), epilogue, interpret)
    shape = geometry.batch, geometry.out_height, geometry.out_width
    # Tiles keep rows that no run fills, and columns of 16 bytes at least.
    packed = packed.reshape(plan.tiles, plan.rows, -1)[:, : plan.runs * plan.pitch]
    packed = packed.reshape(plan.tiles * plan.runs, plan.pitch, -1)[: plan.total_runs, : plan.run]
    packed = packed.reshape(*shape, plan.outputs // plan.columns, PACKED)[..., : plan.columns // 8]
    words = lax.bitcast_convert_type(packed.reshape(*shape, -1, 4), jnp.uint32)
    words = words[..., : common.cdiv(geometry.outputs, packing.WORD_BITS)]
    return out[:, : geometry.outputs].reshape(*shape, geometry.outputs), words


def _choose_bits(geometry, interpret, bits):
    if bits is not None:
        return bits
    small = geometry.products <= LARGEST_SUM and math.prod(geometry.kernel) <= MOST_TAPS
    return interpret is False and small and bits_are_exact()


def bits_are_exact() -> bool:
    """Whether the default device is a Hopper GPU whose 1-bit instruction gives the integers of two small convolutions.

    Tried once in a process, at the first kernel that is traced for such a device; where it fails, a warning says so and int8
    is used.
    """
    device = jax.devices()[0]
    return common.Device(device.platform, device.device_kind).hopper and _try_bits()


@functools.cache
def _try_bits():
    try:
        with jax.ensure_compile_time_eval():
            exact = all(_exact(padding, stride) for padding, stride in (("SAME", 1), ("VALID", 2)))
        reason = "its sums are wrong"
    except Exception as error:  # whatever the compiler or the driver says, int8 remains
        exact, reason = False, str(error).partition("\n")[0]
    if not exact:
        warnings.warn(f"binary_conv: the 1-bit tensor-core instruction is not used: {reason}", stacklevel=2)
    return exact


def _exact(padding, stride):
    rng = np.random.default_rng(0)
    shape, kernel, outputs, channels = (2, 9, 12), (3, 3), 136, 200
    words = common.cdiv(channels, packing.WORD_BITS)
    used = np.asarray(packing.pack_bits(jnp.ones(channels)))
    xp, wp = (
        jnp.asarray(rng.integers(0, 2**32, (*s, words), np.uint32) & used)
        for s in (shape, (*kernel, outputs))
    )
    pads = geo.resolve_padding(padding, shape[1:], kernel, (stride, stride))
    geometry = geo.Geometry(*shape, words, channels, outputs, kernel, (stride, stride), pads, "zero")
    got = convolve(xp, wp, geometry, interpret=False, bits=True)
    return bool(jnp.all(got == reference.convolve(xp, wp, geometry)))


def _call(plan: Plan, inputs, epilogue, interpret):
    pixels = plan.total_runs * plan.run
    has_residual = len(epilogue) == 3
    out = jax.ShapeDtypeStruct((pixels, plan.outputs), jnp.bfloat16 if plan.fused else jnp.int32)
    tiling = (plgpu.TilingTransform((8, GROUP)), plgpu.SwizzleTransform(GROUP))
    scratch = {
        # Tiles would need runs that begin at multiples of 8 pixels, which shifted taps do not.
        "a_smem": plgpu.SMEM((plan.slots, plan.rows, GROUP), jnp.int8),
        "b_smem": plgpu.SMEM((plan.slots, plan.planes, plan.columns, GROUP), jnp.int8, transforms=tiling),
        "out_smem": plgpu.SMEM((plan.rows, plan.columns), out.dtype),
        "full": plgpu.Barrier(num_arrivals=plan.runs + 1, num_barriers=plan.slots),
        "empty": plgpu.Barrier(num_arrivals=_CONSUMERS, num_barriers=plan.slots),
        "written": plgpu.Barrier(num_arrivals=_CONSUMERS),
    }
    out_types = [out]
    if plan.fused:
        packed = (plan.tiles * plan.rows, plan.outputs // plan.columns * PACKED)
        out_types.append(jax.ShapeDtypeStruct(packed, jnp.int8))
        scratch |= {
            "bytes_smem": plgpu.SMEM((plan.rows, PACKED), jnp.int8),
            "powers_smem": plgpu.SMEM((plan.columns // GROUP, PACKED, GROUP), jnp.int8, transforms=tiling),
            "ready": plgpu.Barrier(num_arrivals=1 + has_residual * plan.runs),
        }
    if interpret is not False:
        scratch["plane_smem"] = plgpu.SMEM((plan.rows, GROUP), jnp.int8, transforms=tiling)
    return plgpu.kernel(
        functools.partial(_kernel, plan, has_residual, len(inputs), len(inputs) + len(epilogue)),
        out_type=out_types,
        scratch_types=scratch,
        grid=(plan.tiles, plan.outputs // plan.columns),
        grid_names=("pixels", "outputs"),
        num_threads=_CONSUMERS + 1,
        thread_name="warpgroup",
        interpret=interpret,
    )(*inputs, *epilogue)


def _kernel(plan, has_residual, first, last, *refs, a_smem, b_smem, out_smem, full, empty, written, **more):
    activations, weights, total, *table = refs[:first]
    epilogue, results = refs[first:last], refs[last:]
    tile, warpgroup = lax.axis_index("pixels"), lax.axis_index("warpgroup")
    columns = pl.ds(lax.axis_index("outputs") * plan.columns, plan.columns)
    steps = plan.taps * plan.groups

    @pl.when(warpgroup == _CONSUMERS)
    def _produce():
        plgpu.set_max_registers(40, action="decrease")
        if plan.fused:
            plgpu.copy_gmem_to_smem(epilogue[1], more["powers_smem"], more["ready"])
            if has_residual:
                for run in range(plan.runs):
                    plgpu.copy_gmem_to_smem(
                        epilogue[2].at[pl.ds(_index(plan, tile, run) * plan.run, plan.run), columns],
                        out_smem.at[pl.ds(run * plan.pitch, plan.run)],
                        more["ready"],
                    )

        def copy(step, source, start, channels, w, planes):
            slot = lax.rem(step, plan.slots)

            @pl.when(step >= plan.slots)
            def _():
                plgpu.barrier_wait(empty.at[slot])

            for run in range(plan.runs):
                plgpu.copy_gmem_to_smem(
                    source.at[pl.ds(start(_index(plan, tile, run)), plan.run), channels],
                    a_smem.at[slot, pl.ds(run * plan.pitch, plan.run)],
                    full.at[slot],
                )
            plgpu.copy_gmem_to_smem(w, planes(b_smem.at[slot]), full.at[slot])

        @pl.loop(0, steps)
        def _(step):
            tap, group = lax.div(step, plan.groups), lax.rem(step, plan.groups)
            copy(
                step,
                activations,
                functools.partial(_first_pixel, plan, tap),
                pl.ds(group * GROUP, GROUP),
                weights.at[step, :, columns],
                lambda b: b,
            )

        if plan.has_table:
            copy(
                jnp.int32(steps),
                table[0],
                lambda index: lax.rem(index, plan.table_runs) * plan.run,
                slice(None),
                table[1].at[columns],
                lambda b: b.at[0],
            )
        # Every phase of a barrier is waited for, also those that give back the last buffers.
        copies = steps + plan.has_table
        for step in range(max(0, copies - plan.slots), copies):
            plgpu.barrier_wait(empty.at[step % plan.slots])

    @pl.when(warpgroup < _CONSUMERS)
    def _consume():
        plgpu.set_max_registers(232, action="increase")
        height = plan.rows // _CONSUMERS
        mine = pl.ds(warpgroup * height, height)
        multiply = functools.partial(_multiply, more.get("plane_smem"), mine)

        def load(slot):
            return plgpu.load(a_smem.at[slot, mine], layout=plgpu.Layout.WGMMA_8BIT, optimized=False)

        def add_planes(accumulator):
            @pl.loop(0, steps)
            def _(step):
                slot = lax.rem(step, plan.slots)
                plgpu.barrier_wait(full.at[slot])
                packed = load(slot)
                for plane in range(plan.planes):
                    multiply(accumulator, packed & jnp.int8(2 << plane), b_smem.at[slot, plane])
                # Ordinary loads come before the copies that will overwrite what they read.
                plgpu.commit_smem()
                plgpu.wgmma_wait(0)
                plgpu.barrier_arrive(empty.at[slot])

        def add_bits(step, sums):
            slot = lax.rem(step, plan.slots)
            plgpu.barrier_wait(full.at[slot])
            interpreted = "plane_smem" in more
            sums = gpu_b1.and_popcount(sums, load(slot), b_smem.at[slot, 0], interpreted=interpreted)
            plgpu.commit_smem()
            plgpu.barrier_arrive(empty.at[slot])
            return sums

        def add_table(accumulator):
            if plan.has_table:
                slot = steps % plan.slots
                plgpu.barrier_wait(full.at[slot])
                multiply(accumulator, load(slot), b_smem.at[slot, 0])
                plgpu.commit_smem()
                plgpu.wgmma_wait(0)
                plgpu.barrier_arrive(empty.at[slot])

        def multiply_all(accumulator):
            if not plan.bits:
                add_planes(accumulator)
            add_table(accumulator)
            return accumulator[...]

        shape = height, plan.columns
        if plan.bits:
            nothing = plgpu.layout_cast(jnp.zeros(shape, jnp.int32), plgpu.Layout.WGMMA)
            sums = 4 * lax.fori_loop(0, steps, add_bits, nothing)
            sums += pl.run_scoped(multiply_all, plgpu.ACC(shape, jnp.int32))
        else:
            sums = pl.run_scoped(multiply_all, plgpu.ACC(shape, jnp.int32)) >> (plan.planes - 1)

        def per_column(ref):
            row = plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(0), optimized=False)
            return lax.broadcast_in_dim(row, shape, [1])

        dot = sums - per_column(total.at[columns])
        if not plan.fused:
            out_smem[mine] = dot
        else:
            plgpu.barrier_wait(more["ready"])
            scale, shift, prelu, bias = (per_column(epilogue[0].at[i, columns]) for i in range(4))
            residual = None
            if has_residual:
                residual = plgpu.load(out_smem.at[mine], layout=plgpu.Layout.WGMMA, optimized=False)
            out = reference.activate(dot.astype(jnp.float32), scale, shift, residual, prelu)
            out = out.astype(jnp.bfloat16)
            out_smem[mine] = out
            signs = jnp.where(out.astype(jnp.float32) + bias >= 0, 1, 0).astype(jnp.int8)
            # The last copies have been read by now, and a warpgroup reads and writes its own rows alone.
            for part in range(plan.columns // GROUP):
                a_smem[part, mine] = signs[:, part * GROUP : (part + 1) * GROUP]
            plgpu.commit_smem()

            def pack(accumulator):
                for part in range(plan.columns // GROUP):
                    multiply(accumulator, load(part), more["powers_smem"].at[part])
                return accumulator[...]

            packed = pl.run_scoped(pack, plgpu.ACC((height, PACKED), jnp.int32))
            more["bytes_smem"][mine] = packed.astype(jnp.int8)
        plgpu.commit_smem()
        plgpu.barrier_arrive(written)
        plgpu.barrier_wait(written)

        @pl.when(warpgroup == 0)
        def _():
            for run in range(plan.runs):
                plgpu.copy_smem_to_gmem(
                    out_smem.at[pl.ds(run * plan.pitch, plan.run)],
                    results[0].at[pl.ds(_index(plan, tile, run) * plan.run, plan.run), columns],
                )
            if plan.fused:
                packed_outputs = pl.ds(lax.axis_index("outputs") * PACKED, PACKED)
                plgpu.copy_smem_to_gmem(
                    more["bytes_smem"], results[1].at[pl.ds(tile * plan.rows, plan.rows), packed_outputs]
                )
            plgpu.wait_smem_to_gmem(0)


def _multiply(plane_smem, mine, accumulator, values, weights):
    """accumulator += values · weightsᵀ, values in registers.

    The interpreter multiplies references only; there, `plane_smem` takes the values.
    """
    if plane_smem is None:
        plgpu.wgmma(accumulator, values, weights.T)
        return
    plane_smem[mine] = values
    plgpu.commit_smem()
    plgpu.wgmma(accumulator, plane_smem.at[mine], weights.T)
    plgpu.wgmma_wait(0)


def _index(plan, tile, run):
    """Which run of the whole output is `run` of this tile; the last tile repeats its last one."""
    return jnp.minimum(tile * plan.runs + run, plan.total_runs - 1)


def _first_pixel(plan, tap, index):
    """Where the flat input begins for one tap of one run of outputs."""
    g = plan.geometry
    height, width = plan.image
    runs_per_line = g.out_width // plan.run
    line, run = lax.div(index, runs_per_line), lax.rem(index, runs_per_line)
    image, row = lax.div(line, g.out_height), lax.rem(line, g.out_height)
    i, j = lax.div(tap, g.kernel[1]), lax.rem(tap, g.kernel[1])
    (sh, sw) = g.strides
    phase = lax.rem(i, sh) * sw + lax.rem(j, sw)
    row, column = row + lax.div(i, sh), run * plan.run + lax.div(j, sw)
    return ((phase * g.batch + image) * height + row) * width + column
