"""Flax modules that are parts of networks."""

from jaxface.layers.activation import PReLU
from jaxface.layers.apvit import (
    ClassAttention,
    PatchAttention,
    PatchPooling,
    TokenPooling,
    app_scores,
    atp_scores,
    attentive_patch_pool,
    class_logits,
    gather_tokens,
    token_counts,
    top_k_sorted,
    transformer_macs,
)
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
from jaxface.layers.dcp_nas import OneBitConv
from jaxface.layers.ddc import DDCLayer, FusedDDC, LargeKernelDepthwiseSeparable, depthwise_dilated, fuse_ddc
from jaxface.layers.depthwise import DepthwiseConv, depthwise_conv
from jaxface.layers.detr import DecoderLayer, EncoderLayer, GaussianLook, gaussian_prior, sine_positions
from jaxface.layers.discrepancy import FeatureMapLIDEstimator, LIDEstimator
from jaxface.layers.dpm import Gaussian, GaussianHead, QualityHead, sample_gaussian
from jaxface.layers.edic import ChannelAttention, Enhancer, FactorizedPrior
from jaxface.layers.fmvit import (
    ClassFusion,
    MutualDotProduct,
    cls_relevance,
    fusion_attention,
    guidance_mask,
    informative_mask,
    mutual_attention,
    partner_matrix,
)
from jaxface.layers.gdn import GDN, gdn, lower_bound
from jaxface.layers.integer import IntegerConv, IntegerDense, integer_params
from jaxface.layers.joint_pyramid import JointPyramidUpsample, fuse_joint_pyramid
from jaxface.layers.lifelong import SpatialAttention, gem_pool
from jaxface.layers.norm import BatchNorm, FrozenBatchNorm, MaskedBatchNorm
from jaxface.layers.pooling import BilinearPool, SpatialPyramidPool, moment_pool
from jaxface.layers.qdetr import DistributionAlignment, distribution_alignment, query_spread
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
from jaxface.layers.qvit import InformationRectification, information_rectification
from jaxface.layers.rbonn import RBOConv
from jaxface.layers.remat import Remat, run_block
from jaxface.layers.rm_pfi import FeatureAdapter
from jaxface.layers.sparsevit import (
    ScoredProduct,
    SparseEncoder,
    block_macs,
    head_weighted_cls_score,
    masked_softmax,
    prune_tokens,
    threshold_mask,
)

__all__ = [
    "CONTEXTS",
    "GDN",
    "Attention",
    "BatchNorm",
    "BilinearPool",
    "BinaryConv",
    "BinaryDense",
    "CascadeFit",
    "CascadedDilatedConv",
    "ChannelAttention",
    "ChannelBias",
    "ClassAttention",
    "ClassFusion",
    "CondensationConv",
    "ConfidenceNet",
    "DDCLayer",
    "DecoderLayer",
    "DepthwiseConv",
    "DilatedContext",
    "DistributionAlignment",
    "DotProduct",
    "EncoderLayer",
    "Enhancer",
    "FactorizedPrior",
    "FeatureAdapter",
    "FeatureMapLIDEstimator",
    "FrozenBatchNorm",
    "FusedCascade",
    "FusedCondensation",
    "FusedDDC",
    "Gaussian",
    "GaussianHead",
    "GaussianLook",
    "InformationRectification",
    "IntegerConv",
    "IntegerDense",
    "JointPyramidUpsample",
    "LIDEstimator",
    "LargeKernelDepthwiseSeparable",
    "LayerScale",
    "Maps",
    "MaskedBatchNorm",
    "MutualDotProduct",
    "OneBitConv",
    "PReLU",
    "PatchAttention",
    "PatchPooling",
    "QualityHead",
    "QuantizedConv",
    "QuantizedDense",
    "QuantizedDotProduct",
    "Quantizer",
    "RBOConv",
    "RelativePositions",
    "Remat",
    "SSHContext",
    "ScoredProduct",
    "SparseEncoder",
    "SpatialAttention",
    "SpatialPyramidPool",
    "TokenPooling",
    "app_scores",
    "approx_sign",
    "atp_scores",
    "attentive_patch_pool",
    "block_macs",
    "calibrate",
    "cascade_defects",
    "cascade_residual",
    "cascade_shapes",
    "cascaded_dilated_conv",
    "class_logits",
    "cls_relevance",
    "condensation_gain",
    "condense",
    "cross_channel_argmax",
    "cross_channel_pool",
    "depthwise_conv",
    "depthwise_dilated",
    "distribution_alignment",
    "fuse_cascade",
    "fuse_condensation",
    "fuse_ddc",
    "fuse_joint_pyramid",
    "fusion_attention",
    "gather_tokens",
    "gaussian_prior",
    "gdn",
    "gem_pool",
    "guidance_mask",
    "head_weighted_cls_score",
    "information_rectification",
    "informative_mask",
    "integer_params",
    "lower_bound",
    "lsq_codes",
    "lsq_init_alpha",
    "lsq_init_zero_point",
    "lsq_quantize",
    "masked_softmax",
    "moment_pool",
    "mutual_attention",
    "partner_matrix",
    "prune_tokens",
    "query_spread",
    "run_block",
    "sample_gaussian",
    "sign",
    "sine_positions",
    "stage_ratio",
    "threshold_mask",
    "token_counts",
    "top_k_sorted",
    "transformer_macs",
    "universal_width",
]
