"""A few convolutions and the moments of their maps: the smallest network that tells how good an image looks.

Methods: niqa_attack
"""

import jax

from jaxface.layers.pooling import moment_pool
from jaxface.models.recognition.convnet import ConvNet
from jaxface.models.registry import MODELS


class QualityCNN(ConvNet):
    """Convolutions 3x3 with SiLU, means and standard deviations over the plane, then Dense; no normalization.

    Args:
      embedding: outputs, 1 for a score; None gives the pooled moments.
      channels: channels of the convolutions `stage1`, `stage2`, …
      strides: their strides.
      remat: "block" stores the inputs of the convolutions alone for the backward pass.

    image [B, H, W, C] float -> [B, embedding] float32; `train` changes nothing. H and W are free.
    """

    embedding: int | None = 1
    channels: tuple[int, ...] = (16, 32, 32)

    def _pooled(self, x: jax.Array) -> jax.Array:
        return moment_pool(x)


MODELS.update({"quality_cnn": QualityCNN})
