"""Cut-out faces: what scenes are composed of.

A rendered head gets what the renderer leaves out and what a photograph shows around a face: hair with a volume of its own, ears,
now and then a beard or glasses, and shoulders. Each crop knows its silhouettes, the outline of its head and its landmarks.
"""

import functools
import threading
from typing import NamedTuple

import cv2
import jax
import numpy as np

from jaxface.data.render import appearance
from jaxface.data.render.head_geometry import project, rotation_matrix
from jaxface.data.render.rendered import draw_faces
from jaxface.data.render.renderer import NECK, render, to_uint8
from jaxface.data.render.variation import Variation

RESOLUTION = 128  # pixels of the rendered square; the head is about three quarters of it high
VARIATION = Variation(
    yaw=42.0, pitch=16.0, roll=0.0, expression=0.8, shift=0.0, noise=(0.0, 0.01), blur=(0.0, 0.4)
)
_CHUNK = 8  # faces per compiled call
_SIDES, _TOP, _BOTTOM = (
    32,
    12,
    36,
)  # pixels around the rendered square, for hair and shoulders; sums divide by 2^4
_LEVELS = 5  # sizes at which a crop is kept, each half of the one before


class Crop(NamedTuple):
    """A cut-out face; coordinates are continuous with the origin at the crop's top-left corner.

    Attributes:
      colors: sizes of [h, w, 3] uint8, each half of the one before; beside the silhouette the colors of its border go on.
      covers: the same sizes of [h, w, 2] uint8, opacity of the head with its hair, and of head and body.
      outline: [K, 2] float32 (x, y), convex hull of the head, from chin to crown.
      landmarks: [5, 2] float32 (x, y), left to right in the image.
    """

    colors: tuple[np.ndarray, ...]
    covers: tuple[np.ndarray, ...]
    outline: np.ndarray
    landmarks: np.ndarray


@jax.jit
def _shoot(seed, people, shots):
    faces = draw_faces(seed, people, shots, variation=VARIATION, aligned=False)
    shown = render(faces, image_size=RESOLUTION, outputs=("image",), attacks=False)

    def neck(face):
        scale = face.scale * RESOLUTION
        root = project(
            rotation_matrix(face.pose) @ NECK, scale, face.translation * RESOLUTION, RESOLUTION, RESOLUTION
        )[:2]
        return appearance.neck_cover((face.pose[2], scale, root), RESOLUTION)[0]

    return {
        "image": to_uint8(shown.image),
        "mask": shown.mask,
        "neck": jax.vmap(neck)(faces),
        "landmarks": shown.landmarks,
    }


