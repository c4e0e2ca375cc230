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
_CHUNK = 32  # faces per compiled call
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


def _crop(shown: dict[str, np.ndarray], rng: np.random.Generator) -> Crop:
    def wider(values):
        return cv2.copyMakeBorder(values, _TOP, _BOTTOM, _SIDES, _SIDES, cv2.BORDER_REPLICATE)

    mask = cv2.copyMakeBorder(
        shown["mask"].astype(np.uint8) * 255, _TOP, _BOTTOM, _SIDES, _SIDES, cv2.BORDER_CONSTANT
    )
    neck = wider((shown["neck"] * 255).astype(np.uint8))
    color = wider(shown["image"]).astype(np.float32)
    offset = np.float32([_SIDES + 0.5, _TOP + 0.5])  # the renderer has pixel centers at integers
    landmarks = shown["landmarks"] + offset
    rows, columns = np.nonzero(mask)
    corners = np.concatenate([np.stack([columns + dx, rows + dy], -1) for dx in (0, 1) for dy in (0, 1)])
    outline = cv2.convexHull(corners.astype(np.float32))[:, 0]
    (left, top), (right, bottom) = outline.min(0), outline.max(0)
    height, width = bottom - top, right - left
    center = (left + right) / 2
    skin = color[mask > 0].mean(0)

    def texture(strength, cells):
        rough = rng.normal(0, strength, (cells, cells, 1)).astype(np.float32)
        return cv2.resize(rough, mask.shape[::-1], interpolation=cv2.INTER_CUBIC)[..., None]

    def drawn(draw, soft=0.8):
        cover = np.zeros_like(mask)
        draw(cover)
        return cv2.GaussianBlur(cover, (0, 0), soft)

    def ellipse(cover, x, y, half_width, half_height, thickness=-1, value=255):
        cv2.ellipse(
            cover,
            (round(16 * x), round(16 * y)),
            (max(round(16 * half_width), 1), max(round(16 * half_height), 1)),
            0, 0, 360, value, thickness, cv2.LINE_AA, 4,
        )  # fmt: skip

    def paint(cover, shade):
        nonlocal color
        color += (cover[..., None] / np.float32(255)) * (shade - color)

    # Light of the photograph on hair and clothes, which have no geometry.
    bright = np.clip(skin.max() / 200, 0.3, 1.2)
    hair_color = np.float32(
        [(20, 16, 14), (48, 34, 24), (90, 64, 40), (150, 118, 78), (150, 148, 145)][
            rng.choice(5, p=(0.34, 0.26, 0.18, 0.1, 0.12))
        ]
    ) * (bright * rng.uniform(0.7, 1.2))
    strands = hair_color * (1 + texture(0.18, 24) + texture(0.15, 6))
    behind = np.zeros_like(mask)  # hair and ears beside the head
    if rng.random() < 0.7:
        lift = rng.uniform(0.0, 0.12) * height
        long = rng.random() < 0.3
        spread = rng.uniform(1.0, 1.16 if not long else 1.35) * width / 2

        def draw_hair(cover):
            middle = top + 0.36 * height
            ellipse(cover, center, middle, spread, middle - top + lift)
            if long:
                end = top + rng.uniform(0.8, 1.25) * height
                cv2.rectangle(
                    cover,
                    (round(center - spread), round(middle)),
                    (round(center + spread), round(end)),
                    255,
                    -1,
                )
            else:
                cover[round(top + rng.uniform(0.35, 0.6) * height) :] = 0

        behind = drawn(draw_hair, 1.5)
        paint(np.where(mask > 0, 0, behind).astype(np.uint8), strands)
    if rng.random() < 0.6:
        nose, eyes = landmarks[2], landmarks[:2].mean(0)
        turn = np.clip((nose[0] - eyes[0]) / width, -0.3, 0.3)

        def draw_ears(cover):
            for side, edge in ((-1, left), (1, right)):
                if side * turn < 0.08:
                    ellipse(
                        cover,
                        edge - side * 0.02 * width,
                        eyes[1] + 0.08 * height,
                        0.06 * width,
                        0.11 * height,
                    )

        ears = drawn(draw_ears)
        paint(np.where(mask > 0, 0, ears).astype(np.uint8), skin * rng.uniform(0.7, 1.0))
        behind = np.maximum(behind, ears)

    inside = lambda cover: np.minimum(cover, mask)  # noqa: E731
    eye_line, mouth_line = landmarks[:2, 1].mean(), landmarks[3:, 1].mean()
    if rng.random() < 0.55:  # a fringe
        line = top + rng.uniform(0.35, 0.85) * (eye_line - 0.1 * height - top)
        slant = rng.uniform(-0.15, 0.15) * height

        def draw_fringe(cover):
            polygon = np.float32(
                [
                    (left - 2, 0),
                    (right + 2, 0),
                    (right + 2, line + slant + 0.1 * height),
                    (center, line - 0.04 * height),
                    (left - 2, line - slant + 0.1 * height),
                ]
            )
            cv2.fillPoly(cover, [np.int32(polygon)], 255)

        paint(inside(drawn(draw_fringe, 1.5)), strands)
    if rng.random() < 0.22:  # a beard
        amount = rng.uniform(0.3, 0.95)

        def draw_beard(cover):
            x = landmarks[3:, 0].mean()
            ellipse(cover, x, mouth_line + 0.12 * height, 0.42 * width, 0.22 * height)
            ellipse(cover, x, mouth_line, 0.15 * width, 0.035 * height, value=60)

        paint(inside((drawn(draw_beard, 2.0) * amount).astype(np.uint8)), strands)
    if rng.random() < 0.25:  # glasses
        apart = np.linalg.norm(landmarks[1] - landmarks[0])
        half_width, half_height = rng.uniform(0.3, 0.42) * apart, rng.uniform(0.2, 0.34) * apart

        def draw_glasses(cover):
            for x, y in landmarks[:2]:
                ellipse(cover, x, y + 0.08 * apart, half_width, half_height, thickness=rng.integers(1, 3))
            ends = [
                tuple(np.int32(16 * p))
                for p in (landmarks[0] + (half_width, 0), landmarks[1] - (half_width, 0))
            ]
            cv2.line(cover, tuple(map(int, ends[0])), tuple(map(int, ends[1])), 255, 1, cv2.LINE_AA, 4)

        paint(inside(drawn(draw_glasses, 0.5)), np.float32(rng.uniform(0, 120)))

    head = cv2.GaussianBlur(np.maximum(mask, behind), (0, 0), 0.7)
    clothes = rng.uniform(10, 230, 3).astype(np.float32) * bright
    if rng.random() < 0.5:
        clothes = np.full(3, clothes.mean(), np.float32)
    collar = bottom + rng.uniform(-0.02, 0.1) * height

    def draw_shoulders(cover):
        reach, drop = rng.uniform(0.85, 1.3) * width, rng.uniform(0.12, 0.3) * height
        polygon = np.float32([
            (center - 0.3 * width, collar), (center + 0.3 * width, collar), (center + reach, collar + drop),
            (center + 1.1 * reach, collar + height), (center - 1.1 * reach, collar + height), (center - reach, collar + drop),
        ])  # fmt: skip
        cv2.fillPoly(cover, [np.int32(16 * polygon)], 255, cv2.LINE_AA, 4)

    shoulders = drawn(draw_shoulders, 1.5)
    paint(
        np.where(mask > 0, 0, shoulders).astype(np.uint8), clothes * (1 + texture(0.06, 40) + texture(0.1, 5))
    )
    body = np.maximum(np.maximum(head, shoulders), cv2.GaussianBlur(neck, (0, 0), 0.7))
    covers = np.stack([head, body], -1)

    # Beside the silhouette its own colors go on, so that a soft edge shows nothing of the renderer's background.
    weight = (body > 200).astype(np.float32)[..., None]
    near = cv2.GaussianBlur(color * weight, (0, 0), 3) / (
        cv2.GaussianBlur(weight, (0, 0), 3)[..., None] + 1e-3
    )
    color = np.where(weight > 0, color, near)
    colors = [np.clip(color, 0, 255).astype(np.uint8)]
    all_covers = [covers]
    for _ in range(_LEVELS - 1):
        size = tuple(-(-side // 2) for side in colors[-1].shape[1::-1])
        colors.append(cv2.resize(colors[-1], size, interpolation=cv2.INTER_AREA))
        all_covers.append(cv2.resize(all_covers[-1], size, interpolation=cv2.INTER_AREA))
    return Crop(tuple(colors), tuple(all_covers), outline, landmarks.astype(np.float32))


@functools.lru_cache(maxsize=8)
def face_crops(people: int, per_person: int, seed: int, first_identity: int) -> FaceCrops:
    """Crops that every source of scenes in this process shares: they are rendered once."""
    return FaceCrops(people, per_person, seed, first_identity)
