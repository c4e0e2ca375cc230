"""What commands on photographs share: which files are meant, the networks that they go through, names of drawings."""

import argparse
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

from jaxface.cli.console import one_line
from jaxface.cli.landmarks import Landmarks
from jaxface.errors import UserError
from jaxface.paths import local_path, name_text

_AT_ONCE = 32  # photographs in memory
_POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")


def photograph_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say which networks photographs go through, for `open_pipeline`."""
    parser.add_argument(
        "--bundle",
        required=True,
        metavar="RECOGNIZER",
        help="folder of a bundle, work directory of a run, or published weights",
    )
    faces = parser.add_mutually_exclusive_group()
    faces.add_argument("--detector", metavar="DETECTOR", help="the same of a detector, which finds the faces")
    faces.add_argument(
        "--landmarks",
        metavar="FILE",
        help="JSON or CSV with the five points of every face, instead of a detector's",
    )
    faces.add_argument(
        "--aligned", action="store_true", help="every image is one aligned face; nothing is detected"
    )
    size_arguments(parser, batch_size=16)


def size_arguments(parser: argparse.ArgumentParser, *, batch_size: int) -> None:
    """The flags of a detector in photographs: smallest score, size and batch."""
    parser.add_argument(
        "--score", type=float, default=0.8, help="smallest score of a face or an object, 0 to 1; default 0.8"
    )
    parser.add_argument(
        "--size",
        type=int,
        default=640,
        help="longer side that photographs are shrunk to, pixels; default 640",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=batch_size,
        help=f"photographs that are computed together; default {batch_size}",
    )


def open_pipeline(options: argparse.Namespace):
    """The pipeline of the flags of `photograph_arguments`.

    Raises:
      UserError: neither a detector nor landmarks nor `--aligned`, or networks that cannot be opened.
    """
    if options.detector is None and options.landmarks is None and not options.aligned:
        raise UserError(
            "detector: needs --detector DETECTOR, --landmarks FILE, or --aligned where every image is one aligned face"
        )
    from jaxface.inference import Pipeline

    return Pipeline.load(
        options.bundle,
        options.detector,
        threshold=options.score,
        longest=options.size,
        batch_size=options.batch_size,
    )


def listed_photographs(given: Sequence[str]) -> list[pathlib.Path]:
    """The files named, and those of the folders named, each once.

    Raises:
      UserError: a folder without an image.
    """
    paths: dict[pathlib.Path, None] = {}
    for text in given:
        path = local_path("photo", text)
        if path.is_dir():
            from jaxface.data.sources.images import SUFFIXES

            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise UserError(f"photo: no image in the folder {path}")
            paths |= dict.fromkeys(inside)
        else:
            paths[path] = None
    return list(paths)


def reason(path: pathlib.Path, error: Exception) -> str:
    """Why a photograph cannot be read, in words for people."""
    if not path.exists():
        return "no such file"
    if "cannot identify image file" in str(error):
        return "it is no JPEG, PNG, PPM, BMP or WebP image"
    return str(error)


def drawing_names(paths: Sequence[pathlib.Path]) -> list[str]:
    """A file name for the drawing of each photograph; those that would have one name are numbered."""
    names: dict[str, None] = {}
    for path in paths:
        stem = re.sub(r"[^\w.-]", "_", name_text(path.stem)) or "photo"
        tries = (f"{stem}{'' if n == 1 else f'-{n}'}.png" for n in range(1, len(paths) + 2))
        names[next(name for name in tries if name not in names)] = None
    return list(names)


def open_landmarks(options: argparse.Namespace) -> Landmarks | None:
    """The landmarks of `--landmarks`; None without it."""
    return None if options.landmarks is None else Landmarks(options.landmarks)


def decoded(paths: Sequence[pathlib.Path]) -> Iterator[dict]:
    """{path: image, or the text of why it cannot be read} of as many photographs at a time as may be in memory."""
    from jaxface.data.sources.images import CorruptImage, decode_image

    for start in range(0, len(paths), _AT_ONCE):
        some = {}
        for path in paths[start : start + _AT_ONCE]:
            try:
                some[path] = decode_image(path)
            except CorruptImage as error:
                some[path] = reason(path, error)
        yield some


def read_photographs(
    paths: Sequence[pathlib.Path], pipeline, landmarks: Landmarks | None = None
) -> Iterator[tuple]:
    """(path, image, faces) of each photograph in turn; (path, None, why) of one that cannot be read.

    What makes the embeddings of a photograph less accurate is said on stderr.

    Raises:
      UserError: a photograph whose landmarks are not among those given, or are not in it.
    """
    for some in decoded(paths):
        images = {path: image for path, image in some.items() if not isinstance(image, str)}
        given = (
            [landmarks.of(path, *image.shape[:2]) for path, image in images.items()] if landmarks else None
        )
        found = pipeline(list(images.values()), *([] if given is None else [given])) if images else []
        faces = dict(zip(images, found, strict=True))
        for path, image in images.items():
            for note in pipeline.notes(image, faces[path]):
                sys.stderr.write(one_line(f"{path}: {note}") + "\n")
        for path, image in some.items():
            yield (path, image, faces[path]) if path in images else (path, None, image)


def face_row(faces, number: int) -> dict:
    """A face of a photograph, for JSON: its score, its box and its points."""
    y0, x0, y1, x1 = (round(edge, 2) for edge in faces.boxes[number].tolist())
    row = {
        "score": round(float(faces.scores[number]), 4),
        "box": {"left": x0, "top": y0, "right": x1, "bottom": y1},
    }
    if faces.landmarks is not None:
        points = [[round(x, 2), round(y, 2)] for x, y in faces.landmarks[number].tolist()]
        row["points"] = dict(zip(_POINTS, points, strict=True))
    return row
