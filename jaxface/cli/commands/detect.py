"""Finds faces in photographs: boxes, five points and scores as JSON, drawn on copies.

    jaxface detect PHOTO… --detector DETECTOR --out DIR     detections.json and drawings in a folder
    jaxface detect PHOTO… --detector DETECTOR --json        one JSON document on the terminal, and nothing else

DETECTOR is the work directory of a run that has trained one, the folder of a bundle, or published RetinaFace weights. A
photograph may be a folder of them. Coordinates in the JSON are pixels of the upright photograph, the origin at its top left.
"""

import argparse
import json
import sys

from jaxface.cli.console import Arguments, exit_on_user_error, one_line, say, use_compilation_cache
from jaxface.cli.photos import POINTS, drawing_names, listed_photographs, reason
from jaxface.errors import UserError
from jaxface.paths import local_path, name_text

_AT_ONCE = 32  # photographs in memory


def _arguments(arguments: list[str]):
    parser = Arguments(
        prog="jaxface detect",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="image, or folder of images")
    parser.add_argument(
        "--detector", required=True, help="work directory of a run, folder of a bundle, or published weights"
    )
    parser.add_argument("--best", action="store_true", help="of a run: the best checkpoint, not the newest")
    parser.add_argument("--out", metavar="DIR", help="folder for both; detections unless --json is given")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--score", type=float, default=0.8, help="smallest score, 0 to 1; default 0.8")
    parser.add_argument(
        "--size",
        type=int,
        default=640,
        help="longer side that photographs are shrunk to, pixels; default 640",
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, help="images that are computed together; default 8"
    )
    parser.add_argument("--no-drawings", action="store_true", help="write the JSON alone")
    options = parser.parse_args(arguments)
    if options.out is None and not options.json:
        options.out = "detections"
    return options


def _faces(detections, class_names: tuple[str, ...]) -> list[dict]:
    faces = []
    for i, box in enumerate(detections.boxes.tolist()):
        y0, x0, y1, x1 = (round(edge, 2) for edge in box)
        face = {
            "class": class_names[int(detections.classes[i])],
            "score": round(float(detections.scores[i]), 4),
            "box": {"left": x0, "top": y0, "right": x1, "bottom": y1},
        }
        if detections.landmarks is not None:
            points = [[round(x, 2), round(y, 2)] for x, y in detections.landmarks[i].tolist()]
            face["points"] = dict(zip(POINTS, points, strict=True))
        faces.append(face)
    return faces


@exit_on_user_error
def main(arguments: list[str]) -> None:
    """Detects, writes and says how many."""
    options = _arguments(arguments)
    paths = listed_photographs(options.photos)
    out = None if options.out is None else local_path("out", options.out)
    use_compilation_cache()
    from jaxface import inference
    from jaxface.checks import Fraction, check_number
    from jaxface.data.sources.images import CorruptImage, decode_image, encode_image
    from jaxface.data.transforms.drawing import draw_boxes
    from jaxface.training import write_atomically

    check_number("score", options.score, Fraction)
    bundle = inference.open_detector(options.detector, best=options.best)
    detect = inference.PhotoDetector(
        bundle, threshold=options.score, longest=options.size, batch_size=options.batch_size
    )
    rows, count = [], 0
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        names = drawing_names(paths)
        for start in range(0, len(paths), _AT_ONCE):
            images, readable = [], []
            for number in range(start, min(start + _AT_ONCE, len(paths))):
                rows.append({"photo": name_text(paths[number])})
                try:
                    images.append(decode_image(paths[number]))
                    readable.append(number)
                except CorruptImage as error:
                    rows[number]["error"] = reason(paths[number], error)
                    sys.stderr.write(one_line(f"skipped {paths[number]}: {rows[number]['error']}") + "\n")
            for number, image, found in zip(readable, images, detect(images), strict=True):
                faces = _faces(found, bundle.class_names)
                rows[number] |= {"width": image.shape[1], "height": image.shape[0], "faces": faces}
                count += len(faces)
                if out is not None and not options.no_drawings:
                    drawn = draw_boxes(
                        image,
                        found.boxes,
                        scores=found.scores,
                        classes=found.classes,
                        landmarks=found.landmarks,
                    )
                    write_atomically(out / names[number], encode_image(drawn))
                    rows[number]["drawing"] = names[number]
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
    say(f"{count} faces in {len(paths) - unread} photographs{skipped}: {out / 'detections.json'}")


if __name__ == "__main__":
    main(sys.argv[1:])
