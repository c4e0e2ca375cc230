"""Flax modules that are parts of networks."""

from jaxface.layers.activation import PReLU
from jaxface.layers.binary import BinaryConv, BinaryDense, ChannelBias, approx_sign, sign
from jaxface.layers.confidence import ConfidenceNet
from jaxface.layers.context import CONTEXTS, DilatedContext, SSHContext
from jaxface.layers.ddc import DDCLayer, FusedDDC, LargeKernelDepthwiseSeparable, depthwise_dilated, fuse_ddc
from jaxface.layers.depthwise import DepthwiseConv, depthwise_conv
from jaxface.layers.discrepancy import FeatureMapLIDEstimator, LIDEstimator
from jaxface.layers.norm import BatchNorm
from jaxface.layers.rbonn import RBOConv

__all__ = [
    "CONTEXTS",
    "BatchNorm",
    "BinaryConv",
    "BinaryDense",
    "ChannelBias",
    "ConfidenceNet",
    "DDCLayer",
    "DepthwiseConv",
    "DilatedContext",
    "FeatureMapLIDEstimator",
    "FusedDDC",
    "LIDEstimator",
    "LargeKernelDepthwiseSeparable",
    "PReLU",
    "RBOConv",
    "SSHContext",
    "approx_sign",
    "depthwise_conv",
    "depthwise_dilated",
    "fuse_ddc",
    "sign",
]
