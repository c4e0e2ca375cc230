"""Whole networks by name: image [B, H, W, C] in, [B, embedding] float32 out."""

from jaxface.models.counting import multiply_accumulates, parameter_count
from jaxface.models.dpm import DPM, live_margin
from jaxface.models.inner import apply_from_layer, apply_with_layer, layer_shapes
from jaxface.models.quality import GDNPyramid, QualityCNN
from jaxface.models.recognition.attended import AttendedMLP, AttendedResNet
from jaxface.models.recognition.convnet import ConvNet
from jaxface.models.recognition.inception_resnet import InceptionResNet
from jaxface.models.recognition.iresnet import IResNet
from jaxface.models.recognition.mlp import MLP
from jaxface.models.recognition.mobilefacenet import MobileFaceNet
from jaxface.models.recognition.mobilenet import MobileNet
from jaxface.models.recognition.mobilenet_v1 import MobileNetV1
from jaxface.models.recognition.mobilenet_v2 import MobileNetV2
from jaxface.models.recognition.resnet import FaceResNet, ResNet
from jaxface.models.recognition.small_loss_cnn import SmallLossCNN
from jaxface.models.recognition.wide_resnet import WideResNet
from jaxface.models.registry import MODELS, create, describe, feature_size, from_description, names
from jaxface.models.staged import PlainStages
from jaxface.models.transformers.apvit import APViT, kept_patches
from jaxface.models.transformers.fmvit import FMViT, liveness
from jaxface.models.transformers.metanet import MetaNet
from jaxface.models.transformers.sparsevit import AdaptiveSparseViT
from jaxface.models.transformers.swin import Swin
from jaxface.models.transformers.vit import ViT

__all__ = [
    "DPM",
    "MLP",
    "MODELS",
    "APViT",
    "AdaptiveSparseViT",
    "AttendedMLP",
    "AttendedResNet",
    "ConvNet",
    "FMViT",
    "FaceResNet",
    "GDNPyramid",
    "IResNet",
    "InceptionResNet",
    "MetaNet",
    "MobileFaceNet",
    "MobileNet",
    "MobileNetV1",
    "MobileNetV2",
    "PlainStages",
    "QualityCNN",
    "ResNet",
    "SmallLossCNN",
    "Swin",
    "ViT",
    "WideResNet",
    "apply_from_layer",
    "apply_with_layer",
    "create",
    "describe",
    "feature_size",
    "from_description",
    "kept_patches",
    "layer_shapes",
    "live_margin",
    "liveness",
    "multiply_accumulates",
    "names",
    "parameter_count",
]
