"""Scenes: several rendered faces of any size in one cluttered picture, for detection."""

import dataclasses
import functools
import math
from typing import Annotated, NamedTuple

import cv2
import numpy as np

from jaxface.checks import (
    AtLeast,
    Fraction,
    Ordered,
    ProperFraction,
    Range,
    check_fields,
    check_number,
)
from jaxface.data.render import clutter
from jaxface.data.render.face_crops import Crop, face_crops
from jaxface.data.sources.objects import object_fields
from jaxface.data.sources.source import Record
from jaxface.errors import UserError

_MIRRORED = [1, 0, 2, 4, 3]
_MOST_KEPT = 1 << 29  # bytes of images; of a source with more, none is kept
_TRIES = 12  # places at which a face may find room
_LEAST_SIDE = 4.0  # pixels that are left of a truncated face, along its shorter side


@dataclasses.dataclass(frozen=True)
class SceneVariation:
    """How crowded, small, hidden and cluttered the faces of scenes are: the difficulty dial (design)."""

    faces: Annotated[tuple[int, int], AtLeast(0), Ordered()] = (0, 5)
    """Least and greatest number of faces; fewer where they find no place."""
    sizes: Annotated[tuple[float, float], Range(4), Ordered()] = (10.0, 160.0)
    """Least and greatest size of a face, the square root of its box's area in pixels; its logarithm is uniform. Faces larger than
    0.8 of the image are shrunk to that."""
    overlap: Annotated[float, ProperFraction] = 0.25
    """Greatest fraction of a box that the boxes of other faces cover."""
    truncation: Annotated[float, ProperFraction] = 0.3
    """Greatest fraction of a face, along either axis, that lies outside the image."""
    truncated: Annotated[float, Fraction] = 0.15
    """Probability that a face may leave the image at all."""
    tilt: Annotated[float, Range(0, 180)] = 12.0
    """Standard deviation of the tilt of a face in the image plane, degrees; clipped at three of them."""
    photographs: Annotated[float, Fraction] = 0.3
    """Probability that a face comes with a rectangle of its own background, as a photograph on a page does."""
    bodies: Annotated[float, Fraction] = 0.7
    """Probability of neck and shoulders below a face that comes without a rectangle."""
    shapes: Annotated[tuple[int, int], AtLeast(0), Ordered()] = (2, 24)
    """Least and greatest number of shapes in the background."""
    distractors: Annotated[tuple[int, int], AtLeast(0), Ordered()] = (0, 4)
    """Least and greatest number of heads without a face: features blurred away or shuffled, upside down, or shoulders alone."""
    occluders: Annotated[float, Fraction] = 0.15
    """Probability that a few thin shapes lie before everything."""
    gray: Annotated[float, Fraction] = 0.35
    """Probability of a scene without colors."""

    def __post_init__(self):
        check_fields(self)

    @classmethod
    def plain(cls) -> "SceneVariation":
        """One to three upright faces of some size, apart and whole, before little clutter."""
        return cls(
            faces=(1, 3), sizes=(20.0, 160.0), overlap=0.0, truncated=0.0, tilt=4.0, shapes=(0, 6), distractors=(0, 0),
            occluders=0.0,
        )  # fmt: skip

    @classmethod
    def crowd(cls) -> "SceneVariation":
        """Many small faces close together."""
        return cls(faces=(8, 32), sizes=(8.0, 48.0), overlap=0.45, photographs=0.1)


SCENES = SceneVariation()


class _Place(NamedTuple):
    crop: Crop
    matrix: np.ndarray  # [2, 3] float64, crop coordinates -> image, both continuous
    box: np.ndarray  # (y0, x0, y1, x1), not clipped
    mirrored: bool


