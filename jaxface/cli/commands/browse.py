"""Looks at data before anybody trains on them: a contact sheet by class, damaged and suspicious images first.

    jaxface browse SOURCE --out sheet.png               a folder by class, a folder of images, a .bin pack, a .rec
    jaxface browse --data KIND --data.FIELD … --out …   any data that the launcher takes

Suspicious is an image that cannot be read, is tiny or of one color, is in its class twice or in two classes, the same or nearly
so (compressed again, or at another size), and a class of too few images. The sheet begins with these, framed in red, by problem;
then come the first images of each class. `--json` prints all findings for programs.
"""

import collections
import json
import sys

from jaxface.cli.console import command_parser, exit_on_user_error, one_line, say
from jaxface.errors import UserError
from jaxface.paths import local_path


def _arguments(arguments: list[str]):
    parser = command_parser("browse", __doc__)
    parser.add_argument("source", nargs="?", help="folder, .bin pack, .rec, or the folder that holds a .rec")
    parser.add_argument(
        "--data", metavar="KIND", help="a kind of data by its name, such as rendered, tfds or olivetti"
    )
    parser.add_argument("--out", default="sheet.png", help="the sheet, PNG or JPEG; default sheet.png")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--limit", type=int, default=20000, help="images to look at; default 20000")
    parser.add_argument("--smallest", type=int, default=32, help="shortest side that is enough; default 32")
    parser.add_argument("--few", type=int, default=2, help="images that a class needs; default 2")
    parser.add_argument("--classes", type=int, default=24, help="classes on the sheet; default 24")
    parser.add_argument("--per-class", type=int, default=10, help="images of each class; default 10")
    parser.add_argument("--per-problem", type=int, default=30, help="images of each problem; default 30")
    parser.add_argument("--side", type=int, default=96, help="of a picture on the sheet, pixels; default 96")
    parser.add_argument(
        "--image-size", type=int, default=112, help="with --data: side of its images, pixels; default 112"
    )
    outer, fields = _fields_apart(arguments)
    return parser.parse_args(outer), fields


