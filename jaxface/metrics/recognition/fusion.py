"""Score-level fusion of two modalities of a face, RGB and depth, by how far each can be trusted (arXiv:2403.06529).

Each image of either modality has a unit embedding, and the two together one number, the confidence logit a = l_r - l_d: it is
all that fusion needs to know about quality. A missing modality is an embedding of zeros and a = ±15 (`missing_modality`).
"""

import functools
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxface import checks, search
from jaxface.errors import UserError
from jaxface.metrics.recognition.similarity import similarity_blocks

LIMIT = 15.0
"""Largest confidence logit; a modality against which an image says so has a weight below 1e-6."""

Spread = tuple[float, float]


class RgbdTemplates(NamedTuple):
    """What is stored of N images: unit embeddings `rgb` [N, D_r] and `depth` [N, D_d], confidence logits `logit` [N]."""

    rgb: jax.Array
    depth: jax.Array
    logit: jax.Array


def confidence_logit(logits: jax.Array) -> jax.Array:
    """a = clip(l_r - l_d, -15, 15) of confidence logits l [..., 2], RGB first: [...] float32; σ(a) is the confidence in RGB.

    Example:
      >>> confidence_logit(jnp.array([[2.0, 1.0], [0.0, 40.0]])).tolist()
      [1.0, -15.0]
    """
    if logits.shape[-1:] != (2,):
        raise ValueError(f"logits: needs shape [..., 2], got {logits.shape}")
    logits = jnp.asarray(logits, jnp.float32)
    return jnp.clip(logits[..., 0] - logits[..., 1], -LIMIT, LIMIT)


def missing_modality(templates: RgbdTemplates, has_rgb, has_depth) -> RgbdTemplates:
    """Templates of images of which some have one modality only.

        a = -15 and u_r = 0 where RGB is missing;        a = +15 and u_d = 0 where depth is

    Args:
      templates: of N images; what stands for a missing modality does not matter.
      has_rgb, has_depth: [N] bool.

    Raises:
      ValueError: shapes disagree.
      UserError: an image without either.

    Example:
      >>> images = RgbdTemplates(jnp.eye(2), jnp.eye(2), jnp.zeros(2))
      >>> missing_modality(images, [True, False], [True, True])[2].tolist()  # the second has depth alone
      [0.0, -15.0]
    """
    count = len(templates.logit)
    has_rgb, has_depth = (
        checks.truth_array(name, values, count)
        for name, values in (("has_rgb", has_rgb), ("has_depth", has_depth))
    )
    if not (has_rgb | has_depth).all():
        raise UserError(
            f"has_rgb, has_depth: an image needs one of the two, image {int((~(has_rgb | has_depth)).argmax())} has neither"
        )
    logit = jnp.where(has_rgb, jnp.where(has_depth, templates.logit, LIMIT), -LIMIT)
    return RgbdTemplates(
        jnp.where(has_rgb[:, None], templates.rgb, 0.0),
        jnp.where(has_depth[:, None], templates.depth, 0.0),
        logit,
    )


def pair_weight(query: jax.Array, gallery: jax.Array) -> jax.Array:
    """Weight of the RGB score of every pair: a modality counts only if it is good in both images (design).

        w_ij = c^i_r c^j_r / (c^i_r c^j_r + c^i_d c^j_d) = σ(a_i + a_j)

    A modality that is missing in one image (|a| = 15) has no weight whatever the other image says: the sum is held at ±15
    there. Where one image has RGB alone and the other depth alone nothing can be compared; w = 1/2, of two scores of 0.

    Args:
      query: [Q] float, confidence logits in [-15, 15]; larger ones count as 15.
      gallery: [G] float.

    Returns:
      [Q, G] float32 in (0, 1); symmetric where query and gallery are the same.

    Raises:
      AssertionError: not vectors. UserError: an empty gallery.

    Example:
      >>> [round(x, 3) for x in pair_weight(jnp.array([2.0, -2.0]), jnp.array([2.0])).ravel().tolist()]
      [0.982, 0.5]
    """
    chex.assert_rank([query, gallery], 1, custom_message="query must be [Q] and gallery [G]")
    if not gallery.shape[0]:
        raise UserError("gallery: needs at least one image, got none")
    first, second = (
        jnp.clip(jnp.asarray(x, jnp.float32), -LIMIT, LIMIT) for x in (query[:, None], gallery[None, :])
    )
    total = first + second
    high, low = jnp.maximum(first, second) >= LIMIT, jnp.minimum(first, second) <= -LIMIT
    total = jnp.where(high & ~low, jnp.maximum(total, LIMIT), total)
    total = jnp.where(low & ~high, jnp.minimum(total, -LIMIT), total)
    return jax.nn.sigmoid(total)


