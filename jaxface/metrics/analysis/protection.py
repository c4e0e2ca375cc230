"""How often a mask on a photograph keeps the person in it from being found (the face-cloak protocols of arXiv:2205.11981).

Methods: cloak
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxface import checks
from jaxface.errors import UserError
from jaxface.metrics.recognition.similarity import similarity_blocks
from jaxface.metrics.recognition.verification import normalize


def protection_success(masked, clean, distractors, ks: Sequence[int] = (1, 5)) -> dict[int, float]:
    """Protection success rate, PSR@k: share of masked queries whose clean mate is not among the k most similar of a gallery.

        PSR@k = 1 - 1/Q · Σ_{i, a ≠ b} [ |{d : ⟨q_ia, z_d⟩ ≥ ⟨q_ia, g_ib⟩}| < k ],        Q = I m (m - 1)

    Query q_ia is the masked image a of person i; the gallery holds the clean image b of that person and every distractor. A mate
    counts as found only strictly above the k-th distractor (design). Distractors are processed in blocks, of which the best
    max k per query are kept.

    Args:
      masked: [I, m, D] float embeddings of the masked test images (normalized here).
      clean: [I, m, D], of the same images without a mask; m ≥ 2.
      distractors: [G, D], nobody of the I people among them.
      ks: ranks, each in [1, G + 1]; at G + 1 nobody is protected.

    Returns:
      {k: PSR@k in [0, 1]}, falling with k.

    Raises:
      ValueError: shapes disagree.
      UserError: fewer than two images per person, a rank out of its range, a zero vector, empty or not finite input.

    Example:
      >>> masked = np.array([[[1.0, 0.0], [1.0, 0.0]]])  # one person, two photographs
      >>> clean, distractors = np.array([[[0.0, 1.0], [0.0, 1.0]]]), np.array([[0.8, 0.6]])
      >>> protection_success(masked, clean, distractors, ks=(1, 2))
      {1: 1.0, 2: 0.0}
    """
    masked, clean = checks.real_array("masked", masked, ndim=3), checks.real_array("clean", clean, ndim=3)
    distractors = checks.real_array("distractors", distractors, ndim=2)
    if masked.shape != clean.shape or masked.shape[2] != distractors.shape[1]:
        raise ValueError(
            "masked, clean, distractors: need shapes [I, m, D], [I, m, D] and [G, D], "
            f"got {masked.shape}, {clean.shape} and {distractors.shape}"
        )
    people, images, size = masked.shape
    if images < 2:
        raise UserError(f"masked: needs at least 2 test images per person, got {images}")
    ks = checks.integer_array("ks", ks).tolist()
    if not ks or min(ks) < 1 or max(ks) > len(distractors) + 1:
        raise UserError(
            f"ks: needs ranks from 1 to {len(distractors) + 1} (distractors + 1), got {', '.join(map(str, ks))}"
        )
    for name, values in (("masked", masked), ("clean", clean), ("distractors", distractors)):
        if not np.linalg.norm(values, axis=-1).all():
            raise UserError(f"{name}: need embeddings that are not zero")
    queries, mates, others = (
        np.asarray(normalize(jnp.asarray(x.reshape(-1, size)))) for x in (masked, clean, distractors)
    )

    num_best = min(max(ks), len(others))
    nearest = np.full((len(queries), num_best), -np.inf, np.float32)
    for rows, _, scores in similarity_blocks(queries, others):
        pool = np.concatenate([nearest[rows], scores], axis=1)
        nearest[rows] = np.partition(pool, pool.shape[1] - num_best, axis=1)[:, -num_best:]
    nearest = np.sort(nearest, axis=1)[:, ::-1]

    # By the same blocked product as the distractors, so that a copy of the mate among them ties with it.
    hits = np.zeros(len(ks), np.int64)
    for rows, columns, scores in similarity_blocks(queries, mates):
        row, column = np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
        pairs = (row[:, None] // images == column // images) & (row[:, None] != column)
        r, c = np.nonzero(pairs)
        for index, k in enumerate(ks):
            if k > len(others):
                hits[index] += len(r)
            else:
                hits[index] += np.count_nonzero(scores[r, c] > nearest[row[r], k - 1])
    total = people * images * (images - 1)
    return {k: 1 - int(count) / total for k, count in zip(ks, hits, strict=True)}
