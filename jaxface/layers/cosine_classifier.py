"""A classifier that sees the direction of features alone.

Methods: nclpp
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.layers.prototypes import cosines


class CosineClassifier(nn.Module):
    """Scaled cosines with a vector per class, whose length does not count.

        z_c = s ⟨x / ‖x‖, w_c / ‖w_c‖⟩ + b_c

    Args:
      classes: C.
      scale: s > 0; 1 gives the cosines themselves, as margin losses take them.
      use_bias: whether there is b, which starts at 0.

    x [B, D] float -> [B, C] float32. Vectors start from He's uniform initialization.

    Example:
      >>> layer = CosineClassifier(2, scale=16.0, use_bias=False)
      >>> variables = {"params": {"prototypes": jnp.array([[3.0, 0.0], [0.0, 1.0]])}}
      >>> layer.apply(variables, jnp.array([[5.0, 0.0]])).tolist()
      [[16.0, 0.0]]
    """

    classes: int
    scale: float = 16.0
    use_bias: bool = True
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        start = nn.initializers.variance_scaling(2.0, "fan_in", "uniform", in_axis=1, out_axis=0)
        prototypes = self.param("prototypes", start, (self.classes, x.shape[-1]), self.param_dtype)
        scores = self.scale * cosines(x, prototypes)
        if self.use_bias:
            scores += self.param("bias", nn.initializers.zeros, (self.classes,), self.param_dtype)
        return scores


class CosineNetwork(nn.Module):
    """A network without its last layer, and `CosineClassifier` on its features.

    Args:
      network: `(image, train=) -> [B, D]`. embedding: C, number of classes. scale, use_bias: of the classifier.

    image [B, H, W, C] -> [B, embedding] float32.
    """

    network: nn.Module
    embedding: int
    scale: float = 16.0
    use_bias: bool = True

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        features = self.network(image, train=train)
        return CosineClassifier(self.embedding, self.scale, self.use_bias, name="classifier")(features)