def fuse_scores(
    rgb_scores: jax.Array,
    depth_scores: jax.Array,
    query: jax.Array,
    gallery: jax.Array | None = None,
    *,
    spread: Spread = (1.0, 1.0),
) -> jax.Array:
    """Fused scores of all pairs (arXiv:2403.06529; the weights are ours, design).

        s_ij = w_ij s^r_ij + (1 - w_ij) s^d_ij,        w of `pair_weight`

    Args:
      rgb_scores, depth_scores: [Q, G] float in [-1, 1], cosines.
      query: [Q] float, confidence logits.
      gallery: [G] float; None weights by the query's confidences alone, as if the gallery trusted both alike.
      spread: (σ_r, σ_d) by which the scores are divided first (`impostor_spread`), times √(σ_r σ_d).

    Returns:
      [Q, G] float32 between the two (equalized) scores.

    Raises:
      AssertionError: shapes disagree. UserError: an empty gallery, or a spread that is not positive.

    Example:
      >>> rgb, depth = jnp.array([[0.9]]), jnp.array([[0.1]])
      >>> round(float(fuse_scores(rgb, depth, jnp.array([3.0]), jnp.array([3.0]))[0, 0]), 2)  # both images trust RGB
      0.9
    """
    chex.assert_rank([rgb_scores, depth_scores], 2, custom_message="scores must be [Q, G]")
    chex.assert_equal_shape([rgb_scores, depth_scores], custom_message="rgb_scores and depth_scores differ")
    gallery = jnp.zeros(rgb_scores.shape[1]) if gallery is None else gallery
    if query.shape != rgb_scores.shape[:1] or gallery.shape != rgb_scores.shape[1:]:
        raise ValueError(
            f"query, gallery: need shapes {rgb_scores.shape[:1]} and {rgb_scores.shape[1:]}, "
            f"got {query.shape} and {gallery.shape}"
        )
    weight = pair_weight(query, gallery)
    rgb, depth = equalize(rgb_scores, depth_scores, spread)
    # Rounding may leave the interval by an ulp.
    return jnp.clip(depth + weight * (rgb - depth), jnp.minimum(rgb, depth), jnp.maximum(rgb, depth))


def equalize(rgb_scores: jax.Array, depth_scores: jax.Array, spread: Spread) -> tuple[jax.Array, jax.Array]:
    """Scores of both modalities with one spread: s^r √(σ_r σ_d) / σ_r and s^d √(σ_r σ_d) / σ_d, float32.

    Raises:
      UserError: (where the values are known) a spread that is not positive.

    Example:
      >>> rgb, depth = equalize(jnp.array([0.4]), jnp.array([0.1]), (0.4, 0.1))
      >>> round(float(rgb[0]), 2), round(float(depth[0]), 2)  # each is one of its spreads
      (0.2, 0.2)
    """
    for sigma in spread:
        if not isinstance(sigma, jax.core.Tracer) and not (np.isfinite(sigma) and sigma > 0):
            raise UserError(f"spread: needs two positive numbers, got {sigma}")
    ratio = jnp.sqrt(jnp.asarray(spread[1], jnp.float32) / jnp.asarray(spread[0], jnp.float32))
    return jnp.asarray(rgb_scores, jnp.float32) * ratio, jnp.asarray(depth_scores, jnp.float32) / ratio