class FaceCrops:
    """Cut-out faces of synthetic people; face k of person i is crop `i * per_person + k`.

    A crop depends on (seed, person, k) alone. Crops are made in chunks when first asked for and kept: about 150 kB each.
    Safe to read from several threads. Pickles as its arguments.
    """

    def __init__(self, people: int, per_person: int, seed: int, first_identity: int):
        self._arguments = people, per_person, seed, first_identity
        self._seed = np.uint32(seed % 2**32)
        self._chunks: list[list[Crop] | None] = [None] * -(-people * per_person // _CHUNK)
        self._locks = [threading.Lock() for _ in self._chunks]

    def __reduce__(self):
        return FaceCrops, self._arguments

    def __len__(self) -> int:
        return self._arguments[0] * self._arguments[1]

    def __getitem__(self, index: int) -> Crop:
        number = index // _CHUNK
        with self._locks[number]:
            if self._chunks[number] is None:
                self._chunks[number] = self._make(number)
        return self._chunks[number][index % _CHUNK]

    def _make(self, number: int) -> list[Crop]:
        _, per_person, seed, first = self._arguments
        index = np.minimum(np.arange(number * _CHUNK, (number + 1) * _CHUNK), len(self) - 1)
        people, shots = (index // per_person + first).astype(np.int32), (index % per_person).astype(np.int32)
        shown = {name: np.asarray(value) for name, value in _shoot(self._seed, people, shots).items()}
        count = min(_CHUNK, len(self) - number * _CHUNK)
        return [
            _crop(
                {name: value[row] for name, value in shown.items()},
                # One look of hair and clothes per image: people change them.
                np.random.default_rng([seed % 2**32, int(people[row]), int(shots[row])]),
            )
            for row in range(count)
        ]


# Black, brown, fair, red and gray hair, and how often.
_HAIR = np.float32([(20, 16, 14), (48, 34, 24), (90, 64, 40), (150, 118, 78), (150, 148, 145)])
_HAIR_SHARES = (0.34, 0.26, 0.18, 0.1, 0.12)


def _crop(shown: dict[str, np.ndarray], rng: np.random.Generator) -> Crop:
    """A rendered head, dressed up: `_shoot` of one face -> Crop."""
    painter = _Painter(shown, rng)
    painter.skin()
    hair = painter.hair_behind()
    ears = painter.ears()
    painter.fringe()
    painter.beard()
    painter.glasses()
    head = cv2.GaussianBlur(np.maximum(np.maximum(painter.mask, hair), ears), (0, 0), 0.7)
    body = np.maximum(np.maximum(head, painter.shoulders()), cv2.GaussianBlur(painter.neck, (0, 0), 0.7))

    # Beside the silhouette its own colors go on, so that a soft edge shows nothing of the renderer's background.
    weight = (body > 200).astype(np.float32)
    around = cv2.GaussianBlur(painter.color * weight[..., None], (0, 0), 3)
    around /= cv2.GaussianBlur(weight, (0, 0), 3)[..., None] + 1e-3
    color = np.where(weight[..., None] > 0, painter.color, around)
    colors, covers = [np.clip(color, 0, 255).astype(np.uint8)], [np.stack([head, body], -1)]
    for _ in range(_LEVELS - 1):
        size = tuple(side // 2 for side in colors[-1].shape[1::-1])
        for levels in (colors, covers):
            levels.append(cv2.resize(levels[-1], size, interpolation=cv2.INTER_AREA))
    return Crop(tuple(colors), tuple(covers), painter.outline, painter.landmarks)


class _Painter:
    """Paints over a rendered head and around it; places are in pixels of the crop, sizes follow those of the head."""

    def __init__(self, shown: dict[str, np.ndarray], rng: np.random.Generator):
        borders = _TOP, _BOTTOM, _SIDES, _SIDES
        self._rng = rng
        self.mask = cv2.copyMakeBorder(shown["mask"].astype(np.uint8) * 255, *borders, cv2.BORDER_CONSTANT)
        self.neck = cv2.copyMakeBorder(np.uint8(shown["neck"] * 255), *borders, cv2.BORDER_REPLICATE)
        self.color = cv2.copyMakeBorder(shown["image"], *borders, cv2.BORDER_REPLICATE).astype(np.float32)
        # The renderer has pixel centers at integers.
        self.landmarks = (shown["landmarks"] + (_SIDES + 0.5, _TOP + 0.5)).astype(np.float32)
        rows, columns = np.nonzero(self.mask)
        corners = np.concatenate([np.stack([columns + x, rows + y], -1) for x in (0, 1) for y in (0, 1)])
        self.outline = cv2.convexHull(corners.astype(np.float32))[:, 0]
        (self._left, self._top), (self._right, self._bottom) = self.outline.min(0), self.outline.max(0)
        self._height, self._width = self._bottom - self._top, self._right - self._left
        self._center = (self._left + self._right) / 2
        self._skin = self.color[self.mask > 0].mean(0)
        # Hair and clothes have no geometry: their light is that of the face.
        self._bright = float(np.clip(self._skin.max() / 200, 0.3, 1.2))
        shade = _HAIR[rng.choice(len(_HAIR), p=_HAIR_SHARES)] * (self._bright * rng.uniform(0.7, 1.2))
        self._strands = shade * (1 + self._texture(0.18, 24) + self._texture(0.15, 6))

    def _texture(self, strength: float, cells: int) -> np.ndarray:
        """[h, w, 1] smooth noise of that deviation."""
        rough = self._rng.normal(0, strength, (cells, cells)).astype(np.float32)
        return cv2.resize(rough, self.mask.shape[::-1], interpolation=cv2.INTER_CUBIC)[..., None]

    def _cover(self, draw, soft: float = 0.8) -> np.ndarray:
        """[h, w] uint8: what `draw` draws on black, with soft edges."""
        cover = np.zeros_like(self.mask)
        draw(cover)
        return cv2.GaussianBlur(cover, (0, 0), soft)

    def _inside(self, cover: np.ndarray, strength: float = 1.0) -> np.ndarray:
        return np.minimum((cover * strength).astype(np.uint8), self.mask)

    def _paint(self, cover: np.ndarray, color) -> None:
        self.color += (cover[..., None] / np.float32(255)) * (color - self.color)

    def _paint_behind(self, cover: np.ndarray, color) -> None:
        self._paint(np.where(self.mask > 0, 0, cover).astype(np.uint8), color)

    def skin(self) -> None:
        """Pores and shadows; dark eyes, as of lashes and sockets; a mouth that is open, or shows teeth."""
        rng, apart = self._rng, float(np.linalg.norm(self.landmarks[1] - self.landmarks[0]))
        rough = (
            1 + rng.uniform(0, 0.03) * self._texture(1.0, 48) + rng.uniform(0, 0.06) * self._texture(1.0, 5)
        )
        self._paint(self.mask, self.color * rough)
        if rng.random() < 0.7:
            wide, high = rng.uniform(0.2, 0.32) * apart, rng.uniform(0.1, 0.2) * apart

            def eyes(cover):
                for x, y in self.landmarks[:2]:
                    _ellipse(cover, x, y, wide, high)

            self._paint(
                self._inside(self._cover(eyes, 0.06 * apart + 0.3), rng.uniform(0.2, 0.85)),
                self._skin * rng.uniform(0.05, 0.5),
            )
        opened = rng.random()
        if opened < 0.3:
            x, y = self.landmarks[3:].mean(0)
            wide = 0.42 * float(np.linalg.norm(self.landmarks[4] - self.landmarks[3]))
            high = rng.uniform(0.1, 0.35) * wide
            mouth = self._inside(self._cover(lambda cover: _ellipse(cover, x, y, wide, high)))
            self._paint(mouth, self._skin * 0.25 if opened < 0.15 else np.float32(215 * self._bright))

    def hair_behind(self) -> np.ndarray:
        """Hair beside and above the head, short or long: its opacity, zeros where there is none."""
        rng = self._rng
        if rng.random() > 0.7:
            return np.zeros_like(self.mask)
        lift, long = rng.uniform(0.0, 0.12) * self._height, rng.random() < 0.3
        spread = rng.uniform(1.0, 1.35 if long else 1.16) * self._width / 2
        middle = self._top + 0.36 * self._height
        end = round(self._top + self._height * (rng.uniform(0.8, 1.25) if long else rng.uniform(0.35, 0.6)))

        def hair(cover):
            _ellipse(cover, self._center, middle, spread, middle - self._top + lift)
            if long:
                corners = (round(self._center - spread), round(middle)), (round(self._center + spread), end)
                cv2.rectangle(cover, *corners, 255, -1)
            else:
                cover[end:] = 0

        cover = self._cover(hair, 1.5)
        self._paint_behind(cover, self._strands)
        return cover

    def ears(self) -> np.ndarray:
        """Those that the turn of the head shows: their opacity."""
        rng = self._rng
        if rng.random() > 0.6:
            return np.zeros_like(self.mask)
        eyes = self.landmarks[:2].mean(0)
        turn = (self.landmarks[2, 0] - eyes[0]) / self._width

        def ears(cover):
            for side, edge in ((-1, self._left), (1, self._right)):
                if side * turn < 0.08:
                    x, y = edge - side * 0.02 * self._width, eyes[1] + 0.08 * self._height
                    _ellipse(cover, x, y, 0.06 * self._width, 0.11 * self._height)

        cover = self._cover(ears)
        self._paint_behind(cover, self._skin * rng.uniform(0.7, 1.0))
        return cover

    def fringe(self) -> None:
        """Hair over the forehead."""
        rng, height = self._rng, self._height
        if rng.random() > 0.55:
            return
        forehead = self.landmarks[:2, 1].mean() - 0.1 * height - self._top
        line, slant = self._top + rng.uniform(0.35, 0.85) * forehead, rng.uniform(-0.15, 0.15) * height
        left, right = self._left - 2, self._right + 2
        low = line + 0.1 * height
        corners = [
            (left, 0),
            (right, 0),
            (right, low + slant),
            (self._center, line - 0.04 * height),
            (left, low - slant),
        ]
        cover = self._cover(lambda cover: cv2.fillPoly(cover, [np.int32(corners)], 255), 1.5)
        self._paint(self._inside(cover), self._strands)

    def beard(self) -> None:
        """Hair around the mouth, stubble to full."""
        rng, (x, y) = self._rng, self.landmarks[3:].mean(0)
        if rng.random() > 0.22:
            return

        def beard(cover):
            _ellipse(cover, x, y + 0.12 * self._height, 0.42 * self._width, 0.22 * self._height)
            _ellipse(cover, x, y, 0.15 * self._width, 0.035 * self._height, level=60)

        self._paint(self._inside(self._cover(beard, 2.0), rng.uniform(0.3, 0.95)), self._strands)

    def glasses(self) -> None:
        """Two rims and a bridge."""
        rng, apart = self._rng, float(np.linalg.norm(self.landmarks[1] - self.landmarks[0]))
        if rng.random() > 0.25:
            return
        wide, high, thickness = (
            rng.uniform(0.3, 0.42) * apart,
            rng.uniform(0.2, 0.34) * apart,
            int(rng.integers(1, 3)),
        )

        def rims(cover):
            for x, y in self.landmarks[:2]:
                _ellipse(cover, x, y + 0.08 * apart, wide, high, thickness=thickness)
            bridge = np.rint(self.landmarks[:2] + ((wide, 0), (-wide, 0))).astype(int).tolist()
            cv2.line(cover, *bridge, 255, 1, cv2.LINE_AA)

        self._paint(self._inside(self._cover(rims, 0.5)), np.float32(rng.uniform(0, 120)))

    def shoulders(self) -> np.ndarray:
        """Shoulders in clothes: their opacity."""
        rng, height, width = self._rng, self._height, self._width
        clothes = rng.uniform(10, 230, 3).astype(np.float32) * self._bright
        if rng.random() < 0.5:
            clothes = np.full(3, clothes.mean(), np.float32)
        collar = self._bottom + rng.uniform(-0.02, 0.1) * height
        reach, drop = rng.uniform(0.85, 1.3) * width, rng.uniform(0.12, 0.3) * height
        half = [(0.3 * width, collar), (reach, collar + drop), (1.1 * reach, collar + height)]
        corners = [(self._center + x, y) for x, y in half] + [(self._center - x, y) for x, y in half[::-1]]
        cover = self._cover(lambda cover: cv2.fillPoly(cover, [np.int32(corners)], 255), 1.5)
        self._paint_behind(cover, clothes * (1 + self._texture(0.06, 40) + self._texture(0.1, 5)))
        return cover


def _ellipse(cover, x, y, half_width, half_height, *, thickness: int = -1, level: int = 255) -> None:
    """An upright ellipse in sixteenths of a pixel."""
    center, axes = (
        (round(16 * float(x)), round(16 * float(y))),
        (round(16 * half_width), round(16 * half_height)),
    )
    cv2.ellipse(cover, center, tuple(max(a, 1) for a in axes), 0, 0, 360, level, thickness, cv2.LINE_AA, 4)


@functools.lru_cache(maxsize=8)
def face_crops(people: int, per_person: int, seed: int, first_identity: int) -> FaceCrops:
    """Crops that every source of scenes in this process shares: they are rendered once."""
    return FaceCrops(people, per_person, seed, first_identity)
