"""Who is on a face of few pixels? The closed-set protocols of TinyFace and SCface.

XQLFW and LFW at a reduced resolution are pair protocols: `verify` and `ten_fold_accuracy`.
"""

import numpy as np

from jaxface import checks
from jaxface.errors import UserError
from jaxface.metrics.recognition.similarity import similarity_blocks
from jaxface.metrics.recognition.verification import normalize


def labeled_ranks(probes, probe_labels, gallery, gallery_labels) -> np.ndarray:
    """Rank of each probe's best mate in a gallery with any number of images per person, ties against it (TinyFace).

        rank_i = 1 + #{g not of person y_i : S_ig >= max of S_ih over the h of person y_i},        S cosines

    A probe is a hit at rank k if any image of its person is among the k nearest: (rank <= k).mean() is the closed-set rate.
    The similarities are walked through in blocks, so that a gallery of 150,000 distractors needs no [P, G].

    Args:
      probes: [P, D] float, gallery: [G, D] float; embeddings, normalized here.
      probe_labels: [P] integers. gallery_labels: [G] integers; distractors carry labels that no probe has.

    Returns:
      [P] int64 from 1.

    Raises:
      ValueError: shapes disagree. UserError: empty or not finite, or a probe whose person is not in the gallery.

    Example:
      >>> labeled_ranks(np.array([[1.0, 0.0]]), [7], np.array([[0.8, 0.6], [1.0, 0.1], [0.0, 1.0]]), [7, 8, 7]).tolist()
      [2]
    """
    probes = np.asarray(normalize(checks.real_array("probes", probes, ndim=2)))
    gallery = np.asarray(normalize(checks.real_array("gallery", gallery, ndim=2)))
    probe_labels = checks.integer_array("probe_labels", probe_labels, len(probes))
    gallery_labels = checks.integer_array("gallery_labels", gallery_labels, len(gallery))
    missing = ~np.isin(probe_labels, gallery_labels)
    if missing.any():
        raise UserError(
            f"probe_labels: every probe needs its person in the gallery, {missing.sum()} of {len(probes)} have none"
        )
    best = np.full(len(probes), -np.inf, np.float32)
    for rows, columns, scores in similarity_blocks(probes, gallery):
        mates = probe_labels[rows, None] == gallery_labels[None, columns]
        np.maximum(best[rows], np.where(mates, scores, -np.inf).max(axis=1), out=best[rows])
    ranks = np.ones(len(probes), np.int64)
    for rows, columns, scores in similarity_blocks(probes, gallery):
        others = probe_labels[rows, None] != gallery_labels[None, columns]
        ranks[rows] += np.count_nonzero(others & (scores >= best[rows, None]), axis=1)
    return ranks


def rank1_by_distance(probes, probe_labels, distances, gallery, gallery_labels) -> dict[str, float]:
    """Rank-1 rate of the probes of each camera distance, and the mean over the distances (SCface).

    Args:
      probes, probe_labels, gallery, gallery_labels: as `labeled_ranks`; the gallery of SCface has one image per person.
      distances: [P], at which distance each probe was taken: names or numbers.

    Returns:
      "rank1@<distance>" for each distance, and "rank1", their mean (every distance counts alike).

    Raises:
      ValueError, UserError: as `labeled_ranks`.

    Example:
      >>> probes = np.array([[1.0, 0.1], [1.0, 0.2]])
      >>> rank1_by_distance(probes, [0, 1], ["near", "far"], np.eye(2), [0, 1])
      {'rank1@far': 0.0, 'rank1@near': 1.0, 'rank1': 0.5}
    """
    distances = np.asarray(distances)
    if distances.shape != np.shape(probe_labels):
        raise ValueError(f"distances: needs shape {np.shape(probe_labels)}, got {distances.shape}")
    hit = labeled_ranks(probes, probe_labels, gallery, gallery_labels) == 1
    rates = {f"rank1@{d}": float(hit[distances == d].mean()) for d in np.unique(distances)}
    return rates | {"rank1": float(np.mean(list(rates.values())))}
