"""Weights in and out: PyTorch, safetensors and ONNX files of the same architectures, and StableHLO programs."""

from jaxface.interop.onnx_export import save_onnx
from jaxface.interop.perceptual import read_dists, read_lpips, read_svr, trunk_convolutions
from jaxface.interop.program import load_stablehlo, save_stablehlo
from jaxface.interop.pyramid_layers import read_trunk
from jaxface.interop.state_dict import (
    from_state_dict,
    read_safetensors,
    save_safetensors,
    tensor_shapes,
    to_state_dict,
    unwrapped,
)
from jaxface.interop.torch_file import read_torch
from jaxface.interop.transformer_layers import fold_normalization
from jaxface.interop.weights import load_weights, read_onnx, read_tensors

__all__ = [
    "fold_normalization",
    "from_state_dict",
    "load_stablehlo",
    "load_weights",
    "read_dists",
    "read_lpips",
    "read_onnx",
    "read_safetensors",
    "read_svr",
    "read_tensors",
    "read_torch",
    "read_trunk",
    "save_onnx",
    "save_safetensors",
    "save_stablehlo",
    "tensor_shapes",
    "to_state_dict",
    "trunk_convolutions",
    "unwrapped",
]
