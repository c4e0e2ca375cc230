"""Landmarks of photographs from a file, instead of a detector's."""

import csv
import io
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from jaxface.errors import UserError
from jaxface.paths import local_path, name_text

_LARGEST = 1 << 28  # bytes of a file
Points = list[list[float]]  # five (x, y)


class Landmarks:
    """The five points of every face of photographs, by the photographs' paths or names.

    A JSON file holds {photograph: five [x, y], or a list of such for several faces}, or is the `detections.json` that
    `jaxface detect` writes. A CSV file has a face on each line, with or without a header:

        photo,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5

    The points are eyes, nose and corners of the mouth, left before right as seen, in pixels of the upright photograph.

    Args:
      file: the path; `.csv` is read as CSV, any other as JSON.

    Raises:
      UserError: a file that cannot be read, or a face that has not five finite and different points.
    """

    def __init__(self, file: str | os.PathLike):
        self.path = local_path("landmarks", file)
        try:
            if self.path.stat().st_size > _LARGEST:
                raise UserError(f"landmarks: {self.path} needs at most {_LARGEST} bytes")
            text = self.path.read_text("utf-8-sig")
        except (OSError, ValueError) as error:
            raise UserError(f"landmarks: {self.path} cannot be read ({_reason(error)})") from None
        self._faces: dict[str, list[Points]] = {}
        for photo, face in self._rows(text):
            faces = self._faces.setdefault(photo, [])
            if face is not None:
                faces.append(self._checked(photo, face))

    def of(self, photo: pathlib.Path, height: int, width: int):
        """[N, 5, 2] float32 of a photograph of that size.

        Raises:
          UserError: the file does not have the photograph, or has points outside of it.
        """
        import numpy as np

        names = (str(photo), name_text(photo), photo.as_posix(), photo.name)
        faces = next((self._faces[name] for name in names if name in self._faces), None)
        if faces is None:
            raise UserError(f"landmarks: {self.path} has none of {name_text(photo)}")
        points = np.array(faces, np.float32).reshape(-1, 5, 2)
        if (
            (points < -0.5 * np.float32([width, height])) | (points > 1.5 * np.float32([width, height]))
        ).any():
            raise UserError(
                f"landmarks: those of {name_text(photo)} in {self.path} lie outside of its {width} x {height} pixels"
            )
        return points

    def _rows(self, text: str) -> Iterator[tuple[str, Any]]:
        """(photograph, points from outside) of each face; None as points of a photograph without any."""
        if self.path.suffix.lower() == ".csv":
            yield from self._csv_rows(text)
            return
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"landmarks: {self.path} cannot be read as JSON ({_reason(error)})") from None
        if not isinstance(document, dict):
            raise UserError(f"landmarks: {self.path} needs a JSON object of photographs")
        if isinstance(document.get("photographs"), list):
            yield from self._detections(document["photographs"])
            return
        for photo, value in document.items():
            several = isinstance(value, list) and value and isinstance(value[0], list) and _is_face(value[0])
            faces = value if several or value == [] else [value]
            yield photo, None
            for face in faces:
                yield photo, face

    def _csv_rows(self, text: str) -> Iterator[tuple[str, Any]]:
        for number, row in enumerate(csv.reader(io.StringIO(text)), start=1):
            if not row or (number == 1 and row[-1].strip().lower() in ("y5", "right_mouth_y")):
                continue
            if len(row) != 11:
                raise UserError(
                    f"landmarks: {self.path} needs a photograph and ten numbers on line {number}, got {len(row)} fields"
                )
            try:
                numbers = [float(field) for field in row[1:]]
            except ValueError:
                raise UserError(f"landmarks: {self.path} needs numbers on line {number}") from None
            yield row[0], list(zip(numbers[::2], numbers[1::2], strict=True))

    def _detections(self, rows: list) -> Iterator[tuple[str, Any]]:
        for row in rows:
            if not isinstance(row, dict) or not isinstance(row.get("photo"), str):
                raise UserError(f"landmarks: {self.path} needs a photo in each of its photographs")
            yield row["photo"], None
            faces = row.get("faces") or []
            for face in faces if isinstance(faces, list) else [None]:
                points = face.get("points") if isinstance(face, dict) else None
                yield row["photo"], list(points.values()) if isinstance(points, dict) else "none"

    def _checked(self, photo: str, face: Any) -> Points:
        good = isinstance(face, list) and len(face) == 5
        good = good and all(isinstance(p, list | tuple) and len(p) == 2 for p in face)
        good = good and all(
            type(x) in (int, float) and math.isfinite(x) and abs(x) < 1e6 for p in face for x in p
        )
        if not good or len({tuple(p) for p in face}) < 2:
            raise UserError(
                f"landmarks: {self.path} needs five (x, y), finite and different, for each face of {name_text(photo)}"
            )
        return [[float(x), float(y)] for x, y in face]


def _is_face(value: Any) -> bool:
    """Whether a list is the points of a face, not a point."""
    return bool(value) and isinstance(value[0], list)


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
