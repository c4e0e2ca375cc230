"""Uncertain labels and uncertain images in anti-spoofing (after DPM, arXiv:2204.12685, whose abstract alone could be read).

*Labels*: what a face is said to be besides live or not, its semantic groups, is classified from a sample of a Gaussian code whose
information costs something, so that a wrong label need not be fitted. *Images*: the margin of live and attack has a variance,
predicted for every image, that moderates the confidence. The formulas are ours; they satisfy what the abstract says.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxface.checks import AtLeast, NonNegative, check_finite, check_number, int32_labels
from jaxface.errors import UserError
from jaxface.layers.dpm import check_code, sample_gaussian

Reduce = Literal["mean", "sum"]
"""Over the D dimensions of a code: their mean, or their sum, which is D times as large."""


class SemanticHead(NamedTuple):
    """What a group of semantic labels is classified by.

    Attributes:
      mu: [B, D] float, means of the codes.
      logvar: [B, D] float, logarithms of their variances.
      kernel: [D, K] float, and bias: [K] float, the classifier on a code.
    """

    mu: jax.Array
    logvar: jax.Array
    kernel: jax.Array
    bias: jax.Array


class QualityStats(NamedTuple):
    """What the quality head's inputs and output are scaled by; constants of the data that it is fitted on.

    Attributes:
      mean, std: [C] float, of the features. scale: [] float, the mean square of the margins.
    """

    mean: jax.Array
    std: jax.Array
    scale: jax.Array


def gaussian_kl(mu: jax.Array, logvar: jax.Array, *, reduce: Reduce = "mean") -> jax.Array:
    """Divergence of a diagonal Gaussian from the standard one.

        KL = ½ (μ² + exp l - l - 1) in each dimension,   l = log σ²

    Args:
      mu: [B, D] float. logvar: [B, D] float.
      reduce: "mean" or "sum" over the D dimensions; a weight β of the mean is β / D of the sum.

    Returns:
      [B] float32, ≥ 0; 0 where μ = 0 and l = 0.

    Raises:
      ValueError: another rank or D. UserError: another `reduce`.

    Example:
      >>> kl = gaussian_kl(jnp.array([[0.5, -1.0]]), jnp.log(jnp.array([[1.0, 0.25]])), reduce="sum")
      >>> round(float(kl[0]), 6)
      0.943147
    """
    check_code(mu, logvar)
    mu, logvar = mu.astype(jnp.float32), logvar.astype(jnp.float32)
    terms = 0.5 * (mu**2 + jnp.exp(logvar) - logvar - 1)
    if reduce not in ("mean", "sum"):
        raise UserError(f"reduce: needs mean or sum, got {reduce!r}")
    return terms.mean(axis=1) if reduce == "mean" else terms.sum(axis=1)


def masked_label_loss(logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Classification loss of a group of labels over the examples that have them.

        L = Σ_b m_b ℓ_b / max(Σ_b m_b, 1)

    ℓ is the cross-entropy of one label per example or, of several 0/1 attributes, the binary cross-entropy averaged over them.

    Args:
      logits: [B, K] float.
      labels: [B] integers in [0, K), or [B, K] of 0 and 1.
      mask: [B] of 0 and 1, or bool; all ones unless given. AENet's attributes count on live images alone.

    Returns:
      [] float32; 0, with a gradient of 0, where no example counts.

    Raises:
      ValueError: shapes that disagree, or labels known to be out of range.

    Example:
      >>> float(masked_label_loss(jnp.zeros((2, 40)), jnp.ones((2, 40), int), jnp.zeros(2)))
      0.0
    """
    if logits.ndim != 2 or labels.shape not in (logits.shape[:1], logits.shape):
        raise ValueError(f"labels: needs [B] or [B, K] for logits {logits.shape}, got {labels.shape}")
    logits = logits.astype(jnp.float32)
    if labels.ndim == 1:
        labels = int32_labels("labels", labels, logits.shape[1])
        rows = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        if not isinstance(labels, jax.core.Tracer) and not np.isin(np.asarray(labels), (0, 1)).all():
            raise ValueError("labels: needs 0 and 1 for attributes, got other values")
        rows = optax.sigmoid_binary_cross_entropy(logits, labels.astype(jnp.float32)).mean(axis=1)
    if mask is None:
        return rows.mean()
    chex.assert_shape(mask, logits.shape[:1])
    weights = mask.astype(jnp.float32)
    return jnp.sum(rows * weights) / jnp.maximum(weights.sum(), 1.0)


