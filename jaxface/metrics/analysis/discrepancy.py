"""Similarities corrected by how crowded the neighborhoods of both images are (arXiv:2103.01559).

The cosine of two embeddings means different things in different regions of the hypersphere: where many people are alike, an
impostor pair easily passes a threshold that is strict elsewhere. The support set of an image are its nearest candidates of
*other* people; their mean similarity, the local discrepancy, is subtracted from the score of a pair. Candidates may be a
gallery, or synthetic faces; there may be a million of them, since nothing here holds an [N, M] matrix.

The abstract names the operator and the support sets. Their formulas are our reading; s-norm, the cap rule, the fitted weight,
the filters and the spread of the groups' rates are ours.

Methods: ida
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxface import checks, search
from jaxface.errors import UserError
from jaxface.metrics import numbers

TILE = 8192  # candidates compared at a time
ROWS = 1024  # embeddings compared at a time: a block of similarities is 32 MiB


class Discrepancy(NamedTuple):
    """Similarities of images with their support sets.

    Attributes:
      mean: d [N] float32, local discrepancy: mean similarity; large in a crowded region, NaN where no candidate may enter.
      deviation: σ [N] float32, population standard deviation; NaN where no candidate may enter.
      count: |S| [N] int32, size of the support set; 0 where no candidate may enter.
    """

    mean: jax.Array
    deviation: jax.Array
    count: jax.Array


class GroupRates(NamedTuple):
    """False accept rates of groups at one threshold.

    Attributes:
      threshold: the pooled one; accept iff score > threshold.
      rates: [G] float64, FAR of each group that has impostor pairs, in the order of `groups`.
      groups: [G] the groups.
      spread: max_g log10 FAR_g - min_g log10 FAR_g.
    """

    threshold: float
    rates: np.ndarray
    groups: np.ndarray
    spread: float


def local_discrepancy(
    embeddings: jax.Array,
    candidates: jax.Array,
    *,
    k: int = 50,
    mask: jax.Array | None = None,
    labels: jax.Array | None = None,
    candidate_labels: jax.Array | None = None,
    same_above: float | None = None,
    tile: int = TILE,
    rows: int = ROWS,
) -> Discrepancy:
    """Mean similarity of each image with the K candidates that are nearest to it (arXiv:2103.01559; our reading).

        S(x) = the K candidates v with the largest ⟨x, v⟩ among those allowed
        d(x) = 1/|S| Σ_{v ∈ S(x)} ⟨x, v⟩,      σ(x)² = 1/|S| Σ_{v ∈ S(x)} (⟨x, v⟩ - d(x))²

    A candidate that shows the person of x makes d(x) about a genuine similarity, and genuine pairs then score low: leave such
    candidates out by labels, a mask, or `same_above`. Everything is computed in float32, whose ties bfloat16 would make.
    Memory is rows · tile similarities, whatever N and M.

    Args:
      embeddings: x [N, D] float, rows of unit length.
      candidates: v [M, D] float, rows of unit length.
      k: K in [1, M], static.
      mask: [N, M] bool, True where a candidate may enter; all unless given.
      labels, candidate_labels: [N] and [M] integers, who is who; a candidate of the same label does not enter.
      same_above: similarity above which a candidate may be the same person and does not enter for that x; 0.6 suits networks
        trained like ArcFace. None lets all enter.
      tile, rows: candidates and embeddings compared at a time, static.

    Returns:
      A `Discrepancy`. Where fewer than K candidates are allowed, S is all of them.

    Raises:
      ValueError: shapes disagree.
      UserError: no candidate, K outside [1, M], rows that are not finite or not of unit length (within 1e-3; values are
        checked outside of compiled functions only), or one of the labels without the other.

    Example:
      >>> embeddings = jnp.array([[1.0, 0.0]])
      >>> candidates = jnp.array([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
      >>> [round(x, 2) for x in local_discrepancy(embeddings, candidates, k=2).mean.tolist()]  # of 0.8 and 0.6
      [0.7]
    """
    nearest = _checked_nearest(
        embeddings, candidates, k, mask, labels, candidate_labels, same_above, tile, rows
    )
    return _moments(nearest, jnp.isfinite(nearest))


def local_discrepancy_cap(
    embeddings: jax.Array,
    candidates: jax.Array,
    cap: float,
    *,
    k_min: int = 10,
    k_max: int = 200,
    mask: jax.Array | None = None,
    labels: jax.Array | None = None,
    candidate_labels: jax.Array | None = None,
    same_above: float | None = None,
    tile: int = TILE,
    rows: int = ROWS,
) -> Discrepancy:
    """`local_discrepancy` over a support set whose size follows the crowd: a cap on the hypersphere (design).

        S(x) = { v : ⟨x, v⟩ ≥ τ },  of which the nearest K_max; the nearest K_min where fewer than K_min are inside

    Args:
      embeddings, candidates, mask, labels, candidate_labels, same_above, tile, rows: as in `local_discrepancy`.
      cap: τ in [-1, 1], cosine of the angle of the cap.
      k_min, k_max: 1 ≤ K_min ≤ K_max ≤ M, static.

    Returns:
      A `Discrepancy`.

    Raises:
      ValueError, UserError: as `local_discrepancy`; τ or a K out of its range.

    Example:
      >>> embeddings = jnp.array([[1.0, 0.0]])
      >>> candidates = jnp.array([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
      >>> local_discrepancy_cap(embeddings, candidates, 0.5, k_min=1, k_max=3).count.tolist()  # two are inside
      [2]
    """
    checks.check_number("cap", cap, checks.Cosine)
    if not 1 <= k_min <= k_max:
        raise UserError(f"k_min: needs 1 <= k_min <= k_max, got {k_min} and {k_max}")
    nearest = _checked_nearest(
        embeddings, candidates, k_max, mask, labels, candidate_labels, same_above, tile, rows, name="k_max"
    )
    return _moments(nearest, jnp.isfinite(nearest) & ((nearest >= cap) | (jnp.arange(k_max) < k_min)))


def aligned_similarity(
    similarity: jax.Array, first: jax.Array, second: jax.Array, *, weight: float = 1.0
) -> jax.Array:
    """The discrepancy-alignment operator (arXiv:2103.01559; our reading).

        S(x1, x2) = ⟨x1, x2⟩ - λ/2 (d(x1) + d(x2))

    Symmetric in the two images; in [-2, 2] for λ = 1, where 2 S is the CSLS of cross-lingual retrieval. λ = 0 is the cosine,
    and where d is the same for all images, every ROC curve is that of the cosine. A threshold for cosines means nothing here.
    With squared distances the correction has the other sign: ‖x1 - x2‖² + λ (d(x1) + d(x2)) = 2 - 2 S.

    Args:
      similarity: [...] float, cosines.
      first, second: d(x1), d(x2), floats that broadcast against them; of the same embeddings (flip test, templates).
      weight: λ.

    Returns:
      [...] float32.

    Example:
      >>> [round(x, 2) for x in aligned_similarity(jnp.array([0.5, 0.5]), jnp.array([0.4, 0.0]), jnp.array([0.4, 0.0])).tolist()]
      [0.1, 0.5]
    """
    similarity, first, second = (jnp.asarray(x, jnp.float32) for x in (similarity, first, second))
    return similarity - 0.5 * weight * (first + second)


def pairwise_aligned_similarity(
    a: jax.Array, discrepancy_a: jax.Array, b: jax.Array, discrepancy_b: jax.Array, *, weight: float = 1.0
) -> jax.Array:
    """`aligned_similarity` of every row of `a` with every row of `b`.

    Args:
      a: [N, D] and b: [P, D] float, rows of unit length.
      discrepancy_a: [N] and discrepancy_b: [P] float, `local_discrepancy(...).mean` of the rows.
      weight: λ.

    Returns:
      [N, P] float32; at gallery scale take some rows of `a` at a time.

    Raises:
      AssertionError: shapes disagree.

    Example:
      >>> rows = jnp.array([[1.0, 0.0], [0.6, 0.8]])
      >>> [round(x, 2) for x in pairwise_aligned_similarity(rows, jnp.array([0.2, 0.0]), rows, jnp.array([0.2, 0.0]))[0].tolist()]
      [0.8, 0.5]
    """
    chex.assert_rank([a, b, discrepancy_a, discrepancy_b], [2, 2, 1, 1])
    chex.assert_equal_shape_suffix([a, b], 1, custom_message="a and b differ in width")
    chex.assert_equal_shape_prefix([a, discrepancy_a], 1, custom_message="a and discrepancy_a differ")
    chex.assert_equal_shape_prefix([b, discrepancy_b], 1, custom_message="b and discrepancy_b differ")
    return aligned_similarity(
        search.dot_products(jnp.asarray(a), jnp.asarray(b)),
        discrepancy_a[:, None],
        jnp.asarray(discrepancy_b)[None],
        weight=weight,
    )


def adaptive_snorm(
    similarity: jax.Array,
    first_mean: jax.Array,
    first_deviation: jax.Array,
    second_mean: jax.Array,
    second_deviation: jax.Array,
    *,
    eps: float = 1e-4,
) -> jax.Array:
    """Adaptive s-norm of speaker verification, a baseline: the same statistics, but in units of their deviation.

        S = ½ [ (⟨x1, x2⟩ - d(x1)) / σ(x1) + (⟨x1, x2⟩ - d(x2)) / σ(x2) ]

    Args:
      similarity: [...] float.
      first_mean, first_deviation, second_mean, second_deviation: floats that broadcast against it, of both images.
      eps: floor of σ, > 0.

    Returns:
      [...] float32.

    Raises:
      UserError: eps ≤ 0.

    Example:
      >>> round(float(adaptive_snorm(jnp.float32(0.5), 0.3, 0.1, 0.1, 0.2)), 3)  # ½ (0.2 / 0.1 + 0.4 / 0.2)
      2.0
    """
    checks.check_number("eps", eps, checks.Positive)
    similarity, m1, s1, m2, s2 = (
        jnp.asarray(x, jnp.float32)
        for x in (similarity, first_mean, first_deviation, second_mean, second_deviation)
    )
    return 0.5 * ((similarity - m1) / jnp.maximum(s1, eps) + (similarity - m2) / jnp.maximum(s2, eps))


def gallery_similarity(
    probes: jax.Array,
    gallery: jax.Array,
    gallery_discrepancy: jax.Array,
    *,
    k: int = 50,
    weight: float = 1.0,
    tile: int = TILE,
    rows: int = ROWS,
) -> jax.Array:
    """Scores of unknown probes against a gallery that is its own source of support sets (design).

    The entry that a probe is compared with may be the same person, so it is left out of the probe's support set:

        d_g(x) = mean of the K largest ⟨x, g'⟩, g' ≠ g,       S(x, g) = ⟨x, g⟩ - λ/2 (d_g(x) + d(g))

    Only the K + 1 nearest entries of a probe are needed: where g is among the first K, the next one takes its place.

    Args:
      probes: [N, D] float, rows of unit length.
      gallery: [G, D] float, rows of unit length, one per person.
      gallery_discrepancy: d(g) [G], computed at enrolment: `local_discrepancy(gallery, gallery, labels=i, candidate_labels=i)`
        with `i = arange(G)` leaves each entry out of its own support set.
      k: K in [1, G - 1], static.
      weight: λ.
      tile, rows: as in `local_discrepancy`.

    Returns:
      [N, G] float32: take some probes at a time where both are large.

    Raises:
      ValueError, UserError: as `local_discrepancy`; a gallery of fewer than K + 1 entries.

    Example:
      >>> gallery = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
      >>> ids = jnp.arange(3)
      >>> crowd = local_discrepancy(gallery, gallery, k=1, labels=ids, candidate_labels=ids).mean
      >>> [round(x, 2) for x in gallery_similarity(gallery[:1], gallery, crowd, k=1)[0].tolist()]
      [0.2, -0.1, -0.8]
    """
    if k >= len(gallery):
        raise UserError(f"k: needs at most the other {len(gallery) - 1} entries of the gallery, got {k}")
    nearest = _checked_nearest(probes, gallery, k + 1, None, None, None, None, tile, rows)
    chex.assert_shape(gallery_discrepancy, (len(gallery),))
    similarity = search.dot_products(jnp.asarray(probes), jnp.asarray(gallery))
    total = nearest[:, :k].sum(1, keepdims=True)
    # Two products of the same rows may differ in the last bits. Within that of the K-th either answer gives the same sum.
    among = similarity >= nearest[:, k - 1 : k] - 1e-6
    own = jnp.where(among, total + nearest[:, k:] - similarity, total) / k
    return aligned_similarity(similarity, own, jnp.asarray(gallery_discrepancy)[None], weight=weight)


def discrepancy_weight(labeled, discrepancy) -> float:
    """How much of a discrepancy to subtract, from images whose true neighbors are known (design).

        λ = cov(d*, d) / var(d),  clipped to [0, 1]

    The slope of the line that predicts d* from d: 1 where the candidates tell the crowd as the people themselves do, 0 where d
    says nothing of it, or everywhere the same. Candidates from the wrong distribution then cost nothing.

    Args:
      labeled: d* [N] float, discrepancies among labeled images of other people.
      discrepancy: d [N] float, of the same images among the candidates; rows that are not finite do not count.

    Returns:
      λ in [0, 1].

    Raises:
      ValueError: shapes differ or are not [N].

    Example:
      >>> round(discrepancy_weight([0.2, 0.4, 0.6], [0.1, 0.5, 0.9]), 3)
      0.5
    """
    labeled, discrepancy = (np.asarray(x, np.float64) for x in (labeled, discrepancy))
    if labeled.ndim != 1 or labeled.shape != discrepancy.shape:
        raise ValueError(
            f"labeled, discrepancy: need one shape [N], got {labeled.shape} and {discrepancy.shape}"
        )
    known = np.isfinite(labeled) & np.isfinite(discrepancy)
    labeled, discrepancy = labeled[known], discrepancy[known]
    # In float32 the discrepancies of one constant differ in their last bits.
    if not len(labeled) or np.ptp(discrepancy) <= 1e-6:
        return 0.0
    deviation = discrepancy - discrepancy.mean()
    slope = (labeled - labeled.mean()) @ deviation / (deviation @ deviation)
    return float(np.clip(slope, 0.0, 1.0))


def mean_pair_cosine(rows) -> float:
    """Mean cosine of all pairs of unit vectors [M, D]: about 0 for strangers, near 1 for a generator that makes one face.

        ( |Σ v|² - Σ |v|² ) / (M (M - 1))

    Raises:
      ValueError: not a matrix. UserError: fewer than two rows, or values that are not finite.

    Example:
      >>> mean_pair_cosine([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # pairs of 0, 0 and 1
      0.3333333333333333
    """
    rows = checks.real_array("rows", rows, ndim=2).astype(np.float64)
    if len(rows) < 2:
        raise UserError(f"rows: pairs need at least two, got {len(rows)}")
    total = rows.sum(0)
    return float((total @ total - np.square(rows).sum()) / (len(rows) * (len(rows) - 1)))


def filter_candidates(
    candidates,
    scores=None,
    *,
    min_score: float = 0.9,
    duplicates_above: float = 0.8,
    block: int = 2048,
) -> np.ndarray:
    """Which synthetic faces to keep: those that a detector takes for faces and that repeat no earlier one (design).

    Candidates are looked at in order; one is kept unless its similarity with one that was kept before exceeds
    `duplicates_above`.

    Args:
      candidates: [M, D] float, rows of unit length.
      scores: [M] float, detection scores; every candidate counts as a face unless given.
      min_score: smallest score of a face.
      duplicates_above: cosine in [-1, 1]; 1 keeps all.
      block: candidates worked on at a time; on the host.

    Returns:
      [M] bool.

    Raises:
      ValueError: shapes disagree.
      UserError: no candidate, a row that is not finite or not of unit length, or a cosine out of its range.

    Example:
      >>> candidates = np.array([[1.0, 0.0], [0.96, 0.28], [0.0, 1.0]])
      >>> filter_candidates(candidates).tolist()  # the second repeats the first
      [True, False, True]
    """
    rows = checks.real_array("candidates", candidates, ndim=2).astype(np.float32)
    checks.check_unit_rows("candidates", rows)
    checks.check_number("duplicates_above", duplicates_above, checks.Cosine)
    keep = np.ones(len(rows), bool)
    if scores is not None:
        scores = checks.real_array("scores", scores, ndim=1)
        if scores.shape != keep.shape:
            raise ValueError(f"scores: needs shape {keep.shape}, got {scores.shape}")
        keep = scores >= min_score
    if duplicates_above >= 1:
        return keep
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        for before in range(0, start, block):
            earlier = rows[before : before + block][keep[before : before + block]]
            if len(earlier):
                keep[part] &= (rows[part] @ earlier.T).max(1) <= duplicates_above
        similar = rows[part] @ rows[part].T > duplicates_above
        for index in range(len(similar)):
            if keep[start + index]:
                keep[start + index + 1 : start + len(similar)] &= ~similar[index, index + 1 :]
    return keep


def group_false_accepts(scores, groups, far: float, *, pooled=None) -> GroupRates:
    """How differently groups of people fare at one threshold (design).

        t = the threshold of `tar_at_far` for all impostor pairs,     FAR_g = fraction of the impostor pairs of g with score > t

    A group without a false accept counts as half of one: log10 0 would hide every other difference.

    Args:
      scores: [I] float, impostor scores of pairs inside one group.
      groups: [I] integers, whose they are.
      far: pooled target in (0, 1).
      pooled: [J] float, the impostor scores that the threshold is taken from; `scores` unless given.

    Returns:
      A `GroupRates`; with one group its spread is 0.

    Raises:
      ValueError: shapes disagree. UserError: no score, one that is not finite, or a target outside (0, 1).

    Example:
      >>> scores, groups = np.array([0.9, 0.8, 0.2, 0.1]), np.array([0, 0, 1, 1])
      >>> group_false_accepts(scores, groups, far=0.25).rates.tolist()  # the one false accept is in group 0
      [0.5, 0.0]
    """
    scores = checks.real_array("scores", scores, ndim=1)
    groups = checks.integer_array("groups", groups, len(scores))
    far = float(checks.rates("far", far))
    pooled = scores if pooled is None else checks.real_array("pooled", pooled, ndim=1)
    position = len(pooled) - 1 - int(numbers.allowed_count(np.asarray(far), len(pooled)))
    threshold = np.partition(pooled, position)[position]
    names, number = np.unique(groups, return_inverse=True)
    totals = np.bincount(number)
    accepted = np.bincount(number, scores > threshold)
    logs = np.log10(np.maximum(accepted, 0.5) / totals)
    return GroupRates(float(threshold), accepted / totals, names, float(logs.max() - logs.min()))


def _checked_nearest(
    embeddings, candidates, k, mask, labels, candidate_labels, same_above, tile, rows, *, name="k"
) -> jax.Array:
    """[N, k] float32 largest allowed similarities, falling; -inf past those there are."""
    embeddings, candidates = jnp.asarray(embeddings), jnp.asarray(candidates)
    if embeddings.ndim != 2 or candidates.ndim != 2 or embeddings.shape[1] != candidates.shape[1]:
        raise ValueError(
            f"embeddings and candidates: need shapes [N, D] and [M, D], got {embeddings.shape} and {candidates.shape}"
        )
    count, available = len(embeddings), len(candidates)
    if available == 0 or count == 0:
        raise UserError(
            f"candidates: needs embeddings and at least one candidate, got {count} and {available}"
        )
    if not 1 <= k <= available:
        raise UserError(f"{name}: needs 1 to the {available} candidates there are, got {k}")
    if tile < 1 or rows < 1:
        raise UserError(f"tile: needs at least 1, got {tile} and rows of {rows}")
    if same_above is not None and not isinstance(same_above, jax.core.Tracer) and math.isnan(same_above):
        raise UserError("same_above: needs a cosine, got nan")
    if (labels is None) != (candidate_labels is None):
        missing = "labels" if labels is None else "candidate_labels"
        raise UserError(f"{missing}: needed to leave out the candidates of the same person, got none")
    for what, values, shape in (
        ("labels", labels, (count,)),
        ("candidate_labels", candidate_labels, (available,)),
        ("mask", mask, (count, available)),
    ):
        if values is not None and np.shape(values) != shape:
            raise ValueError(f"{what}: needs shape {shape}, got {np.shape(values)}")
    for what, values in (("embeddings", embeddings), ("candidates", candidates)):
        if not jnp.issubdtype(values.dtype, jnp.floating):
            raise ValueError(f"{what}: needs a float dtype, got {values.dtype}")
        checks.check_unit_rows(what, values)
    return search.nearest(
        embeddings,
        candidates,
        k,
        mask=mask,
        labels=labels,
        candidate_labels=candidate_labels,
        at_most=same_above,
        query_block=rows,
        candidate_block=tile,
    )[0]


def _moments(nearest: jax.Array, inside: jax.Array) -> Discrepancy:
    """Mean, deviation and number of the similarities [N, k] that are inside [N, k]; NaN where none is."""
    count = inside.sum(1)
    size = jnp.maximum(count, 1)
    mean = jnp.where(inside, nearest, 0.0).sum(1) / size
    variance = (
        jnp.where(inside, jnp.square(jnp.where(inside, nearest, 0.0) - mean[:, None]), 0.0).sum(1) / size
    )
    # A support set of one has no deviation; its root would have an infinite gradient.
    deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
    some = count > 0
    return Discrepancy(
        jnp.where(some, mean, jnp.nan), jnp.where(some, deviation, jnp.nan), count.astype(jnp.int32)
    )
