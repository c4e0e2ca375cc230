"""Bits for signs: how values of ±1 are stored, and what a product of stored values is.

Bit 1 stands for +1 and bit 0 for -1; the sign of zero is +1. With K products, K = taps · channels, and packed operands a, b:

    dot = K - 2·popcount(a ^ b)                                  bits beyond K equal in both
    dot = K - 2·popcount(a) - 2·popcount(b) + 4·popcount(a & b)  bits beyond K zero in both

Two layouts. *Words*: element c is bit c mod 32 of word ⌊c/32⌋, least significant first. *Plane-major bytes*: bit i of byte q is
element i·Q + q, Q bytes in all, so that `(bytes >> i) & 1` is a run of elements and unpacking moves nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels import common

WORD_BITS = 32
_WORDS = (jnp.uint8, jnp.uint16, jnp.uint32)


def pack_bits(x: jax.Array, axis: int = -1, word: jax.typing.DTypeLike = jnp.uint32) -> jax.Array:
    """Packs signs: element c of `axis` becomes bit c mod b of word ⌊c/b⌋, b = 8, 16 or 32, 1 where x >= 0.

    Args:
      x: real, integer or boolean (True stands for +1); any shape.
      axis: the axis that shrinks from C to ⌈C/b⌉; the unused bits of its last word are 0.
      word: uint8, uint16 or uint32.

    Returns:
      x's shape with `axis` shrunk, of type `word`. A NaN packs to 0.

    Raises:
      KernelError: another word type, a complex x, or no such axis.
    """
    word = jnp.dtype(word)
    if word not in _WORDS:
        raise common.KernelError(f"word: needs uint8, uint16 or uint32; got {word}")
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise common.KernelError(f"x: needs real, integer or boolean values; got {x.dtype}")
    axis = _axis(axis, x.ndim)
    bits = word.itemsize * 8
    ones = jnp.moveaxis(x if x.dtype == jnp.bool_ else x >= 0, axis, -1)
    ones = jnp.pad(ones, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[axis] % bits)])
    if bits == WORD_BITS and common.target_device().platform == "tpu":
        return jnp.moveaxis(_pack_by_products(ones), -1, axis)
    ones = ones.reshape(*ones.shape[:-1], -1, bits).astype(word)
    packed = jnp.sum(ones << jnp.arange(bits, dtype=word), axis=-1, dtype=word)
    return jnp.moveaxis(packed, -1, axis)


def unpack_bits(
    packed: jax.Array, n: int, axis: int = -1, dtype: jax.typing.DTypeLike = jnp.float32
) -> jax.Array:
    """The first n signs that `pack_bits` packed along `axis`, as -1 and +1.

    Args:
      packed: uint8, uint16 or uint32.
      n: elements to return, at most the bits there are.
      axis: the packed axis.
      dtype: signed integers or floats.

    Raises:
      KernelError: packed is not unsigned, n does not fit, or dtype has no -1.
    """
    if packed.dtype not in _WORDS:
        raise common.KernelError(f"packed: needs uint8, uint16 or uint32; got {packed.dtype}")
    if jnp.issubdtype(dtype, jnp.unsignedinteger) or jnp.dtype(dtype) == jnp.bool_:
        raise common.KernelError(f"dtype: needs a type that holds -1; got {jnp.dtype(dtype)}")
    axis, bits = _axis(axis, packed.ndim), packed.dtype.itemsize * 8
    if not 0 <= n <= packed.shape[axis] * bits:
        raise common.KernelError(f"n: needs 0 to {packed.shape[axis] * bits} elements; got {n}")
    words = jnp.moveaxis(packed, axis, -1)
    if bits == WORD_BITS and common.target_device().platform == "tpu":
        return jnp.moveaxis(_unpack_by_products(words, n).astype(dtype), -1, axis)
    ones = (words[..., None] >> jnp.arange(bits, dtype=packed.dtype)) & packed.dtype.type(1)
    signs = 2 * ones.reshape(*words.shape[:-1], -1)[..., :n].astype(jnp.int8) - 1
    return jnp.moveaxis(signs.astype(dtype), -1, axis)


# A last axis of 32 bits or of C/32 words fills a fraction of a TPU's registers, and XLA pads memory alike. Products with
# tables of 0 and powers of two keep channels where they are; bfloat16 holds their factors and float32 their sums exactly.


def _pack_by_products(ones):
    """bool [..., 32·W] -> uint32 [..., W]."""
    channel = np.arange(ones.shape[-1])
    in_word = (channel // WORD_BITS)[:, None] == np.arange(channel.size // WORD_BITS)
    low, high = (
        _exact_product(
            ones, in_word * np.where(channel % WORD_BITS // 16 == half, 2.0 ** (channel % 16), 0)[:, None]
        )
        for half in (0, 1)
    )
    return low.astype(jnp.uint32) | (high.astype(jnp.uint32) << 16)


def _unpack_by_products(words, n):
    """uint32 [..., W] -> int32 [..., n] of -1 and +1."""
    channel, count = np.arange(n), words.shape[-1]
    in_bytes = jnp.concatenate([(words >> (8 * i)) & 0xFF for i in range(4)], axis=-1)
    source = channel % WORD_BITS // 8 * count + channel // WORD_BITS
    byte = _exact_product(in_bytes, np.arange(4 * count)[:, None] == source).astype(jnp.int32)
    return 2 * ((byte >> jnp.asarray(channel % 8, jnp.int32)) & 1) - 1


def _exact_product(x, table):
    table = jnp.asarray(table, jnp.bfloat16)
    return jnp.dot(x.astype(jnp.bfloat16), table, preferred_element_type=jnp.float32)


def pack_weights(w: jax.Array) -> jax.Array:
    """Signs of weights, packed along the input channels for `binary_conv2d` or `binary_dense`.

    Args:
      w: [kh, kw, C, O] or [K, O].

    Returns:
      uint32 [kh, kw, O, ⌈C/32⌉] or [O, ⌈K/32⌉].

    Raises:
      KernelError: another rank.
    """
    if w.ndim not in (2, 4):
        raise common.KernelError(f"w: needs [kh, kw, C, O] or [K, O]; got shape {w.shape}")
    return jnp.swapaxes(pack_bits(w, axis=-2), -1, -2)


def popcount_dot(a: jax.Array, b: jax.Array, k: int) -> jax.Array:
    """Dot products of packed ±1 vectors: k - 2·Σ popcount(a ^ b) over the last axis.

    Args:
      a, b: unsigned words [..., W] that broadcast; bits beyond element k equal in both.
      k: products in each dot.

    Returns:
      int32, the broadcast shape without its last axis; of k's parity and in [-k, k].

    Raises:
      KernelError: types differ or are not unsigned, or k does not fit in the words.
    """
    if a.dtype not in _WORDS or a.dtype != b.dtype:
        raise common.KernelError(f"a, b: need one type of unsigned word; got {a.dtype} and {b.dtype}")
    if a.shape[-1] != b.shape[-1] or not 0 <= k <= a.shape[-1] * a.dtype.itemsize * 8:
        raise common.KernelError(f"k: needs to fit both operands' words; got {k}, {a.shape} and {b.shape}")
    return k - 2 * jnp.sum(lax.population_count(a ^ b).astype(jnp.int32), axis=-1)


def pack_plane_major(x: jax.Array) -> jax.Array:
    """Packs signs along the last axis so that a plane of bits is a run of elements.

    Bit i of byte q is element i·Q + q, with Q = ⌈K/8⌉ bytes; bits past the last element are 0.

    Args:
      x: [..., K], as for `pack_bits`.

    Returns:
      uint8 [..., Q].
    """
    size = common.cdiv(x.shape[-1], 8)
    ones = x if x.dtype == jnp.bool_ else x >= 0
    ones = jnp.pad(ones, [(0, 0)] * (x.ndim - 1) + [(0, 8 * size - x.shape[-1])])
    return jnp.squeeze(pack_bits(ones.reshape(*x.shape[:-1], 8, size), axis=-2, word=jnp.uint8), -2)


def plane_major_dot(packed: jax.Array, w: jax.Array) -> jax.Array:
    """Σ_k x_k·w_k from plane-major bytes: 2·Σ_i plane_i·w_i - Σ w, plane_i = (packed >> i) & 1.

    Args:
      packed: uint8 [M, Q] of `pack_plane_major`.
      w: int8 [K, O] of ±1, 8Q - 7 <= K <= 8Q.

    Returns:
      int32 [M, O].
    """
    slices = _plane_slices(packed, w)
    planes = (((packed >> i) & 1).astype(jnp.int8) for i in range(8))
    ones = sum(_dot(plane, piece) for plane, piece in zip(planes, slices, strict=True))
    return 2 * ones - jnp.sum(w, axis=0, dtype=jnp.int32)


def no_shift_dot(packed: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`plane_major_dot` for units without an 8-bit shift: (packed & 2^i) · (2^(7-i)·w_i) summed over the planes, over 128.

    Plane 7 reads as -128, so its weights change sign. Plane 0 would need weights of ±128, which int8 lacks: it takes ±64 and
    goes first, then the accumulator doubles. Exact while 128·K < 2^31.

    Args:
      packed, w: as `plane_major_dot`.

    Returns:
      The dot products and the accumulator, int32 [M, O] each; the accumulator is 128 times the sum of w where x is +1.
    """
    slices = _plane_slices(packed, w)
    signed = lax.bitcast_convert_type(packed, jnp.int8)
    accumulator = 2 * _dot(signed & jnp.int8(1), slices[0] * jnp.int8(64))
    for i in range(1, 8):
        scale, mask = (np.int8(-1), np.int8(-128)) if i == 7 else (np.int8(2 ** (7 - i)), np.int8(2**i))
        accumulator += _dot(signed & mask, slices[i] * scale)
    return 2 * (accumulator >> 7) - jnp.sum(w, axis=0, dtype=jnp.int32), accumulator


def _plane_slices(packed, w):
    size = packed.shape[-1]
    if packed.dtype != jnp.uint8 or w.dtype != jnp.int8 or common.cdiv(w.shape[0], 8) != size:
        raise common.KernelError(
            f"packed, w: need uint8 [M, Q] and int8 [K, O] with Q = ⌈K/8⌉; "
            f"got {packed.dtype} {packed.shape} and {w.dtype} {w.shape}"
        )
    return jnp.split(jnp.pad(w, ((0, 8 * size - w.shape[0]), (0, 0))), 8)


def _dot(a, b):
    return lax.dot(a, b, preferred_element_type=jnp.int32)


def _axis(axis, rank):
    if not -rank <= axis < rank:
        raise common.KernelError(f"axis: needs an axis of a rank-{rank} array; got {axis}")
    return axis % rank
