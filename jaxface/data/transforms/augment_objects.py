"""Random changes of training images with boxes, on the host: a window of the scene, its colors, a mirror.

`ObjectAugment` is the description that stands in a configuration; its defaults are those of RetinaFace's public code
(arXiv:1905.00641), `ObjectAugment.yolo()` those of YOLO's. Boxes and landmarks move with the pixels.
"""

import dataclasses
from typing import Annotated, Literal

import cv2
import grain
import numpy as np

from jaxface.checks import AtLeast, Fraction, NonNegative, Ordered, Range, check_fields
from jaxface.data.sources.objects import object_fields
from jaxface.data.sources.source import Record
from jaxface.data.transforms.letterboxing import PADDING
from jaxface.errors import UserError

_MIRRORED = [1, 0, 2, 4, 3]  # left and right are sides of the image
_INTERPOLATIONS = (
    cv2.INTER_LINEAR,
    cv2.INTER_CUBIC,
    cv2.INTER_AREA,
    cv2.INTER_NEAREST,
    cv2.INTER_LANCZOS4,
)
_LEAST_SIDE = 1.0  # pixels of a box that is left after clipping


@dataclasses.dataclass(frozen=True)
class ObjectAugment:
    """Random changes of training images with boxes."""

    side: Annotated[int, AtLeast(0)] = 0
    """Height and width of the result, pixels; 0 keeps the longer side of the image. A source opened larger than this loses
    nothing where a small window is enlarged."""
    crop: Literal["none", "square", "jitter", "canvas"] = "square"
    """The window: all, padded to a square; a square that holds at least one whole object; all with each side moved, in or out; or
    canvas, the image in its own size and shape."""
    scales: Annotated[tuple[float, ...], Range(0.05, 1)] = (0.3, 0.45, 0.6, 0.8, 1.0)
    """Sides of the square, one of which is drawn, as fractions of the image's shorter side."""
    tries: Annotated[int, AtLeast(1)] = 250
    """How often a square is drawn until it holds a whole object; then all of the image is taken, padded to a square."""
    jitter: Annotated[float, Range(0, 0.45)] = 0.2
    """Greatest move of each side, as a fraction of the image's height or width."""
    keep: Literal["center", "overlap"] = "center"
    """Objects that stay: those whose center is inside of the window, or all that reach into it."""
    flip: Annotated[float, Fraction] = 0.5
    """Probability of mirroring left and right."""
    distortion: Annotated[float, Fraction] = 0.5
    """Probability of each change of colors below, on its own."""
    brightness: Annotated[float, NonNegative] = 32.0
    """Greatest change of all levels, which are 0 to 255, to either side."""
    contrast: Annotated[tuple[float, float], NonNegative, Ordered()] = (0.5, 1.5)
    """Least and greatest factor of all levels."""
    saturation: Annotated[tuple[float, float], NonNegative, Ordered()] = (0.5, 1.5)
    """Least and greatest factor of the saturation."""
    hue: Annotated[float, Range(0, 90)] = 18.0
    """Greatest change of the hue to either side, in steps of 2 degrees."""
    gray: Annotated[float, Fraction] = 0.0
    """Probability of making the image gray."""
    any_interpolation: bool = True
    """Resize by one of five interpolations, drawn; otherwise bilinearly, or by areas where the image shrinks."""

    def __post_init__(self):
        check_fields(self)
        if self.crop == "canvas" and self.side:
            raise UserError(f"side: needs 0 where images keep their shape, got {self.side}")

    @classmethod
    def yolo(cls, **changes) -> "ObjectAugment":
        """Sides moved by up to a fifth, exposure and saturation by up to a factor of 1.5, hue by up to 36 degrees."""
        factors = 1 / 1.5, 1.5
        settings = dict(
            crop="jitter", keep="overlap", distortion=1.0, brightness=0.0, contrast=factors, saturation=factors,
            any_interpolation=False,
        )  # fmt: skip
        return cls(**{**settings, **changes})

    @classmethod
    def none(cls, **changes) -> "ObjectAugment":
        """Nothing but the size of the result."""
        return cls(**{**dict(crop="none", flip=0.0, distortion=0.0, any_interpolation=False), **changes})

    @classmethod
    def flips(cls, **changes) -> "ObjectAugment":
        """Mirrored left and right half of the time, in their own shapes: RetinaNet's and Faster R-CNN's training on COCO."""
        return cls.none(**{**dict(crop="canvas", flip=0.5), **changes})

    @property
    def keeps_shapes(self) -> bool:
        """Whether images stay as large as they are, in as many shapes."""
        return not self.active or self.crop == "canvas"

    @property
    def active(self) -> bool:
        """Whether any change can fire."""
        return bool(
            self.side or self.crop not in ("none", "canvas") or self.flip or self.distortion or self.gray
        )

    def transform(self) -> "ObjectAugmentation":
        """The changes as a grain transformation."""
        return ObjectAugmentation(self)


