"""Backbones that give feature maps at strides 8, 16 and 32, and the pyramid that joins them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.layers import BatchNorm, FrozenBatchNorm
from jaxface.layers.context import leaky_slope
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder, stage_blocks
from jaxface.models.recognition.mobilenet_v1 import MobileNetV1
from jaxface.models.recognition.resnet import Block
from jaxface.registry import Registry

BACKBONES: Registry[Callable[..., nn.Module]] = Registry("backbone", "jaxface.models.detection")
"""Modules, or partial applications of them, with a method `levels(image, *, train) -> (maps at strides 8, 16, 32)`.

Those that have a field `remat` and a method `depth_order` may be rematerialized, and trained at rates by depth."""

Levels = tuple[jax.Array, jax.Array, jax.Array]


def conv(
    features: int, *, kernel: int = 3, stride: int = 1, layer: Callable[..., Any] = nn.Conv, **options
) -> Any:
    """A convolution without bias; zeros on both sides, so that strided ones read what PyTorch's read."""
    options["kernel_init"] = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    return layer(features, (kernel, kernel), stride, padding=kernel // 2, use_bias=False, **options)


class ResNetLevels(nn.Module):
    """The stages of a ResNet for ImageNet (arXiv:1512.03385) behind its stem, without its head.

    Args:
      stages, channels: residual units, and channels of their 3x3 convolutions, per stage.
      bottleneck: units of three convolutions, not of two.
      stride_first: the stride of a bottleneck sits in its first convolution, as Caffe's ResNets have it.
      frozen: the normalizations are constants (`FrozenBatchNorm`). epsilon: of the normalizations.
      conv: makes each convolution of the stem and the units, as `flax.linen.Conv` does.
      remat: "block" stores the inputs of the units alone for the backward pass.

    image [B, H, W, 3] -> (8, 16, 32 · channels of the first stage) at strides 8, 16, 32, a quarter of them without bottlenecks;
    `all_levels` gives the first stage's at stride 4 besides.
    """

    stages: tuple[int, int, int, int] = (3, 4, 6, 3)
    channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"
    bottleneck: bool = True
    stride_first: bool = False
    frozen: bool = False
    epsilon: float = 1e-5
    conv: Callable[..., nn.Module] = nn.Conv

    def levels(self, image: jax.Array, *, train: bool) -> Levels:
        """Maps at strides 8, 16 and 32."""
        return self.all_levels(image, train=train)[1:]

    @nn.compact
    def all_levels(self, image: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        """Maps at strides 4, 8, 16 and 32."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = partial(FrozenBatchNorm if self.frozen else BatchNorm, epsilon=self.epsilon)
        x = conv(self.channels[0], kernel=7, stride=2, layer=self.conv, name="stem_conv", **types)(image)
        x = nn.relu(norm(name="stem_norm", **types)(x, train=train))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        levels = []
        for i, (units, features) in enumerate(zip(self.stages, self.channels, strict=True), start=1):
            for j in range(1, units + 1):
                unit = Block(
                    features,
                    2 if j == 1 and i > 1 else 1,
                    bottleneck=self.bottleneck,
                    stride_first=self.stride_first,
                    frozen=self.frozen,
                    epsilon=self.epsilon,
                    conv=self.conv,
                    name=f"stage{i}_block{j}",
                    **types,
                )
                x = run_block(unit, x, remat=self.remat, train=train)
            levels.append(x)
        return tuple(levels)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on."""
        return ("stem",), *stage_blocks(self.stages)


class FeaturePyramid(nn.Module):
    """The pyramid of RetinaFace (arXiv:1905.00641 after arXiv:1612.03144): coarse levels are added to the finer ones.

        lateral_i = leaky ReLU(BN(conv1x1(level_i)))
        output_3 = lateral_3;   output_i = leaky ReLU(BN(conv3x3(lateral_i + nearest upsampling of output_{i+1})))

    Args:
      features: of every output; the slope of the leaky ReLU is 0.1 up to 64, 0 above.

    (levels at strides 8, 16, 32, fine before coarse) -> as many of `features` channels.
    """

    features: int = 64
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, levels: Levels, *, train: bool) -> Levels:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def unit(x, kernel, name):
            x = conv(self.features, kernel=kernel, name=f"{name}_conv", **types)(x)
            return nn.leaky_relu(
                BatchNorm(name=f"{name}_norm", **types)(x, train=train), leaky_slope(self.features)
            )

        outputs = [unit(level, 1, f"lateral{i}") for i, level in enumerate(levels, start=1)]
        for i in reversed(range(len(outputs) - 1)):
            _, height, width, _ = outputs[i].shape
            # A side of 2n or 2n - 1 lies over one of n: the nearest of place k is k // 2.
            coarse = jnp.repeat(jnp.repeat(outputs[i + 1], 2, axis=1), 2, axis=2)[:, :height, :width]
            outputs[i] = unit(outputs[i] + coarse, 3, f"merge{i + 1}")
        return tuple(outputs)


_mobilenet = partial(MobileNetV1, embedding=None, negative_slope=0.1)

BACKBONES.update({"mobilenet_025": partial(_mobilenet, width=0.25), "resnet50": ResNetLevels})
