"""Several networks of one architecture as one module, whose parameters have a leading axis.

Methods: mda, nclpp
"""

import flax.linen as nn
import jax

from jaxface.checks import AtLeast, check_number


class Stacked(nn.Module):
    """K networks that share nothing but their architecture.

    Args:
      network: any module `(image, train=) -> output`; each copy has weights, batch statistics and dropout of its own.
      count: K ≥ 1.

    image [B, ...] -> [K, B, ...]. Every leaf of the variables is that of the network with K in front.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxface import models
      >>> pair = Stacked(models.create("mlp_8", embedding=3), count=2)
      >>> output, variables = pair.init_with_output(jax.random.key(0), jnp.ones((4, 2, 2, 1)))
      >>> output.shape, variables["params"]["network"]["hidden1"]["kernel"].shape
      ((2, 4, 3), (2, 4, 8))
    """

    network: nn.Module
    count: int = 2

    def __post_init__(self):
        check_number("count", self.count, AtLeast(1))
        super().__post_init__()

    @property
    def embedding(self) -> int | None:
        """Features of the last layer of each network."""
        return self.network.embedding

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        each = nn.vmap(
            lambda network, image: network(image, train=train),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=None,
            axis_size=self.count,
        )
        return each(self.network, image)
