"""Evaluates a trained network: on every verification pack of a folder, a benchmark, or any data with people in it.

    jaxface evaluate RUN --packs DIR                        every .bin in one table: accuracy, TAR at FARs
    jaxface evaluate RUN --data ijb --data.root IJBC        also megaface, scface and tinyface, by their own protocols
    jaxface evaluate RUN --data folder --data.root DIR      people of your own, by pairs of their photographs

RUN is the work directory of a run, the folder of a bundle, or published weights. results.json and the figures go to
RUN/evaluate-<data>-<digest>, beside RUN where it is a file. The digest is of all that they depend on beside the network: the data
with all their fields and the options. So a second folder or another seed gets a place of its own, and the same command the same
place; results.json says what it was.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import sys

from jaxface.cli.console import (
    Arguments,
    command_parser,
    exit_on_user_error,
    show_metrics,
    show_table,
    use_compilation_cache,
)
from jaxface.errors import UserError
from jaxface.paths import is_remote, local_path, name_text, user_path


def _parser() -> Arguments:
    parser = command_parser("evaluate", __doc__)
    parser.add_argument("run", metavar="RUN", help="work directory of a run, folder of a bundle, or weights")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--packs", metavar="DIR", help="folder with verification packs, .bin")
    what.add_argument(
        "--data", metavar="KIND", help="a kind of data, rendered by default; its fields as --data.FIELD"
    )
    parser.add_argument(
        "--pairs", default="balanced", help="'balanced' ten folds (default), 'all', or a number of pairs"
    )
    parser.add_argument(
        "--flip",
        default="sum",
        help="mirror images: 'sum' of both embeddings (default), 'concat' puts them side by side, 'none'",
    )
    parser.add_argument(
        "--resolution",
        type=int,
        metavar="PIXELS",
        help="shrink every image to this side, and enlarge it again, before the network sees it",
    )
    parser.add_argument(
        "--best", action="store_true", help="of a run: the best checkpoint by its metric, not the newest"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the pairs, and of rendered people")
    parser.add_argument("--batch-size", type=int, default=128, help="images at a time; default 128")
    parser.add_argument("--out", metavar="DIR", help="folder for results.json and the figures")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    return parser


def _pairs(text: str) -> str | int | None:
    if text == "balanced":
        return None
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError:
        raise UserError(f"pairs: needs 'balanced', 'all' or a number, got {text!r}") from None


def _absolute(value: object) -> object:
    if isinstance(value, str) and value and (path := pathlib.Path(value).expanduser()).exists():
        return str(path.resolve())
    return value


def described(kind: str, fields: dict[str, object], **options: object) -> dict[str, object]:
    """What the results depend on beside the network, for JSON; paths that exist are absolute."""
    fields = {f"data.{name}": _absolute(value) for name, value in fields.items()}
    return {"data": kind, **fields, **options}


def default_folder(run: str | os.PathLike, description: dict[str, object]) -> pathlib.Path:
    """RUN/evaluate-<data>-<digest>, another place for every `described`; beside RUN where it is a file."""
    text, run = json.dumps(description, sort_keys=True, default=str), pathlib.Path(run)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return (run.parent if run.is_file() else run) / f"evaluate-{description['data']}-{digest}"


def _sources(options, rest: list[str], image_size: int):
    """({name: what to evaluate on}, title, description of the data); the name is empty where there are no packs."""
    from jaxface import data
    from jaxface.cli import flags

    if options.packs is None:
        kind = options.data or "rendered"
        spec = flags.parse_data(kind, rest, prog="jaxface evaluate")
        source = data.load_all(spec, image_size=image_size, seed=options.seed)
        return {"": source}, spec.title, (kind, dataclasses.asdict(spec))
    if rest:
        raise UserError(f"{rest[0].partition('=')[0]}: no such option; --help lists all")
    packs = data.open_packs(options.packs, image_size=image_size)
    folder = user_path("packs", options.packs)
    return packs, f"{len(packs)} packs of {name_text(folder)}", ("packs", {"packs": options.packs})


def _checked(sources: dict, options, bundle) -> dict:
    """The sources as they are evaluated, each with its pairs; refuses what cannot be before anything is computed."""
    from jaxface import data, training
    from jaxface.data.transforms.resolution import check_sizes
    from jaxface.metrics.recognition.verification import check_flip

    pairs, checked = _pairs(options.pairs), {}
    check_flip(options.flip)
    for name, source in sources.items():
        own = hasattr(source, "report") or getattr(source, "pairs", None) is not None
        if own and pairs is not None:
            raise UserError(
                f"pairs: needs 'balanced' for data that comes with its own pairs, got {options.pairs!r}"
            )
        if options.resolution is not None:
            if hasattr(source, "report"):
                raise UserError("resolution: needs people or pairs of images; a benchmark is taken as it is")
            check_sizes((options.resolution,), source.image_shape, name="resolution")
            source = data.LowResolution(source, options.resolution)
        bundle.check_images(source.image_shape)
        of_source = None if hasattr(source, "report") else getattr(source, "pairs", pairs)
        training.check_source(source, of_source, seed=options.seed)
        checked[name] = source, of_source
    return checked


def _show_packs(reports: dict[str, dict[str, float]], pairs: dict[str, int], title: str) -> None:
    """A row for each pack and one of the means: accuracy, its deviation over the folds, TAR at the FARs that can be resolved."""
    known = dict.fromkeys(key for report in reports.values() for key in report)
    keys = ["verification/accuracy", "verification/accuracy_std", *(k for k in known if "/tar@" in k)]
    rows = [
        [name, f"{pairs[name]:,}", *(f"{report[k]:.4f}" if k in report else "" for k in keys)]
        for name, report in reports.items()
    ]
    if len(reports) > 1:
        columns = [[report[k] for report in reports.values() if k in report] for k in keys]
        means = [f"{sum(c) / len(c):.4f}" if len(c) == len(reports) else "" for c in columns]
        rows.append(["mean", f"{sum(pairs.values()):,}", *means])
    names = [key.partition("/")[2].replace("accuracy_std", "std") for key in keys]
    show_table(["pack", "pairs", *names], rows, title)


@exit_on_user_error
def main(arguments: list[str]) -> None:
    """Opens, evaluates, writes, and shows the numbers."""
    options, rest = _parser().parse_known_args(arguments)
    run = user_path("run", options.run)
    if is_remote(run) and options.out is None:
        raise UserError(f"out: needs a folder of this machine for what is found of {run}")
    _pairs(options.pairs)
    out = None if options.out is None else local_path("out", options.out)
    if options.seed < 0:
        raise UserError(f"seed: needs a number from 0, got {options.seed}")
    if options.batch_size < 1:
        raise UserError(f"batch-size: needs a number from 1, got {options.batch_size}")
    use_compilation_cache()
    import jax

    from jaxface import inference, training

    bundle = inference.open_recognizer(run, best=options.best)
    sources, title, (kind, fields) = _sources(options, rest, bundle.image_size)
    sources = _checked(sources, options, bundle)
    choices = {"pairs": options.pairs, "flip": options.flip, "best": options.best, "seed": options.seed}
    if options.resolution is not None:
        choices["resolution"] = options.resolution
    description = described(kind, fields, **choices)
    out = default_folder(run, description) if out is None else out
    reports, scores, variables = {}, {}, jax.device_put(dict(bundle.variables))
    for name, (source, pairs) in sources.items():
        reports[name], of_pairs = training.evaluate_source(
            bundle.network,
            variables,
            source,
            flip=options.flip,
            pairs=pairs,
            seed=options.seed,
            batch_size=options.batch_size,
        )
        if of_pairs is not None:
            scores[name or "verification"] = of_pairs
    metrics = {
        f"{name}/{key.partition('/')[2]}" if name else key: value
        for name, report in reports.items()
        for key, value in report.items()
    }
    document = {"data": title, "options": description, "metrics": metrics}
    text = json.dumps(document, indent=2, default=str) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, draw in training.score_figures(scores).items() if scores else ():
            draw(out / f"{name}.png")
        training.write_atomically(out / "results.json", text)
    except OSError as error:
        raise UserError(f"out: cannot write to {out}: {error.strerror}") from None
    if options.json:
        sys.stdout.write(text)
    elif options.packs is None:
        show_metrics(metrics, f"{run} on {title}: {out}")
    else:
        _show_packs(reports, {n: len(s) // 2 for n, (s, _) in sources.items()}, f"{run} on {title}: {out}")


if __name__ == "__main__":
    main(sys.argv[1:])
