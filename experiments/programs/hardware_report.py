"""What a network costs on an embedded accelerator, layer by layer: `python -m experiments.programs.hardware_report NETWORK`.

Cycles, bandwidth and weights of every convolution and matrix product on three machines: `proposed` takes the taps of a filter one
by one and addresses those of dilated ones, `zeros` is the same array but has dilated filters with zeros inserted, and `window`
multiplies windows of 3 x 3 taps at once, zeros among them, with nearly as many multipliers. NETWORK is a recognition network
(`jaxface.models.names()`) or a detector with its context modules (`--context`). Weights and activations have 8 bits, in layers
called binary 1 bit. Prints a table, and writes report.json and report.png to the work directory.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxface import models, training
from jaxface.checks import AtLeast, check_number
from jaxface.cli import console
from jaxface.errors import UserError
from jaxface.hardware import Accelerator, ConvSpec, Cycles, feature_memory, layer_cycles, network_cycles
from jaxface.models.convolutions import convolution_specs
from jaxface.models.detection.base import DETECTORS, create_detector
from jaxface.paths import local_path
from jaxface.registry import nearest
from jaxface.training import figures

WINDOW = 3


def machines(
    positions: int, out_channels: int, in_channels: int, bytes_per_cycle: float | None
) -> dict[str, Accelerator]:
    """The machines that are compared, by name; the array of `window` has as many multipliers as its windows allow."""
    proposed = Accelerator(positions, out_channels, in_channels, bytes_per_cycle=bytes_per_cycle)
    windows = max(positions // WINDOW**2, 1)
    return {
        "proposed": proposed,
        "zeros": dataclasses.replace(proposed, dilated="zero"),
        "window": dataclasses.replace(
            proposed, positions=windows, order="window", window=WINDOW, dilated="zero"
        ),
    }


def network_layers(
    name: str,
    *,
    image_size: int | None = None,
    channels: int = 3,
    context: str | None = None,
    backbone: str | None = None,
    embedding: int = 512,
    bits: int = 8,
) -> list[ConvSpec]:
    """The layers of a network by name, on images of one size, with numbers of `bits` bits (1 in layers called binary).

    Args:
      name: of a recognition network or a detector.
      image_size: side of the image, pixels; 112 and 640 unless given.
      channels: of the image.
      context, backbone: of a detector that has them; its own unless given.
      embedding: of a recognition network.
      bits: of weights and activations.

    Raises:
      UserError: an unknown name, a context or backbone where there is none, or an image that the network does not take.
    """
    check_number("bits", bits, AtLeast(1))
    chosen = {
        key: value for key, value in (("context", context), ("backbone", backbone)) if value is not None
    }
    detects = name in DETECTORS
    if detects:
        module = create_detector(name, **chosen).module
    elif chosen:
        field = next(iter(chosen))
        having = [known for known in DETECTORS.names() if hasattr(create_detector(known), field)]
        raise UserError(f"{field}: {name!r} has none; detectors with one are {', '.join(having)}")
    else:
        names = (*models.names(), *DETECTORS.names())
        if name not in names and not name.startswith("mlp_"):
            raise UserError(f"network: {name!r} is unknown{nearest(name, names)}")
        module = models.create(name, embedding=embedding)
    size = image_size or (640 if detects else 112)
    check_number("image_size", size, AtLeast(8))
    try:
        layers = convolution_specs(module, (size, size, channels))
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"image_size: {name} does not take images of {size} x {size} x {channels}") from None
    return [_stored(layer, bits) for layer in layers]


def _stored(layer: ConvSpec, bits: int) -> ConvSpec:
    binary = any(part.startswith("binary") for part in layer.name.split("/")[1:])
    width = 1 if binary else bits
    return dataclasses.replace(layer, bits_in=width, bits_weight=width, bits_out=bits)


def report(name: str, layers: Sequence[ConvSpec], compared: Mapping[str, Accelerator]) -> dict:
    """Numbers of the layers and of the network on every machine, as plain values."""
    each = {machine: layer_cycles(layers, accelerator) for machine, accelerator in compared.items()}
    whole = {machine: network_cycles(layers, accelerator) for machine, accelerator in compared.items()}
    first = next(iter(each.values()))

    def bandwidth(cycles: Cycles):
        return cycles.traffic / cycles.total

    rows = [
        {
            "name": layer.name,
            **{
                field: getattr(layer, field)
                for field in (
                    "height",
                    "width",
                    "in_channels",
                    "out_channels",
                    "kernel_size",
                    "stride",
                    "dilation",
                    "groups",
                )
            },
            "weights": int(first.weights[index]),
            "macs": int(first.macs[index]),
            "traffic_bytes": int(first.traffic[index]),
            "cycles": {machine: int(cycles.total[index]) for machine, cycles in each.items()},
            "bytes_per_cycle": {
                machine: round(float(bandwidth(cycles)[index]), 4) for machine, cycles in each.items()
            },
            "utilization": {
                machine: round(float(cycles.utilization[index]), 4) for machine, cycles in each.items()
            },
        }
        for index, layer in enumerate(layers)
    ]
    total = next(iter(whole.values()))
    return {
        "network": name,
        "machines": {
            machine: {**dataclasses.asdict(accelerator), "multipliers": accelerator.multipliers}
            for machine, accelerator in compared.items()
        },
        "total": {
            "weights": total.weights,
            "macs": total.macs,
            "traffic_bytes": total.traffic,
            "peak_feature_bytes": feature_memory(layers).peak // 8,
            "cycles": {machine: cycles.total for machine, cycles in whole.items()},
            "bytes_per_cycle": {machine: round(bandwidth(cycles), 4) for machine, cycles in whole.items()},
            "utilization": {machine: round(cycles.utilization, 4) for machine, cycles in whole.items()},
        },
        "layers": rows,
    }


def draw(written: Mapping, path: pathlib.Path) -> pathlib.Path:
    """Cycles, bandwidth and weights over the layers."""

    def by_machine(field):
        return {
            name: np.array([row[field][name] for row in written["layers"]]) for name in written["machines"]
        }

    weights = np.array([row["weights"] for row in written["layers"]])
    panels = {
        "cycles": by_machine("cycles"),
        "bytes per cycle": by_machine("bytes_per_cycle"),
        "weights": {"weights": weights},
    }
    return figures.save_layers(panels, path, title=f"{written['network']}, layer by layer")


def show(written: Mapping, most: int) -> None:
    """The totals and the layers that take most cycles, as a table."""
    compared = list(written["machines"])
    table = Table(title=f"{written['network']}: cycles of {', '.join(compared)}")
    for column in ("layer", "shape", "weights", "kB", *compared):
        table.add_column(column, justify="left" if column in ("layer", "shape") else "right", overflow="fold")
    longest = sorted(written["layers"], key=lambda row: -max(row["cycles"].values()))[:most]
    for row in written["layers"]:
        if row in longest:
            kernel, dilation = (
                value if isinstance(value, tuple) else (value, value)
                for value in (row["kernel_size"], row["dilation"])
            )
            shape = f"{row['height']}x{row['width']}x{row['in_channels']} -> {row['out_channels']}, {kernel[0]}x{kernel[1]}"
            table.add_row(
                row["name"].partition("/")[2] or row["name"],
                shape + (f", dilation {max(dilation)}" if max(dilation) > 1 else ""),
                f"{row['weights']:,}",
                f"{row['traffic_bytes'] / 1e3:,.0f}",
                *(f"{row['cycles'][name]:,}" for name in compared),
            )
    total = written["total"]
    table.add_section()
    table.add_row(
        f"all {len(written['layers'])}", "", f"{total['weights']:,}", f"{total['traffic_bytes'] / 1e3:,.0f}",
        *(f"{total['cycles'][name]:,}" for name in compared),
    )  # fmt: skip
    table.add_row(
        "multipliers in use", "", "", "", *(f"{total['utilization'][name]:.1%}" for name in compared)
    )
    screen = Console()
    Console(width=max(screen.width, 110)).print(table)


@console.exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = console.Arguments(
        prog="hardware_report", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("network", help="a recognition network or a detector")
    parser.add_argument("--image-size", type=int, help="side of the image, pixels; 112, of detectors 640")
    parser.add_argument("--channels", type=int, default=3, help="of the image")
    parser.add_argument("--context", help="kind of a detector's context modules, such as dilated")
    parser.add_argument("--backbone", help="of a detector")
    parser.add_argument("--embedding", type=int, default=512, help="of a recognition network")
    parser.add_argument(
        "--bits", type=int, default=8, help="of weights and activations; binary layers have 1"
    )
    parser.add_argument("--positions", type=int, default=64, help="places of the output at a time")
    parser.add_argument("--out-channels", type=int, default=16, help="output channels at a time")
    parser.add_argument("--in-channels", type=int, default=1, help="input channels at a time")
    parser.add_argument("--bytes-per-cycle", type=float, help="of the memory; never waited for unless given")
    parser.add_argument("--rows", type=int, default=20, help="layers to print, those of most cycles")
    parser.add_argument("--workdir", help="default: runs/hardware/<network>")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    compared = machines(options.positions, options.out_channels, options.in_channels, options.bytes_per_cycle)
    layers = network_layers(
        options.network,
        image_size=options.image_size,
        channels=options.channels,
        context=options.context,
        backbone=options.backbone,
        embedding=options.embedding,
        bits=options.bits,
    )
    title = " ".join(filter(None, (options.network, options.context)))
    workdir = pathlib.Path("runs/hardware") / title.replace(" ", "-")
    if options.workdir is not None:
        workdir = local_path("workdir", options.workdir)
    written = report(title, layers, compared)
    show(written, options.rows)
    workdir.mkdir(parents=True, exist_ok=True)
    training.write_atomically(workdir / "report.json", json.dumps(written, indent=1) + "\n")
    draw(written, workdir / "report.png")


if __name__ == "__main__":
    main()
