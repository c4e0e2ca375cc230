"""Folders of images with a COCO JSON file of their objects (arXiv:1405.0312)."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxface.data.sources.annotated import (
    AnnotatedImage,
    AnnotatedSource,
    Surplus,
    check_present,
    inside,
    read_json,
)
from jaxface.errors import UserError
from jaxface.paths import name_text, user_path


def _table(content: Any, key: str, path: pathlib.Path) -> list[dict]:
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"annotations: needs COCO's JSON, {name_text(path)} has no list of {key}")
    return rows


def _field(row: dict, key: str, kinds: type | tuple, table: str, path: pathlib.Path):
    value = row.get(key)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise UserError(
            f"annotations: needs COCO's JSON, {name_text(path)} has {table} without a {key}: {str(row)[:60]}"
        )
    return value


def _box(values: Any) -> tuple[float, float, float, float]:
    """(x, y, w, h); NaN where these are not four numbers."""
    if isinstance(values, list) and len(values) == 4:
        try:
            return tuple(float(value) for value in values)
        except (TypeError, ValueError, OverflowError):
            pass
    return (math.nan,) * 4


def coco(
    images: str | pathlib.Path,
    annotations: str | pathlib.Path,
    *,
    image_size: int,
    categories: Sequence[str] = (),
    max_objects: int = 100,
    aspects: Sequence[float] = (1.0,),
    surplus: Surplus = "largest",
) -> AnnotatedSource:
    """Opens a folder of images with a COCO JSON file.

    Regions with `iscrowd` are to be ignored. `ground_truth` has `crowd` and the annotation's `area` [n]; `category_ids` of the
    source are the file's numbers of its classes, in their order, as a file of results needs them.

    Args:
      images: the folder.
      annotations: the JSON: `images`, `annotations` (`bbox` as x, y, w, h) and `categories`.
      categories: names of those to take; all unless given, in the order of their numbers.
      image_size, max_objects, aspects, surplus: see `AnnotatedSource`.

    Raises:
      UserError: a file or an image that is missing, a file of another format, or a category that there is not.
    """
    folder, path = user_path("images", images), user_path("annotations", annotations)
    content = read_json("annotations", path)
    names = {
        _field(row, "id", int, "a category", path): _field(row, "name", str, "a category", path)
        for row in _table(content, "categories", path)
    }
    if missing := set(categories) - set(names.values()):
        raise UserError(
            f"categories: needs some of {', '.join(sorted(names.values()))[:200]}, got {', '.join(sorted(missing))}"
        )
    if not names:
        raise UserError(f"annotations: needs at least one category, {name_text(path)} has none")
    ids = [k for k in sorted(names) if not categories or names[k] in categories]
    if categories:
        ids.sort(key=lambda k: list(categories).index(names[k]))
    classes = {category: row for row, category in enumerate(ids)}
    objects: dict[int, list[dict]] = {}
    for row in _table(content, "annotations", path):
        category = _field(row, "category_id", int, "an annotation", path)
        # Of a category that the file does not list: counted with the boxes that are left out.
        if category in classes or category not in names:
            objects.setdefault(_field(row, "image_id", int, "an annotation", path), []).append(row)
    result = []
    for image in _table(content, "images", path):
        name = _field(image, "file_name", str, "an image", path)
        number = _field(image, "id", int, "an image", path)
        file = inside(folder, name)
        if file is None:
            raise UserError(f"annotations: needs images inside of {name_text(folder)}, got {name!r}")
        rows = objects.pop(number, [])
        x, y, width, height = np.array([_box(row.get("bbox")) for row in rows], np.float64).reshape(-1, 4).T
        crowd = np.array([row.get("iscrowd") in (1, True) for row in rows], bool)
        with np.errstate(invalid="ignore", over="ignore"):
            boxes = np.stack([y, x, y + height, x + width], -1)
            area = np.array(
                [float(row["area"]) if isinstance(row.get("area"), int | float) else np.nan for row in rows],
                np.float64,
            ).reshape(-1)
            area = np.where(np.isfinite(area) & (area >= 0), area, width * height)
        size = (image.get("height"), image.get("width"))
        result.append(
            AnnotatedImage(
                name,
                file,
                boxes,
                np.array([classes.get(row["category_id"], -1) for row in rows], np.int32),
                crowd,
                extras={"crowd": crowd, "area": area},
                size=size if all(type(side) is int and side > 0 for side in size) else None,
            )
        )
    check_present("images", result, folder)
    source = AnnotatedSource(
        result,
        [names[k] for k in ids],
        image_size=image_size,
        max_objects=max_objects,
        aspects=aspects,
        surplus=surplus,
        what=name_text(path),
    )
    source.category_ids = ids
    return source
