"""A network as an attack sees it: pixels from 0 to 255 in, embeddings out.

Methods: cloak
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.checks import ProperFraction, check_number
from jaxface.data.transforms.pixels import from_levels
from jaxface.errors import UserError


def surrogate(model: nn.Module, variables: Mapping, *, dropout: float = 0.0) -> Callable[..., jax.Array]:
    """The network that gradients are taken from, frozen.

    With `dropout`, features are dropped at random after the stem and inside every residual unit, as DFANet does (cited by
    arXiv:2205.11981): the attack then sees many networks instead of one. Here that is the output of every convolution but those
    of shortcuts, and of the hidden layers of a perceptron (our reading for networks without residual units). Batch statistics
    stay frozen and a dropout of the network's own stays off.

    Args:
      model: module with `(image [B, H, W, C] in [-1, 1], train=) -> [B, D]`.
      variables: its parameters and statistics.
      dropout: share of the features that are dropped, in [0, 1); 0.1 as published.

    Returns:
      (images [B, H, W, C] float in [0, 255], rng) -> embeddings [B, D], not normalized. The key is not used without dropout.

    Raises:
      UserError: `dropout` out of its range.
    """
    check_number("dropout", dropout, ProperFraction)

    def embed(images: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        images = from_levels(images)
        if dropout == 0:
            return model.apply(variables, images, train=False)
        if rng is None:
            raise ValueError("rng: needs a key for the dropout, got None")
        calls = 0

        def drop(call, args, kwargs, context):
            nonlocal calls
            out = call(*args, **kwargs)
            name = context.module.name or ""
            hidden = isinstance(context.module, nn.Conv) or (
                isinstance(context.module, nn.Dense) and name.startswith("hidden")
            )
            if context.method_name != "__call__" or not hidden or name.startswith("shortcut"):
                return out
            calls += 1
            keep = jax.random.bernoulli(jax.random.fold_in(rng, calls), 1 - dropout, out.shape)
            return jnp.where(keep, out / (1 - dropout), 0).astype(out.dtype)

        with nn.intercept_methods(drop):
            embeddings = model.apply(variables, images, train=False)
        if not calls:
            raise UserError(
                f"dropout: {type(model).__name__} has no convolution or hidden layer to drop features of"
            )
        return embeddings

    return embed
