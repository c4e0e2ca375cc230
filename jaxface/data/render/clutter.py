"""What is in a picture besides faces: backgrounds, shapes, and the camera that takes it; on the host, with OpenCV."""

import functools
import math

import cv2
import numpy as np

from jaxface.data.transforms.augment import jpeg_roundtrip

SKIN = np.float32(
    [(236, 199, 176), (219, 171, 140), (184, 133, 99), (135, 92, 66), (92, 61, 43), (61, 41, 31)]
)


def to_bytes(picture: np.ndarray) -> np.ndarray:
    """Levels in [0, 255], clipped and cut down to integers: float32 -> uint8."""
    return np.clip(picture, 0, 255).astype(np.uint8)


def colors(rng: np.random.Generator, count: int) -> np.ndarray:
    """[count, 3] float32 in [0, 255]: mostly dull, as walls and clothes are; a fifth the colors of skin."""
    gray = rng.uniform(0, 255, (count, 1)) + rng.normal(0, 40, (count, 3)) * (rng.random((count, 1)) < 0.7)
    skin = SKIN[rng.integers(len(SKIN), size=count)] * rng.uniform(0.6, 1.1, (count, 1))
    mixed = np.where(rng.random((count, 1)) < 0.2, skin, gray)
    return np.clip(mixed, 0, 255).astype(np.float32)


