"""Writes the network of a run as a bundle, safetensors, ONNX or StableHLO.

    jaxface export RUN --bundle DIR                        network, weights, preprocessing and threshold in one folder
    jaxface export RUN --format safetensors --out FILE     weights under their published names
    jaxface export RUN --format onnx --out FILE            a graph for other runtimes
    jaxface export RUN --format stablehlo --out FILE       a program, with any number of images

RUN is the work directory of a run, the folder of a bundle or published weights. An ONNX graph of a detector takes images of the
size that it was trained on; detectors have no StableHLO.
"""

import sys

from jaxface.cli.console import command_parser, exit_on_user_error, say, use_compilation_cache
from jaxface.errors import UserError
from jaxface.paths import local_path

FORMATS = ("safetensors", "onnx", "stablehlo")


def _arguments(arguments: list[str]):
    parser = command_parser("export", __doc__)
    parser.add_argument("run", metavar="RUN", help="work directory of a run, folder of a bundle, or weights")
    parser.add_argument("--bundle", metavar="DIR", help="folder to write a bundle to")
    parser.add_argument("--format", choices=FORMATS, help="of the file that --out names")
    parser.add_argument("--out", metavar="FILE", help="the file to write")
    parser.add_argument(
        "--best", action="store_true", help="the best checkpoint by its metric, not the newest"
    )
    parser.add_argument(
        "--pixels", action="store_true", help="stablehlo: takes uint8 pixels instead of floats in [-1, 1]"
    )
    parser.add_argument("--license", metavar="TEXT", help="of the weights, for the bundle")
    parser.add_argument("--origin", metavar="TEXT", help="who made the weights from what, for the bundle")
    options = parser.parse_args(arguments)
    if (options.bundle is None) == (options.format is None):
        raise UserError("format: needs --bundle DIR, or --format with --out FILE, one of them")
    if (options.format is None) != (options.out is None):
        raise UserError("out: needs --format and --out together")
    if options.pixels and options.format != "stablehlo":
        raise UserError(f"pixels: only stablehlo takes them; {options.format or 'a bundle'} was asked for")
    return options


@exit_on_user_error
def main(arguments: list[str]) -> None:
    """Opens, writes and says how much."""
    options = _arguments(arguments)
    run = local_path("run", options.run)
    out = local_path("bundle" if options.bundle is not None else "out", options.bundle or options.out or "")
    use_compilation_cache()
    import dataclasses

    import numpy as np

    from jaxface import inference, interop

    bundle = inference.open_bundle(run, best=options.best)
    texts = {name: getattr(options, name) for name in ("license", "origin")}
    bundle = dataclasses.replace(bundle, **{name: text for name, text in texts.items() if text is not None})
    if options.bundle is not None:
        inference.save_bundle(out, bundle)
    elif options.format == "safetensors":
        inference.save_weights(out, bundle)
    elif isinstance(bundle, inference.DetectorBundle):
        if options.format != "onnx":
            raise UserError(
                f"format: needs safetensors, onnx or a bundle for a detector; got {options.format}"
            )
        side = -(-bundle.image_size // bundle.detector.stride) * bundle.detector.stride
        interop.save_onnx(out, bundle.detector.module, bundle.variables, (side, side, 3))
    elif options.format == "onnx":
        interop.save_onnx(out, bundle.module, bundle.variables, bundle.image_shape)
    else:
        dtype = np.uint8 if options.pixels else np.float32
        interop.save_stablehlo(out, bundle.module, bundle.variables, bundle.image_shape, dtype=dtype)
    files = [out] if out.is_file() else [path for path in out.iterdir() if path.is_file()]
    kind = options.format or "bundle"
    say(f"{kind}, {sum(path.stat().st_size for path in files):,} bytes: {out}")


if __name__ == "__main__":
    main(sys.argv[1:])
