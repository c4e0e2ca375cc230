"""What the Hopper kernel reads: how activations, weights and zero padding lie in memory, and how the outputs are tiled."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels import common
from pallas_kernels.binary_conv import geometry as geo
from pallas_kernels.binary_conv import packing

GROUP = 64
"""Bytes of one group of a pixel, and K of one wgmma operand tile."""

PACKED = 16
"""Bytes of packed signs in a row of a tile: what a copy moves at least."""

LARGEST_SUM = 127 * 127
"""What two digits in base 127 hold."""

MOST_TAPS = 30

_SHARED_MEMORY = 224 * 1024
_MOST_SLOTS = 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static numbers of a kernel.

    Attributes:
      source: the convolution that was asked for.
      geometry: the one that the kernel runs: pixels in one row where nothing is around them; with `bits`, the taps of a
        row side by side as one pixel.
      bits: whether bits are multiplied as bits, K/8 bytes at a time.
      planes, groups: bits in a byte, bytes of a pixel over 64.
      run: outputs side by side that are copied together: a row of the image or an even part of one.
      pitch: rows of the tile from one run to the next, even, so that each starts at 128 bytes.
      runs: in a tile.
      rows, columns: of the tile, outputs and channels.
      outputs: channels, rounded up to whole tiles.
      fused: whether the block's epilogue runs.
    """

    source: geo.Geometry
    geometry: geo.Geometry
    bits: bool
    planes: int
    groups: int
    run: int
    pitch: int
    runs: int
    rows: int
    columns: int
    outputs: int
    fused: bool

    @property
    def taps(self) -> int:
        return math.prod(self.geometry.kernel)

    @property
    def has_table(self) -> bool:
        """Whether a last tap adds what is no product of signs."""
        return self.bits or self.source.corrected

    @property
    def table_runs(self) -> int:
        """Runs in that tap's table: of all outputs, or of one image, which the others repeat."""
        return self.total_runs if self.bits else self.total_runs // self.geometry.batch

    @property
    def total_runs(self) -> int:
        g = self.geometry
        return g.batch * g.out_height * (g.out_width // self.run)

    @property
    def tiles(self) -> int:
        return common.cdiv(self.total_runs, self.runs)

    @property
    def slots(self) -> int:
        """Steps in flight: what fits beside the epilogue's buffers."""
        out = self.rows * self.columns * (2 if self.fused else 4)
        packed = (self.rows + self.columns) * PACKED if self.fused else 0
        step = self.rows * GROUP + self.planes * self.columns * GROUP
        return min(_MOST_SLOTS, (_SHARED_MEMORY - out - packed) // step)

    @property
    def image(self) -> tuple[int, int]:
        """Rows and columns of one phase of the padded image."""
        g = self.geometry
        sizes = (g.height + sum(g.pads[0]), g.width + sum(g.pads[1]))
        rows, columns = (common.cdiv(size, s) for size, s in zip(sizes, g.strides, strict=True))
        return rows, columns


def run_length(width: int, rows: int) -> int | None:
    """Outputs to copy together, at most `rows`: the whole width, or its largest even part; None if that is short."""
    if width <= rows:
        return width
    return next((run for run in range(rows, rows // 2 - 1, -2) if width % run == 0), None)


def make_plan(source: geo.Geometry, *, fused: bool, bits: bool) -> Plan:
    """The plan of a convolution that `gpu.obstacle` lets through."""
    g = source
    if g.pointwise:
        # Any split of the pixels into runs will do: the longest even one, if there is one.
        pixels = g.batch * g.height * g.width
        if run_length(pixels, 128) is not None:
            g = dataclasses.replace(g, batch=1, height=1, width=pixels)
    if bits:
        words = g.kernel[1] * g.words
        g = dataclasses.replace(
            g,
            height=g.height + sum(g.pads[0]),
            width=g.out_width,
            words=words,
            channels=words * packing.WORD_BITS,
            kernel=(g.kernel[0], 1),
            strides=(g.strides[0], 1),
            pads=((0, 0), (0, 0)),
        )
        planes, groups = 1, common.cdiv(4 * words, GROUP)
    else:
        filled = common.cdiv(g.channels, GROUP)
        fits = lambda p: not source.corrected or source.channels << (p - 1) <= LARGEST_SUM  # noqa: E731
        planes = next(p for p in (4, 2, 1) if filled % p == 0 and fits(p))
        groups = filled // planes
    # Tall tiles read the weights less often. Integers to write, or two sums to hold, leave room for half as many rows.
    rows, columns = 256 if fused and not bits else 128, 128 if g.outputs > 64 else 64
    run = run_length(g.out_width, rows) or run_length(g.out_width, 128)
    pitch = common.round_up(run, 2)
    total = g.batch * g.out_height * (g.out_width // run)
    return Plan(
        source=source,
        geometry=g,
        bits=bits,
        planes=planes,
        groups=groups,
        run=run,
        pitch=pitch,
        runs=min(rows // pitch, total),
        rows=rows,
        columns=columns,
        outputs=common.round_up(g.outputs, columns),
        fused=fused,
    )


def operands(xp: jax.Array, wp: jax.Array, plan: Plan) -> list[jax.Array]:
    """What every kernel reads.

    Returns:
      int8 [pixels, 64·groups], int8 [steps, planes, O, 64], int32 [O] to subtract in the end, and if the plan has a table
      int8 [outputs of `table_runs`, 64] and int8 [O, 64].
    """
    source, missing = plan.source, plan.outputs - plan.source.outputs
    padded = geo.pad_pixels(xp, source)
    signs = packing.unpack_bits(wp, source.channels, dtype=jnp.int8)
    sums = jnp.sum(signs, axis=-1, dtype=jnp.int32).reshape(-1, source.outputs)
    activations, weights = _bits(padded, wp, plan) if plan.bits else _planes(padded, signs, plan)
    operands = [_phases(activations, plan), weights, jnp.pad(jnp.sum(sums, axis=0), (0, missing))]
    if plan.has_table:
        table, shares = _outside(sums, plan)
        if plan.bits:
            counted, minus_two = _counts(padded, plan)
            table = jnp.concatenate([counted, jnp.tile(table, (source.batch, 1))], axis=1)
            shares = jnp.concatenate([jnp.tile(minus_two, (source.outputs, 1)), shares], axis=1)
        empty = GROUP - table.shape[1]
        operands += [jnp.pad(table, ((0, 0), (0, empty))), jnp.pad(shares, ((0, missing), (0, empty)))]
    return operands


def _phases(x, plan):
    """[N, H, W, bytes] to rows of pixels, those of one phase of the strides together."""
    g = plan.geometry
    (height, width), (sh, sw) = plan.image, g.strides
    x = x.reshape(g.batch, g.height + sum(g.pads[0]), g.width + sum(g.pads[1]), -1)
    x = jnp.pad(x, ((0, 0), (0, height * sh - x.shape[1]), (0, width * sw - x.shape[2]), (0, 0)))
    x = x.reshape(g.batch, height, sh, width, sw, -1).transpose(2, 4, 0, 1, 3, 5)
    return x.reshape(-1, x.shape[-1])


def _planes(padded, signs, plan):
    """Activations and weights of the int8 kernel: `planes` channels to a byte, at its bits 1 to `planes`."""
    source, planes, size = plan.source, plan.planes, plan.groups * GROUP
    words = _pad_last(padded, size * planes // packing.WORD_BITS)
    shifts = jnp.arange(0, packing.WORD_BITS, planes, dtype=jnp.uint32)
    fields = (words[..., None] >> shifts) & jnp.uint32(2**planes - 1)
    activations = (fields << 1).astype(jnp.int8).reshape(*words.shape[:-1], size)

    w = jnp.pad(_pad_last(signs, size * planes), ((0, 0), (0, 0), (0, plan.outputs - source.outputs), (0, 0)))
    w = w.reshape(plan.taps, plan.outputs, plan.groups, GROUP, planes).transpose(0, 2, 4, 1, 3)
    powers = jnp.asarray([2 ** (planes - 1 - p) for p in range(planes)], jnp.int8)
    return activations, (w * powers[:, None, None]).reshape(-1, planes, plan.outputs, GROUP)


def _bits(padded, wp, plan):
    """Activations and weights of the 1-bit kernel: the packed taps of one row, side by side."""
    source, words = plan.source, plan.groups * GROUP // 4
    width, step = source.out_width, source.strides[1]
    taps = [padded[:, :, j : j + (width - 1) * step + 1 : step] for j in range(source.kernel[1])]
    activations = _pad_last(jnp.concatenate(taps, axis=-1), words)
    w = jnp.swapaxes(wp, 1, 2).reshape(source.kernel[0], source.outputs, -1)
    w = jnp.pad(_pad_last(w, words), ((0, 0), (0, plan.outputs - source.outputs), (0, 0)))
    as_bytes = lambda v: lax.bitcast_convert_type(v, jnp.int8).reshape(*v.shape[:-1], -1)  # noqa: E731
    w = as_bytes(w).reshape(plan.taps, plan.outputs, plan.groups, GROUP).swapaxes(1, 2)
    return as_bytes(activations), w.reshape(-1, 1, plan.outputs, GROUP)


def _outside(sums, plan):
    """int8 [Ho·Wo, 2·taps] and [O, 2·taps] whose products add Σ_c w of the taps outside, in the kernel's units."""
    source = plan.source
    if not source.corrected:
        none = jnp.zeros((source.out_height * source.out_width, 0), jnp.int8)
        return none, jnp.zeros((source.outputs, 0), jnp.int8)
    rows, columns = geo.outside(source)
    outside = (rows[:, None, :, None] | columns[None, :, None, :]).reshape(-1, sums.shape[0])
    digits = np.stack([outside * 127, outside], axis=-1).reshape(outside.shape[0], -1)
    scaled = (sums << (plan.planes - 1)).T
    high = (scaled + 63) // 127
    shares = jnp.stack([high, scaled - 127 * high], axis=-1).reshape(source.outputs, -1)
    return jnp.asarray(digits, jnp.int8), shares.astype(jnp.int8)


def _counts(padded, plan):
    """int8 [N·Ho·Wo, 3] and [1, 3] whose products add -2·popcount of the window of each output."""
    source = plan.source
    ones = jnp.sum(lax.population_count(padded).astype(jnp.int32), axis=-1)
    (kh, kw), (sh, sw) = source.kernel, source.strides
    height, width = (source.out_height - 1) * sh + 1, (source.out_width - 1) * sw + 1
    counts = sum(ones[:, i : i + height : sh, j : j + width : sw] for i in range(kh) for j in range(kw))
    high, low = counts.reshape(-1) // 127, counts.reshape(-1) % 127
    return jnp.stack([high, high, low], axis=-1).astype(jnp.int8), jnp.array([[-127, -127, -2]], jnp.int8)


def byte_weights(plan: Plan) -> jax.Array:
    """int8 [columns/64, 16, 64]: 64 signs at a time to their bytes of a tile's packed row."""
    channel = np.arange(plan.columns)
    powers = np.where(channel % 8 == 7, -128, 2 ** (channel % 8))
    table = (channel // 8 == np.arange(PACKED)[:, None]) * powers
    return jnp.asarray(table.reshape(PACKED, -1, GROUP).swapaxes(0, 1), jnp.int8)


def _pad_last(x, size):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])
