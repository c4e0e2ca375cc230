"""Networks whose inner layers are binary, and their deployment form on packed bits."""

from jaxface.models.binary.packed import PackedNetwork, to_packed
from jaxface.models.binary.resnet import BinaryResNet
from jaxface.models.binary.small import BinarySmall

__all__ = ["BinaryResNet", "BinarySmall", "PackedNetwork", "to_packed"]
