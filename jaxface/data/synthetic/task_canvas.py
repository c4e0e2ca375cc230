"""A digit among squares, with every kind of annotation: what a claim about several tasks on one kind of image needs.

Methods: intern
"""

import functools
from typing import Literal

import cv2
import numpy as np

from jaxface.checks import AtLeast, NonNegative, check_number
from jaxface.data.sources.bundled import digits as bundled_digits
from jaxface.data.sources.objects import object_fields
from jaxface.data.sources.source import Record
from jaxface.data.transforms.pixels import fractions_to_bytes
from jaxface.errors import UserError

TaskLabel = Literal["digit", "count"]
"""What the label of a canvas is: which digit, or how many squares there are."""

OBJECT_NAMES = ("digit", "square")
"""Classes of the boxes, and from 1 on of the pixels."""
CELL = 4
"""Side of a cell of `cells`, pixels."""
BACKGROUND_DEPTH = 3.0
"""Depth of what is behind all objects."""
_TRAIN_DIGITS, _DIGIT, _SQUARES, _TRIES = 1297, 12, (4, 7), 50
_DIMMEST_DIGIT, _DIMMEST_SQUARE = 0.7, 0.5


class TaskCanvasSource:
    """Canvases in memory; records have annotations of every task (`task_canvas`).

    Attributes:
      labels: [N] int32, by `label` of `task_canvas`. class_names: of them.
      counts: [N] int32 squares of each canvas.
      max_objects: M.
    """

    def __init__(self, fields: Record, class_names: tuple[str, ...], label: TaskLabel, counts: np.ndarray):
        self._fields, self.class_names, self.counts = fields, class_names, counts
        self.labels = fields["label"]
        self.image_shape = fields["image"].shape[1:]
        self.max_objects = fields["boxes"].shape[1]
        self.label = label

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        return {name: values[index] for name, values in self._fields.items()}

    def take(self, rows: np.ndarray) -> Record:
        """A batch: every field [len(rows), ...]."""
        return {name: values[rows] for name, values in self._fields.items()}


def task_canvas(
    count: int,
    *,
    side: int = 24,
    digits: tuple[int, int] = (0, 5),
    squares: tuple[int, int] = (0, 3),
    noise: float = 0.25,
    label: TaskLabel = "digit",
    unseen: bool = False,
    seed: int,
    first: int = 0,
) -> TaskCanvasSource:
    """scikit-learn's digits, one of 12 pixels on each canvas among filled squares that it does not touch (design).

    Objects lie anywhere, do not overlap, and have a brightness of U(0.7, 1) (digit) or U(0.5, 1) (square, side 4 to 7); normal
    noise lies over all. A record has

        image        uint8 [S, S, 3], channels equal           label        the digit less the first one, or the number of squares
        boxes …      as `object_fields`, classes 0 digit, 1 square
        cells        uint8 [S / 4, S / 4], 1 where an object has its center
        pixel_label  uint8 [S, S]: 0 nothing, 1 digit (where it is at least half as bright as it can be), 2 square
        depth        float32 [S, S]: 3 behind, 3 - 2 · brightness of the object where one is

    Canvas i depends on (seed, `first` + i) and on what lies on it, not on how many there are.

    Args:
      count: canvases, ≥ 1.
      side: pixels, ≥ 16, a multiple of 4.
      digits: (first, end) of the digits that occur.
      squares: least and greatest number of squares.
      noise: standard deviation where white is 1, ≥ 0.
      label: digit or count.
      unseen: of the 500 digits that are never trained on, instead of the other 1297.
      seed: ≥ 0. first: number of the first canvas, ≥ 0.

    Raises:
      UserError: a number out of its range, or no digit between the two.

    Example:
      >>> record = task_canvas(1, seed=0)[0]
      >>> record["image"].shape, record["cells"].shape, int(record["cells"].sum()) == int(record["box_mask"].sum())
      ((24, 24, 3), (6, 6), True)
    """
    for name, value, allowed in (
        ("count", count, AtLeast(1)),
        ("side", side, AtLeast(16)),
        ("noise", noise, NonNegative),
        ("seed", seed, AtLeast(0)),
        ("first", first, AtLeast(0)),
    ):
        check_number(name, value, allowed)
    if side % CELL:
        raise UserError(f"side: needs a multiple of {CELL}, got {side}")
    if not 0 <= digits[0] < digits[1] <= 10:
        raise UserError(f"digits: needs 0 <= first < end <= 10, got {digits[0]}, {digits[1]}")
    if not 0 <= squares[0] <= squares[1]:
        raise UserError(f"squares: needs 0 <= least <= greatest, got {squares[0]}, {squares[1]}")
    if label not in ("digit", "count"):
        raise UserError(f"label: needs digit or count, got {label!r}")
    fields, counts, classes = _drawn(count, side, digits, squares, noise, unseen, seed, first)
    fields = {**fields, "label": counts if label == "count" else classes}
    names = range(squares[0], squares[1] + 1) if label == "count" else range(*digits)
    if label == "count":
        fields["label"] = counts - np.int32(squares[0])
    return TaskCanvasSource(fields, tuple(map(str, names)), label, counts)


