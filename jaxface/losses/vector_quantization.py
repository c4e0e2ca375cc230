"""Losses of an autoencoder whose latents are codes: the codebook's, and the weight of its adversary (arXiv:2012.09841).

Methods: ota, intern
"""

import chex
import jax
import jax.numpy as jnp
import optax

from jaxface.checks import NonNegative, check_number


def vq_loss(latents: jax.Array, codes: jax.Array, *, beta: float = 0.25) -> jax.Array:
    """What moves codes to their latents, and latents to their codes (arXiv:1711.00937, eq. 3).

        L = mean (sg(z) - E_j)² + β mean (z - sg(E_j))²

    The reference code of the VQ-GAN has a class in which β stands before the other term; this is the form that it calls correct.

    Args:
      latents: z [..., d] float.
      codes: E_j [..., d] float, the nearest code of each, taken from the codebook as it is (no straight-through gradient).
      beta: β ≥ 0.

    Returns:
      [] float32.

    Raises:
      AssertionError: the shapes differ. UserError: β is negative.

    Example:
      >>> float(vq_loss(jnp.array([[1.0, 0.0], [0.25, 1.0]]), jnp.array([[0.0, 0.0], [0.0, 1.0]])))
      0.33203125
    """
    chex.assert_equal_shape([latents, codes], custom_message="latents and codes differ in shape")
    check_number("beta", beta, NonNegative)
    latents, codes = latents.astype(jnp.float32), codes.astype(jnp.float32)
    codebook = jnp.mean(jnp.square(jax.lax.stop_gradient(latents) - codes))
    return codebook + beta * jnp.mean(jnp.square(latents - jax.lax.stop_gradient(codes)))


def adaptive_weight(
    reconstruction: jax.Array, adversarial: jax.Array, *, largest: float = 1e4, epsilon: float = 1e-4
) -> jax.Array:
    """The weight that makes an adversary's gradient as long as that of the reconstruction (arXiv:2012.09841, eq. 7).

        λ = clip( ‖∇ L_rec‖ / (‖∇ L_g‖ + ε), 0, largest )

    Args:
      reconstruction: gradient of the reconstruction loss with respect to the kernel of the decoder's last layer, or a pytree.
      adversarial: gradient of the generator's adversarial loss, of the same structure.
      largest: upper bound, ≥ 0. epsilon: ε.

    Returns:
      [] float32; a constant for any gradient.

    Example:
      >>> float(adaptive_weight(jnp.ones(3), 2 * jnp.ones(3), epsilon=0.0)), float(adaptive_weight(jnp.ones(3), jnp.zeros(3)))
      (0.5, 10000.0)
    """
    ratio = optax.tree.norm(reconstruction) / (optax.tree.norm(adversarial) + epsilon)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, largest)).astype(jnp.float32)
