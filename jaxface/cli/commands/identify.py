"""Says who is in photographs, of the people in a gallery: names with their similarity, or somebody unknown.

    jaxface identify --gallery people.gallery PHOTO… --bundle RECOGNIZER --detector DETECTOR
    jaxface identify --gallery people.gallery --camera --bundle RECOGNIZER --detector DETECTOR      until Ctrl-C, or q

A face is of the most similar person where their cosine is above the threshold: that of the bundle, or --threshold. A bundle's is
for two faces; with a gallery of N people a stranger is taken for one of them up to N times as often.
"""

import json
import pathlib
import sys
import time
from collections.abc import Iterator

from jaxface.cli.console import command_parser, exit_on_user_error, one_line, say, use_compilation_cache
from jaxface.cli.photos import (
    drawing_names,
    face_row,
    listed_photographs,
    open_landmarks,
    open_pipeline,
    photograph_arguments,
    read_photographs,
)
from jaxface.errors import UserError
from jaxface.paths import local_path, name_text

_UNKNOWN = "unknown"


def _arguments(arguments: list[str]):
    parser = command_parser("identify", __doc__)
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="image, or folder of images")
    parser.add_argument("--gallery", required=True, metavar="FILE", help="that jaxface enroll made")
    parser.add_argument("--k", type=int, default=3, help="people that are named for each face; default 3")
    parser.add_argument("--threshold", type=float, help="cosine above which it is that person, -1 to 1")
    parser.add_argument("--drawings", metavar="DIR", help="folder for copies with the names on the faces")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument(
        "--camera", type=int, nargs="?", const=0, metavar="N", help="number of a camera; default 0"
    )
    parser.add_argument("--frames", type=int, default=0, help="of a camera: stop after so many; 0 never does")
    photograph_arguments(parser)
    options = parser.parse_args(arguments)
    if bool(options.photos) == (options.camera is not None):
        raise UserError("photo: needs photographs or --camera, one of both")
    if options.frames and options.camera is None:
        raise UserError("frames: needs --camera, whose they are")
    if options.camera is not None and options.landmarks is not None:
        raise UserError("landmarks: needs photographs, of which they are; a camera needs --detector")
    if options.frames < 0:
        raise UserError(f"frames: needs an integer from 0, got {options.frames}")
    return options


class _Identifier:
    """A gallery with its numbers: faces in, what is said of them out."""

    def __init__(self, gallery, k: int, threshold: float):
        self.gallery, self.k, self.threshold = gallery, k, threshold

    def rows(self, faces) -> list[dict]:
        """One JSON object for each face."""
        if not len(faces.boxes):
            return []
        matches = self.gallery.search(faces.embeddings, self.k, self.threshold)
        rows = []
        for i, identity in enumerate(matches.identities):
            similar = [
                {"name": name, "similarity": round(float(similarity), 4)}
                for name, similarity in zip(matches.names[i], matches.scores[i], strict=True)
            ]
            rows.append({"identity": identity, "matches": similar, **face_row(faces, i)})
        return rows


def _label(row: dict) -> str:
    similarity = row["matches"][0]["similarity"]
    return _UNKNOWN if row["identity"] is None else f"{row['identity']} {similarity:.2f}"


def _sentence(row: dict) -> str:
    first, *others = (f"{match['name']} {match['similarity']:.2f}" for match in row["matches"])
    if row["identity"] is None:
        return f"{_UNKNOWN} (nearest {', '.join([first, *others])})"
    return first + (f" (then {', '.join(others)})" if others else "")


def _drawn(image, faces, rows: list[dict]):
    from jaxface.data.transforms.drawing import draw_boxes

    known = [row["identity"] is not None for row in rows]
    return draw_boxes(
        image, faces.boxes, labels=[_label(row) for row in rows], classes=[3 if sure else 0 for sure in known]
    )


def _write_drawing(folder: pathlib.Path, name: str, drawing) -> None:
    from jaxface.data.sources.images import encode_image
    from jaxface.training import write_atomically

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, encode_image(drawing))
    except OSError as error:
        raise UserError(f"drawings: cannot write to {folder}: {error.strerror or error}") from None


