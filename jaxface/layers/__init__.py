"""Flax modules that are parts of networks."""

from jaxface.layers.activation import PReLU
from jaxface.layers.binary import BinaryConv, BinaryDense, ChannelBias, approx_sign, sign
from jaxface.layers.confidence import ConfidenceNet
from jaxface.layers.depthwise import DepthwiseConv, depthwise_conv
from jaxface.layers.discrepancy import FeatureMapLIDEstimator, LIDEstimator
from jaxface.layers.norm import BatchNorm

__all__ = [
    "BatchNorm",
    "BinaryConv",
    "BinaryDense",
    "ChannelBias",
    "ConfidenceNet",
    "DepthwiseConv",
    "FeatureMapLIDEstimator",
    "LIDEstimator",
    "PReLU",
    "approx_sign",
    "depthwise_conv",
    "sign",
]