@functools.lru_cache(maxsize=8)
def _drawn(count, side, digits, squares, noise, unseen, seed, first):
    """(fields without labels, squares of each canvas, class of each)."""
    plain = bundled_digits()
    order = np.random.default_rng([seed, 18]).permutation(len(plain))
    rows = order[_TRAIN_DIGITS:] if unseen else order[:_TRAIN_DIGITS]
    rows = rows[(plain.labels[rows] >= digits[0]) & (plain.labels[rows] < digits[1])]
    pictures = [
        np.clip(cv2.resize(plain[int(row)]["image"][..., 0] / 255.0, (_DIGIT, _DIGIT)), 0, 1) for row in rows
    ]
    most = squares[1] + 1
    images = np.zeros((count, side, side), np.float64)
    pixels = np.zeros((count, side, side), np.uint8)
    depth = np.full((count, side, side), BACKGROUND_DEPTH, np.float32)
    cells = np.zeros((count, side // CELL, side // CELL), np.uint8)
    counts, classes, objects = np.zeros(count, np.int32), np.zeros(count, np.int32), []
    for number in range(count):
        rng = np.random.default_rng([seed, 18, first + number])
        chosen = int(rng.integers(len(rows)))
        classes[number] = plain.labels[rows[chosen]] - digits[0]
        boxes: list[tuple[int, int, int, int]] = []
        kinds: list[int] = []
        for index in range(1 + int(rng.integers(squares[0], squares[1] + 1))):
            size = _DIGIT if index == 0 else int(rng.integers(_SQUARES[0], _SQUARES[1] + 1))
            light = rng.uniform(_DIMMEST_SQUARE if index else _DIMMEST_DIGIT, 1.0)
            shape = np.ones((size, size)) if index else pictures[chosen]
            for _ in range(_TRIES):
                y, x = (int(v) for v in rng.integers(0, side - size + 1, 2))
                if all(y + size <= a or c <= y or x + size <= b or d <= x for a, b, c, d in boxes):
                    place = (number, slice(y, y + size), slice(x, x + size))
                    images[place] = light * shape
                    inside = shape >= 0.5
                    pixels[place] = np.where(inside, 1 + (index > 0), 0)
                    depth[place] = np.where(inside, BACKGROUND_DEPTH - 2 * light, BACKGROUND_DEPTH)
                    cells[number, (y + size // 2) // CELL, (x + size // 2) // CELL] = 1
                    boxes.append((y, x, y + size, x + size))
                    kinds.append(int(index > 0))
                    break
        counts[number] = len(boxes) - 1
        images[number] += noise * rng.normal(size=(side, side))
        objects.append(
            object_fields(
                np.array(boxes, np.float32), image_size=(side, side), max_objects=most, labels=np.array(kinds)
            )
        )
    fields = {name: np.stack([record[name] for record in objects]) for name in objects[0]}
    image = np.repeat(fractions_to_bytes((images + 0.5) / 2)[..., None], 3, axis=-1)
    return (
        {"image": image, **fields, "cells": cells, "pixel_label": pixels, "depth": depth},
        counts,
        classes,
    )
