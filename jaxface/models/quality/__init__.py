"""Networks that say how good an image looks, without another beside it.

A ResNet-34 whose maps are pooled by products of channels, as UNIQUE judges images (arXiv:2005.13983), is `bilinear_resnet34`.
"""

from functools import partial

from jaxface.layers.pooling import BilinearPool
from jaxface.models.quality.gdn_pyramid import GDNPyramid
from jaxface.models.quality.quality_cnn import QualityCNN
from jaxface.models.recognition.resnet import ResNet
from jaxface.models.registry import MODELS

__all__ = ["GDNPyramid", "QualityCNN"]

MODELS.update({"bilinear_resnet34": partial(ResNet, stages=(3, 4, 6, 3), pooling=BilinearPool)})
