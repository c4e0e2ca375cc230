"""Bits, operations and bytes of vision transformers of few bits.

python -m experiments.programs.quantized_report deit_small_distilled swin_tiny --bits 2 4

Operations count a product of b bits as b/32 of one, and the elementwise float operations besides; the first and the last layer
have 8 bits. Inputs are what the products of one image read.
"""

import sys

from rich.console import Console
from rich.table import Table

from jaxface import models
from jaxface.checks import AtLeast, check_number
from jaxface.cli import console
from jaxface.errors import UserError
from jaxface.hardware import LowBitCost, low_bit_cost
from jaxface.models.transformers.quantized import Precision, matrix_products, quantized, transformer_cost


def costs(
    name: str, bits: list[int], *, size: int, classes: int
) -> dict[int, tuple[LowBitCost, LowBitCost, int]]:
    """Bits -> cost with and without elementwise operations, and multiply-accumulates of the linear layers; 32 for the float one.

    Raises:
      UserError: an unknown network, one that is no transformer, or numbers out of range.
    """
    check_number("classes", classes, AtLeast(1))
    check_number("size", size, AtLeast(8))
    model = models.create(name, embedding=classes)
    modules = {32: model} | {b: quantized(model, Precision(bits=b)) for b in bits}
    rows, shape = {}, (size, size, 3)
    for b, module in modules.items():
        products = matrix_products(module, shape)
        linear = sum(row.macs for row in products if row.weights)
        rows[b] = transformer_cost(module, shape), low_bit_cost(products), linear
    return rows


def table(name: str, rows: dict[int, tuple[LowBitCost, LowBitCost, int]]) -> Table:
    """One row per number of bits."""
    headings = (
        "bits",
        "GMAC",
        "of linear layers",
        "G operations",
        "of products",
        "faster",
        "weights MB",
        "inputs MB",
    )
    made = Table(*headings, title=name)
    for column in made.columns:
        column.justify = "right"
    whole = rows[32][0]
    for bits, (cost, products, linear) in rows.items():
        made.add_row(
            str(bits),
            f"{cost.macs / 1e9:.2f}",
            f"{linear / 1e9:.2f}",
            f"{cost.operations / 1e9:.2f}",
            f"{products.operations / 1e9:.2f}",
            f"{whole.operations / cost.operations:.2f}x",
            f"{cost.weight_bytes / 1e6:.2f}",
            f"{cost.input_bytes / 1e6:.2f}",
        )
    return made


@console.exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = console.Arguments(
        prog="quantized_report", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("networks", nargs="+", help="names of jaxface.models, such as deit_small_distilled")
    parser.add_argument(
        "--bits", type=int, nargs="+", default=[8, 4, 3, 2], help="of weights and activations"
    )
    parser.add_argument("--size", type=int, default=224, help="side of the images, pixels")
    parser.add_argument("--classes", type=int, default=1000, help="features of the last layer")
    flags = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    unknown = sorted(set(flags.networks) - set(models.names()))
    if unknown:
        raise UserError(f"networks: {unknown[0]!r} is unknown; jaxface.models.names() lists them")
    shown = Console(width=max(Console().width, 110))
    for name in flags.networks:
        shown.print(table(name, costs(name, flags.bits, size=flags.size, classes=flags.classes)))


if __name__ == "__main__":
    main()
