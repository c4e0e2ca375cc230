"""FDDB: faces as ellipses, in ten folds (UMass technical report UM-CS-2010-009)."""

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
)
from jaxface.errors import UserError
from jaxface.paths import name_text, user_path

FOLDS = tuple(range(1, 11))


def ellipse_boxes(ellipses: np.ndarray) -> np.ndarray:
    """The boxes that bound ellipses.

        half width = √(a² cos² θ + b² sin² θ),        half height = √(a² sin² θ + b² cos² θ)

    Args:
      ellipses: [n, 5] radii a and b, angle θ of the first in radians, center x and y.

    Returns:
      [n, 4] (y0, x0, y1, x1).
    """
    a, b, angle, x, y = np.asarray(ellipses, np.float64).reshape(-1, 5).T
    with np.errstate(invalid="ignore", over="ignore"):
        half_width = np.hypot(a * np.cos(angle), b * np.sin(angle))
        half_height = np.hypot(a * np.sin(angle), b * np.cos(angle))
    return np.stack([y - half_height, x - half_width, y + half_height, x + half_width], -1)


def _fold(path: pathlib.Path, images: pathlib.Path) -> list[AnnotatedImage]:
    lines = list(read_lines("root", path))

    def refuse(number: int, wanted: str):
        return UserError(f"root: needs FDDB's ellipses, {name_text(path)} has no {wanted} in line {number}")

    result, at = [], 0
    while at < len(lines):
        number, name = lines[at]
        file = inside(images, f"{name}.jpg")
        if file is None or " " in name:
            raise refuse(number, "image")
        if at + 1 >= len(lines) or not lines[at + 1][1].isdecimal():
            raise refuse(number + 1, "number of faces")
        count = int(lines[at + 1][1])
        rows = [(number, numbers(line.split(), 5)) for number, line in lines[at + 2 : at + 2 + count]]
        for number, row in rows:
            if row is None:
                raise refuse(number, "ellipse of 5 numbers")
        if len(rows) < count:
            raise refuse(lines[-1][0] + 1, f"ellipse {len(rows) + 1} of {count}")
        at += 2 + count
        ellipses = np.array([row for _, row in rows], np.float64).reshape(-1, 5)
        # A radius below 0 has no box, although its square has.
        boxes = np.where(
            (ellipses[:, :2] > 0).all(1)[:, None],
            ellipse_boxes(ellipses),
            np.where(np.isfinite(ellipses).all(1)[:, None], 0.0, np.nan),
        )
        result.append(AnnotatedImage(name, file, boxes, extras={"ellipses": ellipses}))
    return result


def fddb(
    root: str | pathlib.Path,
    *,
    image_size: int,
    folds: Sequence[int] = FOLDS,
    max_objects: int = 64,
    aspects: Sequence[float] = (1.0,),
    surplus: Surplus = "largest",
) -> AnnotatedSource:
    """Opens some folds of FDDB. A record has the boxes that bound the ellipses, which `ground_truth` has as `ellipses` [n, 5].

    Args:
      root: folder with `FDDB-folds/FDDB-fold-01-ellipseList.txt` … and the images `originalPics/2002/…`, or with the contents of
        either.
      folds: numbers from 1 to 10.
      image_size, max_objects, aspects, surplus: see `AnnotatedSource`.

    Raises:
      UserError: a file that is missing or of another format, or a fold that there is not.
    """
    root = user_path("root", root)
    unknown = [fold for fold in folds if fold not in FOLDS]
    if unknown or not folds:
        raise UserError(f"folds: needs numbers from 1 to 10, got {unknown or 'none'}")
    lists = root / "FDDB-folds" if (root / "FDDB-folds").is_dir() else root
    images = root / "originalPics" if (root / "originalPics").is_dir() else root
    annotated = [
        image for fold in folds for image in _fold(lists / f"FDDB-fold-{fold:02d}-ellipseList.txt", images)
    ]
    return AnnotatedSource(
        annotated,
        ("face",),
        image_size=image_size,
        max_objects=max_objects,
        aspects=aspects,
        surplus=surplus,
        what="FDDB",
    )
