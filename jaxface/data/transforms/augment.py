"""Random changes of training images, on the host.

`Augment` is the description that stands in a configuration; `Augmentation` is the same as a grain
transformation. Each record gets its own random numbers, drawn from the seed and the record's position in the
stream: the same whichever thread, process or shard handles it.
"""

import dataclasses
import math
from typing import Annotated, Literal

import cv2
import grain
import numpy as np

from jaxface.checks import AtLeast, Fraction, Integers, Ordered, ProperFraction, Range, check_fields
from jaxface.data.sources.source import Record
from jaxface.data.transforms import geometry, policies
from jaxface.errors import UserError

_PIXELS = ("color", "gray", "blur", "jpeg", "occlusion", "low_resolution")
_PROBABILITIES = ("flip", "crop", "rotate", "cutout", *_PIXELS)


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes of training images. Each but the shift fires on its own with its probability; only the flip is on by
    default."""

    flip: Annotated[float, Fraction] = 0.5
    """Probability of mirroring left and right."""
    crop: Annotated[float, Fraction] = 0.0
    """Probability of cutting a window and resizing it back."""
    crop_scale: Annotated[tuple[float, float], Range(0.1, 4), Ordered()] = (0.8, 1.0)
    """Least and greatest side of that window, as a fraction of the image's side; above 1 the face shrinks."""
    crop_shift: Annotated[float, Fraction] = 0.05
    """Greatest shift of that window's center beyond the image, as a fraction of the image's side, in either
    direction."""
    shift: Annotated[int, AtLeast(0)] = 0
    """Greatest shift in whole pixels, either way, of every image; what comes in is black: the random crop after padding of CIFAR
    recipes, without resampling."""
    cutout: Annotated[float, Fraction] = 0.0
    """Probability of blacking out one rectangle, the same in the image and in every other map of the record, such as depth."""
    cutout_area: Annotated[tuple[float, float], Range(0, 1, above=True), Ordered()] = (0.02, 0.15)
    """Least and greatest area of that rectangle, as a fraction of the image's."""
    color: Annotated[float, Fraction] = 0.0
    """Probability of changing brightness, contrast, saturation and the balance of the channels."""
    color_strength: Annotated[float, ProperFraction] = 0.3
    """Greatest relative change of brightness, contrast and saturation; a third of it for each channel."""
    gray: Annotated[float, Fraction] = 0.0
    """Probability of making the image gray: its luma in all three channels."""
    blur: Annotated[float, Fraction] = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: Annotated[tuple[float, float], Range(0.1, 100), Ordered()] = (0.5, 1.5)
    """Least and greatest standard deviation of that blur at 112 pixels; it grows with the image."""
    jpeg: Annotated[float, Fraction] = 0.0
    """Probability of encoding as JPEG and decoding again."""
    jpeg_quality: Annotated[tuple[int, int], Integers(1, 100), Ordered()] = (30, 90)
    """Least and greatest JPEG quality, 1 to 100."""
    occlusion: Annotated[float, Fraction] = 0.0
    """Probability of covering a rectangle with one random color."""
    occlusion_area: Annotated[tuple[float, float], Range(0.001, 1), Ordered()] = (0.02, 0.2)
    """Least and greatest area of that rectangle, as a fraction of the image."""
    low_resolution: Annotated[float, Fraction] = 0.0
    """Probability of shrinking the image and enlarging it again."""
    low_resolution_side: Annotated[tuple[float, float], Range(0.01, 1), Ordered()] = (0.15, 0.5)
    """Least and greatest side of the small image, as a fraction of the image's side."""
    rotate: Annotated[float, Fraction] = 0.0
    """Probability of turning the image around its center."""
    rotate_degrees: Annotated[float, Range(0, 180)] = 6.0
    """Greatest angle of that turn, either way."""
    hue: Annotated[float, Range(0, 0.5)] = 0.0
    """Greatest turn of the hues where colors are changed, in turns."""
    occlusion_noise: bool = False
    """Cover that rectangle with random pixels instead of one color (random erasing, arXiv:1708.04896)."""
    policy: Literal["none", "cifar10", "rand"] = "none"
    """Changes of colors and geometry besides: the policy that AutoAugment learned on CIFAR-10 (arXiv:1805.09501), or RandAugment
    (arXiv:1909.13719)."""
    rand_operations: Annotated[int, AtLeast(1)] = 2
    """Operations of RandAugment in a row."""
    rand_magnitude: Annotated[float, Range(0, 30)] = 10.0
    """Their strength, of 30."""
    hole: Annotated[int, AtLeast(0)] = 0
    """Side of a square that is blacked out in every image, pixels, around any of them (Cutout, arXiv:1708.04552); 0 for none."""
    noise: Annotated[float, ProperFraction] = 0.0
    """Standard deviation of Gaussian noise on every pixel, as a fraction of white."""

    def __post_init__(self):
        check_fields(self)
        if self.policy not in ("none", "cifar10", "rand"):
            raise UserError(f"policy: needs none, cifar10 or rand, got {self.policy!r}")

    @property
    def active(self) -> bool:
        """Whether any change can fire."""
        always = self.shift > 0 or self.policy != "none" or self.hole > 0 or self.noise > 0
        return always or any(getattr(self, name) for name in _PROBABILITIES)

    def transform(self) -> "Augmentation":
        """The changes as a grain transformation."""
        return Augmentation(self)


