"""Bad captures of one camera: dark, out of focus, noisy, as strongly as one severity says; pure functions on the device.

Methods: dpm
"""

import dataclasses
import functools
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import Fraction, Ordered, Range, check_fields
from jaxface.data.render import appearance
from jaxface.data.sources.source import Record, Source
from jaxface.data.transforms.pixels import check_floats, from_levels, to_bytes


@dataclasses.dataclass(frozen=True)
class CaptureNoise:
    """A share of the images is captured badly, each with a severity a of its own, drawn uniformly."""

    share: Annotated[float, Fraction] = 0.0
    """Probability of a bad capture."""
    severity: Annotated[tuple[float, float], Fraction, Ordered()] = (0.5, 1.0)
    """Least and greatest a."""
    dark: Annotated[float, Range(0, 1, above=True)] = 0.15
    """Factor on the light at a = 1; dark^a otherwise. 1 darkens nothing."""
    blur: Annotated[float, Range(0, 1.5)] = 1.5
    """Standard deviation of a Gaussian blur at a = 1, pixels; a times it otherwise."""
    noise: Annotated[float, Fraction] = 0.15
    """Standard deviation of the sensor's noise at a = 1, of colors in [0, 1]; a times it otherwise."""
    mix: Annotated[float, Fraction] = 0.0
    """Share of uniform noise that replaces the image at a = 1; a times it otherwise. For what is no photograph."""

    def __post_init__(self):
        check_fields(self, "captures.")

    @classmethod
    def mixed(cls, share: float) -> "CaptureNoise":
        """(1 - a) x + a U(0, 1) and nothing else."""
        return cls(share=share, dark=1.0, blur=0.0, noise=0.0, mix=1.0)


def bad_captures(rng: jax.Array, images: jax.Array, captures: CaptureNoise) -> tuple[jax.Array, jax.Array]:
    """Images as a camera in trouble has them: first darkened, then blurred, then noisy.

        x ↦ noise_{a σ}(blur_{a b}(dark^a · x)),   then (1 - a m) x + a m U(-1, 1)

    Args:
      rng: one key, or one for each image.
      images: [B, H, W, C] float in [-1, 1].
      captures: how often and how bad; static.

    Returns:
      (images [B, H, W, C], severities [B] float32, 0 of those that stay as they are).

    Example:
      >>> shown, severity = bad_captures(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), CaptureNoise(share=0.0))
      >>> severity.tolist(), bool((shown == 0).all())
      ([0.0, 0.0], True)
    """
    check_floats("images", images)
    if images.ndim != 4:
        raise ValueError(f"images: needs [B, H, W, C], got {images.shape}")
    keys = jax.random.split(rng, len(images)) if rng.ndim == 0 else rng
    low, high = captures.severity

    def one(key, image):
        fires, strength, sensor, uniform = jax.random.split(key, 4)
        bad = jax.random.uniform(fires) < captures.share
        a = jax.random.uniform(strength, minval=low, maxval=high)
        x = image
        if captures.dark < 1:
            x = (x + 1) * captures.dark ** (a / 2.2) - 1  # of the light, before the camera's gamma
        if captures.blur > 0:
            x = appearance.blur(x, a * captures.blur)
        if captures.noise > 0:
            x = jnp.clip(x + 2 * a * captures.noise * jax.random.normal(sensor, x.shape), -1, 1)
        if captures.mix > 0:
            share = a * captures.mix
            x = (1 - share) * x + share * jax.random.uniform(uniform, x.shape, minval=-1.0, maxval=1.0)
        return jnp.where(bad, x, image), jnp.where(bad, a, 0.0)

    return jax.vmap(one)(keys, images)


_CHUNK = 64  # images per compiled call


@functools.partial(jax.jit, static_argnames="captures")
def _captured(seed, numbers, images, captures):
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(numbers)
    return bad_captures(keys, from_levels(images.astype(jnp.float32)), captures)


class BadCaptures:
    """A source some of whose images are captured badly, always the same ones; records have `severity` float32 besides.

    Images are made in chunks when first asked for, and kept.

    Args:
      source: images uint8.
      captures: how often and how bad.
      seed: of the draws; record i depends on it and on i alone.
    """

    def __init__(self, source: Source, captures: CaptureNoise, *, seed: int):
        self._source, self._captures, self._seed = source, captures, np.uint32(seed % 2**32)
        self.labels, self.class_names = source.labels, source.class_names
        self.image_shape = source.image_shape
        self._chunks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __getattr__(self, name: str):
        """What else the source knows, such as `people`, `videos` or `shown`."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def _chunk(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(images, severities) of a chunk; past the end the last record again, so that every call has one shape."""
        if number not in self._chunks:
            numbers = np.minimum(np.arange(_CHUNK) + number * _CHUNK, len(self) - 1).astype(np.int32)
            images = np.stack([self._source[int(i)]["image"] for i in numbers])
            shown, severity = _captured(self._seed, numbers, images, self._captures)
            self._chunks[number] = to_bytes(np.asarray(shown)), np.asarray(severity)
        return self._chunks[number]

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        if self._captures.share == 0:
            return {**record, "severity": np.float32(0)}
        images, severity = self._chunk(int(index) // _CHUNK)
        row = int(index) % _CHUNK
        return {**record, "image": images[row], "severity": severity[row]}
