"""Whole networks by name."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface import layers
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


def describe(module: nn.Module) -> dict[str, Any]:
    """A network as JSON-like values, from which `from_description` makes it again: {"name": …, every field}.

    The name is that of `MODELS` whose fields the network has; a field that is a layer of `jaxface.layers` is
    {"layer": name, its fields}, and what else makes parts of the network is left out where it is the default.

    Raises:
      UserError: a network that is not registered, or a field that has no such values.
    """
    fields = _fields(module)
    names = [
        (len(preset), name)
        for name, (made, preset) in {name: _unpacked(MODELS[name]) for name in MODELS.names()}.items()
        if made is type(module) and all(fields[field] == value for field, value in preset.items())
    ]
    if not names:
        raise UserError(f"network: needs one of jaxface.models.MODELS, got {type(module).__name__}")
    name = max(names, key=lambda row: row[0])[1]  # the first of those that say most
    defaults = {field.name: field.default for field in dataclasses.fields(module)}
    described = {"name": name}
    for field, value in fields.items():
        try:
            described[field] = _plain(field, value)
        except UserError:
            if value is not defaults[field]:  # what makes a part as it always does needs no description
                raise
    return described


def from_description(description: Any) -> nn.Module:
    """The inverse of `describe`, also of what JSON made of it. Nothing is computed, and no number in it allocates anything.

    Raises:
      UserError: no description of a network that is known.
    """
    if not isinstance(description, Mapping) or not isinstance(description.get("name"), str):
        raise UserError("network: needs an object with the name of a network")
    _check_size(description)
    fields = {name: _unplain(name, value) for name, value in description.items() if name != "name"}
    try:
        return create(description["name"], **fields)
    except TypeError as error:
        raise UserError(f"network: {error}") from None


_LARGEST = 1 << 20  # of a number in a description; the widest layer of any network here has 25,088 inputs
_LONGEST = 64  # of a list in it
_DEEPEST = 512  # units of a network


def _check_size(value: Any, depth: int = 0) -> None:
    """Refuses numbers that no network has, before one is made of them."""
    if isinstance(value, list | tuple | Mapping):
        values = list(value.values()) if isinstance(value, Mapping) else list(value)
        if depth > 4 or len(values) > _LONGEST:
            raise UserError("network: needs a network that is known, its description has too many values")
        if isinstance(value, Mapping) and depth == 0:
            repeated = [value.get(name, 0) for name in ("stages", "blocks", "depth")]
            counts = [item if isinstance(item, list | tuple) else [item] for item in repeated]
            units = [n for items in counts for n in items if isinstance(n, int)]  # no lists of what a unit is
            if sum(units) > _DEEPEST:
                raise UserError(f"network: needs at most {_DEEPEST} units, its description has {sum(units)}")
        for item in values:
            _check_size(item, depth + 1)
    elif isinstance(value, int | float) and not -_LARGEST <= value <= _LARGEST:
        raise UserError(f"network: needs numbers up to {_LARGEST}, its description has {value}")


def _fields(module: nn.Module) -> dict[str, Any]:
    return {
        f.name: getattr(module, f.name)
        for f in dataclasses.fields(module)
        if f.name not in ("parent", "name")
    }


def _unpacked(entry: Any) -> tuple[type, dict[str, Any]]:
    """(class, fields) of a class or a partial application of one."""
    return (entry.func, entry.keywords) if isinstance(entry, functools.partial) else (entry, {})


def _plain(name: str, value: Any) -> Any:
    made, fields = _unpacked(value)
    if inspect.isclass(made) and getattr(layers, made.__name__, None) is made:
        return {"layer": made.__name__, **{field: _plain(field, v) for field, v in fields.items()}}
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if name in ("dtype", "param_dtype"):
        return jnp.dtype(value).name
    raise UserError(f"network: needs a field {name} of numbers, words or layers, got {value!r}")


def _unplain(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_unplain(name, item) for item in value)
    if name in ("dtype", "param_dtype"):
        if value not in ("float32", "bfloat16", "float16"):
            raise UserError(f"network: needs float32, bfloat16 or float16 as {name}, got {value!r}")
        return getattr(jnp, value)
    if not isinstance(value, Mapping):
        return value
    made = getattr(layers, str(value.get("layer")), None)
    if not (inspect.isclass(made) and issubclass(made, nn.Module)):
        raise UserError(f"network: needs a layer of jaxface.layers, got {value.get('layer')!r}")
    fields = {field: _unplain(field, v) for field, v in value.items() if field != "layer"}
    known = {field.name for field in dataclasses.fields(made)} - {"parent", "name"}
    if unknown := sorted(set(fields) - known):
        raise UserError(f"network: layer {made.__name__} has no field {', '.join(unknown)}")
    return functools.partial(made, **fields) if fields else made
