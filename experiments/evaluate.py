"""Verification of a trained network on any data.

    python -m experiments.evaluate RUN --data folder --data.root DIR

The results and figures go to RUN/evaluate-<data>-<digest>. The digest is of all that they depend on beside the run: the data
with all their fields, `--pairs`, `--best`, `--seed` and `--resolution`. So a second folder or another seed gets a place of its
own, and the same command the same place; results.json says what it was.
"""

import dataclasses
import hashlib
import json
import pathlib
import sys

from jaxface import data, inference, metrics, training
from jaxface.cli import console, flags
from jaxface.cli.console import show_metrics, use_compilation_cache
from jaxface.data.transforms.resolution import check_sizes
from jaxface.errors import UserError
from jaxface.metrics.recognition.report import check_verification
from jaxface.paths import local_path


def evaluate(
    run: str | pathlib.Path, source: data.Source, *, pairs=None, best: bool = False, seed: int = 0
) -> tuple[dict[str, float], training.Figures]:
    """Verification metrics of a network, of a run or a bundle, on a source, and the figures that go with them.

    Raises:
      UserError: no run there, images that its network does not take, or pairs that the source does not have.
    """
    if seed < 0:
        raise UserError(f"seed: needs a number from 0, got {seed}")
    if official := getattr(source, "pairs", None):
        if pairs is not None:
            raise UserError(f"pairs: needs 'balanced' for data that comes with its own pairs, got {pairs!r}")
        pairs = official
    check_verification(source.labels, pairs, seed=seed)
    embeddings = inference.open_recognizer(run, best=best).embed_source(source, flip=True)
    report = metrics.verify(embeddings, source.labels, pairs=pairs, seed=seed)
    return report, training.verification_figures(embeddings, source.labels, pairs=pairs, seed=seed)


def _pairs(text: str) -> str | int | None:
    if text == "balanced":
        return None
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError:
        raise UserError(f"pairs: needs 'balanced', 'all' or a number, got {text!r}") from None


def evaluated(kind: str, spec: data.DataSpec, **options: object) -> dict[str, object]:
    """What the results depend on beside the run, for JSON; paths that exist are absolute."""

    def absolute(value: object) -> object:
        if isinstance(value, str) and value and (path := pathlib.Path(value).expanduser()).exists():
            return str(path.resolve())
        return value

    fields = {name: absolute(value) for name, value in dataclasses.asdict(spec).items()}
    return {"data": kind, **{f"data.{name}": value for name, value in fields.items()}, **options}


def default_folder(run: str | pathlib.Path, description: dict[str, object]) -> pathlib.Path:
    """RUN/evaluate-<data>-<digest>: another place for every `evaluated` description."""
    text = json.dumps(description, sort_keys=True, default=str)
    return (
        pathlib.Path(run) / f"evaluate-{description['data']}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    )


@console.exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = console.Arguments(prog="evaluate", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", help="work directory of a run, or folder of a bundle")
    parser.add_argument(
        "--data",
        default="rendered",
        help=f"one of {', '.join(data.KINDS.names())}; its fields as --data.FIELD",
    )
    parser.add_argument(
        "--pairs", default="balanced", help="'balanced' ten folds (default), 'all', or a number of pairs"
    )
    parser.add_argument(
        "--best", action="store_true", help="the best checkpoint by its metric, not the newest"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the pairs, and of rendered people")
    parser.add_argument(
        "--resolution",
        type=int,
        help="shrink every image to this side in pixels, and enlarge it again, before the network sees it",
    )
    parser.add_argument(
        "--out",
        help="folder for results.json and the figures; RUN/evaluate-<data>-<digest of these options> unless given",
    )
    options, rest = parser.parse_known_args(sys.argv[1:] if arguments is None else arguments)
    pairs = _pairs(options.pairs)
    spec = flags.parse_data(options.data, rest, prog="evaluate")
    use_compilation_cache()
    run = local_path("run", options.run)
    choices = {"pairs": options.pairs, "best": options.best, "seed": options.seed}
    if options.resolution is not None:
        choices["resolution"] = options.resolution
    description = evaluated(options.data, spec, **choices)
    out = default_folder(run, description) if options.out is None else local_path("out", options.out)
    image_size = inference.open_recognizer(run, best=options.best).image_size
    source = data.load_all(spec, image_size=image_size, seed=options.seed)
    if options.resolution is not None:
        check_sizes((options.resolution,), source.image_shape, name="resolution")
        source = data.LowResolution(source, options.resolution)
    report, drawings = evaluate(run, source, pairs=pairs, best=options.best, seed=options.seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, draw in drawings.items():
            draw(out / f"{name}.png")
        training.write_atomically(
            out / "results.json",
            json.dumps({"data": spec.title, "options": description, "metrics": report}, indent=2, default=str)
            + "\n",
        )
    except OSError as error:
        raise UserError(f"out: cannot write to {out}: {error.strerror}") from None
    show_metrics(report, f"{run} on {spec.title}: {out}")


if __name__ == "__main__":
    main()
