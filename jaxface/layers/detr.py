"""The transformer of set predictors, DETR (arXiv:2005.12872) and SMCA (arXiv:2101.07448): positions, layers, Gaussian prior.

Methods: qdetr
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError
from jaxface.layers.attention import Attention


def sine_positions(height: int, width: int, dim: int, *, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed positions of the places of a map (arXiv:2005.12872): rows in the first half of the channels, then columns.

        p = 2π (i + 1) / (n + 1e-6),   channels 2c, 2c + 1 of a half of h channels:  sin, cos(p / T^(2c / h))

    Args:
      height, width: places, from 1.
      dim: channels, a multiple of 4.
      temperature: T > 0.

    Returns:
      [height, width, dim] float32.

    Raises:
      UserError: dim.

    Example:
      >>> (sine_positions(1, 2, 4).round(2) + 0.0).tolist()  # both in the one row, the columns half a turn apart
      [[[0.0, 1.0, 0.0, -1.0], [0.0, 1.0, 0.0, 1.0]]]
    """
    rows, columns = (2 * np.pi * (np.arange(n) + 1) / (n + 1e-6) for n in (height, width))
    grid = np.stack(np.broadcast_arrays(rows[:, None], columns[None]), axis=-1)
    return sine_of_points(grid, dim, temperature=temperature)


