"""Swin transformers: attention within windows that shift from block to block, on planes that halve (arXiv:2103.14030)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError
from jaxface.layers.attention import Attention, RelativePositions
from jaxface.layers.remat import Remat
from jaxface.models.depth import DepthOrder, stage_blocks
from jaxface.models.registry import MODELS
from jaxface.models.transformers.vit import Block, Encoder

EPSILON = 1e-5  # of every normalization
Plane = tuple[int, int]


class WindowAttention(nn.Module):
    """Attention of the tokens of each window to one another, with a learned bias per offset of two tokens.

        windows = partition(roll(tokens, -shift));   y = roll(merge(attention(windows, bias, mask)), shift)

    The mask keeps apart what the roll has brought together from opposite edges. The parameters are those of the attention inside,
    under its names, with `bias/table` for the positions.

    Args:
      heads: of the attention.
      plane: (H, W) tokens.
      window: (h, w) tokens of a window, which divide the plane.
      shift: (y, x) tokens by which the windows are shifted; 0 along an axis with one window.
      attention: makes the attention of (heads, bias=, dtype=, param_dtype=): `Attention` with other fields, say its `mix`, which
        sees windows as its batch, [B · windows, h w, heads, d], and a `bias` [1, heads, h w, h w] besides the mask.

    tokens [B, H W, D], row by row -> [B, H W, D], or a pair where the attention returns one: its second value as it is, of
    windows.
    """

    heads: int
    plane: Plane
    window: Plane
    shift: Plane = (0, 0)
    attention: Callable[..., nn.Module] = Attention
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self):
        self.inside = self.attention(
            self.heads,
            bias=partial(RelativePositions, window=self.window),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        nn.share_scope(self, self.inside)

    def __call__(
        self, tokens: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array | tuple[jax.Array, Any]:
        if mask is not None:
            raise ValueError("mask: needs None; windows have a mask of their own")
        batch, _, dim = tokens.shape
        (height, width), (rows, columns) = self.plane, self.window
        grid = (batch, height // rows, rows, width // columns, columns, dim)
        if shifted := any(self.shift):
            tokens = jnp.roll(tokens.reshape(batch, height, width, dim), [-s for s in self.shift], (1, 2))
            mask = jnp.asarray(window_mask(self.plane, self.window, self.shift))
            mask = jnp.broadcast_to(mask[None], (batch, *mask.shape)).reshape(-1, 1, *mask.shape[1:])
        windows = tokens.reshape(grid).transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, dim)
        y = self.inside(windows, mask=mask, train=train)
        y, *side = y if isinstance(y, tuple) else (y,)
        y = y.reshape(batch, grid[1], grid[3], rows, columns, dim).transpose(0, 1, 3, 2, 4, 5)
        if shifted:
            y = jnp.roll(y.reshape(batch, height, width, dim), self.shift, (1, 2))
        y = y.reshape(batch, height * width, dim)
        return (y, *side) if side else y


def window_mask(plane: Plane, window: Plane, shift: Plane) -> np.ndarray:
    """[windows, h w, h w] bool: whether two tokens of a window of the rolled plane were neighbors before the roll.

    Example:
      >>> window_mask((1, 4), (1, 2), (0, 1))[:, 0].tolist()  # the last window holds both edges
      [[True, True], [True, False]]
    """
    height, width = plane
    rows, columns = window

    def region(side, size, moved):
        position = np.arange(side)
        return (position >= side - size).astype(int) + (position >= side - moved) if moved else 0 * position

    regions = 3 * region(height, rows, shift[0])[:, None] + region(width, columns, shift[1])
    regions = regions.reshape(height // rows, rows, width // columns, columns)
    regions = regions.transpose(0, 2, 1, 3).reshape(-1, rows * columns)
    return regions[:, :, None] == regions[:, None, :]


class PatchMerging(nn.Module):
    """A plane of half the sides and twice the channels.

        y = Dense(LayerNorm([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]]))      [4 D] -> [2 D], no bias

    Args:
      plane: (H, W) tokens, even numbers.
      dense: makes the linear layer, as in `jaxface.layers.Attention`.

    tokens [B, H W, D] -> [B, H W / 4, 2 D].
    """

    plane: Plane
    dense: Callable[..., nn.Module] = nn.Dense
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        batch, _, dim = tokens.shape
        (height, width), types = self.plane, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        squares = tokens.reshape(batch, height // 2, 2, width // 2, 2, dim).transpose(0, 1, 3, 4, 2, 5)
        squares = squares.reshape(batch, height * width // 4, 4 * dim)
        squares = nn.LayerNorm(epsilon=EPSILON, name="norm", **types)(squares)
        init = nn.initializers.xavier_uniform()
        return self.dense(2 * dim, use_bias=False, kernel_init=init, name="reduce", **types)(squares)


class Swin(nn.Module):
    """Swin transformer.

        tokens = LayerNorm(patches(image))
        stage i: tokens = merge(tokens) unless i = 1;  tokens = block(tokens)      `blocks[i]` times, every second one shifted
        output = head(mean of LayerNorm(tokens))

    Where a stage's plane has no more tokens along an axis than a window, one window spans that axis and none is shifted.

    Args:
      embedding: features of the last Dense layer: the size of an embedding, or the number of classes; None leaves it out.
      dim: token size D of the first stage; stage i has 2^(i-1) D.
      blocks: transformer blocks of each stage.
      heads: attention heads of each stage, divisors of its token size.
      patch: side of a square patch in pixels.
      window: side of a window in tokens.
      dropout: rate after the patches and in each block's two branches, in [0, 1).
      drop_path: rate at which an example skips a branch in the last block; it grows linearly from 0 in the first.
      layer_scale: start of a learned factor per channel on each branch; None has none.
      unit: makes a block of (heads, attention=, layer_scale=, dropout=, drop_path=, epsilon=, dtype=, param_dtype=, name=):
        `Block`, or with other fields.
      attention: makes the attention within windows, as in `WindowAttention`: `functools.partial(Attention, mix=…, dense=…)`.
      merging: makes the layer between two stages of (plane, dtype=, param_dtype=, name=): `PatchMerging` with another `dense`.
      encoder: makes the module that takes tokens through the blocks of one stage, as `jaxface.models.transformers.vit.Encoder`.
      conv: makes the layer of the patches, as `flax.linen.Conv`.
      dense: makes the head, as `flax.linen.Dense`.
      remat: "block" stores the blocks' inputs alone for the backward pass.

    image [B, H, W, C] float -> [B, E] float32. `dtype` is that of the blocks; LayerNorm statistics, softmax and head are float32.
    The parameters depend on the image's size only where a stage has fewer tokens than a window.
    """

    embedding: int | None = 512
    dim: int = 96
    blocks: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    patch: int = 4
    window: int = 7
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    layer_scale: float | None = None
    unit: Callable[..., nn.Module] = Block
    attention: Callable[..., nn.Module] = Attention
    merging: Callable[..., nn.Module] = PatchMerging
    encoder: Callable[..., nn.Module] = Encoder
    conv: Callable[..., nn.Module] = nn.Conv
    dense: Callable[..., nn.Module] = nn.Dense
    remat: Remat = "none"

    def __post_init__(self):
        if len(self.heads) != len(self.blocks):
            raise UserError(
                f"heads: needs one number for each of {len(self.blocks)} stages, got {len(self.heads)}"
            )
        for stage, heads in enumerate(self.heads):
            if 2**stage * self.dim % heads:
                raise UserError(
                    f"heads: needs divisors of the token sizes; stage {stage + 1} has {2**stage * self.dim}, got {heads}"
                )
        super().__post_init__()

    def planes(self, image_size: tuple[int, int]) -> list[tuple[Plane, Plane]]:
        """(tokens, tokens of a window) along both axes in each stage, for images of (H, W) pixels.

        Raises:
          UserError: a size that patch, windows or halving do not divide.
        """
        planes = []
        for stage in range(len(self.blocks)):
            cell = self.patch * 2**stage  # pixels of a token
            if any(side % cell for side in image_size):
                raise UserError(
                    f"image_size: needs multiples of {cell} pixels, the tokens of stage {stage + 1}; got {tuple(image_size)}"
                )
            height, width = (side // cell for side in image_size)
            window = min(height, self.window), min(width, self.window)
            if height % window[0] or width % window[1]:
                raise UserError(
                    f"image_size: needs multiples of {cell * self.window} pixels, the windows of stage {stage + 1}, "
                    f"or fewer pixels than that; got {tuple(image_size)}"
                )
            planes.append(((height, width), window))
        return planes

    def shift(self, block: int, plane: Plane, window: Plane) -> Plane:
        """Tokens by which the windows of a stage's block are shifted: every second block, along axes with several windows."""
        y, x = (
            side // 2 if block % 2 and count > side else 0 for count, side in zip(plane, window, strict=True)
        )
        return y, x

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        planes = self.planes(image.shape[1:3])
        size = (self.patch, self.patch)
        x = self.conv(self.dim, size, size, padding="VALID", name="patches", **types)(
            image.astype(self.dtype)
        )
        x = x.reshape(x.shape[0], -1, self.dim)
        x = nn.LayerNorm(epsilon=EPSILON, name="patch_norm", **types)(x)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        rates = iter(np.linspace(0.0, self.drop_path, sum(self.blocks)).tolist())
        for stage, (plane, window) in enumerate(planes):
            if stage:
                x = self.merging(planes[stage - 1][0], name=f"merge{stage}", **types)(x)
            blocks = []
            for i in range(self.blocks[stage]):
                attention = partial(
                    WindowAttention,
                    plane=plane,
                    window=window,
                    shift=self.shift(i, plane, window),
                    attention=self.attention,
                )
                blocks.append(
                    self.unit(
                        self.heads[stage],
                        attention=attention,
                        layer_scale=self.layer_scale,
                        dropout=self.dropout,
                        drop_path=next(rates),
                        epsilon=EPSILON,
                        name=f"stage{stage + 1}_block{i + 1}",
                        **types,
                    )
                )
            x = self.encoder(name=f"encoder{stage + 1}")(blocks, x, remat=self.remat, train=train)
        x = nn.LayerNorm(epsilon=EPSILON, param_dtype=self.param_dtype, name="head_norm")(x)
        x = jnp.mean(x, axis=1)
        if self.embedding is None:
            return x
        return self.dense(self.embedding, param_dtype=self.param_dtype, name="head_dense")(x)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        blocks = stage_blocks(self.blocks)
        starts = {f"stage{stage + 1}_block1": f"merge{stage}" for stage in range(1, len(self.blocks))}
        ordered = ((starts[name], name) if name in starts else (name,) for (name,) in blocks)
        return ("patches", "patch_norm"), *ordered


MODELS.update(
    {
        "swin_tiny": Swin,
        "swin_small": partial(Swin, blocks=(2, 2, 18, 2)),
        "swin_base": partial(Swin, dim=128, blocks=(2, 2, 18, 2), heads=(4, 8, 16, 32)),
    }
)
