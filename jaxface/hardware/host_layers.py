"""Layer tables of the networks that the accelerator papers count, written out and independent of any module."""

from collections.abc import Callable, Sequence
from typing import Literal

from jaxface.errors import UserError
from jaxface.hardware.accelerator import ConvSpec, depthwise_separable

Context = Literal["ssh", "dilated", "ddc", "cassod"]
RETINAFACE_PARAMETERS = 426_608
"""Of RetinaFace with MobileNetV1 x 0.25: weights, biases of the heads, scale and shift of every batch normalization."""

_BACKBONE = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *((128, 1),) * 5, (256, 2), (256, 1))


def retinaface_layers(
    context: Context = "ssh", image_size: int = 640, *, features: int = 64, anchors: int = 2
) -> list[ConvSpec]:
    """Convolutions of RetinaFace with MobileNetV1 x 0.25, as its most-used public implementation has them.

    Backbone (`backbone.…`), pyramid (`lateral1…3` at strides 8, 16, 32, `merge1` at 8, `merge2` at 16), one context module per
    level (`context1.…`) and 1 x 1 heads of classes, boxes and points.

    | context | branches of F channels, all 3 x 3 |
    |---|---|
    | ssh | `large` F → F/2; `stem` F → F/4; `medium` F/4 → F/4; `small1`, `small2` F/4 → F/4 |
    | dilated | `large` F → F/2; `medium` F → F/4 of dilation 2; `small` F → F/4 of dilation 3 |
    | ddc | as dilated, each depthwise and pointwise |
    | cassod | as dilated, but `medium` and `small` are two 2 x 2 filters, depthwise and dense |

    Args:
      context: kind of the context modules.
      image_size: side of the image, pixels, a multiple of 32.
      features: F of pyramid and context.
      anchors: per place.

    Returns:
      The layers in order.

    Raises:
      UserError: an unknown kind.

    Example:
      >>> from jaxface.hardware import network_cycles
      >>> network_cycles(retinaface_layers("ssh")).macs
      981145600
    """
    if context not in _CONTEXTS:
        raise UserError(f"context: needs one of {', '.join(_CONTEXTS)}, got {context!r}")
    size, channels = image_size // 2, 8
    layers = [ConvSpec(image_size, image_size, 3, channels, stride=2, name="backbone.stem")]
    levels = []
    for index, (width, stride) in enumerate(_BACKBONE, 1):
        dense = ConvSpec(size, size, channels, width, stride=stride, name=f"backbone.unit{index}")
        layers += depthwise_separable(dense)
        size, channels = size // stride, width
        if index in (5, 11, 13):
            levels.append((size, channels))
    layers += [
        ConvSpec(size, size, channels, features, 1, name=f"lateral{level}")
        for level, (size, channels) in enumerate(levels, 1)
    ]
    layers += [
        ConvSpec(size, size, features, features, name=f"merge{level}")
        for level, (size, _) in enumerate(levels[:2], 1)
    ]
    for level, (size, _) in enumerate(levels, 1):
        layers += _CONTEXTS[context](size, features, f"context{level}")
        layers += [
            ConvSpec(size, size, features, anchors * outputs, 1, name=f"{head}{level}")
            for head, outputs in (("class", 2), ("box", 4), ("point", 10))
        ]
    return layers


def _ssh(size: int, features: int, name: str) -> list[ConvSpec]:
    quarter = features // 4
    branches = (
        ("large", features, features // 2), ("stem", features, quarter), ("medium", quarter, quarter),
        ("small1", quarter, quarter), ("small2", quarter, quarter),
    )  # fmt: skip
    return [ConvSpec(size, size, *channels, name=f"{name}.{branch}") for branch, *channels in branches]


def _dilated(size: int, features: int, name: str) -> list[ConvSpec]:
    branches = (("large", features // 2, 1), ("medium", features // 4, 2), ("small", features // 4, 3))
    return [
        ConvSpec(size, size, features, outputs, dilation=dilation, name=f"{name}.{branch}")
        for branch, outputs, dilation in branches
    ]


def _ddc(size: int, features: int, name: str) -> list[ConvSpec]:
    return [part for layer in _dilated(size, features, name) for part in depthwise_separable(layer)]


def _cassod(size: int, features: int, name: str) -> list[ConvSpec]:
    large, *dilated = _dilated(size, features, name)
    return [large, *(stage for layer in dilated for stage in cascade_layers(layer))]


_CONTEXTS: dict[str, Callable[[int, int, str], list[ConvSpec]]] = {
    "ssh": _ssh,
    "dilated": _dilated,
    "ddc": _ddc,
    "cassod": _cassod,
}


def cascade_layers(layer: ConvSpec) -> tuple[ConvSpec, ConvSpec]:
    """A dilated 3 x 3 convolution as two 2 x 2 ones of its dilation, the first depthwise, the second dense.

    The first is counted on as many places as the output has.
    """
    size = {"kernel_size": 2, "dilation": layer.dilation}
    depthwise = ConvSpec(
        layer.height, layer.width, layer.in_channels, layer.in_channels, groups=layer.in_channels, name=f"{layer.name}.a", **size
    )  # fmt: skip
    dense = ConvSpec(
        layer.height, layer.width, layer.in_channels, layer.out_channels, name=f"{layer.name}.b", **size
    )
    return depthwise, dense


def separable_where(layers: Sequence[ConvSpec], names: Sequence[str]) -> list[ConvSpec]:
    """The layers, of which those with these names are depthwise and pointwise.

    Raises:
      UserError: a name that no layer has.
    """
    if unknown := sorted(set(names) - {layer.name for layer in layers}):
        raise UserError(f"names: needs names of layers, got {', '.join(unknown)}")
    return [
        part for layer in layers for part in (depthwise_separable(layer) if layer.name in names else (layer,))
    ]


_TINY_YOLO = ((16, 2), (32, 2), (64, 2), (128, 2), (256, 2), (512, 1), (1024, 1), (1024, 1))  # maps, pooling


def tiny_yolo_layers(
    image_size: int = 416, *, outputs: int = 30, pooled_layers: Sequence[int] = (), channel_pool: int = 1
) -> list[ConvSpec]:
    """The nine convolutions of Tiny-YOLOv2 for faces, or of Condensation-Net.

    Args:
      image_size: side of the image, pixels, a multiple of 32.
      outputs: of the last, 1 x 1: five boxes of 5 numbers and the class.
      pooled_layers: numbers from 1 of the layers that compute R maps for every one that is stored.
      channel_pool: R.

    Returns:
      The layers in order, `conv1` to `conv9`.

    Example:
      >>> from jaxface.hardware import network_cycles
      >>> network_cycles(tiny_yolo_layers()).weights
      15758256
    """
    layers, size, channels = [], image_size, 3
    for number, (width, pool) in enumerate(_TINY_YOLO, 1):
        pooled = channel_pool if number in pooled_layers else 1
        layers.append(
            ConvSpec(
                size,
                size,
                channels,
                width * pooled,
                channel_pool=pooled,
                pool_stride=pool,
                name=f"conv{number}",
            )
        )
        size, channels = size // pool, width
    return [*layers, ConvSpec(size, size, channels, outputs, 1, name="conv9")]
