"""Many images of one person as one template (IJB-B, IJB-C).

The images of one medium (a video's frames) are averaged before the media are added up: a long video counts as
one photograph does. Features come un-normalized, their length being a quality weight.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np

from jaxface import checks
from jaxface.errors import UserError
from jaxface.metrics.recognition.similarity import pair_similarities
from jaxface.metrics.recognition.verification import normalize


class Templates(NamedTuple):
    """Attributes: embeddings [T, D] float32 unit vectors; ids [T] the template ids, rising."""

    embeddings: np.ndarray
    ids: np.ndarray


def aggregate_templates(features, template_ids, media_ids, weights=None) -> Templates:
    """Pools image features into templates.

        v_m = mean over the images i of medium m of w_i f_i
        e_T = sum over the media m of T of v_m,   normalized to e_T / |e_T|

    A medium is a (template id, media id) pair: the same media id in another template is another medium.
    Whether the media are summed or averaged makes no difference after normalization.

    Args:
      features: [N, D] float, un-normalized, e.g. `flip_embeddings(..., unit=False)`.
      template_ids, media_ids: [N] integers.
      weights: [N] float >= 0, e.g. detector scores; ones unless given.

    Raises:
      ValueError: shapes disagree, or ids that are not integers.
      UserError: no images, a value that is not finite, a negative weight, a template whose weights sum to
        zero or whose pooled feature is the zero vector.

    Example:
      >>> features = np.array([[3.0, 0.0], [0.0, 4.0]])
      >>> templates = aggregate_templates(features, [9, 9], [0, 1])
      >>> [round(x, 2) for x in templates.embeddings[0].tolist()], templates.ids.tolist()
      ([0.6, 0.8], [9])
    """
    features = checks.real_array("features", features, ndim=2).astype(np.float32, copy=False)
    count = len(features)
    template_ids = checks.integer_array("template_ids", template_ids, count)
    media_ids = checks.integer_array("media_ids", media_ids, count)
    weights = np.ones(count) if weights is None else checks.real_array("weights", weights, ndim=1)
    if weights.shape != (count,):
        raise ValueError(f"weights: needs shape ({count},), got {weights.shape}")
    if (weights < 0).any():
        raise UserError(f"weights: need values >= 0, got {weights.min():g}")
    ids, template = np.unique(template_ids, return_inverse=True)
    totals = np.bincount(template, weights=weights)
    if not totals.all():
        raise UserError(
            f"weights: those of template {ids[np.argmin(totals)]} sum to zero, it needs a positive one"
        )
    _, media_number = np.unique(media_ids, return_inverse=True)
    media, image_medium = np.unique(template * (media_number.max() + 1) + media_number, return_inverse=True)
    media_template = media // (media_number.max() + 1)
    share = weights / np.bincount(image_medium)[image_medium]  # w_i / number of images of its medium
    pooled = np.asarray(
        _pool(
            features,
            share.astype(np.float32),
            image_medium,
            media_template,
            media=len(media),
            templates=len(ids),
        )
    )
    lengths = np.linalg.norm(pooled, axis=1)
    if not np.isfinite(lengths).all() or not lengths.all():
        worst = ids[np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))[0]]
        raise UserError(f"features: those of template {worst} pool to a vector without direction")
    return Templates(np.asarray(normalize(pooled)), ids)


@functools.partial(jax.jit, static_argnames=("media", "templates"))
def _pool(features, share, image_medium, media_template, *, media: int, templates: int) -> jax.Array:
    per_medium = jax.ops.segment_sum(features * share[:, None], image_medium, num_segments=media)
    return jax.ops.segment_sum(per_medium, media_template, num_segments=templates)


def template_pair_similarities(templates: Templates, first, second) -> np.ndarray:
    """Cosines [P] float32 of template pairs, given by their ids [P] and [P] (the 1:1 protocol).

    Raises:
      ValueError: shapes differ. UserError: an id that no template has.

    Example:
      >>> templates = aggregate_templates(np.array([[3.0, 0.0], [0.0, 4.0], [3.0, 4.0]]), [9, 5, 5], [0, 0, 1])
      >>> [round(x, 2) for x in template_pair_similarities(templates, [9, 9], [9, 5]).tolist()]
      [1.0, 0.35]
    """
    columns = []
    for name, ids in (("first", np.asarray(first)), ("second", np.asarray(second))):
        place = np.minimum(np.searchsorted(templates.ids, ids), len(templates.ids) - 1)
        missing = templates.ids[place] != ids
        if missing.any():
            raise UserError(f"{name}: {missing.sum()} ids have no template, the first is {ids[missing][0]}")
        columns.append(place)
    if columns[0].ndim != 1 or columns[0].shape != columns[1].shape:
        raise ValueError(f"first, second: need one shape [P], got {columns[0].shape} and {columns[1].shape}")
    return pair_similarities(templates.embeddings, np.stack(columns, axis=1))
