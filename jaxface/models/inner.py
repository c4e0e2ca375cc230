"""A network cut at one of its layers, as hints, attention transfer and gradients by an inner map need it."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np

from jaxface.errors import UserError


def apply_with_layer(
    model: nn.Module,
    variables: Mapping,
    image: jax.Array,
    *,
    layer: str,
    train: bool = False,
    rngs: Mapping[str, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array, dict]:
    """One pass that also returns what a layer gave.

    Args:
      model: module with `(image [B, H, W, C], train=) -> [B, D]`.
      variables: its parameters and other collections.
      image: [B, H, W, C] float.
      layer: name of a direct part of the network, such as "stage2_block1" or "hidden1".
      train: training mode, which updates the other collections.
      rngs: keys by collection, as for `model.apply`.

    Returns:
      (output [B, D], output of the layer [B, …], the collections after the pass; empty unless `train`).

    Raises:
      UserError: the network has no such part; names those it has.
    """
    _check_layer(model, variables, layer)
    collections = [*variables.keys() - {"params"}] if train else []
    output, updated = model.apply(
        variables,
        image,
        train=train,
        rngs=rngs,
        mutable=[*collections, "intermediates"],
        capture_intermediates=lambda module, method: method == "__call__" and module.path == (layer,),
    )
    updated = dict(updated)
    (inner,) = updated.pop("intermediates")[layer]["__call__"]
    return output, inner, updated


def apply_from_layer(
    model: nn.Module,
    variables: Mapping,
    features: jax.Array,
    image: jax.Array,
    *,
    layer: str,
    train: bool = False,
    rngs: Mapping[str, jax.Array] | None = None,
) -> jax.Array:
    """The rest of a network: its output if a layer had given `features`.

    `apply_from_layer(…, apply_with_layer(…)[1], …)` is the output itself, and its gradient by `features` is that by the
    layer's output. The parts before the layer are traced once more, but nothing depends on them: a compiled program leaves
    them out.

    Args:
      model, variables, layer, train, rngs: as `apply_with_layer`; collections that training updates are left alone.
      features: [B, …], what stands in for the layer's output.
      image: [B, H, W, C], the input that led to it.

    Returns:
      [B, D].

    Raises:
      UserError: the network has no such part; names those it has.
    """
    _check_layer(model, variables, layer)

    def replace(call, arguments, options, context):
        if context.module.path == (layer,) and context.method_name == "__call__":
            return features
        return call(*arguments, **options)

    collections = [*variables.keys() - {"params"}] if train else False
    with nn.intercept_methods(replace):
        output = model.apply(variables, image, train=train, rngs=rngs, mutable=collections)
    return output[0] if train else output


def layer_shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Shape, without the batch, of what each direct part of a network gives, in the order in which they run.

    Example:
      >>> from jaxface.models import create
      >>> layer_shapes(create("mlp_8", embedding=4), (2, 2, 1))
      {'hidden1': (8,), 'head_dense': (4,)}
    """
    shapes = {}

    def note(call, arguments, options, context):
        output = call(*arguments, **options)
        if len(context.module.path) == 1 and context.method_name == "__call__":
            shapes[context.module.path[0]] = output.shape[1:]
        return output

    with nn.intercept_methods(note):
        jax.eval_shape(
            lambda image: model.init(jax.random.key(0), image, train=False),
            np.zeros((1, *image_shape), np.float32),
        )
    return shapes


def _check_layer(model: nn.Module, variables: Mapping, layer: str) -> None:
    layers = variables["params"].keys()
    if layer not in layers:
        raise UserError(f"layer: {type(model).__name__} has {', '.join(sorted(layers))}, got {layer!r}")