class Augmentation(grain.transforms.RandomMap):
    """Applies an `Augment` to records, in the order in which a camera would: scene, then optics, then file.

    Flip, crop, turn and shift move landmarks, boxes, depth and infrared with the pixels, and a cutout is one hole in all of
    them; the others change the pixels alone. The size of the image, its dtype and every other field stay.
    """

    def __init__(self, config: Augment):
        self.config = config

    def random_map(self, element: Record, rng: np.random.Generator) -> Record:
        """One record with its image changed at random; grain calls it with a generator of the record's own."""
        config = self.config
        record = dict(element)
        # One draw and one seed per change whether or not it fires, so that switching one on leaves the
        # others' choices alone. (`rng.spawn` would not do: grain keeps a pool of generators, and children
        # depend on their past.)
        flip, crop, occlusion, color, blur, low, jpeg = rng.random(7)
        seeds = rng.integers(0, 1 << 63, 5)
        gray = rng.random()
        if flip < config.flip:
            record = geometry.flip(record)
        if crop < config.crop:
            record = _crop(record, config, np.random.default_rng(seeds[0]))
        if config.rotate:
            turning = np.random.default_rng([seeds[0], 1])
            fires, angle = turning.random(), turning.uniform(-config.rotate_degrees, config.rotate_degrees)
            record = geometry.rotate(record, angle) if fires < config.rotate else record
        if config.shift:
            x, y = rng.integers(-config.shift, config.shift + 1, 2)
            record = geometry.shift(record, int(x), int(y))
        if config.cutout:  # later changes draw from generators of their own
            probability, seed = rng.random(), rng.integers(0, 1 << 63)
            if probability < config.cutout:
                record = _cut_out(record, config, np.random.default_rng(seed))
        image = record["image"]
        if image.dtype != np.uint8 and any(getattr(config, name) for name in _PIXELS):
            raise ValueError(f"image: needs uint8 for changes of colors, got {image.dtype}")
        if occlusion < config.occlusion:
            image = _occlude(image, config, np.random.default_rng(seeds[1]))
        if color < config.color:
            image = _recolor(image, config, np.random.default_rng(seeds[2]))
        if gray < config.gray and image.shape[-1] == 3:
            image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=-1)
        if blur < config.blur:
            image = _blur(image, config, np.random.default_rng(seeds[3]))
        if low < config.low_resolution:
            image = _shrink(image, config, np.random.default_rng(seeds[4]))
        if jpeg < config.jpeg:
            low_quality, high_quality = config.jpeg_quality
            # The draw that decided to fire is uniform below the probability: reuse it for the quality.
            quality = low_quality + int(jpeg / config.jpeg * (high_quality - low_quality + 1))
            image = jpeg_roundtrip(image, min(quality, high_quality))
        if config.policy != "none" or config.hole or config.noise:
            image = _always(image, config, seeds[4], rng)
        record["image"] = image
        return record


