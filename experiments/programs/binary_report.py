"""Bits, operations and bytes of a binary network, layer by layer.

python -m experiments.programs.binary_report binary_resnet18 --size 224 --classes 1000
python -m experiments.programs.binary_report --run RUN

Of a run, the packed form is made too, and compared with the trained one on random images.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxface import inference, models
from jaxface.cli import console
from jaxface.errors import UserError
from jaxface.models.binary import NetworkCost, network_cost, to_packed


def table(cost: NetworkCost) -> Table:
    """One row per layer and a last one of sums."""
    made = Table("layer", "weights", "MMAC", "M operations", "float32 kB", "packed kB", "input kB", "packed")
    made.columns[0].no_wrap = True
    for column in made.columns[2:]:
        column.justify = "right"
    for layer in cost.layers:
        made.add_row(
            layer.name,
            "binary" if layer.binary else "real",
            f"{layer.multiply_accumulates / 1e6:.2f}",
            f"{layer.operations / 1e6:.2f}",
            f"{layer.weights * 4 / 1e3:.1f}",
            f"{layer.weight_bits / 8e3:.1f}",
            f"{layer.input_bytes / 1e3:.1f}",
            f"{layer.packed_input_bytes / 1e3:.1f}",
        )
    made.add_section()
    made.add_row(
        f"{cost.parameters:,} parameters",
        "",
        f"{cost.total('multiply_accumulates') / 1e6:.2f}",
        f"{cost.total('operations') / 1e6:.2f}",
        f"{cost.weight_bytes / 1e3:.1f}",
        f"{cost.packed_weight_bytes / 1e3:.1f}",
        f"{cost.total('input_bytes') / 1e3:.1f}",
        f"{cost.total('packed_input_bytes') / 1e3:.1f}",
    )
    return made


def compare_packed(run: str | pathlib.Path, images: int = 64) -> tuple[NetworkCost, float, float]:
    """Of a run with a binary network: its cost, and how far its packed form is from it on random images.

    Returns:
      The cost, the largest difference of an output over the largest output, and the share of images whose top class is the same
      (of the largest output, where the network ends in features).

    Raises:
      UserError: no such run, or a network that has no packed form.
    """
    bundle = inference.open_recognizer(run)
    model, variables, shape = bundle.module, bundle.variables, bundle.image_shape
    packed = to_packed(model, variables)
    pixels = np.random.default_rng(0).uniform(-1, 1, (images, *shape)).astype(np.float32)
    trained = jax.jit(lambda x: model.apply(variables, x, train=False))(pixels)
    deployed = jax.jit(lambda network, x: network(x))(packed, pixels)
    difference = float(jnp.abs(trained - deployed).max() / jnp.abs(trained).max())
    return network_cost(model, shape), difference, float(jnp.mean(trained.argmax(1) == deployed.argmax(1)))


@console.exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = console.Arguments(prog="binary_report", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("network", nargs="?", help="a name of jaxface.models, such as binary_resnet18")
    parser.add_argument("--run", help="work directory of a finished run instead")
    parser.add_argument("--size", type=int, default=224, help="side of the images, pixels")
    parser.add_argument("--channels", type=int, default=3, help="channels of the images")
    parser.add_argument("--classes", type=int, default=1000, help="features of the last layer")
    flags = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if (flags.network is None) == (flags.run is None):
        raise UserError("network: needs a name or --run, one of them")
    shown = Console(width=max(Console().width, 118))  # rather long lines than numbers cut
    if flags.run is not None:
        cost, difference, same = compare_packed(flags.run)
        shown.print(table(cost))
        shown.print(
            f"packed: outputs differ by {difference:.1e} of the largest, {same:.1%} top outputs the same"
        )
        return
    if min(flags.size, flags.channels, flags.classes) < 1:
        raise UserError("size, channels, classes: need at least 1 each")
    model = models.create(flags.network, embedding=flags.classes)
    shown.print(table(network_cost(model, (flags.size, flags.size, flags.channels))))


if __name__ == "__main__":
    main()