def _waves(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Stripes, checks or rings: [H, W, 1] float32 in [-1, 1]."""
    period = np.exp(rng.uniform(np.log(3), np.log(max(width, 8) / 2)))
    x = np.arange(width, dtype=np.float32)[None] - rng.uniform(0, width)
    y = np.arange(height, dtype=np.float32)[:, None] - rng.uniform(0, height)
    kind = rng.integers(3)
    angle = rng.uniform(0, np.pi)
    if kind == 0:
        phase = np.cos(angle) * x + np.sin(angle) * y
        wave = np.sin(2 * np.pi / period * phase)
    elif kind == 1:
        wave = np.sin(2 * np.pi / period * x) * np.sin(2 * np.pi / period * y)
    else:
        wave = np.sin(2 * np.pi / period * np.sqrt(x * x + y * y))
    if rng.random() < 0.5:
        wave = np.sign(wave)
    return wave[..., None].astype(np.float32)


def _clouds(rng: np.random.Generator, height: int, width: int, cells: int, channels: int) -> np.ndarray:
    """Smooth noise of variance about 1: [H, W, channels] float32."""
    rough = rng.standard_normal((cells, cells, channels), np.float32)
    return cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A wall, an interior, foliage, a pattern: [H, W, 3] uint8."""
    picture = np.full((height, width, 3), colors(rng, 1))
    if rng.random() < 0.6:  # light that falls off
        picture += rng.uniform(10, 60) * _clouds(rng, height, width, 2, 1)
    if rng.random() < 0.7:
        picture += rng.uniform(5, 45) * _clouds(
            rng, height, width, int(rng.integers(3, 9)), 3 if rng.random() < 0.4 else 1
        )
    if rng.random() < 0.5:
        cells = int(np.exp(rng.uniform(np.log(8), np.log(max(min(height, width) / 2, 9)))))
        picture += rng.uniform(5, 40) * _clouds(rng, height, width, cells, 1)
    if rng.random() < 0.3:
        picture += rng.uniform(5, 50) * _waves(rng, height, width)
    return to_bytes(picture)


def shapes(rng: np.random.Generator, picture: np.ndarray, count: int) -> None:
    """Draws discs, ellipses, boxes, polygons, lines, grids and letters over a picture [H, W, 3] uint8, in place."""
    height, width = picture.shape[:2]
    side = min(height, width)
    shades = colors(rng, count)
    sizes = side * np.exp(rng.uniform(np.log(0.03), np.log(0.5), count))
    places = rng.uniform(-0.1, 1.1, (count, 2)) * (width, height)
    kinds = rng.integers(0, 8, count)
    for kind, shade, size, (x, y) in zip(
        kinds.tolist(), shades, sizes.tolist(), places.tolist(), strict=True
    ):
        ink = tuple(shade.tolist())
        thickness = -1 if rng.random() < 0.7 else int(rng.integers(1, max(side // 40, 2) + 1))
        at = round(x), round(y)
        if kind in (0, 1):  # half of them about as an oval face is
            axes = (round(size * 0.4), round(size * 0.4 * (1.0 if kind == 0 else rng.uniform(0.5, 1.6))))
            cv2.ellipse(picture, at, axes, float(rng.uniform(-30, 30)), 0, 360, ink, thickness, cv2.LINE_AA)
            if rng.random() < 0.4:  # with two marks and a third, as in sockets, cars and buttons
                dark = tuple((shade * rng.uniform(0, 0.6)).tolist())
                mark = max(round(size * 0.05), 1)
                for dx, dy in ((-0.15, -0.1), (0.15, -0.1), (0.0, 0.2))[: int(rng.integers(1, 4))]:
                    cv2.circle(
                        picture, (round(x + dx * size), round(y + dy * size)), mark, dark, -1, cv2.LINE_AA
                    )
        elif kind == 2:
            end = round(x + size * rng.uniform(0.3, 2)), round(y + size * rng.uniform(0.3, 2))
            cv2.rectangle(picture, at, end, ink, thickness)
        elif kind == 3:
            points = np.int32((x, y) + size * rng.normal(0, 0.5, (int(rng.integers(3, 7)), 2)))
            cv2.fillPoly(picture, [points], ink, cv2.LINE_AA)
        elif kind == 4:
            end = round(x + rng.normal(0, 2) * size), round(y + rng.normal(0, 2) * size)
            cv2.line(picture, at, end, ink, int(rng.integers(1, max(side // 16, 2))), cv2.LINE_AA)
        elif kind == 5:  # a window, shelves
            step = max(round(size / rng.integers(2, 7)), 3)
            for place in range(0, round(size), step):
                cv2.line(picture, (at[0] + place, at[1]), (at[0] + place, at[1] + round(size)), ink, 1)
                cv2.line(picture, (at[0], at[1] + place), (at[0] + round(size), at[1] + place), ink, 1)
        elif kind == 6:
            text = "".join(chr(c) for c in rng.integers(48, 91, int(rng.integers(1, 7))))
            cv2.putText(
                picture, text, at, int(rng.integers(8)), size / 60, ink, max(round(size / 30), 1), cv2.LINE_AA
            )
        else:  # a textured piece
            top, left = max(at[1], 0), max(at[0], 0)
            piece = picture[top : top + round(size), left : left + round(size * rng.uniform(0.4, 2))]
            if min(piece.shape[:2]) > 4:
                rough = (
                    _waves(rng, *piece.shape[:2])
                    if rng.random() < 0.5
                    else _clouds(rng, *piece.shape[:2], int(rng.integers(2, 12)), 1)
                )
                piece[:] = to_bytes(piece + np.float32(rng.uniform(10, 60)) * rough)


@functools.cache
def _normal_numbers() -> np.ndarray:
    """[2^20] float32 of N(0, 1), always the same: to draw anew for every pixel would take longer than all else."""
    return np.random.default_rng(0).standard_normal(1 << 20, np.float32)


def _grain(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Noise of a camera: a stretch of `_normal_numbers` from a drawn place on, repeated where it ends."""
    count = math.prod(shape)
    numbers = _normal_numbers()
    start = int(rng.integers(max(len(numbers) - count, 0) + 1))
    return np.resize(numbers[start : start + count], shape)


def camera(rng: np.random.Generator, picture: np.ndarray, *, gray: float) -> np.ndarray:
    """Exposure, color cast, gray with that probability, blur, noise and JPEG: [H, W, 3] uint8 -> uint8."""
    height, width = picture.shape[:2]
    monochrome = rng.random() < gray
    if monochrome:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    if rng.random() < 0.5:  # contrast around the mean, exposure, white balance
        mean = picture.mean()
        gains = rng.uniform(0.6, 1.35) * (1 + rng.uniform(-0.08, 0.08, 3))
        offsets = mean * (rng.uniform(0.75, 1.2) - gains)
        levels = np.arange(256, dtype=np.float32)
        tables = to_bytes(levels * gains.astype(np.float32)[:, None] + offsets.astype(np.float32)[:, None])
        picture = cv2.LUT(picture, tables[0] if monochrome else np.ascontiguousarray(tables.T[None]))
    softness, sigma, factor = rng.random(), float(rng.uniform(0.3, 1.3)), rng.uniform(0.4, 0.9)
    if softness < 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    elif softness < 0.4:
        shrunk = max(round(width * factor), 4), max(round(height * factor), 4)
        picture = cv2.resize(cv2.resize(picture, shrunk, interpolation=cv2.INTER_AREA), (width, height))
    noise = rng.uniform(0, 9) if rng.random() < 0.8 else rng.uniform(9, 20)
    grain = _grain(rng, picture.shape) * np.float32(noise)
    grain += picture
    grain += 0.5
    picture = to_bytes(grain).reshape(height, width, -1)
    if rng.random() < 0.5:
        picture = jpeg_roundtrip(picture, int(rng.integers(30, 96)))
    return np.repeat(picture, 3, -1) if monochrome else picture
