"""Two frozen networks for the two modalities of a face, a photograph and its depth: what they make of corrupted pairs, and
the class prototypes that they give of clean ones.

Methods: acw
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import losses, metrics
from jaxface.checks import AtLeast
from jaxface.data.sources.source import Source, WithFields
from jaxface.data.transforms.corruption import RGBD_CORRUPTIONS, RgbdCorruption, augment_depth, corrupt_rgbd
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize
from jaxface.training.class_banks import add_class_features
from jaxface.training.map_source import map_source
from jaxface.training.step import TrainState, example_keys
from jaxface.training.teachers import Teacher

MODALITIES = ("rgb", "depth")

Step = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


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
      weight: float32 scalar, the one weight of RGB that is best for all images.
    """

    rgb: jax.Array
    depth: jax.Array
    spread: jax.Array
    weight: jax.Array

    def cosines(
        self, features: RgbdFeatures, labels: jax.Array, shares: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Cosines [B, C] with the prototypes of both modalities, of one spread (`metrics.equalize`), RGB first.

        Args:
          features: of B images. labels: [B] integers in [0, C).
          shares: `share_rgb` [B, D_r] and `share_depth` [B, D_d], what each image put into the prototypes and must not see of
            them (`losses.leave_one_out_cosines`); zeros for nothing.
        """
        rgb, depth = (
            losses.leave_one_out_cosines(
                getattr(features, name), labels, getattr(self, name), shares[f"share_{name}"]
            )
            for name in MODALITIES
        )
        return metrics.equalize(rgb, depth, self.spread)


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

    def corrupted(self, step: Step) -> Step:
        """`step` on pairs that are corrupted afresh each time: `image` float, `depth` uint8 as it comes from the host."""

        def corrupted_step(state, batch):
            keys = example_keys(state, batch["image"].shape[0])
            images, depth = self.corrupt(keys, batch["image"], normalize_pixels(batch["depth"]))
            return step(state, {**batch, "image": images, "depth": depth})

        return corrupted_step

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


def with_depth_noise(step: Step) -> Step:
    """`step` on depth images with noise, holes and occlusions (`jaxface.data.augment_depth`), drawn afresh each time."""

    def noisy_step(state, batch):
        keys = example_keys(state, batch["image"].shape[0])
        return step(state, {**batch, "image": augment_depth(keys, batch["image"])})

    return noisy_step


@dataclasses.dataclass(frozen=True)
class RgbdPairs:
    """Pairs of known people to learn a fusion from, and what their clean images say of the classes.

    All of it is a function of the frozen networks in a state's `extra` and of the fields here; nothing is remembered.

    Attributes:
      networks: both frozen networks.
      source: the pairs.
      prototypes: of a class, "images": the mean of its clean images; "weights": the class weights of both networks, whose classes
        must then be those of the source.
      leave_one_out: an image is left out of its own prototype where its class has fewer images than this.
      equalize: whether both modalities get one spread, as measured on impostors.

    Raises:
      UserError: one person only where a spread is wanted, or a person whose prototype would be made of no image.
    """

    networks: RgbdNetworks
    source: Source
    prototypes: Literal["images", "weights"] = "images"
    leave_one_out: Annotated[int, AtLeast(0)] = 10
    equalize: bool = True

    def __post_init__(self):
        counts, names = self._counts(), self.source.class_names
        if self.equalize and (counts > 0).sum() < 2:
            raise UserError(
                "data: the spread of impostor scores needs at least two people to learn from, got 1"
            )
        lonely = counts < (2 if self.leave_one_out > 1 else 1)
        if self.prototypes == "images" and lonely.any():
            first = int(lonely.argmax())
            raise UserError(
                f"data: a prototype needs an image of everybody besides the one left out, "
                f"{names[first]} has {counts[first]} in all"
            )

    def _counts(self) -> np.ndarray:
        return np.bincount(np.asarray(self.source.labels), minlength=len(self.source.class_names))

    @property
    def left_out(self) -> np.ndarray:
        """[N] bool, the images that are left out of their own prototypes."""
        few = self._counts() < self.leave_one_out
        return few[np.asarray(self.source.labels)] & (self.prototypes == "images")

    def with_shares(self, extra: Mapping) -> WithFields:
        """The pairs, each with its `share_rgb` and `share_depth` for `RgbdClasses.cosines`."""
        return WithFields(self.source, **self._shares(self.networks.describe_source(extra, self.source)))

    def _shares(self, clean: RgbdFeatures) -> dict[str, np.ndarray]:
        rows = self.left_out[:, None]
        return {
            f"share_{name}": np.where(rows, getattr(clean, name), 0).astype(np.float32) for name in MODALITIES
        }

    def classes(self, extra: Mapping, *, seed: int = 0) -> RgbdClasses:
        """Prototypes, spread, and the best weight of images that are corrupted under the seed.

        Raises:
          UserError: a network that gives NaN, or the same for everybody.
        """
        labels, count = np.asarray(self.source.labels), len(self.source.class_names)
        clean = self.networks.describe_source(extra, self.source)
        sums, spread = [], []
        for name in MODALITIES:
            unit = getattr(clean, name)
            if not np.isfinite(unit).all():
                raise UserError(f"{name}: needs finite embeddings, the network gives NaN")
            if self.prototypes == "weights":
                sums.append(l2_normalize(jnp.asarray(extra[name]["prototypes"][:count], jnp.float32)))
            else:
                sums.append(add_class_features(jnp.zeros((count, unit.shape[1])), unit, labels))
            spread.append(metrics.impostor_spread(unit, labels) if self.equalize else 1.0)
        classes = RgbdClasses(*jax.device_get(sums), np.float32(spread), np.float32(0.5))
        weight = self._best_weight(extra, classes, self._shares(clean), seed)
        return classes._replace(weight=np.float32(weight))

    def _best_weight(
        self, extra: Mapping, classes: RgbdClasses, shares: Mapping[str, np.ndarray], seed: int
    ) -> float:
        """The one weight of RGB with which most corrupted images are recognized; of equals, that nearest to 1/2."""
        labels = np.asarray(self.source.labels)
        features = self.networks.describe_source(extra, self.source, None, seed=seed)
        rgb, depth = (np.asarray(x) for x in classes.cosines(features, labels, shares))
        weights = np.linspace(0, 1, 41)
        correct = [
            (metrics.combine_scores(rgb, depth, float(w)).argmax(axis=1) == labels).mean() for w in weights
        ]
        best = weights[np.isclose(correct, max(correct))]
        return float(best[np.abs(best - 0.5).argmin()])
