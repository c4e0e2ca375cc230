"""Flax modules that are parts of networks."""

from jaxface.layers.activation import PReLU
from jaxface.layers.depthwise import DepthwiseConv, depthwise_conv
from jaxface.layers.norm import BatchNorm

__all__ = ["BatchNorm", "DepthwiseConv", "PReLU", "depthwise_conv"]
