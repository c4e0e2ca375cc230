"""Photographs with boxes: what the loaders of WIDER FACE, FDDB, COCO and VOC have in common.

Annotations from outside are untrusted as images are. Boxes that cannot be used are counted, reported in one line and left out;
those partly outside of the image are clipped.
"""

import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from jaxface.checks import AtLeast, check_number
from jaxface.data.sources.images import FORMATS, MAX_SIDE, CorruptImage, decode_image
from jaxface.data.sources.listing import contents
from jaxface.data.sources.objects import POINTS, object_fields
from jaxface.data.sources.source import Record
from jaxface.data.sources.standin import StandInSource
from jaxface.data.transforms.letterboxing import bucket_shapes, nearest_shape, place
from jaxface.errors import UserError
from jaxface.paths import file_size, name_text, reaching, reason_of

MAX_TEXT = 1 << 30  # bytes of an annotation file; COCO's largest has 450 MB
Surplus = Literal["refuse", "largest"]
"""What becomes of the objects of an image that are too many: an error that says so, or the largest are kept."""
_LEAST_SIDE = 1e-3  # pixels: a thinner box is none
_log = logging.getLogger("jaxface.data")


@dataclasses.dataclass
class AnnotatedImage:
    """One image and what is in it, in the pixels of its file; n objects.

    Attributes:
      name: of the image, wherever the folder is.
      path: its file.
      boxes: [n, 4] float64 (y0, x0, y1, x1), continuous.
      labels: [n] classes; zeros unless given.
      ignored: [n] bool, regions that count neither way; `box_crowd` of a record. None unless given.
      landmarks: [n, 5, 2] (x, y), NaN where unknown; None where nobody's are known.
      extras: name -> [n, ...], what an evaluation needs besides (`jaxface.metrics.detection`).
      size: (height, width), where the annotation says it.
    """

    name: str
    path: pathlib.Path
    boxes: np.ndarray
    labels: np.ndarray | None = None
    ignored: np.ndarray | None = None
    landmarks: np.ndarray | None = None
    extras: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    size: tuple[int, int] | None = None

    def __post_init__(self):
        count = len(self.boxes)
        self.boxes = np.asarray(self.boxes, np.float64).reshape(count, 4)
        self.labels = np.zeros(count, np.int32) if self.labels is None else np.asarray(self.labels, np.int32)
        self.ignored = np.zeros(count, bool) if self.ignored is None else np.asarray(self.ignored, bool)

    def select(self, rows: np.ndarray) -> "AnnotatedImage":
        """Some of its objects."""
        return dataclasses.replace(
            self,
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            ignored=self.ignored[rows],
            landmarks=None if self.landmarks is None else self.landmarks[rows],
            extras={name: values[rows] for name, values in self.extras.items()},
        )