def _always(image: np.ndarray, config: Augment, seed: int, rng: np.random.Generator) -> np.ndarray:
    """What every image has; the noise is the last that draws."""
    if image.dtype != np.uint8:
        raise ValueError(f"image: needs uint8 for changes of colors, got {image.dtype}")
    if config.policy == "cifar10":
        image = policies.cifar10_policy(image, np.random.default_rng([seed, 1]))
    elif config.policy == "rand":
        count, magnitude = config.rand_operations, config.rand_magnitude
        image = policies.rand_augment(
            image, np.random.default_rng([seed, 1]), operations=count, magnitude=magnitude
        )
    if config.hole:
        image = policies.cut_hole(image, np.random.default_rng([seed, 2]), side=config.hole)
    if config.noise:
        noise = rng.standard_normal(image.shape, np.float32)
        image = cv2.add(image, noise * (255 * config.noise), dtype=cv2.CV_8U).reshape(image.shape)
    return image


def _crop(record: Record, config: Augment, rng: np.random.Generator) -> Record:
    size = record["image"].shape[0]
    scale = rng.uniform(*config.crop_scale)
    reach = abs(1 - scale) / 2 + config.crop_shift
    y, x = (0.5 + rng.uniform(-reach, reach, 2)) * size
    return geometry.window(record, y - scale * size / 2, x - scale * size / 2, scale * size)


def _rectangle(
    shape: tuple[int, ...], fractions: tuple[float, float], rng: np.random.Generator
) -> tuple[slice, slice]:
    """Rows and columns of a rectangle somewhere in an image, its sides at most 1 : 2."""
    height, width = shape[:2]
    area = rng.uniform(*fractions) * height * width
    aspect = math.exp(rng.uniform(-math.log(2), math.log(2)))
    h = min(max(round(math.sqrt(area * aspect)), 1), height)
    w = min(max(round(math.sqrt(area / aspect)), 1), width)
    top, left = rng.integers(0, (height - h + 1, width - w + 1))
    return slice(top, top + h), slice(left, left + w)


def _cut_out(record: Record, config: Augment, rng: np.random.Generator) -> Record:
    rectangle = _rectangle(record["image"].shape, config.cutout_area, rng)
    record = dict(record)
    for name in geometry.MAPS:
        if name in record:
            record[name] = record[name].copy()
            record[name][rectangle] = 0
    return record


def _occlude(image: np.ndarray, config: Augment, rng: np.random.Generator) -> np.ndarray:
    rectangle = _rectangle(image.shape, config.occlusion_area, rng)
    image = image.copy()
    color = rng.integers(0, 256, image.shape[-1])
    if config.occlusion_noise:
        color = rng.integers(0, 256, image[rectangle].shape)
    image[rectangle] = color
    return image


def _recolor(image: np.ndarray, config: Augment, rng: np.random.Generator) -> np.ndarray:
    strength, channels = config.color_strength, image.shape[-1]
    brightness, contrast, saturation = 1 + rng.uniform(-strength, strength, 3)
    gain = brightness * (1 + rng.uniform(-strength / 3, strength / 3, channels))
    # Saturation scales the distance to the pixel's gray, contrast to the image's mean, gain the rest: one affine map.
    mix = saturation * np.eye(channels) + (1 - saturation) / channels
    offset = np.full((channels, 1), (1 - contrast) * image.mean())
    matrix = gain[:, None] * np.concatenate([contrast * mix, offset], axis=1)
    image = cv2.transform(image, matrix).reshape(image.shape)  # rounds and clips
    if config.hue and channels == 3:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        turn = round(180 * rng.uniform(-config.hue, config.hue))  # OpenCV has 180 hues
        hsv[..., 0] = (hsv[..., 0].astype(np.int16) + turn) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return image


def _blur(image: np.ndarray, config: Augment, rng: np.random.Generator) -> np.ndarray:
    sigma = rng.uniform(*config.blur_sigma) * image.shape[0] / 112
    return cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape)


def _shrink(image: np.ndarray, config: Augment, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    factor = rng.uniform(*config.low_resolution_side)
    small = (max(round(width * factor), 1), max(round(height * factor), 1))
    shrunk = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_LINEAR).reshape(image.shape)


def jpeg_roundtrip(image: np.ndarray, quality: int) -> np.ndarray:
    """[H, W, C] uint8 after JPEG at `quality` (1..100); C is 1 or 3."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    if image.shape[-1] == 1:
        return cv2.imdecode(cv2.imencode(".jpg", image, options)[1], cv2.IMREAD_GRAYSCALE)[..., None]
    # OpenCV's codec expects blue first: color is compressed more than brightness, so the order matters.
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
