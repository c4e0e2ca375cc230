"""What goes wrong in RGB-D capture, on the device: dark, blurred and noisy photographs, noisy depth with holes, occlusion.

All functions are pure and work on batches [B, H, W, C] in [-1, 1]; an encoded depth image (`jaxface.data.sources.depth`) has its
background and holes at -1. `rng` is one key, or a key for each image: then an image's corruption does not depend on how a
batch is split over devices.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import int32_labels
from jaxface.data.render import appearance
from jaxface.data.sources.depth import SPAN
from jaxface.data.transforms.pixels import check_floats, check_range
from jaxface.errors import UserError

RGBD_CORRUPTIONS = ("none", "rgb", "depth", "both", "occluded")
"""What an image pair may suffer: nothing, a bad photograph, bad depth, both, or something before the lower face."""

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class RgbdCorruption:
    """How bad a bad photograph and a bad depth map are; (least, greatest) of uniform draws."""

    dark: Range = (0.05, 0.25)
    """Photograph: factor on the light that is recorded, in [0, 1]; (1, 1) for none."""
    blur: Range = (0.3, 1.2)
    """Photograph: standard deviation of a Gaussian blur, pixels, up to 1.5."""
    noise: Range = (0.02, 0.08)
    """Photograph: standard deviation of the noise, of colors in [0, 1]."""
    depth_noise: Range = (5.0, 20.0)
    """Depth: standard deviation of the noise, mm."""
    holes: Range = (0.1, 0.4)
    """Depth: fraction of the pixels without a reading."""
    occlusion: Range = (0.35, 0.55)
    """Fraction of the height of both images that is covered, from below."""
    mix: Range = (0.0, 0.0)
    """Either: share s of uniform noise in (1 - s) x + s U(-1, 1); for data that is no photograph, such as digits."""

    def __post_init__(self):
        highest = dict(dark=1.0, blur=1.5, noise=1.0, depth_noise=SPAN, holes=1.0, occlusion=1.0, mix=1.0)
        for name, most in highest.items():
            low, high = getattr(self, name)
            if not 0 <= low <= high <= most:
                raise UserError(f"{name}: needs 0 <= least <= greatest <= {most:g}, got {low} and {high}")

    @classmethod
    def mixed(cls, share: Range) -> "RgbdCorruption":
        """Nothing but uniform noise mixed in."""
        return cls(
            dark=(1.0, 1.0), blur=(0.0, 0.0), noise=(0.0, 0.0), depth_noise=(0.0, 0.0), holes=(0.0, 0.0), mix=share
        )  # fmt: skip


def _keys(rng: jax.Array, images: jax.Array) -> jax.Array:
    if images.ndim != 4:
        raise ValueError(f"images: needs shape [B, H, W, C], got {images.shape}")
    check_floats("images", images)
    if rng.ndim == 0:
        return jax.random.split(rng, images.shape[0])
    if rng.shape != images.shape[:1]:
        raise ValueError(
            f"rng: needs one key, or one for each of the {images.shape[0]} images, got {rng.shape}"
        )
    return rng


def _uniform(key: jax.Array, limits: Range) -> jax.Array:
    return jax.random.uniform(key, minval=limits[0], maxval=limits[1])


def darken(rng: jax.Array, images: jax.Array, *, factor: Range = (0.05, 0.25)) -> jax.Array:
    """Under-exposed: (p + 1) f^(1/2.2) - 1, the light times f before the gamma of a camera."""

    def one(key, image):
        return (image + 1) * _uniform(key, factor) ** (1 / 2.2) - 1

    return jax.vmap(one)(_keys(rng, images), images)


def blur(rng: jax.Array, images: jax.Array, *, deviation: Range = (0.3, 1.2)) -> jax.Array:
    """Out of focus: a Gaussian of five taps."""

    def one(key, image):
        return appearance.blur(image, _uniform(key, deviation))

    return jax.vmap(one)(_keys(rng, images), images)


def add_noise(rng: jax.Array, images: jax.Array, *, deviation: Range = (0.02, 0.08)) -> jax.Array:
    """Sensor noise: p + 2 σ N(0, 1), clipped; σ in units of colors in [0, 1]."""

    def one(key, image):
        strength, noise = jax.random.split(key)
        sigma = 2 * _uniform(strength, deviation)
        return jnp.clip(image + sigma * jax.random.normal(noise, image.shape), -1, 1)

    return jax.vmap(one)(_keys(rng, images), images)


def mix_noise(rng: jax.Array, images: jax.Array, *, share: Range = (0.5, 0.9)) -> jax.Array:
    """(1 - s) x + s U(-1, 1), one s per image."""

    def one(key, image):
        strength, noise = jax.random.split(key)
        s = _uniform(strength, share)
        return (1 - s) * image + s * jax.random.uniform(noise, image.shape, minval=-1, maxval=1)

    return jax.vmap(one)(_keys(rng, images), images)


def depth_noise(rng: jax.Array, depth: jax.Array, *, deviation: Range = (5.0, 20.0)) -> jax.Array:
    """Noise of N(0, σ²) mm where there is a reading, the same in all channels; readings stay readings."""
    level = 2 / 255  # the least reading

    def one(key, image):
        strength, noise = jax.random.split(key)
        sigma = 2 / SPAN * _uniform(strength, deviation)
        moved = image + sigma * jax.random.normal(noise, (*image.shape[:2], 1))
        return jnp.where(image > -1, jnp.clip(moved, level - 1, 1), image)

    return jax.vmap(one)(_keys(rng, depth), depth)


def depth_holes(rng: jax.Array, depth: jax.Array, *, fraction: Range = (0.1, 0.4)) -> jax.Array:
    """A random fraction of the pixels without a reading, the same in all channels."""

    def one(key, image):
        strength, where = jax.random.split(key)
        gone = jax.random.uniform(where, (*image.shape[:2], 1)) < _uniform(strength, fraction)
        return jnp.where(gone, -1.0, image)

    return jax.vmap(one)(_keys(rng, depth), depth)


def fill_holes(depth: jax.Array) -> jax.Array:
    """The largest value of each 3 × 3 neighborhood: closes small holes and thickens the nearest surface."""
    check_floats("depth", depth)
    return jax.lax.reduce_window(depth, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


def cover_below(
    rng: jax.Array, images: jax.Array, depth: jax.Array, *, fraction: Range = (0.35, 0.55)
) -> tuple[jax.Array, jax.Array]:
    """Something before the lower face: one gray level in the photograph, a plane about as near as the nose in depth."""

    def one(key, image, depth):
        edge, gray, near = jax.random.split(key, 3)
        rows = (jnp.arange(image.shape[0]) + 0.5) / image.shape[0]
        hidden = (rows > 1 - _uniform(edge, fraction))[:, None, None]
        color = jax.random.uniform(gray, minval=-1.0, maxval=1.0)
        plane = jax.random.uniform(near, minval=0.0, maxval=0.6)
        return jnp.where(hidden, color, image), jnp.where(hidden, plane, depth)

    return jax.vmap(one)(_keys(rng, images), images, depth)


def augment_depth(
    rng: jax.Array,
    depth: jax.Array,
    *,
    noise: Range = (1.0, 4.0),
    holes: Range = (0.0, 0.1),
    occlusion: Range = (0.1, 0.3),
    probability: float = 0.5,
) -> jax.Array:
    """Changes of encoded depth images to learn from: noise in z, holes, the 3 × 3 maximum, a covering rectangle.

    Each fires with its probability, the rectangle with half of it (which changes there are and the noise follow the recipe of
    arXiv:2403.06529, the rest is design).

    Args:
      rng: one key, or [B].
      depth: [B, H, W, C] float in [-1, 1].
      noise: standard deviation, mm.
      holes: fraction of the pixels.
      occlusion: sides of the rectangle, fractions of the image's.
      probability: in [0, 1].
    """
    keys = jax.vmap(lambda key: jax.random.split(key, 6))(_keys(rng, depth))
    fires = jax.vmap(jax.random.uniform)(keys[:, 0])

    def sometimes(changed, draw, chance):
        return jnp.where((draw < chance)[:, None, None, None], changed, depth)

    depth = sometimes(depth_noise(keys[:, 1], depth, deviation=noise), fires, probability)
    fires = jax.vmap(jax.random.uniform)(keys[:, 2])
    depth = sometimes(depth_holes(keys[:, 3], depth, fraction=holes), fires, probability)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (6,)))(keys[:, 4])
    depth = sometimes(fill_holes(depth), draws[:, 0], probability)

    def cover(draw, image):
        height, width = image.shape[:2]
        side = occlusion[0] + (occlusion[1] - occlusion[0]) * draw[1]
        rows = (jnp.arange(height) + 0.5) / height
        columns = (jnp.arange(width) + 0.5) / width
        inside = (jnp.abs(rows - draw[2]) < side / 2)[:, None] & (jnp.abs(columns - draw[3]) < side / 2)
        return jnp.where(inside[..., None], draw[4], image)  # between the nose tip and 60 mm before it

    return sometimes(jax.vmap(cover)(draws, depth), draws[:, 5], probability / 2)


def corrupt_rgbd(
    rng: jax.Array,
    images: jax.Array,
    depth: jax.Array,
    kinds: jax.Array,
    *,
    strength: RgbdCorruption = RgbdCorruption(),
) -> tuple[jax.Array, jax.Array]:
    """Pairs, each corrupted in its own way.

    Args:
      rng: one key, or [B]; the same draws whatever the kinds are.
      images: [B, H, W, C] float in [-1, 1], photographs.
      depth: [B, H, W, C'] float in [-1, 1], encoded depth.
      kinds: [B] integers, positions in `RGBD_CORRUPTIONS`.
      strength: how bad; static.

    Returns:
      (images, depth), of which those of kind "none" are the same bit for bit.

    Raises:
      ValueError: shapes disagree, another type, or (where the values are known) images beyond [-1, 1] or a kind that is none.
    """
    if images.shape[:3] != depth.shape[:3] or kinds.shape != images.shape[:1]:
        raise ValueError(
            f"images, depth, kinds: need [B, H, W, C] twice and [B], got {images.shape}, {depth.shape}, {kinds.shape}"
        )
    check_range("images", images), check_range("depth", check_floats("depth", depth))
    kinds = int32_labels("kinds", kinds, len(RGBD_CORRUPTIONS))
    keys = jax.vmap(lambda key: jax.random.split(key, 8))(_keys(rng, images))

    def among(*names):
        indices = np.array([RGBD_CORRUPTIONS.index(name) for name in names])
        return (kinds[:, None] == indices).any(axis=1)[:, None, None, None]

    bad = images
    if strength.dark != (1.0, 1.0):
        bad = darken(keys[:, 0], bad, factor=strength.dark)
    if strength.blur[1] > 0:
        bad = blur(keys[:, 1], bad, deviation=strength.blur)
    if strength.noise[1] > 0:
        bad = add_noise(keys[:, 2], bad, deviation=strength.noise)
    if strength.mix[1] > 0:
        bad = mix_noise(keys[:, 3], bad, share=strength.mix)
    poor = depth
    if strength.depth_noise[1] > 0:
        poor = depth_noise(keys[:, 4], poor, deviation=strength.depth_noise)
    if strength.holes[1] > 0:
        poor = depth_holes(keys[:, 5], poor, fraction=strength.holes)
    if strength.mix[1] > 0:
        poor = mix_noise(keys[:, 6], poor, share=strength.mix)
    hidden, covered = cover_below(keys[:, 7], images, depth, fraction=strength.occlusion)
    images = jnp.where(among("rgb", "both"), bad, jnp.where(among("occluded"), hidden, images))
    depth = jnp.where(among("depth", "both"), poor, jnp.where(among("occluded"), covered, depth))
    return images, depth
