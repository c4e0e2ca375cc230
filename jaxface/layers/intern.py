"""What one task's backbone gets from another's: transfer modules from stage to stage (arXiv:2111.08687)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.norm import BatchNorm

_CONV_STD = 1e-3


def transfer_name(source: int, target: int) -> str:
    """Name of the map from stage `source` to stage `target`, counted from 1.

    Example:
      >>> transfer_name(1, 3)
      'phi_1_to_3'
    """
    return f"phi_{source}_to_{target}"


def transfer_steps(strides: Sequence[int], source: int, target: int) -> tuple[int, ...]:
    """Strides of the 3x3 convolutions from stage `source` to stage `target`, from 1; none within a stage.

    Args:
      strides: of every stage's map, in pixels of the image.
      source: at most `target`.

    Raises:
      UserError: a stage whose stride is no multiple of the one before.

    Example:
      >>> transfer_steps((4, 8, 16), 1, 3), transfer_steps((2, 4, 4), 1, 3)
      ((2, 2), (2, 1))
    """
    steps = []
    for below, above in zip(strides[source - 1 : target - 1], strides[source:target], strict=True):
        if above % below:
            raise UserError(
                f"strides: needs stages whose strides divide the next one's to transfer between them, got {below} and {above}"
            )
        steps.append(above // below)
    return tuple(steps)


class Transfer(nn.Module):
    """φ_{j→i}: what stage i of one backbone gets from stage j ≤ i of another.

        j = i    conv1x1, BN
        j < i    (i - j) times conv3x3 of stride 2, BN, with ReLU between and none behind the last

    The first convolutions keep the width of the source, the last one has that of the target. Convolutions have no bias and start
    from N(0, 1e-3); gain and bias of the last normalization start at 0, so that φ is 0 at the start, and gains of the inner ones
    at 1. (With inner gains of 0 as well, as the released constructor has them, the last convolution sees 0 for ever: every
    gradient in φ but that of the last bias is 0.)

    Args:
      features: width of the target.
      steps: strides of the 3x3 convolutions, as `transfer_steps` says; none for a 1x1 convolution.

    x [B, h, w, c] -> [B, h / ∏ steps, w / ∏ steps, features].
    """

    features: int
    steps: tuple[int, ...] = ()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        init = nn.initializers.normal(_CONV_STD)
        for number, step in enumerate(self.steps or (1,), start=1):
            last = number == max(len(self.steps), 1)
            kernel = 3 if self.steps else 1
            x = nn.Conv(
                self.features if last else x.shape[-1],
                (kernel, kernel),
                step,
                padding=kernel // 2,
                use_bias=False,
                kernel_init=init,
                name=f"conv{number}",
                **types,
            )(x)
            gain = nn.initializers.zeros if last else nn.initializers.ones
            x = BatchNorm(scale_init=gain, name="last_norm" if last else f"norm{number}", **types)(
                x, train=train
            )
            if not last:
                x = nn.relu(x)
        return x


class TransferModule(nn.Module):
    """All maps from one auxiliary backbone to the main one: Σ_{j≤i} φ_{j→i}(sg(x_j)) for a stage i.

    Args:
      widths: of the main backbone's stages that receive, the first ones.
      strides: of these stages, the same in both backbones.

    (maps of the auxiliary stages, i from 1) -> what stage i receives. No gradient enters the auxiliary maps. With three stages
    there are six maps.

    Raises:
      UserError: strides of which one is no multiple of the one before, or another number of them than of widths.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        if len(self.widths) != len(self.strides):
            raise UserError(
                f"strides: needs one for each of the {len(self.widths)} widths, got {len(self.strides)}"
            )
        transfer_steps(self.strides, 1, len(self.strides))
        super().__post_init__()

    @nn.compact
    def __call__(self, auxiliary: Sequence[jax.Array], stage: int, *, train: bool = False) -> jax.Array:
        received = []
        for source in range(1, stage + 1):
            phi = Transfer(
                self.widths[stage - 1],
                transfer_steps(self.strides, source, stage),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=transfer_name(source, stage),
            )
            received.append(phi(jax.lax.stop_gradient(auxiliary[source - 1]), train=train))
        return sum(received[1:], received[0])
