"""The losses of a generative adversarial network: non-saturating, with a gradient penalty on real images; hinges.

Methods: ida, ota, intern
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp


def gan_discriminator_loss(real_logits: jax.Array, generated_logits: jax.Array) -> jax.Array:
    """What a discriminator minimizes (arXiv:1406.2661, eq. 1).

        L_i = softplus(-D(x_i)) + softplus(D(G(z_i)))  =  -log σ(D(x_i)) - log(1 - σ(D(G(z_i))))

    Args:
      real_logits: [B] float, of images from the data.
      generated_logits: [B] float, of generated ones; stop the gradient to the generator where it is trained by another loss.

    Returns:
      [B] float32, unreduced.

    Raises:
      AssertionError: the shapes differ or are not [B].

    Example:
      >>> real, generated = jnp.array([0.0, 4.0]), jnp.array([0.0, -4.0])
      >>> [round(x, 3) for x in gan_discriminator_loss(real, generated).tolist()]
      [1.386, 0.036]
    """
    chex.assert_rank([real_logits, generated_logits], 1, custom_message="logits must be [B]")
    chex.assert_equal_shape([real_logits, generated_logits], custom_message="the logits differ in batch")
    real, generated = (x.astype(jnp.float32) for x in (real_logits, generated_logits))
    return jax.nn.softplus(-real) + jax.nn.softplus(generated)


def gan_generator_loss(generated_logits: jax.Array) -> jax.Array:
    """What a generator minimizes, in the form whose gradient does not vanish where it is bad (arXiv:1406.2661, section 3).

        L_i = softplus(-D(G(z_i)))  =  -log σ(D(G(z_i)))

    Args:
      generated_logits: [B] float.

    Returns:
      [B] float32, unreduced.

    Raises:
      AssertionError: not [B].

    Example:
      >>> [round(x, 3) for x in gan_generator_loss(jnp.array([-4.0, 0.0, 4.0])).tolist()]
      [4.018, 0.693, 0.018]
    """
    chex.assert_rank(generated_logits, 1, custom_message="logits must be [B]")
    return jax.nn.softplus(-generated_logits.astype(jnp.float32))


def r1_penalty(discriminator: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """Squared gradient of the discriminator at real images, which makes the training converge (arXiv:1801.04406, eq. 9).

        R_i = ‖ ∇ D(x_i) ‖²,      added to the loss as γ/2 mean_i R_i

    Args:
      discriminator: images [B, ...] -> logits [B], each of which depends on its own image alone.
      images: [B, ...] float, from the data.

    Returns:
      [B] float32, unreduced.

    Example:
      >>> images = jnp.ones((2, 3))
      >>> r1_penalty(lambda images: 2.0 * images.sum(axis=1), images).tolist()  # the gradient is 2 at each of 3 pixels
      [12.0, 12.0]
    """
    gradient = jax.grad(lambda x: discriminator(x).astype(jnp.float32).sum())(images)
    return jnp.sum(jnp.square(gradient.astype(jnp.float32)).reshape(len(images), -1), axis=1)


def hinge_discriminator_loss(real_logits: jax.Array, generated_logits: jax.Array) -> jax.Array:
    """What a discriminator minimizes that need not be surer than ±1 (arXiv:1705.02894, eq. 2; half of it, as in 2012.09841).

        L = ½ ( mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(z))) )

    Args:
      real_logits: [B, ...] float, of images from the data, such as a score for each patch.
      generated_logits: [B, ...] float, of generated ones; stop the gradient to the generator.

    Returns:
      [] float32.

    Example:
      >>> float(hinge_discriminator_loss(jnp.array([2.0, 0.0]), jnp.array([-1.0, 1.0])))
      0.75
    """
    real, generated = (x.astype(jnp.float32) for x in (real_logits, generated_logits))
    return (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + generated).mean()) / 2


def hinge_generator_loss(generated_logits: jax.Array) -> jax.Array:
    """What a generator minimizes against a hinge: -mean D(G(z)) (arXiv:1705.02894, eq. 3).

    Args:
      generated_logits: [B, ...] float.

    Returns:
      [] float32.

    Example:
      >>> float(hinge_generator_loss(jnp.array([2.0, -1.0])))
      -0.5
    """
    return -generated_logits.astype(jnp.float32).mean()
