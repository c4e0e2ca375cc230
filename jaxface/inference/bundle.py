"""Bundles: a network, its weights and what its images need before it, in one folder."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from jaxface import interop
from jaxface.checks import AtLeast, check_number
from jaxface.errors import UserError
from jaxface.interop.files import optional, replacing
from jaxface.interop.state_dict import check_variables
from jaxface.models.detection import Detector, RetinaFace, describe, from_description
from jaxface.paths import local_path, name_text
from jaxface.training import read_description, restore_params, write_atomically

BUNDLE, WEIGHTS = "bundle.json", "weights.safetensors"
_DETECTOR_PART = "detector"  # of the parameters of a run


@dataclasses.dataclass(frozen=True, eq=False)
class DetectorBundle:
    """A trained detector.

    Attributes:
      detector: the network and what its outputs mean.
      variables: {"params", "batch_stats"} of its module.
      image_size: side of the images that it was trained on, pixels, in which it knows the sizes of objects.
      class_names: of its classes.
      source: where it comes from, for people.
    """

    detector: Detector
    variables: Mapping[str, Any]
    image_size: int
    class_names: tuple[str, ...] = ("face",)
    source: str = ""

    def __post_init__(self):
        check_number("image_size", self.image_size, AtLeast(1))
        if len(self.class_names) != self.detector.num_classes:
            raise UserError(
                f"class_names: needs {self.detector.num_classes} names, got {len(self.class_names)}"
            )

    def description(self) -> dict[str, Any]:
        """All but the weights, JSON-like; `from_bundle_description` reads it."""
        return bundle_description(self.detector, self.image_size, self.class_names)


def bundle_description(detector: Detector, image_size: int, class_names: tuple[str, ...]) -> dict[str, Any]:
    """What a run's stage, or a bundle's file, says of the detector that it trained."""
    return {"network": describe(detector), "image_size": image_size, "class_names": list(class_names)}


def open_detector(path: str | pathlib.Path) -> DetectorBundle:
    """A detector from wherever it is: a run's work directory, a bundle's folder, or a file of published weights.

    Raises:
      UserError: it is none of them.
    """
    path = local_path("detector", path)
    if not path.is_dir():
        return open_weights(path)
    return open_bundle(path) if (path / BUNDLE).is_file() else open_run(path)


def open_run(run: str | pathlib.Path, *, best: bool = False) -> DetectorBundle:
    """The detector that a run has trained.

    Args:
      run: its work directory.
      best: the checkpoint with the best metric, not the newest.

    Raises:
      UserError: no run there, none with a detector, or no good checkpoint in it.
    """
    run = local_path("run", run)
    described = read_description(run)
    if described is None or "network" not in described[1]:
        raise UserError(f"run: {run} holds no run of a detector")
    folder, description = described
    saved = restore_params(folder, best=best)
    if _DETECTOR_PART not in saved["params"]:
        raise UserError(f"run: the checkpoint in {folder} has no detector, only {sorted(saved['params'])}")
    extra = {name: saved["extra"][name] for name in ("batch_stats",) if name in saved["extra"]}
    return _checked(description, {"params": saved["params"][_DETECTOR_PART], **extra}, str(run))


def open_weights(path: str | pathlib.Path) -> DetectorBundle:
    """Published RetinaFace weights (PyTorch or safetensors), whose backbone the names of their tensors tell.

    A file that `save_weights` wrote says itself what its network is; in published ones the stem sees BGR less a mean.

    Raises:
      UserError: a file that cannot be read, or weights of another architecture.
    """
    path = local_path("weights", path)
    state = interop.unwrapped(interop.read_tensors(path))
    description = _description_inside(path)
    if description is not None:
        detector = from_description(description.get("network", {}))
        variables = interop.from_state_dict(state, detector.module, (64, 64, 3), source=str(path))
        return _checked(description, variables, str(path))
    if "body.stage1.0.0.weight" in state:
        detector, side = RetinaFace("mobilenet_025", pixels="bgr"), 640
    elif "body.conv1.weight" in state:
        detector, side = RetinaFace("resnet50", pixels="bgr"), 840
    else:
        first = next(iter(state), "nothing")
        raise UserError(
            f"weights: {path} needs RetinaFace's tensors, such as body.conv1.weight; it holds {name_text(first)!r} and others"
        )
    variables = interop.from_state_dict(state, detector.module, (64, 64, 3), source=str(path))
    return DetectorBundle(detector, variables, side, source=str(path))


def save_weights(path: str | pathlib.Path, bundle: DetectorBundle) -> None:
    """Writes a RetinaFace as safetensors under the published names; the file says besides what its stem sees.

    Raises:
      UserError: another detector, or context modules that have no published names; a file that cannot be written.
    """
    interop.save_safetensors(
        path,
        bundle.detector.module,
        bundle.variables,
        (64, 64, 3),
        metadata={"jaxface": json.dumps(bundle.description())},
    )


def save_bundle(folder: str | pathlib.Path, bundle: DetectorBundle) -> None:
    """Writes a bundle to a folder: `bundle.json` and `weights.safetensors`, under our own names, of any detector.

    Args:
      folder: made where it does not exist; a bundle there is replaced.
      bundle: what to write.

    Raises:
      UserError: the folder cannot be written.
    """
    safetensors = optional("safetensors.numpy")
    folder = local_path("out", folder)
    flat = flax.traverse_util.flatten_dict(jax.device_get(dict(bundle.variables)), sep="/")
    tensors = {name: np.array(leaf, np.float32, order="C") for name, leaf in flat.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / WEIGHTS) as temporary:
            safetensors.save_file(tensors, temporary)
        write_atomically(folder / BUNDLE, json.dumps(bundle.description(), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"out: cannot write to {folder}: {error.strerror or error}") from None


def open_bundle(folder: str | pathlib.Path) -> DetectorBundle:
    """The detector that `save_bundle` wrote.

    Raises:
      UserError: no bundle there, or one that is damaged.
    """
    folder = local_path("bundle", folder)
    file = folder / BUNDLE
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"bundle: {file} cannot be read as JSON ({error})") from None
    flat = interop.read_safetensors(folder / WEIGHTS)
    variables = flax.traverse_util.unflatten_dict(
        {tuple(name.split("/")): leaf for name, leaf in flat.items()}
    )
    return _checked(description, variables, str(folder))


def _checked(description: Any, variables: Mapping[str, Any], source: str) -> DetectorBundle:
    """The bundle of a description from outside, if its weights are those of its network."""
    if not isinstance(description, Mapping):
        raise UserError(f"bundle: {source} needs a JSON object as its description")
    detector = from_description(description.get("network", {}))
    side, names = description.get("image_size"), description.get("class_names", ["face"])
    if type(side) is not int or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise UserError(f"bundle: {source} needs an integer image_size and a list of class_names")
    check_variables(variables, detector.module, (64, 64, 3))
    return DetectorBundle(detector, variables, side, tuple(names), source)


def _description_inside(path: pathlib.Path) -> Mapping[str, Any] | None:
    """What a safetensors file of `save_weights` says of its network; None of any other file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= path.stat().st_size - 8 else b""
    try:
        description = json.loads(json.loads(header)["__metadata__"]["jaxface"])
    except (ValueError, KeyError, TypeError):
        return None
    return description if isinstance(description, Mapping) else None
