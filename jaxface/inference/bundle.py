"""Bundles: a network, its weights and all that its images need before it, in one folder.

    bundle.json           what the network is, which images it takes, where it comes from, when two faces are one person
    weights.safetensors   its variables under our names, float32

A run of the launcher says the same beside its checkpoints, and published weights by the names of their tensors, so that all three
are opened alike: `open_recognizer`, `open_detector`, or `open_bundle` for either.
"""

import abc
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import flax.errors
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxface import interop, metrics, models
from jaxface.checks import AtLeast, check_number
from jaxface.data.sources.source import Source
from jaxface.data.transforms.alignment import TEMPLATES
from jaxface.errors import UserError
from jaxface.interop.architecture import abstract_variables
from jaxface.interop.files import optional
from jaxface.interop.state_dict import check_variables, difference, quantizer_starts
from jaxface.layers.prototypes import l2_normalize
from jaxface.models.detection import Detector, RetinaFace, describe, from_description, published_detector
from jaxface.models.detection.published import COCO_CLASSES
from jaxface.paths import is_remote, local_path, name_text, reaching, user_path
from jaxface.training import (
    map_source,
    read_description,
    restore_metrics,
    restore_params,
    statistics,
    write_atomically,
)
from jaxface.training.mirror import Mirror

FORMAT = 1
BUNDLE, WEIGHTS = "bundle.json", "weights.safetensors"
COLORS = ("rgb", "bgr", "gray")
_LARGEST_SIDE = 4096  # of the images of a network, pixels
_LARGEST_JSON = 1 << 20  # bytes
_DETECTOR_PART, _RECOGNIZER_PART = "detector", "backbone"  # of the parameters of a run
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in gray (ITU-R BT.601), as Pillow has it
_FARS = ("1e-3", "1e-2", "1e-1")  # at which a threshold is recommended, the first that a set can resolve

