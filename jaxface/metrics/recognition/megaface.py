"""A few probes among many strangers: the MegaFace challenge 1 protocols (arXiv:1512.00596).

Results on the cleaned ("refined") and on the raw lists differ by more than most methods do: say which was
used.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxface import checks
from jaxface.errors import UserError
from jaxface.metrics.recognition.similarity import HistogramTar, ScoreHistogram, similarity_blocks
from jaxface.metrics.recognition.verification import normalize


def distractor_rank1(probes, labels, distractors, *, sizes: Sequence[int]) -> np.ndarray:
    """Rank-1 rate against growing sets of distractors.

    For every ordered pair (probe, mate) of one identity the gallery is the mate and the first n distractors;
    it is a hit iff the mate scores above every one of them, a tie being a miss.

    Args:
      probes: [P, D] float embeddings (normalized here). labels: [P] integers; identities with one image have
        no pair.
      distractors: [N, D] float, in random order, no identity of the probes among them.
      sizes: numbers n of distractors, each in [1, N]; 10, 100, ..., 1,000,000 in the challenge.

    Returns:
      [len(sizes)] rate for each size.

    Raises:
      ValueError: shapes disagree. UserError: no pair of one identity, a size outside [1, N], empty or not
        finite input.

    Example:
      >>> probes = np.array([[1.0, 0.0], [0.8, 0.6]])  # one person
      >>> distractors = np.array([[0.0, 1.0], [0.95, 0.3]])
      >>> distractor_rank1(probes, [5, 5], distractors, sizes=[1, 2]).tolist()
      [1.0, 0.0]
    """
    probes, distractors, probe, mate = _prepared(probes, labels, distractors)
    counts = checks.integer_array("sizes", sizes)
    if counts.size == 0 or counts.min() < 1 or counts.max() > len(distractors):
        raise UserError(f"sizes: needs numbers in [1, {len(distractors)}], got {counts.tolist()}")
    nearest = np.full((counts.size, len(probes)), -np.inf, np.float32)
    for rows, columns, scores in similarity_blocks(probes, distractors[: counts.max()]):
        for k, size in enumerate(counts):
            inside = scores[:, : max(size - columns.start, 0)]
            if inside.size:
                np.maximum(nearest[k, rows], inside.max(axis=1), out=nearest[k, rows])
    mates = _mate_scores(probes, probe, mate)
    return (mates[None] > nearest[:, probe]).mean(axis=1)


def distractor_verification(probes, labels, distractors, fars, *, bins: int = 1 << 16) -> HistogramTar:
    """TAR at FAR with probe pairs of one identity as genuine and all probe-distractor pairs as impostors.

    The billions of impostor scores are only counted (`ScoreHistogram`), which brackets the TAR by that of one
    bin.

    Args:
      probes, labels, distractors: as `distractor_rank1`.
      fars: one target in (0, 1) or an array of them; 1e-6 in the challenge.
      bins: bins of [-1, 1].

    Raises:
      ValueError: shapes disagree. UserError: no pair of one identity, empty or not finite input.

    Example:
      >>> probes, distractors = np.array([[1.0, 0.0], [0.8, 0.6]]), np.array([[0.0, 1.0], [-1.0, 0.0]])
      >>> float(distractor_verification(probes, [5, 5], distractors, 0.25).tar)
      1.0
    """
    probes, distractors, probe, mate = _prepared(probes, labels, distractors)
    histogram = ScoreHistogram(bins=bins)
    once = probe < mate
    histogram.add(genuine=_mate_scores(probes, probe[once], mate[once]))
    for block in similarity_blocks(probes, distractors):
        histogram.add(impostor=block.scores)
    return histogram.tar_at_far(fars)


def _prepared(probes, labels, distractors):
    """Unit embeddings, and the ordered pairs (probe, mate) of one identity."""
    probes = np.asarray(normalize(jnp.asarray(checks.real_array("probes", probes, ndim=2))))
    distractors = np.asarray(normalize(jnp.asarray(checks.real_array("distractors", distractors, ndim=2))))
    labels = checks.integer_array("labels", labels, len(probes))
    probe, mate = np.nonzero(labels[:, None] == labels[None, :])
    probe, mate = probe[probe != mate], mate[probe != mate]
    if probe.size == 0:
        raise UserError("labels: need an identity with two probes")
    return probes, distractors, probe, mate


def _mate_scores(probes: np.ndarray, probe: np.ndarray, mate: np.ndarray) -> np.ndarray:
    # By the same blocked product as the distractors, so that a copy of the mate among them ties with it.
    scores = np.empty(probe.size, np.float32)
    for rows, columns, block in similarity_blocks(probes, probes):
        in_block = (
            (probe >= rows.start) & (probe < rows.stop) & (mate >= columns.start) & (mate < columns.stop)
        )
        scores[in_block] = block[probe[in_block] - rows.start, mate[in_block] - columns.start]
    return scores
