"""How far each of two modalities of a face can be trusted.

Methods: acw
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class ConfidenceNet(nn.Module):
    """Confidences of the RGB and the depth embedding of an image, for Adaptive Confidence Weighting (arXiv:2403.06529).

        e = [u_r ; u_d ; log(1 + ‖f_r‖) ; log(1 + ‖f_d‖)],        l = W_2 relu(W_1 e + b_1) + b_2,        c = softmax(l)

    W_2 and b_2 start at zero, so that a fresh network trusts both alike, c = (1/2, 1/2). The paper's own architecture is not
    known to us; this one is ours (design). The inputs are constants: no gradient reaches the networks behind them.

    Attributes:
      hidden: width of the hidden layer; 24 to 128. Embeddings say who it is: with few identities a wide layer learns them.
      features: whether the embeddings are among the inputs.
      norms: whether their lengths are, which tell about quality.

    (rgb [B, D_r] unit rows, depth [B, D_d] unit rows, rgb_norm [B], depth_norm [B]) -> logits [B, 2] float32, RGB first.

    Example:
      >>> embedding, norm = jnp.zeros((2, 16)), jnp.ones(2)
      >>> arrays = (embedding, embedding, norm, norm)
      >>> jax.eval_shape(ConfidenceNet().init_with_output, jax.random.key(0), *arrays)[0].shape
      (2, 2)
    """

    hidden: int = 128
    features: bool = True
    norms: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, rgb: jax.Array, depth: jax.Array, rgb_norm: jax.Array, depth_norm: jax.Array
    ) -> jax.Array:
        if not (self.features or self.norms):
            raise ValueError("features, norms: a confidence needs at least one of them as input")
        columns = [rgb, depth] if self.features else []
        if self.norms:
            columns += [jnp.log1p(norm.astype(jnp.float32))[:, None] for norm in (rgb_norm, depth_norm)]
        inputs = jax.lax.stop_gradient(
            jnp.concatenate([column.astype(jnp.float32) for column in columns], axis=1)
        )
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        hidden = nn.relu(nn.Dense(self.hidden, name="hidden", **options)(inputs))
        logits = nn.Dense(2, kernel_init=nn.initializers.zeros, name="confidence", **options)(hidden)
        return logits.astype(jnp.float32)
