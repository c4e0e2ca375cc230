"""Networks whose inner layers are binary, their deployment form on packed bits, and what both cost."""

from jaxface.models.binary.packed import PackedNetwork, to_packed
from jaxface.models.binary.report import LayerCost, NetworkCost, network_cost
from jaxface.models.binary.resnet import BinaryResNet
from jaxface.models.binary.small import BinarySmall

__all__ = [
    "BinaryResNet",
    "BinarySmall",
    "LayerCost",
    "NetworkCost",
    "PackedNetwork",
    "network_cost",
    "to_packed",
]
