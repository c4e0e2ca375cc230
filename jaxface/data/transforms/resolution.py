"""Faces of few pixels: shrunk to a tiny size and enlarged again, on the device for training and on the host for evaluation.

Both ways are bicubic (kernel a = -0.5, antialiased when shrinking), one axis after the other, rounded to 8-bit levels after
each, as Pillow has it; they agree to a gray level.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxface.data.sources.images import check_bytes
from jaxface.data.sources.source import Record, Source
from jaxface.data.transforms.pixels import check_range, normalize_pixels, round_to_levels
from jaxface.errors import UserError


def check_sizes(
    sizes: Sequence[int], image_shape: Sequence[int] | None = None, *, name: str = "sizes"
) -> None:
    """Raises UserError for a size below 1 pixel, or above the side of images of `image_shape` (H, W, ...)."""
    side = None if image_shape is None else min(image_shape[:2])
    for size in sizes:
        if size < 1 or size != int(size) or (side is not None and size > side):
            raise UserError(f"{name}: needs sides from 1 to {side or 'that of the images'}, got {size}")


def check_probabilities(probabilities: Sequence[float], count: int, *, name: str = "probabilities") -> None:
    """Raises UserError unless these are `count` probabilities that sum to 1."""
    if len(probabilities) != count:
        raise UserError(f"{name}: needs one for each of the {count} sizes, got {len(probabilities)}")
    if not all(math.isfinite(p) and p >= 0 for p in probabilities) or abs(sum(probabilities) - 1) > 1e-6:
        raise UserError(f"{name}: needs values from 0 that sum to 1, got {tuple(probabilities)}")


def _to_levels(images: jax.Array) -> jax.Array:
    """The nearest of the 256 levels of a pixel in [-1, 1]; what lies beyond is clipped."""
    return round_to_levels(images)


def low_resolution(images: jax.Array, size: int, *, round_levels: bool = True) -> jax.Array:
    """Images of `size` × `size` pixels, enlarged to the size they came in (arXiv:2302.05621).

        up(down(x, r × r), H × W)

    Args:
      images: [B, H, W, C] float in [-1, 1], or uint8.
      size: r in [1, min(H, W)]; static. At the full size of a square image nothing changes but the rounding.
      round_levels: round to 8-bit levels and clip after every axis of either resize, as Pillow does; no gradient passes then.

    Returns:
      [B, H, W, C] float32.

    Raises:
      ValueError: not a batch of images, another type, or (where the values are known) floats beyond [-1, 1].
      UserError: a size out of its range.

    Example:
      >>> jax.eval_shape(lambda images: low_resolution(images, 2), jnp.zeros((1, 8, 8, 3))).shape
      (1, 8, 8, 3)
    """
    if images.ndim != 4:
        raise ValueError(f"images: needs shape [B, H, W, C], got {images.shape}")
    check_sizes((size,), images.shape[1:], name="size")
    images = check_range("images", normalize_pixels(images)).astype(jnp.float32)
    batch, height, width, channels = images.shape
    for side in ((height, size), (size, size), (size, width), (height, width)):
        images = jax.image.resize(images, (batch, *side, channels), "bicubic", antialias=True)
        images = _to_levels(images) if round_levels else images
    return images


def degrade_resolution(
    rng: jax.Array,
    images: jax.Array,
    *,
    sizes: tuple[int, ...],
    probabilities: tuple[float, ...],
    round_levels: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Every image at its own size, drawn from a few: multi-resolution augmentation (arXiv:2302.05621).

        x_b -> up(down(x_b, r_b × r_b), H × W),        r_b ~ Categorical(sizes; probabilities)

    Shapes must not depend on the draw: every size is computed for the whole batch and selected from. Three sizes of 256
    images of 112 × 112 are three times 38 MB that the compiler may reuse.

    Args:
      rng: key of the draw.
      images: [B, H, W, C] float in [-1, 1], or uint8.
      sizes: pixels, each in [1, min(H, W)]; static.
      probabilities: of each size, ≥ 0 with sum 1; static.
      round_levels: as `low_resolution`.

    Returns:
      ([B, H, W, C] float32, [B] int32 index into `sizes`).

    Raises:
      ValueError: not a batch of images. UserError: no size or one out of its range, or probabilities that do not fit.

    Example:
      >>> import functools
      >>> images = jnp.zeros((4, 8, 8, 3))
      >>> degrade = functools.partial(degrade_resolution, sizes=(2, 8), probabilities=(0.5, 0.5))
      >>> small, index = jax.eval_shape(degrade, jax.random.key(0), images)
      >>> small.shape, index.shape
      ((4, 8, 8, 3), (4,))
    """
    if not sizes:
        raise UserError("sizes: needs at least one, got none")
    check_probabilities(probabilities, len(sizes))
    size_index = jax.random.choice(
        rng, len(sizes), images.shape[:1], p=jnp.asarray(probabilities, jnp.float32)
    ).astype(jnp.int32)
    result = low_resolution(images, sizes[0], round_levels=round_levels)
    for index, size in enumerate(sizes[1:], start=1):
        candidate = low_resolution(images, size, round_levels=round_levels)
        result = jnp.where((size_index == index)[:, None, None, None], candidate, result)
    return result, size_index


def mirror_some(rng: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Images [B, H, W, C], each mirrored left and right with a probability in [0, 1]."""
    mirrored = jax.random.bernoulli(rng, probability, images.shape[:1])
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


class LowResolution:
    """A source whose square images are shrunk to `size` pixels and enlarged again, with Pillow; all else stays.

    Verification pairs that come with the source stay too.
    """

    def __init__(self, source: Source, size: int):
        """Raises UserError for images that are not square, and for a size outside [1, their side]."""
        height, width, _ = source.image_shape
        if height != width:
            raise UserError(f"data: low resolutions need square images, got {height}x{width}")
        check_sizes((size,), source.image_shape, name="size")
        self._source, self._size = source, size
        self.labels, self.class_names = source.labels, source.class_names
        self.image_shape = source.image_shape
        if hasattr(source, "pairs"):
            self.pairs = source.pairs

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = dict(self._source[index])
        record["image"] = resize_twice(record["image"], self._size)
        return record


def resize_twice(pixels: np.ndarray, size: int) -> np.ndarray:
    """[H, W, C] uint8 (C 1 or 3) after Pillow's bicubic resize to `size` × `size` and back.

    Raises:
      ValueError: pixels of another type or shape. UserError: a size out of its range.

    Example:
      >>> resize_twice(np.zeros((8, 8, 3), np.uint8), 2).shape
      (8, 8, 3)
    """
    check_bytes("pixels", pixels)
    check_sizes((size,), pixels.shape, name="size")
    height, width, channels = pixels.shape
    if (height, width) == (size, size):
        return pixels
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    small = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).reshape(pixels.shape)
