"""What a frozen detector's margins are corrected by (DPM-DQ and its controls), and clusters that stand for semantic labels."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import losses
from jaxface.extras import optional
from jaxface.layers import QualityHead

Correction = Literal["scaled", "unscaled", "plain", "mc", "refit", "refit_unscaled", "temperature"]
"""A margin of its own from a frozen detector. Moderated by a variance: from standardized features, in units of the mean square
margin (DPM-DQ); in units of 1; from raw features; by the sampled loss. Controls: the same head predicts the margin itself, in
either unit; one temperature for all images."""


def corrections_start(rng: jax.Array, names: Sequence[Correction], feature_size: int, *, hidden: int) -> dict:
    """Parameters that corrections start from; all heads from the same ones."""
    head = QualityHead(hidden).init(rng, jnp.zeros((1, feature_size)))["params"]
    return {
        name: {"log": jnp.zeros(())} if name == "temperature" else jax.tree.map(jnp.copy, head)
        for name in names
    }


def corrected_margins(
    corrections: Sequence[Correction], params: Mapping[str, Any], features, margin, stats
) -> dict[str, tuple[jax.Array, jax.Array | None]]:
    """What each correction makes of a batch.

        v = S² softplus(g(h'))            h' = (h - mean) / std      scaled; S = 1 unscaled; h' = h besides plain
        v = 2 (S softplus(g(h')))²                                   mc
        m' = S g(h')                                                 refit; S = 1 refit_unscaled
        m' = m / T,   T = exp(10 log)                                temperature; tenfold, as it has far to go

    Args:
      corrections: names.
      params: of each (`corrections_start`).
      features: h [B, C]. margin: m [B].
      stats: of the data that it is fitted on.

    Returns:
      name -> (margin to be moderated, or the new one [B]; variance [B] or None).
    """
    neutral = losses.QualityStats(
        jnp.zeros_like(stats.mean), jnp.ones_like(stats.std), jnp.ones_like(stats.scale)
    )
    result = {}
    for name in corrections:
        if name == "temperature":
            result[name] = margin * jnp.exp(-10 * params[name]["log"]), None
            continue

        def head(h, name=name):
            return QualityHead(params[name]["hidden"]["bias"].size).apply({"params": params[name]}, h)

        standard = (features.astype(jnp.float32) - stats.mean) / stats.std
        if name == "refit_unscaled":
            result[name] = head(standard), None
        elif name == "refit":
            result[name] = jnp.sqrt(stats.scale) * head(standard), None
        elif name == "mc":
            deviation = jnp.sqrt(stats.scale) * jax.nn.softplus(head(standard))
            result[name] = margin, 2 * deviation**2
        else:
            used = {"scaled": stats, "plain": neutral, "unscaled": stats._replace(scale=neutral.scale)}[name]
            result[name] = margin, losses.quality_variance(head, features, used)
    return result


def applied(margin: jax.Array, variance: jax.Array | None) -> jax.Array:
    """The margin [B] that a correction leaves."""
    return margin if variance is None else losses.moderated_margin(margin, variance)


def cluster_labels(codes: np.ndarray, live: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Clusters of the codes [N, D] within attacks, 0 … count - 1, and within live faces, count … 2 count - 1: [N] int32."""
    KMeans = optional("sklearn.cluster", "sets").KMeans
    labels = np.zeros(len(codes), np.int32)
    for kind in (False, True):
        rows = live == kind
        labels[rows] = count * kind + KMeans(count, n_init=1, random_state=seed).fit_predict(codes[rows])
    return labels
