"""Flax modules that are parts of networks."""

from jaxface.layers.activation import PReLU
from jaxface.layers.attention import Attention, DotProduct, LayerScale, Maps, RelativePositions
from jaxface.layers.binary import BinaryConv, BinaryDense, ChannelBias, approx_sign, sign
from jaxface.layers.cascade_taps import CascadeFit, cascade_defects, cascade_residual, universal_width
from jaxface.layers.cassod import (
    CascadedDilatedConv,
    FusedCascade,
    cascade_shapes,
    cascaded_dilated_conv,
    fuse_cascade,
    stage_ratio,
)
from jaxface.layers.condensation import (
    CondensationConv,
    FusedCondensation,
    condensation_gain,
    condense,
    cross_channel_argmax,
    cross_channel_pool,
    fuse_condensation,
)
from jaxface.layers.confidence import ConfidenceNet
from jaxface.layers.context import CONTEXTS, DilatedContext, SSHContext
from jaxface.layers.ddc import DDCLayer, FusedDDC, LargeKernelDepthwiseSeparable, depthwise_dilated, fuse_ddc
from jaxface.layers.depthwise import DepthwiseConv, depthwise_conv
from jaxface.layers.discrepancy import FeatureMapLIDEstimator, LIDEstimator
from jaxface.layers.joint_pyramid import JointPyramidUpsample, fuse_joint_pyramid
from jaxface.layers.norm import BatchNorm
from jaxface.layers.quantization import (
    QuantizedConv,
    QuantizedDense,
    QuantizedDotProduct,
    Quantizer,
    calibrate,
    lsq_codes,
    lsq_init_alpha,
    lsq_init_zero_point,
    lsq_quantize,
)
from jaxface.layers.rbonn import RBOConv
from jaxface.layers.remat import Remat, run_block

__all__ = [
    "CONTEXTS",
    "Attention",
    "BatchNorm",
    "BinaryConv",
    "BinaryDense",
    "CascadeFit",
    "CascadedDilatedConv",
    "ChannelBias",
    "CondensationConv",
    "ConfidenceNet",
    "DDCLayer",
    "DepthwiseConv",
    "DilatedContext",
    "DotProduct",
    "FeatureMapLIDEstimator",
    "FusedCascade",
    "FusedCondensation",
    "FusedDDC",
    "JointPyramidUpsample",
    "LIDEstimator",
    "LargeKernelDepthwiseSeparable",
    "LayerScale",
    "Maps",
    "PReLU",
    "QuantizedConv",
    "QuantizedDense",
    "QuantizedDotProduct",
    "Quantizer",
    "RBOConv",
    "RelativePositions",
    "Remat",
    "SSHContext",
    "approx_sign",
    "calibrate",
    "cascade_defects",
    "cascade_residual",
    "cascade_shapes",
    "cascaded_dilated_conv",
    "condensation_gain",
    "condense",
    "cross_channel_argmax",
    "cross_channel_pool",
    "depthwise_conv",
    "depthwise_dilated",
    "fuse_cascade",
    "fuse_condensation",
    "fuse_ddc",
    "fuse_joint_pyramid",
    "lsq_codes",
    "lsq_init_alpha",
    "lsq_init_zero_point",
    "lsq_quantize",
    "run_block",
    "sign",
    "stage_ratio",
    "universal_width",
]
