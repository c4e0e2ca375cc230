"""CASSOD: two cascaded 2×2 filters of one dilation in place of a dilated 3×3 filter (arXiv:2104.14126)."""

import functools
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from jaxface.errors import UserError
from jaxface.hardware import ConvSpec
from jaxface.layers.context import CONTEXTS, DilatedContext, PlainConv
from jaxface.layers.norm import BatchNorm
from pallas_kernels import dilated_conv

CascadeKind = Literal["ddp", "dc", "cc", "cd"]
CASCADE_KINDS = ("ddp", "dc", "cc", "cd")
CASCADE_ACTIVATIONS = ("identity", "relu", "leaky_relu")


def cascade_shapes(
    kind: CascadeKind, inputs: int, outputs: int, *, middle: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Shapes of the filters of a cascade from C = `inputs` to O = `outputs` channels.

    | kind | first stage a | second stage b | pointwise P | weights |
    |---|---|---|---|---|
    | ddp | depthwise [2, 2, C] | depthwise [2, 2, C] | [C, O] | 8C + CO |
    | dc | depthwise [2, 2, C] | dense [2, 2, C, O] | | 4C + 4CO |
    | cd | dense [2, 2, C, O] | depthwise [2, 2, O] | | 4CO + 4O |
    | cc | dense [2, 2, C, M] | dense [2, 2, M, O] | | 4CM + 4MO |

    Args:
      kind: d is a depthwise 2×2 stage, c one that mixes channels, p a pointwise convolution.
      middle: M of "cc"; O unless given.

    Raises:
      UserError: an unknown kind, no channel, or a `middle` of another kind than "cc".

    Example:
      >>> cascade_shapes("dc", 64, 16)
      {'a': (2, 2, 64), 'b': (2, 2, 64, 16)}
    """
    if kind not in CASCADE_KINDS:
        raise UserError(f"kind: needs one of {', '.join(CASCADE_KINDS)}, got {kind!r}")
    if middle is not None and kind != "cc":
        raise UserError(f"middle: needs kind 'cc', whose stages are both dense, got {kind!r}")
    for name, value in (("inputs", inputs), ("features", outputs), ("middle", middle)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{name}: needs an integer from 1, got {value!r}")
    width = outputs if middle is None else middle
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "ddp": {"a": (2, 2, inputs), "b": (2, 2, inputs), "pointwise": (inputs, outputs)},
        "dc": {"a": (2, 2, inputs), "b": (2, 2, inputs, outputs)},
        "cd": {"a": (2, 2, inputs, outputs), "b": (2, 2, outputs)},
        "cc": {"a": (2, 2, inputs, width), "b": (2, 2, width, outputs)},
    }
    return shapes[kind]


def cascaded_dilated_conv(
    x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    pointwise: jax.Array | None = None,
    *,
    kind: CascadeKind,
    dilation: int,
    mid_bias: jax.Array | None = None,
    activation: str = "identity",
    slope: float = 0.1,
    bias: jax.Array | None = None,
    padding: str = "exact",
    implementation: str | None = None,
) -> jax.Array:
    """The cascade as a function of its filters, for every kind (`pallas_kernels.dilated_conv.cassod` lacks "cd").

        u[n,i,j] = Σ_pq a[p,q]·x[n, i-d+p·d, j-d+q·d] + α,   s = φ(u),
        y[n,i,j] = (Σ_rt b[r,t]·s[n, i+r·d, j+t·d])·P + β,   p, q, r, t ∈ {0, 1}

    Args:
      x: [N, H, W, C] float32 or bfloat16, zero outside the image.
      a, b, pointwise: filters of the shapes of `cascade_shapes`; "ddp" without P ends after its second stage.
      kind: see `cascade_shapes`.
      dilation: d ≥ 1.
      mid_bias: α, one per channel between the stages; 0 unless given.
      activation: φ: "identity", "relu" or "leaky_relu" of this `slope`.
      bias: β [O]; 0 unless given.
      padding: "exact" evaluates u on [0, H+d) × [0, W+d): y is centered, and without φ and α it is the zero-padded 3×3
        convolution of dilation d by `compose_taps(a, b)`. "per_stage" takes s as 0 outside the image.
      implementation: of the kernel; None picks the fastest that runs.

    Returns:
      [N, H, W, O] of x's type, summed in float32. The cascade has stride 1; subsample y.

    Raises:
      KernelError: shapes, types or names that do not fit. UserError: an unknown kind or φ, or a "cd" that does not fit.

    Example:
      >>> filters = {name: jnp.ones(shape) for name, shape in cascade_shapes("dc", 8, 16).items()}
      >>> x = jnp.zeros((1, 12, 12, 8))
      >>> jax.eval_shape(lambda x: cascaded_dilated_conv(x, **filters, kind="dc", dilation=2), x).shape
      (1, 12, 12, 16)
    """
    if activation not in CASCADE_ACTIVATIONS:
        raise UserError(f"activation: needs one of {', '.join(CASCADE_ACTIVATIONS)}, got {activation!r}")
    if kind == "cd":
        _check_cd(x, a, b, pointwise, mid_bias, bias, dilation, padding)
        u = _stage(x, a, dilation, padding, first=True)
        s = _activate(u if mid_bias is None else u + mid_bias, activation, slope)
        y = _stage(s, b, dilation, padding, first=False)
        return (y if bias is None else y + bias).astype(x.dtype)
    leaky = activation == "leaky_relu"
    return dilated_conv.cassod(
        x,
        a,
        b,
        pointwise,
        kind=kind,
        dilation=dilation,
        mid_bias=mid_bias,
        activation="prelu" if leaky else activation,
        slope=slope if leaky else None,
        bias=bias,
        padding=padding,
        implementation=implementation,
    )


class CascadedDilatedConv(nn.Module):
    """Two 2×2 filters of one dilation whose taps compose to a 3×3 filter of that dilation: the training form.

        y = N(b ⋆ φ(N'(a ⋆ x)))·P

    with batch normalization N after the last linear operation (`norm="last"`), or N' between the stages as well ("both"), or a
    bias instead ("none"). The field of view is (2d+1)×(2d+1) with 9 places, as that of the 3×3 filter. Without φ a channel's
    pair of filters has 7 degrees of freedom where a 3×3 filter has 9 (`cascade_residual`): retrain, do not factorize.

    x [B, H, W, C] -> [B, H, W, features]. Parameters: `a`, `b`, for "ddp" `pointwise`, of the shapes of `cascade_shapes`.
    They start with unit gain in the first stage(s) and by He's rule in the last linear operation, never at zero, where both
    gradients vanish; `start="identity"` starts at the identity (as far as C = O). In float32, γ of one stage and 1/γ of the
    other are one layer: without weight decay or normalization the lengths of a and b drift apart (`stage_ratio`).

    Args:
      features: O.
      dilation: d ≥ 1. The stride is 1.
      kind: which stages mix channels, see `cascade_shapes`. "dc" has (4/9)(1 + 1/O) of the weights of a dense 3×3 filter.
      middle: M of "cc", O unless given.
      activation, slope, padding, implementation: see `cascaded_dilated_conv`.

    Raises:
      UserError, KernelError: an argument out of its range, or an input that is no floating [B, H, W, C].

    Example:
      >>> layer, x = CascadedDilatedConv(16, dilation=2), jnp.zeros((1, 12, 12, 8))
      >>> y, variables = jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x, train=False), x)
      >>> y.shape, {name: leaf.shape for name, leaf in variables["params"].items() if name in "ab"}
      ((1, 12, 12, 16), {'a': (2, 2, 8), 'b': (2, 2, 8, 16)})
    """

    features: int
    dilation: int = 1
    kind: CascadeKind = "dc"
    middle: int | None = None
    norm: Literal["none", "last", "both"] = "last"
    activation: str = "identity"
    slope: float = 0.1
    padding: str = "exact"
    start: Literal["he", "identity"] = "he"
    implementation: str | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise UserError(f"x: needs floats [B, H, W, C], got {x.dtype} {x.shape}")
        if self.norm not in ("none", "last", "both"):
            raise UserError(f"norm: needs one of none, last, both, got {self.norm!r}")
        shapes = cascade_shapes(self.kind, x.shape[-1], self.features, middle=self.middle)
        taps = {
            name: self.param(name, _initializer(name, shapes, self.start), shape, self.param_dtype)
            for name, shape in shapes.items()
        }
        x = x.astype(self.dtype)
        options: dict[str, Any] = {"kind": self.kind, "dilation": self.dilation, "padding": self.padding}
        options |= {"activation": self.activation, "slope": self.slope}
        bias = None
        if self.norm == "none":
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        if self.norm != "both":
            y = cascaded_dilated_conv(x, **taps, bias=bias, implementation=self.implementation, **options)
        else:
            _check_options(self.dilation, self.padding, self.activation)
            u = _stage(x, taps["a"], self.dilation, self.padding, first=True).astype(self.dtype)
            u = BatchNorm(name="mid_norm", dtype=self.dtype, param_dtype=self.param_dtype)(u, train=train)
            s = _activate(u, self.activation, self.slope)
            y = _stage(s, taps["b"], self.dilation, self.padding, first=False)
            if self.kind == "ddp":
                y = jnp.einsum("nhwc,co->nhwo", y, taps["pointwise"], precision=lax.Precision.HIGHEST)
            y = y.astype(self.dtype)
        if self.norm == "none":
            return y
        return BatchNorm(name="norm", dtype=self.dtype, param_dtype=self.param_dtype)(y, train=train)

    def conv_specs(self, input_shape: tuple[int, int, int, int]) -> list[ConvSpec]:
        """Its stages on [B, H, W, C] as an accelerator sees them; each is counted on as many places as the output has."""
        batch, height, width, channels = input_shape
        specs = []
        for name, shape in cascade_shapes(self.kind, channels, self.features, middle=self.middle).items():
            depthwise = len(shape) == 3
            inputs, outputs = (shape[-1], shape[-1]) if depthwise else shape[-2:]
            pointwise = name == "pointwise"
            specs.append(
                ConvSpec(
                    batch * height,
                    width,
                    inputs,
                    outputs,
                    kernel_size=1 if pointwise else 2,
                    dilation=1 if pointwise else self.dilation,
                    groups=inputs if depthwise else 1,
                    name=name,
                )
            )
        return specs


@flax.struct.dataclass
class FusedCascade:
    """A trained cascade ready for inference: normalizations are folded into the filters, and a call is one kernel.

    Attributes:
      a, b, pointwise, mid_bias, bias: float32, as `cascaded_dilated_conv` takes them.
      kind, dilation, activation, slope, padding, implementation: static.
    """

    a: jax.Array
    b: jax.Array
    pointwise: jax.Array | None
    mid_bias: jax.Array | None
    bias: jax.Array
    kind: str = flax.struct.field(pytree_node=False)
    dilation: int = flax.struct.field(pytree_node=False)
    activation: str = flax.struct.field(pytree_node=False)
    slope: float = flax.struct.field(pytree_node=False)
    padding: str = flax.struct.field(pytree_node=False)
    implementation: str | None = flax.struct.field(pytree_node=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] float32 or bfloat16 -> [N, H, W, O] of the same type."""
        return cascaded_dilated_conv(
            x,
            self.a,
            self.b,
            self.pointwise,
            kind=self.kind,  # ty: ignore[invalid-argument-type] - checked where the layer was made
            dilation=self.dilation,
            mid_bias=self.mid_bias,
            activation=self.activation,
            slope=self.slope,
            bias=self.bias,
            padding=self.padding,
            implementation=self.implementation,
        )


def fuse_cascade(module: CascadedDilatedConv, variables: dict) -> FusedCascade:
    """The deployment form of a trained cascade, which gives what the module gives with `train=False`.

        y = γ(v - μ)/√(σ² + ε) + β   =>   last filter · γ/√(σ² + ε),   bias β - μγ/√(σ² + ε)

    A normalization between the stages goes into the first filter and its bias likewise. That is exact under both paddings:
    "exact" computes what is outside the image instead of taking it for 0, and "per_stage" takes for 0 what follows φ.

    Args:
      module: the layer.
      variables: of the layer, `params` and, where it normalizes, `batch_stats`.

    Raises:
      UserError: variables of another layer.

    Example:
      >>> layer, x = CascadedDilatedConv(4), jnp.ones((1, 4, 4, 2))
      >>> variables = layer.init(jax.random.key(0), x, train=False)
      >>> fused = fuse_cascade(layer, variables)
      >>> bool(jnp.allclose(fused(x), layer.apply(variables, x, train=False), atol=1e-5))
      True
    """
    params, statistics = variables["params"], variables.get("batch_stats", {})
    wanted = {"none": set(), "last": {"norm"}, "both": {"norm", "mid_norm"}}[module.norm]
    if not {"a", "b"} <= params.keys() or not wanted <= params.keys() & statistics.keys():
        raise UserError(f"variables: need those of {module}, got {sorted(params)} and {sorted(statistics)}")
    filters = {
        name: jnp.asarray(params[name], jnp.float32) for name in ("a", "b", "pointwise") if name in params
    }
    mid_bias, bias = None, params.get("bias")
    if module.norm == "both":
        scale, mid_bias = _folded(params["mid_norm"], statistics["mid_norm"])
        filters["a"] *= scale
    if module.norm != "none":
        scale, bias = _folded(params["norm"], statistics["norm"])
        filters["pointwise" if module.kind == "ddp" else "b"] *= scale
    return FusedCascade(
        filters["a"],
        filters["b"],
        filters.get("pointwise"),
        mid_bias,
        jnp.asarray(bias, jnp.float32),
        kind=module.kind,
        dilation=module.dilation,
        activation=module.activation,
        slope=module.slope,
        padding=module.padding,
        implementation=module.implementation,
    )


def stage_ratio(params: dict) -> jax.Array:
    """‖a‖ / ‖b‖ of a cascade's parameters, float32: nothing but weight decay or normalization holds it where it is.

    Example:
      >>> float(stage_ratio({"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0])}))
      5.0
    """
    return jnp.linalg.norm(params["a"].ravel()) / jnp.linalg.norm(params["b"].ravel())


def _folded(params: dict, statistics: dict) -> tuple[jax.Array, jax.Array]:
    """(scale, offset) that a batch normalization amounts to with its running statistics."""
    scale = params["scale"] * lax.rsqrt(statistics["var"] + BatchNorm.epsilon)
    return scale, params["bias"] - statistics["mean"] * scale


def _initializer(name: str, shapes: dict, start: str):
    """Unit gain in all stages but the last linear operation, which has He's."""
    shape = shapes[name]
    if start == "identity":
        corner = {"a": (1, 1), "b": (0, 0)}.get(name)

        def identity(key, shape, dtype):
            one = jnp.eye(*shape[-2:], dtype=dtype) if name == "pointwise" or len(shape) == 4 else 1
            return jnp.zeros(shape, dtype).at[corner].set(one) if corner else one

        return identity
    if start != "he":
        raise UserError(f"start: needs he or identity, got {start!r}")
    fan_in = {2: shape[0], 3: 4, 4: 4 * shape[-2]}[len(shape)]
    gain = 2.0 if name == list(shapes)[-1] else 1.0
    return nn.initializers.normal((gain / fan_in) ** 0.5)


def _check_options(dilation, padding, activation) -> None:
    if isinstance(dilation, bool) or not isinstance(dilation, int) or dilation < 1:
        raise UserError(f"dilation: needs an integer from 1, got {dilation!r}")
    if padding not in ("exact", "per_stage"):
        raise UserError(f"padding: needs one of exact, per_stage, got {padding!r}")
    if activation not in CASCADE_ACTIVATIONS:
        raise UserError(f"activation: needs one of {', '.join(CASCADE_ACTIVATIONS)}, got {activation!r}")


def _check_cd(x, a, b, pointwise, mid_bias, bias, dilation, padding) -> None:
    _check_options(dilation, padding, "identity")
    if x.ndim != 4 or x.dtype not in (jnp.float32, jnp.bfloat16):
        raise UserError(f"x: needs float32 or bfloat16 [N, H, W, C], got {x.dtype} {x.shape}")
    if pointwise is not None:
        raise UserError("pointwise: needs kind 'ddp', got 'cd', whose first stage mixes channels")
    if a.ndim != 4 or a.shape[:3] != (2, 2, x.shape[-1]):
        raise UserError(f"a: needs [2, 2, {x.shape[-1]}, O], got {a.shape}")
    outputs = a.shape[-1]
    if b.shape != (2, 2, outputs):
        raise UserError(f"b: needs [2, 2, {outputs}], got {b.shape}")
    for name, value in (("mid_bias", mid_bias), ("bias", bias)):
        if value is not None and value.shape != (outputs,):
            raise UserError(f"{name}: needs [{outputs}], got {value.shape}")


def _activate(u, activation: str, slope: float):
    return {
        "identity": lambda: u,
        "relu": lambda: nn.relu(u),
        "leaky_relu": lambda: nn.leaky_relu(u, slope),
    }[activation]()


def _stage(x, taps, dilation: int, padding: str, *, first: bool):
    """One 2×2 stage with float32 in and out; what it pads is its place in the cascade and the kind of padding."""
    x, taps = x.astype(jnp.float32), taps.astype(jnp.float32)
    if padding == "exact":
        around = (dilation, dilation) if first else (0, 0)
    else:
        around = (dilation, 0) if first else (0, dilation)
    if taps.ndim == 4:
        return lax.conv_general_dilated(
            x,
            taps,
            (1, 1),
            [around] * 2,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
    # Four shifted images, which XLA fuses into one pass; a grouped convolution is slow on CPUs and with dilation everywhere.
    x = jnp.pad(x, [(0, 0), around, around, (0, 0)])
    height, width = (n - dilation for n in x.shape[1:3])
    return sum(
        taps[p, q] * x[:, p * dilation : p * dilation + height, q * dilation : q * dilation + width]
        for p in range(2)
        for q in range(2)
    )


def _branch(features: int, *, kind: CascadeKind, dilation: int, **options) -> nn.Module:
    """A branch of the context module: cascades where there is dilation, a plain 3×3 convolution where there is none."""
    if dilation == 1:
        return PlainConv(features, dilation=dilation, **options)
    return CascadedDilatedConv(features, dilation=dilation, kind=kind, **options)


CONTEXTS.update(
    {
        "cassod" if kind == "dc" else f"cassod_{kind}": functools.partial(
            DilatedContext, convolution=functools.partial(_branch, kind=kind)
        )
        for kind in ("dc", "cc", "cd", "ddp")
    }
)