def combine_scores(
    rgb_scores: jax.Array, depth_scores: jax.Array, rule: Literal["rgb", "depth", "sum", "max"] | float
) -> jax.Array:
    """Scores of both modalities under a rule that is the same for all images, the baselines of `fuse_scores`.

    Args:
      rgb_scores, depth_scores: [...] float, equalized.
      rule: "rgb" or "depth" alone, their mean ("sum"), their maximum, or w of w s^r + (1 - w) s^d.

    Returns:
      [...] float.

    Raises:
      UserError: another rule, or w outside [0, 1].

    Example:
      >>> rgb, depth = jnp.array([0.8, 0.2]), jnp.array([0.4, 0.6])
      >>> [round(x, 2) for x in combine_scores(rgb, depth, "sum").tolist()]
      [0.6, 0.4]
      >>> [round(x, 2) for x in combine_scores(rgb, depth, 0.75).tolist()]
      [0.7, 0.3]
    """
    if rule == "max":
        return jnp.maximum(rgb_scores, depth_scores)
    weights = {"rgb": 1.0, "depth": 0.0, "sum": 0.5}
    if isinstance(rule, str) and rule not in weights:
        raise UserError(f"rule: needs one of {', '.join(weights)}, max or a number, got {rule!r}")
    weight = weights[rule] if isinstance(rule, str) else rule
    checks.check_number("rule", weight, checks.Fraction)
    return weight * rgb_scores + (1 - weight) * depth_scores


