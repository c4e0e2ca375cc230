"""Hopper's 1-bit matrix instruction, which Pallas does not name: wgmma … b1.b1.and.popc.

    D[i, j] += popcount(A[i, :] & B[j, :]),   256 bits of a row at a time

Its operands lie in registers and shared memory exactly as those of the int8 instruction whose K is 32 bytes, and its sums as
those of every wgmma, so that only the instruction's name differs. The instruction is written here as PTX.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.mosaic.gpu import fragmented_array as fa
from jax.experimental.mosaic.gpu import mma_utils
from jax.experimental.mosaic.gpu import utils as mgpu_utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm, nvvm, vector

_ROWS = 64  # of one instruction
_BYTES = 32  # of K in one instruction
_SWIZZLE = 64  # bytes of K in one operand tile


def and_popcount(sums: jax.Array, values: jax.Array, weights, *, interpreted: bool) -> jax.Array:
    """sums + popcount(values[:, None] & weights[None]) summed over bytes, inside a kernel.

    Args:
      sums: int32 [M, N] in registers, M a multiple of 64, N of 8.
      values: int8 [M, 64] in registers, `plgpu.Layout.WGMMA_8BIT`.
      weights: reference to int8 [N, 64] in shared memory, tiled (8, 64) and swizzled by 64 bytes.
      interpreted: whether the interpreter runs this, which has no such instruction and counts in XLA.

    Returns:
      int32 [M, N]; the instructions are done.
    """
    if interpreted:
        both = values[:, None, :] & weights[...][None]
        return sums + jnp.sum(lax.population_count(both).astype(jnp.int32), axis=-1)
    transforms = (plgpu.TilingTransform((8, _SWIZZLE)), plgpu.SwizzleTransform(_SWIZZLE))
    return plgpu.inline_mgpu(
        arg_types=(plgpu.Layout.WGMMA, plgpu.Layout.WGMMA_8BIT, plgpu.RefType(transforms)),
        return_type=plgpu.ShapeDtypeStruct(sums.shape, jnp.int32, layout=plgpu.Layout.WGMMA),
    )(_emit)(sums, values, weights)


def _emit(_, sums, values, weights):
    # The compiler must have the registers ready before the fence that hands them to the tensor core, and not after.
    held, values = fa.optimization_barrier(sums.to_layout(fa.WGMMA_LAYOUT_ACC_32BIT), values)
    nvvm.wgmma_fence_aligned()
    columns = sums.shape[1]
    operand = mgpu_utils.memref_transpose(weights, (1, 0, 3, 2))
    (descriptor, stride), _, _ = mma_utils.create_descriptor(
        operand,
        swizzle=_SWIZZLE,
        large_tile=(_SWIZZLE, _SWIZZLE),
        group_size=(_SWIZZLE, columns),
        logical_k_major=True,
    )
    step = stride[1][0]
    registers = held.registers.copy()
    for row in range(sums.shape[0] // _ROWS):
        tile = registers[row : row + 1]
        current = list(tile.flat)
        for part in range(_SWIZZLE // _BYTES):
            piece = values[
                row * _ROWS : (row + 1) * _ROWS, part * _BYTES : (part + 1) * _BYTES
            ].registers.flat
            current = _instruction(
                current, [_word(v) for v in piece], _advance(descriptor, part * step), columns
            )
        registers[row : row + 1] = np.array(current, dtype=object).reshape(tile.shape)
    nvvm.wgmma_commit_group_sync_aligned()
    nvvm.wgmma_wait_group_sync_aligned(0)
    done = fa.FragmentedArray(_registers=registers, _layout=held.layout, _is_signed=True)
    return fa.optimization_barrier(done).to_layout(sums.layout)


def _instruction(sums, values, descriptor, columns):
    """One wgmma of 64 rows: the sums' registers after it."""
    names = (f"${i}" for i in itertools.count())
    take = lambda count: list(itertools.islice(names, count))  # noqa: E731
    outputs = take(len(sums))
    take(len(sums))  # the same registers as inputs
    inputs, (address,) = take(len(values)), take(1)
    text = (
        f"{{ .reg .pred p; setp.ne.b32 p, 1, 0; "
        f"wgmma.mma_async.sync.aligned.m64n{columns}k256.s32.b1.b1.and.popc "
        f"{{{','.join(outputs)}}}, {{{','.join(inputs)}}}, {address}, p; }}"
    )
    constraints = ["=r"] * len(sums) + [str(i) for i in range(len(sums))] + ["r"] * len(values) + ["l"]
    kind = sums[0].type
    result = llvm.inline_asm(
        llvm.StructType.get_literal([kind] * len(sums)),
        [*sums, *values, descriptor],
        text,
        ",".join(constraints),
        asm_dialect=0,
        has_side_effects=True,
    )
    return [llvm.extractvalue(kind, result, [i]) for i in range(len(sums))]


def _word(register):
    """Four bytes of a row as one 32-bit register."""
    i32 = ir.IntegerType.get_signless(32)
    zero = llvm.ConstantOp(i32, ir.IntegerAttr.get(i32, 0)).result
    return llvm.extractelement(vector.bitcast(ir.VectorType.get((1,), i32), register), zero)


def _advance(descriptor, count):
    """A descriptor `count` bytes further on; its address counts 16 bytes."""
    i64 = ir.IntegerType.get_signless(64)
    offset = llvm.ConstantOp(i64, ir.IntegerAttr.get(i64, count >> 4)).result
    return llvm.add(descriptor, offset, overflow_flags=llvm.IntegerOverflowFlags.none)
