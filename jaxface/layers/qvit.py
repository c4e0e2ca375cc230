"""Information rectification of Q-ViT (arXiv:2210.06707): queries and keys are standardized token by token before they are
quantized, so that the one step of a head fits all of its tokens."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError

RectificationForm = Literal["code", "paper"]
"""As released, γ (x - μ) / σ + β; or as printed, (x - μ + β) / (γ σ)."""


def information_rectification(
    x: jax.Array,
    gamma: jax.Array | float = 1.0,
    beta: jax.Array | float = 0.0,
    *,
    eps: float = 1e-5,
    form: RectificationForm = "code",
) -> jax.Array:
    """Standardization of a head's queries or keys over its channels (arXiv:2210.06707, equation 11).

        "code":   γ (x - μ) / √(σ² + ε) + β            (a LayerNorm, as released)
        "paper":  (x - μ + β) / (γ √(σ² + ε))

    μ and σ² (biased) are those of each token. Its codes would not change if a whole head were standardized: a learned step does
    that already. What changes them is that tokens of different length share a step.

    Args:
      x: [..., d] float; the statistics are float32 at least.
      gamma, beta: scalars or [d].
      eps: ε > 0.
      form: see `RectificationForm`.

    Returns:
      As x.

    Raises:
      UserError: another form.

    Example:
      >>> [round(v, 4) for v in information_rectification(jnp.array([1.0, 2.0, 3.0, 6.0])).tolist()]
      [-1.069, -0.5345, 0.0, 1.6036]
    """
    if form not in ("code", "paper"):
        raise UserError(f"form: needs 'code' or 'paper', got {form!r}")
    precise = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centered = precise - jnp.mean(precise, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + eps)
    if form == "code":
        return (gamma * centered * scale + beta).astype(x.dtype)
    return ((centered + beta) * scale / gamma).astype(x.dtype)


class InformationRectification(nn.Module):
    """`information_rectification` with parameters `scale` γ, 1 at the start, and `bias` β, 0, of [d], shared by all heads.

    x [..., d] -> [..., d].
    """

    form: RectificationForm = "code"
    eps: float = 1e-5
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        beta = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        return information_rectification(x, gamma, beta, eps=self.eps, form=self.form)
