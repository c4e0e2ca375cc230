"""Finds faces, or whatever a detector knows, in photographs: boxes, classes and scores as JSON, drawn on copies.

    jaxface detect PHOTO… --detector DETECTOR --out DIR     detections.json and drawings in a folder
    jaxface detect PHOTO… --detector DETECTOR --json        one JSON document on the terminal, and nothing else

DETECTOR is the work directory of a run that has trained one, the folder of a bundle, or published RetinaFace weights. A
photograph may be a folder of them. Coordinates in the JSON are pixels of the upright photograph, the origin at its top left. What
a detector of faces finds are `faces` there, with five points of those that tell them; of others `objects`, whose class is written
on the drawing.
"""

import json
import sys

from jaxface.cli.console import command_parser, exit_on_user_error, one_line, say, use_compilation_cache
from jaxface.cli.photos import decoded, drawing_names, face_row, listed_photographs, size_arguments
from jaxface.errors import UserError
from jaxface.paths import local_path, name_text


def _arguments(arguments: list[str]):
    parser = command_parser("detect", __doc__)
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="image, or folder of images")
    parser.add_argument(
        "--detector", required=True, help="work directory of a run, folder of a bundle, or published weights"
    )
    parser.add_argument("--best", action="store_true", help="of a run: the best checkpoint, not the newest")
    parser.add_argument("--out", metavar="DIR", help="folder for both; detections unless --json is given")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    size_arguments(parser, batch_size=8)
    parser.add_argument("--no-drawings", action="store_true", help="write the JSON alone")
    options = parser.parse_args(arguments)
    if options.out is None and not options.json:
        options.out = "detections"
    return options


def _rows(detections, class_names: tuple[str, ...]) -> list[dict]:
    classes = detections.classes.tolist()
    return [{"class": class_names[c], **face_row(detections, i)} for i, c in enumerate(classes)]


def _labels(detections, class_names: tuple[str, ...]) -> list[str] | None:
    """Texts for the drawing: class and score; None of a detector of faces, for the score alone."""
    if class_names == ("face",):
        return None
    return [
        f"{class_names[c]} {score:.2f}"
        for c, score in zip(detections.classes, detections.scores, strict=True)
    ]


@exit_on_user_error
def main(arguments: list[str]) -> None:
    """Detects, writes and says how many."""
    options = _arguments(arguments)
    paths = listed_photographs(options.photos)
    out = None if options.out is None else local_path("out", options.out)
    use_compilation_cache()
    from jaxface import inference
    from jaxface.checks import Fraction, check_number
    from jaxface.data.sources.images import encode_image
    from jaxface.data.transforms.drawing import draw_boxes
    from jaxface.training import write_atomically

    check_number("score", options.score, Fraction)
    bundle = inference.open_detector(options.detector, best=options.best)
    detect = inference.PhotoDetector(
        bundle, threshold=options.score, longest=options.size, batch_size=options.batch_size
    )
    what = "faces" if bundle.class_names == ("face",) else "objects"
    rows, count = [], 0
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        names = dict(zip(paths, drawing_names(paths), strict=True))
        for some in decoded(paths):
            images = {path: image for path, image in some.items() if not isinstance(image, str)}
            of_path = dict(zip(images, detect(list(images.values())), strict=True))
            for path, image in some.items():
                row = {"photo": name_text(path)}
                rows.append(row)
                if path not in images:
                    row["error"] = image
                    sys.stderr.write(one_line(f"skipped {path}: {image}") + "\n")
                    continue
                found = of_path[path]
                objects = _rows(found, bundle.class_names)
                row |= {"width": image.shape[1], "height": image.shape[0], what: objects}
                count += len(objects)
                if out is not None and not options.no_drawings:
                    drawn = draw_boxes(
                        image,
                        found.boxes,
                        scores=found.scores,
                        labels=_labels(found, bundle.class_names),
                        classes=found.classes,
                        landmarks=found.landmarks,
                    )
                    write_atomically(out / names[path], encode_image(drawn))
                    row["drawing"] = names[path]
        unread = sum("error" in row for row in rows)
        if unread == len(paths):
            raise UserError(f"photo: none of {len(paths)} can be read")
        written = {"detector": name_text(bundle.source), "score": options.score, "photographs": rows}
        document = json.dumps(written, indent=2) + "\n"
        if out is not None:
            write_atomically(out / "detections.json", document)
    except OSError as error:
        raise UserError(f"out: cannot write to {out}: {error.strerror or error}") from None
    if options.json:
        sys.stdout.write(document)
        return
    skipped = f", {unread} skipped" if unread else ""
    say(f"{count} {what} in {len(paths) - unread} photographs{skipped}: {out / 'detections.json'}")


if __name__ == "__main__":
    main(sys.argv[1:])
