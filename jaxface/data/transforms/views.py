"""Views of one image for a teacher and a student, on the host; each says by a matrix where its pixels come from.

A matrix takes (x, y, 1) of the record's image to (x, y, 1) of the view, in continuous pixels (`jaxface.boxes.transform_boxes`).
The defaults are those of semi-supervised detection (arXiv:2106.09018, 2203.16317).

Methods: pseco
"""

import dataclasses
from typing import Annotated

import cv2
import grain
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from jaxface.checks import AtLeast, Fraction, Ordered, Range, check_fields
from jaxface.data.sources.objects import object_fields
from jaxface.data.sources.source import Record
from jaxface.data.transforms.letterboxing import PADDING

_ENHANCED = (0.05, 0.95)  # factors of color, contrast, brightness and sharpness
_LEAST_SIDE = 1e-3  # pixels of a box that is left in a view


@dataclasses.dataclass(frozen=True)
class ViewSpec:
    """How a view of an image with boxes is made; the defaults change its size and mirror it."""

    scales: Annotated[tuple[float, float], Range(0.05, 4), Ordered()] = (0.4, 1.2)
    """Least and greatest size, as a multiple of the record's; a view is never larger than what the image fits in."""
    flip: Annotated[float, Fraction] = 0.5
    """Probability of a mirror, left and right."""
    color: Annotated[float, Fraction] = 0.0
    """Probability of one change of colors: identity, autocontrast, equalize, solarize, color, contrast, brightness, sharpness or
    posterize."""
    geometry: Annotated[float, Fraction] = 0.0
    """Probability of one change of geometry: a shift along x or along y, a turn, or a shear along x and then y."""
    shift: Annotated[float, Fraction] = 0.1
    """Greatest shift, as a fraction of the image."""
    degrees: Annotated[float, Range(0, 80)] = 30.0
    """Greatest turn and shear."""
    erased: Annotated[tuple[int, int], AtLeast(0), Ordered()] = (0, 0)
    """Least and greatest number of squares that are erased."""
    erased_side: Annotated[float, Fraction] = 0.2
    """Greatest side of such a square, as a fraction of the image's sides."""

    def __post_init__(self):
        check_fields(self)

    @classmethod
    def labeled(cls, **changes) -> "ViewSpec":
        """Size, mirror and colors: of images with labels."""
        return cls(**{"color": 1.0, **changes})

    @classmethod
    def strong(cls, **changes) -> "ViewSpec":
        """All changes: of the student's view of an image without labels."""
        return cls(**{"color": 1.0, "geometry": 1.0, "erased": (1, 4), **changes})


@dataclasses.dataclass(frozen=True)
class TeacherStudentViews:
    """Views of images with labels and of those without, for `jaxface.data.batches`; a record says by `labeled` which it is."""

    labeled: ViewSpec = dataclasses.field(default_factory=ViewSpec.labeled)
    """The student's view of an image with labels."""
    weak: ViewSpec = dataclasses.field(default_factory=ViewSpec)
    """The teacher's view of one without."""
    strong: ViewSpec = dataclasses.field(default_factory=ViewSpec.strong)
    """The student's."""

    active = True  # as `jaxface.data.batches` asks

    def transform(self) -> "TeacherStudentTransform":
        """The views as a grain transformation."""
        return TeacherStudentTransform(self)


class TeacherStudentTransform(grain.transforms.RandomMap):
    """Makes the views of a record of `sources.objects.object_fields` with a field `labeled`.

    The student's view takes the place of `image`, with its boxes and `image_size`, and `matrix` [3, 3] float32. `teacher_image`,
    `teacher_size` and `teacher_matrix` are the teacher's view; an image with labels has none, zeros stand there. Boxes of an
    image without labels move as well: what is reported of pseudo boxes is measured with them, nothing learns from them.
    """

    def __init__(self, views: TeacherStudentViews):
        self.views = views

    def random_map(self, element: Record, rng: np.random.Generator) -> Record:
        """One record; grain calls it with a generator of the record's own."""
        student_rng, teacher_rng = (np.random.default_rng(seed) for seed in rng.integers(0, 1 << 63, 2))
        labeled = bool(element["labeled"])
        image, size, matrix = make_view(
            element["image"],
            element["image_size"],
            self.views.labeled if labeled else self.views.strong,
            student_rng,
        )
        if labeled:
            teacher = np.zeros_like(image), np.array(image.shape[:2], np.int32), np.eye(3, dtype=np.float32)
        else:
            teacher = make_view(element["image"], element["image_size"], self.views.weak, teacher_rng)
        return {
            **element,
            "image": image,
            **moved_objects(element, matrix, size),
            "matrix": matrix,
            "teacher_image": teacher[0],
            "teacher_size": teacher[1],
            "teacher_matrix": teacher[2],
        }


