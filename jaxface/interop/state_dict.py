"""PyTorch state dicts of recognizers, detectors and transformers into our variables and back."""

import pathlib
from collections.abc import Mapping

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError
from jaxface.interop.architecture import (
    EPSILON,
    Convolution,
    Dense,
    Layer,
    Norm,
    abstract_variables,
    architecture,
    plain_layers,
    retinaface_layers,
)
from jaxface.interop.detr_layers import detr_layers, joined_projections, split_projections
from jaxface.interop.files import optional, replacing
from jaxface.interop.pyramid_layers import Layout, from_layout, pyramid_layers, to_layout
from jaxface.interop.transformer_layers import TransformerLayer, renamed, transformer_layers
from jaxface.layers.quantization import QUANTIZATION
from jaxface.models import Swin, ViT
from jaxface.models.detection.detr import DetrNet
from jaxface.models.detection.feature_pyramid import PyramidNet
from jaxface.models.detection.retinaface import RetinaFaceNet
from jaxface.paths import local_path

StateDict = Mapping[str, np.ndarray]

_WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name


def tensor_layers(
    module: nn.Module, image_shape: tuple[int, int, int]
) -> tuple[Layer | TransformerLayer, ...]:
    """Every layer with tensors, in the order of PyTorch's state dict.

    Args:
      module: an `IResNet` with insightface blocks, a `MobileFaceNet`, a `RetinaFaceNet` with the context modules of SSH, a
        RetinaNet, a Faster R-CNN or a DETR on a resnet, a `ViT` that reads its class token, or a `Swin`.
      image_shape: (H, W, C) of its images.

    Raises:
      UserError: another network.
    """
    if isinstance(module, RetinaFaceNet):
        return retinaface_layers(module, image_shape)
    if isinstance(module, DetrNet):
        return detr_layers(module, image_shape)
    if isinstance(module, PyramidNet):
        return pyramid_layers(module, image_shape)
    if isinstance(module, ViT | Swin):
        return transformer_layers(module, image_shape)
    return tuple(plain_layers(architecture(module, image_shape)))


def from_state_dict(
    state: StateDict, module: nn.Module, image_shape: tuple[int, int, int], *, source: str = "state dict"
) -> dict:
    """Variables of a network from tensors under PyTorch's names.

        convolution   [O, I, H, W] -> [H, W, I, O]
        linear        [E, C·H·W]   -> [H·W·C, E]: PyTorch flattens a plane channel first, ours channel last

    `num_batches_tracked` is skipped, and so are `module.` (DistributedDataParallel) and `_orig_mod.` (torch.compile) before
    every name, in any order. A frozen weight of the last norm must be one, since ours has none. A MobileFaceNet's linear layer
    whose bias the tensors lack has a bias of zero, which is what a layer without one computes.

    Args:
      state: name -> array of any float type.
      module: as `tensor_layers` takes it.
      image_shape: (H, W, C) of its images.
      source: what to call the tensors in a refusal.

    Returns:
      {"params", "batch_stats"} of float32 numpy arrays; a transformer has no statistics.

    Raises:
      UserError: another architecture (names the first tensor that differs and both shapes), or values that no network has.
    """
    layers = tensor_layers(module, image_shape)
    state = renamed(unwrapped(state), module)
    if isinstance(module, PyramidNet):
        state = from_layout(state, module, layers)
    if isinstance(module, DetrNet):
        state = split_projections(state)
    return read_layers(state, layers, source)


def read_layers(state: StateDict, layers: tuple[Layer | TransformerLayer, ...], source: str) -> dict:
    """Variables of layers from tensors under the layers' names; refusals as in `from_state_dict`."""
    state = {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}
    leaves = {}
    for layer in layers:
        if isinstance(layer, Norm) and not layer.scaled:
            frozen = _checked(state, f"{layer.name}.weight", (layer.features,), source)
            if np.any(frozen != 1):
                raise UserError(
                    f"weights: {source}: {layer.name}.weight needs ones, at which this network freezes it; "
                    f"got {frozen[frozen != 1][0]:.6g}"
                )
        for leaf in layer.leaves():
            lacks_bias = leaf.name.endswith(".bias") and leaf.name not in state
            if isinstance(layer, Dense) and layer.lenient and lacks_bias:
                leaves[leaf.path] = np.zeros(leaf.shape, np.float32)
                continue
            array = _checked(state, leaf.name, leaf.shape, source)
            if leaf.path[-1] == "var" and np.any(array <= -EPSILON):
                raise UserError(f"weights: {source}: {leaf.name} needs variances; got {array.min():.6g}")
            leaves[leaf.path] = _to_flax(array, layer)
    expected = {name for layer in layers for name in _names(layer)}
    if surplus := [name for name in state if name not in expected]:
        raise difference(source, surplus[0], np.shape(state[surplus[0]]), "nothing")
    return flax.traverse_util.unflatten_dict(leaves)


def unwrapped(state: StateDict) -> StateDict:
    """A state dict without what wrappers put before every name."""
    while prefix := next((p for p in _WRAPPERS if state and all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): array for name, array in state.items()}
    return state


