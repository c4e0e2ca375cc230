"""WIDER FACE: photographs with many faces (arXiv:1511.06523), its annotations and its lists of easy, medium and hard faces."""

import pathlib
from collections.abc import Sequence

import numpy as np

from jaxface.data.sources.annotated import (
    AnnotatedImage,
    AnnotatedSource,
    Surplus,
    inside,
    numbers,
    read_lines,
    unknown_landmarks,
)
from jaxface.data.sources.matlab import read_mat
from jaxface.errors import UserError
from jaxface.paths import name_text, user_path

SUBSETS = ("easy", "medium", "hard")
_FLAGS = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")


def _files(lines: Sequence[tuple[int, str]], path: pathlib.Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(name, [n, 4] x y w h, [n, 6] flags) of each image of `wider_face_*_bbx_gt.txt`."""

    def refuse(number: int, wanted: str):
        return UserError(
            f"annotations: needs WIDER FACE's text, {name_text(path)} has no {wanted} in line {number}"
        )

    images, at = [], 0
    while at < len(lines):
        number, name = lines[at]
        if not name.lower().endswith((".jpg", ".jpeg", ".png")):
            raise refuse(number, "image")
        if at + 1 >= len(lines) or not lines[at + 1][1].isdecimal():
            raise refuse(number + 1, "number of faces")
        count = int(lines[at + 1][1])
        at += 2
        rows = []
        for number, line in lines[at : at + count]:
            row = numbers(line.split(), 10)
            if row is None:
                raise refuse(number, "face of 10 numbers")
            rows.append(row)
        if len(rows) < count:
            raise refuse(lines[-1][0] + 1, f"face {len(rows) + 1} of {count}")
        at += count
        # An image without a face has a row of zeros nevertheless.
        if not count and at < len(lines) and numbers(lines[at][1].split(), 10) is not None:
            at += 1
        table = np.array(rows, np.float64).reshape(-1, 10)
        images.append((name, table[:, :4], table[:, 4:]))
    return images


def _landmark_files(
    lines: Sequence[tuple[int, str]], path: pathlib.Path
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(name, [n, 4] x y w h, [n, 5, 2] points or NaN) of each image of RetinaFace's `label.txt`."""
    images: list[tuple[str, list, list]] = []
    for number, line in lines:
        if line.startswith("#"):
            images.append((line[1:].strip(), [], []))
            continue
        row = numbers(line.split(), 4)
        if row is None or not images:
            raise UserError(
                f"annotations: needs RetinaFace's text, {name_text(path)} has no face in line {number}"
            )
        points = numbers(line.split()[4:], 15)
        known = points is not None and min(points[0::3] + points[1::3]) >= 0
        images[-1][1].append(row)
        images[-1][2].append(np.array(points).reshape(5, 3)[:, :2] if known else unknown_landmarks(1)[0])
    return [
        (name, np.array(boxes, np.float64).reshape(-1, 4), np.array(points, np.float64).reshape(-1, 5, 2))
        for name, boxes, points in images
    ]


def kept_faces(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The faces that a list keeps, `wider_{easy,medium,hard}_val.mat`: `<event>/<image>` without suffix -> numbers from 0.

    Raises:
      UserError: no such file, or no such list in it.
    """
    table = read_mat("lists", path, ("event_list", "file_list", "gt_list"))
    try:
        kept = {}
        for event, files, lists in zip(
            table["event_list"][:, 0], table["file_list"][:, 0], table["gt_list"][:, 0], strict=True
        ):
            for name, rows in zip(files[:, 0], lists[:, 0], strict=True):
                kept[f"{event[0]}/{name[0]}"] = np.asarray(rows, np.int64).reshape(-1) - 1
        return kept
    except Exception as error:  # whatever a list of another shape leads to
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UserError(f"lists: needs a WIDER FACE list, {name_text(path)} is none: {reason}") from error


def wider_face(
    images: str | pathlib.Path,
    annotations: str | pathlib.Path,
    *,
    image_size: int,
    max_objects: int = 128,
    aspects: Sequence[float] = (1.0,),
    surplus: Surplus = "largest",
    lists: str | pathlib.Path | None = None,
) -> AnnotatedSource:
    """Opens one part of WIDER FACE.

    Faces that are annotated as invalid are regions to ignore. `ground_truth` has the flags (`blur` 0..2, `expression`,
    `illumination`, `invalid`, `occlusion` 0..2, `pose`) [n] and, with `lists`, `easy`, `medium` and `hard` [n] bool.

    Args:
      images: folder with the folders of the events, such as `WIDER_train/images`.
      annotations: `wider_face_*_bbx_gt.txt`, or RetinaFace's `label.txt`, which has five landmarks of many faces and no flags.
      image_size, max_objects, aspects, surplus: see `AnnotatedSource`.
      lists: folder with `wider_{easy,medium,hard}_val.mat`.

    Raises:
      UserError: a file that is missing or of another format, or an image without faces in a list.
    """
    folder, path = user_path("images", images), user_path("annotations", annotations)
    lines = list(read_lines("annotations", path))
    if not lines:
        raise UserError(f"annotations: needs WIDER FACE's text, {name_text(path)} is empty")
    with_landmarks = lines[0][1].startswith("#")
    kept = {}
    if lists is not None:
        root = user_path("lists", lists)
        kept = {subset: kept_faces(root / f"wider_{subset}_val.mat") for subset in SUBSETS}
    result = []
    for name, table, more in _landmark_files(lines, path) if with_landmarks else _files(lines, path):
        file = inside(folder, name)
        if file is None:
            raise UserError(f"annotations: needs images inside of {name_text(folder)}, got {name!r}")
        x, y, width, height = table.T
        extras = {} if with_landmarks else dict(zip(_FLAGS, more.T.astype(np.int32), strict=True))
        for subset, faces in kept.items():
            rows = faces.get(name.rpartition(".")[0], np.zeros(0, np.int64))
            if rows.size and not 0 <= rows.min() <= rows.max() < len(table):
                raise UserError(
                    f"lists: needs faces of {name}, which has {len(table)}; {subset} keeps number {rows.max() + 1}"
                )
            extras[subset] = np.isin(np.arange(len(table)), rows)
        result.append(
            AnnotatedImage(
                name,
                file,
                np.stack([y, x, y + height, x + width], -1),
                ignored=None if with_landmarks else more[:, _FLAGS.index("invalid")] > 0,
                landmarks=more if with_landmarks else None,
                extras=extras,
            )
        )
    return AnnotatedSource(
        result,
        ("face",),
        image_size=image_size,
        max_objects=max_objects,
        aspects=aspects,
        surplus=surplus,
        what=name_text(path),
    )
