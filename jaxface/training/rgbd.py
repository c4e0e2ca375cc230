"""Two frozen networks for the two modalities of a face, a photograph and its depth, and what they make of corrupted pairs.

Methods: acw
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.data.sources.source import Source
from jaxface.data.transforms.corruption import RGBD_CORRUPTIONS, RgbdCorruption, corrupt_rgbd
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.layers.prototypes import l2_normalize
from jaxface.training.map_source import map_source
from jaxface.training.teachers import Teacher


class RgbdFeatures(NamedTuple):
    """What both networks say about N images: unit embeddings, and the lengths that they had.

    Attributes:
      rgb: [N, D_r] float32. depth: [N, D_d] float32.
      rgb_norm, depth_norm: [N] float32.
    """

    rgb: jax.Array
    depth: jax.Array
    rgb_norm: jax.Array
    depth_norm: jax.Array


class RgbdClasses(NamedTuple):
    """What is known of C classes from clean pairs.

    Attributes:
      rgb: [C, D_r], sums of the unit embeddings of each class, whose directions are its prototypes. depth: [C, D_d].
      spread: [2] float32, deviations of the impostor scores, RGB first (`jaxface.metrics.impostor_spread`).
      weight: float32 scalar, the one weight of RGB that is best for all images; 1/2 where none was looked for.
    """

    rgb: jax.Array
    depth: jax.Array
    spread: jax.Array
    weight: jax.Array


class RgbdNetworks:
    """Both frozen networks, which live in a state's `extra` under their keys.

    Args:
      rgb, depth: the networks.
      kinds: of `RGBD_CORRUPTIONS`, those that a pair may meet.
      strength: how bad a bad image is.
    """

    def __init__(self, rgb: Teacher, depth: Teacher, *, kinds: Sequence[str], strength: RgbdCorruption):
        self.rgb, self.depth, self.strength = rgb, depth, strength
        self.kinds = np.array([RGBD_CORRUPTIONS.index(kind) for kind in kinds])
        self._described = jax.jit(self._corrupt_and_describe)

    def describe(self, extra: Mapping, images: jax.Array, depth: jax.Array) -> RgbdFeatures:
        """Of images [B, H, W, C] and encoded depth [B, H, W, C'], both float in [-1, 1]."""
        embeddings = [
            network.embeddings(extra, pixels).astype(jnp.float32)
            for network, pixels in ((self.rgb, images), (self.depth, depth))
        ]
        return RgbdFeatures(
            *map(l2_normalize, embeddings), *(jnp.linalg.norm(rows, axis=1) for rows in embeddings)
        )

    def corrupt(
        self, keys: jax.Array, images: jax.Array, depth: jax.Array, kinds: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Pairs, each corrupted under its key [B] by the kind given [B], or by one drawn among those that it may meet."""
        keys = jax.vmap(lambda key: jax.random.split(key))(keys)
        if kinds is None:
            draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(self.kinds)))(keys[:, 0])
            kinds = jnp.asarray(self.kinds)[draw]
        return corrupt_rgbd(keys[:, 1], images, depth, kinds, strength=self.strength)

    def _corrupt_and_describe(self, arrays, batch) -> RgbdFeatures:
        extra, kind, seed = arrays
        size = batch["image"].shape[0]
        number = batch["position"][0] // size
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), size)
        images, depth = normalize_pixels(batch["image"]), normalize_pixels(batch["depth"])
        kinds = None if kind is None else jnp.full(size, kind)
        return self.describe(extra, *self.corrupt(keys, images, depth, kinds))

    def describe_source(
        self,
        extra: Mapping,
        source: Source,
        kind: str | None = "none",
        *,
        seed: int = 0,
        size: int = 128,
    ) -> RgbdFeatures:
        """Of every record in order, on the host; corrupted by `kind`, or by one drawn for each where it is None."""
        number = None if kind is None else np.int32(RGBD_CORRUPTIONS.index(kind))
        arrays = extra, number, np.int32(seed)
        return map_source(self._described, source, arrays, batch_size=size, fields=("image", "depth"))