def to_state_dict(
    variables: Mapping,
    module: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    layout: Layout = "torchvision",
) -> dict:
    """The inverse of `from_state_dict`: name -> array, in PyTorch's order, ready for a strict `load_state_dict`.

    `layout` says whose names a RetinaNet's or a Faster R-CNN's tensors have, torchvision's or MMDetection's.

    Raises:
      UserError: the variables are of another network.
    """
    check_variables(variables, module, image_shape)
    flat = flax.traverse_util.flatten_dict(dict(variables))
    state = {}
    for layer in tensor_layers(module, image_shape):
        if isinstance(layer, Norm) and not layer.scaled:
            state[f"{layer.name}.weight"] = np.ones(layer.features, np.float32)
        for leaf in layer.leaves():
            array = _to_torch(np.asarray(flat[leaf.path], np.float32), layer)
            state[leaf.name] = np.ascontiguousarray(array)
        if isinstance(layer, Norm):
            state[f"{layer.name}.num_batches_tracked"] = np.zeros((), np.int64)
    if isinstance(module, DetrNet):
        return joined_projections(state)
    return to_layout(state, module, layout) if isinstance(module, PyramidNet) else state


def quantizer_starts(expected: Mapping, given: Mapping) -> dict[tuple[str, ...], tuple[()]]:
    """Path -> shape of the first steps that calibration gives a network's quantizers, which are no part of its own variables.

    Args:
      expected: paths of the network's variables. given: those of variables that may be its, which say what is signed.
    """
    starts = {}
    for path in expected:
        if path[-1] == "log_step":
            place = (QUANTIZATION, *path[1:-1])
            unsigned = (*place, "unsigned") in given
            starts[(*place, "unsigned" if unsigned else "signed")] = ()
    return starts


def check_variables(variables: Mapping, module: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Whether variables are of a network.

    Raises:
      UserError: they are not; names the first leaf that differs and both shapes.
    """
    given, expected = (
        {path: np.shape(leaf) for path, leaf in flax.traverse_util.flatten_dict(dict(tree)).items()}
        for tree in (variables, abstract_variables(module, image_shape))
    )
    expected |= quantizer_starts(expected, given)
    for path in [*expected, *given]:
        if given.get(path) != expected.get(path):
            name, shapes = "/".join(path), (given.get(path, "nothing"), expected.get(path, "nothing"))
            raise difference("variables", name, *shapes)


def save_safetensors(
    path: str | pathlib.Path,
    module: nn.Module,
    variables: Mapping,
    image_shape: tuple[int, int, int],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes the weights of a network as safetensors under PyTorch's names, with what else the file is to say about them.

    In PyTorch: `backbone.load_state_dict(safetensors.torch.load_file(path))`.

    Raises:
      UserError: variables of another network, or a file that cannot be written.
    """
    safetensors = optional("safetensors.numpy")
    state = to_state_dict(jax.device_get(variables), module, image_shape)
    with replacing(path) as temporary:
        safetensors.save_file(state, temporary, metadata={"format": "pt", **(metadata or {})})


def read_safetensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file.

    Raises:
      UserError: it cannot be read as one.
    """
    failure = optional("safetensors").SafetensorError
    safetensors = optional("safetensors.numpy")
    path = local_path("weights", path)
    try:
        return safetensors.load_file(path)
    except (OSError, ValueError, KeyError, TypeError, failure) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"weights: {path} cannot be read as safetensors ({reason})") from None


def tensor_shapes(path: str | pathlib.Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a safetensors file, from its header alone: no tensor is read.

    Raises:
      UserError: it cannot be read as one.
    """
    safetensors = optional("safetensors")
    path = local_path("weights", path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"weights: {path} cannot be read as safetensors ({reason})") from None


def difference(source: str, name: str, given: object, expected: object) -> UserError:
    """The refusal of another architecture: what `name` is in the weights and in the network."""
    text = f"{name} is {given}, and {expected} in the network"
    # Names come from the file: none of them breaks the line or speaks to the terminal.
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return UserError(f"weights: {source} has another architecture: {text}")


def _names(layer) -> list[str]:
    """Every name that a layer may have in a state dict."""
    names = [leaf.name for leaf in layer.leaves()]
    if isinstance(layer, Norm) and not layer.scaled:
        names.append(f"{layer.name}.weight")
    return names


def _checked(state: StateDict, name: str, shape: tuple[int, ...], source: str) -> np.ndarray:
    if name not in state or np.shape(state[name]) != shape:
        given = np.shape(state[name]) if name in state else "nothing"
        raise difference(source, name, given, shape)
    array = np.asarray(state[name])
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"weights: {source}: {name} needs a float type; got {array.dtype}")
    array = array.astype(np.float32)
    if not np.all(np.isfinite(array)):
        raise UserError(f"weights: {source}: {name} needs finite numbers; it holds NaN or infinity")
    return array


def _to_flax(array: np.ndarray, layer) -> np.ndarray:
    if isinstance(layer, Dense) and array.ndim == 2:
        plane = array.reshape(array.shape[0], *layer.plane)
        return np.ascontiguousarray(plane.transpose(2, 3, 1, 0)).reshape(-1, array.shape[0])
    if isinstance(layer, Convolution) and layer.matrix and array.ndim == 4:
        return np.ascontiguousarray(array[:, :, 0, 0].T)
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array


def _to_torch(array: np.ndarray, layer) -> np.ndarray:
    if isinstance(layer, Dense) and array.ndim == 2:
        channels, height, width = layer.plane
        plane = array.reshape(height, width, channels, -1)
        return plane.transpose(3, 2, 0, 1).reshape(array.shape[1], -1)
    if isinstance(layer, Convolution) and layer.matrix and array.ndim == 2:
        return array.T[:, :, None, None]
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