class AnnotatedSource(StandInSource):
    """Photographs with boxes, in a few shapes; made by `wider_face`, `fddb`, `coco` and `voc`.

    An image keeps its aspect: it is resized to fit one of the shapes and padded at the bottom and the right. In the place of one
    that does not decode, or that has another size than its annotation says, stands the next one of the same shape.

    Record: what `objects.object_fields` describes, with `box_crowd` for what is to be ignored; boxes are in pixels of the
    record's image, and `transforms.letterboxing.to_original` brings detections back to the file's.

    Attributes:
      labels: [N] int32, zeros.
      class_names: of the objects.
      image_shape: (H, W, 3) of the first shape.
      buckets: [N] int32, the shape of each image, and shapes: (H, W) of each.
      max_objects: M.
      dropped: boxes that were left out, by reason.
      cut: objects that are left out of records because their image has more than M.
    """

    _OF = "of its shape"

    def __init__(
        self,
        images: Sequence[AnnotatedImage],
        class_names: Sequence[str],
        *,
        image_size: int,
        max_objects: int,
        aspects: Sequence[float] = (1.0,),
        surplus: Surplus = "largest",
        what: str,
    ):
        """Checks every box against the size of its image; reads the header of each image whose size is not known.

        Args:
          images: in the order of the source.
          class_names: of the objects.
          image_size: longer side of every image, pixels.
          max_objects: M >= 1.
          aspects: width over height of the shapes.
          surplus: of an image with more than M, keep the largest and count the others, or refuse it.
          what: name of the data in messages.

        Raises:
          UserError: no image, a number out of range, or more objects than M where those are refused.
        """
        super().__init__()
        check_number("max_objects", max_objects, AtLeast(1))
        if not images:
            raise UserError(f"data: {what} has no image")
        self.shapes = bucket_shapes(image_size, aspects)
        self.class_names, self.max_objects = list(class_names), max_objects
        self.image_shape = (*self.shapes[0], 3)
        self.labels = np.zeros(len(images), np.int32)
        self.dropped: dict[str, int] = {}
        self._images = [self._checked(image) for image in images]
        self.buckets = np.array(
            [0 if image.size is None else nearest_shape(image.size, self.shapes) for image in self._images],
            np.int32,
        )
        if self.dropped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
            total = sum(len(image.boxes) for image in images)
            _log.warning("%s: left out %d of %d boxes: %s", what, sum(self.dropped.values()), total, reasons)
        counts = np.array([len(image.boxes) for image in self._images])
        self.cut = int(np.maximum(counts - max_objects, 0).sum())
        if self.cut:
            crowded = f"{(counts > max_objects).sum()} images with more than {max_objects}"
            if surplus == "refuse":
                raise UserError(
                    f"max_objects: needs at least {counts.max()} for the {crowded} objects of {what}; or surplus 'largest' "
                    f"leaves out the smallest {self.cut} of {counts.sum()}"
                )
            _log.warning(
                "%s: %d of %d objects are left out, the smallest of the %s; max_objects=%d would take all",
                what, self.cut, counts.sum(), crowded, counts.max(),
            )  # fmt: skip

    @property
    def record_names(self) -> list[str]:
        """[N] names of the images, wherever the folder is."""
        return [image.name for image in self._images]

    def _checked(self, image: AnnotatedImage) -> AnnotatedImage:
        """The image with its size and the boxes that can be used, clipped."""
        if image.size is None:
            image = dataclasses.replace(image, size=_header_size(image.path))
        if image.size is not None and not 0 < min(image.size) <= max(image.size) <= MAX_SIDE:
            image = dataclasses.replace(image, size=None)
        boxes = image.boxes
        with np.errstate(invalid="ignore", over="ignore"):
            finite = np.isfinite(boxes).all(1)
            solid = (boxes[:, 2:] - boxes[:, :2] >= _LEAST_SIDE).all(1)
            clipped = boxes
            if image.size is not None:
                clipped = np.clip(boxes, 0, np.tile(image.size, 2))
            inside = (clipped[:, 2:] - clipped[:, :2] >= _LEAST_SIDE).all(1)
        known = (image.labels >= 0) & (image.labels < len(self.class_names))
        for reason, rows in (
            ("not finite", ~finite),
            ("degenerate", finite & ~solid),
            ("outside their image", finite & solid & ~inside),
            ("of an unknown class", finite & solid & inside & ~known),
        ):
            if rows.any():
                self.dropped[reason] = self.dropped.get(reason, 0) + int(rows.sum())
        image = dataclasses.replace(image, boxes=clipped)
        rows = finite & solid & inside & known
        return image if rows.all() else image.select(rows)

    def ground_truth(self, index: int) -> dict[str, np.ndarray]:
        """What is in image `index`, all of it, in pixels of the file, as `jaxface.metrics.detection` takes it.

        Where another image stood in when the record was last read, it is what is in that one.
        """
        image = self._images[self.shown(range(len(self))[index])]
        return {
            "boxes": image.boxes.astype(np.float32),
            "labels": image.labels,
            "crowd": np.zeros(len(image.boxes), bool),
            **image.extras,
            **({} if image.size is None else {"image_size": np.array(image.size, np.int32)}),
        }

    def _read(self, index: int) -> Record:
        image = self._images[index]
        pixels = decode_image(image.path)
        if image.size != pixels.shape[:2]:
            claimed = "unknown" if image.size is None else f"{image.size[1]}x{image.size[0]}"
            raise CorruptImage(
                f"it has {pixels.shape[1]}x{pixels.shape[0]} pixels, its annotation or header says {claimed}"
            )
        canvas, size = place(pixels, self.shapes[self.buckets[index]])
        if len(image.boxes) > self.max_objects:
            areas = (image.boxes[:, 2:] - image.boxes[:, :2]).prod(1)
            image = image.select(np.sort(np.argsort(-areas, kind="stable")[: self.max_objects]))
        scale = np.divide(size, image.size)
        points, known = image.landmarks, None
        if points is not None:
            known = np.isfinite(points).all((1, 2))
            points = np.where(known[:, None, None], points, 0.0) * scale[::-1]
        return {
            "image": canvas,
            "label": self.labels[index],
            **object_fields(
                image.boxes * np.tile(scale, 2),
                image_size=size,
                original_size=image.size,
                max_objects=self.max_objects,
                labels=image.labels,
                crowd=image.ignored,
                landmarks=points,
                landmark_mask=known,
            ),
        }

    def _alike(self, index: int) -> np.ndarray:
        return np.flatnonzero(self.buckets == self.buckets[index])

    def _kind(self, index: int) -> str:
        height, width = self.shapes[self.buckets[index]]
        return f"shape {width}x{height}"

    def _describe(self, index: int) -> str:
        return name_text(self._images[index].path)


