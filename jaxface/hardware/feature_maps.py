"""Memory and traffic of a network's feature maps where groups of channels are pooled before they are stored.

A layer that computes R·M maps and keeps the best of every R has maps that exist block by block only, "virtual" ones
(arXiv:2104.14124). These functions compare it with a machine that stores all R·M.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxface.checks import AtLeast, Positive, check_number
from jaxface.hardware.accelerator import Accelerator, ConvSpec, table


class FeatureMemory(NamedTuple):
    """Bits of feature maps that are held at a time.

    Attributes:
      layers: int64 [L], input and output of every layer.
      peak: the largest of them.
    """

    layers: np.ndarray
    peak: int


class FeatureTraffic(NamedTuple):
    """Bits that a frame moves to and from the external memory.

    Attributes:
      layers: int64 [L], of every layer: input, weights, output and what is stored only to be pooled.
      activations: of all layers, without weights.
      total: of all layers.
    """

    layers: np.ndarray
    activations: int
    total: int


def feature_memory(
    layers: Sequence[ConvSpec], *, virtual: bool = True, activation_bits: int = 8
) -> FeatureMemory:
    """Peak memory of a chain of layers, of which each holds its input and its output.

        max_l (in_l + S_l) virtual,   max_l (in_l + R_l S_l) where all maps are stored

    Args:
      layers: in order; S_l is what `channel_pool` and `pool_stride` leave (spatial pooling is always done before storing).
      virtual: whether channels are pooled before they are stored.
      activation_bits: of an element of a map.

    Returns:
      Bits.
    """
    check_number("activation_bits", activation_bits, AtLeast(1))
    rows = table(layers)
    out = rows.stored if virtual else rows.stored * rows.channel_pool
    held = (rows.inputs + out) * activation_bits
    return FeatureMemory(held, int(held.max()))


def feature_traffic(
    layers: Sequence[ConvSpec],
    *,
    virtual: bool = True,
    activation_bits: int = 8,
    weight_bits: int = 8,
    pool_on_read: bool = False,
) -> FeatureTraffic:
    """Traffic of a chain of layers.

        virtual:       Σ_l in_l + Q_l + S_l
        stored:        Σ_l in_l + Q_l + 2 R_l S_l [R_l > 1] + S_l
        pool on read:  Σ_l R_(l-1) in_l + Q_l + R_l S_l

    Args:
      layers: in order, each the input of the next; Q_l are its weights, S_l what is left after both poolings.
      virtual: whether channels are pooled before they are stored. If not, all maps are written, read, pooled and written again,
      pool_on_read: or the next layer reads them all and pools as it reads.
      activation_bits: of an element of a map, the image included.
      weight_bits: of a weight; 0 to count activations alone.

    Returns:
      Bits.
    """
    check_number("activation_bits", activation_bits, AtLeast(1))
    check_number("weight_bits", weight_bits, AtLeast(0))
    rows = table(layers)
    pooled, moved = rows.channel_pool, rows.inputs + rows.stored
    if not virtual and pool_on_read:
        earlier = np.concatenate([[1], pooled[:-1]])
        moved = rows.inputs * earlier + rows.stored * pooled
    elif not virtual:
        moved = moved + np.where(pooled > 1, 2 * pooled * rows.stored, 0)
    activations = moved * activation_bits
    bits = activations + rows.weights * weight_bits
    return FeatureTraffic(bits, int(activations.sum()), int(bits.sum()))


class PoolingOverhead(NamedTuple):
    """What pooling channels adds to an accelerator, as shares of what it has.

    Attributes:
      memory: of the bytes on the chip.
      gates: of the gates of the multipliers.
    """

    memory: float
    gates: float


def pooling_overhead(
    accelerator: Accelerator,
    *,
    memory_bytes: float,
    multiplier_gates: float,
    gates_per_bit: float = 6.0,
    activation_bits: int = 8,
    sharing: int = 1,
) -> PoolingOverhead:
    """A model of the hardware that a running maximum over channels takes: one block of results, and comparators.

        memory: P_xy P_co b / 8 / memory_bytes,   gates: (P_xy P_co / sharing) b gates_per_bit / (multipliers · multiplier_gates)

    The published totals of Condensation-Net, 0.2 % of memory and 1.0 % of gates, come without their parts: none of the numbers
    here is the paper's.

    Args:
      accelerator: whose block of results is held.
      memory_bytes: on the chip.
      multiplier_gates: of a multiplier with its adder.
      gates_per_bit: of a comparator with its selection.
      activation_bits: b, of a result as it is compared.
      sharing: results that take turns at a comparator, ≥ 1.

    Returns:
      Shares.
    """
    for name, value in (
        ("memory_bytes", memory_bytes),
        ("multiplier_gates", multiplier_gates),
        ("gates_per_bit", gates_per_bit),
    ):
        check_number(name, value, Positive)
    for name, value in (("activation_bits", activation_bits), ("sharing", sharing)):
        check_number(name, value, AtLeast(1))
    results = accelerator.positions * accelerator.out_channels
    comparators = results / sharing * activation_bits * gates_per_bit
    return PoolingOverhead(
        results * activation_bits / 8 / memory_bytes,
        comparators / (accelerator.multipliers * multiplier_gates),
    )
