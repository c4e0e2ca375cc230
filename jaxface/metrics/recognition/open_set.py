"""Embeddings of a labeled set in, open-set identification out: some people are enrolled, others are not, and both ask."""

import numpy as np

from jaxface import checks
from jaxface.errors import UserError
from jaxface.metrics.recognition.identification import rank_k, tpir_at_fpir
from jaxface.metrics.recognition.megaface import distractor_rank1
from jaxface.metrics.recognition.similarity import similarity_matrix
from jaxface.metrics.recognition.verification import normalize

FPIRS = {"1e-1": 1e-1, "1e-2": 1e-2, "1e-3": 1e-3}


def open_set(embeddings, labels, *, seed: int = 0, most: int = 10_000) -> dict[str, float]:
    """Open-set identification of a labeled set, as experiments report it.

    Half of the people (drawn by `seed` among those with two records) are enrolled with one record each, their other records
    are mated probes; the records of everybody else are non-mated probes, and the distractors of a MegaFace-like search.

    Args:
      embeddings: [N, D] float, normalized here.
      labels: [N] integers, who is on each record.
      seed: of who is enrolled, with which record, and of the order of the distractors.
      most: records of enrolled people, and of others, that take part at most; scores take 4 · most · people bytes.

    Returns:
      "identification/rank1", mated probes whose mate is nearest (closed set);
      "identification/tpir@1e-1" … "@1e-3", those found at a false positive identification rate (`tpir_at_fpir`), where there
        are enough non-mated probes to tell;
      "identification/distractor_rank1@10" … by powers of ten up to the number of distractors (`distractor_rank1`).

    Raises:
      ValueError: shapes disagree, or no record may take part.
      UserError: an embedding that is not finite, no person with two records, or nobody else.

    Example:
      >>> embeddings = np.eye(4)[[0, 0, 1, 1, 2, 2, 3, 3]]
      >>> open_set(embeddings, [0, 0, 1, 1, 2, 2, 3, 3])["identification/rank1"]
      1.0
    """
    embeddings = checks.real_array("embeddings", embeddings, ndim=2)
    labels = checks.integer_array("labels", labels, len(embeddings))
    checks.check_number("most", most, checks.AtLeast(2))
    unit = np.asarray(normalize(embeddings))
    rng = np.random.default_rng(seed)
    people, counts, able, others = _divided(labels, rng)
    inside = np.cumsum(counts[able]) <= most
    inside[0] = True
    enrolled = able[inside]
    shuffled = rng.permutation(len(labels))
    person = np.searchsorted(people, labels[shuffled])
    strangers = shuffled[np.isin(person, others)]
    enrolled_rows, whose = shuffled[np.isin(person, enrolled)], person[np.isin(person, enrolled)]
    # The first record of each enrolled person in the shuffled order is the one in the gallery.
    gallery_people, first = np.unique(whose, return_index=True)
    mated = np.setdiff1d(np.arange(len(enrolled_rows)), first)
    gallery = unit[enrolled_rows[first]]
    scores = np.asarray(similarity_matrix(unit[enrolled_rows[mated]], gallery))
    mate = np.searchsorted(gallery_people, whose[mated])
    identification = tpir_at_fpir(
        scores, mate, np.asarray(similarity_matrix(unit[strangers[:most]], gallery)), list(FPIRS.values())
    )
    report = {"identification/rank1": rank_k(scores, mate)}
    for name, rate, resolvable in zip(
        FPIRS, np.atleast_1d(identification.tpir), np.atleast_1d(identification.resolvable), strict=True
    ):
        if resolvable:
            report[f"identification/tpir@{name}"] = float(rate)
    sizes = [10**k for k in range(1, 7) if 10**k <= len(strangers)]
    if sizes:
        rates = distractor_rank1(unit[enrolled_rows], whose, unit[strangers[: sizes[-1]]], sizes=sizes)
        report |= {
            f"identification/distractor_rank1@{n}": float(r) for n, r in zip(sizes, rates, strict=True)
        }
    return report


def check_open_set(labels, *, seed: int = 0) -> None:
    """Refuses what `open_set` refuses of these labels [N], before anything is embedded: a UserError."""
    _divided(np.asarray(labels), np.random.default_rng(seed))


def _divided(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """(people, records of each, places in them of those who may be enrolled, places of the others)."""
    people, counts = np.unique(labels, return_counts=True)
    order = rng.permutation(len(people))
    able = order[counts[order] >= 2][: max(len(people) // 2, 1)]
    others = np.setdiff1d(order, able, assume_unique=True)
    if not able.size or not others.size:
        raise UserError(
            f"labels: identification needs somebody with two records and somebody else, got {len(people)} people"
        )
    return people, counts, able, others
