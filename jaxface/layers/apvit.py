"""Attentive pooling: patches and tokens that a score finds telling go on, the others are dropped (arXiv:2212.05463).

Attentive patch pooling (APP) selects places of a feature map before a transformer, attentive token pooling (ATP) tokens within
its blocks. Both have no parameters and no gradient: what is kept has the ordinary one, what is dropped has none behind where
it was dropped. All counts are static, so a whole network is compiled with fixed shapes.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.checks import AtLeast, Integers, Range, check_number
from jaxface.errors import UserError
from jaxface.layers.attention import DotProduct

PatchScore = Literal[
    "sum_abs", "sum", "sum_squares", "max", "max_abs", "channel", "attention", "random", "lowest"
]
"""How telling a place is: of its D features the sum of absolute values (the paper's), the sum, the sum of squares, the largest,
the largest absolute value, one drawn at random, or a learned map (LANet). Controls: drawn at random, or the smallest sums of
absolute values."""
TokenScore = Literal["sum_logits", "sum_abs", "max", "sum_softmax", "random", "lowest"]
"""How telling a token is: over the heads the sum of what the class token's query makes of its key before the softmax (the
paper's), the sum of absolute values, the largest, or the sum behind the softmax. Controls: drawn at random, or the smallest
sums."""

KEEP_RATE = Range(0, 1, above=True)


def _check_option(name: str, value: str, options: Any) -> None:
    if value not in get_args(options):
        raise UserError(f"{name}: needs one of {', '.join(get_args(options))}, got {value!r}")


def _drawn(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform numbers [B, *shape] whose seeds are the bits of `values` [B, ...]: random, and the same for the same example."""
    sums = jnp.sum(values.astype(jnp.float32), axis=range(1, values.ndim))
    seeds = jax.lax.bitcast_convert_type(sums, jnp.uint32)
    return jax.vmap(lambda seed: jax.random.uniform(jax.random.key(seed), shape))(seeds)


def app_scores(features: jax.Array, *, method: PatchScore = "sum_abs") -> jax.Array:
    """How telling each place of a feature map is.

        a_i = Σ_c |F_ic|

    It knows the length of a token alone, of which the first normalization of a transformer leaves nothing: no loss trains it.

    Args:
      features: [B, N, D] float, behind the projection to the size of the tokens.
      method: `PatchScore` but "attention", whose scores are those of `PatchAttention`. "channel" and "random" draw by the
        features themselves: one example has one draw.

    Returns:
      [B, N] float32 without a gradient.

    Raises:
      ValueError: another rank. UserError: another method.

    Example:
      >>> app_scores(jnp.array([[[1.0, -1.0], [-2.0, 1.0], [0.0, 4.0], [3.0, -3.0]]])).tolist()
      [[2.0, 3.0, 4.0, 6.0]]
    """
    _check_option("app_score", method, PatchScore)
    if features.ndim != 3:
        raise ValueError(f"features: needs [B, N, D], got {features.shape}")
    features = jax.lax.stop_gradient(features.astype(jnp.float32))
    match method:
        case "sum":
            return features.sum(axis=2)
        case "sum_squares":
            return jnp.square(features).sum(axis=2)
        case "max":
            return features.max(axis=2)
        case "max_abs":
            return jnp.abs(features).max(axis=2)
        case "channel":
            chosen = (features.shape[2] * _drawn(features, (1, 1))).astype(jnp.int32)
            return jnp.take_along_axis(features, chosen, axis=2)[..., 0]
        case "random":
            return _drawn(features, features.shape[1:2])
        case "attention":
            raise UserError(
                "app_score: 'attention' needs the map of a PatchAttention, features alone have none"
            )
    sums = jnp.abs(features).sum(axis=2)
    return -sums if method == "lowest" else sums


def top_k_sorted(scores: jax.Array, k: int, *, name: str = "k") -> jax.Array:
    """Numbers of the k highest scores, rising; of equal scores the first ones.

    Args:
      scores: [B, N] float.
      k: in [1, N].
      name: of k in messages.

    Returns:
      [B, k] int32.

    Raises:
      UserError: k out of its range.

    Example:
      >>> top_k_sorted(jnp.array([[0.9, 0.1, 0.5, 0.3, 0.8, 0.2]]), 3).tolist()
      [[0, 2, 4]]
    """
    check_number(name, k, Integers(1, scores.shape[1]))
    _, ids = jax.lax.top_k(jax.lax.stop_gradient(scores), k)
    return jnp.sort(ids.astype(jnp.int32), axis=1)


def gather_tokens(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """Some tokens of each example: [B, N, D], [B, k] integers in [0, N) -> [B, k, D].

    Example:
      >>> gather_tokens(jnp.arange(6.0).reshape(1, 3, 2), jnp.array([[0, 2]])).tolist()
      [[[0.0, 1.0], [4.0, 5.0]]]
    """
    return jnp.take_along_axis(tokens, ids[..., None], axis=1)


def attentive_patch_pool(
    features: jax.Array,
    positions: jax.Array,
    keep_num: int,
    *,
    method: PatchScore = "sum_abs",
    scores: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The k places of a map with the highest scores, in their order, each with its position.

        T = F + P;   kept = T[ids],   ids = sort(top-k(a(F)))

    Args:
      features: F [B, N, D] float, behind the projection.
      positions: P [1, N, D], added before places are dropped, so that the others carry where they are.
      keep_num: k in [1, N].
      method: of `app_scores`.
      scores: a [B, N] instead of those.

    Returns:
      (kept [B, k, D], ids [B, k] int32).

    Raises:
      UserError: k out of its range, or another method.

    Example:
      >>> features = jnp.array([[[1.0, -1.0], [-2.0, 1.0], [0.0, 4.0], [3.0, -3.0]]])
      >>> kept, ids = attentive_patch_pool(features, jnp.zeros((1, 4, 2)), 2)
      >>> kept.tolist(), ids.tolist()
      ([[[0.0, 4.0], [3.0, -3.0]]], [[2, 3]])
    """
    scores = app_scores(features, method=method) if scores is None else scores
    ids = top_k_sorted(scores, keep_num, name="keep_num")
    return gather_tokens(features + positions, ids), ids


def class_logits(query: jax.Array, key: jax.Array) -> jax.Array:
    """What the first token's query makes of every key before the softmax: ⟨q_1, k_j⟩ / √d for each head.

    query, key [B, T, H, d] float -> [B, H, T] float32 without a gradient. It is beside the attention, H · T · d products, so
    that the attention may be a fused one.

    Example:
      >>> class_logits(jnp.ones((1, 2, 1, 4)), jnp.ones((1, 2, 1, 4))).tolist()
      [[[2.0, 2.0]]]
    """
    query, key = (jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (query[:, 0], key))
    products = jnp.einsum("bhd,bthd->bht", query, key, precision=jax.lax.Precision.HIGHEST)
    return products / math.sqrt(query.shape[-1])


def atp_scores(logits: jax.Array, *, method: TokenScore = "sum_logits") -> jax.Array:
    """How telling each token is to the class token, which is the first and has no score.

        g_j = Σ_h Z_h,1,j         Z the scaled logits, before the softmax

    A constant added to a head's logits changes no order; a head with a large variance has most to say.

    Args:
      logits: [B, H, T] of the class token's row (`class_logits`), or [B, H, T, T] of all rows.
      method: `TokenScore`.

    Returns:
      [B, T - 1] float32 without a gradient.

    Raises:
      ValueError: another rank. UserError: another method.

    Example:
      >>> rows = jnp.array([[[0.0, 3.0, 0.0, 2.0], [0.0, 0.0, 2.5, 2.0]]])  # two heads; the first column is the class token
      >>> atp_scores(rows).tolist()
      [[3.0, 2.5, 4.0]]
    """
    _check_option("atp_score", method, TokenScore)
    if logits.ndim not in (3, 4):
        raise ValueError(f"logits: needs [B, H, T] or [B, H, T, T], got {logits.shape}")
    rows = logits[:, :, 0] if logits.ndim == 4 else logits
    rows = jax.lax.stop_gradient(rows.astype(jnp.float32))
    if method == "sum_softmax":
        rows = jax.nn.softmax(rows, axis=2)
    rows = rows[:, :, 1:]
    match method:
        case "sum_abs":
            return jnp.abs(rows).sum(axis=1)
        case "max":
            return rows.max(axis=1)
        case "random":
            return _drawn(rows, rows.shape[2:])
    sums = rows.sum(axis=1)
    return -sums if method == "lowest" else sums


def pooled_count(count: int, rate: float) -> int:
    """Tokens that a rate leaves of `count`: max(⌊count · rate⌋, 1).

    Raises:
      UserError: fewer than one token, or a rate outside (0, 1].

    Example:
      >>> pooled_count(144, 0.9)
      129
    """
    check_number("count", count, AtLeast(1))
    check_number("keep_rates", rate, KEEP_RATE)
    return max(math.floor(count * rate), 1)


def token_counts(count: int, rates: Sequence[float]) -> tuple[int, ...]:
    """Patch tokens behind each block: of `count` before the first, the rate of each block.

    Raises:
      UserError: as `pooled_count`.

    Example:
      >>> token_counts(160, (1, 1, 1, 1, 0.9, 0.9, 0.9, 0.9))
      (160, 160, 160, 160, 144, 129, 116, 104)
    """
    counts = []
    for rate in rates:
        count = pooled_count(count, rate)
        counts.append(count)
    return tuple(counts)


def transformer_macs(count: int, rates: Sequence[float], *, dim: int, mlp_ratio: float = 4.0) -> int:
    """Multiply-accumulates of the blocks of a transformer that drops tokens between attention and perceptron.

        Σ_blocks 4 D² n + 2 D n² + 2 r D² n'        n, n' with the class token, before and behind the selection

    Args:
      count: patch tokens before the first block.
      rates: share of them that each block keeps, in (0, 1]; one per block.
      dim: D.
      mlp_ratio: r, hidden units of the perceptron per channel.

    Returns:
      Of one image: the four layers of the attention, its two products, and the perceptron.

    Raises:
      UserError: as `token_counts`.

    Example:
      >>> transformer_macs(160, (1, 1, 1, 1, 0.9, 0.9, 0.9, 0.9), dim=768, mlp_ratio=3)
      7140364800
    """
    before = (count, *token_counts(count, rates))
    hidden = round(mlp_ratio * dim)
    return sum(
        4 * dim**2 * (n + 1) + 2 * dim * (n + 1) ** 2 + 2 * dim * hidden * (left + 1)
        for n, left in itertools.pairwise(before)
    )


class PatchAttention(nn.Module):
    """LANet: a learned map of how telling each place is, in (0, 1); the features are multiplied by it to give it a gradient.

        y = σ(w2 relu(W1 x + b1) + b2),      W1: [D, D // reduction]

    features [B, N, D] -> [B, N] float32.
    """

    reduction: int = 16
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        hidden = max(features.shape[-1] // self.reduction, 1)
        x = nn.relu(nn.Dense(hidden, name="reduce", **types)(features))
        return nn.sigmoid(nn.Dense(1, name="score", **types)(x)[..., 0].astype(jnp.float32))


class PatchPooling(nn.Module):
    """Attentive patch pooling (`attentive_patch_pool`) as the `select` of a transformer.

    Args:
      keep_num: k in [1, N].
      method: `PatchScore`; "attention" learns its map and multiplies the features by it.

    features [B, N, D], positions [1, N, D] -> [B, k, D]. The numbers of what is kept, [B, k] int32, are sown as `ids` into the
    collection `kept_tokens`.
    """

    keep_num: int
    method: PatchScore = "sum_abs"

    @nn.compact
    def __call__(self, features: jax.Array, positions: jax.Array) -> jax.Array:
        scores = None
        if self.method == "attention":
            scores = PatchAttention(name="attention")(features)
            features = features * scores[..., None].astype(features.dtype)
        kept, ids = attentive_patch_pool(
            features, positions, self.keep_num, method=self.method, scores=scores
        )
        _sow_ids(self, ids)
        return kept


class ClassAttention(nn.Module):
    """A mixing that hands on the class token's row of logits besides: the `mix` of an `Attention` before `TokenPooling`.

    query, key, value as `DotProduct` -> (mixed [B, T, H, d], `class_logits` [B, H, T]).

    Args:
      mix: makes the mixing itself, as `DotProduct`.
    """

    mix: Callable[..., nn.Module] = DotProduct

    @nn.compact
    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        mixed = self.mix(name="mix")(query, key, value, mask=mask, train=train)
        return mixed, class_logits(query, key)


class TokenPooling(nn.Module):
    """Attentive token pooling as the `select` of a block: the class token and the share of the others with the highest scores.

    Args:
      rate: share that is kept, in (0, 1]; `pooled_count` of N.
      method: of `atp_scores`.

    tokens [B, 1 + N, D], logits [B, H, 1 + N] -> [B, 1 + n, D]. The numbers of what is kept, among the N, [B, n] int32, are sown
    as `ids` into the collection `kept_tokens`.
    """

    rate: float
    method: TokenScore = "sum_logits"

    @nn.compact
    def __call__(self, tokens: jax.Array, logits: jax.Array) -> jax.Array:
        others = tokens.shape[1] - 1
        count = pooled_count(others, self.rate)
        if count == others:
            return tokens
        ids = top_k_sorted(atp_scores(logits, method=self.method), count)
        _sow_ids(self, ids)
        first = jnp.zeros_like(ids[:, :1])
        return gather_tokens(tokens, jnp.concatenate([first, ids + 1], axis=1))


def _sow_ids(module: nn.Module, ids: jax.Array) -> None:
    if (
        not module.is_initializing()
    ):  # a collection that is made with the parameters would be a part of every state
        module.sow("kept_tokens", "ids", ids, reduce_fn=lambda _, ids: ids, init_fn=lambda: None)