def check_present(name: str, images: Sequence[AnnotatedImage], folder: pathlib.Path) -> None:
    """Looks for every image, folder by folder, without opening one.

    Raises:
      UserError: images that are not there; says how many, and one of them.
    """
    present: dict[pathlib.Path, set[str]] = {}
    for parent in {image.path.parent for image in images}:
        try:
            present[parent] = {path.name for path in contents(parent).files}
        except OSError:
            present[parent] = set()
    missing = [image for image in images if image.path.name not in present[image.path.parent]]
    if missing:
        raise UserError(
            f"{name}: needs the {len(images)} images of the annotations, {len(missing)} are not in {name_text(folder)}, such as "
            f"{name_text(missing[0].path.name)}"
        )


def _header_size(path: pathlib.Path) -> tuple[int, int] | None:
    """(height, width) of an image as `decode_image` gives it, from its header alone; None where that cannot be read."""
    try:
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            # Pillow would decode a PNG to look for an orientation behind its pixels.
            plain = image.format == "PPM" or (image.format == "PNG" and "exif" not in image.info)
            turned = not plain and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (width, height) if turned else (height, width)
    except Exception:  # whatever is wrong with it, reading the image says so
        return None


def read_text(name: str, path: pathlib.Path, *, limit: int = MAX_TEXT) -> bytes:
    """The bytes of an annotation file.

    Raises:
      UserError: no such file, or a longer one than `limit`.
    """
    try:
        with reaching(path):
            if file_size(path) > limit:
                raise UserError(f"{name}: needs a file of at most {limit} bytes, {name_text(path)} has more")
            return path.read_bytes()
    except OSError as error:
        raise UserError(f"{name}: cannot read {name_text(path)}: {reason_of(error)}") from error


def read_lines(name: str, path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of every line that is not empty, stripped.

    Raises:
      UserError: no such file, or one that is no text.
    """
    try:
        text = read_text(name, path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: needs a text file, {name_text(path)} has other bytes") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def read_json(name: str, path: pathlib.Path) -> Any:
    """What a JSON file holds.

    Raises:
      UserError: no such file, or one that is no JSON.
    """
    try:
        return json.loads(read_text(name, path))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{name}: needs a JSON file, {name_text(path)} is none: {reason}") from error


def inside(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """The file `name` in a folder, or None for a name that leads out of it."""
    path = pathlib.PurePosixPath(str(name).replace(os.sep, "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in str(path) or not path.parts:
        return None
    return folder / path


def numbers(tokens: Sequence[str], count: int) -> list[float] | None:
    """The first `count` tokens as numbers, NaN and infinity among them; None where there are fewer or others."""
    if len(tokens) < count:
        return None
    try:
        return [float(token) for token in tokens[:count]]
    except ValueError:
        return None


def unknown_landmarks(count: int) -> np.ndarray:
    """[count, 5, 2] NaN."""
    return np.full((count, POINTS, 2), np.nan)
