"""FM-ViT's attention between the branches of several sensors (arXiv:2305.03277).

One branch for each modality, mapped over by `jax.vmap` with the axis name `BRANCHES`, so that inside of a branch the others are
a collective away. Of the paper the abstract could be read: it says what mutual attention and fusion attention are for; the
formulas here carry over the operators of its forerunner MA-ViT (arXiv:2304.07549), whose mask removes patches that say which
modality they are of, where this one keeps patches that are informative.
"""

import math
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.checks import Range, check_number
from jaxface.errors import UserError
from jaxface.layers.attention import Attention

BRANCHES = "branch"
"""Name of the mapped axis of modalities."""

Guide = Literal["other", "union", "intersection", "none", "random"]
"""Whose informative patches a class token sees: those of the other modalities, its own besides, those of all, every patch, or
as many at random, the control."""
Combine = Literal["sum", "or"]
"""How those of several others become one set: the best by their summed relevance, or the union of their sets."""
Alone = Literal["all", "own"]
"""What a class token sees without others: every patch, or its own informative ones."""

KEPT = Range(0, 1, above=True)
"""Fraction ρ of the patches that are informative."""


def cls_relevance(query: jax.Array, key: jax.Array) -> jax.Array:
    """How much the class token attends to each patch, the class token's own key left out.

        R_n = mean over heads of softmax_n(q_class · k_n / √d),   n over the patches

    Args:
      query, key: [B, N + 1, h, d] float, the class token first.

    Returns:
      [B, N] float32, of sum 1; no gradient flows through it.

    Example:
      >>> keys = jnp.array([[0.0, 0], [2, 0], [0, 1], [1, 1], [-1, 0]])[None, :, None]
      >>> queries = jnp.zeros_like(keys).at[0, 0, 0, 0].set(1.0)
      >>> [f"{share:.3f}" for share in cls_relevance(queries, keys)[0]]
      ['0.539', '0.131', '0.266', '0.065']
    """
    scores = jnp.einsum(
        "bhd,bnhd->bhn", query[:, 0], key[:, 1:], preferred_element_type=jnp.float32
    ) / math.sqrt(query.shape[-1])
    return jax.lax.stop_gradient(jax.nn.softmax(scores.astype(jnp.float32), axis=-1).mean(axis=1))


def informative_mask(
    relevance: jax.Array, *, fraction: float = 0.5, threshold: float | None = None
) -> jax.Array:
    """The most relevant patches: exactly ⌈ρ N⌉ of them, of equals the first; or all that reach λ of the largest.

    Args:
      relevance: [..., N] float.
      fraction: ρ in (0, 1].
      threshold: λ in (0, 1], instead of ρ: relevance ≥ λ · max, MA-ViT's rule.

    Returns:
      [..., N] bool; one patch at least.

    Raises:
      UserError: a number out of its range.

    Example:
      >>> informative_mask(jnp.array([0.3, 0.1, 0.3, 0.3])).tolist()
      [True, False, True, False]
    """
    if threshold is not None:
        check_number("threshold", threshold, KEPT)
        return relevance >= threshold * relevance.max(axis=-1, keepdims=True)
    check_number("fraction", fraction, KEPT)
    count = relevance.shape[-1]
    kept = math.ceil(fraction * count - 1e-9)  # 0.07 · 100 is a little more than 7
    first, second = relevance[..., :, None], relevance[..., None, :]
    before = jnp.tri(count, k=-1, dtype=bool)  # [n, m]: m comes before n
    return ((second > first) | ((second == first) & before)).sum(axis=-1) < kept


def guidance_mask(
    own: jax.Array,
    relevance: jax.Array,
    others: jax.Array,
    *,
    guide: Guide = "other",
    combine: Combine = "sum",
    alone: Alone = "all",
    fraction: float = 0.5,
    threshold: float | None = None,
    noise: jax.Array | None = None,
) -> jax.Array:
    """Which patches the class token of a branch sees in mutual attention.

        other, sum: the ⌈ρ N⌉ patches of the largest Σ_j R^j          other, or: ∪_j T^j
        union: those and T of the branch itself                       intersection: ∩_j T^j ∩ T of the branch itself
        random: ⌈ρ N⌉ patches by noise                                 none: all

    over the others j that are there, T^j = `informative_mask`(R^j). A branch without others follows `alone`.

    Args:
      own: [B, N] relevance in the branch itself.
      relevance: [M, B, N] in every branch.
      others: [M] or [B, M] bool, the other branches that it may look at; the branch itself is none of them.
      guide, combine, alone: see their types.
      fraction, threshold: as `informative_mask`.
      noise: [B, N] float, for "random".

    Returns:
      [B, N] bool. One patch at least but for the intersection, where it may be none: the class token still sees itself.

    Raises:
      UserError: an unknown option, or a number out of its range.

    Example:
      >>> maps = jnp.array([[[0.4, 0.3, 0.2, 0.1]], [[0.1, 0.2, 0.3, 0.4]]])
      >>> guidance_mask(maps[0], maps, jnp.array([False, True])).tolist()
      [[False, False, True, True]]
    """
    for name, value, options in (("guide", guide, Guide), ("combine", combine, Combine), ("alone", alone, Alone)):  # fmt: skip
        if value not in get_args(options):
            raise UserError(f"{name}: needs one of {', '.join(get_args(options))}, got {value!r}")

    def informative(values):
        return informative_mask(values, fraction=fraction, threshold=threshold)

    if guide == "random" and noise is None:
        raise ValueError("noise: needs [B, N] for random patches, got none")
    if guide == "none":
        return jnp.ones(own.shape, bool)
    there = jnp.broadcast_to(others, (own.shape[0], relevance.shape[0])).T[..., None]  # [M, B, 1]
    mine = informative(own)
    if noise is not None and guide == "random":
        keep = informative_mask(noise, fraction=fraction)
    elif guide == "intersection":
        keep = (informative(relevance) | ~there).all(axis=0) & mine
    elif combine == "or":
        keep = (informative(relevance) & there).any(axis=0)
    else:
        keep = informative((relevance * there).sum(axis=0))
    if guide == "union":
        keep = keep | mine
    return jnp.where(there.any(axis=0), keep, mine if alone == "own" else True)