def sine_of_points(angles: Any, dim: int, *, temperature: float = 10_000.0) -> Any:
    """Sines and cosines of points (y, x) in radians, [..., 2] -> [..., dim], as `sine_positions` has them; numpy or jax.

    Raises:
      UserError: dim is no multiple of 4.
    """
    if dim % 4 or dim < 4:
        raise UserError(f"dim: needs a multiple of 4 for positions, got {dim}")
    xp = jnp if isinstance(angles, jax.Array) else np
    rates = temperature ** (np.arange(dim // 4) * 4 / dim)
    phases = angles[..., None] / rates  # [..., 2, dim / 4]
    waves = xp.stack([xp.sin(phases), xp.cos(phases)], axis=-1)
    return waves.reshape(*angles.shape[:-1], dim).astype(np.float32)


def padded_places(
    valid_size: jax.Array, image_size: tuple[int, int], plane: tuple[int, int], dim: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of images that are padded at the bottom and the right: which places of a map are theirs, and the positions of these.

    A place is an image's where its first pixel is. Positions are `sine_positions` of so many rows and columns; those of other
    places go on from there.

    Args:
      valid_size: [B, 2] (height, width) of the images, pixels, from 1.
      image_size: (height, width) with the padding. plane: (height, width) of the map.
      dim: channels, a multiple of 4.

    Returns:
      (mask [B, height · width] bool, places [B, 2] int32 (rows, columns), positions [B, height · width, dim] float32).

    Example:
      >>> mask, places, _ = padded_places(jnp.array([[32, 20]]), (32, 32), (1, 4), 4)
      >>> mask.tolist(), places.tolist()
      ([[True, True, True, False]], [[1, 3]])
    """
    valid_size = jnp.clip(valid_size, 1, jnp.array(image_size))
    places = -(-valid_size * jnp.array(plane) // jnp.array(image_size))
    inside = [jnp.arange(n) < places[:, axis, None] for axis, n in enumerate(plane)]
    mask = (inside[0][:, :, None] & inside[1][:, None]).reshape(len(places), -1)
    angles = [
        2 * jnp.pi * jnp.arange(1, n + 1) / (places[:, axis, None] + 1e-6) for axis, n in enumerate(plane)
    ]
    grid = jnp.stack(jnp.broadcast_arrays(angles[0][:, :, None], angles[1][:, None]), axis=-1)
    return mask, places.astype(jnp.int32), sine_of_points(grid, dim).reshape(*mask.shape, dim)


def gaussian_prior(
    centers: jax.Array, scales: jax.Array, plane: tuple[int, int], *, smoothing: float = 8.0
) -> jax.Array:
    """Logarithm of SMCA's Gaussian around the place where each head of a query looks (arXiv:2101.07448), as released.

        log G(y, x) = -((y - c_y)² s_y² + (x - c_x)² s_x²) / smoothing

    It is added to the scores of the cross-attention. Places are counted from 0, scales are inverse widths.

    Args:
      centers: [B, N, h, 2] (x, y) places of a map.
      scales: [B, N, h, 2], of x and y.
      plane: (height, width) of it.
      smoothing: > 0.

    Returns:
      [B, h, N, height · width] float32, ≤ 0, row by row.

    Example:
      >>> gaussian_prior(jnp.zeros((1, 1, 1, 2)), jnp.ones((1, 1, 1, 2)), (1, 3), smoothing=2.0).tolist()
      [[[[-0.0, -0.5, -2.0]]]]
    """
    rows, columns = np.mgrid[: plane[0], : plane[1]]
    places = np.stack([columns.ravel(), rows.ravel()], axis=-1).astype(np.float32)
    centers, scales = (jnp.swapaxes(x.astype(jnp.float32), 1, 2)[..., None, :] for x in (centers, scales))
    return -jnp.sum(jnp.square((places - centers) * scales), axis=-1) / smoothing


class Perceptron(nn.Module):
    """Linear layers `layer1`, `layer2`, … with ReLU between them; x [..., C] -> [..., the last of `widths`]."""

    widths: tuple[int, ...]
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, width in enumerate(self.widths, start=1):
            x = nn.relu(x) if i > 1 else x
            x = nn.Dense(
                width,
                kernel_init=nn.initializers.xavier_uniform(),
                param_dtype=self.param_dtype,
                name=f"layer{i}",
            )(x)
        return x


class _Layer(nn.Module):
    """What both kinds of layers have: parts around which a sum is normalized.

    Args:
      heads: of the attentions.
      hidden: units of the perceptron.
      dropout: rate on every branch and on the hidden units, in [0, 1).
      attention: makes an attention of (heads, dtype=, param_dtype=, name=), as `Attention`.
      dense: makes the perceptron's layers.
    """

    heads: int
    hidden: int
    dropout: float = 0.1
    attention: Callable[..., nn.Module] = Attention
    dense: Callable[..., nn.Module] = nn.Dense
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @property
    def _types(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def _dropped(self, y, train):
        return nn.Dropout(self.dropout)(y, deterministic=not train)

    def _added(self, tokens, branch, name, train):
        norm = nn.LayerNorm(epsilon=1e-5, name=name, **self._types)
        return norm(tokens + self._dropped(branch, train))

    def _perceptron(self, tokens, name, train):
        options = {"kernel_init": nn.initializers.xavier_uniform(), **self._types}
        y = nn.relu(self.dense(self.hidden, name="expand", **options)(tokens))
        y = self.dense(tokens.shape[-1], name="project", **options)(self._dropped(y, train))
        return self._added(tokens, y, name, train)


class EncoderLayer(_Layer):
    """Self-attention and a perceptron, each added and then normalized (arXiv:1706.03762); positions are no part of the values.

        t = norm1(t + attention(t + p, t + p, t));   t = norm2(t + project(ReLU(expand(t))))

    tokens [B, M, D], positions [M, D] or [B, M, D], mask [B, 1, 1, M] bool, False for tokens that none sees, or None ->
    [B, M, D].
    """

    @nn.compact
    def __call__(
        self, tokens: jax.Array, positions: jax.Array, mask: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        placed = tokens + positions
        attention = self.attention(self.heads, name="attention", **self._types)
        y = attention(placed, placed, tokens, mask=mask, train=train)
        return self._perceptron(self._added(tokens, y, "norm1", train), "norm2", train)


class DecoderLayer(_Layer):
    """Self-attention of the object queries, cross-attention to the encoder's tokens, a perceptron; each added, then normalized.

        o = norm1(o + self(o + q, o + q, o));   D = cross(o + q, t + p, t);   o = norm2(o + D);   o = norm3(o + perceptron(o))

    Args, besides those of `EncoderLayer`:
      cross_attention: makes the cross-attention; as `attention` unless given.

    objects [B, N, D], object_positions [N, D] or [B, N, D], tokens [B, M, D], positions [M, D] or [B, M, D], prior
    [B, h, N, M] or None, mask [B, 1, 1, M] of the tokens or None -> ([B, N, D], D [B, N, D], the co-attended features).
    """

    cross_attention: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self,
        objects: jax.Array,
        object_positions: jax.Array,
        tokens: jax.Array,
        positions: jax.Array,
        prior: jax.Array | None = None,
        mask: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        placed = objects + object_positions
        y = self.attention(self.heads, name="self", **self._types)(placed, placed, objects, train=train)
        objects = self._added(objects, y, "norm1", train)
        cross = (self.cross_attention or self.attention)(self.heads, name="cross", **self._types)
        attended = cross(
            objects + object_positions, tokens + positions, tokens, mask=mask, prior=prior, train=train
        )
        objects = self._added(objects, attended, "norm2", train)
        return self._perceptron(objects, "norm3", train), attended


class GaussianLook(nn.Module):
    """Where the heads of SMCA's queries look, and how wide (arXiv:2101.07448): the prior of one decoder layer, as released.

        z = norm(o + q);   c_head = (w, h) sigmoid(c) + offset(z);   s_head = scale(z), 1 at the start

    The first layer's `center`, a perceptron of z, finds c, which the other layers and the boxes then have too.

    objects, object_positions [B, N, D]; center [B, N, 2] the logits c of (x, y), or what is added to those that are found with
    `find`; plane (height, width) of the map, extent [B, 2] places (height, width) of it that c is relative to, all unless given
    -> (prior [B, h, N, M] float32, c [B, N, 2]).
    """

    heads: int
    find: bool = False
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        objects: jax.Array,
        object_positions: jax.Array,
        center: jax.Array | float,
        plane: tuple[int, int],
        extent: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        z = nn.LayerNorm(epsilon=1e-5, param_dtype=self.param_dtype, name="norm")(objects + object_positions)
        z = z.astype(jnp.float32)
        if self.find:
            widths = (z.shape[-1], z.shape[-1], 2)
            center = center + Perceptron(widths, param_dtype=self.param_dtype, name="center")(z)
        made = partial(nn.Dense, 2 * self.heads, param_dtype=self.param_dtype)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        offsets = made(kernel_init=nn.initializers.xavier_uniform(), name="offset")(z)
        scales = made(kernel_init=zeros, bias_init=ones, name="scale")(z)
        offsets, scales = (x.reshape(*x.shape[:2], self.heads, 2) for x in (offsets, scales))
        extent = jnp.array([plane]) if extent is None else extent
        places = jax.nn.sigmoid(center)[:, :, None] * extent[:, None, None, ::-1].astype(jnp.float32)
        return gaussian_prior(places + offsets, scales, plane), jnp.asarray(center)