class ObjectAugmentation(grain.transforms.RandomMap):
    """Applies an `ObjectAugment` to records of `sources.objects.object_fields`.

    The result is a square, or with crop="canvas" as large as the image. Only what is valid of a padded image is looked at.
    `original_size` becomes `image_size`: nobody can map a random window back.
    """

    def __init__(self, config: ObjectAugment):
        self.config = config

    def random_map(self, element: Record, rng: np.random.Generator) -> Record:
        """One record, its image and boxes changed at random; grain calls it with a generator of the record's own."""
        config = self.config
        # One generator each, so that switching one change on leaves the others' choices alone.
        window_rng, color_rng, resize_rng = (
            np.random.default_rng(seed) for seed in rng.integers(0, 1 << 63, 3)
        )
        flip, gray = rng.random(2)
        height, width = map(int, element["image_size"])
        image = element["image"][:height, :width]
        canvas = element["image"].shape[:2] if config.crop == "canvas" else None
        side = config.side or max(element["image"].shape[:2])
        valid = element["box_mask"]
        boxes = element["boxes"][valid].astype(np.float64)
        crowd = element["box_crowd"][valid]
        window = _window(config, window_rng, boxes[~crowd], height, width)
        rows = _staying(config.keep, boxes, crowd, window)
        if canvas is None:
            image, visible = cut(image, window, side, _interpolation(config, resize_rng, window, side))
            scale = side / (window[2:] - window[:2])
        else:
            visible, scale = (height, width), np.ones(2)
        boxes = (boxes[rows] - np.tile(window[:2], 2)) * np.tile(scale, 2)
        landmarks = (element["landmarks"][valid][rows] - window[1::-1]) * scale[::-1]
        if flip < config.flip:
            image = cv2.flip(image, 1)
            across = side if canvas is None else width
            boxes = boxes[:, [0, 3, 2, 1]] * (1, -1, 1, -1) + (0, across, 0, across)
            landmarks = landmarks[:, _MIRRORED] * (-1, 1) + (across, 0)
        boxes = np.clip(boxes, 0, side)
        image = _recolor(image, config, color_rng)
        if gray < config.gray:
            image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=-1)
        if canvas is not None:
            whole = np.full((*canvas, image.shape[-1]), PADDING, np.uint8)
            whole[:height, :width] = image
            image = whole
        return {
            **element,
            "image": image,
            **object_fields(
                boxes,
                image_size=visible,
                max_objects=len(valid),
                labels=element["box_label"][valid][rows],
                crowd=crowd[rows],
                landmarks=landmarks,
                landmark_mask=element["landmark_mask"][valid][rows],
            ),
        }


