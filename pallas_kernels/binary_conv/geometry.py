"""Where the taps of a convolution fall: sizes, strides and padding, worked out once for every implementation."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels import common
from pallas_kernels.binary_conv import packing

PadMode = Literal["zero", "minus_one", "plus_one"]
Padding = str | Sequence[tuple[int, int]]
PAD_MODES: tuple[str, ...] = PadMode.__args__


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A binary convolution's static numbers.

    Attributes:
      batch, height, width, words: of the packed input.
      channels, outputs: C and O, real numbers of channels.
      kernel, strides: (rows, columns).
      pads: ((top, bottom), (left, right)).
      pad_mode: what is outside the input: 0, -1 or +1.
    """

    batch: int
    height: int
    width: int
    words: int
    channels: int
    outputs: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    pad_mode: PadMode

    @property
    def out_height(self) -> int:
        return (self.height + sum(self.pads[0]) - self.kernel[0]) // self.strides[0] + 1

    @property
    def out_width(self) -> int:
        return (self.width + sum(self.pads[1]) - self.kernel[1]) // self.strides[1] + 1

    @property
    def products(self) -> int:
        """K, the products in one output."""
        return self.kernel[0] * self.kernel[1] * self.channels

    @property
    def pointwise(self) -> bool:
        """Whether this is one matrix product over the pixels: 1×1, stride 1, nothing around."""
        return self.kernel == self.strides == (1, 1) and not any(map(any, self.pads))

    @property
    def corrected(self) -> bool:
        """Whether some tap reads a zero, which a bit cannot say."""
        return self.pad_mode == "zero" and any(map(any, self.pads))

    @property
    def macs(self) -> int:
        return self.batch * self.out_height * self.out_width * self.outputs * self.products


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Rows and columns from one positive integer or two."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or not all(isinstance(v, int | np.integer) and v >= 1 for v in both):
        raise common.KernelError(f"{name}: needs a positive integer or two of them; got {value!r}")
    return int(both[0]), int(both[1])


def resolve_padding(
    padding: Padding, size: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, bottom), (left, right)) from "SAME", "VALID" or the numbers; an odd pixel of "SAME" goes to the end."""
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise common.KernelError(
                f"padding: needs 'SAME', 'VALID' or ((top, bottom), (left, right)); got {padding!r}"
            )
        pads = lax.padtype_to_pads(size, kernel, strides, padding.upper())
    else:
        pads = list(padding)
    if len(pads) != 2 or not all(len(p) == 2 and min(p) >= 0 for p in pads):
        raise common.KernelError(
            f"padding: needs 'SAME', 'VALID' or ((top, bottom), (left, right)), none negative; got {padding!r}"
        )
    (top, bottom), (left, right) = pads
    return (int(top), int(bottom)), (int(left), int(right))


def pad_words(geometry: Geometry) -> np.ndarray:
    """uint32 [words]: a pixel outside the input. Zero padding starts from -1, which `correction` then takes away."""
    if geometry.pad_mode != "plus_one":
        return np.zeros(geometry.words, np.uint32)
    bits = np.arange(geometry.words * packing.WORD_BITS) < geometry.channels
    return (bits.reshape(-1, packing.WORD_BITS) << np.arange(packing.WORD_BITS)).sum(-1).astype(np.uint32)


def pad_pixels(xp: jax.Array, geometry: Geometry) -> jax.Array:
    """The packed input with its padding around it."""
    if not any(map(any, geometry.pads)):
        return xp
    (top, bottom), (left, right) = geometry.pads
    fill = jnp.asarray(pad_words(geometry))
    shape = (geometry.batch, geometry.height + top + bottom, geometry.width + left + right, geometry.words)
    return lax.dynamic_update_slice(jnp.broadcast_to(fill, shape), xp, (0, top, left, 0))


def correction(wp: jax.Array, geometry: Geometry) -> jax.Array:
    """int32 [Ho, Wo, O]: Σ over the taps outside the input of Σ_c w[i, j, c, o], which turns padding by -1 into zeros."""
    sums = 2 * jnp.sum(lax.population_count(wp).astype(jnp.int32), axis=-1) - geometry.channels
    rows, columns = outside(geometry)
    # A tap is outside where its row or its column is: rows + columns - both. Each term is a small matrix product.
    rows, columns = rows.astype(np.int32), columns.astype(np.int32)
    by_row = jnp.einsum("hi,ijo->hjo", rows, sums)
    both = jnp.einsum("wj,hjo->hwo", columns, by_row)
    by_column = jnp.einsum("wj,ijo->wo", columns, sums)
    return by_row.sum(1)[:, None] + by_column[None] - both


def outside(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Boolean [Ho, kh] and [Wo, kw]: whether output h's tap i (w's tap j) reads outside the input."""
    tables = []
    for axis, (size, out) in enumerate(
        ((geometry.height, geometry.out_height), (geometry.width, geometry.out_width))
    ):
        read = np.arange(out)[:, None] * geometry.strides[axis] - geometry.pads[axis][0]
        read = read + np.arange(geometry.kernel[axis])
        tables.append((read < 0) | (read >= size))
    return tables[0], tables[1]
