"""Vector quantization with a straight-through gradient, and the care that a codebook needs (arXiv:1711.00937, 2012.09841).

Methods: ota, intern
"""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.checks import NonNegative, check_number
from jaxface.errors import UserError

_DIRECT = 256  # codes up to which Σ (z - E)² is summed as it stands, in which exact ties survive


def _check_width(z: jax.Array, codebook: jax.Array) -> None:
    chex.assert_rank(codebook, 2, custom_message="codebook must be [K, d]")
    if z.shape[-1] != codebook.shape[-1]:
        raise UserError(
            f"codebook: needs vectors of {z.shape[-1]} numbers, as the latents have, got {codebook.shape[-1]}"
        )


def nearest_codes(z: jax.Array, codebook: jax.Array) -> jax.Array:
    """The code that is nearest to each vector, the first of several.

        j = argmin_k ‖z - E_k‖²  =  argmin_k ‖E_k - c‖² - 2 ⟨z - c, E_k - c⟩,        c = mean_k E_k

    Args:
      z: [..., d] float. codebook: [K, d] float. The second form, for more than 256 codes, is multiplied at the highest precision:
        rounded products pick wrong codes.

    Returns:
      [...] int32 in [0, K).

    Raises:
      UserError: vectors of another width. AssertionError: a codebook of another rank.

    Example:
      >>> nearest_codes(jnp.array([[1.0, 0.0], [0.2, 0.9]]), jnp.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])).tolist()
      [0, 2]
    """
    _check_width(z, codebook)
    z, codebook = z.astype(jnp.float32), codebook.astype(jnp.float32)
    if len(codebook) <= _DIRECT:
        distances = jnp.sum(jnp.square(z[..., None, :] - codebook), axis=-1)
    else:
        center = codebook.mean(axis=0)
        codes, vectors = codebook - center, z - center
        products = jnp.matmul(vectors, codes.T, precision=jax.lax.Precision.HIGHEST)
        distances = jnp.sum(jnp.square(codes), axis=1) - 2 * products
    return jnp.argmin(distances, axis=-1).astype(jnp.int32)


def vq_quantize(z: jax.Array, codebook: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Vectors as their nearest codes (`nearest_codes`), with the gradient of the identity (arXiv:1711.00937, section 3.2).

        z_q = E_j,      ∂z_q/∂z = 1,      ∂z_q/∂E = 0

    Args:
      z: [..., d] float. codebook: [K, d] float.

    Returns:
      (z_q [..., d] of the type of z, exactly a code; j [...] int32).

    Raises:
      UserError: vectors of another width.

    Example:
      >>> codes = jnp.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
      >>> quantized, index = vq_quantize(jnp.array([[0.2, 0.9]]), codes)
      >>> quantized.tolist(), index.tolist()
      ([[0.0, 1.0]], [2])
    """
    index = nearest_codes(jax.lax.stop_gradient(z), codebook)
    codes = jax.lax.stop_gradient(codebook[index]).astype(z.dtype)
    return codes + (z - jax.lax.stop_gradient(z)), index


def code_radius(codebook: jax.Array) -> jax.Array:
    """How far a latent goes before it is another code's: the median over codes of half the distance to the nearest other one.

    Args:
      codebook: [K, d] float, K ≥ 2.

    Returns:
      [] float32 ≥ 0.

    Raises:
      UserError: fewer than two codes.

    Example:
      >>> float(code_radius(jnp.array([[0.0], [2.0], [6.0]])))  # half of 2, 2 and 4
      1.0
    """
    chex.assert_rank(codebook, 2, custom_message="codebook must be [K, d]")
    if len(codebook) < 2:
        raise UserError(f"codebook: needs at least two codes, got {len(codebook)}")

    def to_nearest(row):
        distances = jnp.sum(jnp.square(codebook - codebook[row]), axis=1)
        return jnp.min(jnp.where(jnp.arange(len(codebook)) == row, jnp.inf, distances))

    squared = jax.lax.map(to_nearest, jnp.arange(len(codebook)))  # one row at a time: no [K, K, d]
    return jnp.median(jnp.sqrt(squared.astype(jnp.float32))) / 2


def reseed_dead_codes(
    codebook: jax.Array, latents: jax.Array, key: jax.Array, *, jitter: float = 0.01
) -> tuple[jax.Array, jax.Array]:
    """Codes that no latent is nearest to become latents, moved a little so that no two codes are one.

        E_k <- z_{i_k} + jitter · sd(z) · ε,   i_k drawn from the latents, without replacement where there are enough

    Args:
      codebook: [K, d] float.
      latents: [M, d] float, what the encoder gives for training images.
      key: of the draws.
      jitter: in standard deviations of the latents, by dimension, and 1e-3 of their size besides, where all are one; ≥ 0.

    Returns:
      (codebook [K, d], dead [K] bool).

    Raises:
      UserError: latents of another width, or a jitter that is negative.
    """
    check_number("jitter", jitter, NonNegative)
    index = nearest_codes(latents, codebook)
    dead = jnp.zeros(len(codebook), jnp.int32).at[index].add(1) == 0
    pick, noise = jax.random.split(key)
    rows = jax.random.choice(pick, len(latents), (len(codebook),), replace=len(latents) < len(codebook))
    spread = latents.std(axis=0) + 1e-3 * jnp.sqrt(jnp.square(latents).mean()) + 1e-6
    moved = jitter * spread * jax.random.normal(noise, codebook.shape)
    return jnp.where(dead[:, None], latents[rows] + moved, codebook).astype(codebook.dtype), dead


class VectorQuantizer(nn.Module):
    """A codebook: `vq_quantize`, and the codes by their numbers.

    Args:
      codes: K ≥ 2.
      features: d, numbers of a code.

    z [..., d] -> (z_q [..., d], index [...] int32).

    Example:
      >>> layer, z = VectorQuantizer(codes=8, features=3), jnp.ones((2, 4, 4, 3))
      >>> (quantized, index), variables = layer.init_with_output(jax.random.key(0), z)
      >>> quantized.shape, index.shape, variables["params"]["codebook"].shape
      ((2, 4, 4, 3), (2, 4, 4), (8, 3))
    """

    codes: int = 1024
    features: int = 256
    param_dtype: Any = jnp.float32

    def setup(self):
        def initial(key, shape, dtype):  # as released: uniform within 1/K of 0
            return jax.random.uniform(key, shape, dtype, -1 / self.codes, 1 / self.codes)

        self.codebook = self.param("codebook", initial, (self.codes, self.features), self.param_dtype)

    def rows(self, index: jax.Array) -> jax.Array:
        """[..., d], the codes of these numbers, with a gradient."""
        return self.codebook[index]

    def __call__(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        return vq_quantize(z, self.codebook)