def _window(
    config: ObjectAugment, rng: np.random.Generator, boxes: np.ndarray, height: int, width: int
) -> np.ndarray:
    """[4] (y0, x0, y1, x1) of what becomes the result; it may reach beyond the image."""
    longer = max(height, width)
    everything = np.array([0, 0, longer, longer], np.float64)
    if config.crop == "jitter":
        extent = np.array([height, width, height, width])
        return np.array([0, 0, height, width]) + rng.uniform(-config.jitter, config.jitter, 4) * extent
    if config.crop == "square":
        for _ in range(config.tries):
            side = max(int(config.scales[rng.integers(len(config.scales))] * min(height, width)), 1)
            top, left = rng.integers(0, (height - side + 1, width - side + 1))
            window = np.array([top, left, top + side, left + side], np.float64)
            whole = (boxes[:, :2] >= window[:2]) & (boxes[:, 2:] <= window[2:])
            if not len(boxes) or whole.all(1).any():
                return window
    return everything


def _staying(keep: str, boxes: np.ndarray, crowd: np.ndarray, window: np.ndarray) -> np.ndarray:
    """[n] bool: objects of the window; a region to ignore stays wherever it is seen."""
    seen = np.minimum(boxes[:, 2:], window[2:]) - np.maximum(boxes[:, :2], window[:2])
    overlap = (seen >= np.minimum(_LEAST_SIDE, boxes[:, 2:] - boxes[:, :2])).all(1) & (seen > 0).all(1)
    if keep == "overlap":
        return overlap
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return overlap & (crowd | ((window[:2] < centers) & (centers < window[2:])).all(1))


def _interpolation(config: ObjectAugment, rng: np.random.Generator, window: np.ndarray, side: int) -> int:
    if config.any_interpolation:
        return _INTERPOLATIONS[rng.integers(len(_INTERPOLATIONS))]
    return cv2.INTER_AREA if (window[2:] - window[:2]).max() > side else cv2.INTER_LINEAR


def cut(
    image: np.ndarray, window: np.ndarray, side: int, interpolation: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """A window of an image as a square, gray where the window leaves the image.

    Args:
      image: [H, W, 3] uint8.
      window: [4] (y0, x0, y1, x1), rounded to whole pixels, in place.
      side: of the result.
      interpolation: of OpenCV.

    Returns:
      ([side, side, 3] uint8, (height, width) of what is not padding at the bottom and the right).
    """
    height, width = image.shape[:2]
    window[:] = np.rint(window)
    window[2:] = np.maximum(window[2:], window[:2] + 1)
    y0, x0, y1, x1 = window.astype(int)
    inner = image[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    outer = [max(-y0, 0), max(y1 - height, 0), max(-x0, 0), max(x1 - width, 0)]
    if any(outer):
        inner = cv2.copyMakeBorder(inner, *outer, cv2.BORDER_CONSTANT, value=(PADDING,) * 3)
    resized = cv2.resize(np.ascontiguousarray(inner), (side, side), interpolation=interpolation)
    visible = (
        min(round((min(y1, height) - y0) * side / (y1 - y0)), side),
        min(round((min(x1, width) - x0) * side / (x1 - x0)), side),
    )
    return resized, visible


def _recolor(image: np.ndarray, config: ObjectAugment, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue; half of the time contrast comes last."""
    fires = rng.random(4) < config.distortion
    late = rng.random() < 0.5
    amounts = rng.uniform(-1, 1, 4)

    def factor(limits: tuple[float, float], at: float) -> float:
        return limits[0] + (limits[1] - limits[0]) * (at + 1) / 2

    def contrast(pixels):
        return cv2.convertScaleAbs(pixels, alpha=factor(config.contrast, amounts[1])) if fires[1] else pixels

    if fires[0] and config.brightness:
        levels = np.arange(256) + amounts[0] * config.brightness
        image = cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    if not late:
        image = contrast(image)
    if fires[2] or fires[3]:
        hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
        if fires[2]:
            saturation = cv2.convertScaleAbs(saturation, alpha=factor(config.saturation, amounts[2]))
        if fires[3]:
            turned = (np.arange(256) + round(amounts[3] * config.hue)) % 180
            hue = cv2.LUT(hue, turned.astype(np.uint8))
        image = cv2.cvtColor(cv2.merge([hue, saturation, value]), cv2.COLOR_HSV2RGB)
    return contrast(image) if late else image
