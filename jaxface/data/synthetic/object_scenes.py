"""Small scenes of digits or shapes with exact boxes: what a claim about detectors needs, in minutes.

Methods: rm_pfi, pseco, qdetr
"""

from typing import Literal

import cv2
import numpy as np

from jaxface.checks import AtLeast, Fraction, NonNegative, check_number
from jaxface.data.sources.bundled import digits
from jaxface.data.sources.objects import object_fields
from jaxface.data.sources.source import Record
from jaxface.data.transforms.pixels import to_bytes
from jaxface.errors import UserError

Things = Literal["digit", "digits", "shapes"]
"""What lies in a scene: digits that are one class, digits of ten classes, or shapes of three."""

CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "digit": ("digit",),
    "digits": tuple(map(str, range(10))),
    "shapes": ("rectangle", "disc", "cross"),
}
"""Names of the classes of each."""

_TRAIN_DIGITS, _TRIES, _SMALLEST = 1297, 50, 6
_DIMMEST = 0.5  # a shape's brightness is from here to 1
_ARM = 3  # a cross of side s has arms of s / 3


class ObjectSceneSource:
    """Scenes of a few objects that do not overlap, gray, in memory.

    Scene i depends on (seed, `first` + i, its size, what lies in it) alone, not on how many there are: ranges of numbers that are
    disjoint share no scene.

    Attributes:
      labels: [N] int32, zeros.
      class_names: those of the objects.
      image_shape: (S, S, 3); the three channels are equal.
      max_objects: M, rows of `boxes`.
    """

    def __init__(
        self, images: np.ndarray, objects: list[tuple[np.ndarray, np.ndarray]], things: str, most: int
    ):
        self.labels = np.zeros(len(images), np.int32)
        self.class_names = CLASS_NAMES[things]
        self.image_shape = (*images.shape[1:3], 3)
        self.max_objects = most
        self._images, self._objects = images, objects

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        boxes, classes = self._objects[index]
        return {
            "image": np.repeat(self._images[index][..., None], 3, axis=2),
            "label": self.labels[index],
            **object_fields(
                boxes, image_size=self.image_shape[:2], max_objects=self.max_objects, labels=classes
            ),
        }


