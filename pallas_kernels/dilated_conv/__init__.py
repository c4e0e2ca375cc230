"""Dilated 2×2 cascades (CASSOD), depthwise large-kernel convolution (DDC) and convolution with cross-channel max pooling."""

from pallas_kernels.dilated_conv.api import cassod, compose_taps, conv_ccp, depthwise_conv

__all__ = ["cassod", "compose_taps", "conv_ccp", "depthwise_conv"]
