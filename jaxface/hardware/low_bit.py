"""What low-bit codes save: operations and bytes of the matrix products of a network, as arithmetic on their sizes.

Methods: qdetr, qvit
"""

from collections.abc import Iterable
from typing import NamedTuple

from jaxface.errors import UserError

FULL = 32  # bits of a float


class Product(NamedTuple):
    """A matrix product or convolution of one forward pass.

    Attributes:
      name: for tables.
      macs: multiply-accumulates.
      weights: elements of its trained operand; 0 where both are activations, as in attention.
      inputs: elements of activations that it reads.
      weight_bits: of an element of the right operand, trained or not.
      input_bits: of an element of the left one.
    """

    name: str
    macs: int
    weights: int
    inputs: int
    weight_bits: int = FULL
    input_bits: int = FULL


class LowBitCost(NamedTuple):
    """Sums over a network.

    Attributes:
      macs: multiply-accumulates, whatever their bits.
      operations: the same, one of b bits counted as b/32 (the larger b of its operands), and the elementwise ones.
      weight_bytes: of the trained operands in their bits.
      input_bytes: of the activations that products read.
    """

    macs: int
    operations: float
    weight_bytes: float
    input_bytes: float


def low_bit_cost(products: Iterable[Product], *, elementwise: int = 0) -> LowBitCost:
    """Operations and bytes of products whose operands have few bits.

        operations = Σ macs · max(b_w, b_x) / 32 + elementwise

    Args:
      products: at least one.
      elementwise: float operations beside them, each counted as one: normalizations, softmaxes, quantizers.

    Returns:
      The sums.

    Raises:
      UserError: no product.

    Example:
      >>> low_bit_cost([Product("dense", macs=800, weights=80, inputs=10, weight_bits=4, input_bits=4)])
      LowBitCost(macs=800, operations=100.0, weight_bytes=40.0, input_bytes=5.0)
    """
    rows = list(products)
    if not rows:
        raise UserError("products: needs at least one, got none")
    return LowBitCost(
        sum(row.macs for row in rows),
        sum(row.macs * max(row.weight_bits, row.input_bits) for row in rows) / FULL + elementwise,
        sum(row.weights * row.weight_bits for row in rows) / 8,
        sum(row.inputs * row.input_bits for row in rows) / 8,
    )