def _affine(scale_x: float, scale_y: float, degrees: float, pivot: np.ndarray) -> np.ndarray:
    """[2, 3]: scaled and turned about `pivot`, which goes to the origin."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag(
        [scale_x, scale_y]
    )
    return np.concatenate([turn, -turn @ pivot[:, None]], 1)


def _move(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def _bounds(points: np.ndarray) -> np.ndarray:
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    return np.array([y0, x0, y1, x1])


def _pose(
    rng: np.random.Generator, crop: Crop, size: float, degrees: float
) -> tuple[np.ndarray, np.ndarray, bool]:
    """(matrix with the middle of the head at the origin, box there, mirrored); `size` is that of the box."""
    mirrored = bool(rng.random() < 0.5)
    stretch = np.exp(rng.uniform(-0.12, 0.12))
    middle = (crop.outline.min(0) + crop.outline.max(0)).astype(np.float64) / 2
    matrix = _affine(-stretch if mirrored else stretch, 1 / stretch, degrees, middle)
    box = _bounds(_move(matrix, crop.outline))
    scale = size / np.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    return matrix * scale, box * scale, mirrored


def paste(
    picture: np.ndarray,
    colors: np.ndarray,
    cover: np.ndarray,
    matrix: np.ndarray,
    light: "_Light | None" = None,
) -> None:
    """Blends one size of a crop into a picture, in place.

    Args:
      picture: [H, W, 3] uint8.
      colors, cover: [h, w, 3] and [h, w] uint8.
      matrix: [2, 3], coordinates of these -> picture.
      light: that falls on it.
    """
    height, width = picture.shape[:2]
    rows, columns = cover.shape
    box = _bounds(_move(matrix, np.array([(0, 0), (columns, 0), (0, rows), (columns, rows)], np.float64)))
    y0, x0 = np.maximum(np.floor(box[:2]).astype(int), 0).tolist()
    y1, x1 = np.minimum(np.ceil(box[2:]).astype(int), (height, width)).tolist()
    if y0 >= y1 or x0 >= x1:
        return
    # OpenCV has pixel centers at integers.
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (0.5, 0.5) - (x0 + 0.5, y0 + 0.5)
    target = x1 - x0, y1 - y0
    colors = cv2.warpAffine(colors, shifted, target, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    opacity = cv2.warpAffine(cover, shifted, target, flags=cv2.INTER_LINEAR).astype(np.float32) / 255
    if light is None:
        lit, gain = colors, np.float32(1)
    else:
        lit, gain = light.on(colors)
    window = picture[y0:y1, x0:x1]
    blended = lit * (gain * opacity)[..., None]
    blended += window * (1 - opacity)[..., None]
    window[:] = clutter.to_bytes(blended + np.float32(0.5))


def _level(crop: Crop, matrix: np.ndarray) -> tuple[int, np.ndarray]:
    """The size of a crop that is shrunk by at most a half, and the matrix from its coordinates."""
    scale = math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))
    level = min(max(math.floor(-math.log2(max(scale, 1e-6))), 0), len(crop.colors) - 1)
    return level, np.concatenate([matrix[:, :2] * 2.0**level, matrix[:, 2:]], 1)


class _Light:
    """A change of the light on one face: its color, contrast and saturation, and where it falls off."""

    def __init__(self, rng: np.random.Generator):
        gains = np.exp(rng.normal(0, 0.2)) * (1 + rng.normal(0, 0.06, 3))
        contrast, saturation = rng.uniform(0.75, 1.4), rng.uniform(0.5, 1.2)
        mix = saturation * np.eye(3) + (1 - saturation) / 3
        offset = 110 * (1 - contrast) * gains
        self._matrix = np.concatenate([contrast * gains[:, None] * mix, offset[:, None]], 1)
        self._slope = rng.normal(0, 0.2, 2).astype(np.float32)

    def on(self, colors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([h, w, 3] uint8 of other colors, [h, w] float32 by which to multiply them)."""
        height, width = colors.shape[:2]
        across = np.linspace(-self._slope[0], self._slope[0], width, dtype=np.float32)
        down = np.linspace(1 - self._slope[1], 1 + self._slope[1], height, dtype=np.float32)
        return cv2.transform(colors, self._matrix), np.maximum(down[:, None] + across, np.float32(0.3))