def mutual_attention(query: jax.Array, key: jax.Array, value: jax.Array, keep: jax.Array) -> jax.Array:
    """Attention whose class token sees itself and the patches that are kept; patches see every token.

    Args:
      query, key, value: [B, N + 1, h, d] float, the class token first.
      keep: [B, N] bool.

    Returns:
      [B, N + 1, h, d]; softmax in float32.

    Example:
      >>> tokens = jnp.eye(3)[None, :, None]
      >>> out = mutual_attention(tokens, tokens, tokens, jnp.array([[True, False]]))
      >>> float(out[0, 0, 0, 2]), bool(out[0, 1, 0, 2] > 0)
      (0.0, True)
    """
    batch, count = keep.shape
    row = jnp.concatenate([jnp.ones((batch, 1), bool), keep], axis=1)
    is_class = jnp.arange(count + 1) == 0
    mask = row[:, None, :] | ~is_class[:, None]
    return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None])


def fusion_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, keep: jax.Array | None = None
) -> jax.Array:
    """Attention of a class token to the patches of other branches.

    Args:
      query: [B, 1, h, d]. key, value: [B, S, h, d].
      keep: [B or 1, S] bool, the keys that are there; all unless given.

    Returns:
      [B, 1, h, d].

    Example:
      >>> keys = jnp.array([[0.0, 1], [3, 0]])[None, :, None]
      >>> values = jnp.array([[-1.0, 1], [0, 2]])[None, :, None]
      >>> fused = fusion_attention(jnp.array([1.0, 0]).reshape(1, 1, 1, 2), keys, values)
      >>> [f"{x:.3f}" for x in fused.ravel()]
      ['-0.107', '1.893']
    """
    mask = None if keep is None else keep[:, None, None, :]
    return jax.nn.dot_product_attention(query, key, value, mask=mask)


def partner_matrix(available: jax.Array) -> jax.Array:
    """Whom each branch looks at: the others that are available, or itself where there are none.

    Args:
      available: [M] or [B, M] bool.

    Returns:
      [M, M] or [B, M, M] bool, a row for each branch.

    Example:
      >>> partner_matrix(jnp.array([True, False, True])).astype(int).tolist()
      [[0, 0, 1], [1, 0, 1], [1, 0, 0]]
    """
    itself = jnp.eye(available.shape[-1], dtype=bool)
    others = available[..., None, :] & ~itself
    return others | (itself & ~others.any(axis=-1, keepdims=True))


class MutualDotProduct(nn.Module):
    """A mixing for `Attention` in which modalities point informative patches out to each other's class token.

    Its `mask` [M] or [B, M] bool says which branches this one looks at (a row of `partner_matrix`), and is handed on as its
    second value. Patches see every token. Needs the mapped axis `BRANCHES`; with `guide` "random" a key `guide`, without which
    the patches are the same in every call.
    """

    guide: Guide = "other"
    combine: Combine = "sum"
    alone: Alone = "all"
    fraction: float = 0.5
    threshold: float | None = None

    @nn.compact
    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, *, mask: jax.Array, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        del train
        own = cls_relevance(query, key)
        relevance = jax.lax.all_gather(own, BRANCHES)
        others = mask & (jnp.arange(relevance.shape[0]) != jax.lax.axis_index(BRANCHES))
        noise = None
        if self.guide == "random":
            rng = self.make_rng("guide") if self.has_rng("guide") else jax.random.key(0)
            noise = jax.random.uniform(rng, own.shape)
        keep = guidance_mask(
            own,
            relevance,
            others,
            guide=self.guide,
            combine=self.combine,
            alone=self.alone,
            fraction=self.fraction,
            threshold=self.threshold,
            noise=noise,
        )
        return mutual_attention(query, key, value, keep), mask


class ClassFusion(nn.Module):
    """Adds to a branch's class token what it attends to among the patches of the branches that it looks at.

        tokens_class += out(softmax(q k^T / √d) v),   q of its own class token; k and v of their patches, by its own layers

    `out` starts at zero. tokens [B, N + 1, D], partners [M] or [B, M] bool -> [B, N + 1, D], of which row 0 alone is changed.
    Needs the mapped axis `BRANCHES`; patches are normalized by the branch that they come from.
    """

    heads: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, partners: jax.Array) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = nn.LayerNorm(epsilon=1e-6, name="norm", **types)(tokens)
        patches = jax.lax.all_gather(y[:, 1:], BRANCHES)  # [M, B, N, D]
        count, batch, length, dim = patches.shape
        patches = jnp.moveaxis(patches, 0, 1).reshape(batch, count * length, dim)
        seen = jnp.repeat(jnp.atleast_2d(partners), length, axis=-1)[:, None, None]
        attention = Attention(self.heads, out_init=nn.initializers.zeros, name="attention", **types)
        return tokens.at[:, :1].add(attention(y[:, :1], patches, mask=seen))