def make_view(
    image: np.ndarray, image_size: np.ndarray, spec: ViewSpec, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A view of what is valid of an image, on a canvas of the image's shape, gray where the view does not reach.

    Args:
      image: [H, W, 3] uint8. image_size: (height, width) of what is no padding.
      spec: of the view. rng: of its choices.

    Returns:
      (view [H, W, 3] uint8, its valid (height, width) [2] int32, matrix [3, 3] float32 from the image to the view).
    """
    # One generator each, so that switching one change on leaves the others' choices alone.
    size_rng, color_rng, geometry_rng, erase_rng = (
        np.random.default_rng(seed) for seed in rng.integers(0, 1 << 63, 4)
    )
    height, width = (int(side) for side in image_size)
    limit = min(image.shape[0] / height, image.shape[1] / width)
    scale = min(size_rng.uniform(*spec.scales), limit)
    rows, columns = (
        min(max(round(side * scale), 1), most)
        for side, most in zip((height, width), image.shape, strict=False)
    )
    shrinks = rows * columns < height * width
    view = cv2.resize(
        np.ascontiguousarray(image[:height, :width]),
        (columns, rows),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    matrix = np.diag([columns / width, rows / height, 1.0])
    if size_rng.random() < spec.flip:
        view = cv2.flip(view, 1)
        matrix = np.array([[-1.0, 0, columns], [0, 1, 0], [0, 0, 1]]) @ matrix
    recolored = color_rng.random() < spec.color
    color_first = color_rng.random() < 0.5
    if recolored and color_first:
        view = recolor(view, color_rng)
    if geometry_rng.random() < spec.geometry:
        change = _geometry(rows, columns, spec, geometry_rng)
        half = np.array(
            [[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]
        )  # OpenCV's pixels have their centers at integers
        warp = np.linalg.inv(half) @ change @ half
        view = cv2.warpAffine(
            view, warp[:2], (columns, rows), flags=cv2.INTER_LINEAR, borderValue=(PADDING,) * 3
        )
        matrix = change @ matrix
    if recolored and not color_first:
        view = recolor(view, color_rng)
    for _ in range(erase_rng.integers(spec.erased[0], spec.erased[1] + 1)):
        top, left, side = erase_rng.random(3)
        tall, wide = side * spec.erased_side * rows, side * spec.erased_side * columns
        y, x = int(top * (rows - tall)), int(left * (columns - wide))
        view[y : y + round(tall), x : x + round(wide)] = PADDING
    canvas = np.full_like(image, PADDING)
    canvas[:rows, :columns] = view
    return canvas, np.array([rows, columns], np.int32), matrix.astype(np.float32)


def _geometry(rows: int, columns: int, spec: ViewSpec, rng: np.random.Generator) -> np.ndarray:
    """[3, 3] of one change, about the middle of the image."""
    kind, amount, other = rng.integers(4), *rng.uniform(-1, 1, 2)
    change = np.eye(3)
    if kind < 2:
        change[kind, 2] = amount * spec.shift * (columns, rows)[kind]
        return change
    angle = np.deg2rad(spec.degrees * amount)
    if kind == 2:
        change[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    else:
        along_x, along_y = np.eye(2), np.eye(2)
        along_x[0, 1], along_y[1, 0] = np.tan(angle), np.tan(np.deg2rad(spec.degrees * other))
        change[:2, :2] = along_y @ along_x
    middle = np.array([columns / 2, rows / 2])
    change[:2, 2] = middle - change[:2, :2] @ middle
    return change


def recolor(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One change of colors, drawn; [H, W, 3] uint8."""
    kind, amount = rng.integers(9), rng.random()
    if kind == 0:
        return image
    picture = Image.fromarray(image)
    factor = _ENHANCED[0] + (_ENHANCED[1] - _ENHANCED[0]) * amount
    changed = (
        lambda: ImageOps.autocontrast(picture),
        lambda: ImageOps.equalize(picture),
        lambda: ImageOps.solarize(picture, int(256 * amount)),
        lambda: ImageEnhance.Color(picture).enhance(factor),
        lambda: ImageEnhance.Contrast(picture).enhance(factor),
        lambda: ImageEnhance.Brightness(picture).enhance(factor),
        lambda: ImageEnhance.Sharpness(picture).enhance(factor),
        lambda: ImageOps.posterize(picture, 4 + int(5 * amount)),
    )[kind - 1]()
    return np.array(changed)


def moved_objects(record: Record, matrix: np.ndarray, size: np.ndarray) -> Record:
    """The fields of a record's objects in a view: the upright hull of each box, cut to it; those that left it are gone.

    Args:
      record: of `sources.objects.object_fields`. matrix: [3, 3] from its image to the view. size: (height, width) of the view.
    """
    valid = record["box_mask"]
    y0, x0, y1, x1 = record["boxes"][valid].astype(np.float64).T
    corners = np.stack([np.stack(pair, -1) for pair in ((x0, y0), (x1, y0), (x0, y1), (x1, y1))], 1)
    moved = corners @ matrix[:2, :2].T.astype(np.float64) + matrix[:2, 2]
    boxes = np.concatenate([moved.min(1)[:, ::-1], moved.max(1)[:, ::-1]], axis=1)
    boxes = np.clip(boxes, 0, np.tile(size, 2))
    left = (boxes[:, 2:] - boxes[:, :2] > _LEAST_SIDE).all(1)
    points = record["landmarks"][valid][left] @ matrix[:2, :2].T + matrix[:2, 2]
    mirrored = np.linalg.det(matrix[:2, :2]) < 0
    return object_fields(
        boxes[left],
        image_size=size,
        max_objects=len(valid),
        labels=record["box_label"][valid][left],
        crowd=record["box_crowd"][valid][left],
        landmarks=points[:, [1, 0, 2, 4, 3]] if mirrored else points,
        landmark_mask=record["landmark_mask"][valid][left],
    )