def _fields_apart(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(arguments of the command, flags `--data.FIELD` with their values)."""
    outer, fields, values = [], [], False
    for word in arguments:
        if word.startswith("--"):
            values = word.startswith(("--data.", "--no-data."))
        (fields if values else outer).append(word)
        if "=" in word and word.startswith("--"):
            values = False
    return outer, fields


def _open(options, fields: list[str]):
    """The images of the source that was named."""
    from jaxface.data.sources import inspection

    if (options.source is None) == (options.data is None):
        raise UserError("source: needs a path or --data KIND, one of both")
    if options.data is None:
        if fields:
            raise UserError(
                f"{fields[0].partition('=')[0].lstrip('-')}: needs --data KIND, whose field it is"
            )
        return inspection.open_raw(options.source)
    from jaxface.checks import AtLeast, check_fields, check_number
    from jaxface.cli import flags

    spec = flags.parse_data(options.data, fields, prog="jaxface browse")
    of_path = {"folder": "root", "bin": "path", "recordio": "path"}.get(options.data)
    if of_path is not None:
        return inspection.open_raw(getattr(spec, of_path))
    check_number("image-size", options.image_size, AtLeast(8))
    check_fields(spec)
    source = spec.source(image_size=options.image_size, seed=0)
    return inspection.raw_source(options.data, spec.title, source)


def _rows(images, findings, looked_at, options) -> list:
    """Titles and pictures of the sheet: problem by problem, then class by class."""
    import numpy as np

    from jaxface.data.sources.images import CorruptImage
    from jaxface.data.sources.inspection import PROBLEMS
    from jaxface.data.transforms.drawing import Tile, draw_boxes

    def tile(index, caption, *, marked=False):
        try:
            image = images.read(index)
        except CorruptImage:
            return Tile(None, caption, True)
        if images.boxes is not None:
            image = draw_boxes(image, images.boxes(index))
        return Tile(image, caption, marked)

    rows, by_problem = [], collections.defaultdict(list)
    for finding in findings:
        by_problem[finding.problem].append(finding)
    for problem, those in by_problem.items():
        tiles = []
        for finding in those:
            if finding.image is None:
                tiles.append(Tile(None, images.class_names[finding.label], True))
                continue
            name = images.class_names[finding.label] if problem == "few" else images.names[finding.image]
            tiles.append(tile(finding.image, name, marked=True))
            if finding.other is not None:
                tiles.append(tile(finding.other, images.names[finding.other]))
            if len(tiles) >= options.per_problem:
                break
        more = "" if len(tiles) >= len(those) else ", of which these are the first"
        rows.append((f"{problem} ({len(those)}): {PROBLEMS[problem]}{more}", tiles))
    wrong = {finding.image for finding in findings if finding.problem != "few"}
    labels = images.labels[looked_at]
    classes = np.unique(labels)
    if len(classes) > options.classes:
        classes = classes[np.linspace(0, len(classes) - 1, options.classes).round().astype(int)]
    for label in classes.tolist():
        members = looked_at[labels == label][: options.per_class].tolist()
        count = int((images.labels == label).sum())
        rows.append(
            (
                f"{images.class_names[label]} ({count})",
                [tile(index, images.names[index], marked=index in wrong) for index in members],
            )
        )
    return rows


@exit_on_user_error
def main(arguments: list[str]) -> None:
    """Looks, draws and says what was found."""
    options, fields = _arguments(arguments)
    out = local_path("out", options.out)
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"out: needs a name that ends in .png or .jpg, got {options.out!r}")
    for name in ("limit", "classes", "per_class", "per_problem"):
        if getattr(options, name) < 1:
            raise UserError(
                f"{name.replace('_', '-')}: needs an integer from 1, got {getattr(options, name)}"
            )
    images = _open(options, fields)
    import numpy as np

    from jaxface.data.sources.images import encode_image
    from jaxface.data.sources.inspection import PROBLEMS, chosen_images, inspect
    from jaxface.data.transforms.drawing import contact_sheet
    from jaxface.interop.files import replacing

    looked_at = chosen_images(images, options.limit)
    findings = inspect(images, indices=looked_at, smallest=options.smallest, few=options.few)
    sheet = contact_sheet(
        _rows(images, findings, looked_at, options), side=options.side, columns=options.per_class
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: cannot write to {out.parent}: {error.strerror or error}") from None
    with replacing(out) as temporary:
        temporary.write_bytes(encode_image(sheet, encoding="png" if out.suffix.lower() == ".png" else "jpeg"))
    per_class = np.bincount(images.labels, minlength=len(images.class_names))
    counts = collections.Counter(finding.problem for finding in findings)
    if options.json:
        document = {
            "source": images.title,
            "kind": images.kind,
            "images": len(images),
            "looked_at": len(looked_at),
            "classes": len(images.class_names),
            "per_class": {
                "least": int(per_class.min()),
                "median": float(np.median(per_class)),
                "most": int(per_class.max()),
            },
            "ignored": dict(images.ignored),
            "counts": {problem: counts[problem] for problem in PROBLEMS},
            "findings": [
                {
                    "problem": finding.problem,
                    "image": None if finding.image is None else images.names[finding.image],
                    "class": images.class_names[finding.label],
                    "detail": finding.detail,
                    "other": None if finding.other is None else images.names[finding.other],
                }
                for finding in findings
            ],
            "sheet": str(out),
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    part = "" if len(looked_at) == len(images) else f", {len(looked_at)} of them looked at (--limit)"
    say(
        f"{images.title}: {len(images)} images{part} in {len(images.class_names)} classes of "
        f"{per_class.min()} to {per_class.max()}"
    )
    for ending, count in images.ignored.items():
        say(f"  left out: {count} {ending}")
    for problem, words in PROBLEMS.items():
        those = [finding for finding in findings if finding.problem == problem]
        for finding in those[:3]:
            name = images.class_names[finding.label] if problem == "few" else images.names[finding.image]
            sys.stderr.write(one_line(f"{problem}: {name}: {finding.detail}") + "\n")
        if those:
            say(f"  {problem}: {len(those)} ({words})")
    say(f"sheet: {out}")


if __name__ == "__main__":
    main(sys.argv[1:])
