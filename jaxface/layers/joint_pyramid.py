"""Joint pyramid upsampling for segmentation: the last levels of a network at stride 8, seen at four dilations.

Methods: cassod
"""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError
from jaxface.layers.norm import BatchNorm
from pallas_kernels import dilated_conv


class JointPyramidUpsample(nn.Module):
    """Joint pyramid upsampling (FastFCN, arXiv:1903.11816), with separable 3×3 filters or, as CASSOD has it, cascaded 2×2 ones.

        p_k = ReLU(BN(conv3×3(c_k))) to `width` channels, bilinear to the plane of c_3;   p = (p_5 | p_4 | p_3)
        y = (ReLU(BN(BN(depthwise_d(p))·P_d)))_d,   d of `dilations`

    where `depthwise_d` is a depthwise 3×3 filter of dilation d ("separable"), or two depthwise 2×2 filters of it ("ddp").
    Weights of a branch: 9·3w + 3w·w, or 8·3w + 3w·w; for w = 512 these are 800,256 and 798,720 (a dense second stage would have
    3,151,872). Bilinear interpolation goes from corner to corner, as the public network has it.

    (c_3 [B, H, W, C3], c_4 [B, h, w, C4], c_5 [B, h', w', C5]) -> [B, H, W, len(dilations)·width].

    Args:
      width: channels of every level and branch, ≥ 1.
      dilations: one branch each, ≥ 1.
      kind: of the depthwise filters.
      implementation: of the kernel; None picks the fastest that runs.

    Raises:
      UserError: an unknown kind, no branch, or other than three levels of one batch.

    Example:
      >>> layer, levels = JointPyramidUpsample(width=8), [jnp.zeros((1, side, side, 4)) for side in (8, 4, 2)]
      >>> jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x, train=False), levels)[0].shape
      (1, 8, 8, 32)
    """

    width: int = 512
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    kind: Literal["separable", "ddp"] = "separable"
    implementation: str | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array], *, train: bool) -> jax.Array:
        if self.kind not in ("separable", "ddp"):
            raise UserError(f"kind: needs one of separable, ddp, got {self.kind!r}")
        if not self.dilations or min(self.dilations) < 1:
            raise UserError(f"dilations: needs numbers from 1, at least one, got {self.dilations}")
        if len(levels) != 3 or any(x.ndim != 4 or len(x) != len(levels[0]) for x in levels):
            raise UserError(f"levels: needs three [B, H, W, C], got {[x.shape for x in levels]}")
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def norm(x, name):
            return BatchNorm(name=name, **types)(x, train=train)

        raised = []
        for number, x in zip((5, 4, 3), reversed(levels), strict=True):
            x = nn.Conv(self.width, (3, 3), padding=1, use_bias=False, name=f"conv{number}", **types)(x)
            raised.append(_resize(nn.relu(norm(x, f"norm{number}")), _plane(levels[0])))
        x = jnp.concatenate(raised, axis=-1)
        branches = []
        for dilation in self.dilations:
            name = f"dilation{dilation}"
            y = _DepthwiseTaps(dilation, self.kind, self.implementation, name=name, **types)(x)
            y = norm(y, f"{name}_mid_norm")
            y = nn.Conv(self.width, (1, 1), use_bias=False, name=f"{name}_pointwise", **types)(y)
            branches.append(nn.relu(norm(y, f"{name}_norm")))
        return jnp.concatenate(branches, axis=-1)


def fuse_joint_pyramid(
    module: JointPyramidUpsample, variables: dict, levels: Sequence[jax.Array]
) -> jax.Array:
    """What the module gives with `train=False`, every branch in one kernel: both of its normalizations are in its filters.

        γ'(BN(v)·P) + β'   =>   v·(γ_mid ⊙ P ⊙ γ') + β_mid·P ⊙ γ' + β'

    Args:
      module: the layer.
      variables: trained, `params` and `batch_stats`.
      levels: as the module takes them.

    Returns:
      [B, H, W, len(dilations)·width].

    Example:
      >>> layer, levels = JointPyramidUpsample(width=2), [jnp.ones((1, side, side, 2)) for side in (8, 4, 2)]
      >>> variables = layer.init(jax.random.key(0), levels, train=False)
      >>> fused = fuse_joint_pyramid(layer, variables, levels)
      >>> bool(jnp.allclose(fused, layer.apply(variables, levels, train=False), atol=1e-4))
      True
    """
    params, statistics = variables["params"], variables["batch_stats"]

    def folded(name):
        scale = params[name]["scale"] * jax.lax.rsqrt(statistics[name]["var"] + BatchNorm.epsilon)
        return scale, params[name]["bias"] - statistics[name]["mean"] * scale

    raised = []
    for number, x in zip((5, 4, 3), reversed(levels), strict=True):
        scale, offset = folded(f"norm{number}")
        kernel = params[f"conv{number}"]["kernel"] * scale
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        raised.append(_resize(nn.relu(x + offset), _plane(levels[0])))
    x = jnp.concatenate(raised, axis=-1)
    branches = []
    for dilation in module.dilations:
        name = f"dilation{dilation}"
        (mid_scale, mid_bias), (scale, bias) = folded(f"{name}_mid_norm"), folded(f"{name}_norm")
        pointwise = params[f"{name}_pointwise"]["kernel"][0, 0]
        y = _depthwise(
            x,
            params[name],
            mid_scale[:, None] * pointwise * scale,
            mid_bias @ pointwise * scale + bias,
            dilation=dilation,
            implementation=module.implementation,
        )
        branches.append(nn.relu(y))
    return jnp.concatenate(branches, axis=-1)


class _DepthwiseTaps(nn.Module):
    """A depthwise 3×3 filter of a dilation, `taps` [3, 3, C], or two 2×2 ones, `a` and `b` [2, 2, C]."""

    dilation: int
    kind: str
    implementation: str | None
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x):
        def taps(name, size, gain):
            init = nn.initializers.normal((gain / size**2) ** 0.5)
            return self.param(name, init, (size, size, x.shape[-1]), self.param_dtype)

        if self.kind == "ddp":
            filters = {"a": taps("a", 2, 1.0), "b": taps("b", 2, 2.0)}
        else:
            filters = {"taps": taps("taps", 3, 2.0)}
        return _depthwise(
            x.astype(self.dtype), filters, dilation=self.dilation, implementation=self.implementation
        )


def _depthwise(x, filters, pointwise=None, bias=None, **options):
    if "taps" in filters:
        return dilated_conv.depthwise_conv(x, filters["taps"], pointwise, bias=bias, **options)
    return dilated_conv.cassod(x, filters["a"], filters["b"], pointwise, bias=bias, kind="ddp", **options)


def _plane(x: jax.Array) -> tuple[int, int]:
    """(H, W) of [B, H, W, C]."""
    return x.shape[1], x.shape[2]


def _resize(x: jax.Array, plane: tuple[int, int]) -> jax.Array:
    """Bilinear, the corner pixels of one plane on those of the other."""
    for axis, size in zip((1, 2), plane, strict=True):
        if x.shape[axis] != size:
            x = jnp.moveaxis(
                jnp.tensordot(jnp.asarray(_interpolation(x.shape[axis], size), x.dtype), x, ((1,), (axis,))),
                0,
                axis,
            )
    return x


def _interpolation(old: int, new: int) -> np.ndarray:
    """[new, old]: the weights of the old places at the new ones."""
    places = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(old))).astype(np.float32)
