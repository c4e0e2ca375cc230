"""Attention on integer codes: quantized products, the softmax in float, and gradients for learned steps."""

from pallas_kernels.quantized_attention.api import AttnSteps, quantized_attention, quantized_attention_codes
from pallas_kernels.quantized_attention.quantizers import (
    quantize_absmax,
    quantize_channels,
    quantize_lsq,
    quantize_smooth,
)

__all__ = [
    "AttnSteps",
    "quantize_absmax",
    "quantize_channels",
    "quantize_lsq",
    "quantize_smooth",
    "quantized_attention",
    "quantized_attention_codes",
]
