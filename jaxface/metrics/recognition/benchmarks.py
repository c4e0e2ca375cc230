"""What the protocols of IJB, MegaFace, SCface and TinyFace report: embeddings and lists in, named numbers out."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxface import checks
from jaxface.errors import UserError
from jaxface.metrics.recognition.curves import auc, equal_error_rate, tar_at_far
from jaxface.metrics.recognition.identification import mate_scores_above_non_mates, ranks, two_gallery_tpir
from jaxface.metrics.recognition.low_resolution import labeled_average_precision, labeled_ranks
from jaxface.metrics.recognition.megaface import distractor_rank1, distractor_verification
from jaxface.metrics.recognition.open_set import FPIRS
from jaxface.metrics.recognition.pairs import Pairs
from jaxface.metrics.recognition.report import FARS
from jaxface.metrics.recognition.similarity import pair_similarities, similarity_matrix
from jaxface.metrics.recognition.verification import normalize

RANKS = (1, 5, 10)


class TemplateSearch(NamedTuple):
    """The 1:N lists of IJB-B or IJB-C, templates by their numbers.

    Attributes:
      galleries: [G1] and [G2] integers, the templates of two galleries without a person in common.
      people: [G1] and [G2] integers, whose they are; nobody has two templates in a gallery.
      probes: [P] integers. probe_people: [P] integers; who is in neither gallery is a stranger to both.
    """

    galleries: tuple[np.ndarray, np.ndarray]
    people: tuple[np.ndarray, np.ndarray]
    probes: np.ndarray
    probe_people: np.ndarray


def template_report(embeddings, pairs: Pairs, search: TemplateSearch | None = None) -> dict[str, float]:
    """Verification and identification of templates, as IJB-B and IJB-C have it.

    Args:
      embeddings: [T, D] unit vectors, of the templates (`aggregate_templates`).
      pairs: of templates, the 1:1 protocol.
      search: the 1:N protocol, where there are its lists.

    Returns:
      "verification/tar@1e-1" … "@1e-6", those that the impostor pairs can resolve, "verification/auc" and "verification/eer".
      With `search` "identification/rank1", "rank5" and "rank10", closed set, and "identification/tpir@1e-1" … "@1e-3" with
      "identification/fnir@…" = 1 - TPIR, open set, those that the non-mated probes can resolve: each the mean over both
      galleries, where the mated probes of one are non-mated in the other (`two_gallery_tpir`). And what the public ArcFace
      script prints, with both galleries as one: "one_gallery/rank1" … and "one_gallery/mates_above@1e-1" and "@1e-2"
      (`mate_scores_above_non_mates`, which is no TPIR).

    Raises:
      ValueError: shapes or indices that do not fit. UserError: pairs of one kind only, or a gallery that no probe belongs to.

    Example:
      >>> import numpy as np
      >>> from jaxface.metrics import Pairs
      >>> templates = np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [0.6, 0.8]])
      >>> pairs = Pairs(np.array([[0, 2], [1, 2], [0, 3], [1, 3]]), np.array([True, False, False, True]), folds=1)
      >>> search = TemplateSearch(([0], [1]), ([5], [6]), [2, 3], [5, 6])
      >>> report = template_report(templates, pairs, search)
      >>> report["verification/auc"], report["one_gallery/rank1"]
      (1.0, 1.0)
    """
    scores = pair_similarities(embeddings, pairs.indices)
    genuine, impostor = np.sort(scores[pairs.same]), np.sort(scores[~pairs.same])
    points = tar_at_far(genuine, impostor, list(FARS.values()))
    report = {
        f"verification/tar@{name}": float(tar)
        for name, tar, resolvable in zip(
            FARS, *map(np.atleast_1d, (points.tar, points.resolvable)), strict=True
        )
        if resolvable
    }
    report |= {
        "verification/auc": auc(genuine, impostor),
        "verification/eer": equal_error_rate(genuine, impostor).eer,
    }
    return report | ({} if search is None else _search_report(np.asarray(embeddings), search))


def _search_report(embeddings: np.ndarray, search: TemplateSearch) -> dict[str, float]:
    probes = embeddings[search.probes]
    scores = [np.asarray(similarity_matrix(probes, embeddings[gallery])) for gallery in search.galleries]
    mates = [_mates(people, search.probe_people) for people in search.people]
    for number, mate in enumerate(mates, start=1):
        if (mate < 0).all():
            raise UserError(f"search: needs a probe of somebody in gallery {number}, it has none")
    places = [ranks(s[mate >= 0], mate[mate >= 0]) for s, mate in zip(scores, mates, strict=True)]
    report = {
        f"identification/rank{k}": float(np.mean([(place <= k).mean() for place in places])) for k in RANKS
    }
    opened = two_gallery_tpir(scores[0], mates[0], scores[1], mates[1], list(FPIRS.values()))
    first, second = (np.atleast_1d(gallery.resolvable) for gallery in opened.galleries)
    rates = map(np.atleast_1d, (opened.tpir, opened.fnir))
    for name, tpir, fnir, known in zip(FPIRS, *rates, first & second, strict=True):
        if known:
            report |= {f"identification/tpir@{name}": float(tpir), f"identification/fnir@{name}": float(fnir)}
    mate = np.where(mates[0] >= 0, mates[0], np.where(mates[1] >= 0, mates[1] + scores[0].shape[1], -1))
    together = np.concatenate(scores, axis=1)[mate >= 0]
    place = ranks(together, mate[mate >= 0])
    report |= {f"one_gallery/rank{k}": float((place <= k).mean()) for k in RANKS}
    above = mate_scores_above_non_mates(together, mate[mate >= 0], [1e-1, 1e-2]).rate
    return report | {
        f"one_gallery/mates_above@{name}": float(rate)
        for name, rate in zip(("1e-1", "1e-2"), np.atleast_1d(above), strict=True)
    }


def _mates(people: np.ndarray, probe_people: np.ndarray) -> np.ndarray:
    """[P], the place of each probe's person in a gallery, -1 where it is not there."""
    people, probe_people = np.asarray(people), np.asarray(probe_people)
    order = np.argsort(people)
    place = order[np.minimum(np.searchsorted(people[order], probe_people), len(people) - 1)]
    return np.where(people[place] == probe_people, place, -1)


