"""Weights in and out.

python -m experiments.programs.weights import --backbone iresnet50 FILE --out RUN
python -m experiments.programs.weights export --run RUN --format onnx --out FILE

A run of a detector is exported as safetensors or as a bundle; published RetinaFace weights need no import: `jaxface detect
--weights FILE` and `--init-from FILE` of the launcher read them.
"""

import contextlib
import json
import os
import pathlib
import shutil
import sys
import tempfile

import numpy as np

from experiments import configs
from jaxface import inference, interop, models, training
from jaxface.cli import console
from jaxface.cli.console import use_compilation_cache
from jaxface.errors import UserError
from jaxface.paths import local_path, run_path

FORMATS = ("safetensors", "stablehlo", "onnx", "bundle")
_DETECTORS = ("safetensors", "bundle")


def import_weights(
    file: str | pathlib.Path, out: str | pathlib.Path, *, backbone: str, embedding: int, image_size: int
) -> int:
    """Makes the work directory of a run of no steps from published weights.

    `experiments.evaluate OUT` verifies them, `--init-from OUT` of the launcher starts from them.

    Args:
      file: PyTorch, safetensors or ONNX.
      out: new or empty folder; it is written whole or not at all.
      backbone: a name of `jaxface.models`.
      embedding: size of its embedding.
      image_size: side of its images, pixels.

    Returns:
      The number of parameters.

    Raises:
      UserError: weights of another network, a file that cannot be read, or a folder that is taken.
    """
    if image_size < 1:
        raise UserError(f"image-size: needs at least 1; got {image_size}")
    model = models.create(backbone, embedding=embedding)
    # All that can be refused without reading the weights comes first.
    out = run_path("out", out).absolute()
    if not out.parent.is_dir() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UserError(f"out: needs a new or empty folder in one that exists; got {out}")
    variables = interop.load_weights(file, model, (image_size, image_size, 3))
    config = configs.method_module("sface").Config(
        backbone=backbone, embedding=embedding, image_size=image_size, steps=0
    )
    extra = {"batch_stats": variables["batch_stats"]}
    with _folder_replacing(out) as temporary:
        checkpoints = training.Checkpoints(temporary / "checkpoints" / "00-weights")
        state = {"params": {"backbone": variables["params"]}, "extra": extra}
        checkpoints.save(0, state, {"score": None})
        checkpoints.close()
        written = configs.to_dict("sface", config, configs.Run())
        training.write_atomically(temporary / "config.json", json.dumps(written, indent=2) + "\n")
    return models.parameter_count(variables)


@contextlib.contextmanager
def _folder_replacing(out: pathlib.Path):
    """A temporary folder beside `out` that takes its place once the block ends without an exception."""
    temporary = None
    try:
        temporary = pathlib.Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, out)
    except OSError as error:
        raise UserError(f"out: cannot write {out}: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def export_weights(
    run: str | pathlib.Path, out: str | pathlib.Path, *, kind: str, best: bool = False, pixels: bool = False
) -> None:
    """Writes the network of a run to one file.

    Args:
      run: work directory of a finished or imported run.
      out: the file; for a bundle the folder.
      kind: one of `FORMATS`.
      best: the checkpoint with the best metric instead of the newest.
      pixels: a stablehlo program of uint8 pixels instead of floats in [-1, 1].

    Raises:
      UserError: no run there, a network that the format has no names for, or a file that cannot be written.
    """
    if pixels and kind != "stablehlo":
        raise UserError(f"pixels: only stablehlo takes them; {kind} was asked for")
    described = training.read_description(run)
    if described is not None and "network" in described[1]:
        if kind not in _DETECTORS:
            raise UserError(f"format: needs {' or '.join(_DETECTORS)} for a detector; got {kind}")
        bundle = inference.open_run(run, best=best)
        (inference.save_weights if kind == "safetensors" else inference.save_bundle)(out, bundle)
        return
    if kind == "bundle":
        raise UserError(f"format: a bundle is of a detector, which {run} has not trained")
    model, backbone, extra, config = configs.load_network(run, best=best)
    variables, shape = {"params": backbone, **extra}, (config.image_size, config.image_size, 3)
    if kind == "safetensors":
        interop.save_safetensors(out, model, variables, shape)
    elif kind == "onnx":
        interop.save_onnx(out, model, variables, shape)
    else:
        interop.save_stablehlo(out, model, variables, shape, dtype=np.uint8 if pixels else np.float32)


@console.exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = console.Arguments(prog="weights", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="import|export")
    reading = commands.add_parser("import", help="published weights to a run", allow_abbrev=False)
    reading.add_argument(
        "file", help="PyTorch state dict (.pth), safetensors or ONNX, under InsightFace's names"
    )
    reading.add_argument("--backbone", required=True, help="iresnet18 to iresnet200, mobilefacenet, …")
    reading.add_argument("--out", required=True, help="work directory to make")
    reading.add_argument("--embedding", type=int, default=512, help="size of an embedding")
    reading.add_argument("--image-size", type=int, default=112, help="side of the images, pixels")
    writing = commands.add_parser("export", help="the network of a run to a file", allow_abbrev=False)
    writing.add_argument("--run", required=True, help="work directory of a run")
    writing.add_argument("--format", required=True, choices=FORMATS)
    writing.add_argument("--out", required=True, help="the file to write")
    writing.add_argument(
        "--best", action="store_true", help="the best checkpoint by its metric, not the newest"
    )
    writing.add_argument(
        "--pixels", action="store_true", help="stablehlo: takes uint8 pixels instead of floats in [-1, 1]"
    )
    flags = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    use_compilation_cache()
    if flags.command == "import":
        count = import_weights(
            flags.file,
            flags.out,
            backbone=flags.backbone,
            embedding=flags.embedding,
            image_size=flags.image_size,
        )
        console.say(f"{flags.backbone}, {count:,} parameters: {flags.out}")
    else:
        out = local_path("out", flags.out)
        export_weights(flags.run, out, kind=flags.format, best=flags.best, pixels=flags.pixels)
        files = [out] if out.is_file() else [path for path in out.iterdir() if path.is_file()]
        console.say(f"{flags.format}, {sum(path.stat().st_size for path in files):,} bytes: {out}")


if __name__ == "__main__":
    main()
