"""The two ranges of a pixel: uint8 on the host, float32 in [-1, 1] on the device."""

import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]


def normalize_pixels(image: jax.Array) -> jax.Array:
    """(p - 127.5) / 127.5 for uint8 pixels: float32 in [-1, 1]. A float image is in that range already and passes."""
    if image.dtype == jnp.uint8:
        return (image.astype(jnp.float32) - 127.5) / 127.5
    return image


def device_batch(batch: Batch) -> Batch:
    """A host batch as the methods see it, with `image` in [-1, 1].

    It runs inside the compiled step: pixels cross to the device as bytes, a quarter of their size as floats.
    """
    return {key: normalize_pixels(value) if key == "image" else value for key, value in batch.items()}
