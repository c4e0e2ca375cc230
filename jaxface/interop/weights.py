"""Published weights of whatever format."""

import pathlib

import flax.linen as nn
import numpy as np

from jaxface.errors import UserError
from jaxface.interop.onnx_graph import read_chain
from jaxface.interop.onnx_transformer import read_transformer
from jaxface.interop.state_dict import from_state_dict, read_safetensors
from jaxface.interop.torch_file import read_torch
from jaxface.interop.transformer_layers import is_transformer
from jaxface.paths import local_path


def load_weights(path: str | pathlib.Path, module: nn.Module, image_shape: tuple[int, int, int]) -> dict:
    """Variables of a network from a file of PyTorch (`torch.save` of a state dict), safetensors or ONNX.

    PyTorch and safetensors hold tensors under published names (`jaxface.interop.architecture`), ONNX a graph under any.
    None of them is run.

    Args:
      path: the file; `.onnx` is read as ONNX, any other by what it begins with.
      module: an `IResNet` with insightface blocks, a `MobileFaceNet`, a `ViT` that reads its class token, a `Swin`, or a
        `RetinaFaceNet`, which no ONNX graph is read into.
      image_shape: (H, W, C) of its images; 112 x 112 x 3 for all published recognizers, 224 x 224 x 3 for most transformers.

    Returns:
      {"params", "batch_stats"} of float32 numpy arrays.

    Raises:
      UserError: a file that cannot be read, or weights of another architecture (names the first tensor that differs and both
        shapes).
    """
    path = local_path("weights", path)
    state = read_onnx(path, module, image_shape) if path.suffix == ".onnx" else read_tensors(path)
    return from_state_dict(state, module, image_shape, source=str(path))


def read_onnx(
    path: str | pathlib.Path, module: nn.Module, image_shape: tuple[int, int, int]
) -> dict[str, np.ndarray]:
    """The weights of an exported graph as a state dict under PyTorch's names, for `from_state_dict`.

    Args:
      path: an `.onnx` file; data outside it are read from files in the same folder only.
      module: what the graph should be: an `IResNet` with insightface blocks, a `MobileFaceNet`, a `ViT` that reads its class
        token, or a `Swin`.
      image_shape: (H, W, C) of its images.

    Raises:
      UserError: the file cannot be read, or its graph is another architecture (names the first tensor that differs and both
        shapes, or the first layer that is not where it should be).
    """
    path = local_path("weights", path)
    try:
        return (read_transformer if is_transformer(module) else read_chain)(path, module, image_shape)
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        # Nodes without inputs or outputs, attributes of a wrong kind.
        raise UserError(f"weights: {path} is damaged: its graph is no valid ONNX") from None


def read_tensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a file of PyTorch or safetensors, which is told by what it begins with.

    Raises:
      UserError: it cannot be read as either.
    """
    path = local_path("weights", path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"weights: cannot read {path}: {error.strerror or error}") from None
    # safetensors: eight bytes of length, then JSON.
    return read_safetensors(path) if start[8:] == b"{" else read_torch(path)