Color = Literal["rgb", "bgr", "gray"]
Normalization = Literal["centered", "imagenet"]
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Two faces are taken for one person where their cosine is greater than `value`.

    Attributes:
      value: cosine in [-1, 1].
      far: the share of pairs of two people, in (0, 1), that it took for one at most.
      set: what it was measured on, for people.
    """

    value: float
    far: float
    set: str


@dataclasses.dataclass(frozen=True)
class EmbeddingNetwork:
    """An embedding network behind the pixels that it takes; hashable, so a static argument of compiled functions.

        x = (levels - mean) / std,    levels in the order of `color`

    Attributes:
      module: `module.apply(variables, x, train=False)` is [B, D].
      color: order of the channels that the module sees; "gray" is one, 0.299 R + 0.587 G + 0.114 B.
      mean, std: in levels from 0 to 255.
    """

    module: nn.Module
    color: Color = "rgb"
    mean: float = 127.5
    std: float = 127.5

    def __call__(self, variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        """[B, D] float32, not normalized, of RGB or gray images [B, H, W, 3 or 1]: levels in [0, 255], uint8 or float. Pure."""
        embeddings: Any = self.module.apply(variables, self.normalized(images), train=False)
        return embeddings

    def normalized(self, images: jax.Array) -> jax.Array:
        """What the module sees of RGB or gray levels in [0, 255]."""
        levels = images.astype(jnp.float32)
        if self.color == "gray" and levels.shape[-1] == 3:
            levels = jnp.sum(levels * jnp.array(_LUMA, jnp.float32), axis=-1, keepdims=True)
        elif self.color != "gray" and levels.shape[-1] == 1:
            levels = jnp.repeat(levels, 3, axis=-1)
        elif self.color == "bgr":
            levels = levels[..., ::-1]
        return (levels - self.mean) / self.std

    def features(self, variables: Mapping[str, Any], images: jax.Array, *, flip: bool = False) -> jax.Array:
        """`__call__`, with `flip` the sum of what it gives for the images and for their mirror images."""
        if not flip:
            return self(variables, images)
        return metrics.flip_embeddings(lambda views: self(variables, views), images, unit=False)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Bundle(abc.ABC):
    variables: Mapping[str, Any]
    source: str = ""
    license: str | None = None
    origin: str | None = None

    @functools.cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the names, shapes and bytes of all variables, in hexadecimal."""
        return _digest_of(_flat(self.variables))

    @functools.cached_property
    def identity(self) -> str:
        """32 hexadecimal digits of a digest of the network, its weights and what its images go through before it: two bundles
        with one identity give the same outputs for the same images."""
        said = {k: v for k, v in self.description().items() if k not in ("threshold", "license", "origin")}
        text = json.dumps({**said, "weights": self.weights_digest}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @abc.abstractmethod
    def description(self) -> dict[str, Any]:
        """All but the weights, JSON-like."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RecognizerBundle(_Bundle):
    """A trained embedding network of aligned faces.

    Attributes:
      module: the network.
      variables: {"params", "batch_stats"} of it.
      image_shape: (H, W, C) of the crops that it was trained on.
      color, mean, std: as in `EmbeddingNetwork`.
      alignment: template that its crops are aligned to, one of `jaxface.data.TEMPLATES`; None where nobody has said.
      flip: whether an embedding is the sum of those of a crop and of its mirror image.
      threshold: recommended for verification; None where none was measured.
      license: of the weights, for people; None where it is not known.
      origin: who made the weights from what, for people.
      source: the path that it was opened from.
    """

    module: nn.Module
    image_shape: tuple[int, int, int]
    color: Color = "rgb"
    mean: float = 127.5
    std: float = 127.5
    alignment: str | None = "arcface"
    flip: bool = False
    threshold: Threshold | None = None

    @property
    def image_size(self) -> int:
        """Height of the crops, pixels; they are squares unless `image_shape` says otherwise."""
        return self.image_shape[0]

    @functools.cached_property
    def dim(self) -> int:
        """D of an embedding."""
        return models.feature_size(self.module, self.image_shape)

    @property
    def network(self) -> EmbeddingNetwork:
        """The pure function of variables and pixels, for programs of your own."""
        return EmbeddingNetwork(self.module, self.color, self.mean, self.std)

    def description(self) -> dict[str, Any]:
        """All but the weights, JSON-like."""
        return recognizer_description(
            self.module,
            self.image_shape,
            color=self.color,
            mean=self.mean,
            std=self.std,
            alignment=self.alignment,
            flip=self.flip,
            threshold=self.threshold,
            license=self.license,
            origin=self.origin,
        )

    def embed(self, images: np.ndarray, *, batch_size: int = 64) -> np.ndarray:
        """Embeddings of crops.

        Args:
          images: [B, H, W, 3] uint8 RGB, or [B, H, W, 1] gray, H and W of `image_shape`.
          batch_size: crops that go through the network together.

        Returns:
          [B, D] float32 of length 1 each (a zero vector stays zero).

        Raises:
          ValueError: images of another type or shape.
        """
        images = np.asarray(images)
        height, width, _ = self.image_shape
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise ValueError(f"images: needs uint8 [B, H, W, 3 or 1], got {images.dtype} {images.shape}")
        if images.shape[1:3] != (height, width):
            raise ValueError(f"images: needs crops of {height} x {width} pixels, got {images.shape[1:3]}")
        check_number("batch_size", batch_size, AtLeast(1))
        rows = []
        for start in range(0, len(images), batch_size):
            some = images[start : start + batch_size]
            filling = min(1 << (len(some) - 1).bit_length(), batch_size) - len(some)  # few shapes to compile
            filled = np.concatenate([some, np.repeat(some[-1:], filling, axis=0)])
            unit = _unit_embeddings(self.variables, filled, network=self.network, flip=self.flip)
            rows.append(np.asarray(unit)[: len(some)])
        return np.concatenate(rows) if rows else np.zeros((0, self.dim), np.float32)

    def embed_source(
        self, source: Source, *, batch_size: int = 128, flip: bool | None = None, unit: bool = False
    ) -> np.ndarray:
        """[N, D] float32 of every record of a source, in order; normalized if `unit`, with mirror images as the bundle says
        unless `flip` does.

        Raises:
          UserError: images that the network does not take.
        """
        self.check_images(source.image_shape)
        network, flip = self.network, self.flip if flip is None else flip

        def embed(variables, batch):
            return _features(variables, batch["image"], network=network, flip=flip)

        features = map_source(embed, source, dict(self.variables), batch_size=batch_size)
        return np.asarray(l2_normalize(jnp.asarray(features))) if unit else features

    def check_plain(self, argument: str) -> None:
        """Raises UserError unless the network takes what training makes of images: RGB or gray in [-1, 1]."""
        if self.color == "bgr" or (self.mean, self.std) != (127.5, 127.5):
            raise UserError(
                f"{argument}: needs a network of RGB in [-1, 1]; that of {self.source} takes {self.color} less {self.mean:g}, "
                f"over {self.std:g}"
            )

    def check_images(self, shape: tuple[int, int, int]) -> None:
        """Raises UserError unless the network takes images (H, W, C) as they are."""
        image = jax.ShapeDtypeStruct((1, *shape), np.uint8)
        try:
            jax.eval_shape(self.network, dict(self.variables), image)
        except (flax.errors.FlaxError, ValueError, TypeError):
            raise UserError(
                f"data: the network of {self.source} does not take images of shape {shape}"
            ) from None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class DetectorBundle(_Bundle):
    """A trained detector.

    Attributes:
      detector: the network and what its outputs mean.
      variables: {"params", "batch_stats"} of its module.
      image_size: side of the images that it was trained on, pixels, in which it knows the sizes of objects.
      class_names: of its classes.
      license: of the weights, for people; None where it is not known.
      origin: who made the weights from what, for people.
      source: the path that it was opened from.
    """

    detector: Detector
    image_size: int
    class_names: tuple[str, ...] = ("face",)

    def __post_init__(self):
        check_number("image_size", self.image_size, AtLeast(1))
        if len(self.class_names) != self.detector.num_classes:
            raise UserError(
                f"class_names: needs {self.detector.num_classes} names, got {len(self.class_names)}"
            )

    def description(self) -> dict[str, Any]:
        """All but the weights, JSON-like."""
        return detector_description(
            self.detector, self.image_size, self.class_names, license=self.license, origin=self.origin
        )


Bundle = RecognizerBundle | DetectorBundle


def recognizer_description(
    module: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    color: Color = "rgb",
    mean: float = 127.5,
    std: float = 127.5,
    alignment: str | None = "arcface",
    flip: bool = False,
    threshold: Threshold | None = None,
    license: str | None = None,
    origin: str | None = None,
) -> dict[str, Any]:
    """What a run's stage, or a bundle's file, says of the recognizer that it trained; arguments as in `RecognizerBundle`.

    Raises:
      UserError: a network that `jaxface.models.describe` cannot describe.
    """
    height, width, _ = image_shape
    return {
        "format": FORMAT,
        "kind": "recognizer",
        "network": models.describe(module),
        "image_size": height if height == width else [height, width],
        "color": color,
        "normalization": {"mean": mean, "std": std},
        "alignment": alignment,
        "flip": flip,
        "threshold": None if threshold is None else dataclasses.asdict(threshold),
        "license": license,
        "origin": origin,
    }


def detector_description(
    detector: Detector,
    image_size: int,
    class_names: tuple[str, ...],
    *,
    license: str | None = None,
    origin: str | None = None,
) -> dict[str, Any]:
    """What a run's stage, or a bundle's file, says of the detector that it trained; arguments as in `DetectorBundle`."""
    return {
        "format": FORMAT,
        "kind": "detector",
        "network": describe(detector),
        "image_size": image_size,
        "color": "rgb",  # a stem that sees anything else is part of the network
        "normalization": {"mean": 127.5, "std": 127.5},
        "class_names": list(class_names),
        "license": license,
        "origin": origin,
    }


def open_bundle(path: str | pathlib.Path, *, best: bool = False) -> Bundle:
    """A trained network from wherever it is: a run's work directory, a bundle's folder, or a file of published weights.

    Published are RetinaFace (PyTorch or safetensors), iResNet and MobileFaceNet, whose sizes the names and shapes of the tensors
    tell; an ONNX graph does not tell them (`import_recognizer`).

    Args:
      path: where.
      best: of a run the checkpoint with the best metric, not the newest.

    Raises:
      UserError: it is none of them, of a newer format, of another library, or damaged.
    """
    place: Any = user_path("bundle", path)  # of this machine, or what etils opens
    with reaching(place):
        is_bundle, is_folder = (place / BUNDLE).is_file(), place.is_dir()
    if best and (is_bundle or not is_folder):
        raise UserError("best: needs a run; weights have one state")
    if is_folder and not is_bundle:
        return _open_run(place, best)
    if not is_remote(place):
        return _open_folder(place) if is_bundle else _open_weights(place)
    with contextlib.closing(Mirror(place if is_bundle else place.parent)) as mirror:
        names = (BUNDLE, WEIGHTS) if is_bundle else (place.name,)
        with reaching(place):
            for name in names:
                mirror.pull(name)
        bundle = _open_folder(mirror.local) if is_bundle else _open_weights(mirror.local / place.name)
        return dataclasses.replace(bundle, source=str(place))


def open_recognizer(path: str | pathlib.Path, *, best: bool = False) -> RecognizerBundle:
    """`open_bundle` of what embeds faces.

    >>> from jaxface import inference
    >>> bundle = inference.open_recognizer("runs/sface")            # doctest: +SKIP
    >>> bundle.embed(crops) @ bundle.embed(crops).T                 # doctest: +SKIP

    Raises:
      UserError: as `open_bundle`, or a detector.
    """
    return _of_kind(RecognizerBundle, open_bundle(path, best=best), "a recognizer", "a detector")


def open_detector(path: str | pathlib.Path, *, best: bool = False) -> DetectorBundle:
    """`open_bundle` of what finds faces.

    Raises:
      UserError: as `open_bundle`, or a recognizer.
    """
    return _of_kind(DetectorBundle, open_bundle(path, best=best), "a detector", "a recognizer")


def _of_kind[B: Bundle](kind: type[B], bundle: Bundle, wanted: str, other: str) -> B:
    if not isinstance(bundle, kind):
        raise UserError(f"bundle: needs {wanted}, {bundle.source} holds {other}")
    return bundle


def save_bundle(folder: str | pathlib.Path, bundle: Bundle) -> None:
    """Writes a bundle to a folder: `bundle.json` and `weights.safetensors`.

    Args:
      folder: a new or empty one, or one with a bundle, which is replaced; it is written whole or not at all.
      bundle: what to write.

    Raises:
      UserError: a folder with something else in it, or one that cannot be written.
    """
    safetensors = optional("safetensors.numpy")
    folder = local_path("bundle", folder).absolute()
    if folder.exists() and not (
        folder.is_dir() and ((folder / BUNDLE).is_file() or not any(folder.iterdir()))
    ):
        raise UserError(f"bundle: needs a new or empty folder, or one with a bundle; got {folder}")
    description = {**bundle.description(), "weights_sha256": bundle.weights_digest}
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        safetensors.save_file(_flat(bundle.variables), temporary / WEIGHTS)
        write_atomically(temporary / BUNDLE, json.dumps(description, indent=2) + "\n")
        temporary.chmod(0o755)
        if folder.exists() and any(folder.iterdir()):
            (folder / BUNDLE).unlink()  # until the new one stands there is none, rather than two halves
            for name in (WEIGHTS, BUNDLE):
                os.replace(temporary / name, folder / name)
        else:
            os.replace(temporary, folder)
    except OSError as error:
        raise UserError(f"bundle: cannot write {folder}: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def save_weights(path: str | pathlib.Path, bundle: Bundle) -> None:
    """Writes a RetinaFace, iResNet, MobileFaceNet, ViT or Swin as safetensors under the published names; the file says besides
    what the bundle says, so that `open_bundle` reads it back.

    Raises:
      UserError: a network that has no published names; a file that cannot be written.
    """
    is_detector = isinstance(bundle, DetectorBundle)
    module = bundle.detector.module if is_detector else bundle.module
    shape = _PROBE if is_detector else bundle.image_shape
    metadata = {"jaxface": json.dumps(bundle.description())}
    interop.save_safetensors(path, module, bundle.variables, shape, metadata=metadata)


def import_recognizer(
    path: str | pathlib.Path,
    network: str,
    *,
    embedding: int = 512,
    image_size: int | None = None,
    color: Color = "rgb",
    normalization: Normalization = "centered",
    license: str | None = None,
    origin: str | None = None,
) -> RecognizerBundle:
    """Published weights of a network that is named: what `open_bundle` cannot tell of a file, such as an ONNX graph.

    Args:
      path: PyTorch, safetensors or ONNX.
      network: a name of `jaxface.models`: an iResNet, a MobileFaceNet, a ViT or DeiT, or a Swin.
      embedding: size of its embedding, or the number of its classes.
      image_size: side of its images, pixels; None: 112, of a transformer 224.
      color: order of the channels that it was trained on.
      normalization: of the images that it was trained on: "centered" in [-1, 1], or "imagenet", of a transformer alone: less the
        mean and over the standard deviation of ImageNet's channels, which goes into its first layer, so that the bundle takes
        images in [-1, 1].
      license, origin: of the weights, for people; the usual ones of such weights unless given.

    Raises:
      UserError: a network without published names, weights of another network, or a file that cannot be read.
    """
    module = models.create(network, embedding=embedding)
    transformer = isinstance(module, models.ViT | models.Swin)
    image_size = (224 if transformer else 112) if image_size is None else image_size
    check_number("image_size", image_size, AtLeast(1))
    if normalization not in NORMALIZATIONS or (normalization == "imagenet" and not transformer):
        needs = " or ".join(NORMALIZATIONS) if transformer else "centered, since it is no transformer"
        raise UserError(f"normalization: {network} needs {needs}; got {normalization}")
    shape = (image_size, image_size, 3)
    variables = interop.load_weights(path, module, shape)
    if normalization == "imagenet":
        order = slice(None, None, -1 if color == "bgr" else 1)
        statistics_of_channels = (np.array(numbers)[order] for numbers in _IMAGENET)
        variables = interop.fold_normalization(variables, *statistics_of_channels)
    return _published(path, module, variables, shape, color=color, license=license, origin=origin)


_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of levels in [0, 1]

PUBLISHED_LICENSES = {
    "InsightFace": "non-commercial research only, where these are the weights that InsightFace publishes",
    "DeiT": "Apache-2.0, where these are the weights that facebookresearch/deit publishes",
    "Swin": "MIT, where these are the weights that microsoft/Swin-Transformer publishes",
    "Pytorch_Retinaface": "MIT, where these are the weights that biubug6/Pytorch_Retinaface publishes",
}
"""Known terms of published weights by whose layout their files have."""


def _published(path, module, variables, shape, *, license=None, origin=None, **fields) -> RecognizerBundle:
    layout, alignment = "InsightFace", "arcface"
    if isinstance(module, models.ViT | models.Swin):
        layout, alignment = "Swin" if isinstance(module, models.Swin) else "DeiT", None
    return RecognizerBundle(
        module=module,
        variables=variables,
        image_shape=shape,
        alignment=alignment,
        license=license or PUBLISHED_LICENSES[layout],
        origin=origin or f"weights in {layout}'s layout: {name_text(pathlib.Path(path).name)}",
        source=str(path),
        **fields,
    )


_PROBE = (64, 64, 3)  # images of any size go through a detector; its variables are those of this one


def _open_folder(folder: pathlib.Path) -> Bundle:
    file = folder / BUNDLE
    try:
        with file.open("rb") as opened:
            text = opened.read(_LARGEST_JSON + 1)
        if len(text) > _LARGEST_JSON:
            raise UserError(f"bundle: {file} needs at most {_LARGEST_JSON} bytes")
        description = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"bundle: {file} cannot be read as JSON ({error})") from None
    weights = folder / WEIGHTS
    make, module, shape = _reader(description, str(folder))
    if not weights.is_file():
        raise UserError(f"bundle: {folder} lacks {WEIGHTS}")
    # Shapes first, from the header: a file of whatever size that is not of this network is not read.
    _check_shapes(interop.tensor_shapes(weights), _expected(module, shape, str(folder)), str(weights))
    flat = interop.read_safetensors(weights)
    for name, leaf in flat.items():
        if not (jnp.issubdtype(leaf.dtype, jnp.floating) and np.isfinite(leaf).all()):
            raise UserError(f"bundle: {weights}: {name_text(name)} needs finite floats")
    flat = {name: np.asarray(leaf, np.float32) for name, leaf in flat.items()}
    digest = description.get("weights_sha256")
    if digest is not None and digest != _digest_of(flat):
        raise UserError(
            f"bundle: {folder} is damaged: its weights are not those that {BUNDLE} was written for"
        )
    return make(
        flax.traverse_util.unflatten_dict({tuple(name.split("/")): leaf for name, leaf in flat.items()})
    )


def _open_run(run: pathlib.Path, best: bool) -> Bundle:
    described = read_description(run)
    if described is None:
        raise UserError(f"bundle: {run} holds no {BUNDLE}, and no run of a recognizer or a detector")
    folder, description = described
    make, module, shape = _reader(description, str(run))
    part = _DETECTOR_PART if description["kind"] == "detector" else _RECOGNIZER_PART
    saved = restore_params(folder, best=best)
    if part not in saved["params"]:
        raise UserError(f"run: the checkpoint in {folder} has no {part}, only {sorted(saved['params'])}")
    variables = {"params": saved["params"][part], **statistics(saved["extra"])}
    check_variables(variables, module, shape)
    bundle = make(variables)
    if isinstance(bundle, RecognizerBundle):
        measured = _measured(restore_metrics(folder, best=best), description.get("held_out"))
        bundle = dataclasses.replace(bundle, threshold=measured or bundle.threshold)
    return bundle


def _measured(results: Mapping[str, float], held_out: Any) -> Threshold | None:
    """The threshold at the smallest false accept rate of `_FARS` that an evaluation could resolve."""
    for far in _FARS:
        value = results.get(f"verification/threshold@{far}")
        if value is not None and math.isfinite(value):
            return Threshold(float(value), float(far), str(held_out or "held-out people"))
    return None


def _open_weights(path: pathlib.Path) -> Bundle:
    if path.suffix == ".onnx":
        raise UserError(
            f"weights: {path} does not say its network; jaxface weights import {path} --network NAME --bundle DIR makes a bundle"
        )
    state = interop.unwrapped(interop.read_tensors(path))
    description = _description_inside(path)
    if description is not None:
        make, module, shape = _reader(description, str(path))
        return make(interop.from_state_dict(state, module, shape, source=str(path)))
    if any(name.startswith("body.") for name in state):
        return _published_detector(path, state)
    module, shape = _named_network(path, state)
    variables = interop.from_state_dict(state, module, shape, source=str(path))
    return _published(path, module, variables, shape)


def _published_detector(path: pathlib.Path, state: Mapping[str, np.ndarray]) -> DetectorBundle:
    """A RetinaFace whose stem sees BGR less a mean, as the published ones do."""
    small = "body.stage1.0.0.weight" in state
    detector = RetinaFace("mobilenet_025" if small else "resnet50", pixels="bgr")
    return DetectorBundle(
        detector=detector,
        variables=interop.from_state_dict(state, detector.module, _PROBE, source=str(path)),
        image_size=640 if small else 840,
        license=PUBLISHED_LICENSES["Pytorch_Retinaface"],
        origin=f"weights in Pytorch_Retinaface's layout: {name_text(path.name)}",
        source=str(path),
    )


def import_detector(
    path: str | pathlib.Path,
    network: str,
    *,
    class_names: Sequence[str] = (),
    image_size: int = 1333,
    license: str | None = None,
    origin: str | None = None,
) -> DetectorBundle:
    """Published weights of a detector that is named, since tensors do not say which pixels and anchors it has.

    Args:
      path: PyTorch or safetensors, under torchvision's or MMDetection's names.
      network: one of `jaxface.models.detection.PUBLISHED_DETECTORS`.
      class_names: one for each class; COCO's for as many classes as COCO's detectors have, else numbers.
      image_size: side of the images that it was trained on, pixels.
      license, origin: of the weights, for people.

    Raises:
      UserError: a detector that is not known, weights of another one, or another number of names than of classes.
    """
    state = interop.unwrapped(interop.read_tensors(local_path("weights", path)))
    state = {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}
    detector = published_detector(network, **({"num_classes": len(class_names)} if class_names else {}))
    return DetectorBundle(
        detector=detector,
        variables=interop.from_state_dict(state, detector.module, _PROBE, source=str(path)),
        image_size=image_size,
        class_names=tuple(class_names) or coco_class_names(detector.num_classes),
        license=license,
        origin=origin or f"weights of {network}: {name_text(local_path('weights', path).name)}",
        source=str(path),
    )


def coco_class_names(count: int) -> tuple[str, ...]:
    """Names of the classes of detectors of COCO with 80 classes, with 90, COCO's numbers from 1, or with 91, from 0; numbers for
    others."""
    if count == len(COCO_CLASSES):
        return tuple(COCO_CLASSES.values())
    if count in (90, 91):
        return tuple(COCO_CLASSES.get(i, f"none {i}") for i in range(91 - count, 91))
    return tuple(map(str, range(count)))


def _named_network(
    path: pathlib.Path, state: Mapping[str, np.ndarray]
) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network of `jaxface.models` that tensors under InsightFace's names are of, and the shape of its images."""

    def size(name: str, axis: int) -> int:
        shape = np.shape(state[name]) if name in state else ()
        return shape[axis] if axis < len(shape) else 0

    if "conv_sep.layers.0.weight" in state:
        large = size("layers.0.layers.0.weight", 0) == 128
        embedding, name = (
            size("features.layers.2.weight", 0),
            "mobilefacenet_large" if large else "mobilefacenet",
        )
        side = 16 * size("features.layers.0.layers.0.weight", 2)
    elif "fc.weight" in state and "layer1.0.bn1.weight" in state:
        units = [re.fullmatch(r"layer(\d)\.(\d+)\.conv1\.weight", name) for name in state]
        counts = np.bincount([int(unit[1]) for unit in units if unit], minlength=5)[1:]
        stages = tuple(int(n) for n in counts if n)
        channels = tuple(size(f"layer{i + 1}.0.conv1.weight", 0) for i in range(len(stages)))
        embedding = size("fc.weight", 0)
        plane = math.isqrt(size("fc.weight", 1) // max(channels[-1], 1))
        side, name = 16 * plane, None
        for candidate in (n for n in models.names() if n.startswith("iresnet")):
            module = models.create(candidate)
            if module.stages == stages and module.channels == channels:
                side, name = plane * module.stem_stride * 2 ** len(stages), candidate
    elif "patch_embed.proj.weight" in state:
        raise UserError(
            f"weights: {path} is of a transformer, whose tensors do not say its heads or how its images were normalized; "
            f"jaxface weights import {path} --network NAME --bundle DIR does"
        )
    elif any(name.startswith(("backbone.body.", "backbone.conv1.")) for name in state):
        raise UserError(
            f"weights: {path} is of a detector, whose tensors do not say its pixels and anchors; "
            f"jaxface weights import {path} --network NAME --bundle DIR does"
        )
    else:
        first = next(iter(state), "nothing")
        raise UserError(
            f"weights: {path} needs the tensors of a RetinaFace, iResNet or MobileFaceNet under their published names; it holds "
            f"{name_text(first)!r} and others"
        )
    if name is None or not 1 <= side <= _LARGEST_SIDE or embedding < 1:
        raise UserError(
            f"weights: {path} is no network of jaxface.models; jaxface weights import {path} --network NAME says what differs"
        )
    return models.create(name, embedding=embedding), (side, side, 3)


def _reader(
    description: Any, source: str
) -> tuple[Callable[[Mapping], Bundle], nn.Module, tuple[int, int, int]]:
    """(variables -> bundle, module, shape of an image) of a description from outside.

    Raises:
      UserError: it is of a newer format, of another library, or says what no bundle says.
    """

    def need(condition: Any, what: str) -> None:
        if not condition:
            raise UserError(f"bundle: {source} needs {what}")

    need(isinstance(description, Mapping), "a JSON object as its description")
    written, kind = description.get("format"), description.get("kind")
    if type(written) is not int or kind not in ("recognizer", "detector"):
        raise UserError(
            f"bundle: {source} is not of jaxface: needs a format and a kind, recognizer or detector, in its description"
        )
    if written > FORMAT:
        raise UserError(
            f"bundle: {source} has format {written}, this jaxface {FORMAT} at most; a newer jaxface opens it"
        )
    need(written == FORMAT, f"format {FORMAT}, got {written}")
    texts = {name: description.get(name) for name in ("license", "origin")}
    for name, text in texts.items():
        need(text is None or isinstance(text, str), f"a text or null as {name}")
    size, color = description.get("image_size"), description.get("color", "rgb")
    sides = size if isinstance(size, list) else [size, size]
    need(
        len(sides) == 2 and all(type(side) is int and 1 <= side <= _LARGEST_SIDE for side in sides),
        f"an integer image_size from 1 to {_LARGEST_SIDE}, or two of them",
    )
    need(color in COLORS, f"a color of {', '.join(COLORS)}")
    scaling = description.get("normalization", {"mean": 127.5, "std": 127.5})
    numbers: list[Any] = [
        scaling.get(name) if isinstance(scaling, Mapping) else None for name in ("mean", "std")
    ]
    need(
        all(_is_number(n) for n in numbers) and numbers[1] > 0,
        "a normalization of two numbers, mean and std > 0",
    )
    mean, std = map(float, numbers)
    if kind == "detector":
        names = description.get("class_names", ["face"])
        need(isinstance(names, list) and all(isinstance(n, str) for n in names), "a list of class_names")
        need(
            (color, mean, std) == ("rgb", 127.5, 127.5),
            "rgb and 127.5, 127.5: a detector's stem knows what it sees",
        )
        detector = from_description(description.get("network", {}))

        def make(variables):
            return DetectorBundle(
                detector=detector,
                variables=variables,
                image_size=sides[0],
                class_names=tuple(names),
                source=source,
                **texts,
            )

        return make, detector.module, _PROBE
    alignment, flip = description.get("alignment"), description.get("flip", False)
    need(alignment is None or alignment in TEMPLATES, f"an alignment of {', '.join(TEMPLATES)}, or null")
    need(type(flip) is bool, "true or false as flip")
    threshold = description.get("threshold")
    if threshold is not None:
        fields: list[Any] = [
            threshold.get(n) if isinstance(threshold, Mapping) else None for n in ("value", "far", "set")
        ]
        numbers_fit = (
            _is_number(fields[0]) and -1 <= fields[0] <= 1 and _is_number(fields[1]) and 0 < fields[1] < 1
        )
        need(
            numbers_fit and isinstance(fields[2], str),
            "a threshold of value in [-1, 1], far in (0, 1) and set, or null",
        )
        threshold = Threshold(float(fields[0]), float(fields[1]), fields[2])
    module, shape = (
        models.from_description(description.get("network", {})),
        (*sides, 1 if color == "gray" else 3),
    )

    def make(variables):
        return RecognizerBundle(
            module=module,
            variables=variables,
            image_shape=shape,
            color=color,
            mean=mean,
            std=std,
            alignment=alignment,
            flip=flip,
            threshold=threshold,
            source=source,
            **texts,
        )

    return make, module, shape


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _expected(module: nn.Module, shape: tuple[int, int, int], source: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every variable of a network; nothing is computed."""
    try:
        tree = abstract_variables(module, shape)  # ty: ignore[invalid-argument-type] - Flax hashes modules
    except Exception as error:  # fields from outside: whatever a network makes of impossible ones
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"bundle: {source} describes an impossible network ({reason})") from None
    return {"/".join(path): leaf.shape for path, leaf in flax.traverse_util.flatten_dict(dict(tree)).items()}


def _check_shapes(given: Mapping[str, tuple], expected: Mapping[str, tuple], source: str) -> None:
    paths = [{tuple(name.split("/")): shape for name, shape in names.items()} for names in (expected, given)]
    starts = quantizer_starts(*paths)
    expected = {**expected, **{"/".join(path): shape for path, shape in starts.items()}}
    for name in [*expected, *given]:
        if given.get(name) != expected.get(name):
            raise difference(source, name, given.get(name, "nothing"), expected.get(name, "nothing"))


def _flat(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    flat = flax.traverse_util.flatten_dict(jax.device_get(dict(variables)), sep="/")
    return {name: np.array(leaf, np.float32, order="C") for name, leaf in flat.items()}


def _digest_of(flat: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(flat):
        digest.update(f"{name} {flat[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(flat[name]).data)
    return digest.hexdigest()


def _description_inside(path: pathlib.Path) -> Mapping[str, Any] | None:
    """What a safetensors file of `save_weights` says of its network; None of any other file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= path.stat().st_size - 8 else b""
    try:
        description = json.loads(json.loads(header)["__metadata__"]["jaxface"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return description if isinstance(description, Mapping) else None


@functools.partial(jax.jit, static_argnames=("network", "flip"))
def _features(variables, images, *, network: EmbeddingNetwork, flip: bool) -> jax.Array:
    return network.features(variables, images, flip=flip)


@functools.partial(jax.jit, static_argnames=("network", "flip"))
def _unit_embeddings(variables, images, *, network: EmbeddingNetwork, flip: bool) -> jax.Array:
    return l2_normalize(network.features(variables, images, flip=flip).astype(jnp.float32))
