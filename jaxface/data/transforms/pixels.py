"""The ranges of a pixel: uint8 on the host, float32 in [-1, 1] on the device, and the fractions in [0, 1] of what draws."""

import jax
import jax.numpy as jnp
import numpy as np

Batch = dict[str, jax.Array]


def from_levels[Levels: (jax.Array, float)](levels: Levels) -> Levels:
    """(p - 127.5) / 127.5: levels in [0, 255] as floats in [-1, 1]."""
    return (levels - 127.5) / 127.5


def to_levels(image: jax.Array) -> jax.Array:
    """127.5 x + 127.5, the inverse of `from_levels`; not rounded."""
    return image * 127.5 + 127.5


def normalize_pixels(image: jax.Array) -> jax.Array:
    """uint8 pixels as float32 in [-1, 1]. A float image is in that range already and passes.

    Raises:
      ValueError: any other type, whose range nobody knows.
    """
    if image.dtype == jnp.uint8:
        return from_levels(image.astype(jnp.float32))
    return check_floats("image", image, "uint8 pixels or ")


def check_floats(name: str, image: jax.Array, other: str = "") -> jax.Array:
    """The image; a ValueError where it has no float type."""
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"{name}: needs {other}floats in [-1, 1], got {image.dtype}")
    return image


def check_range(name: str, image: jax.Array) -> jax.Array:
    """The image; a ValueError where values that are known lie outside [-1, 1] by more than rounding."""
    if not isinstance(image, jax.core.Tracer) and image.size:
        values = np.asarray(image, np.float32)  # known values stay known inside of `jit`
        low, high = values.min(), values.max()
        if not (low >= -1 - 1e-2 and high <= 1 + 1e-2):
            raise ValueError(f"{name}: needs floats in [-1, 1], got {low:g}..{high:g}")
    return image


def round_to_levels(image: jax.Array) -> jax.Array:
    """An image in [-1, 1] with the 256 values that bytes have; what is beyond the range goes to its ends."""
    return jnp.clip(jnp.round(to_levels(image)), 0, 255) / 127.5 - 1


def to_bytes(image: np.ndarray) -> np.ndarray:
    """The inverse of `normalize_pixels`, on the host: floats in [-1, 1], clipped, as the nearest uint8.

    Raises:
      ValueError: other than floats.
    """
    check_floats("image", image)
    return np.rint(to_levels(np.clip(image, -1, 1))).astype(np.uint8)


def fractions_to_bytes(image: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """Fractions of white in [0, 1], clipped, as the nearest uint8; a ValueError for anything but floats."""
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"image: needs floats in [0, 1], got {image.dtype}")
    xp = jnp if isinstance(image, jax.Array) else np
    return xp.rint(xp.clip(image, 0, 1) * 255).astype(xp.uint8)


def device_batch(batch: Batch) -> Batch:
    """A host batch as the methods see it, with `image` in [-1, 1].

    It runs inside the compiled step: pixels cross to the device as bytes, a quarter of their size as floats.
    """
    return {key: normalize_pixels(value) if key == "image" else value for key, value in batch.items()}
