"""Anti-spoofing with semantic labels beside live or attack: AENet (arXiv:2007.12342), and DPM (arXiv:2204.12685) on it."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.dpm import GaussianHead, QualityHead
from jaxface.losses.dpm import QualityStats, SemanticHead, quality_variance

Codes = Literal["none", "groups", "shared", "general"]
"""What labels are classified from: the features themselves (AENet); a Gaussian code for each group; one code for all of them; or
one code for live and attack as well, which needs no semantic label (generalized DPM)."""
GENERAL = "live"
"""Name of the code that live and attack are told from."""


class CodeClassifier(nn.Module):
    """A Dense layer that gives its weights away: codes [B, D] -> (logits [B, K], kernel [D, K], bias [K])."""

    classes: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, codes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        shape = (codes.shape[-1], self.classes)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape[1:], self.param_dtype)
        return codes @ kernel + bias, kernel, bias


class DPM(nn.Module):
    """A trunk whose features say whether a face is live, and what else is known of it.

        h = trunk(x),   z = h W + b,   group k: h W_k + b_k (codes="none"), or s_k W_k + b_k with s_k ~ N(μ_k(h), σ_k²(h))
        v = S² softplus(g((h - mean) / std)), with `dq`

    With codes="none" and dq=False it is AENet; with `geometry` too, sigmoid maps of depth and reflection from a layer of the
    trunk, resized to 14 x 14.

    Args:
      trunk: network of images without a last layer: [B, H, W, C] -> [B, C'].
      groups: (name, classes) of the semantic groups; a group of 0/1 attributes has as many classes as attributes.
      lq: `Codes`.
      dq: predicts the variance of the margin; its constants are the collection `quality_stats`.
      dim: D of a code.
      projection: width of a Dense and ReLU between features and the live classifier, for the spec's small study; none by default.
      geometry: layer of the trunk whose map the geometric heads see, such as "stage4_block2"; none by default.

    image [B, H, W, C] float -> {features [B, C'], logits [B, 2] of attack and live, semantics {group: [B, K]},
    mu, logvar {code: [B, D]}, heads {group: SemanticHead}, v [B] with `dq`, depth [B, 14, 14, 1] and
    reflection [B, 14, 14, 3] with `geometry`}; float32. `heads` are what `losses.lq_loss` takes. Means stand for codes unless
    `deterministic` is False, which needs `rngs={"sample": key}`.

    Raises:
      UserError: a trunk without the layer of `geometry`, or no key to sample with.
    """

    trunk: nn.Module
    groups: tuple[tuple[str, int], ...] = ()
    lq: Codes = "groups"
    dq: bool = False
    dim: int = 128
    hidden: int = 24
    projection: int | None = None
    geometry: str | None = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: jax.Array, *, train: bool = False, deterministic: bool = True
    ) -> dict[str, Any]:
        types = {"param_dtype": self.param_dtype}
        h, plane = self._trunk_features(image, train=train)
        result: dict[str, Any] = {"features": h}
        codes = {}
        if self.lq != "none":
            named = [GENERAL] if self.lq == "general" else ["shared"] if self.lq == "shared" else []
            for name in named or [name for name, _ in self.groups]:
                codes[name] = GaussianHead(self.dim, name=f"code_{name}", **types)(
                    h, deterministic=deterministic
                )
        heads, semantics = {}, {}
        for name, classes in self.groups:
            code = codes.get(name) or codes.get("shared") or codes.get(GENERAL)
            if code is None:
                semantics[name] = nn.Dense(classes, name=f"classify_{name}", **types)(h)
                continue
            semantics[name], kernel, bias = CodeClassifier(classes, name=f"classify_{name}", **types)(
                code.code
            )
            heads[name] = SemanticHead(code.mu, code.logvar, kernel, bias)
        if self.lq == "general":
            code = codes[GENERAL]
            result["logits"], kernel, bias = CodeClassifier(2, name="classify_live", **types)(code.code)
            heads[GENERAL] = SemanticHead(code.mu, code.logvar, kernel, bias)
        else:
            x = h
            if self.projection is not None:
                x = nn.relu(nn.Dense(self.projection, name="project_live", **types)(h))
            result["logits"] = nn.Dense(2, name="classify_live", **types)(x)
        result |= {
            "semantics": semantics,
            "mu": {name: code.mu for name, code in codes.items()},
            "logvar": {name: code.logvar for name, code in codes.items()},
            "heads": heads,
        }
        if self.dq:
            size = h.shape[-1]
            stats = QualityStats(
                self.variable("quality_stats", "mean", jnp.zeros, (size,)).value,
                self.variable("quality_stats", "std", jnp.ones, (size,)).value,
                self.variable("quality_stats", "scale", jnp.ones, ()).value,
            )
            result["v"] = quality_variance(QualityHead(self.hidden, name="quality", **types), h, stats)
        if plane is not None:
            result["depth"] = self._map(plane, 1, "depth")
            result["reflection"] = self._map(plane, 3, "reflection")
        return result

    def _trunk_features(self, image, *, train):
        seen = []

        def watch(call, arguments, options, context):
            output = call(*arguments, **options)
            if context.method_name == "__call__" and context.module.path[-1:] == (self.geometry,):
                seen.append(output)
            return output

        if self.geometry is None:
            return self.trunk(image, train=train), None
        with nn.intercept_methods(watch):
            h = self.trunk(image, train=train)
        if not seen or seen[-1].ndim != 4:
            raise UserError(f"geometry: needs a layer of the trunk with a map, got {self.geometry!r}")
        return h, seen[-1]

    def _map(self, plane: jax.Array, channels: int, name: str) -> jax.Array:
        conv = nn.Conv(
            channels, (3, 3), padding=1, use_bias=False, param_dtype=self.param_dtype, name=f"{name}_map"
        )
        shown = nn.sigmoid(conv(plane.astype(jnp.float32)))
        return jax.image.resize(shown, (len(shown), 14, 14, channels), "bilinear")


def live_margin(logits: jax.Array) -> jax.Array:
    """Logit of live minus that of attack, [B] float32, of logits [B, 2].

    Example:
      >>> live_margin(jnp.array([[1.0, 3.0]])).tolist()
      [2.0]
    """
    if logits.ndim != 2 or logits.shape[1] != 2:
        raise ValueError(f"logits: needs [B, 2], got {logits.shape}")
    return (logits[:, 1] - logits[:, 0]).astype(jnp.float32)
