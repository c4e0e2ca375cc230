"""An embedded accelerator as arithmetic: cycles, multiplications and traffic of convolutions.

Its units take one tap of a filter at a time for many places of the output (arXiv:2104.14125), so that a filter of any size costs
as many cycles as it has taps, and a dilated one is read by address. Beside it stand the machines that it is compared with: those
that multiply a whole window of taps at once, and those that have a dilated filter with zeros between its taps.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np

from jaxface.checks import AtLeast, Positive, ProperFraction, check_fields
from jaxface.errors import UserError

Pair = int | tuple[int, int]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name}: needs one of {', '.join(choices)}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """The shape of a convolution; a matrix product [N, C] x [C, O] is one of 1 x 1 on N places.

    Raises:
      UserError: a number below 1, groups that do not divide the channels, pooled channels that do not divide the outputs.
    """

    height: Annotated[int, AtLeast(1)]
    """Rows of the input."""
    width: Annotated[int, AtLeast(1)]
    """Columns of the input."""
    in_channels: Annotated[int, AtLeast(1)]
    """C of the input."""
    out_channels: Annotated[int, AtLeast(1)]
    """Channels that are computed; those that are stored are 1 / `channel_pool` of them."""
    kernel_size: Annotated[Pair, AtLeast(1)] = 3
    """Taps in rows and columns, one number for both."""
    stride: Annotated[Pair, AtLeast(1)] = 1
    """Of rows and columns."""
    dilation: Annotated[Pair, AtLeast(1)] = 1
    """Of rows and columns."""
    groups: Annotated[int, AtLeast(1)] = 1
    """Groups of channels that do not see each other; as many as input channels in a depthwise convolution."""
    bits_in: Annotated[int, AtLeast(1)] = 8
    """Bits of an element of the input."""
    bits_weight: Annotated[int, AtLeast(1)] = 8
    """Bits of a weight."""
    bits_out: Annotated[int, AtLeast(1)] = 8
    """Bits of a stored element of the output."""
    out_height: Annotated[int | None, AtLeast(1)] = None
    """Rows computed; ⌈height / stride⌉ unless given."""
    out_width: Annotated[int | None, AtLeast(1)] = None
    """Columns computed; ⌈width / stride⌉ unless given."""
    channel_pool: Annotated[int, AtLeast(1)] = 1
    """R: channels of which one is stored."""
    pool_stride: Annotated[int, AtLeast(1)] = 1
    """Of a spatial pooling of the output before it is stored; 1 for none."""
    name: str = ""
    """For tables."""

    def __post_init__(self):
        check_fields(self, f"{self.name}." if self.name else "")
        for field in ("in_channels", "out_channels"):
            if getattr(self, field) % self.groups:
                raise UserError(
                    f"groups: needs a number that divides {field} {getattr(self, field)}, got {self.groups}"
                )
        if self.out_channels % self.channel_pool:
            raise UserError(
                f"channel_pool: needs a number that divides out_channels {self.out_channels}, got {self.channel_pool}"
            )


class Layers(NamedTuple):
    """A table of convolutions: int64 arrays [L], pairs [L, 2] of rows and columns."""

    names: tuple[str, ...]
    inputs: np.ndarray
    """Input elements."""
    computed: np.ndarray
    """Places of the output."""
    stored: np.ndarray
    """Output elements after both poolings."""
    in_channels: np.ndarray
    out_channels: np.ndarray
    kernel_size: np.ndarray
    dilation: np.ndarray
    groups: np.ndarray
    channel_pool: np.ndarray
    bits: np.ndarray
    """[L, 3], of an element of the input, of a weight, of the output."""

    @property
    def taps(self) -> np.ndarray:
        """[L], of a filter."""
        return self.kernel_size.prod(axis=1)

    @property
    def weights(self) -> np.ndarray:
        """[L], no biases."""
        return self.taps * (self.in_channels // self.groups) * self.out_channels

    @property
    def macs(self) -> np.ndarray:
        """[L], multiply-accumulates."""
        return self.computed * self.weights

    @property
    def traffic_bits(self) -> np.ndarray:
        """[L]: input read, weights read and output written, once each."""
        return (np.stack([self.inputs, self.weights, self.stored], axis=1) * self.bits).sum(axis=1)


def table(layers: ConvSpec | Iterable[ConvSpec]) -> Layers:
    """The table of some convolutions.

    Raises:
      UserError: there is none.
    """
    specs = [layers] if isinstance(layers, ConvSpec) else list(layers)
    if not specs:
        raise UserError("layers: needs at least one convolution, got none")

    def column(value) -> np.ndarray:
        return np.array([value(spec) for spec in specs], np.int64)

    places = column(lambda s: _pair(s.kernel_size)), column(lambda s: _pair(s.dilation))
    size = column(lambda s: (s.height, s.width))
    strides = column(lambda s: _pair(s.stride))
    given = column(lambda s: (s.out_height or 0, s.out_width or 0))
    out = np.where(given > 0, given, -(-size // strides))
    pooled = -(-out // column(lambda s: (s.pool_stride, s.pool_stride)))
    in_channels, out_channels = column(lambda s: s.in_channels), column(lambda s: s.out_channels)
    channel_pool = column(lambda s: s.channel_pool)
    return Layers(
        names=tuple(spec.name for spec in specs),
        inputs=size.prod(axis=1) * in_channels,
        computed=out.prod(axis=1),
        stored=pooled.prod(axis=1) * (out_channels // channel_pool),
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=places[0],
        dilation=places[1],
        groups=column(lambda s: s.groups),
        channel_pool=channel_pool,
        bits=column(lambda s: (s.bits_in, s.bits_weight, s.bits_out)),
    )


def taps(
    kernel_size: np.ndarray | Pair,
    dilation: np.ndarray | Pair = 1,
    *,
    order: Literal["serial", "window"] = "serial",
    dilated: Literal["address", "zero"] = "address",
    window: int = 3,
) -> np.ndarray | int:
    """Cycles that a filter takes for one place and one pair of channels.

    | order | dilated | cycles of k x k taps |
    |---|---|---|
    | serial | address | k² |
    | serial | zero | ((k - 1) d + 1)² |
    | window | address | ⌈k / A⌉² |
    | window | zero | ⌈((k - 1) d + 1) / A⌉² |

    Args:
      kernel_size: k, or pairs [..., 2] of rows and columns.
      dilation: d ≥ 1 of the same shape.
      order: one tap after the other, or A x A at once.
      dilated: whether a dilated filter is read by address or has zeros inserted.
      window: A.

    Returns:
      int, or int64 [...] for pairs.

    Example:
      >>> taps(3, 2), taps(3, 2, dilated="zero")
      (9, 25)
    """
    _check_choice("order", order, ("serial", "window"))
    _check_choice("dilated", dilated, ("address", "zero"))
    pairs = [
        np.asarray(_pair(value) if isinstance(value, int) else value, np.int64)
        for value in (kernel_size, dilation)
    ]
    if (pairs[1] < 1).any() or (pairs[0] < 1).any():
        raise UserError("dilation: needs at least 1, as kernel_size does")
    extent = (pairs[0] - 1) * pairs[1] + 1 if dilated == "zero" else pairs[0]
    extent = -(-extent // window) if order == "window" else extent
    cycles = extent.prod(axis=-1)
    return int(cycles) if cycles.ndim == 0 else cycles


def dilated_cycles(kernel_size: int, dilation: int, mode: Literal["address", "zero"]) -> int:
    """Cycles per place and pair of channels of a dilated k x k filter whose taps come one by one: k², or with zeros more.

    Example:
      >>> round(dilated_cycles(3, 2, "zero") / dilated_cycles(3, 2, "address"), 6)
      2.777778
    """
    return taps(kernel_size, dilation, dilated=mode)


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """An array of multipliers, and how it is fed.

    Raises:
      UserError: a number out of its range or an unknown order.
    """

    positions: Annotated[int, AtLeast(1)] = 64
    """P_xy: places of the output at a time."""
    out_channels: Annotated[int, AtLeast(1)] = 16
    """P_co: output channels at a time."""
    in_channels: Annotated[int, AtLeast(1)] = 1
    """P_ci: input channels that are summed at a time; all but one of these units idle in a depthwise convolution."""
    order: Literal["serial", "window"] = "serial"
    """Taps one by one, or a window of them at once."""
    window: Annotated[int, AtLeast(1)] = 3
    """A: side of that window, which takes A² multipliers."""
    dilated: Literal["address", "zero"] = "address"
    """A dilated filter's taps are addressed, or stand among zeros."""
    bytes_per_cycle: Annotated[float | None, Positive] = None
    """Of the external memory; None for one that never keeps the array waiting."""
    double_buffer: bool = True
    """Whether memory and array work at the same time."""
    zero_blocks: Annotated[float, ProperFraction] = 0.0
    """Share of the blocks whose inputs are all zero, which are skipped, in [0, 1)."""

    def __post_init__(self):
        check_fields(self)
        _check_choice("order", self.order, ("serial", "window"))
        _check_choice("dilated", self.dilated, ("address", "zero"))

    @property
    def multipliers(self) -> int:
        """Multiply-accumulates per cycle at most."""
        return (
            self.positions
            * self.out_channels
            * self.in_channels
            * (self.window**2 if self.order == "window" else 1)
        )