def object_scenes(
    count: int,
    *,
    things: Things = "digit",
    side: int = 32,
    objects: tuple[int, int] = (1, 2),
    sizes: tuple[int, int] = (10, 18),
    noise: float = 0.2,
    overlap: float = 0.0,
    max_objects: int | None = None,
    unseen: bool = False,
    seed: int,
    first: int = 0,
) -> ObjectSceneSource:
    """Scenes of scikit-learn's digits or of filled shapes on Gaussian noise (design).

    Black is 0 and white 1 of the [-1, 1] that a network sees, and what lies beyond that is clipped. The number of objects, their
    classes, sides and places are uniform; one that finds no place among the others in 50 tries is left out. A digit fills a
    square of its side, scaled bilinearly from 8x8 pixels; a rectangle has two sides, a disc and a cross one, and a brightness
    from U(0.5, 1). Boxes bound what is drawn, a digit's with its margin.

    Args:
      count: scenes, ≥ 1.
      things: "digit" (one class), "digits" (ten classes) or "shapes" (rectangle, disc, cross).
      side: of a scene, pixels, ≥ 8.
      objects: least and greatest number of objects drawn, ≥ 0.
      sizes: least and greatest side of an object, whole pixels from 6 to `side`.
      noise: standard deviation, ≥ 0.
      overlap: greatest share of the smaller of two boxes that the other may cover, in [0, 1].
      max_objects: rows of `boxes`; the greatest number of objects unless given.
      unseen: digits of the 500 that no other scenes have, instead of the 1297 to train on.
      seed: of the split of the digits and of everything drawn, ≥ 0. first: number of the first scene, ≥ 0.

    Returns:
      The source; records are as `jaxface.data.object_fields` has them.

    Raises:
      UserError: a number out of its range, things that are not known, or fewer rows than objects.

    Example:
      >>> scene = object_scenes(1, things="shapes", seed=0)[0]
      >>> scene["image"].shape, scene["boxes"].shape, int(scene["box_mask"].sum()) in (1, 2)
      ((32, 32, 3), (2, 4), True)
    """
    if things not in CLASS_NAMES:
        raise UserError(f"things: needs one of {', '.join(CLASS_NAMES)}, got {things!r}")
    for name, value, allowed in (
        ("count", count, AtLeast(1)),
        ("side", side, AtLeast(8)),
        ("noise", noise, NonNegative),
        ("overlap", overlap, Fraction),
        ("seed", seed, AtLeast(0)),
        ("first", first, AtLeast(0)),
        *(("objects", value, AtLeast(0)) for value in objects),
        *(("sizes", value, AtLeast(_SMALLEST)) for value in sizes),
    ):
        check_number(name, value, allowed)
    for name, pair in (("objects", objects), ("sizes", sizes)):
        if len(pair) != 2 or pair[0] > pair[1]:
            raise UserError(f"{name}: needs low <= high, got {', '.join(map(str, pair))}")
    if sizes[1] > side:
        raise UserError(f"sizes: needs at most the {side} pixels of a scene, got {sizes[1]}")
    most = max(objects[1], 1) if max_objects is None else max_objects
    if most < objects[1]:
        raise UserError(f"max_objects: needs at least the {objects[1]} objects of a scene, got {most}")
    draw = _shape if things == "shapes" else _digits(seed, unseen=unseen, several=things == "digits")
    images = np.empty((count, side, side), np.uint8)
    contents = []
    for number in range(count):
        rng = np.random.default_rng([seed, 16, first + number])
        canvas = noise * rng.normal(size=(side, side))
        boxes, classes = np.zeros((0, 4), np.float32), []
        for _ in range(rng.integers(objects[0], objects[1] + 1)):
            patch, label = draw(rng, sizes)
            height, width = patch.shape
            for _ in range(_TRIES):
                y, x = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
                box = np.array([y, x, y + height, x + width], np.float32)
                if _covered(box, boxes) <= overlap:
                    canvas[y : y + height, x : x + width] += patch
                    boxes, classes = np.concatenate([boxes, box[None]]), [*classes, label]
                    break
        images[number] = to_bytes(canvas)
        contents.append((boxes, np.array(classes, np.int32)))
    return ObjectSceneSource(images, contents, things, most)


def _covered(box: np.ndarray, boxes: np.ndarray) -> float:
    """The largest share of the smaller of two boxes that the other covers; 0 without others."""
    if not len(boxes):
        return 0.0
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return float(
        np.max(np.prod(np.maximum(sides, 0), axis=1) / np.minimum(areas, np.prod(box[2:] - box[:2])))
    )


def _digits(seed: int, *, unseen: bool, several: bool):
    """What draws a digit: (generator, sizes) -> (patch of fractions, class)."""
    plain = digits()
    order = np.random.default_rng([seed, 16]).permutation(len(plain))
    rows = order[_TRAIN_DIGITS:] if unseen else order[:_TRAIN_DIGITS]
    pictures = np.stack([plain[int(row)]["image"][..., 0] for row in rows]).astype(np.float32) / 255
    labels = plain.labels[rows] if several else np.zeros(len(rows), np.int32)

    def draw(rng: np.random.Generator, sizes: tuple[int, int]) -> tuple[np.ndarray, int]:
        number, size = rng.integers(len(rows)), int(rng.integers(sizes[0], sizes[1] + 1))
        patch = cv2.resize(pictures[number], (size, size), interpolation=cv2.INTER_LINEAR)
        return patch, int(labels[number])

    return draw


def _shape(rng: np.random.Generator, sizes: tuple[int, int]) -> tuple[np.ndarray, int]:
    """(patch of fractions, class) of a rectangle, a disc or a cross."""
    label = int(rng.integers(3))
    height, width = (int(side) for side in rng.integers(sizes[0], sizes[1] + 1, 2))
    if label:
        width = height
    rows, columns = np.mgrid[:height, :width] - (np.array([height, width]).reshape(2, 1, 1) - 1) / 2
    inside = np.ones((height, width), bool)
    if label == 1:
        inside = rows**2 + columns**2 <= (height / 2) ** 2
    elif label == 2:
        inside = np.minimum(np.abs(rows), np.abs(columns)) <= height / (2 * _ARM)
    return rng.uniform(_DIMMEST, 1.0) * inside, label
