"""Whole networks by name."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.registry import Registry

MODELS: Registry[Callable[..., nn.Module]] = Registry("model", "jaxface.models")
"""Modules, or partial applications of them, each registered beside its definition."""


def names() -> tuple[str, ...]:
    """The names that `create` knows.

    Example:
      >>> "mobilefacenet" in names()
      True
    """
    return MODELS.names()


def create(name: str, *, embedding: int | None = 512, dtype: Any = jnp.float32, **fields) -> nn.Module:
    """A network by name.

    Args:
      name: one of `names()`; or `mlp_512x256`, a perceptron with these hidden widths.
      embedding: features of the last layer, >= 1: the size of an embedding, or the number of classes. None gives the pooled
        features without that layer, for a linear classifier, of networks whose last layer is no more than linear.
      dtype: compute type (float32 or bfloat16); parameters and output stay float32.
      **fields: any other field of the module, such as `width`, `block` or `dropout`.

    Returns:
      A Flax module: `module.apply(variables, image [B, H, W, C] float, train=...)` is [B, embedding] float32, not
      normalized. Where it has batch statistics, training needs `mutable=["batch_stats"]`; where it has dropout, a key
      `rngs={"dropout": key}`.

    Raises:
      UserError: the name or a field is unknown, or a field's value is impossible.

    Example:
      >>> network = create("mobilefacenet", embedding=128)
      >>> feature_size(network, (112, 112, 3))
      128
    """
    if widths := re.fullmatch(r"mlp_(\d+(?:x\d+)*)", name):
        name, fields = "mlp", {"hidden": tuple(map(int, widths[1].split("x"))), **fields}
    model = MODELS[name]
    declared = {f.name: f.type for f in dataclasses.fields(getattr(model, "func", model))}
    if embedding is None and declared["embedding"] is int:
        raise UserError(f"embedding: {name!r} needs a size, got None: its last layer is more than linear")
    if embedding is not None and embedding < 1:
        raise UserError(f"embedding: needs at least 1, got {embedding}")
    names = declared.keys() - {"parent", "name"}
    if unknown := sorted(set(fields) - names):
        raise UserError(
            f"model {name!r} has no field {', '.join(unknown)}; its fields are {', '.join(sorted(names))}"
        )
    return model(embedding=embedding, dtype=dtype, **fields)


def feature_size(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """D of a network's output [B, D] for images (H, W, C); nothing is computed.

    Example:
      >>> feature_size(create("mlp_32", embedding=16), (8, 8, 1))
      16
    """
    if model.embedding is not None:
        return model.embedding
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    output, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), image)
    return output.shape[-1]