PROPOSED = Accelerator()
"""Taps one by one, dilated filters by address."""
CONVENTIONAL = Accelerator(dilated="zero")
"""The same array, but dilated filters have zeros inserted."""


class Cycles(NamedTuple):
    """What an accelerator takes: int64 [L] of layers, or int of a network.

    Attributes:
      macs: multiply-accumulates.
      weights: number of weights.
      traffic: bytes to and from the external memory, each element once.
      compute: cycles of the array.
      memory: cycles of the external memory.
      total: cycles; the larger of both with a double buffer, else their sum.
      utilization: multiply-accumulates done, of those that the array could have done in `compute`; in (0, 1].
    """

    macs: np.ndarray
    weights: np.ndarray
    traffic: np.ndarray
    compute: np.ndarray
    memory: np.ndarray
    total: np.ndarray
    utilization: np.ndarray


def layer_cycles(layers: ConvSpec | Sequence[ConvSpec], accelerator: Accelerator = PROPOSED) -> Cycles:
    """Cycles of every layer.

        dense: ⌈HW / P_xy⌉ · ⌈O / P_co⌉ · ⌈C / P_ci⌉ · taps;   depthwise: ⌈HW / P_xy⌉ · ⌈C / P_co⌉ · taps

    H and W are those of the output. Groups in between are taken one after the other or side by side, whichever is faster.

    Args:
      layers: one or several.
      accelerator: which.

    Returns:
      Arrays [L].

    Example:
      >>> layer = ConvSpec(80, 80, 64, 16, kernel_size=3, dilation=2)
      >>> layer_cycles(layer).total.item(), layer_cycles(layer, CONVENTIONAL).total.item()
      (57600, 160000)
    """
    rows, machine = table(layers), accelerator
    per_pair = taps(
        rows.kernel_size, rows.dilation, order=machine.order, dilated=machine.dilated, window=machine.window
    )
    each_in, each_out = rows.in_channels // rows.groups, rows.out_channels // rows.groups
    in_turn = rows.groups * _blocks(each_out, machine.out_channels) * _blocks(each_in, machine.in_channels)
    side_by_side = _blocks(rows.out_channels, machine.out_channels) * each_in
    busy = _blocks(rows.computed, machine.positions) * np.minimum(in_turn, side_by_side) * per_pair
    compute = np.ceil(busy * (1 - machine.zero_blocks)).astype(np.int64) if machine.zero_blocks else busy
    bits, memory = rows.traffic_bits, np.zeros_like(compute)
    if machine.bytes_per_cycle is not None:
        memory = np.ceil(bits / (8 * machine.bytes_per_cycle)).astype(np.int64)
    total = np.maximum(compute, memory) if machine.double_buffer else compute + memory
    utilization = rows.macs / (busy * machine.multipliers)
    return Cycles(rows.macs, rows.weights, -(-bits // 8), compute, memory, total, utilization)


def network_cycles(layers: Sequence[ConvSpec], accelerator: Accelerator = PROPOSED) -> Cycles:
    """The sums of `layer_cycles` over a network, as int, and its utilization, as float."""
    each = layer_cycles(layers, accelerator)
    sums = {name: int(getattr(each, name).sum()) for name in Cycles._fields if name != "utilization"}
    possible = (each.macs / each.utilization).sum()
    return Cycles(**sums, utilization=float(each.macs.sum() / possible))


def depthwise_separable(layer: ConvSpec) -> tuple[ConvSpec, ConvSpec]:
    """A convolution as a depthwise one of the same taps, stride and dilation and a pointwise one (a DDC layer)."""
    name = f"{layer.name}." if layer.name else ""
    depthwise = dataclasses.replace(
        layer,
        out_channels=layer.in_channels,
        groups=layer.in_channels,
        channel_pool=1,
        pool_stride=1,
        name=f"{name}depthwise",
    )
    size = [given or -(-size // stride) for given, size, stride in zip(
        (layer.out_height, layer.out_width), (layer.height, layer.width), _pair(layer.stride), strict=True
    )]  # fmt: skip
    pointwise = dataclasses.replace(
        layer, height=size[0], width=size[1], kernel_size=1, stride=1, dilation=1, name=f"{name}pointwise"
    )
    return depthwise, pointwise


def _blocks(count: np.ndarray, size: int) -> np.ndarray:
    return -(-count // size)


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int | np.integer) else tuple(value)