def lq_loss(
    key: jax.Array | None,
    heads: Mapping[str, SemanticHead],
    labels: Mapping[str, jax.Array],
    masks: Mapping[str, jax.Array] | None = None,
    *,
    lam: Mapping[str, float] | float = 0.1,
    beta: float = 10.0,
    reduce: Reduce = "mean",
    sample: bool = True,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """DPM-LQ: groups of semantic labels, each classified from one sample of its Gaussian code.

        L = Σ_k λ_k (ℓ_k(s_k W_k + b_k, t_k) + β mean_b KL_k),   s_k ~ N(μ_k, σ_k²)

    With a large σ the loss of a wrong label stops pulling, since the divergence prices what is known of it. λ multiplies the
    divergence too; β = 30 (mean) ends a head in our measurements.

    Args:
      key: of the samples; each group draws its own.
      heads: group -> `SemanticHead`.
      labels: group -> [B] integers, or [B, K] of 0 and 1.
      masks: group -> [B]; a group without one counts everywhere. The divergence is over the whole batch.
      lam: λ ≥ 0 of every group, or one for all.
      beta: β ≥ 0.
      reduce: of the divergence, over D; static.
      sample: False classifies the means, the deterministic control, and needs no key; static.

    Returns:
      ([] float32, {`<group>_loss`, `<group>_kl`} and the same before λ).

    Raises:
      UserError: β or λ below 0, a group without λ, or no key to sample with. ValueError: groups that disagree, another D,
        labels out of range.

    Example:
      >>> head = SemanticHead(jnp.zeros((4, 2)), jnp.zeros((4, 2)), jnp.zeros((2, 3)), jnp.zeros(3))
      >>> loss, report = lq_loss(jax.random.key(0), {"lamp": head}, {"lamp": jnp.array([0, 1, 2, 0])}, lam=0.5)
      >>> round(float(loss), 4), float(report["lamp_kl"])
      (0.5493, 0.0)
    """
    check_number("beta", beta, NonNegative)
    if heads.keys() - labels.keys():
        raise ValueError(f"labels: needs the groups {sorted(heads)}, got {sorted(labels)}")
    if sample and key is None:
        raise UserError("key: needs a random key to sample with, got none")
    total, report = jnp.zeros(()), {}
    for number, (name, head) in enumerate(sorted(heads.items())):
        if isinstance(lam, Mapping) and name not in lam:
            raise UserError(f"lam: needs a weight of {name!r}, has those of {', '.join(sorted(lam))}")
        weight = lam[name] if isinstance(lam, Mapping) else lam
        check_number("lam", weight, NonNegative)
        if head.kernel.ndim != 2 or head.kernel.shape[0] != head.mu.shape[-1]:
            raise ValueError(f"{name}: needs a kernel [{head.mu.shape[-1]}, K], got {head.kernel.shape}")
        divergence = gaussian_kl(head.mu, head.logvar, reduce=reduce).mean()
        code = head.mu
        if key is not None and sample:
            code = sample_gaussian(jax.random.fold_in(key, number), head.mu, head.logvar)
        classified = masked_label_loss(code @ head.kernel + head.bias, labels[name], (masks or {}).get(name))
        total = total + weight * (classified + beta * divergence)
        report |= {f"{name}_loss": classified, f"{name}_kl": divergence}
    return total, report


def moderated_margin(margin: jax.Array, variance: jax.Array) -> jax.Array:
    """The margin whose logistic is the mean of the logistic over N(m, v), nearly (probit approximation).

        m̂ = m / √(1 + π v / 8)

    Its sign is that of m: decisions at 1/2 never move, ranks do.

    Args:
      margin: [B] float, logit of live minus logit of attack.
      variance: [B] float ≥ 0; 0 leaves the margin alone.

    Returns:
      [B] float32.

    Raises:
      ValueError: shapes that differ. UserError: a variance known to be below 0 or not finite, a margin that is not finite.

    Example:
      >>> [round(float(m), 4) for m in moderated_margin(jnp.array([5.0, 2.0]), jnp.array([60.0, 0.0]))]
      [1.0089, 2.0]
    """
    if margin.shape != variance.shape:
        raise ValueError(f"variance: needs the shape of the margins, {margin.shape}, got {variance.shape}")
    check_finite("margin", margin)
    check_finite("variance", variance)
    if not isinstance(variance, jax.core.Tracer) and np.asarray(variance).size and np.min(variance) < 0:
        raise UserError(f"variance: needs values from 0, got {np.min(variance):g}")
    return margin.astype(jnp.float32) / jnp.sqrt(1 + jnp.pi / 8 * variance.astype(jnp.float32))


def moderated_prob(margin: jax.Array, variance: jax.Array) -> jax.Array:
    """Corrected confidence that a face is live, the logistic of `moderated_margin`; within 0.02 of the exact mean.

    Args, Raises: as `moderated_margin`.

    Returns:
      [B] float32 in (0, 1); 1/2 in the limit of a large variance.

    Example:
      >>> print(moderated_prob(jnp.array([4.0]), jnp.array([8.0])).round(4))
      [0.8771]
    """
    return jax.nn.sigmoid(moderated_margin(margin, variance))


def quality_stats(features: jax.Array, margin: jax.Array) -> QualityStats:
    """Mean and standard deviation of features, and the mean square of margins, of the data that quality is fitted on.

    Features that hardly move count as moving by a hundredth of the average one, so that none is blown up.

    Args:
      features: [N, C] float. margin: [N] float.

    Example:
      >>> stats = quality_stats(jnp.array([[0.0, 1.0], [2.0, 3.0]]), jnp.array([3.0, 4.0]))
      >>> stats.mean.tolist(), stats.std.tolist(), float(stats.scale)
      ([1.0, 2.0], [1.0, 1.0], 12.5)
    """
    features, margin = features.astype(jnp.float32), margin.astype(jnp.float32)
    std = features.std(axis=0)
    std = jnp.maximum(std, jnp.maximum(0.01 * std.mean(), 1e-6))
    return QualityStats(features.mean(axis=0), std, jnp.mean(margin**2))


def quality_variance(
    head: Callable[[jax.Array], jax.Array], features: jax.Array, stats: QualityStats
) -> jax.Array:
    """DPM-DQ: the variance of every image's margin.

        v = S² softplus(g((h - mean) / std)),   S² = mean square of the margins

    Without the scale g would have to climb from 0.3 to about a hundred through softplus, and may not arrive.

    Args:
      head: g, [B, C] -> [B].
      features: h [B, C] float.
      stats: with C features.

    Returns:
      [B] float32 ≥ 0.

    Raises:
      ValueError: another C.

    Example:
      >>> stats = QualityStats(jnp.zeros(2), jnp.ones(2), jnp.array(10.0))
      >>> print(quality_variance(lambda h: h.sum(axis=1), jnp.zeros((1, 2)), stats).round(4))
      [6.9315]
    """
    if features.ndim != 2 or stats.mean.shape != features.shape[1:]:
        raise ValueError(f"features: needs [B, {stats.mean.size}] as the statistics, got {features.shape}")
    return stats.scale * jax.nn.softplus(head((features.astype(jnp.float32) - stats.mean) / stats.std))


def dq_loss(margin: jax.Array, variance: jax.Array, live: jax.Array) -> jax.Array:
    """Loss of the corrected confidence, softplus(-(2y - 1) m̂).

    Where m is wrong the variance grows, where it is right it shrinks. It is fitted with trunk and classifier frozen, on images
    they were not trained on, whose noise is new in every step: on memorized images it becomes 0 everywhere.

    Args:
      margin: [B] float. variance: [B] float ≥ 0.
      live: [B] integers or bool, 1 for live.

    Returns:
      [B] float32.

    Raises:
      As `moderated_margin`; ValueError: labels other than 0 and 1.

    Example:
      >>> print(dq_loss(jnp.array([-3.0]), jnp.array([1.0]), jnp.array([1])).round(4))
      [2.6179]
    """
    sign = 2 * _live_labels(live).astype(jnp.float32) - 1
    return jax.nn.softplus(-sign * moderated_margin(margin, variance))


def dq_mc_loss(
    key: jax.Array | None,
    logits: jax.Array,
    deviation: jax.Array,
    labels: jax.Array,
    *,
    samples: int = 8,
    noise: jax.Array | None = None,
) -> jax.Array:
    """The same by sampling: likelihood of the softmax averaged over noise on the logits.

        L = -mean_b log (1/T Σ_t softmax(z + s ε_t)[y]),   ε_t ~ N(0, I)

    The margin of two classes then has the variance 2 s².

    Args:
      key: of the noise.
      logits: [B, K] float. deviation: s [B] float ≥ 0. labels: [B] integers in [0, K).
      samples: T ≥ 1, static.
      noise: [T, B, K], to be used instead of a draw.

    Returns:
      [] float32; the cross-entropy where s = 0.

    Raises:
      UserError: no key, T below 1, a deviation known to be below 0. ValueError: shapes that disagree, labels out of range.

    Example:
      >>> loss = dq_mc_loss(jax.random.key(0), jnp.array([[2.0, 0.0]]), jnp.zeros(1), jnp.array([0]), samples=3)
      >>> round(float(loss), 4)
      0.1269
    """
    check_number("samples", samples, AtLeast(1))
    if logits.ndim != 2 or deviation.shape != logits.shape[:1]:
        raise ValueError(f"deviation: needs [B] for logits {logits.shape}, got {deviation.shape}")
    labels = int32_labels("labels", labels, logits.shape[1])
    if not isinstance(deviation, jax.core.Tracer) and np.asarray(deviation).size and np.min(deviation) < 0:
        raise UserError(f"deviation: needs values from 0, got {np.min(deviation):g}")
    if noise is None:
        if key is None:
            raise UserError("key: needs a random key to sample with, got none")
        noise = jax.random.normal(key, (samples, *logits.shape))
    shifted = logits.astype(jnp.float32) + deviation.astype(jnp.float32)[:, None] * noise
    chosen = jnp.take_along_axis(jax.nn.log_softmax(shifted), labels[None, :, None], axis=2)[..., 0]
    return -jnp.mean(jax.nn.logsumexp(chosen, axis=0) - jnp.log(len(noise)))


def _live_labels(live: jax.Array) -> jax.Array:
    live = live.astype(jnp.int32) if live.dtype == bool else live
    return int32_labels("live", live, 2)
