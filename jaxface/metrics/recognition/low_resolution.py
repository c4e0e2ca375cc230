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
    probes, probe_labels, gallery, gallery_labels = _prepared(probes, probe_labels, gallery, gallery_labels)
    best = np.full(len(probes), -np.inf, np.float32)
    for rows, columns, scores in similarity_blocks(probes, gallery):
        mates = probe_labels[rows, None] == gallery_labels[None, columns]
        np.maximum(best[rows], np.where(mates, scores, -np.inf).max(axis=1), out=best[rows])
    ranks = np.ones(len(probes), np.int64)
    for rows, columns, scores in similarity_blocks(probes, gallery):
        others = probe_labels[rows, None] != gallery_labels[None, columns]
        ranks[rows] += np.count_nonzero(others & (scores >= best[rows, None]), axis=1)
    return ranks


def labeled_average_precision(probes, probe_labels, gallery, gallery_labels) -> np.ndarray:
    """Average precision of each probe's mates in a gallery, ties against them (the mAP of TinyFace is the mean).

    With r_1 < r_2 < ... the places of the M mates in the falling order of the cosines, every other image as similar as a mate
    before it, it is the area under precision over recall by the trapezoids of the official code:

        AP = 1/M Σ_k (k / r_k + (k - 1) / (r_k - 1)) / 2,        0 / 0 = 1

    Arguments and refusals are those of `labeled_ranks`.

    Returns:
      [P] float64 in (0, 1].

    Example:
      >>> import numpy as np
      >>> gallery = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
      >>> float(labeled_average_precision([[1.0, 0.0]], [7], gallery, [7, 5, 7, -1])[0].round(4))
      0.7917
    """
    probes, probe_labels, gallery, gallery_labels = _prepared(probes, probe_labels, gallery, gallery_labels)
    probe, mate = _mates(probe_labels, gallery_labels)
    scores = np.empty(len(probe), np.float32)
    for rows, columns, block in similarity_blocks(probes, gallery):
        inside = _inside(probe, mate, rows, columns)
        scores[inside] = block[probe[inside] - rows.start, mate[inside] - columns.start]
    order = np.lexsort((-scores, probe))  # the mates of a probe by falling similarity
    scores = scores[order]
    counts = np.bincount(probe, minlength=len(probes))
    number = np.arange(len(probe)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    places = number.astype(np.int64)
    for rows, columns, block in similarity_blocks(probes, gallery):
        others = np.where(probe_labels[rows, None] == gallery_labels[None, columns], -np.inf, block)
        of_rows = np.flatnonzero((probe >= rows.start) & (probe < rows.stop))
        for part in np.array_split(of_rows, -(-len(of_rows) // 4096) or 1):
            places[part] += np.count_nonzero(others[probe[part] - rows.start] >= scores[part, None], axis=1)
    before = np.where(places > 1, (number - 1) / np.maximum(places - 1, 1), 1.0)
    return np.bincount(probe, (number / places + before) / 2, minlength=len(probes)) / counts


def _prepared(probes, probe_labels, gallery, gallery_labels) -> tuple[np.ndarray, ...]:
    probes = np.asarray(normalize(checks.real_array("probes", probes, ndim=2)))
    gallery = np.asarray(normalize(checks.real_array("gallery", gallery, ndim=2)))
    probe_labels = checks.integer_array("probe_labels", probe_labels, len(probes))
    gallery_labels = checks.integer_array("gallery_labels", gallery_labels, len(gallery))
    missing = ~np.isin(probe_labels, gallery_labels)
    if missing.any():
        raise UserError(
            f"probe_labels: every probe needs its person in the gallery, {missing.sum()} of {len(probes)} have none"
        )
    return probes, probe_labels, gallery, gallery_labels


def _mates(probe_labels: np.ndarray, gallery_labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(probe [M], gallery image [M]) of every pair of one person, probe after probe."""
    order = np.argsort(gallery_labels, kind="stable")
    start, stop = (
        np.searchsorted(gallery_labels[order], probe_labels, side=side) for side in ("left", "right")
    )
    counts = stop - start
    probe = np.repeat(np.arange(len(probe_labels)), counts)
    within = np.arange(len(probe)) - np.repeat(np.cumsum(counts) - counts, counts)
    return probe, order[np.repeat(start, counts) + within]


def _inside(probe: np.ndarray, mate: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    return (probe >= rows.start) & (probe < rows.stop) & (mate >= columns.start) & (mate < columns.stop)


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