def refined_probes(features, labels, noisy, *, seed: int = 0) -> np.ndarray:
    """The features of MegaFace's "refined" protocol: images of somebody else get what is known of who they should show.

        x_i = Σ x_j / |x_j| over the clean images j of the person + u,   u ~ U(-0.001, 0.001)^D

    Args:
      features: [P, D] float. labels: [P] integers, who should be on each.
      noisy: [P] bool, which of them show somebody else; nobody has only such images.
      seed: of u.

    Returns:
      [P, D] float32 unit vectors.

    Raises:
      ValueError: shapes disagree. UserError: a person without a clean image.

    Example:
      >>> import numpy as np
      >>> features = np.array([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
      >>> refined_probes(features, [0, 0, 0], [False, False, True])[2].round(2).tolist()
      [0.7099999785423279, 0.7099999785423279]
    """
    unit = np.array(normalize(checks.real_array("features", features, ndim=2)))
    labels = checks.integer_array("labels", labels, len(unit))
    noisy = checks.truth_array("noisy", noisy, len(unit))
    lost = np.setdiff1d(labels[noisy], labels[~noisy])
    if lost.size:
        raise UserError(f"noisy: every person needs a clean image, number {lost[0]} has none")
    people, number = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(people), unit.shape[1]), np.float32)
    np.add.at(sums, number[~noisy], unit[~noisy])
    jitter = np.random.default_rng(seed).uniform(-1e-3, 1e-3, (int(noisy.sum()), unit.shape[1]))
    unit[noisy] = np.asarray(normalize(jnp.asarray(sums[number[noisy]] + jitter)))
    return unit


def megaface_report(probes, labels, distractors, *, seed: int = 0) -> dict[str, float]:
    """MegaFace's challenge 1, by features as they are or refined.

    Args:
      probes, labels, distractors: as `distractor_rank1`; the distractors in any order.
      seed: of the order in which they are added.

    Returns:
      "identification/distractor_rank1@10" … by powers of ten up to the number of distractors, and
      "verification/tar@1e-1" … "@1e-6", those that the impostor pairs can resolve (`distractor_verification`).

    Raises:
      ValueError, UserError: as `distractor_rank1`; fewer than ten distractors.

    Example:
      >>> import numpy as np
      >>> probes = np.array([[1.0, 0.1], [1.0, -0.1], [0.5, 1.0]])
      >>> distractors = np.stack([np.cos(np.arange(2, 12)), np.sin(np.arange(2, 12))], axis=1)
      >>> report = megaface_report(probes, [0, 0, 1], distractors)
      >>> report["identification/distractor_rank1@10"], report["verification/tar@1e-1"]
      (0.5, 1.0)
    """
    distractors = checks.real_array("distractors", distractors, ndim=2)
    sizes = [10**k for k in range(1, 8) if 10**k <= len(distractors)]
    if not sizes:
        raise UserError(f"distractors: needs at least 10, got {len(distractors)}")
    distractors = distractors[np.random.default_rng(seed).permutation(len(distractors))]
    rates = distractor_rank1(probes, labels, distractors, sizes=sizes)
    report = {f"identification/distractor_rank1@{n}": float(r) for n, r in zip(sizes, rates, strict=True)}
    points = distractor_verification(probes, labels, distractors, list(FARS.values()))
    for name, tar, resolvable in zip(FARS, *map(np.atleast_1d, (points.tar, points.resolvable)), strict=True):
        if resolvable:
            report[f"verification/tar@{name}"] = float(tar)
    return report


def gallery_report(probes, probe_labels, gallery, gallery_labels) -> dict[str, float]:
    """Closed-set search of a gallery with any number of images per person and distractors, as TinyFace has it.

    Args:
      probes, probe_labels, gallery, gallery_labels: as `labeled_ranks`.

    Returns:
      "identification/rank1", "rank5", "rank10", "rank20" and "rank50", and "identification/map", the mean of
      `labeled_average_precision`.

    Raises:
      ValueError, UserError: as `labeled_ranks`.

    Example:
      >>> import numpy as np
      >>> gallery = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
      >>> report = gallery_report([[1.0, 0.0], [0.0, 1.0]], [7, 7], gallery, [7, 5, 7, -1])
      >>> report["identification/rank1"], round(report["identification/map"], 4)
      (0.5, 0.5625)
    """
    place = labeled_ranks(probes, probe_labels, gallery, gallery_labels)
    report = {f"identification/rank{k}": float((place <= k).mean()) for k in (1, 5, 10, 20, 50)}
    precision = labeled_average_precision(probes, probe_labels, gallery, gallery_labels)
    return report | {"identification/map": float(precision.mean())}
