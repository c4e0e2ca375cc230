"""Whole networks by name: image [B, H, W, C] in, [B, embedding] float32 out."""

import dataclasses
import difflib
import re
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.models.convnet import ConvNet
from jaxface.models.counting import multiply_accumulates, parameter_count
from jaxface.models.inner import apply_from_layer, apply_with_layer, layer_shapes
from jaxface.models.iresnet import IResNet
from jaxface.models.mlp import MLP
from jaxface.models.mobilefacenet import MobileFaceNet
from jaxface.models.mobilenet_v2 import MobileNetV2
from jaxface.models.resnet import FaceResNet, ResNet
from jaxface.models.vit import ViT

__all__ = [
    "MLP",
    "ConvNet",
    "FaceResNet",
    "IResNet",
    "MobileFaceNet",
    "MobileNetV2",
    "ResNet",
    "ViT",
    "apply_from_layer",
    "apply_with_layer",
    "create",
    "layer_shapes",
    "multiply_accumulates",
    "names",
    "parameter_count",
]

_cifar = partial(ResNet, channels=(16, 32, 64), small_images=True)

_MODELS = {
    # Three stages behind a strided stem: made to train on two CPU cores, on images of 48 to 64 pixels.
    "iresnet_pico": partial(IResNet, stages=(1, 1, 1), channels=(16, 32, 64), stem_stride=2),
    "iresnet_nano": partial(IResNet, stages=(1, 1, 1), channels=(32, 64, 128), stem_stride=2),
    "iresnet10": partial(IResNet, stages=(1, 1, 1, 1)),
    "iresnet18": partial(IResNet, stages=(2, 2, 2, 2)),
    "iresnet34": partial(IResNet, stages=(3, 4, 6, 3)),
    "iresnet50": partial(IResNet, stages=(3, 4, 14, 3)),
    "iresnet100": partial(IResNet, stages=(3, 13, 30, 3)),
    "iresnet200": partial(IResNet, stages=(6, 26, 60, 6)),
    "mobilefacenet": MobileFaceNet,
    "mobilefacenet_large": partial(MobileFaceNet, channels=(128, 128, 256, 256), use_bias=False),
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v2_half": partial(MobileNetV2, width=0.5),
    "mobilenet_v2_quarter": partial(MobileNetV2, width=0.25),
    "resnet18": partial(ResNet, stages=(2, 2, 2, 2)),
    "resnet34": partial(ResNet, stages=(3, 4, 6, 3)),
    "resnet50": partial(ResNet, stages=(3, 4, 6, 3), block="bottleneck"),
    "resnet101": partial(ResNet, stages=(3, 4, 23, 3), block="bottleneck"),
    "face_resnet34": FaceResNet,
    "cifar_resnet20": partial(_cifar, stages=(3, 3, 3)),
    "cifar_resnet32": partial(_cifar, stages=(5, 5, 5)),
    "cifar_resnet44": partial(_cifar, stages=(7, 7, 7)),
    "cifar_resnet56": partial(_cifar, stages=(9, 9, 9)),
    "cifar_resnet110": partial(_cifar, stages=(18, 18, 18)),
    # ImageNet's ResNet-50 behind a plain stem, as CIFAR papers use it.
    "cifar_resnet50": partial(
        ResNet, stages=(3, 4, 6, 3), block="bottleneck", small_images=True, plain_shortcut=False
    ),
    "vit_tiny": partial(ViT, dim=192, depth=12, heads=3),
    "vit_small": partial(ViT, dim=384, depth=12, heads=6),
    "vit_base": partial(ViT, dim=768, depth=12, heads=12),
    "vit_large": partial(ViT, dim=1024, depth=24, heads=16),
    "mlp": MLP,
    "convnet": ConvNet,
}


def names() -> tuple[str, ...]:
    """The names that `create` knows."""
    return tuple(_MODELS)


def create(name: str, *, embedding: int = 512, dtype: Any = jnp.float32, **fields) -> nn.Module:
    """A network by name.

    Args:
      name: one of `names()`; or `mlp_512x256`, a perceptron with these hidden widths.
      embedding: features of the last layer, >= 1: the size of an embedding, or the number of classes.
      dtype: compute type (float32 or bfloat16); parameters and output stay float32.
      **fields: any other field of the module, such as `width`, `block` or `dropout`.

    Returns:
      A Flax module: `module.apply(variables, image [B, H, W, C] float, train=...)` is [B, embedding] float32, not
      normalised. Where it has batch statistics, training needs `mutable=["batch_stats"]`; where it has dropout, a key
      `rngs={"dropout": key}`.

    Raises:
      UserError: the name or a field is unknown, or a field's value is impossible.
    """
    if widths := re.fullmatch(r"mlp_(\d+(?:x\d+)*)", name):
        name, fields = "mlp", {"hidden": tuple(map(int, widths[1].split("x"))), **fields}
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, n=3, cutoff=0.4) or names()
        raise UserError(f"model must be a known name, not {name!r}; the nearest are {', '.join(near)}")
    if embedding < 1:
        raise UserError(f"embedding must be at least 1, not {embedding}")
    model = _MODELS[name]
    known = {f.name for f in dataclasses.fields(getattr(model, "func", model))} - {"parent", "name"}
    if unknown := sorted(set(fields) - known):
        raise UserError(
            f"model {name!r} has no field {', '.join(unknown)}; its fields are {', '.join(sorted(known))}"
        )
    return model(embedding=embedding, dtype=dtype, **fields)