def impostor_spread(embeddings, labels, *, most: int = 8192) -> float:
    """Standard deviation of the cosines of two people, on training data: what `fuse_scores` divides by.

    Args:
      embeddings: [N, D] float of unit rows.
      labels: [N] integers.
      most: rows that are looked at, evenly spread; their similarities are made in blocks.

    Raises:
      ValueError: shapes disagree. UserError: not finite, not of length 1, one person only, or no spread at all.

    Example:
      >>> round(float(impostor_spread(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), [0, 1, 2])), 3)  # of 0, 0.6 and 0.8
      0.34
    """
    embeddings = checks.unit_rows("embeddings", embeddings)
    labels = checks.integer_array("labels", labels, len(embeddings))
    chosen = np.arange(0, len(labels), -(-len(labels) // most))
    embeddings, labels = embeddings[chosen], labels[chosen]
    count, total, squares = 0, 0.0, 0.0
    for block in similarity_blocks(embeddings):
        other = labels[block.rows, None] != labels[None, block.columns]
        scores = block.scores[other].astype(np.float64)
        count, total, squares = count + scores.size, total + scores.sum(), squares + np.square(scores).sum()
    if not count:
        raise UserError("labels: the spread of impostor scores needs at least two people, got one")
    spread = float(np.sqrt(max(squares / count - (total / count) ** 2, 0.0)))
    if spread < 1e-6:
        raise UserError("embeddings: the scores of different people are all the same; nothing was learned")
    return spread


def fused_similarities(
    probes: RgbdTemplates,
    gallery: RgbdTemplates,
    *,
    probe_only: bool = False,
    spread: Spread = (1.0, 1.0),
    block: int = 1024,
) -> jax.Array:
    """[Q, G] float32 `fuse_scores` of templates; the scores of one modality are never there as a whole.

    Args:
      probes: Q images. gallery: G images.
      probe_only: weights of the probe's confidences alone.
      spread: as `fuse_scores`.
      block: probes at a time.

    Raises:
      ValueError: shapes disagree. UserError: as `fused_search`.

    Example:
      >>> images = RgbdTemplates(jnp.eye(2), jnp.eye(2), jnp.zeros(2))
      >>> fused_similarities(images, images).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    options = dict(probe_only=probe_only, block=_check_search(probes, gallery, block))
    return _similarities(_device(probes), _device(gallery), jnp.asarray(spread, jnp.float32), **options)


def fused_search(
    probes: RgbdTemplates,
    gallery: RgbdTemplates,
    *,
    k: int = 1,
    probe_only: bool = False,
    spread: Spread = (1.0, 1.0),
    block: int = 1024,
) -> tuple[jax.Array, jax.Array]:
    """The k most similar images of a large gallery for each probe; no [Q, G] is held.

    Args:
      probes, gallery, probe_only, spread, block: as `fused_similarities`.
      k: answers per probe, in [1, G].

    Returns:
      (scores [Q, k] float32 in falling order, positions in the gallery [Q, k] int32); ties go to the lower position.

    Raises:
      ValueError: shapes disagree.
      UserError: no probe, an empty gallery, templates that are not finite or neither of length 1 nor zero, k out of its range.

    Example:
      >>> images = RgbdTemplates(jnp.eye(3), jnp.eye(3), jnp.zeros(3))
      >>> scores, ids = fused_search(images, images, k=1)
      >>> ids.ravel().tolist()
      [0, 1, 2]
    """
    options = dict(probe_only=probe_only, block=_check_search(probes, gallery, block))
    checks.check_number("k", k, checks.Integers(1, len(gallery.logit)))
    return _search(_device(probes), _device(gallery), jnp.asarray(spread, jnp.float32), k=k, **options)


def rank1(scores, probe_labels, gallery_labels) -> float:
    """Fraction of probes whose most similar gallery image is of their own person; ties go to the lowest gallery index.

    With several images per person in the gallery this takes the maximum over them.

    Args:
      scores: [Q, G] float. probe_labels: [Q] integers. gallery_labels: [G] integers.

    Raises:
      ValueError: shapes disagree. UserError: no probe, an empty gallery, or a score that is not finite.

    Example:
      >>> rank1(np.array([[0.9, 0.2], [0.8, 0.3]]), [7, 8], [7, 8])
      0.5
    """
    scores = checks.real_array("scores", scores, ndim=2)
    probe_labels = checks.integer_array("probe_labels", probe_labels, scores.shape[0])
    gallery_labels = checks.integer_array("gallery_labels", gallery_labels, scores.shape[1])
    return float((gallery_labels[scores.argmax(axis=1)] == probe_labels).mean())


def _device(templates: RgbdTemplates) -> RgbdTemplates:
    return RgbdTemplates(*(jnp.asarray(x, jnp.float32) for x in templates))


def _check_search(probes: RgbdTemplates, gallery: RgbdTemplates, block: int) -> int:
    """The block to use; refuses templates that cannot be compared."""
    checks.check_number("block", block, checks.AtLeast(1))
    for name, templates in (("probes", probes), ("gallery", gallery)):
        if not len(templates.logit):
            raise UserError(f"{name}: needs at least one image, got none")
        for part in ("rgb", "depth"):
            checks.unit_rows(f"{name}.{part}", getattr(templates, part))
        checks.real_array(f"{name}.logit", templates.logit, ndim=1)
        counts = {len(part) for part in templates}
        if len(counts) > 1:
            raise ValueError(f"{name}: rgb, depth and logit need one length, got {sorted(counts)}")
    for part in ("rgb", "depth"):
        widths = [np.shape(getattr(templates, part))[1] for templates in (probes, gallery)]
        if widths[0] != widths[1]:
            raise ValueError(
                f"probes, gallery: need {part} embeddings of one size, got {widths[0]} and {widths[1]}"
            )
    return min(block, len(probes.logit))


def _in_blocks(function, probes: RgbdTemplates, block: int):
    """`function` of the templates of `block` probes, mapped over all of them."""
    count = len(probes.logit)
    blocks = -(-count // block)
    padded = jax.tree.map(
        lambda x: jnp.pad(x, ((0, blocks * block - count), *((0, 0),) * (x.ndim - 1))).reshape(
            blocks, block, *x.shape[1:]
        ),
        probes,
    )
    return jax.tree.map(lambda x: x.reshape(blocks * block, -1)[:count], jax.lax.map(function, padded))


def _fused(probes: RgbdTemplates, gallery: RgbdTemplates, spread, *, probe_only: bool) -> jax.Array:
    rgb, depth = (
        jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
        for a, b in ((probes.rgb, gallery.rgb), (probes.depth, gallery.depth))
    )
    return fuse_scores(rgb, depth, probes.logit, None if probe_only else gallery.logit, spread=spread)


@functools.partial(jax.jit, static_argnames=("probe_only", "block"))
def _similarities(probes, gallery, spread, *, probe_only: bool, block: int) -> jax.Array:
    return _in_blocks(
        lambda part: _fused(part, gallery, (spread[0], spread[1]), probe_only=probe_only), probes, block
    )


@functools.partial(jax.jit, static_argnames=("k", "probe_only", "block"))
def _search(probes, gallery, spread, *, k: int, probe_only: bool, block: int):
    if probe_only:
        gallery = gallery._replace(logit=jnp.zeros_like(gallery.logit))
    spreads = jnp.broadcast_to(spread, (len(probes.logit), 2))
    return search.nearest((probes, spreads), gallery, k, similarity=_fused_with_spreads, query_block=block)


def _fused_with_spreads(probes: tuple[RgbdTemplates, jax.Array], gallery: RgbdTemplates) -> jax.Array:
    templates, spreads = probes
    return _fused(templates, gallery, (spreads[:, :1], spreads[:, 1:]), probe_only=False)