@exit_on_user_error
def main(arguments: list[str]) -> None:
    """Detects, embeds, searches and says who it is."""
    options = _arguments(arguments)
    paths = listed_photographs(options.photos)
    drawings = None if options.drawings is None else local_path("drawings", options.drawings)
    use_compilation_cache()
    from jaxface.checks import AtLeast, Cosine, check_number
    from jaxface.inference import Gallery

    check_number("k", options.k, AtLeast(1))
    if options.threshold is not None:
        check_number("threshold", options.threshold, Cosine)
    gallery = Gallery.load(options.gallery)
    if not len(gallery):
        raise UserError(f"gallery: nobody is in {options.gallery}; jaxface enroll puts people into it")
    pipeline = open_pipeline(options)
    gallery.check_network(pipeline.recognizer.identity)
    threshold = {"value": options.threshold}
    if options.threshold is None:
        if (recommended := pipeline.recognizer.threshold) is None:
            raise UserError("threshold: the bundle recommends none; needs --threshold, a cosine from -1 to 1")
        threshold = {"value": recommended.value, "far": recommended.far, "set": recommended.set}
    identifier = _Identifier(gallery, options.k, threshold["value"])
    document = {
        "gallery": options.gallery,
        "bundle": name_text(pipeline.recognizer.source),
        "network": gallery.identity,
        "people": len(gallery.people),
        "threshold": threshold,
    }
    if options.camera is not None:
        document |= {"camera": options.camera, "changes": _watch(options, pipeline, identifier, drawings)}
    else:
        document["photographs"] = _look(options, paths, pipeline, identifier, drawings)
    if options.json:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")


def _look(options, paths, pipeline, identifier: _Identifier, drawings) -> list[dict]:
    """Who is in photographs."""
    names = dict(zip(paths, drawing_names(paths), strict=True))
    photographs = []
    for path, image, faces in read_photographs(paths, pipeline, open_landmarks(options)):
        row = {"photo": name_text(path)}
        photographs.append(row)
        if image is None:
            row["error"] = faces
            sys.stderr.write(one_line(f"skipped {path}: {faces}") + "\n")
            continue
        row |= {"width": image.shape[1], "height": image.shape[0], "faces": identifier.rows(faces)}
        if drawings is not None:
            _write_drawing(drawings, names[path], _drawn(image, faces, row["faces"]))
            row["drawing"] = names[path]
        if not options.json:
            for face in row["faces"]:
                say(f"{path}: {_sentence(face)}")
            if not row["faces"]:
                say(f"{path}: no face")
    if all("error" in row for row in photographs):
        raise UserError(f"photo: none of {len(paths)} can be read")
    return photographs


def _watch(options, pipeline, identifier: _Identifier, drawings) -> list[dict]:
    """Who is before a camera: a row whenever it is somebody else than in the frame before."""
    import cv2

    capture = cv2.VideoCapture(options.camera)
    if not capture.isOpened():
        capture.release()
        raise UserError(f"camera: no camera {options.camera} that OpenCV can open; --camera N takes another")
    changes: list[dict] = []
    window = _window(cv2)
    try:
        for frame, seconds, image in _frames(capture, options):
            (faces,) = pipeline([image])
            rows = identifier.rows(faces)
            if not changes or _people(rows) != _people(changes[-1]["faces"]):
                changes.append({"frame": frame, "seconds": round(seconds, 2), "faces": rows})
                if not options.json:
                    say(f"{seconds:.1f} s: {', '.join(map(_label, rows)) or 'nobody'}")
                if drawings is not None:
                    changes[-1]["drawing"] = f"frame-{frame:06d}.png"
                    _write_drawing(drawings, changes[-1]["drawing"], _drawn(image, faces, rows))
            if window:
                cv2.imshow("jaxface", _drawn(image, faces, rows)[..., ::-1])
                if cv2.waitKey(1) & 0xFF in (ord("q"), 27):
                    break
    except KeyboardInterrupt:  # how a person ends it
        pass
    finally:
        capture.release()
        if window:
            cv2.destroyAllWindows()
    return changes


def _frames(capture, options) -> Iterator[tuple]:
    """(number, seconds since the first, RGB image) of each frame of a camera."""
    begun, frame = time.monotonic(), 0
    while not options.frames or frame < options.frames:
        there, pixels = capture.read()
        if not there:
            if not frame:
                raise UserError(f"camera: camera {options.camera} gives no picture")
            return
        yield frame, time.monotonic() - begun, pixels[..., ::-1].copy()
        frame += 1


def _people(rows: list[dict]) -> list[str]:
    return sorted(row["identity"] or _UNKNOWN for row in rows)


def _window(cv2) -> bool:
    """Whether this OpenCV can show pictures; the one without windows raises."""
    try:
        cv2.namedWindow("jaxface")
    except cv2.error:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