class SceneSource:
    """Scenes of synthetic people; scene i is made when asked for.

    A scene depends on (seed, number of the scene, image size, variation, the people and the images of each) alone, not on how
    many scenes the source has: sources with disjoint ranges of scenes and people share neither. Composing one takes milliseconds;
    the faces are rendered once in a process (`face_crops`), some 10 ms each, when first needed. Scenes are kept, unless all would
    take more than half a gigabyte (10,000 of 128 x 128 do not). Arrays are read-only. Safe to read from several threads.
    Pickles as its arguments.

    Record: what `sources.objects.object_fields` describes. A box bounds the head from chin to crown, clipped to the image; hair
    beyond the head, ears and neck are not included, what other faces hide of it is. `landmark_mask` is False where a landmark
    lies outside the image.

    Attributes:
      labels: [N] int32, zeros.
      class_names: ("face",).
      image_shape: (S, S, 3).
      max_objects: M, rows of `boxes`.
    """

    class_names = ("face",)

    def __init__(
        self,
        scenes: int,
        image_size: int = 128,
        seed: int = 0,
        variation: SceneVariation = SCENES,
        *,
        people: int = 256,
        per_person: int = 2,
        max_objects: int | None = None,
        first_scene: int = 0,
        first_identity: int = 0,
    ):
        """Describes the source; nothing is rendered yet.

        Args:
          scenes: N >= 1.
          image_size: S, height and width, pixels, >= 32.
          seed: of the people and of the scenes.
          variation: how crowded and cluttered they are.
          people: number of people in all scenes, >= 1.
          per_person: rendered images of each, >= 1; in scenes they differ further, by what a photograph can do to them.
          max_objects: M; as many as `variation.faces` allows unless given.
          first_scene: number of the first scene, to take scenes that another source does not have.
          first_identity: number of the first person, likewise.

        Raises:
          UserError: a number out of range.
        """
        max_objects = max(variation.faces[1], 1) if max_objects is None else max_objects
        for name, value, least in (
            ("scenes", scenes, 1),
            ("image_size", image_size, 32),
            ("people", people, 1),
            ("per_person", per_person, 1),
            ("first_scene", first_scene, 0),
            ("first_identity", first_identity, 0),
        ):
            check_number(name, value, AtLeast(least))
        if max_objects < variation.faces[1]:
            raise UserError(
                f"max_objects: needs at least the {variation.faces[1]} faces of a scene, got {max_objects}"
            )
        self._arguments = dict(
            scenes=scenes, image_size=image_size, seed=seed, variation=variation, people=people, per_person=per_person,
            max_objects=max_objects, first_scene=first_scene, first_identity=first_identity,
        )  # fmt: skip
        self.labels = np.zeros(scenes, np.int32)
        self.image_shape = (image_size, image_size, 3)
        self.max_objects = max_objects
        self._size, self._variation, self._seed, self._first = (
            image_size,
            variation,
            seed % 2**32,
            first_scene,
        )
        self._kept: dict[int, Record] = {}
        self._crops = face_crops(people, per_person, self._seed, first_identity)

    def __reduce__(self):
        return functools.partial(SceneSource, **self._arguments), ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        kept = self._kept.get(int(index))
        if kept is not None:
            return dict(kept)
        rng, places = self._places(index)
        image = self._compose(rng, places)
        size = self._size
        boxes = np.array([place.box for place in places], np.float32).reshape(-1, 4)
        landmarks = np.array(
            [
                _move(place.matrix, place.crop.landmarks)[_MIRRORED if place.mirrored else slice(None)]
                for place in places
            ],
            np.float32,
        ).reshape(-1, 5, 2)
        record = {
            "image": image,
            "label": self.labels[index],
            **object_fields(
                np.clip(boxes, 0, size),
                image_size=(size, size),
                max_objects=self.max_objects,
                landmarks=landmarks,
                landmark_mask=((landmarks >= 0) & (landmarks < size)).all((1, 2)),
            ),
        }
        if image.size * len(self) <= _MOST_KEPT:
            for value in record.values():
                if isinstance(value, np.ndarray):
                    value.flags.writeable = False
            self._kept[int(index)] = record
        return dict(record)

    def _places(self, index: int) -> tuple[np.random.Generator, list[_Place]]:
        """Where the faces of a scene are, and the numbers from which the rest of it is drawn."""
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of a source of {len(self)}")
        rng = np.random.default_rng([self._seed, index + self._first])
        return rng, self._arrange(rng)

    def ground_truth(self, index: int) -> dict[str, np.ndarray]:
        """What is in scene `index`, as `jaxface.metrics.detection` takes it; nothing is painted for it."""
        _, places = self._places(index)
        boxes = np.array([place.box for place in places], np.float32).reshape(-1, 4)
        return {
            "boxes": np.clip(boxes, 0, self._size),
            "labels": np.zeros(len(boxes), np.int32),
            "crowd": np.zeros(len(boxes), bool),
            "image_size": np.array(self.image_shape[:2], np.int32),
        }

    def _crop(self, rng: np.random.Generator) -> Crop:
        return self._crops[int(rng.integers(len(self._crops)))]

    def _arrange(self, rng: np.random.Generator) -> list[_Place]:
        """Where the faces are, the largest first."""
        dial, side = self._variation, self._size
        count = int(rng.integers(dial.faces[0], dial.faces[1] + 1))
        low, high = (min(size, 0.8 * side) for size in dial.sizes)
        sizes = np.sort(np.exp(rng.uniform(np.log(low), np.log(high), count)))[::-1]
        places: list[_Place] = []
        others, covered = np.zeros((0, 4)), np.zeros(0)  # boxes so far, and what of each others cover
        for size in sizes:
            crop = self._crop(rng)
            tilt = float(np.clip(rng.normal(0, 1), -3, 3)) * dial.tilt
            matrix, box, mirrored = _pose(rng, crop, size, tilt)
            extent = box[2:] - box[:2]
            outside = dial.truncation * extent if rng.random() < dial.truncated else np.zeros(2)
            low_corner, high_corner = -outside, side - extent + outside
            if (high_corner < low_corner).any():
                continue
            corners = rng.uniform(low_corner, high_corner, (_TRIES, 2))
            seen = np.clip(np.concatenate([corners, corners + extent], 1), 0, side)
            sides = seen[:, 2:] - seen[:, :2]
            shared = np.minimum(others[:, 2:], seen[:, None, 2:]) - np.maximum(
                others[:, :2], seen[:, None, :2]
            )
            shared = np.clip(shared, 0, None).prod(-1)  # [tries, boxes so far]
            free = (
                (sides.min(1) >= min(_LEAST_SIDE, extent.min()))
                & (shared.sum(1) <= dial.overlap * sides.prod(1))
                & (covered + shared <= dial.overlap * (others[:, 2:] - others[:, :2]).prod(1)).all(1)
            )
            if free.any():
                row = int(free.argmax())
                matrix[:, 2] += (corners[row] - box[:2])[::-1]
                places.append(_Place(crop, matrix, box + np.tile(corners[row] - box[:2], 2), mirrored))
                others = np.concatenate([others, seen[row : row + 1]])
                covered = np.append(covered + shared[row], shared[row].sum())
        return places

    def _compose(self, rng: np.random.Generator, places: list[_Place]) -> np.ndarray:
        dial, side = self._variation, self._size
        picture = clutter.background(rng, side, side)
        clutter.shapes(rng, picture, int(rng.integers(dial.shapes[0], dial.shapes[1] + 1)))
        if rng.random() < 0.25:
            picture = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.5, 3.0)))
        for _ in range(int(rng.integers(dial.distractors[0], dial.distractors[1] + 1))):
            self._distract(rng, picture)
        for number, place in enumerate(places):
            self._show(rng, picture, place, [other.box for k, other in enumerate(places) if k != number])
        if rng.random() < dial.occluders:
            self._occlude(rng, picture)
        return clutter.camera(rng, picture, gray=dial.gray)

    def _show(
        self, rng: np.random.Generator, picture: np.ndarray, place: _Place, others: list[np.ndarray]
    ) -> None:
        """Pastes a face with its head, body or photograph; a body or photograph that would hide another face is left out."""
        dial, crop = self._variation, place.crop
        light = _Light(rng)
        (framed, clothed), margins = rng.random(2), rng.uniform(0.0, 0.5, 4)
        photograph = bool(framed < dial.photographs)
        body = not photograph and bool(clothed < dial.bodies)
        behind = np.random.default_rng(int(rng.integers(1 << 62)))
        height, width = crop.covers[0].shape[:2]
        frame = np.array([0.0, 0.0, height, width])
        if photograph:  # margins in heights of the head
            y0, x0, y1, x1 = _bounds(crop.outline)
            top, left, bottom, right = (y1 - y0) * margins
            frame = np.array([y0 - top, x0 - left, y1 + bottom, x1 + right])
            frame = np.clip(frame, 0, (height, width, height, width))
        if (photograph or body) and others:
            top, left, bottom, right = frame
            corners = np.array([(left, top), (right, top), (left, bottom), (right, bottom)])
            reach, boxes = _bounds(_move(place.matrix, corners)), np.array(others)
            shared = np.minimum(boxes[:, 2:], reach[2:]) - np.maximum(boxes[:, :2], reach[:2])
            shared = np.clip(shared, 0, None).prod(1)
            if (shared > dial.overlap * (boxes[:, 2:] - boxes[:, :2]).prod(1)).any():
                photograph = body = False
        level, matrix = _level(crop, place.matrix)
        colors, covers = crop.colors[level], crop.covers[level]
        cover = np.ascontiguousarray(covers[..., int(body)])
        if photograph:
            scenery = clutter.background(behind, *colors.shape[:2])
            opacity = covers[..., 1:] / np.float32(255)
            colors = clutter.to_bytes(scenery + opacity * (colors.astype(np.float32) - scenery))
            cover = np.zeros_like(cover)
            top, left, bottom, right = np.rint(frame / 2**level).astype(int)
            cover[top:bottom, left:right] = 255
        paste(picture, colors, cover, matrix, light)

    def _distract(self, rng: np.random.Generator, picture: np.ndarray) -> None:
        """A head without a face, or shoulders without a head, anywhere."""
        dial, side = self._variation, self._size
        low, high = (min(size, 0.8 * side) for size in dial.sizes)
        crop = self._crop(rng)
        size = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        kind = int(rng.integers(4))
        matrix, _, _ = _pose(rng, crop, size, 180.0 * (kind == 2) + float(rng.normal(0, 15)))
        matrix[:, 2] += rng.uniform(0, side, 2)
        light = _Light(rng)
        body, order = int(rng.integers(2)), rng.permutation(9)
        level, matrix = _level(crop, matrix)
        colors, covers = crop.colors[level], crop.covers[level]
        cover = np.ascontiguousarray(covers[..., body])
        if kind == 0:  # so few pixels that no feature is left
            colors = cv2.resize(crop.colors[-1], colors.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        elif kind == 1:  # thirds of the head change places
            y0, x0, y1, x1 = _bounds(crop.outline) / 2**level
            rows, columns = (np.linspace(low, high, 4).astype(int) for low, high in ((y0, y1), (x0, x1)))
            h, w = np.diff(rows).min(), np.diff(columns).min()
            corners = [(row, column) for row in rows[:3] for column in columns[:3]]
            tiles = [colors[row : row + h, column : column + w] for row, column in corners]
            colors = colors.copy()
            for (row, column), tile in zip(corners, order, strict=True):
                colors[row : row + h, column : column + w] = tiles[tile]
        elif kind == 3:
            cover = cv2.subtract(covers[..., 1], covers[..., 0])
        paste(picture, colors, cover, matrix, light)

    def _occlude(self, rng: np.random.Generator, picture: np.ndarray) -> None:
        """Branches, ropes, rails: thin lines before everything."""
        side = self._size
        for _ in range(int(rng.integers(1, 4))):
            ends = rng.uniform(-0.1, 1.1, (2, 2)) * side
            (a, b), (c, d) = np.rint(ends).astype(int).tolist()
            cv2.line(
                picture,
                (a, b),
                (c, d),
                tuple(clutter.colors(rng, 1)[0].tolist()),
                int(rng.integers(1, max(side // 40, 2))),
                cv2.LINE_AA,
            )
