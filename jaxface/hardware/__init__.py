"""Accelerators as arithmetic on the shapes of layers: cycles, memory and traffic; numpy integers, no arrays of a network.

The layers of a network of ours are traced by `jaxface.models.convolutions`.
"""

from jaxface.hardware.accelerator import (
    CONVENTIONAL,
    PROPOSED,
    Accelerator,
    ConvSpec,
    Cycles,
    depthwise_separable,
    dilated_cycles,
    layer_cycles,
    network_cycles,
    taps,
)
from jaxface.hardware.feature_maps import (
    FeatureMemory,
    FeatureTraffic,
    PoolingOverhead,
    feature_memory,
    feature_traffic,
    pooling_overhead,
)
from jaxface.hardware.host_layers import (
    RETINAFACE_PARAMETERS,
    cascade_layers,
    retinaface_layers,
    separable_where,
    tiny_yolo_layers,
)
from jaxface.hardware.low_bit import LowBitCost, Product, low_bit_cost

__all__ = [
    "CONVENTIONAL",
    "PROPOSED",
    "RETINAFACE_PARAMETERS",
    "Accelerator",
    "ConvSpec",
    "Cycles",
    "FeatureMemory",
    "FeatureTraffic",
    "LowBitCost",
    "PoolingOverhead",
    "Product",
    "cascade_layers",
    "depthwise_separable",
    "dilated_cycles",
    "feature_memory",
    "feature_traffic",
    "layer_cycles",
    "low_bit_cost",
    "network_cycles",
    "pooling_overhead",
    "retinaface_layers",
    "separable_where",
    "taps",
    "tiny_yolo_layers",
]
