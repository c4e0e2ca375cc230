"""Writes the embeddings of every face of photographs, as NumPy arrays or JSON.

    jaxface embed PHOTOS… --bundle RECOGNIZER --detector DETECTOR --out embeddings.npz      or embeddings.json
    jaxface embed PHOTOS… --bundle RECOGNIZER --aligned --json                              JSON on the terminal alone

A photograph may be a folder of them. The arrays: photo [N], names; face [N], its number in the photograph; box [N, 4] (top, left,
bottom, right); score [N]; points [N, 5, 2] (x, y), NaN of aligned faces; embedding [N, D] of length 1; and network, the identity
of what made them: embeddings of two networks cannot be compared.
"""

import json
import pathlib
import sys

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

_SUFFIXES = (".npz", ".json")


def _arguments(arguments: list[str]):
    parser = command_parser("embed", __doc__)
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="image, or folder of images")
    photograph_arguments(parser)
    parser.add_argument("--out", metavar="FILE", help="embeddings.npz unless given; .json writes JSON")
    parser.add_argument("--drawings", metavar="DIR", help="folder for copies with the faces numbered")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    options = parser.parse_args(arguments)
    if options.out is None and not options.json:
        options.out = "embeddings.npz"
    if options.out is not None and not options.out.endswith(_SUFFIXES):
        raise UserError(f"out: needs a file that ends in {' or '.join(_SUFFIXES)}, got {options.out!r}")
    return options


@exit_on_user_error
def main(arguments: list[str]) -> None:
    """Detects, embeds, writes and says how many."""
    options = _arguments(arguments)
    paths = listed_photographs(options.photos)
    out = None if options.out is None else local_path("out", options.out)
    drawings = None if options.drawings is None else local_path("drawings", options.drawings)
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"out: needs a folder that exists, got {out}")
    use_compilation_cache()
    pipeline = open_pipeline(options)
    rows, numbers, found = [], [], []
    names = dict(zip(paths, drawing_names(paths), strict=True))
    for path, image, faces in read_photographs(paths, pipeline, open_landmarks(options)):
        row = {"photo": name_text(path)}
        rows.append(row)
        if image is None:
            row["error"] = faces
            sys.stderr.write(one_line(f"skipped {path}: {faces}") + "\n")
            continue
        row |= {"width": image.shape[1], "height": image.shape[0]}
        row["faces"] = [face_row(faces, i) for i in range(len(faces.boxes))]
        numbers += [(name_text(path), i) for i in range(len(faces.boxes))]
        found.append(faces)
        if drawings is not None:
            _draw(drawings, names[path], image, faces)
            row["drawing"] = names[path]
    unread = sum("error" in row for row in rows)
    if unread == len(paths):
        raise UserError(f"photo: none of {len(paths)} can be read")
    document = {
        "bundle": name_text(pipeline.recognizer.source),
        "network": pipeline.recognizer.identity,
        "photographs": rows,
    }
    if options.json or out.suffix == ".json":
        for row, faces in zip((row for row in rows if "error" not in row), found, strict=True):
            for face, embedding in zip(row["faces"], faces.embeddings.tolist(), strict=True):
                face["embedding"] = [round(x, 7) for x in embedding]
    if out is not None:
        _write(out, document, numbers, found, pipeline.recognizer)
    if options.json:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        skipped = f", {unread} skipped" if unread else ""
        say(f"{len(numbers)} faces in {len(paths) - unread} photographs{skipped}: {out}")


def _write(out: pathlib.Path, document: dict, numbers: list, found: list, recognizer) -> None:
    """All faces to a file, which is written whole or not at all."""
    import numpy as np

    from jaxface.interop.files import replacing
    from jaxface.training import write_atomically

    if out.suffix == ".json":
        try:
            write_atomically(out, json.dumps(document, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"out: cannot write {out}: {error.strerror or error}") from None
        return

    def points(faces):
        missing = np.full((len(faces.boxes), 5, 2), np.nan, np.float32)
        return missing if faces.landmarks is None else faces.landmarks

    arrays = {
        "photo": np.array([photo for photo, _ in numbers], str),
        "face": np.array([face for _, face in numbers], np.int32),
        "box": np.concatenate([faces.boxes for faces in found]),
        "score": np.concatenate([faces.scores for faces in found]),
        "points": np.concatenate([points(faces) for faces in found]),
        "embedding": np.concatenate([faces.embeddings for faces in found]),
        "network": np.array(recognizer.identity),
    }
    with replacing(out) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _draw(folder: pathlib.Path, name: str, image, faces) -> None:
    """A copy of a photograph with the faces on it, by their numbers."""
    from jaxface.data.sources.images import encode_image
    from jaxface.data.transforms.drawing import draw_boxes
    from jaxface.training import write_atomically

    labels = [str(i) for i in range(len(faces.boxes))]
    drawn = draw_boxes(image, faces.boxes, labels=labels, landmarks=faces.landmarks)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, encode_image(drawn))
    except OSError as error:
        raise UserError(f"drawings: cannot write to {folder}: {error.strerror or error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
